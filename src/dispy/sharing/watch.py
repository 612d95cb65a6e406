"""Tells clients what their jobs wait for, when that has been so for a while, and again when it changes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Final

from dispy.model import ComputationId
from dispy.settings import EXPLAIN_AFTER
from dispy.sharing.guests import Guest

LOOK_INTERVAL: Final = 1.0
_COUNT: Final = re.compile(r"\b\d+ jobs?( of \d+ clusters)? waits?\b| since \d+ s\b|[\d.e+-]+ CPU seconds\b")
"""That more or fewer jobs wait, or for longer, is no other reason."""


class WaitingWatch:
    """Looks at clusters every second, at one after another: others are heard in between. It keeps what was said."""

    def __init__(self, why: Callable[[ComputationId], str | None]) -> None:
        """`why` tells why jobs of a cluster wait that will not get their turn."""
        self._why = why
        self._reasons: dict[ComputationId, tuple[str, float]] = {}
        """The reason of each, and for how many seconds it has been so."""
        self._said: dict[ComputationId, str] = {}

    async def watch(self, guests: Callable[[], Iterable[Guest]]) -> None:
        """Do that without end."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            await self.look(list(guests()))

    async def look(self, guests: Iterable[Guest]) -> None:
        """Look at clusters whose clients are there."""
        reasons: dict[ComputationId, tuple[str, float]] = {}
        for guest in guests:
            sentence = self._why(guest.id) if guest.client is not None and guest.jobs else None
            if not sentence:
                self._said.pop(guest.id, None)
                continue
            reason = _COUNT.sub("", sentence)
            before, seconds = self._reasons.get(guest.id, ("", 0.0))
            seconds = seconds + LOOK_INTERVAL if reason == before else 0.0
            reasons[guest.id] = reason, seconds
            if seconds >= EXPLAIN_AFTER - LOOK_INTERVAL and self._said.get(guest.id) != reason:
                self._said[guest.id] = reason
                guest.say(sentence)
            await asyncio.sleep(0)
        self._reasons = reasons
