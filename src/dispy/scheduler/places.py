"""Where nodes can be reached: every host and port known of each node, and which to try next. Plain tables.

A node may have addresses of both families, several interfaces, and places that it was told of (`--ext_host`).
"""

from __future__ import annotations

from collections.abc import Iterable

from dispy.model import ProcessId

Place = tuple[str, int]
"""Host (name or address) and TCP port."""

PLACES_OF_A_NODE = 16
"""More are not remembered: nobody dials so many."""


class KnownPlaces:
    """The places of all nodes that were heard of."""

    def __init__(self) -> None:
        self._places: dict[ProcessId, dict[Place, None]] = {}
        self._tried: dict[ProcessId, set[Place]] = {}

    def learn(self, node: ProcessId, places: Iterable[Place]) -> bool:
        """The node is said to be reachable there; True if something of it is news."""
        known = self._places.setdefault(node, {})
        before = len(known)
        for place in places:
            if len(known) < PLACES_OF_A_NODE:
                known.setdefault(place)
        return len(known) > before

    def of(self, node: ProcessId) -> tuple[Place, ...]:
        """All that is known, what was learned first goes first."""
        return tuple(self._places.get(node, ()))

    def begin(self, node: ProcessId) -> None:
        """Begin a round of trying: every place may be tried once."""
        self._tried[node] = set()

    def next(self, node: ProcessId) -> Place | None:
        """The next place to try in this round; None when all have been tried."""
        tried = self._tried.setdefault(node, set())
        place = next((place for place in self.of(node) if place not in tried), None)
        if place is not None:
            tried.add(place)
        return place

    def forget(self, node: ProcessId) -> None:
        """The node is gone."""
        self._places.pop(node, None)
        self._tried.pop(node, None)
