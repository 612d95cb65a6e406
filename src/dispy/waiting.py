"""`as_completed`: jobs in the order in which they end, in a `for` or an `async for`, of any clusters."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Self

from dispy.job import DispyJob


class CompletedJobs:
    """An iterator for both kinds of `for`; each job comes once."""

    def __init__(self, jobs: Iterable[DispyJob], timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._done: deque[DispyJob] = deque()
        self._news = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken: asyncio.Event | None = None
        # kept by themselves: an id can be set to anything, also to that of another job
        self._pending: dict[int, DispyJob] = {id(job): job for job in map(DispyJob._original, jobs)}
        self._left = len(self._pending)
        heard = self._heard
        for job in list(self._pending.values()):
            job._when_ended(heard)

    def _heard(self, job: DispyJob) -> None:
        """In the thread in which the job ended; it may come twice."""
        if self._pending.pop(id(job), None) is None:
            return
        self._done.append(job)
        if not self._news.is_set():
            self._news.set()
            if self._loop is not None and self._woken is not None:
                with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(self._woken.set)

    def _take(self) -> DispyJob | None:
        self._news.clear()
        try:
            job = self._done.popleft()
        except IndexError:
            return None
        self._left -= 1
        return job

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _late(self) -> TimeoutError:
        return TimeoutError(f"{self._left} of the jobs did not end within {self._timeout:g} s")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DispyJob:
        while self._left:
            job = self._take()
            if job is not None:
                return job
            if not self._news.wait(self._seconds_left()):
                raise self._late()
        raise StopIteration

    def __aiter__(self) -> Self:
        if self._woken is None:
            self._woken, self._loop = asyncio.Event(), asyncio.get_running_loop()
        return self

    async def __anext__(self) -> DispyJob:
        assert self._woken is not None, "async for calls __aiter__ first"
        while self._left:
            self._woken.clear()
            job = self._take()
            if job is not None:
                return job
            try:
                async with asyncio.timeout(self._seconds_left()):
                    await self._woken.wait()
            except TimeoutError:
                raise self._late() from None
        raise StopAsyncIteration


def as_completed(jobs: Iterable[DispyJob], timeout: float | None = None) -> CompletedJobs:
    """The jobs in the order in which they end, each once, for `for` and for `async for`.

    Args:
        jobs: of any clusters; those that have ended already come first.
        timeout: seconds from now for all of them; None waits as long as it takes.

    Raises:
        TimeoutError: in the loop, when the time is over and jobs are left.

    Example:
        >>> for job in dispy.as_completed([cluster.submit(n) for n in range(9)]):
        ...     print(job.id, job.result)
    """
    return CompletedJobs(jobs, timeout)
