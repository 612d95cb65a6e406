"""How many calls of `map` travel as one job, and how many such chunks may be under way; pure.

A chunk costs what a job costs, so short calls share one; others wait for the end of a long one, so it holds no more
than its time allows. What calls take is only known when some have ended: chunks begin with one call and grow.
"""

from __future__ import annotations

from typing import Final

SECONDS: Final = 0.05
"""What a chunk shall take: a thousand times what it costs to send."""
SECONDS_PER_SLOT: Final = 100e-6
"""The same for each CPU, where there are many: one program feeds all of them."""
LEAST_SECONDS: Final = 0.001
"""Chunks are not made shorter than this towards the end."""
BYTES: Final = 48 << 10
"""Most bytes of arguments, and of results, in a chunk of several calls: they travel in batches with others."""
GROWTH: Final = 16
"""How many times larger than any before it a chunk may be."""
PARTS: Final = 3
"""Towards a known end, a chunk is one of so many parts for each CPU of what is left."""
AHEAD: Final = 16
"""Chunks for each CPU that may be under way or wait to be taken."""
AHEAD_BYTES: Final = 64 << 20
"""Bytes of these beyond which there are only `AT_LEAST` for each CPU."""
AT_LEAST: Final = 2
_OLD: Final = 0.8
"""What remains of older measurements when a new one comes."""


class Chunking:
    """Sizes of chunks, learned from those that have ended."""

    def __init__(self, total: int | None, size: int | None) -> None:
        """`total` calls, if that is known; `size` calls in each chunk, if that is not to be found out."""
        self._left = total
        self._size = size
        self._largest = 0
        self._calls = self._seconds = self._sent = self._received = 0.0

    def learn(self, calls: int, seconds: float, sent: int, received: int) -> None:
        """A chunk of so many calls took so long, with so many bytes of arguments and of results."""
        self._largest = max(self._largest, calls)
        self._calls = self._calls * _OLD + calls
        self._seconds = self._seconds * _OLD + max(seconds, 0.0)
        self._sent = self._sent * _OLD + sent
        self._received = self._received * _OLD + received

    def next_size(self, slots: int) -> int:
        """How many calls the next chunk holds, with so many CPUs there."""
        if self._size is not None:
            return self._size
        if not self._calls:
            return 1
        seconds = max(SECONDS, slots * SECONDS_PER_SLOT)
        most = min(
            self._largest * GROWTH,
            self._fitting(seconds, self._seconds),
            self._fitting(BYTES, max(self._sent, self._received)),
        )
        if self._left is not None:
            share = -(-self._left // (max(slots, 1) * PARTS))
            most = min(most, max(share, self._fitting(LEAST_SECONDS, self._seconds)))
        return max(most, 1)

    def _fitting(self, bound: float, used: float) -> int:
        """Calls that stay within a bound, at what those before have used in all."""
        if used <= 0.0:
            return self._largest * GROWTH
        return int(bound * self._calls / used)

    def submitted(self, calls: int) -> None:
        """A chunk was submitted."""
        if self._left is not None:
            self._left = max(self._left - calls, 0)

    def weight(self, calls: int, sent: int) -> int:
        """Bytes that a chunk will occupy here, its results included."""
        return sent + (int(calls * self._received / self._calls) if self._calls else 0)

    @staticmethod
    def has_room(slots: int, chunks: int, weight: int) -> bool:
        """Whether another may be submitted while so many chunks of that weight are under way or wait to be taken."""
        slots = max(slots, 1)
        return chunks < AHEAD * slots and (weight < AHEAD_BYTES or chunks < AT_LEAST * slots)
