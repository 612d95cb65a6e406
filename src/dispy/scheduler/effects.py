"""What the scheduler core wants done. The service performs them in this order: records, sends, notices.

The order is the promise: what must survive is stored before anybody is told, and nodes hear before users do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from dispy.model import AvailInfo, ComputationId, Holder, JobDone, JobState, NodeInfo, ProcessId
from dispy.scheduler.jobs import JobRecord
from dispy.wire.messages import AnyMessage


@dataclass(slots=True, frozen=True)
class Send:
    """Send a message to a node; `payload` are the raw parts behind its header."""

    node: ProcessId
    message: AnyMessage
    payload: Sequence[bytes] = ()


@dataclass(slots=True, frozen=True)
class AskAllocation:
    """Ask the cluster's owner how much of this node it wants; answered by `NodeAllocated`."""

    cluster: ComputationId
    node: ProcessId
    info: NodeInfo
    address: str
    avail: AvailInfo | None = None
    """What it last said to be free; None: nothing yet."""


@dataclass(slots=True, frozen=True)
class JobsStarted:
    """These jobs were handed to a node: their public state is Running."""

    node: ProcessId
    jobs: Sequence[JobRecord]


class JobEnded(msgspec.Struct, gc=False):
    """One job has ended for good. (A struct because there is one per job: it is made in a fifth of the time.)"""

    job: JobRecord
    state: JobState
    node: ProcessId | None = None
    done: JobDone | None = None
    """What the node said; None when the scheduler itself ended the job."""
    body: bytes = b""
    cause: str | None = None
    """One sentence, for every state but Finished."""


@dataclass(slots=True, frozen=True)
class JobsEnded:
    """Jobs that ended, in the order in which they ended."""

    jobs: Sequence[JobEnded]


@dataclass(slots=True, frozen=True)
class JobSpoke:
    """A running job has an interim result."""

    job: JobRecord
    node: ProcessId
    result: bytes


@dataclass(slots=True, frozen=True)
class JobRequeued:
    """An attempt was lost and the job waits again."""

    job: JobRecord
    node: ProcessId
    cause: str


@dataclass(slots=True, frozen=True)
class NodeOpened:
    """A node has set up this cluster's computation (the original's `Initialized`)."""

    cluster: ComputationId
    node: ProcessId


@dataclass(slots=True, frozen=True)
class NodeClosed:
    """A node is gone for this cluster, or has closed its computation."""

    cluster: ComputationId
    node: ProcessId
    cause: str
    trace: str = ""
    """Traceback of a cleanup function that failed there."""
    renewing: bool = False
    """It is being set up anew; `NodeOpened`, `NodeRefused` or another `NodeClosed` follows."""


@dataclass(slots=True, frozen=True)
class NodeVanished:
    """A node that clusters used is gone for good: told once, whatever each cluster hears of it."""

    node: ProcessId
    sentence: str
    """Which node, and why it is lost."""
    is_last: bool
    """There is no other."""
    cause: str


@dataclass(slots=True, frozen=True)
class NodeMeasured:
    """A node says what is free on its machine, for each cluster that has it open."""

    cluster: ComputationId
    node: ProcessId
    avail: AvailInfo


@dataclass(slots=True, frozen=True)
class NodeOffered:
    """A node offers another number of CPUs than before, or the cluster uses another number of them."""

    cluster: ComputationId
    node: ProcessId
    cpus: int
    """What it offers."""
    used: int
    """What the cluster uses of it."""


@dataclass(slots=True, frozen=True)
class NodeRefused:
    """A node cannot run this cluster's jobs (setup failed, Python differs, …) or is held by somebody else."""

    cluster: ComputationId | None
    node: ProcessId
    reason: str
    trace: str = ""
    holder: Holder | None = None


@dataclass(slots=True, frozen=True)
class ClusterEnded:
    """Everything of a closing cluster is done: all jobs have ended and all nodes have closed it."""

    cluster: ComputationId


Notice = (
    AskAllocation
    | JobsStarted
    | JobSpoke
    | JobsEnded
    | JobRequeued
    | NodeOpened
    | NodeClosed
    | NodeVanished
    | NodeMeasured
    | NodeOffered
    | NodeRefused
    | ClusterEnded
)


@dataclass(slots=True)
class Effects:
    """Everything that one event causes."""

    sends: list[Send] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    marked: list[JobRecord] = field(default_factory=list, compare=False)
    """Jobs that wait again, for whatever reason, or are to end where they are: whoever keeps jobs for a successor of
    this process must know."""
