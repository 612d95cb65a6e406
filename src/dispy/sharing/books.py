"""The books of one client's cluster: which batches of jobs were taken, which ends it has not acknowledged. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from dispy.errors import RemoteProtocolError
from dispy.wire.sharing import JobOver

WINDOW: Final = 8 << 20
"""Bytes of ends that a client may have without acknowledging them."""
END_SIZE: Final = 256
"""Bytes that an end counts for without its body."""
BATCH_ENDS: Final = 1024
BATCH_SIZE: Final = 1 << 20
"""Ends, and bytes of their bodies, in one message."""


class End(msgspec.Struct, gc=False):
    """How a job ended."""

    number: int
    """The scheduler's."""
    over: JobOver
    """With the client's number."""
    body: bytes
    """Empty when it is large and on the disk."""
    size: int
    """Of what of the body is in the payload: 0 for one that is offered as a blob."""
    large: int = 0
    """Of the body if it is offered as a blob."""


class BatchBook:
    """Which batches of submitted jobs have been taken, and which are safe."""

    __slots__ = ("highest", "stored", "taken")

    def __init__(self, stored: int = 0, highest: int = 0) -> None:
        self.taken = self.stored = stored
        self.highest = highest
        """The highest of the client's numbers of jobs."""

    def take(self, sequence: int) -> bool:
        """Whether a batch is to be taken; one that was taken before is not.

        Raises:
            RemoteProtocolError: one before it is missing.
        """
        if sequence <= self.taken:
            return False
        if sequence != self.taken + 1:
            raise RemoteProtocolError(f"batch {sequence} of jobs came after batch {self.taken}")
        self.taken = sequence
        return True

    def use(self, job: int) -> bool:
        """Use the number of a new job; false when it, or a higher one, was used before."""
        if job <= self.highest:
            return False
        self.highest = job
        return True


class EndsBook:
    """Ends that the client has not acknowledged, in the order in which they came."""

    __slots__ = ("_in_flight", "_sent", "_sequence", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[End] = deque()
        self._sent: deque[tuple[int, list[End]]] = deque()
        self._sequence = 0
        self._in_flight = 0

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(ends) for _, ends in self._sent)

    def add(self, end: End) -> None:
        """A job has ended."""
        self._waiting.append(end)

    def attach(self) -> list[End]:
        """Another link: batches are counted from 1 again, and all that was not acknowledged is sent again.

        Returns:
            What was sent over the link before.
        """
        again = [end for _, ends in self._sent for end in ends]
        self._waiting.extendleft(reversed(again))
        self._sent.clear()
        self._sequence = self._in_flight = 0
        return again

    def next_batch(self) -> tuple[int, list[End]] | None:
        """The next batch that may be sent, with its number; None: none, or as much is on its way as may be."""
        waiting = self._waiting
        if not waiting or self._in_flight >= WINDOW:
            return None
        batch: list[End] = []
        size = 0
        while waiting and len(batch) < BATCH_ENDS and size < BATCH_SIZE:
            end = waiting.popleft()
            batch.append(end)
            size += end.size
        self._sequence += 1
        self._in_flight += size + END_SIZE * len(batch)
        self._sent.append((self._sequence, batch))
        return self._sequence, batch

    def acknowledge(self, sequence: int) -> list[End]:
        """The client has all batches up to this one: what that is."""
        done: list[End] = []
        while self._sent and self._sent[0][0] <= sequence:
            done += self._sent.popleft()[1]
        self._in_flight -= sum(end.size + END_SIZE for end in done)
        return done

    def unacknowledged(self) -> list[End]:
        """All of them."""
        return [*(end for _, ends in self._sent for end in ends), *self._waiting]
