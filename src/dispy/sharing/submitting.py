"""The jobs of one cluster on their way to a shared scheduler: batched, numbered, kept until they are stored. Pure.

A batch that was sent may or may not have arrived when the link breaks. The scheduler counts batches, so sending again
what it has not stored delivers each exactly once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from dispy.model import JobSpec, JobState
from dispy.scheduler.jobs import JobRecord

CREDIT: Final = 64 << 20
"""Bytes of arguments that may be under way; what is beyond waits here."""
BATCH_JOBS: Final = 2048
BATCH_SIZE: Final = 4 << 20
"""Bytes after which no further job is put into a batch."""
FEW_BATCHES: Final = 8
WORTH_A_BATCH: Final = 512
"""While so many batches are not stored, fewer jobs wait for the next word of the scheduler: it stores and decides batch
by batch, and those that are submitted one by one would come in thousands of small ones."""
JOB_SIZE: Final = 64
"""Bytes that a job counts for beside its arguments."""


class Batch(Struct, frozen=True):
    """Some jobs under one number."""

    sequence: int
    jobs: list[JobSpec]
    payload: list[bytes]
    size: int
    """Bytes of credit."""


class SubmitLine:
    """What was submitted and is not stored. All of it in the order of submission."""

    def __init__(self, credit: int = CREDIT) -> None:
        self._waiting: deque[JobRecord] = deque()
        self._unstored: deque[Batch] = deque()
        self._sequence = 0
        self._stored = 0
        self._under_way = 0
        self._credit = credit
        self._batch_jobs = BATCH_JOBS

    def limit(self, batch_jobs: int) -> None:
        """The scheduler wants no more jobs in a batch; 0: any number that we like."""
        self._batch_jobs = min(batch_jobs or BATCH_JOBS, BATCH_JOBS)

    def add(self, records: Iterable[JobRecord]) -> None:
        """Jobs were submitted."""
        self._waiting.extend(records)

    def take(self) -> list[Batch]:
        """The batches that can be sent now, each of them once; a single job may be larger than all credit.

        Jobs that have ended while they waited here are left out.
        """
        batches = []
        while self._waiting and self._under_way < self._credit:
            if len(self._unstored) >= FEW_BATCHES and min(len(self._waiting), self._batch_jobs) < WORTH_A_BATCH:
                break
            batch = self._next()
            if batch.jobs:
                batches.append(batch)
        return batches

    def _next(self) -> Batch:
        jobs: list[JobSpec] = []
        payload: list[bytes] = []
        size, room, waiting = 0, min(BATCH_SIZE, self._credit - self._under_way), self._waiting
        while waiting and size < room and len(jobs) < self._batch_jobs:
            record = waiting.popleft()
            if record.state is not JobState.Created:
                continue
            blob = record.blob
            length = len(record.args)
            jobs.append(JobSpec(record.job, 0, length, blob, record.options))
            payload.append(record.args)
            size += JOB_SIZE + (length if blob is None else blob.size)
        if not jobs:
            return Batch(0, jobs, payload, 0)
        self._sequence += 1
        batch = Batch(self._sequence, jobs, payload, size)
        self._under_way += size
        self._unstored.append(batch)
        return batch

    def stored(self, sequence: int) -> None:
        """All batches up to this number are on the scheduler's disk."""
        self._stored = max(self._stored, sequence)
        unstored = self._unstored
        while unstored and unstored[0].sequence <= sequence:
            self._under_way -= unstored.popleft().size

    def resume(self, stored: int) -> list[Batch]:
        """A new link, and the scheduler has the batches up to this number: what is to be sent again."""
        self.stored(stored)
        return list(self._unstored)

    @property
    def has_unsent(self) -> bool:
        """Whether jobs wait here that were not sent."""
        return bool(self._waiting)

    @property
    def had_stored(self) -> int:
        """The last batch of which the scheduler has said that it is stored."""
        return self._stored

    def unstored_jobs(self) -> set[int]:
        """The jobs that were sent and are not known to be stored."""
        return {spec.job for batch in self._unstored for spec in batch.jobs}

    def begin_anew(self, records: Iterable[JobRecord]) -> None:
        """The scheduler has forgotten the cluster: batches are counted from 1 again, and these jobs go first."""
        self._unstored.clear()
        self._sequence = self._stored = self._under_way = 0
        self._waiting.extendleft(reversed(list(records)))

    def keep_sent(self) -> None:
        """What waits here has ended."""
        self._waiting.clear()

    def drain(self) -> None:
        """Nothing of it is to be sent any more."""
        self._waiting.clear()
        self._unstored.clear()
        self._under_way = 0
