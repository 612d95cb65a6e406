"""Nodes as the scheduler knows them, and their shares: what one cluster has of one node.

Records and the arithmetic on them. What happens to them when is in `membership`, `shares` and `flow`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from math import ceil
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from dispy.model import AvailInfo, ComputationId, ComputationSpec, FileSpec, Holder, NodeInfo, ProcessId
from dispy.scheduler.jobs import JobRecord

if TYPE_CHECKING:
    from dispy.scheduler.clusters import ClusterRecord

NEARLY: Final = 1e-9
"""Parts of CPUs are sums of fractions."""


class NodeState(Enum):
    """Where the lease of a node stands."""

    JOINED = auto()
    """Nothing asked on this link; it may still hold a lease of ours from before."""
    FREE = auto()
    """Released: no cluster uses it."""
    ASKED = auto()
    LEASED = auto()
    REFUSED = auto()
    """Somebody else holds it; we stand in line."""


class ShareState(Enum):
    """Where a computation stands on a node."""

    WANTED = auto()
    """Waits for the lease."""
    PARKED = auto()
    """Not opened on a node that is ours: the cluster has had no use for it yet."""
    OPENING = auto()
    READY = auto()
    REFUSED = auto()
    CLOSING = auto()
    CLOSED = auto()
    """Gone from the node; the bodies of its last results are still being fetched."""
    RENEWING = auto()
    """Closed to be opened again, once its owner has said how much of the node it wants now."""


IN_USE: Final = frozenset(
    (ShareState.WANTED, ShareState.PARKED, ShareState.OPENING, ShareState.READY, ShareState.RENEWING)
)
"""A cluster that has a node in such a state means to run jobs there."""


class Amount(Struct):
    """CPUs, bytes of memory and GPUs."""

    cpus: int = 0
    memory: int = 0
    gpus: int = 0

    def add(self, cpus: int, memory: int, gpus: int) -> None:
        """Count more in; negative figures count out."""
        self.cpus += cpus
        self.memory += memory
        self.gpus += gpus


class Share(Struct, eq=False):
    """What one cluster has of one node."""

    cluster: ClusterRecord
    node: NodeRecord
    cpus: int
    """CPUs that the cluster's owner allocated; 0: it is to be given back."""
    files: tuple[FileSpec, ...] = ()
    setup_args: bytes = b""
    oversubscribe: bool = False
    """The owner wants `cpus` although the node offers fewer."""
    state: ShareState = ShareState.WANTED
    flight: dict[int, JobRecord] = field(default_factory=dict)
    """Jobs that the node has, in the order in which they were handed over."""
    heavy: int = 0
    """Jobs in flight for which CPUs are kept."""
    heavy_cpus: int = 0
    """CPUs that are kept for them."""
    batch: list[JobRecord] = field(default_factory=list)
    """Jobs of the running dispatch pass, not yet sent."""
    entry: float | None = None
    """The load under which it stands among its cluster's rooms; None: it does not."""
    reason: str = ""
    """Why the node refused it."""
    trace: str = ""
    """The traceback that came with that."""
    step: str = ""
    """What the node does to prepare it, or before its first job can start there, since `step_at`."""
    step_at: float = 0.0
    """While it is closing: since then."""
    final: bool = False
    """Whether it refused for good."""
    is_paused: bool = False
    """The user wants no further jobs here."""
    is_needed: bool = False
    """It is never parked: the user asked for it."""
    is_renewed: bool = False
    """It is to be opened again when it has been closed."""
    is_stuck: bool = False
    """Its jobs take much longer than others of its cluster: nothing is sent ahead until one has ended."""
    no_room: str = ""
    """What it said last of something that a job needs and for which it has no room."""
    is_terminated: bool = False
    """Its jobs are ended when it is closed, not waited for."""

    def __post_init__(self) -> None:
        self.node.exceeds = self.node.exceeds or self.oversubscribe

    @property
    def spec(self) -> ComputationSpec:
        """The computation with this node's own files (a copy only when there are any)."""
        return self.cluster.with_files(self.files)

    @property
    def slots(self) -> int:
        """CPUs that the cluster may use here at once."""
        node = self.node
        most = node.capacity if self.oversubscribe or node.info.oversubscribe else node.info.cpus
        return self.cpus if self.cpus < most else most

    @property
    def limit(self) -> int:
        """What the node is told of it: the CPUs that it may use, 0 for all that the node offers."""
        return 0 if self.cpus == self.node.info.cpus else self.cpus

    @property
    def load(self) -> float:
        """CPUs that its jobs keep busy: of those that take turns, as many as the depth make up one."""
        return (len(self.flight) - self.heavy) / self.cluster.depth + self.heavy_cpus

    @property
    def wanted(self) -> int:
        """CPUs that its jobs would use at once."""
        return len(self.flight) - self.heavy + self.heavy_cpus

    @property
    def is_in_use(self) -> bool:
        """Whether the cluster can have jobs there, now or later."""
        return self.state in IN_USE

    @property
    def is_usable(self) -> bool:
        """Whether it can be given work."""
        return self.state is ShareState.READY and self.node.is_usable and not self.is_paused

    @property
    def idle(self) -> int:
        """Jobs that it could start at once."""
        return self.balance()[0]

    @property
    def excess(self) -> int:
        """Jobs that are here and cannot have a CPU yet."""
        return self.balance()[1]

    def balance(self, together: int | None = None) -> tuple[int, int]:
        """Jobs that it could start at once, and jobs that are here and cannot have a CPU yet.

        `together` is `NodeRecord.wanted` of its node, for who asks several shares of it.
        """
        node, flight = self.node, len(self.flight)
        cpus, wanted = node.capacity, flight - self.heavy + self.heavy_cpus
        if together is None:
            together = wanted if len(node.shares) == 1 else node.wanted
        slots = self.slots
        free, over = slots - wanted, together - cpus
        if over >= 0 or free <= 0 or not self.is_usable:
            return 0, min(flight - self.heavy, max(0, -free, over))
        return max(0, min(free, -over - node.claimed.cpus)), 0

    def standing(self) -> tuple[int, float]:
        """How many more jobs it takes, and the load of its node (1: every CPU has work up to the depth).

        Jobs of all clusters weigh one part in their depth, so that short ones of one do not keep out long ones of
        another; a cluster of long jobs fills a node with one per CPU.
        """
        node = self.node
        if self.state is not ShareState.READY or self.is_paused or not node.is_usable:
            return 0, 0.0
        cpus, depth, flight = node.capacity, 1 if self.is_stuck else self.cluster.depth, len(self.flight)
        slots = self.slots
        if len(node.shares) == 1 and not (node.taken.cpus or node.claimed.cpus):
            return slots * depth - flight, flight / (depth * cpus)
        others = 0.0
        for each in node.busy:
            if each is not self:
                others += (len(each.flight) - each.heavy) / each.cluster.depth + each.heavy_cpus
        free = min(slots, cpus - others - node.claimed.cpus) - self.heavy_cpus
        return ceil(free * depth) - (flight - self.heavy), (others + self.load) / cpus

    def hold(self, record: JobRecord, cpus: int) -> None:
        """Keep for a job what it asks for."""
        record.cpus = cpus
        self.heavy += 1
        self.heavy_cpus += cpus
        shape = record.shape
        self.node.taken.add(cpus, shape.memory, shape.gpus)

    def release(self, record: JobRecord) -> None:
        """A job for which something was kept is no longer in flight."""
        self.heavy -= 1
        self.heavy_cpus -= record.cpus
        shape = record.shape
        self.node.taken.add(-record.cpus, -shape.memory, -shape.gpus)
        record.cpus = 0


class NodeRecord(Struct, eq=False):
    """A node process that has described itself. Another process on the same machine is another node."""

    id: ProcessId
    info: NodeInfo
    address: str
    order: int
    """Counts joins: the tie-break between nodes of equal load."""
    state: NodeState = NodeState.JOINED
    is_suspect: bool = False
    broken_until: float | None = None
    """Without a link: when it counts as lost."""
    shares: dict[ComputationId, Share] = field(default_factory=dict)
    busy: dict[Share, None] = field(default_factory=dict)
    """Those that have jobs there, or had: where many clusters have a share, few are at work at a time."""
    over: dict[Share, None] = field(default_factory=dict)
    """Those that it has refused or closed, or had: looked at when jobs have ended."""
    exceeds: bool = False
    """Whether a cluster wanted (and perhaps wants) to use more CPUs than it offers."""
    is_open: bool = True
    """Whether clusters may have noted that it has something idle."""
    taken: Amount = field(default_factory=Amount)
    """What is kept for jobs that are there."""
    claimed: Amount = field(default_factory=Amount)
    """What is kept free for jobs that wait for more of it."""
    recall: tuple[ComputationId, int] | None = None
    """The recall that is under way: for which cluster, how many."""
    is_spent: bool = False
    """Its last recall brought nothing that could go elsewhere; not asked again before it has ended a job."""
    is_silent: bool = False
    """Its link was given up because nothing was heard; else it broke."""
    is_restored: bool = False
    """The process before this one knew it and may have its lease; this one has not yet heard of it whose that is."""
    holder: Holder | None = None
    """Who else has its lease."""
    avail: AvailInfo | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it can be given work."""
        return (
            self.state is NodeState.LEASED and self.broken_until is None and not self.is_suspect and self.info.cpus > 0
        )

    @property
    def can_hear(self) -> bool:
        """Whether there is a link on which it answers for its lease."""
        return self.state is NodeState.LEASED and self.broken_until is None

    @property
    def is_wanted(self) -> bool:
        """Whether any cluster wants to run jobs on it or still has something there."""
        return any(
            share.state is not ShareState.REFUSED or not share.final or share.flight for share in self.shares.values()
        )

    @property
    def capacity(self) -> int:
        """CPUs that jobs may use; more than it offers where a cluster wants that and its owner or the node says so."""
        info = self.info
        most = info.cpus
        if most and (self.exceeds or info.oversubscribe):
            for share in self.shares.values():
                if share.cpus > most and (share.oversubscribe or info.oversubscribe):
                    most = share.cpus
        return most

    @property
    def wanted(self) -> int:
        """CPUs that its jobs would use at once."""
        wanted = 0
        for share in self.busy:
            wanted += len(share.flight) - share.heavy + share.heavy_cpus
        return wanted

    @property
    def load(self) -> float:
        """CPUs that its jobs keep busy."""
        # written out, as in `Share.load`: this is asked several times for each event
        load = 0.0
        for share in self.busy:
            load += (len(share.flight) - share.heavy) / share.cluster.depth + share.heavy_cpus
        return load

    @property
    def has_room(self) -> bool:
        """Whether it takes more jobs, as far as that does not depend on the cluster."""
        return self.is_usable and self.load + self.claimed.cpus < self.capacity - NEARLY

    @property
    def idle_cpus(self) -> int:
        """CPUs that no job has or will have in its turn, and that are not kept free for one."""
        return max(0, self.capacity - self.wanted - self.claimed.cpus) if self.is_usable else 0

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses one of its CPUs."""
        return self.idle_cpus > 0

    @property
    def opened(self) -> int:
        """Computations that are set up there, or about to be."""
        states = (ShareState.OPENING, ShareState.READY)
        return sum([share.state in states for share in self.shares.values()])

    @property
    def in_flight(self) -> int:
        """Jobs that it has, of all clusters."""
        return sum([len(share.flight) for share in self.busy])

    def settle(self) -> tuple[int, float]:
        """Forget which shares were at work here and are not; returns `wanted` and `load`."""
        wanted, load = 0, 0.0
        for share in tuple(self.busy):
            flight = len(share.flight)
            if not flight:
                del self.busy[share]
                continue
            light, cpus = flight - share.heavy, share.heavy_cpus
            wanted += light + cpus
            load += light / share.cluster.depth + cpus
        return wanted, load

    @property
    def label(self) -> str:
        """Name and address, for people."""
        if not self.address or self.info.name == self.address:
            return self.info.name or self.address or self.id
        return f"{self.info.name or self.id} ({self.address})"


def traces_of(shares: Iterable[Share]) -> str:
    """The tracebacks of nodes that refused, each once, on lines of their own."""
    traces = dict.fromkeys(share.trace.rstrip() for share in shares if share.state is ShareState.REFUSED)
    return "".join(f"\n{trace}" for trace in traces if trace)
