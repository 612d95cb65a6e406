"""What clients and shared schedulers say to each other. Questions and their answers are in `inquiries`, the rest of the
protocol in `messages`.

On such a link jobs have the numbers that their client gave them, ascending in the order of submission. A batch of
submitted jobs has a sequence number of its cluster's, and lasts until the scheduler has it on its disk; a batch of ends
has one of the attachment's, and lasts until the client has it.
"""

# No `from __future__ import annotations`: msgspec would compile each of these strings when it makes a decoder.
from dispy.model import (
    AvailInfo,
    BlobRef,
    ComputationId,
    ComputationSpec,
    FileSpec,
    Holder,
    JobSpec,
    ProcessId,
)
from dispy.wire.inquiries import InquiryMessage
from dispy.wire.message import Message
from dispy.wire.pool import JobOver, NodeSeen

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


# ---- scheduler to client: clusters ----


class ClusterAccepted(Message, frozen=True):
    """Go on. What ended and was not acknowledged follows in `JobsOver`, counted from 1."""

    cluster: ComputationId
    stored: int
    """The last `SubmitJobs` that is on my disk; send again what is later."""
    fresh: bool
    """I did not know it."""
    batch_jobs: int = 0
    """A batch shall have no more jobs; 0: the usual number."""


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
    | InquiryMessage
)
