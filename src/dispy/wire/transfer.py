"""Which pieces of a blob to ask for next: the receiver pulls, and what it has asked for and not got is the credit.

Chunks are small until the link has shown that it moves a large one quickly, so that other messages never wait long;
the window follows what the link delivers in its shortest round trip. Knows nothing of links, files and clocks.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

SMALL_CHUNK: Final = 64 << 10
LARGE_CHUNK: Final = 1 << 20
"""Also the most that may be asked for at once."""
LARGE_CHUNK_TIME: Final = 0.05
"""Seconds in which the measured rate must move a large chunk before large ones are asked for."""
WINDOW_CHUNKS: Final = 4
WINDOW_LIMIT: Final = 16 << 20
_RATE_WEIGHT: Final = 0.5


class _Asked(Struct):
    size: int
    at: float
    received_then: int


class Download:
    """The state of one blob that is being fetched."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.received = 0
        """Bytes that have arrived."""
        self.outstanding = 0
        """Bytes that were asked for and have not arrived."""
        self._fresh = 0
        self._again: list[tuple[int, int]] = []
        self._asked: dict[int, _Asked] = {}
        self._rate = 0.0
        self._round_trip = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.received == self.size

    @property
    def requests(self) -> int:
        """How many requests have not been answered."""
        return len(self._asked)

    @property
    def chunk_size(self) -> int:
        """Bytes that one request asks for now."""
        return LARGE_CHUNK if self._rate * LARGE_CHUNK_TIME >= LARGE_CHUNK else SMALL_CHUNK

    @property
    def window(self) -> int:
        """Bytes that may be outstanding now."""
        # Twice what fits in the shortest round trip: a link that can do more shows it, and the window grows.
        flying = int(2 * self._rate * self._round_trip)
        return min(max(WINDOW_CHUNKS * self.chunk_size, flying), WINDOW_LIMIT)

    def next_requests(self, now: float, backlog: int = 0) -> list[tuple[int, int]]:
        """Offsets and sizes to ask for now; `backlog` are bytes that arrived and are not yet written."""
        requests: list[tuple[int, int]] = []
        while self.outstanding + backlog < self.window:
            piece = self._next_piece(self.chunk_size)
            if piece is None:
                break
            offset, size = piece
            self._asked[offset] = _Asked(size, now, self.received)
            self.outstanding += size
            requests.append(piece)
        return requests

    def arrived(self, offset: int, size: int, now: float) -> int:
        """How many of `size` bytes that arrived for `offset` are to be kept; 0: they were not asked for.

        What is missing of a piece is asked for again.
        """
        asked = self._asked.get(offset)
        if asked is None or size <= 0:
            return 0
        del self._asked[offset]
        self.outstanding -= asked.size
        kept = min(size, asked.size)
        if kept < asked.size:
            self._again.append((offset + kept, asked.size - kept))
        self.received += kept
        self._measure(asked, now)
        return kept

    def restart(self) -> None:
        """Forget what is outstanding (the link broke): it will be asked for again."""
        self._again.extend((offset, asked.size) for offset, asked in self._asked.items())
        self._again.sort(reverse=True)
        self._asked.clear()
        self.outstanding = 0
        self._rate = 0.0
        self._round_trip = 0.0

    def _next_piece(self, limit: int) -> tuple[int, int] | None:
        if self._again:
            offset, size = self._again.pop()
            if size > limit:
                self._again.append((offset + limit, size - limit))
            return offset, min(size, limit)
        size = min(limit, self.size - self._fresh)
        if size <= 0:
            return None
        self._fresh += size
        return self._fresh - size, size

    def _measure(self, asked: _Asked, now: float) -> None:
        elapsed = max(now - asked.at, 1e-6)
        rate = (self.received - asked.received_then) / elapsed
        self._rate = rate if not self._rate else self._rate + _RATE_WEIGHT * (rate - self._rate)
        self._round_trip = min(self._round_trip or elapsed, elapsed)
