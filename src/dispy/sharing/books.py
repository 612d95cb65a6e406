"""The books of one client's cluster: which batches of jobs were taken, which ends it has not acknowledged. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from dispy.errors import RemoteProtocolError
from dispy.wire.pool import JobOver

WINDOW: Final = 8 << 20
"""Bytes of ends that a client may have without acknowledging them."""
WAITING_LIMIT: Final = 4 << 20
"""Bytes of ends that are kept in memory for a client that may not be told more now; the rest is only on the disk."""
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
    """Empty when it is large: that is in a file."""
    size: int
    """Of what of the body is in the payload: 0 for one that is offered as a blob."""
    large: int = 0
    """Of the body if it is offered as a blob."""
    is_held: bool = False
    """Its node keeps it until it is on our disk: the client may be told before that."""
    is_stored: bool = True
    """It is on our disk; false until `EndsBook.stored` has counted it."""
    is_early: bool = False
    """It is told, or was, before it is on our disk."""


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
    """Ends that the client has not acknowledged, in the order in which they came.

    An end is told when it is on the disk, or at once when its node still holds it: should we die before it is on the
    disk, the node tells it again, and the client knows it. What cannot be told soon is forgotten but for its number,
    and read again.
    """

    __slots__ = (
        "_fresh",
        "_in_flight",
        "_is_attached",
        "_late",
        "_reading",
        "_sent",
        "_sequence",
        "_unread",
        "_waiting",
        "kept",
    )

    def __init__(self, unread: Iterable[int] = ()) -> None:
        """`unread` are on the disk (the scheduler's numbers)."""
        self._sent: deque[tuple[int, list[End]]] = deque()
        self._waiting: deque[End] = deque()
        self._reading: list[int] = []
        """These are being read; they come between `_waiting` and `_unread`."""
        self._unread: deque[int] = deque(unread)
        self._fresh: deque[End] = deque()
        """Not known to be on the disk."""
        self._late = 0
        """How many of these are told when they are."""
        self._sequence = 0
        self._in_flight = 0
        self._is_attached = False
        self.kept = 0
        """Bytes of the ends that wait in memory and are on the disk."""

    def __len__(self) -> int:
        unsent = len(self._waiting) + len(self._reading) + len(self._unread) + self._late
        return unsent + sum(len(ends) for _, ends in self._sent)

    @property
    def fresh(self) -> int:
        """Ends that are not known to be on the disk."""
        return len(self._fresh)

    def add(self, end: End) -> None:
        """A job has ended."""
        end.is_stored = False
        self._fresh.append(end)
        if end.is_held and not self._late and self._may_wait():
            end.is_early = True
            self._wait(end)
        else:
            self._late += 1

    def stored(self, count: int) -> None:
        """So many more ends are on the disk."""
        for _ in range(count):
            end = self._fresh.popleft()
            end.is_stored = True
            if end.is_early:
                continue
            self._late -= 1
            if self._may_wait():
                if end.large:
                    end.body = b""
                self._wait(end)
            else:
                self._unread.append(end.number)

    def _may_wait(self) -> bool:
        """Whether a further end is kept in memory."""
        return self._is_attached and not self._unread and not self._reading and self.kept < WAITING_LIMIT

    def _wait(self, end: End) -> None:
        self._waiting.append(end)
        self.kept += end.size + END_SIZE

    def detach(self) -> list[End]:
        """The client is gone: nothing is kept in memory for it.

        Returns:
            What was sent and not acknowledged.
        """
        sent = [end for _, ends in self._sent for end in ends]
        again: list[int] = []
        for end in (*sent, *self._waiting):
            if end.is_stored:
                again.append(end.number)
            else:  # it is still among the fresh, and so is all that came after it
                end.is_early = False
                self._late += 1
        self._unread.extendleft(reversed([*again, *self._reading]))
        self._sent.clear()
        self._waiting.clear()
        self._reading = []
        self._sequence = self._in_flight = self.kept = 0
        self._is_attached = False
        return sent

    def attach(self) -> list[End]:
        """A link: batches are counted from 1 again, and all that was not acknowledged is sent again.

        Returns:
            What was sent over the link before.
        """
        sent = self.detach()
        self._is_attached = True
        return sent

    def next_unread(self) -> list[int] | None:
        """What is to be read from the disk now, to be given to `read` as far as it is convenient; None: nothing."""
        if not self._is_attached or self._waiting or self._reading or not self._unread or self._in_flight >= WINDOW:
            return None
        self._reading = [self._unread.popleft() for _ in range(min(BATCH_ENDS, len(self._unread)))]
        return self._reading

    def read(self, asked: list[int], ends: Sequence[End]) -> None:
        """The first of those that `next_unread` has told were read; nothing happens if they are not wanted any more."""
        if asked is not self._reading:
            return
        self._unread.extendleft(reversed(asked[len(ends) :]))
        self._reading = []
        for end in ends:
            self._wait(end)

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
        self.kept -= size + END_SIZE * len(batch)
        self._sent.append((self._sequence, batch))
        return self._sequence, batch

    def acknowledge(self, sequence: int) -> list[End]:
        """The client has all batches up to this one: what that is."""
        done: list[End] = []
        while self._sent and self._sent[0][0] <= sequence:
            done += self._sent.popleft()[1]
        self._in_flight -= sum(end.size + END_SIZE for end in done)
        return done
