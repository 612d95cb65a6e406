"""A scheduler that several programs share, as the clusters of this program use it: over a link, by messages.

It offers what `SchedulerService` offers to clusters. One for each scheduler and credentials; what concerns a single
cluster is in `attachment`, the link in `uplink`, questions in `inquiries`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, Final

from dispy.buffers import Readable
from dispy.errors import SettingsError, TransferError
from dispy.logs import logger
from dispy.model import BlobRef, ComputationId, FileSpec, ProcessId
from dispy.nodes import NodeAllocate
from dispy.portal import Portal
from dispy.recovery.book import ClusterShared
from dispy.recovery.recorder import Recorder
from dispy.scheduler.events import Steering
from dispy.scheduler.handover import Handover
from dispy.scheduler.identity import ServiceSettings, program_begun, this_holder
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.offers import FileOffers
from dispy.scheduler.owner import ClusterOwner
from dispy.settings import GRACE_TIMEOUT
from dispy.sharing.asking import Questions
from dispy.sharing.attachment import Attachment
from dispy.sharing.doings import Doings
from dispy.sharing.inquiries import Inquiries
from dispy.sharing.services import Services
from dispy.sharing.uplink import SharedSettings, Uplink
from dispy.wire.blobsources import MemorySource
from dispy.wire.inquiries import (
    PlaceFileAt,
)
from dispy.wire.link import Link
from dispy.wire.messages import AnyMessage, FileOffered
from dispy.wire.sharing import (
    AllocationAsked,
    OpenCluster,
    SteerShare,
    WidenCluster,
)

NODES_AFTER: Final = 5.0
"""Seconds on a new link after which a node of which the scheduler has not spoken again is taken for gone."""


class RemoteScheduler(Inquiries):
    """The scheduler at the other end of a link."""

    def __init__(self, portal: Portal, settings: SharedSettings) -> None:
        self.portal = portal
        self.settings = settings
        self._loop = portal.loop
        holder = this_holder(settings.ext_host)
        self._holder = holder
        begun = ServiceSettings(settings.credentials, settings.group, settings.port, 0, ())
        self.recorder = Recorder(program_begun(holder, secrets.token_bytes(32), begun))
        self.attachments: dict[ComputationId, Attachment] = {}
        self._uplink = Uplink(portal.loop, settings, self)
        self._sources = self._uplink.sources
        self._offers = FileOffers(self._sources, lambda: (each.owner.spec for each in self.attachments.values()))
        self._services = Services(portal.loop, self._uplink, self._offers, self.attachments)
        self._handover = Handover(portal.loop, portal.wake, self._take)
        self._questions = Questions()
        self._touched: dict[ComputationId, Attachment] = {}
        """Clusters of which the last read has spoken."""
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    # From any thread.

    @property
    def silence(self) -> str:
        """That the scheduler does not answer; empty while there is a link to it."""
        return self._uplink.silence()

    def submit(self, record: JobRecord) -> None:
        """Queue a job; the loop takes what is queued by large portions."""
        self._handover.submit(record)

    def cancel(self, record: JobRecord) -> None:
        """End a job, wherever it is."""
        self.portal.post(self._cancel, record)

    def offer_arguments(self, parts: list[Readable]) -> BlobRef:
        """Let the scheduler fetch the arguments of a job."""
        return self._sources.offer_parts(parts)

    def arguments_of(self, record: JobRecord) -> bytes | memoryview | None:
        """The pickled arguments of a job; None when it has just ended."""
        if record.blob is None:
            return record.args
        try:
            source = self._sources.find(record.blob.name)
        except TransferError:
            return None
        return source.read(0, record.blob.size) if isinstance(source, MemorySource) else None

    def scatter(self, cluster: ComputationId, parts: list[Readable]) -> BlobRef:
        """Let the scheduler fetch a pickled object, and keep it for the cluster."""
        blob = self._offers.offer_object(parts)
        self.portal.post(self._keep_object, cluster, blob)
        return blob

    def hold_objects(self, blobs: Iterable[BlobRef]) -> None:
        """A job needs these until it is taken back."""
        self._offers.hold(blobs)

    def told(self, cluster: ComputationId, job: int) -> None:
        """Callbacks about the end of a job have returned: the scheduler may forget it."""
        self.portal.post(self._told, cluster, job)

    # In the loop: objects of clusters.

    def _keep_object(self, cluster: ComputationId, blob: BlobRef) -> None:
        if cluster in self.attachments:
            self.attachments[cluster].keep_object(blob)

    def gather(self, cluster: ComputationId, blob: BlobRef) -> None:
        """Undo `scatter`."""
        if cluster in self.attachments:
            self.attachments[cluster].drop_object(blob)
        self._offers.release([blob])

    def release_objects(self, blobs: Iterable[BlobRef]) -> None:
        """Undo `hold_objects`."""
        self._offers.release(blobs)

    # In the loop: clusters.

    async def offer_computation(
        self, code: bytes | None, files: Iterable[tuple[Path, str]]
    ) -> tuple[BlobRef | None, tuple[FileSpec, ...]]:
        """Let the scheduler fetch what a cluster needs.

        Raises:
            TransferError: a file cannot be read.
        """
        offered = await self._offers.offer(files)
        return None if code is None else self._sources.offer_bytes(code, hashed=True), offered

    async def offer_for_job(self, files: Iterable[tuple[Path, str]]) -> tuple[FileSpec, ...]:
        """Let the scheduler fetch the files of one job. Raises as `offer_computation`."""
        return await self._offers.offer_held(files)

    async def open_cluster(self, owner: ClusterOwner, *, exclusive: bool = False) -> None:
        """Open a cluster, and wait a moment for the scheduler's word; it is dialled for as long as that takes.

        Nobody who is refused waits in vain: until it is known whether there is a scheduler, this does not return.

        Raises:
            SettingsError: the scheduler refuses this program or this cluster.
        """
        opening = OpenCluster(
            computation=owner.spec,
            token=secrets.token_bytes(32),
            holder=self._holder,
            reentrant=owner.reentrant,
            open_ended=owner.open_ended,
            named=tuple(owner.named_nodes()),
            discovers=owner.wants_discovery,
            interval=owner.interval,
            exclusive=exclusive,
        )
        doings = Doings(
            self._uplink.send,
            self._uplink.fetch,
            self._spawn,
            self.take_back,
            lambda: self._accepted(opening),
            lambda: self._over(owner),
        )
        attachment = self.attachments[owner.spec.id] = Attachment(owner, opening, doings)
        self.recorder.cluster_opened(owner.spec)
        if self._uplink.link is not None:
            attachment.open()
        self._uplink.begin()
        await self._uplink.first_word()
        await asyncio.wait([attachment.decided], timeout=self._uplink.patience())
        if attachment.decided.done() and (error := attachment.decided.exception()) is not None:
            self._over(owner)
            raise error

    def close_cluster(self, cluster: ComputationId, terminate: bool) -> None:
        """Finish or end the jobs of a cluster; the owner hears `ended`."""
        self._handover.flush_now()
        attachment = self.attachments.get(cluster)
        if attachment is not None:
            attachment.close(terminate)
            if terminate:
                self._loop.call_later(GRACE_TIMEOUT, attachment.end_unstored)
            self._give_up_if_alone()
            self._loop.call_later(GRACE_TIMEOUT, self._give_up_if_alone)

    def narrow(self, cluster: ComputationId) -> None:
        """Wait for no further nodes."""
        if cluster in self.attachments:
            self.attachments[cluster].narrow()

    async def look_for_nodes(self, cluster: ComputationId, items: Iterable[NodeAllocate], *, lasting: bool) -> None:
        """Let the scheduler look for further nodes."""
        wanted = list(items)
        named = tuple((item.host, item.port or 0) for item in wanted if not item.is_pattern)
        asks = len(named) < len(wanted)
        if cluster in self.attachments:
            self.attachments[cluster].say(WidenCluster(cluster, named, asks, lasting), lasting=lasting)

    def take_back(self, record: JobRecord) -> None:
        """What could have been fetched for a job is not wanted any more."""
        if record.blob is not None:
            self._sources.withdraw(record.blob.name)
        if record.options is not None and record.options.depends is not None:
            self._offers.release(record.options.depends.contents)

    def steer(
        self, cluster: ComputationId, node: ProcessId, how: Steering, *, cpus: int = 0, terminate: bool = False
    ) -> None:
        """Change how a cluster uses a node."""
        if cluster in self.attachments:
            self.attachments[cluster].say(SteerShare(cluster, node, how.name.lower(), cpus, terminate))

    async def send_file(self, node: ProcessId, cluster: ComputationId, path: Path, destination: str) -> str:
        """Place a file into a computation's directory on a node; returns why that failed, else nothing.

        Raises:
            TransferError: the file cannot be read.
        """
        files = await self._offers.offer_held([(path, destination)])
        try:
            answer, _ = await self._ask(lambda number: PlaceFileAt(number, cluster, node, files[0]), None)
        except TimeoutError:
            return self._uplink.why_alone()
        finally:
            self._offers.release(file.blob for file in files)
        return str(answer.reason)

    # The end.

    async def stop(self, reason: str = "the program is done", *, hurried: bool = False) -> None:
        """End the link. Clusters that are open stay open at the scheduler."""
        self._stopped = True
        for attachment in self.attachments.values():
            if attachment.may_be_left and attachment.is_untold:
                self._leave(attachment)
        self._uplink.stop(reason)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.recorder.end()

    def abandon(self) -> None:
        """In a forked child: all of it belongs to the parent alone."""
        self.recorder.abandon()

    # Inside: what clusters say.

    def _take(self, records: list[JobRecord]) -> None:
        by_cluster: dict[ComputationId, list[JobRecord]] = {}
        for record in records:
            by_cluster.setdefault(record.cluster, []).append(record)
        for cluster, mine in by_cluster.items():
            self.attachments[cluster].submit(mine)

    def _cancel(self, record: JobRecord) -> None:
        self._handover.flush_now()
        attachment = self.attachments.get(record.cluster)
        if attachment is not None:
            attachment.cancel(record)

    def _told(self, cluster: ComputationId, job: int) -> None:
        attachment = self.attachments.get(cluster)
        if attachment is not None:
            attachment.told(job)

    def _accepted(self, opening: OpenCluster) -> None:
        settings = self.settings
        self.recorder.cluster_shared(ClusterShared(opening.computation.id, settings.host, settings.port, opening.token))

    def _over(self, owner: ClusterOwner) -> None:
        if self.attachments.pop(owner.spec.id, None) is not None:
            self._offers.withdraw(owner.spec)
            self.recorder.cluster_over(owner.spec.id)

    def _give_up_if_alone(self) -> None:
        """Nobody answers, and somebody waits for the end of a cluster that needs nothing more of the scheduler."""
        uplink = self._uplink
        if uplink.link is not None or self._loop.time() < uplink.alone_since + GRACE_TIMEOUT:
            return
        for attachment in list(self.attachments.values()):
            if attachment.may_be_left:
                self._leave(attachment)

    def _leave(self, attachment: Attachment) -> None:
        """Let go of a cluster whose end the scheduler has not been told; it hears of it should the link come back."""
        why = self._uplink.silence() or self._uplink.why_alone()
        name = attachment.owner.spec.name
        if attachment.is_untold and attachment.jobs:
            self.recorder.cluster_left(attachment.id, sorted(attachment.jobs))
            logger.warning(
                "%s; it could not be told to end the jobs of %s, which may go on there: `dispy cancel %s` ends them, "
                "`dispy recover` does so too and fetches what has come of them",
                *(why, name, attachment.id),
            )
        elif attachment.is_untold:
            self.recorder.cluster_over(attachment.id)
            logger.warning(
                "%s; it could not be told that %s is closed, all of whose jobs have ended: it gives the cluster up "
                "when its program has been away for its --zombie_interval",
                *(why, name),
            )
        attachment.give_up(f"{why}; it may go on there (`dispy recover` fetches what comes of it)")

    # What the link brings.

    @property
    def pending(self) -> int:
        """Jobs that have not ended."""
        return sum(len(each.jobs) for each in self.attachments.values())

    def there(self) -> None:
        """There is a new link: all clusters are opened again."""
        for attachment in list(self.attachments.values()):
            attachment.open()
        self._loop.call_later(NODES_AFTER, self._close_untold, self._uplink.link)

    def _close_untold(self, link: Link | None) -> None:
        if self._uplink.link is link:
            for attachment in self.attachments.values():
                attachment.nodes.close_untold()

    def gone(self) -> None:
        """The link broke."""
        self._questions.link_gone()
        for attachment in self.attachments.values():
            attachment.link_gone()
        if not self._stopped:
            self._loop.call_later(GRACE_TIMEOUT, self._give_up_if_alone)

    def refused(self, refusal: str) -> bool:
        """The scheduler does not want this program: clusters that are being made fail."""
        undecided = [each for each in self.attachments.values() if not each.decided.done()]
        for attachment in undecided:
            attachment.decided.set_exception(SettingsError(refusal))
        return bool(undecided)

    def said(self, message: AnyMessage, payload: bytes | memoryview) -> None:
        """The scheduler says something."""
        question = getattr(message, "question", None)
        if question is not None:
            self._questions.answered(question, message, payload)
            return
        if isinstance(message, FileOffered):
            self._spawn(self._services.take_file(message))
            return
        attachment = self.attachments.get(getattr(message, "cluster", ComputationId("")))
        if attachment is None:
            return
        if isinstance(message, AllocationAsked):
            self._spawn(self._services.allocate(attachment, message.node))
            return
        self._touched[attachment.id] = attachment
        try:
            attachment.heard(message, payload)
        except BaseException:  # what follows is for others
            logger.exception("%s was not told of %s; dispy goes on", attachment.id, type(message).__name__)

    def all_said(self) -> None:
        """Acknowledge what was taken."""
        for attachment in self._touched.values():
            attachment.acknowledge()
        self._touched.clear()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("an internal task failed", exc_info=task.exception())
