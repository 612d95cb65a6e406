"""A selector that stays awake for a moment where an answer is about to come.

A thread that sleeps until its answer is there finds its CPU asleep and its caches cold: of a round trip of a small job
that is a quarter. So while a single job is out, and answers have come quickly all the while, the loop looks again and
again instead of sleeping. Where that was in vain, as other processes want the CPU, it is tried again much later.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from time import monotonic
from typing import Final

SOON: Final = 0.0005
"""Seconds in which an answer has to come to have been worth waiting for."""
FACTOR: Final = 2.0
"""It looks for so many times as long as answers usually take."""
MEMORY: Final = 8
"""So many answers move what is usual by half and more."""
LEAST_RUN: Final = 8
MOST_RUN: Final = 256
"""Quick answers in a row, at least and at most, before it stays awake: twice as many with each time in vain."""


class WatchfulSelector(selectors.DefaultSelector):
    """Sleeps as any other, unless `is_expecting` says that one answer is out."""

    def __init__(self) -> None:
        super().__init__()
        self.is_expecting: Callable[[], bool] = lambda: False
        self._has_room = (os.cpu_count() or 1) > 1
        self._usual = SOON / FACTOR
        self._run = 0
        """Answers in a row that came soon."""
        self._needed = LEAST_RUN

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until something is ready, at most `timeout` seconds."""
        look = super().select
        if (timeout is not None and timeout < SOON) or not self._has_room or not self.is_expecting():
            return look(timeout)
        began = monotonic()
        if self._run >= self._needed:
            end = began + min(SOON, FACTOR * self._usual)
            while not (ready := look(0)):
                if monotonic() > end:
                    self._run, self._needed = 0, min(2 * self._needed, MOST_RUN)
                    return look(timeout)
            self._needed = max(self._needed - 1, LEAST_RUN)
        else:
            ready = look(timeout)
        took = monotonic() - began
        if took < SOON:
            self._run += 1
            self._usual += (took - self._usual) / MEMORY
        else:
            self._run = 0
        return ready
