"""Memory for what is fetched and then waits for the disk: whoever wants more than there is stands in line."""

from __future__ import annotations

import asyncio
from collections import deque


class Room:
    """So many bytes. In the loop's thread."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used(self) -> int:
        """Bytes that were taken and not given back."""
        return self._used

    async def take(self, size: int) -> None:
        """Wait until there are so many bytes; one who wants more than there are at all gets them when nobody has any.

        They are the caller's unless it was cancelled.
        """
        if not self._line and self._fits(size):
            self._used += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            raise

    def give(self, size: int) -> None:
        """Give them back."""
        self._used -= size
        while self._line:
            wanted, turn = self._line[0]
            if not turn.done():
                if not self._fits(wanted):
                    return
                self._used += wanted
                turn.set_result(None)
            self._line.popleft()

    def _fits(self, size: int) -> bool:
        return not self._used or self._used + size <= self._size
