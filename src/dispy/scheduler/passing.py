"""Tells nodes that fetch the same large blob of each other, so that they pass it on."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from dispy.model import BlobRef, ProcessId
from dispy.scheduler.places import KnownPlaces, Place
from dispy.scheduler.swarms import ALL_LIMIT, Swarms
from dispy.wire.blobs import BlobExchange, BlobSources
from dispy.wire.interfaces import is_loopback
from dispy.wire.link import Link
from dispy.wire.messages import PASSES_ON

if TYPE_CHECKING:
    from dispy.scheduler.links import Reached

GATHER_TIME: Final = 0.02
"""Seconds in which news are gathered where they are for many."""
_TICKET_SIZE: Final = 32


class BlobPassing:
    """What the nodes of one scheduler are told of each other. In the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sources: BlobSources,
        nodes: Mapping[ProcessId, Reached],
        places: KnownPlaces,
    ) -> None:
        self._loop = loop
        self._sources = sources
        self._nodes = nodes
        self._places = places
        self._swarms = Swarms(partial(secrets.token_bytes, _TICKET_SIZE), sources.offers)
        self._due: asyncio.TimerHandle | None = None

    def exchange(self, link: Link) -> BlobExchange:
        """For the link to a node."""
        node = link.peer.process
        return BlobExchange(
            link,
            self._sources,
            on_fetched=lambda name: self._swarms.fetched(node, name),
            on_shareable=lambda ref: self._asked(node, ref),
        )

    def gone(self, node: ProcessId) -> None:
        """A node is lost."""
        self._swarms.gone(node)
        self._tell_soon()

    def close(self) -> None:
        """Tell nobody any more."""
        if self._due is not None:
            self._due.cancel()

    def _asked(self, node: ProcessId, ref: BlobRef) -> None:
        reached = self._nodes.get(node)
        if reached is not None and reached.link is not None and PASSES_ON in reached.link.peer.capabilities:
            self._swarms.asked(node, ref)
            self._tell_soon()

    def _tell_soon(self) -> None:
        if self._due is None:
            wait = GATHER_TIME if len(self._nodes) > ALL_LIMIT else 0.0
            self._due = self._loop.call_later(wait, self._tell)

    def _tell(self) -> None:
        self._due = None
        for node, message in self._swarms.news(self._places_for):
            reached = self._nodes.get(node)
            if reached is not None and reached.link is not None:
                reached.link.send(message)

    def _places_for(self, node: ProcessId, other: ProcessId) -> tuple[Place, ...]:
        """Where a node can be reached by another; addresses of one machine mean nothing on another."""
        there, here = self._nodes.get(node), self._nodes.get(other)
        if there is None or there.info is None or here is None:
            return ()
        own = ((there.address, there.info.port),) if there.info.port else ()
        found = dict.fromkeys((*own, *self._places.of(node)))
        return tuple(place for place in found if is_loopback(here.address) or not is_loopback(place[0]))
