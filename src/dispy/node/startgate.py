"""How many fork servers of a node start at a time: each keeps a CPU busy, and nothing is gained by starting them all.

Where a crowd of them takes every CPU, the daemon itself gets none, and is lost to its scheduler after some seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from dispy.node.crowd import HOLD_TIMEOUT, Crowd

TURN_TIMEOUT: Final = 5.0
"""Seconds after which another may start although one has not come to its end: setup may wait for whatever it likes."""


class StartGate:
    """Lets so many start at a time, in the order in which they come. To be used on the event loop's thread."""

    def __init__(self, most: int, crowd: Crowd, timeout: float = TURN_TIMEOUT) -> None:
        """`crowd` are all nodes of the machine, this one among them."""
        self._free = asyncio.Semaphore(most)
        self._crowd = crowd
        self._timeout = timeout

    async def take(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start something when it is its turn; returns, or raises, when that has come to its end."""
        await self._free.acquire()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._free.release()

        loop = asyncio.get_running_loop()
        timers = [loop.call_later(self._timeout, give_back)]
        try:
            leave = await self._crowd.enter()
            timers.append(loop.call_later(HOLD_TIMEOUT, leave))
            try:
                await start()
            finally:
                leave()
        finally:
            for timer in timers:
                timer.cancel()
            give_back()
