"""Nodes that were there and are not any more: shown for some hours, so that one sees which is missing. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Final

from msgspec import Struct

from dispy.model import ProcessId

SHOWN_FOR: Final = 12 * 3600.0
"""Seconds for which a node that is gone is shown, unless it comes back."""
MOST: Final = 1000
"""Nodes that are shown so; those that went first are forgotten first."""


class Departed(Struct):
    """A node that is gone."""

    node: ProcessId
    name: str
    address: str
    cpus: int
    at: float = 0.0
    """Wall clock when that was seen."""
    cause: str = ""
    """Empty: it was not needed for anything, and ended."""


class DepartedNodes:
    """Who was there and is not."""

    def __init__(self) -> None:
        self._known: dict[ProcessId, Departed] = {}
        """Nodes that are there, as far as was looked."""
        self._causes: dict[ProcessId, str] = {}
        self._gone: dict[ProcessId, Departed] = {}
        """In the order in which they went."""

    def joined(self, node: ProcessId, name: str, address: str, cpus: int) -> None:
        """A node is there. One of its name at its address that is gone has come back."""
        self._known[node] = Departed(node, name, address, cpus)
        for gone in [each for each in self._gone.values() if (each.name, each.address) == (name, address)]:
            del self._gone[gone.node]

    def vanished(self, node: ProcessId, cause: str) -> None:
        """Why a node is about to be gone."""
        self._causes[node] = cause

    def look(self, present: Container[ProcessId], now: float) -> None:
        """These are there."""
        for node in [node for node in self._known if node not in present]:
            gone = self._known.pop(node)
            gone.at, gone.cause = now, self._causes.get(node, "")
            if not any((each.name, each.address) == (gone.name, gone.address) for each in self._known.values()):
                self._gone[node] = gone
        self._causes.clear()
        while self._gone:
            first = next(iter(self._gone.values()))
            if len(self._gone) <= MOST and now - first.at < SHOWN_FOR:
                return
            del self._gone[first.node]

    def __iter__(self) -> Iterator[Departed]:
        """Those that are gone."""
        return iter(list(self._gone.values()))
