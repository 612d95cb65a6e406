"""What the scheduler keeps of a job, and the queues of jobs that wait."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Final, NamedTuple

from msgspec import Struct

from dispy.model import BlobRef, ComputationId, JobOptions, JobState, ProcessId


class Shape(NamedTuple):
    """What a job asks of a node. Jobs of one shape are as good as each other for the choice of a node."""

    node: str = ""
    """Process id of the only node that may run it; empty: any."""
    cpus: int = 1
    """0: all that the cluster may use there."""
    memory: int = 0
    gpus: int = 0
    tags: tuple[str, ...] = ()
    without: tuple[ProcessId, ...] = ()
    """Nodes that have no room for what it needs."""

    @property
    def is_heavy(self) -> bool:
        """Whether it occupies more than its turn on a CPU, so that it is placed only where that is free."""
        return self.cpus != 1 or self.memory > 0 or self.gpus > 0


PLAIN: Final = Shape()
_CREATED: Final = JobState.Created
"""A member of an enum is looked up by a function: too long for what is done with each job."""


class JobRecord(Struct, eq=False, gc=False):
    """One submitted job. Its submitter makes it and hands it over; from then on only the core changes it.

    The garbage collector passes over them, as looking at each cost a tenth of a job: whoever a handle belongs to lets
    go of the record when its job has ended.
    """

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
    cpus: int = 0
    """CPUs that are kept for it at its node; 0: it takes its turn with others (or waits)."""
    failures: int = 0
    """Attempts that failed and were tried again, as `dispy_retries` allows."""
    losses: int = 0
    """Nodes in a row that were lost while they probably ran it."""
    astray: dict[int, ProcessId] | None = None
    """Attempts that were lost with their node, which may have written their results to its disk, and that node."""
    charge: float = 0.0
    """Slot-seconds that its user was charged for the attempt in flight."""
    seen_at: float = 0.0
    """When it was first seen at work, or about to be; 0: not yet."""
    without: tuple[ProcessId, ...] = ()
    """Nodes that had no room for what it needs, in order; changed only while it stands in no queue."""

    @property
    def pinned(self) -> str:
        """Process id of the only node that may run it; empty: any."""
        return self.options.node if self.options is not None else ""

    @property
    def retries(self) -> int:
        """Further attempts that it may have after a failure."""
        return 0 if self.options is None else max(0, self.options.retries - self.failures)

    @property
    def shape(self) -> Shape:
        """What it asks of a node."""
        options = self.options
        if options is None:
            return PLAIN if not self.without else Shape(without=self.without)
        return Shape(options.node, options.cpus, options.memory, options.gpus, options.tags, self.without)


class Lane:
    """Waiting jobs of one shape and one priority, in the order of their ids, which is the order of submission.

    A job that is cancelled stays in the deque until it is met (removing it would be a search): its state says that it
    no longer waits.
    """

    __slots__ = ("jobs", "priority", "waiting")

    def __init__(self, priority: int = 0) -> None:
        self.priority = priority
        self.jobs: deque[JobRecord] = deque()
        self.waiting = 0
        """How many of `jobs` really wait."""

    def head(self) -> JobRecord:
        """The first job that waits; there must be one."""
        jobs = self.jobs
        while jobs[0].state is not _CREATED:
            jobs.popleft()
        return jobs[0]

    def take(self, count: int) -> list[JobRecord]:
        """Remove and return the first jobs that wait; there must be so many."""
        jobs = self.jobs
        self.waiting -= count
        taken: list[JobRecord] = []
        for _ in range(count):
            while (record := jobs.popleft()).state is not _CREATED:
                pass
            taken.append(record)
        return taken

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


class JobQueue:
    """Waiting jobs of one cluster that ask for the same, so that choosing looks at queues, never at jobs."""

    __slots__ = (
        "_lanes",
        "_priorities",
        "claimed_at",
        "cluster",
        "entry",
        "is_heavy",
        "is_plain",
        "rank",
        "shape",
        "tried_at",
        "waiting",
    )

    def __init__(self, cluster: ComputationId, shape: Shape = PLAIN) -> None:
        self.cluster = cluster
        self.shape = shape
        self.is_plain = shape == PLAIN
        self.is_heavy = shape.is_heavy
        self.waiting = 0
        """How many jobs wait, of all priorities."""
        self.rank: tuple[int, int] | None = None
        """Of its first job; what is smaller is served first: higher priority, then earlier submission. None: it is
        empty."""
        self.entry: tuple[float, float] | None = None
        """The rank under which it stands in a line; None: it does not."""
        self.tried_at = -1
        """`Turns.deepened` when all nodes were looked at and none had room for its jobs: since then each node with more
        room was offered to it. -1: that is not so."""
        self.claimed_at: tuple[float, int] | None = None
        """How near the node was that was last kept free for its first job; None: there was none."""
        self._lanes: dict[int, Lane] = {}
        self._priorities: list[int] = []
        """Of the lanes, ascending."""

    def top(self) -> Lane:
        """The lane that is served next; a job must wait."""
        while not (lane := self._lanes[self._priorities[-1]]).waiting:
            del self._lanes[self._priorities.pop()]
        return lane

    def append(self, record: JobRecord) -> None:
        """Queue a new job."""
        priority = 0 if record.options is None else record.options.priority
        lane = self._lanes.get(priority) or self._lane(priority)
        lane.jobs.append(record)
        lane.waiting += 1
        self.waiting += 1
        rank = self.rank
        if rank is None or -priority < rank[0]:
            self.rank = (-priority, record.job)

    def take(self, count: int) -> list[JobRecord]:
        """Remove the first jobs of the lane that is served next; it must have so many."""
        self.waiting -= count
        lane = self._lanes[self._priorities[-1]]
        if not lane.waiting:
            lane = self.top()
        taken = lane.take(count)
        if lane.waiting:
            self.rank = (-lane.priority, lane.head().job)
        else:
            self._rerank()
        return taken

    def put_back(self, records: Iterable[JobRecord]) -> None:
        """Queue jobs that were handed out before."""
        lanes: dict[int, list[JobRecord]] = {}
        for record in records:
            lanes.setdefault(0 if record.options is None else record.options.priority, []).append(record)
        for priority, back in lanes.items():
            self._lane(priority).put_back(back)
            self.waiting += len(back)
        self._rerank()

    def discard(self, record: JobRecord) -> None:
        """This job has ended where it stood: its state says so."""
        lane = self._lanes[0 if record.options is None else record.options.priority]
        lane.waiting -= 1
        self.waiting -= 1
        if not lane.waiting:
            lane.jobs.clear()
        if self.rank is not None and self.rank[1] == record.job:
            self._rerank()

    def before(self, record: JobRecord) -> int:
        """How many of its jobs are served before a job, which may be of another queue of the cluster."""
        own = 0 if record.options is None else record.options.priority
        before = sum(lane.waiting for priority, lane in self._lanes.items() if priority > own)
        if own in self._lanes:
            earlier = takewhile(lambda other: other.job < record.job, self._lanes[own].jobs)
            before += sum(other.state is JobState.Created for other in earlier)
        return before

    def __iter__(self) -> Iterator[JobRecord]:
        """The jobs that wait, lane by lane."""
        for lane in self._lanes.values():
            yield from [record for record in lane.jobs if record.state is JobState.Created]

    def _rerank(self) -> None:
        """Its first job may be another now."""
        if self.waiting:
            lane = self.top()
            self.rank = (-lane.priority, lane.head().job)
        else:
            self.rank = None

    def _lane(self, priority: int) -> Lane:
        lane = self._lanes.get(priority)
        if lane is None:
            lane = self._lanes[priority] = Lane(priority)
            insort(self._priorities, priority)
        return lane
