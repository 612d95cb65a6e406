"""What the scheduler core is told. Past tense: these things have happened."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from msgspec import Struct, field

from dispy.model import ComputationId, ComputationSpec, FileSpec, NodeInfo, ProcessId
from dispy.scheduler.clusters import ClusterState
from dispy.scheduler.jobs import JobRecord
from dispy.settings import RESTART_GRACE
from dispy.wire.messages import AnyMessage


class ClusterOpened(Struct, frozen=True):
    """A client made a cluster."""

    computation: ComputationSpec
    reentrant: bool = False
    open_ended: bool = True
    """Whether nodes that are not known yet may still come (a pattern in `nodes`, or the embedded node)."""
    named: int = 0
    """Nodes that the client named."""
    user: str = ""
    """Whose it is, as far as is known (user@host): between users the scheduler is fair, and each has its quotas."""
    exclusive: bool = False
    """It waits until no cluster before it has jobs, and then runs alone until it is over."""


class ClusterWidened(Struct, frozen=True):
    """The user wants further nodes for a cluster: one that is not known yet may still come."""

    cluster: ComputationId


class ClusterNarrowed(Struct, frozen=True):
    """Nobody waits any more for nodes that are not known yet: jobs that no known node can ever run end."""

    cluster: ComputationId
    cause: str = ""
    """Why none can come; then jobs also end when no node is known."""


class ClusterClosing(Struct, frozen=True):
    """No more jobs of it will come. With `terminate` its jobs are ended, else they finish first."""

    cluster: ComputationId
    terminate: bool = False


class JobsSubmitted(Struct, frozen=True):
    """Jobs of any clusters, in the order of submission."""

    jobs: Sequence[JobRecord]


class CancelAsked(Struct, frozen=True):
    """The user cancels these jobs."""

    jobs: Sequence[int]
    cause: str = "cancelled before it started"
    """For those that have not started."""


class NodeJoined(Struct, frozen=True):
    """A link to a node that was not known is up and the node has described itself."""

    node: ProcessId
    info: NodeInfo
    address: str


class NodeAllocated(Struct, frozen=True):
    """The client's answer to `AskAllocation`: how many CPUs of the node this cluster uses (0: none)."""

    cluster: ComputationId
    node: ProcessId
    cpus: int
    files: tuple[FileSpec, ...] = ()
    setup_args: bytes = b""
    oversubscribe: bool = False
    """`cpus` may be more than the node offers."""


class Steering(Enum):
    """What a user wants of a node for one cluster."""

    USE = auto()
    """Use it, or use it again: its owner is asked how much if it is not used."""
    PAUSE = auto()
    """No further jobs; those that it has go on, and the computation stays."""
    CAP = auto()
    """At most so many CPUs; 0 pauses it, more than 0 ends a pause."""
    CLOSE = auto()
    """Close the computation there and leave the node alone."""
    RENEW = auto()
    """Close the computation, ask its owner how much it uses, open it again, and keep the lease meanwhile."""


class NodeSteered(Struct, frozen=True):
    """The user changes how a cluster uses a node. With `terminate` its jobs there are ended, else they finish."""

    cluster: ComputationId
    node: ProcessId
    how: Steering
    cpus: int = 0
    terminate: bool = False


class NodeSuspected(Struct, frozen=True):
    """The node has been silent for a while: no new work."""

    node: ProcessId


class NodeRecovered(Struct, frozen=True):
    """A suspected node spoke again."""

    node: ProcessId


class LinkBroken(Struct, frozen=True):
    """The link ended without a goodbye; it may come back within the grace time."""

    node: ProcessId
    silent_for: float = 0.0
    """Seconds of the grace time that have gone by already."""
    patience: float = 1.0
    """How many times longer than usual it may be away: its machine is crowded."""


class LinkResumed(Struct, frozen=True):
    """A new link to the same node process is up."""

    node: ProcessId


class NodeLost(Struct, frozen=True):
    """The node is gone for good: it said goodbye, its port refuses, it has another boot id, or grace is over."""

    node: ProcessId
    cause: str


class NodeSaid(Struct, frozen=True, gc=False):
    """A message from a node. For JobsDone `bodies` holds one body for each of its jobs."""

    node: ProcessId
    message: AnyMessage
    bodies: Sequence[bytes | memoryview] = field(default=())


class RestoredCluster(Struct, frozen=True):
    """A cluster as the process before this one had it."""

    opened: ClusterOpened
    state: ClusterState = ClusterState.OPEN
    forsaken: str = ""
    """Why no further node can come for it."""


class RestoredNode(Struct, frozen=True):
    """A node that the process before this one knew."""

    node: ProcessId
    info: NodeInfo
    address: str


class RestoredShare(Struct, frozen=True):
    """What the owner of a cluster wanted of a node when it was last asked, and how the user steered it since."""

    cluster: ComputationId
    node: ProcessId
    cpus: int
    """0: nothing."""
    files: tuple[FileSpec, ...] = ()
    setup_args: bytes = b""
    oversubscribe: bool = False
    is_paused: bool = False


class Restored(Struct, frozen=True):
    """The scheduler goes on where a process before it was killed; the first thing that a core is told.

    Nodes have no link and some time to come back. Jobs with a node are there, as far as was stored before they were
    sent; the others wait.
    """

    clusters: Sequence[RestoredCluster]
    jobs: Sequence[JobRecord]
    """In the order of their numbers. All of them are of clusters and nodes that are listed."""
    nodes: Sequence[RestoredNode]
    shares: Sequence[RestoredShare]
    grace: float = RESTART_GRACE
    """Seconds in which nodes must come back."""


Event = (
    Restored
    | ClusterOpened
    | ClusterWidened
    | ClusterNarrowed
    | ClusterClosing
    | JobsSubmitted
    | CancelAsked
    | NodeJoined
    | NodeAllocated
    | NodeSteered
    | NodeSuspected
    | NodeRecovered
    | LinkBroken
    | LinkResumed
    | NodeLost
    | NodeSaid
)
