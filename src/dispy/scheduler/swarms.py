"""Which nodes fetch or have a large blob of this scheduler, and what each is told of the others, so that they pass it
on to each other. Plain tables; who uses them sends what `news` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from dispy.model import BlobPlace, BlobRef, ProcessId
from dispy.scheduler.places import Place
from dispy.wire.messages import BlobShared

ALL_LIMIT: Final = 16
"""So many nodes are all told of each other; of more each is told of some, over which it gets everything."""

PlacesFor = Callable[[ProcessId, ProcessId], tuple[Place, ...]]
"""Where a node (the first) can be reached by another (the second)."""


class _Swarm(Struct):
    """One blob."""

    ref: BlobRef
    ticket: bytes
    fetching: dict[ProcessId, None] = {}
    having: dict[ProcessId, None] = {}
    told: set[ProcessId] = set()
    """Nodes that know the ticket."""
    changed: bool = False


class Swarms:
    """All blobs that several nodes have fetched or fetch."""

    def __init__(self, draw_ticket: Callable[[], bytes], is_offered: Callable[[bytes], bool]) -> None:
        """`draw_ticket` gives 32 random bytes; `is_offered`: whether the scheduler has a blob of this name."""
        self._draw_ticket = draw_ticket
        self._is_offered = is_offered
        self._swarms: dict[bytes, _Swarm] = {}

    def asked(self, node: ProcessId, ref: BlobRef) -> None:
        """A node has begun to fetch a blob."""
        swarm = self._swarms.get(ref.name)
        if swarm is None:
            self._forget_unneeded()
            swarm = self._swarms[ref.name] = _Swarm(ref, self._draw_ticket())
        swarm.having.pop(node, None)
        swarm.fetching[node] = None
        swarm.changed = True

    def fetched(self, node: ProcessId, name: bytes) -> None:
        """A node has all of it. The others are not told: it still gives what it gave, and shares that change cost."""
        swarm = self._swarms.get(name)
        if swarm is not None:
            swarm.fetching.pop(node, None)
            swarm.having[node] = None

    def gone(self, node: ProcessId) -> None:
        """A node is lost."""
        for swarm in self._swarms.values():
            swarm.told.discard(node)
            swarm.having.pop(node, None)
            if node in swarm.fetching:
                del swarm.fetching[node]
                swarm.changed = True

    def news(self, places_for: PlacesFor) -> list[tuple[ProcessId, BlobShared]]:
        """What is to be told to whom now."""
        news: list[tuple[ProcessId, BlobShared]] = []
        for swarm in self._swarms.values():
            if swarm.changed:
                swarm.changed = False
                news += self._news_of(swarm, places_for)
        return news

    def _news_of(self, swarm: _Swarm, places_for: PlacesFor) -> list[tuple[ProcessId, BlobShared]]:
        everybody = [*swarm.fetching, *swarm.having]
        if len(everybody) < 2:
            return []
        shares = len(swarm.fetching)
        news: list[tuple[ProcessId, BlobShared]] = []
        for number, node in enumerate(everybody):
            if node not in swarm.fetching and node in swarm.told:
                continue  # it has everything and knows who may have it
            others = [
                BlobPlace(other, places_for(other, node)) for other in _neighbours(everybody, number) if shares > number
            ]
            news.append((node, BlobShared(swarm.ref, swarm.ticket, number, shares, others)))
            swarm.told.add(node)
        return news

    def _forget_unneeded(self) -> None:
        for name, swarm in list(self._swarms.items()):
            if not swarm.fetching and not self._is_offered(name):
                del self._swarms[name]


def _neighbours(everybody: list[ProcessId], number: int) -> Iterable[ProcessId]:
    """All others, or those in growing distances around: from each to each it is few steps."""
    count = len(everybody)
    if count <= ALL_LIMIT:
        return [node for each, node in enumerate(everybody) if each != number]
    steps = [1 << power for power in range(count.bit_length()) if 1 << power < count]
    found = dict.fromkeys(everybody[(number + way * step) % count] for step in steps for way in (1, -1))
    found.pop(everybody[number], None)
    return list(found)
