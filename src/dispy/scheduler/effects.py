"""What the scheduler core wants done. The service performs them in this order: records, sends, notices.

The order is the promise: what must survive is stored before anybody is told, and nodes hear before users do.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct, field

from dispy.model import AvailInfo, ComputationId, Holder, JobDone, JobState, NodeInfo, ProcessId
from dispy.scheduler.jobs import JobRecord
from dispy.wire.messages import AnyMessage


class Send(Struct, frozen=True, gc=False):
    """Send a message to a node; `payload` are the raw parts behind its header."""

    node: ProcessId
    message: AnyMessage
    payload: Sequence[bytes] = ()


class AskAllocation(Struct, frozen=True):
    """Ask the cluster's owner how much of this node it wants; answered by `NodeAllocated`."""

    cluster: ComputationId
    node: ProcessId
    info: NodeInfo
    address: str
    avail: AvailInfo | None = None
    """What it last said to be free; None: nothing yet."""


class JobsStarted(Struct, frozen=True, gc=False):
    """These jobs were handed to a node: their public state is Running."""

    node: ProcessId
    jobs: Sequence[JobRecord]


class JobEnded(msgspec.Struct, gc=False):
    """One job has ended for good.

    (This one, and those that there are for each decision, are structs: they are made in a fifth of the time.)
    """

    job: JobRecord
    state: JobState
    node: ProcessId | None = None
    done: JobDone | None = None
    """What the node said; None when the scheduler itself ended the job."""
    body: bytes | memoryview = b""
    cause: str | None = None
    """One sentence, for every state but Finished."""


class JobsEnded(Struct, frozen=True, gc=False):
    """Jobs that ended, in the order in which they ended."""

    jobs: Sequence[JobEnded]


class JobSpoke(Struct, frozen=True):
    """A running job has an interim result."""

    job: JobRecord
    node: ProcessId
    result: bytes | memoryview


class ResultDropped(Struct, frozen=True):
    """A job that has ended otherwise, as its node was lost, has finished there: whoever has told nobody of that end may
    still take the result."""

    node: ProcessId
    done: JobDone
    body: bytes | memoryview


class JobRequeued(Struct, frozen=True):
    """An attempt was lost and the job waits again."""

    job: JobRecord
    node: ProcessId
    cause: str


class NodeOpened(Struct, frozen=True):
    """A node has set up this cluster's computation (the original's `Initialized`)."""

    cluster: ComputationId
    node: ProcessId


class NodeClosed(Struct, frozen=True):
    """A node is gone for this cluster, or has closed its computation."""

    cluster: ComputationId
    node: ProcessId
    cause: str
    trace: str = ""
    """Traceback of a cleanup function that failed there."""
    renewing: bool = False
    """It is being set up anew; `NodeOpened`, `NodeRefused` or another `NodeClosed` follows."""


class NodeVanished(Struct, frozen=True):
    """A node that clusters used is gone for good: told once, whatever each cluster hears of it."""

    node: ProcessId
    sentence: str
    """Which node, and why it is lost."""
    is_last: bool
    """There is no other."""
    cause: str


class NodeMeasured(Struct, frozen=True):
    """A node says what is free on its machine, for each cluster that has it open."""

    cluster: ComputationId
    node: ProcessId
    avail: AvailInfo


class NodeOffered(Struct, frozen=True):
    """A node offers another number of CPUs than before, or the cluster uses another number of them."""

    cluster: ComputationId
    node: ProcessId
    cpus: int
    """What it offers."""
    used: int
    """What the cluster uses of it."""


class NodeRefused(Struct, frozen=True):
    """A node cannot run this cluster's jobs (setup failed, Python differs, …) or is held by somebody else."""

    cluster: ComputationId | None
    node: ProcessId
    reason: str
    trace: str = ""
    holder: Holder | None = None


class ClusterEnded(Struct, frozen=True):
    """Everything of a closing cluster is done: all jobs have ended and all nodes have closed it."""

    cluster: ComputationId


Notice = (
    AskAllocation
    | JobsStarted
    | JobSpoke
    | JobsEnded
    | ResultDropped
    | JobRequeued
    | NodeOpened
    | NodeClosed
    | NodeVanished
    | NodeMeasured
    | NodeOffered
    | NodeRefused
    | ClusterEnded
)


class Effects(Struct, gc=False):
    """Everything that one event causes."""

    sends: list[Send] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    marked: list[JobRecord] = field(default_factory=list)
    """Jobs that wait again, for whatever reason, or are to end where they are: whoever keeps jobs for a successor of
    this process must know. They make no difference between two of these."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Effects) and (self.sends, self.notices) == (other.sends, other.notices)

    __hash__ = None  # type: ignore[assignment]  # it changes
