"""Clusters as the scheduler knows them: a computation, its queues, its shares of nodes, its measured duration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

import msgspec

from dispy.model import ComputationId, ComputationSpec, FileSpec, ProcessId
from dispy.scheduler.fairness import UNMEASURED, Account
from dispy.scheduler.jobs import JobQueue, JobRecord, Shape
from dispy.scheduler.nodes import Share, ShareState
from dispy.scheduler.policy import Rooms

SHORTEST_JOB: Final = 5e-6
"""Seconds that a job takes at least: below this, measuring tells nothing."""
MOST_AHEAD: Final = 4096
"""Jobs per slot at most, whatever the duration."""
MEMORY_OF_JOBS: Final = 16
"""So many jobs of another duration move the mean half of the way."""


class ClusterState(Enum):
    """OPEN takes jobs; DRAINING ends those that it has; TERMINATING has cancelled them."""

    OPEN = auto()
    DRAINING = auto()
    TERMINATING = auto()


class Reach(msgspec.Struct):
    """A sum that is not made anew for each event."""

    cpus: int = 0
    shares: int = 0
    """How many there were when it was made."""
    at: float = -math.inf


@dataclass(slots=True, eq=False)
class ClusterRecord:
    """One cluster of one client."""

    computation: ComputationSpec
    is_reentrant: bool
    is_open_ended: bool
    ahead: float
    """Seconds of work that are sent ahead to a slot."""
    account: Account = field(default_factory=lambda: Account(""))
    """Whose it is."""
    is_exclusive: bool = False
    """It runs alone."""
    is_held: bool = False
    """It may run nothing now, because another runs alone or will, or because it does not yet."""
    named: int = 0
    """Nodes that its owner named and that may still come."""
    forsaken: str = ""
    """Why no node can come; empty when one may, or when some are here."""
    state: ClusterState = ClusterState.OPEN
    jobs: int = 0
    """Jobs that have not ended: queued and in flight."""
    id: ComputationId = field(init=False)
    """The client's name for it."""
    plain: JobQueue = field(init=False)
    """Jobs without wishes about their node."""
    special: dict[Shape, JobQueue] = field(default_factory=dict)
    """Jobs with wishes; a queue of which the last job has gone is forgotten."""
    shares: dict[ProcessId, Share] = field(default_factory=dict)
    parked: dict[ProcessId, Share] = field(default_factory=dict)
    """Those of them that are not opened as long as it has no use for them."""
    opened: dict[ProcessId, Share] = field(default_factory=dict)
    """Those that are opened, or about to be; some may not be so any more."""
    reach: Reach = field(default_factory=lambda: Reach())
    """CPUs of all that it may use, as far as they have been counted."""
    is_growing: bool = False
    """Whether some are being opened: plain jobs that wait let no further ones be before that has come to something."""
    asked: dict[ProcessId, None] = field(default_factory=dict)
    """Nodes of which its owner has not yet said how much it wants."""
    declined: dict[ProcessId, None] = field(default_factory=dict)
    """Nodes that its owner does not want."""
    rooms: Rooms = field(default_factory=Rooms)
    """Shares that take more jobs, by load."""
    idlers: dict[ProcessId, Share] = field(default_factory=dict)
    """Shares with a CPU that has nothing to do."""
    excesses: dict[ProcessId, Share] = field(default_factory=dict)
    """Shares with jobs that wait for a CPU there."""
    recalling: int = 0
    """Jobs that nodes have been asked to give back for it."""
    mean: float | None = None
    """Measured seconds per job; None: no job has ended."""
    depth: int = 1
    """Jobs per slot that may be at a node."""
    estimate: float = UNMEASURED
    """Seconds that a job is charged in advance, of whatever kind it is."""
    is_estimated: bool = False
    """Whether a job has ended since."""

    def __post_init__(self) -> None:
        self.id = self.computation.id
        self.plain = JobQueue(self.id)

    @property
    def queues(self) -> list[JobQueue]:
        """All of its queues."""
        return [self.plain, *self.special.values()]

    @property
    def waiting(self) -> int:
        """Jobs in its queues."""
        return sum(queue.waiting for queue in self.queues)

    @property
    def wants_nodes(self) -> bool:
        """Whether another node could be of use."""
        return self.state is ClusterState.OPEN or (self.state is ClusterState.DRAINING and self.jobs > 0)

    @property
    def is_hopeless(self) -> bool:
        """Whether every node that could run its jobs has refused for good, and no other can come or could run them."""
        shares = self.shares.values()
        return (
            bool(shares)
            and not self.asked
            and all(share.state is ShareState.REFUSED and share.final for share in shares)
            and (not self.is_open_ended or any(share.is_lost for share in shares))
        )

    def queue_for(self, record: JobRecord) -> JobQueue:
        """The queue in which this job belongs."""
        if record.options is None and not record.without:
            return self.plain
        shape = record.shape
        queue = self.special.get(shape)
        if queue is None:
            if shape == self.plain.shape:
                return self.plain
            queue = self.special[shape] = JobQueue(self.id, shape)
        return queue

    def with_files(self, files: tuple[FileSpec, ...]) -> ComputationSpec:
        """The computation with further files."""
        if not files:
            return self.computation
        return msgspec.structs.replace(self.computation, files=self.computation.files + files)

    def reckon(self, seconds: float, count: int) -> None:
        """Take `count` jobs into the estimate that took `seconds` together; there may be none."""
        if not count:
            return
        fresh = seconds / count
        if fresh < SHORTEST_JOB:
            fresh = SHORTEST_JOB
        if self.is_estimated:
            self.estimate += (fresh - self.estimate) * count / (count + MEMORY_OF_JOBS)
        else:
            self.estimate, self.is_estimated = fresh, True

    def measure(self, seconds: float, count: int) -> None:
        """Take `count` jobs into the mean that took `seconds` together."""
        fresh, mean = seconds / count, self.mean
        if fresh < SHORTEST_JOB:
            fresh = SHORTEST_JOB
        mean = fresh if mean is None else mean + (fresh - mean) * count / (count + MEMORY_OF_JOBS)
        self.mean = mean
        self.depth = 1 if mean > self.ahead else min(MOST_AHEAD, 1 + int(self.ahead / mean))
