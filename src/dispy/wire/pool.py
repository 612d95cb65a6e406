"""How nodes, clusters, users and jobs of a shared scheduler stand, as it tells that its clients. Pure."""

# No `from __future__ import annotations`: msgspec would compile each of these strings when it makes a decoder.
import msgspec

from dispy.model import (
    AvailInfo,
    ComputationId,
    Holder,
    JobDone,
    JobState,
    NodeInfo,
    ProcessId,
)


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
