"""What the scheduler keeps of a job, and the queues of jobs that wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from dispy.model import BlobRef, ComputationId, JobOptions, JobState, ProcessId


@dataclass(slots=True, eq=False)
class JobRecord:
    """One submitted job. Its submitter makes it and hands it over; from then on only the core changes it."""

    job: int
    cluster: ComputationId
    args: bytes
    """Pickled arguments, opaque; empty with `blob`."""
    handle: object = None
    """Whatever the submitter wants back in notices; never looked at by the core."""
    blob: BlobRef | None = None
    options: JobOptions | None = None
    attempt: int = 0
    state: JobState = JobState.Created
    """Created while it waits in a queue, Running while a node has it, then how it ended."""
    node: ProcessId | None = None
    cancelled: bool = False
    """It shall end and is in flight: if it comes back without having started, it is not queued again."""

    @property
    def pinned(self) -> str:
        """Process id of the only node that may run it; empty: any."""
        return self.options.node if self.options is not None else ""


class JobQueue:
    """Waiting jobs of one cluster that ask for the same, so that choosing looks at queues, never at jobs.

    Jobs stand in the order of their ids, which is the order of submission. A job that is cancelled stays in the
    deque until it is met (removing it would be a search): its state says that it no longer waits.
    """

    __slots__ = ("cluster", "jobs", "node", "priority", "waiting")

    def __init__(self, cluster: ComputationId, node: str = "", priority: int = 0) -> None:
        self.cluster = cluster
        self.node = node
        self.priority = priority
        self.jobs: deque[JobRecord] = deque()
        self.waiting = 0
        """How many of `jobs` really wait."""

    @property
    def rank(self) -> tuple[int, int]:
        """What is smaller is served first: higher priority, then earlier submission. The queue must not be empty."""
        return -self.priority, self.head().job

    def head(self) -> JobRecord:
        """The first job that waits; there must be one."""
        jobs = self.jobs
        while jobs[0].state is not JobState.Created:
            jobs.popleft()
        return jobs[0]

    def take(self) -> JobRecord:
        """Remove and return the first job that waits; there must be one."""
        jobs = self.jobs
        while (record := jobs.popleft()).state is not JobState.Created:
            pass
        self.waiting -= 1
        return record

    def append(self, record: JobRecord) -> None:
        """Queue a new job."""
        self.jobs.append(record)
        self.waiting += 1

    def put_back(self, records: Iterable[JobRecord]) -> None:
        """Queue jobs that were handed out before: where their ids belong, which is near the front."""
        back = sorted(records, key=lambda record: record.job)
        self.waiting += len(back)
        jobs = self.jobs
        merged: list[JobRecord] = []
        for record in back:
            while jobs and jobs[0].job < record.job:
                merged.append(jobs.popleft())
            merged.append(record)
        jobs.extendleft(reversed(merged))

    def discard(self) -> None:
        """One of its jobs has ended where it stood."""
        self.waiting -= 1
        if not self.waiting:
            self.jobs.clear()
