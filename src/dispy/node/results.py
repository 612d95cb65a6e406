"""Ended attempts that nobody has acknowledged, in numbered batches, and which of them are due for the disk. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Final

from msgspec import Struct, field

from dispy.model import UNSTARTED, Ending, HeldAttempt, JobDone
from dispy.wire.messages import JobsDone

SPOOL_AFTER: Final = 1.0
"""Seconds that a batch waits for its acknowledgement before it is written to disk."""
INTERIM_MOST: Final = 1000
"""Interim results that wait without a link; beyond it the oldest are dropped."""
INTERIM_BYTES: Final = 64 << 20
"""Bytes of all of them."""

Bodies = Sequence[bytes | memoryview]


class Kept(Enum):
    """Where a batch is safe."""

    MEMORY = auto()
    WRITING = auto()
    """On its way to the disk."""
    DISK = auto()


class Batch(Struct, eq=False):
    """Attempts that ended, as they are told."""

    message: JobsDone
    bodies: Bodies
    at: float
    """When they ended, on the clock of `now`."""
    kept: Kept = Kept.MEMORY

    @property
    def is_interim(self) -> bool:
        """Whether it is an interim result, which stands in a batch of its own and never goes to the disk."""
        return self.message.jobs[0].ending == Ending.PROVISIONAL

    @property
    def size(self) -> int:
        """Bytes of its bodies, wherever they are."""
        return sum(
            done.result_size + done.stdout_size + done.stderr_size + done.error_size for done in self.message.jobs
        )


class Freed(Struct):
    """What is not needed any more."""

    blobs: list[bytes] = field(default_factory=list)
    """Names of bodies that were offered."""
    spooled: list[int] = field(default_factory=list)
    """Numbers of batches that are on the disk, or on their way there."""

    def add(self, batch: Batch) -> None:
        """All of this batch."""
        self.blobs += [done.blob.name for done in batch.message.jobs if done.blob is not None]
        if batch.kept is not Kept.MEMORY:
            self.spooled.append(batch.message.sequence)


class Results(Struct, eq=False):
    """The batches of one scheduler."""

    sequence: int = 0
    """Number of the last batch."""
    batches: deque[Batch] = field(default_factory=deque)
    attempts: dict[int, int] = field(default_factory=dict)
    """Job → its last ended attempt."""
    look_at: float | None = None
    """When batches are to be looked at for the disk; nothing is due before."""

    def add(self, done: list[JobDone], bodies: Bodies, now: float) -> Batch:
        """Keep a batch and return it for sending."""
        self.sequence += 1
        batch = Batch(JobsDone(self.sequence, done), bodies, now)
        self.batches.append(batch)
        if self.look_at is None:
            self.look_at = now + SPOOL_AFTER
        return batch

    def restore(self, message: JobsDone, bodies: Bodies, now: float) -> None:
        """Take in a batch that was found on the disk; they come in the order of their numbers."""
        self.sequence = max(self.sequence, message.sequence)
        self.batches.append(Batch(message, bodies, now, Kept.DISK))
        for done in message.jobs:
            self.attempts[done.job] = max(done.attempt, self.attempts.get(done.job, 0))

    def acknowledge(self, sequence: int) -> Freed:
        """Forget the batches up to this number."""
        freed = Freed()
        while self.batches and self.batches[0].message.sequence <= sequence:
            batch = self.batches.popleft()
            for done in batch.message.jobs:
                if done.ending != Ending.PROVISIONAL and self.attempts.get(done.job) == done.attempt:
                    del self.attempts[done.job]
            freed.add(batch)
        return freed

    def held(self) -> Iterable[HeldAttempt]:
        """Every attempt of which the result is here."""
        for batch in self.batches:
            for done in batch.message.jobs:
                if done.ending != Ending.PROVISIONAL:
                    yield HeldAttempt(done.job, done.attempt)

    def waiting(self) -> int:
        """How many attempts that had started have their result here."""
        nothing = (Ending.PROVISIONAL, *UNSTARTED)
        return sum(done.ending not in nothing for batch in self.batches for done in batch.message.jobs)

    def due(self, now: float, *, linked: bool, most: int | None = None) -> list[Batch]:
        """Up to `most` batches that are to be written now: those that waited too long, or all without a link."""
        self.look_at = None
        due: list[Batch] = []
        for batch in self.batches:
            if batch.kept is not Kept.MEMORY or batch.is_interim:
                continue
            if linked and batch.at + SPOOL_AFTER > now:
                self.look_at = batch.at + SPOOL_AFTER
                break
            if most is not None and len(due) == most:
                self.look_at = now
                break
            batch.kept = Kept.WRITING
            due.append(batch)
        return due

    def written(self, sequences: Iterable[int], kept: Kept) -> None:
        """What became of batches that were being written: they are on the disk, or in memory as before."""
        numbers = set(sequences)
        for batch in self.batches:
            if batch.message.sequence in numbers:
                batch.kept = kept

    @property
    def is_spooled(self) -> bool:
        """Whether the death of the daemon would take nothing of it."""
        return all(batch.kept is Kept.DISK or batch.is_interim for batch in self.batches)

    def drop_interim(self, *, most: int = 0, size: int = 0) -> Freed:
        """Forget the oldest interim results, until no more than so many and so large ones are left."""
        interim = [batch for batch in self.batches if batch.is_interim]
        left, count = sum(batch.size for batch in interim), len(interim)
        gone: set[Batch] = set()
        freed = Freed()
        for batch in interim:
            if count <= most and left <= size:
                break
            count, left = count - 1, left - batch.size
            gone.add(batch)
            freed.add(batch)
        if gone:
            self.batches = deque(batch for batch in self.batches if batch not in gone)
        return freed

    def check(self) -> None:
        """Recompute what can be.

        Raises:
            AssertionError: it differs, which is a bug here.
        """
        numbers = [batch.message.sequence for batch in self.batches]
        assert numbers == sorted(set(numbers)), "batches are out of order"
        assert not numbers or numbers[-1] <= self.sequence, "a number comes twice"
        newest: dict[int, int] = {}
        for held in self.held():
            newest[held.job] = max(held.attempt, newest.get(held.job, 0))
        assert newest == self.attempts, "the ended attempts are not those of the batches"
        assert not any(batch.is_interim and batch.kept is not Kept.MEMORY for batch in self.batches)
        waits = any(batch.kept is Kept.MEMORY and not batch.is_interim for batch in self.batches)
        assert not waits or self.look_at is not None, "a result never reaches the disk"
