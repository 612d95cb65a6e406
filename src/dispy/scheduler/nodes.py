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


# a member of an enum is looked up by a function: too long for what is done with each job
_LEASED: Final = NodeState.LEASED
_READY: Final = ShareState.READY
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


class Load(Struct, eq=False, gc=False):
    """What the jobs of a node take, kept true while a pass hands out more."""

    cpus: int
    """`NodeRecord.capacity`."""
    wanted: int
    """CPUs that they would use at once."""
    vacancy: float
    """`NodeRecord.vacancy`; 0 when the node can be given no work."""
    is_crowded: bool
    """Whether jobs of a cluster may wait there for a CPU."""
    emptied: tuple[Share, ...]
    """Shares whose last job has gone."""


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
    is_lost: bool = False
    """It refused since the program does not have something any more that the computation needs."""
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
        info = node.info
        most = node.capacity if self.oversubscribe or info.oversubscribe else info.cpus
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

    def standing(self, load: Load | None = None) -> tuple[int, float]:
        """How many more jobs it takes, and the load of its node (1: every CPU has work up to the depth).

        `load` is what `NodeRecord.settle` has said, for who has asked.
        Jobs of all clusters weigh one part in their depth, so that short ones of one do not keep out long ones of
        another; a cluster of long jobs fills a node with one per CPU.
        """
        node = self.node
        if self.state is not _READY or self.is_paused:
            return 0, 0.0
        if load is not None:
            cpus, vacancy = load.cpus, load.vacancy
            if vacancy <= NEARLY:
                return 0, 0.0
        elif node.is_usable:
            cpus, vacancy = node.capacity, node.vacancy
        else:
            return 0, 0.0
        depth, light = self.cluster.depth, len(self.flight) - self.heavy
        slots = self.cpus if self.cpus <= node.info.cpus else self.slots
        free, spare = vacancy + light / depth, slots - self.heavy_cpus
        most = (spare if spare < free else free) * (1 if self.is_stuck else depth)
        return ceil(most - NEARLY) - light, (cpus - vacancy - node.claimed.cpus) / cpus

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
    grace: float = 0.0
    """Seconds after which it does, counted from the last that was heard of it."""
    shares: dict[ComputationId, Share] = field(default_factory=dict)
    busy: dict[Share, None] = field(default_factory=dict)
    """Those that have jobs there, or had: where many clusters have a share, few are at work at a time."""
    over: dict[Share, None] = field(default_factory=dict)
    """Those that it has refused or closed, or had: looked at when jobs have ended."""
    exceeds: bool = False
    """Whether a cluster wanted (and perhaps wants) to use more CPUs than it offers."""
    is_open: bool = True
    """Whether clusters may have noted that it has something idle."""
    is_crowded: bool = False
    """Whether clusters may have noted that their jobs wait there for a CPU."""
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
        return self.state is _LEASED and self.broken_until is None and not self.is_suspect and self.info.cpus > 0

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
        # written out, as in `Share.load`: this is asked for each event
        load = 0.0
        for share in self.busy:
            load += (len(share.flight) - share.heavy) / share.cluster.depth + share.heavy_cpus
        return load

    @property
    def vacancy(self) -> float:
        """CPUs that have no work and are not kept free for a job, as far as that does not depend on the cluster."""
        return self.capacity - self.claimed.cpus - self.load

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

    def settle(self) -> Load:
        """Forget which shares were at work here and are not, and add up the others."""
        busy, offered = self.busy, self.info.cpus
        wanted, load, is_crowded = 0, 0.0, False
        emptied: tuple[Share, ...] = ()
        for share in busy:
            light = len(share.flight) - share.heavy
            own = light + share.heavy_cpus
            if own > share.cpus:
                is_crowded = True
            elif not own:
                emptied = (*emptied, share)
                continue
            wanted += own
            load += light / share.cluster.depth
        for share in emptied:
            del busy[share]
        cpus = self.capacity if self.exceeds or self.info.oversubscribe else offered
        vacancy = cpus - load - self.taken.cpus - self.claimed.cpus if self.is_usable else 0.0
        return Load(cpus, wanted, vacancy, is_crowded or wanted > offered, emptied)

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
