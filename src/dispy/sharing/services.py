"""What a shared scheduler wants of a program: how much of a node it wants, and that it takes files of its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from dispy.logs import logger
from dispy.model import ComputationId, FileSpec
from dispy.scheduler.conversation import fetch_here
from dispy.scheduler.offers import FileOffers
from dispy.scheduler.owner import Allocation
from dispy.sharing.attachment import Attachment
from dispy.sharing.sightings import view_of
from dispy.sharing.uplink import Uplink
from dispy.wire.messages import FileOffered, FileTaken
from dispy.wire.pool import NodeSeen
from dispy.wire.sharing import AnswerAllocation


class Services:
    """See the module. In the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        uplink: Uplink,
        offers: FileOffers,
        attachments: Mapping[ComputationId, Attachment],
    ) -> None:
        self._loop = loop
        self._uplink = uplink
        self._offers = offers
        self._attachments = attachments
        self._asking = asyncio.Lock()
        self._taking: set[tuple[int, bytes, str]] = set()
        """Files of jobs that are on their way."""

    async def allocate(self, attachment: Attachment, seen: NodeSeen) -> None:
        """The owner of a cluster says how much of a node it wants."""
        owner, view = attachment.owner, view_of(seen)
        attachment.nodes.views[view.process] = view
        allocation: Allocation | None = None
        files: tuple[FileSpec, ...] = ()
        try:
            if owner.allocates_slowly:
                # not in the callback thread: a callback may wait for a job that waits for this node
                async with self._asking:
                    allocation = await self._loop.run_in_executor(None, owner.allocate, view, False)
            else:
                allocation = owner.allocate(view, False)
            if allocation is not None and allocation.cpus > 0:
                files = await self._offers.offer([(Path(name), Path(name).name) for name in allocation.depends])
        except Exception:
            logger.exception("node %s is not used: its allocation failed", view.info.name)
            allocation = None
        wanted = allocation or Allocation(0)
        attachment.say(
            AnswerAllocation(attachment.id, view.process, wanted.cpus, files, wanted.setup_args, wanted.oversubscribe)
        )

    async def take_file(self, offer: FileOffered) -> None:
        """A running job sends a file; on a new link the scheduler tells again of one that was not answered."""
        file = offer.file
        key = (offer.job, file.blob.name, file.path)
        if key in self._taking:
            return
        self._taking.add(key)
        try:
            is_wanted = any(offer.job in each.jobs for each in self._attachments.values())
            exchange = self._uplink.exchange if is_wanted else None
            reason = "the job is not wanted any more" if exchange is None else await fetch_here(exchange, file)
        finally:
            self._taking.discard(key)
        if reason:
            logger.warning("a job's file %s was not taken: %s", file.path, reason)
        self._uplink.send(FileTaken(file.blob.name, reason, offer.job, file.path))
