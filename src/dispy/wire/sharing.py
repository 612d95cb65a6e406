"""What clients and shared schedulers say to each other; `dispy.wire.messages` has the rest of the protocol.

On such a link jobs have the numbers that their client gave them, ascending in the order of submission. A batch of
submitted jobs has a sequence number of its cluster's, and lasts until the scheduler has it on its disk; a batch of ends
has one of the attachment's, and lasts until the client has it.
"""

# No `from __future__ import annotations`: msgspec would compile each of these strings when it makes a decoder.
import msgspec

from dispy.model import (
    AvailInfo,
    BlobRef,
    ComputationId,
    ComputationSpec,
    FileSpec,
    Holder,
    JobDone,
    JobSpec,
    JobState,
    NodeInfo,
    ProcessId,
)
from dispy.wire.message import Message


class NodeSeen(msgspec.Struct, frozen=True):
    """A node as the scheduler sees it, for clients that choose."""

    process: ProcessId
    info: NodeInfo
    address: str
    port: int
    places: tuple[tuple[str, int], ...] = ()
    """Every host and port where it is known to be."""
    avail: AvailInfo | None = None
    relays: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of the relays that told of it."""


class JobOver(msgspec.Struct, array_like=True, gc=False):
    """How one job has ended."""

    job: int
    state: JobState
    node: ProcessId | None = None
    cause: str | None = None
    """One sentence, for every state but Finished."""
    done: JobDone | None = None
    """What the node said; its body is in the payload of the batch or in a blob. None: the scheduler ended the job."""
    address: str = ""
    """That of the node."""


class NodeStanding(msgspec.Struct, frozen=True, array_like=True):
    """A node as it stands for one cluster."""

    node: ProcessId
    name: str
    address: str
    cpus: int
    in_flight: int
    """Jobs of the cluster that it has."""
    problem: str
    """What keeps it from being given work, as the end of a sentence about it; empty: nothing."""


class ClusterStatus(msgspec.Struct, frozen=True):
    """A cluster as it stands, for whoever may read it."""

    cluster: ComputationId
    name: str
    owner: str
    """user@host, or the name in a certificate."""
    proved: bool
    """Whether that is proved, not only said."""
    claim: Holder
    """Who its program says that it is."""
    state: str
    """open, waiting (for its turn to be exclusive), draining or terminating."""
    attached: bool
    """Whether its client has a link now."""
    waiting: int = 0
    running: int = 0
    """Jobs that nodes have."""
    done: int = 0
    """Jobs that have ended."""
    unfetched: int = 0
    """Ended jobs that its client has not yet taken."""
    cpus: int = 0
    """CPUs on which its jobs run now."""
    opened_at: float = 0.0
    """Wall clock of the scheduler."""
    exclusive: bool = False
    mine: bool = False
    """Whether a token that came with the question is this cluster's, or its owner may be anybody."""


class UserStatus(msgspec.Struct, frozen=True):
    """What one user has of the pool."""

    user: str
    """user@host."""
    proved: bool
    clusters: int
    waiting: int
    running: int
    cpus: int
    slot_seconds: float
    """Charged so far by fair share."""


class PoolNode(msgspec.Struct, frozen=True):
    """A node as it stands."""

    node: ProcessId
    name: str
    address: str
    cpus: int
    state: str
    running: int
    done: int = 0
    avail: AvailInfo | None = None
    problem: str = ""
    port: int = 0
    """Of the node there; 0: there is no link to it now."""


class PoolStatus(msgspec.Struct, frozen=True):
    """How the scheduler and all that it has stands."""

    name: str
    """The scheduler's host."""
    version: str
    policy: str
    since: float
    """Wall clock of its start."""
    now: float
    nodes: tuple[PoolNode, ...] = ()
    users: tuple[UserStatus, ...] = ()
    clusters: tuple[ClusterStatus, ...] = ()
    problem: str = ""
    """Why it takes no jobs now, as a sentence; empty: nothing keeps it."""


class JobStatus(msgspec.Struct, frozen=True, array_like=True):
    """A job as it stands, for whoever may read it."""

    cluster: ComputationId
    job: int
    state: JobState
    node: str = ""
    """Name of its node."""
    attempt: int = 0
    since: float = 0.0
    """Wall clock of the scheduler when it got this state; 0: not known."""


# ---- client to scheduler: clusters ----


class OpenCluster(Message, frozen=True):
    """Take up this cluster, or let me go on with it: the token proves that it is mine."""

    computation: ComputationSpec
    token: bytes
    """32 random bytes."""
    holder: Holder
    """Who I am, as I say."""
    reentrant: bool = False
    open_ended: bool = True
    """Whether nodes that are not known yet may come to be used (a pattern in `nodes`)."""
    named: tuple[tuple[str, int], ...] = ()
    """Hosts, and ports or 0, of nodes to dial."""
    discovers: bool = True
    """Whether the network shall be asked for nodes."""
    interval: float | None = None
    """Seconds between questions for nodes."""
    exclusive: bool = False
    """Wait until no other cluster runs, and let none run beside it."""
    recovers: bool = False
    """I am the successor of the process that made it: it must be known, and no more jobs of it will come."""


class CloseCluster(Message, frozen=True):
    """No more jobs of it will come. With `terminate` its jobs are ended, else they finish."""

    cluster: ComputationId
    terminate: bool = False


class NarrowCluster(Message, frozen=True):
    """Wait for no nodes that are not known yet: end jobs that no known node can ever run."""

    cluster: ComputationId


class WidenCluster(Message, frozen=True):
    """Look for further nodes: dial these, and ask the network if `discovers`."""

    cluster: ComputationId
    named: tuple[tuple[str, int], ...] = ()
    discovers: bool = False
    open_ended: bool = False
    """Jobs of it shall wait for nodes that are not known yet."""


class KeepObjects(Message, frozen=True):
    """Keep these scattered objects for nodes, and none that I have named before and do not name now."""

    cluster: ComputationId
    objects: tuple[BlobRef, ...]


class AnswerAllocation(Message, frozen=True):
    """So much of a node I want for this cluster; the answer to `AllocationAsked`."""

    cluster: ComputationId
    node: ProcessId
    cpus: int
    files: tuple[FileSpec, ...] = ()
    setup_args: bytes = b""
    oversubscribe: bool = False


class SteerShare(Message, frozen=True):
    """Change how a cluster uses a node. `how`: use, pause, cap, close or renew."""

    cluster: ComputationId
    node: ProcessId
    how: str
    cpus: int = 0
    terminate: bool = False


# ---- client to scheduler: jobs ----


class SubmitJobs(Message, frozen=True):
    """Queue these (attempt 0); payload: their arguments one after another (`JobSpec.size` bytes each)."""

    cluster: ComputationId
    sequence: int
    jobs: list[JobSpec]


class CancelSubmitted(Message, frozen=True):
    """End these jobs, wherever they are."""

    cluster: ComputationId
    jobs: list[int]


class AckOver(Message, frozen=True):
    """All `JobsOver` up to this sequence number are safe with me."""

    cluster: ComputationId
    sequence: int


# ---- client to scheduler: questions; the answer to each is below, with its number ----


class ExplainSubmitted(Message, frozen=True):
    """Say why this job is where it is; job 0: why jobs of the cluster wait."""

    question: int
    cluster: ComputationId
    job: int


class AskStandings(Message, frozen=True):
    """Say how each node stands for this cluster."""

    question: int
    cluster: ComputationId


class AskJobsAt(Message, frozen=True):
    """Tell which jobs of a cluster a node has; `from_node`: which run there by its own account."""

    question: int
    cluster: ComputationId
    node: ProcessId
    from_node: bool = False


class AskTail(Message, frozen=True):
    """Tell the end of what a running job has printed."""

    question: int
    cluster: ComputationId
    job: int


class PlaceFileAt(Message, frozen=True):
    """Let a node fetch this file, which I offer, into the computation's directory."""

    question: int
    cluster: ComputationId
    node: ProcessId
    file: FileSpec


class AskPool(Message, frozen=True):
    """Tell how everything stands. The tokens say which clusters are mine."""

    question: int
    tokens: tuple[bytes, ...] = ()


class AskJobs(Message, frozen=True):
    """Tell the jobs of clusters, at most so many of each. The tokens say which clusters are mine."""

    question: int
    tokens: tuple[bytes, ...] = ()
    cluster: ComputationId = ComputationId("")
    """Only this one; empty: all that I may read."""
    most: int = 1000


class CancelFor(Message, frozen=True):
    """Cancel jobs (none named: all) of a cluster, which is mine by one of these tokens, or I may steer all."""

    question: int
    tokens: tuple[bytes, ...]
    cluster: ComputationId
    jobs: tuple[int, ...] = ()


# ---- scheduler to client: clusters ----


class ClusterAccepted(Message, frozen=True):
    """Go on. What ended and was not acknowledged follows in `JobsOver`, counted from 1."""

    cluster: ComputationId
    stored: int
    """The last `SubmitJobs` that is on my disk; send again what is later."""
    fresh: bool
    """I did not know it."""


class ClusterDeclined(Message, frozen=True):
    """I do not take it up, or not any more."""

    cluster: ComputationId
    reason: str


class AllocationAsked(Message, frozen=True):
    """Say how much of this node you want; answered by `AnswerAllocation`."""

    cluster: ComputationId
    node: NodeSeen


class NodeReady(Message, frozen=True):
    """A node has set up your computation."""

    cluster: ComputationId
    node: NodeSeen
    cpus: int


class NodeGone(Message, frozen=True):
    """A node is gone for this cluster, or has closed its computation; `renewing`: it is being set up anew."""

    cluster: ComputationId
    node: ProcessId
    cause: str
    trace: str = ""
    renewing: bool = False


class NodeDeclined(Message, frozen=True):
    """A node cannot run this cluster's jobs, or is held by somebody else."""

    cluster: ComputationId
    node: NodeSeen
    reason: str
    trace: str = ""
    holder: Holder | None = None


class NodeChanged(Message, frozen=True):
    """A node offers another number of CPUs, or the cluster uses another number of them, or other resources are free."""

    cluster: ComputationId
    node: ProcessId
    cpus: int = -1
    """What it offers; -1: as before."""
    used: int = -1
    avail: AvailInfo | None = None


class ClusterSaid(Message, frozen=True):
    """Something that the user should read, for example what is waited for."""

    cluster: ComputationId
    sentence: str


class ClusterOver(Message, frozen=True):
    """Everything of a closed cluster is done, and the client has all ends."""

    cluster: ComputationId


# ---- scheduler to client: jobs ----


class JobsStored(Message, frozen=True):
    """All `SubmitJobs` up to this sequence number are on my disk."""

    cluster: ComputationId
    sequence: int


class JobsHanded(Message, frozen=True):
    """A node has these jobs now."""

    cluster: ComputationId
    node: ProcessId
    jobs: list[int]
    address: str = ""


class JobWaitsAgain(Message, frozen=True):
    """An attempt was lost or failed, and the job waits for another."""

    cluster: ComputationId
    job: int
    node: ProcessId
    cause: str


class JobSaid(Message, frozen=True):
    """A running job has an interim result; payload: that, unless it is in a blob."""

    cluster: ComputationId
    job: int
    node: ProcessId
    blob: BlobRef | None = None


class JobsOver(Message, frozen=True):
    """These jobs have ended; payload: their bodies one after another (none for a body in a blob)."""

    cluster: ComputationId
    sequence: int
    jobs: list[JobOver]


# ---- scheduler to client: answers ----


class Explained(Message, frozen=True):
    """Why it is so."""

    question: int
    sentence: str


class StandingsTold(Message, frozen=True):
    """How each node stands for a cluster."""

    question: int
    standings: list[NodeStanding]


class JobsAtTold(Message, frozen=True):
    """The jobs that a node has."""

    question: int
    jobs: list[int]


class TailTold(Message, frozen=True):
    """What a job has printed last; payload: stdout, then stderr."""

    question: int
    stdout_size: int = 0
    stderr_size: int = 0


class FilePlacedAt(Message, frozen=True):
    """The file is on the node, or why it is not."""

    question: int
    reason: str = ""


class PoolTold(Message, frozen=True):
    """How everything stands."""

    question: int
    status: PoolStatus


class JobsTold(Message, frozen=True):
    """Jobs of clusters; `more` were left out."""

    question: int
    jobs: list[JobStatus]
    more: int = 0


class CancelTold(Message, frozen=True):
    """How many jobs are being ended, or why none is."""

    question: int
    count: int
    sentence: str = ""


SharingMessage = (
    OpenCluster
    | CloseCluster
    | NarrowCluster
    | WidenCluster
    | KeepObjects
    | AnswerAllocation
    | SteerShare
    | SubmitJobs
    | CancelSubmitted
    | AckOver
    | ExplainSubmitted
    | AskStandings
    | AskJobsAt
    | AskTail
    | PlaceFileAt
    | AskPool
    | AskJobs
    | CancelFor
    | ClusterAccepted
    | ClusterDeclined
    | AllocationAsked
    | NodeReady
    | NodeGone
    | NodeDeclined
    | NodeChanged
    | ClusterSaid
    | ClusterOver
    | JobsStored
    | JobsHanded
    | JobWaitsAgain
    | JobSaid
    | JobsOver
    | Explained
    | StandingsTold
    | JobsAtTold
    | TailTold
    | FilePlacedAt
    | PoolTold
    | JobsTold
    | CancelTold
)
