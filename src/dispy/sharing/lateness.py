"""What is heard of jobs whose large bodies are still to be fetched: taken in its order, one after another.

Bodies are fetched ahead, as many as are no burden to memory: with a round trip for each the link would idle.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from msgspec import Struct

from dispy.errors import TransferError
from dispy.model import BlobRef

AHEAD_SIZE: Final = 32 << 20
"""Bytes of bodies that are fetched while an earlier one is on its way, or is being taken."""
AHEAD: Final = 16
"""As many bodies, at most."""

Take = Callable[[memoryview | TransferError | None], None]
"""What is done with a body, with why it cannot be had, or without either."""


class _Waiting(Struct, eq=False):
    job: int
    ref: BlobRef | None
    take: Take
    body: asyncio.Task[memoryview | TransferError] | None = None


class LateLine:
    """Large bodies on their way, and whatever their jobs said after them. In the loop's thread."""

    def __init__(
        self,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        fetch: Callable[[BlobRef], Coroutine[Any, Any, memoryview]],
        is_wanted: Callable[[int], bool],
    ) -> None:
        """`fetch` raises TransferError; `is_wanted` says whether a job has not ended: else nothing is fetched."""
        self._spawn = spawn
        self._fetch = fetch
        self._is_wanted = is_wanted
        self._waiting: deque[_Waiting] = deque()
        self._counts: Counter[int] = Counter()
        """Of each job."""

    def __contains__(self, job: int) -> bool:
        """Whether something of this job has not been taken yet."""
        return job in self._counts

    def add(self, job: int, ref: BlobRef | None, take: Take) -> None:
        """Take this when all that came before has been taken, and its body, if it has one, is here."""
        self._counts[job] += 1
        self._waiting.append(_Waiting(job, ref, take))
        if len(self._waiting) == 1:
            self._spawn(self._walk())

    async def _walk(self) -> None:
        try:
            while self._waiting:
                first = self._waiting[0]
                self._fetch_ahead()
                first.take(None if first.body is None else await first.body)
                self._waiting.popleft()
                self._counts[first.job] -= 1
                if not self._counts[first.job]:
                    del self._counts[first.job]
        finally:
            for each in self._waiting:
                if each.body is not None:
                    each.body.cancel()

    def _fetch_ahead(self) -> None:
        """Begin to fetch what is first, and what comes after it."""
        size = 0
        for number, each in enumerate(self._waiting):
            size += 0 if each.ref is None else each.ref.size
            if number and (size > AHEAD_SIZE or number >= AHEAD):
                return
            if each.ref is not None and each.body is None and self._is_wanted(each.job):
                each.body = asyncio.get_running_loop().create_task(self._body(each.ref))

    async def _body(self, ref: BlobRef) -> memoryview | TransferError:
        try:
            return await self._fetch(ref)
        except TransferError as error:
            return error
