"""What a node keeps for the scheduler that holds it: the lease, its computations, their workers, its jobs.

Tables with their invariants; what happens to them when is decided in `dispy.node.core`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from enum import Enum, auto
from typing import Final

import msgspec
from msgspec import Struct, field

from dispy.model import (
    BlobRef,
    ComputationId,
    ComputationSpec,
    FileSpec,
    HeldAttempt,
    Holder,
    JobOptions,
    ProcessId,
)
from dispy.node.results import Results
from dispy.node.slots import STALL_SECONDS, Escalation
from dispy.wire.messages import FileOffered, OpenComputation

SHORTEST_JOB: Final = 5e-6
"""Seconds that a job takes at least: what a worker needs around it."""


class Special:
    """What a job needs beyond its turn on a CPU."""

    __slots__ = ("cpus", "gpus", "is_heavy", "memory", "overdue", "timeout", "wanted_gpus")

    def __init__(self, options: JobOptions) -> None:
        self.cpus = options.cpus
        """0: all that its computation may use; settled when it starts."""
        self.memory = options.memory
        self.timeout = options.timeout
        self.wanted_gpus = options.gpus
        self.gpus: tuple[int, ...] = ()
        """Those that it has while it runs."""
        self.is_heavy = options.cpus != 1 or options.memory > 0 or options.gpus > 0
        """It waits until all of that is free, and runs alone in its worker."""
        self.overdue = False
        """It is being ended because it ran too long."""


class HeldJob:
    """An attempt that is here and has not ended: arriving, queued, or given to a worker."""

    __slots__ = (
        "arguments",
        "attempt",
        "blob",
        "cancelled",
        "computation",
        "job",
        "loan",
        "sequence",
        "special",
        "worker",
    )

    def __init__(
        self,
        job: int,
        attempt: int,
        computation: Computation,
        arguments: bytes | memoryview | int | None,
    ) -> None:
        self.job = job
        self.attempt = attempt
        self.computation = computation
        self.arguments = arguments
        """None while they arrive; a descriptor when they came as a blob."""
        self.blob: BlobRef | None = None
        self.loan: Loan | None = None
        self.worker: Worker | None = None
        self.sequence = 0
        """Its number at its worker; 0 without one."""
        self.cancelled = False
        self.special: Special | None = None

    @property
    def wishes(self) -> Special:
        """What a job needs that is known to need something."""
        assert self.special is not None
        return self.special

    def admit(self) -> None:
        """Queue it when everything that it needs is here; else it is arriving."""
        if self.arguments is None or (self.loan is not None and not self.loan.is_complete):
            self.computation.arriving[self.job] = self
        else:
            self.computation.arriving.pop(self.job, None)
            self.computation.enqueue(self)


class Loan(Struct, eq=False):
    """What one job needs beside its arguments: files in the computation's directory, and scattered objects."""

    files: tuple[FileSpec, ...]
    is_here: bool
    """Of the files."""
    objects: tuple[BlobRef, ...] = ()
    here: dict[bytes, int] = field(default_factory=dict)
    """The objects that are here: name → descriptor."""

    @property
    def is_complete(self) -> bool:
        """Whether the job lacks nothing of it."""
        return self.is_here and len(self.here) == len(self.objects)


class WorkerState(Enum):
    """Idle and busy are READY without and with jobs."""

    STARTING = auto()
    READY = auto()
    RETIRING = auto()
    """Gets no more jobs and ends after those that it has."""


class Worker(Struct, eq=False):
    """One worker process on one CPU."""

    id: int
    computation: ComputationId
    state: WorkerState = WorkerState.STARTING
    jobs: dict[int, HeldJob] = field(default_factory=dict)
    """Sequence → job; those that were given and not answered, the oldest first."""
    sequence: int = 0
    """The last one that was given."""
    progress_at: float = 0.0
    """When it last answered, or was given a job while idle."""
    answered: int = 0
    recalling: int = 0
    """The `before` of the recall that is under way; 0 = none."""
    escalation: Escalation | None = None
    told_to_end: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether it could run a job now."""
        return self.state is WorkerState.READY and not self.jobs

    @property
    def unstarted(self) -> int:
        """Jobs behind the one that it runs, as far as is known."""
        return max(0, len(self.jobs) - 1)

    def head(self) -> HeldJob | None:
        """The job that it runs or begins next."""
        return next(iter(self.jobs.values()), None)

    def is_stalled(self, now: float) -> bool:
        """Whether it has run one job for longer than what is given ahead was meant to take."""
        return now >= self.progress_at + STALL_SECONDS


class ForkServerState(Enum):
    """Whether the jobs of a computation have a process from which their workers are forked."""

    ABSENT = auto()
    """Not yet, or not any more."""
    STARTING = auto()
    STANDING = auto()


class ComputationState(Enum):
    """Where a computation is between its opening and its end."""

    OPENING = auto()
    READY = auto()
    """Its jobs may come."""
    CLOSING = auto()
    """No more jobs come; those that are here end first."""
    CLEANING = auto()
    """Its processes and files are being removed."""


class Computation(Struct, eq=False):
    """One computation of the lease's holder."""

    spec: ComputationSpec
    setup_args: bytes
    state: ComputationState = ComputationState.OPENING
    queue: deque[HeldJob] = field(default_factory=deque)
    heavy: deque[HeldJob] = field(default_factory=deque)
    """Jobs that need more than a turn on a CPU, apart from the queue: they go first, or keep CPUs free."""
    limit: int = 0
    """CPUs that it may use at once; 0: all that the node offers."""
    oversubscribe: bool = False
    """`limit` may be more than the node offers."""
    arriving: dict[int, HeldJob] = field(default_factory=dict)
    """Jobs whose arguments are being fetched, by job."""
    workers: dict[int, Worker] = field(default_factory=dict)
    mean: float | None = None
    """Measured seconds per job, None before the first one."""
    prepared: bool = False
    """Whether its files and its environment are here."""
    server: ForkServerState = ForkServerState.ABSENT
    """Its jobs can start while it stands."""
    told_closed: bool = False
    """The scheduler has been told that it is not here (refused); nothing is said when it is cleaned."""
    deaths: int = 0
    """How often in a row its fork server died before a job had come to its end."""
    stillborn: int = 0
    """Workers in a row that died before they had answered anything."""
    exhausted: int = 0
    """Workers in a row for which the machine had nothing left."""
    fork_after: float | None = None
    """No fork before this time, after a worker that came to nothing."""
    starved_since: float | None = None
    unserved_since: float | None = None
    """Since when it has had jobs and no worker at all."""
    refused: bool = False
    """It cannot run here: jobs that had not started go back to the scheduler."""
    reopen: OpenComputation | None = None
    """It was opened again while it closed."""

    @property
    def id(self) -> ComputationId:
        """The client's name for it."""
        return self.spec.id

    @property
    def is_empty(self) -> bool:
        """Whether none of its jobs is here."""
        return (
            not self.queue
            and not self.heavy
            and not self.arriving
            and not any(worker.jobs for worker in self.workers.values())
        )

    @property
    def lacks_server(self) -> bool:
        """Whether a fork server is to be started: for the jobs that are here, or to run setup before any come."""
        if not self.prepared or self.refused or self.state is ComputationState.CLEANING:
            return False
        return not self.is_empty or (self.spec.has_setup and self.state is not ComputationState.CLOSING)

    def enqueue(self, job: HeldJob) -> None:
        """Its arguments are here: it can start when there is room."""
        (self.heavy if job.special is not None and job.special.is_heavy else self.queue).append(job)

    def measure(self, seconds: float, count: int) -> None:
        """Take `count` jobs into the mean duration that took `seconds` together."""
        fresh = max(seconds / count, SHORTEST_JOB)
        self.mean = fresh if self.mean is None else self.mean + (fresh - self.mean) * 0.4


class RecallRequest(Struct, eq=False):
    """The scheduler wants jobs back, and workers have been asked."""

    wanted: int
    taken: list[HeldAttempt]
    waiting: set[int]
    """Workers that have not answered."""


class Lease(Struct, eq=False):
    """One scheduler's hold on this node. The token proves it; the peer is the link that speaks for it now."""

    token: bytes
    holder: Holder
    peer: ProcessId | None
    claimer: ProcessId | None = None
    """The link to which its results go since they were claimed; then it has no peer and takes nothing new."""
    results: Results = field(default_factory=Results)
    computations: dict[ComputationId, Computation] = field(default_factory=dict)
    jobs: dict[int, HeldJob] = field(default_factory=dict)
    """Every attempt that has not ended, by job."""
    superseded: set[HeldJob] = field(default_factory=set)
    """Older attempts that still sit in a worker; their replies are dropped."""
    recalls: list[RecallRequest] = field(default_factory=list)
    parcels: dict[int, FileOffered] = field(default_factory=dict)
    """Files that running jobs send and that are not answered, by parcel."""
    grace_at: float | None = None
    """When the grace time after a break ends; None with a link or after it."""
    zombie_at: float | None = None
    """When it is given up although nobody else asks; None with a link."""
    expired: bool = False
    """Grace is over (or the holder said goodbye): unstarted jobs are dropped, others may take the node."""
    ended: bool = False
    """It is being cleared away; its computations close."""
    released: bool = False
    """Its scheduler gave it back: nobody will come for results."""
    giving_back: bool = False
    """The node ends at once: jobs that had not started go back to the scheduler."""

    name: bytes = b""
    """By what it is known on the disk; follows from the token."""

    def __post_init__(self) -> None:
        self.name = lease_name(self.token)

    @property
    def holder_now(self) -> Holder:
        """Who holds it, and what is here for him when he is gone."""
        if not self.expired:
            return self.holder
        return msgspec.structs.replace(self.holder, gone=True, results=self.results.waiting(), running=len(self.jobs))

    @property
    def hearer(self) -> ProcessId | None:
        """Whom its results are told, if anybody."""
        return self.peer if self.peer is not None else self.claimer

    @property
    def is_idle(self) -> bool:
        """Whether no attempt of it is here that is wanted."""
        return not self.jobs


def lease_name(token: bytes) -> bytes:
    """What a lease is called where its token must not stand."""
    return hashlib.sha256(token).digest()


class Waiter(Struct, frozen=True):
    """A scheduler that stands in line."""

    token: bytes
    holder: Holder
    peer: ProcessId
