"""Which node daemon has come in place of which: that one is gone, however long it might still be waited for. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from dispy.model import NodeInfo, ProcessId
from dispy.scheduler.places import Place


class Predecessors:
    """What is known of daemons by which those after them can be recognised."""

    def __init__(self) -> None:
        self._places: dict[Place, ProcessId] = {}
        """Where the scheduler before this one had nodes that have not come back."""
        self._homes: dict[tuple[str, str], ProcessId] = {}
        """Directory and name → the daemon that had it last."""

    def remember(self, node: ProcessId, info: NodeInfo, places: Iterable[Place]) -> None:
        """The scheduler before this one had a node there."""
        for place in places:
            self._places[place] = node
        self.lives(node, info)

    def reached(self, node: ProcessId, place: Place) -> ProcessId | None:
        """A node was reached by dialling; returns the one that was there before and is gone."""
        was = self._places.get(place)
        if was is None:
            return None
        self._places = {place: each for place, each in self._places.items() if each not in (was, node)}
        return None if was == node else was

    def lives(self, node: ProcessId, info: NodeInfo) -> ProcessId | None:
        """A node says who it is; returns the one that had its directory before: a daemon keeps that locked.

        A directory may have been copied with its machine: such daemons have one name only by mistake, and whoever asks
        looks whether the other one still has a link.
        """
        if not info.home:
            return None
        was = self._homes.get((info.home, info.name))
        self._homes[info.home, info.name] = node
        return None if was == node else was

    def forget(self, node: ProcessId, info: NodeInfo) -> None:
        """It is gone for good."""
        if self._homes.get((info.home, info.name)) == node:
            del self._homes[info.home, info.name]
