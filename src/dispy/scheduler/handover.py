"""Jobs from the threads that submit them to the event loop: by large portions, and never so fast that it starves."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from dispy.scheduler.jobs import JobRecord

FLUSH_MOST: Final = 4096
"""Jobs that are handed over in one turn of the loop: between two, links are heard, and heartbeats leave in time."""
LATE: Final = 0.02
"""Seconds after which what was queued shall have been taken: else threads that go on submitting keep the loop from its
work, as all share one interpreter lock."""
LATE_PAUSE: Final = 0.001
"""Seconds that each further `submit` takes then."""


class Handover:
    """The line of jobs in front of a loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[Callable[[], None]], None],
        take: Callable[[list[JobRecord]], None],
    ) -> None:
        """`wake` lets a function run in the loop; `take` gets the jobs there, in their order."""
        self._loop = loop
        self._wake = wake
        self._take = take
        self._line: deque[JobRecord] = deque()
        self._flushing = False
        self._late_at = 0.0
        """While `_flushing`: when that should have been done."""

    def submit(self, record: JobRecord) -> None:
        """From any thread: queue a job; when the loop is late with what was queued, wait a bit."""
        self._line.append(record)
        if not self._flushing:
            self._flushing = True
            self._late_at = time.monotonic() + LATE
            self._wake(self._flush)
        elif time.monotonic() > self._late_at and not self._is_here():
            time.sleep(LATE_PAUSE)

    def flush_now(self) -> None:
        """In the loop: hand over all, before anything else happens."""
        self._hand_over(len(self._line))

    def _is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _flush(self) -> None:
        self._flushing = False
        count = len(self._line)
        if count > FLUSH_MOST:
            count = FLUSH_MOST
            self._flushing = True
            self._late_at = time.monotonic() + LATE
            self._loop.call_soon(self._flush)
        self._hand_over(count)

    def _hand_over(self, count: int) -> None:
        if count:
            line = self._line
            self._take([line.popleft() for _ in range(count)])
