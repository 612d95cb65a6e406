"""How long an answer is waited for from a process that answers in order."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Final

ANSWER_TIMEOUT: Final = 10.0
"""Seconds within which a fork server answers what takes it milliseconds; one that does not is ended."""
LONGEST: Final = 60.0
"""The same where the machine has more to do than it can."""


def answer_timeout(load: float, cpus: int) -> float:
    """Seconds to wait where so many processes want one of the CPUs: as many times longer as each gets less of one."""
    return min(LONGEST, ANSWER_TIMEOUT * max(1.0, load / cpus))


class Patience:
    """The questions that are open. To be used on the event loop's thread."""

    def __init__(self, give_up: Callable[[float], None]) -> None:
        """`give_up` is called with the seconds in which nothing was answered."""
        self._give_up = give_up
        self._asked_at: deque[float] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def asked(self) -> None:
        """There is one more to answer."""
        loop = asyncio.get_running_loop()
        self._asked_at.append(loop.time())
        if self._timer is None:
            self._timer = loop.call_later(ANSWER_TIMEOUT, self._look)

    def answered(self) -> None:
        """The oldest one is answered."""
        if self._asked_at:
            self._asked_at.popleft()

    def stop(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if not self._asked_at:
            return
        loop = asyncio.get_running_loop()
        timeout = answer_timeout(os.getloadavg()[0], len(os.sched_getaffinity(0)))
        left = self._asked_at[0] + timeout - loop.time()
        if left > 0:
            self._timer = loop.call_later(left, self._look)
        else:
            self._give_up(timeout)
