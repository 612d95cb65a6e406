"""When the cyclic garbage of a shared scheduler's process is collected: a collection looks at every object that may be
part of a cycle, and nothing else happens meanwhile.

Jobs are in no cycles: they go when nobody refers to them. What is left of links that have ended may be in some.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Final

YOUNG: Final = 10_000
"""Objects made since the last collection of young ones that lead to the next."""
YOUNG_TIMES: Final = 5
"""Collections of young objects that lead to one of all that have come since the last of these: measured 8 to 25 ms."""
NEVER: Final = 1_000_000_000
"""By itself Python would look at all objects: measured 46 ms with 40,000 jobs queued, so about 120 ms with 100,000."""
INTERVAL: Final = 60.0
"""Seconds between two collections of all objects."""
MOST: Final = 20_000
"""With more jobs and results not all objects are looked at (this takes about 25 ms): cycles wait for quiet times."""


class Collecting:
    """Collects all objects now and then, when they are few. `start` when what stays for ever has been made."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: Callable[[], int]) -> None:
        """`count` says how many jobs and results there are."""
        self._loop = loop
        self._count = count

    def start(self) -> None:
        """From now on collections are short. What was to be collected before should have been: here others wait."""
        gc.freeze()
        gc.set_threshold(YOUNG, YOUNG_TIMES, NEVER)
        self._timer = self._loop.call_later(INTERVAL, self._collect)

    def stop(self) -> None:
        """No more of them."""
        self._timer.cancel()

    def _collect(self) -> None:
        self._timer = self._loop.call_later(INTERVAL, self._collect)
        if self._count() <= MOST:
            gc.collect()
