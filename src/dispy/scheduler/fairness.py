"""Who shares the nodes with whom: accounts of users, and by which rule it is decided whose turn it is.

A user's account is charged when its jobs are handed out, with the seconds that they will probably take on each CPU, so
that what is sent ahead counts; it is corrected when they end, and also while they run longer than that. Who has been
charged least comes next. Whoever comes anew, or comes back, starts level with the least of those that wait: time in
which nothing was wanted is no credit. `turns` hands out jobs by this.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from heapq import heapify, heappop, heappush, heapreplace
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from msgspec import Struct, field

from dispy.model import ComputationId
from dispy.scheduler.jobs import JobQueue, JobRecord

if TYPE_CHECKING:
    from dispy.scheduler.clusters import ClusterRecord

UNMEASURED: Final = 0.5
"""Seconds that a job is charged of whose cluster none has ended."""
TURN_SECONDS: Final = 0.2
"""Slot-seconds by which users may be apart before a CPU goes from one to the other: that costs the node a process."""
MOST_CREDIT: Final = 2.0
"""Slot-seconds that one may be behind the next, who had its turn and could run nothing on what was free."""

Rank = tuple[float, float]


class Policy(StrEnum):
    """Between whom it is chosen, and how. Within one of them: higher priority, then order of submission."""

    FIFO = "fifo"
    """Between jobs: higher priority, then order of submission, whoever submitted them."""
    FAIR = "fair"
    """Between users: who has had the least slot-seconds since they compete."""
    FAIR_CLUSTER = "fair_cluster"
    """Between clusters: the one that was served longest ago."""
    EARLY_CLUSTER = "early_cluster"
    """Between clusters: the one that was made first."""


class Charged(Struct, frozen=True, array_like=True):
    """What an account has come to, in slot-seconds."""

    used: float
    due: float
    """What decides its turn; only beside that of others does it mean anything."""


class Account(Struct, eq=False):
    """One user of the scheduler."""

    user: str
    most_cpus: int = 0
    """CPUs that it may have at once; 0: any number."""
    clusters: dict[ComputationId, ClusterRecord] = field(default_factory=dict)
    used: float = 0.0
    """Slot-seconds that its jobs took, of all that it had since the scheduler began."""
    due: float = 0.0
    """What decides its turn: slot-seconds charged, and those with which it started level with others."""
    cpus: int = 0
    """CPUs that its jobs in flight have, or will have in their turn; counted only where turns are taken."""

    @property
    def label(self) -> str:
        """Who it is, in sentences."""
        return f"user {self.user}" if self.user else "one user"

    @property
    def jobs(self) -> int:
        """Jobs that have not ended."""
        return sum([cluster.jobs for cluster in self.clusters.values()])

    @property
    def spare(self) -> int | None:
        """CPUs that it may have beside those that it has; None: any number."""
        return max(0, self.most_cpus - self.cpus) if self.most_cpus else None


class _Entered(Protocol):
    entry: Rank | None


T = TypeVar("T", bound=_Entered)


class Line(Generic[T]):
    """Those who wait for their turn, by rank.

    A heap that is put right when it is read: the rank under which one stands (`entry`) is too early rather than too
    late. So whoever makes a rank earlier must `offer` again; a later one needs nothing.
    """

    __slots__ = ("_heap", "_pushes", "_rank", "_valid")

    def __init__(self, rank: Callable[[T], Rank | None]) -> None:
        """`rank` says where one stands now; None: it does not wait any more."""
        self._rank = rank
        self._heap: list[tuple[Rank, int, T]] = []
        self._pushes = 0
        self._valid = 0

    def __len__(self) -> int:
        """How many stand here; some may not have noticed yet that they wait for nothing."""
        return self._valid

    def offer(self, item: T, rank: Rank) -> None:
        """Let one wait, or further ahead than it did."""
        entry = item.entry
        if entry is None:
            self._valid += 1
        elif entry <= rank:
            return
        item.entry = rank
        self._pushes += 1
        heappush(self._heap, (rank, self._pushes, item))
        if len(self._heap) > 64 + 4 * self._valid:
            self._heap = [each for each in self._heap if each[2].entry is each[0]]
            heapify(self._heap)

    def leave(self, item: T) -> None:
        """One does not stand here any more."""
        if item.entry is not None:
            item.entry = None
            self._valid -= 1

    def first(self) -> T | None:
        """Whose turn it is."""
        heap = self._heap
        while heap:
            noted, number, item = heap[0]
            if item.entry is not noted:
                heappop(heap)
                continue
            rank = self._rank(item)
            if rank is None:
                heappop(heap)
                item.entry = None
                self._valid -= 1
            elif len(heap) == 1 or rank <= noted:
                return item
            else:
                item.entry = rank
                heapreplace(heap, (rank, number, item))
                if heap[0][2] is item:
                    return item
        return None

    def second(self) -> T | None:
        """Whose turn it is after that of the first."""
        item = self.first()
        if item is None or self._valid < 2:
            return None
        top = heappop(self._heap)
        second = self.first()
        heappush(self._heap, top)
        return second

    def take(self) -> T | None:
        """Whose turn it is; it leaves."""
        item = self.first()
        if item is not None:
            heappop(self._heap)
            item.entry = None
            self._valid -= 1
        return item


_rank_of_queue: Final = attrgetter("rank")


class Party(Struct, eq=False):
    """One of those between whom the policy chooses: a user, or a cluster."""

    account: Account
    order: int
    """Counts them."""
    line: Line[JobQueue] = field(default_factory=lambda: Line(_rank_of_queue))
    """Its queues that have jobs."""
    served: int = -1
    """When it was given something last; counts the times that anybody was."""
    is_waiting: bool = False
    """Whether it has had jobs that wait, without a pause."""
    is_stuck: bool = False
    """Whether it had its turn and nothing that was free was of use to it."""
    first: JobQueue | None = None
    """The first of its queues, as it was when its rank was last asked for."""
    entry: Rank | None = None


def _by_debt(party: Party, queue: JobQueue) -> Rank:
    return party.account.due, party.served


def _by_service(party: Party, queue: JobQueue) -> Rank:
    return party.served, party.order


def _by_age(party: Party, queue: JobQueue) -> Rank:
    return party.order, 0


def _by_job(party: Party, queue: JobQueue) -> Rank:
    assert queue.rank is not None
    return queue.rank


_ORDERS: Final[dict[Policy, Callable[[Party, JobQueue], Rank]]] = {
    Policy.FAIR: _by_debt,
    Policy.FAIR_CLUSTER: _by_service,
    Policy.EARLY_CLUSTER: _by_age,
    Policy.FIFO: _by_job,
}
"""Where a party stands, by its first queue."""


class Turns:
    """Whose turn it is, and what everybody is charged."""

    __slots__ = (
        "_made",
        "_order",
        "_parties",
        "_peak",
        "_served",
        "cpus",
        "deepened",
        "is_fair",
        "line",
        "next_look_at",
        "policy",
        "relieved",
    )

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.is_fair = policy is Policy.FAIR
        """Whether it is users between whom is chosen."""
        self._order = _ORDERS[policy]
        self.line: Line[Party] = Line(self.rank)
        """Parties with jobs that wait."""
        self.relieved: dict[Account, None] = {}
        """Users who had as many CPUs as they may, and have fewer now."""
        self.deepened = 0
        """How often the jobs of a cluster turned out to be so short that nodes take twice as many of them, or more."""
        self.next_look_at = 0.0
        """When running jobs are next compared with what was charged for them."""
        self._parties: dict[Account | ComputationId, Party] = {}
        self.cpus = 0
        """CPUs that all jobs in flight have, or will have in their turn."""
        self._made = 0
        self._served = 0
        self._peak = 0.0
        """The most that anybody's account has come to."""

    def party_of(self, cluster: ClusterRecord) -> Party:
        """The one to whom a cluster belongs."""
        key = cluster.account if self.is_fair else cluster.id
        party = self._parties.get(key)
        if party is None:
            party = self._parties[key] = Party(cluster.account, self._made)
            self._made += 1
        return party

    def restore(self, account: Account, charged: Charged) -> None:
        """An account is here again after a restart: who has jobs that wait goes on where it stood, not level."""
        account.used, account.due = charged.used, charged.due
        self._peak = max(self._peak, charged.due)
        for cluster in account.clusters.values():
            if cluster.waiting:
                party = self.party_of(cluster)
                self.line.leave(party)
                party.is_waiting = True
                self.stay(party)

    def forget(self, cluster: ClusterRecord) -> None:
        """A cluster is over."""
        self._parties.pop(cluster.id, None)

    def rank(self, party: Party) -> Rank | None:
        """Who has less comes first; None: it has nothing that waits."""
        queue = party.first = party.line.first()
        if queue is None:
            party.is_waiting = False
            return None
        return self._order(party, queue)

    def want(self, cluster: ClusterRecord, queue: JobQueue) -> Party:
        """Jobs of a queue wait, which must have some."""
        party = self.party_of(cluster)
        assert queue.rank is not None
        party.line.offer(queue, queue.rank)
        if not party.is_waiting:
            party.is_waiting = True
            self.line.leave(party)
            least = self.line.first()
            level = self._peak if least is None else least.account.due
            party.account.due = max(party.account.due, level)
        self.stay(party)
        return party

    def stay(self, party: Party) -> None:
        """One may have something that waits, and less than when it was last offered."""
        rank = self.rank(party)
        if rank is not None:
            self.line.offer(party, rank)

    def charge(self, party: Party, cpus: int, seconds: float) -> None:
        """Jobs are handed out that have so many CPUs together, and take `seconds` each."""
        account = party.account
        account.cpus += cpus
        self.cpus += cpus
        account.due += seconds * cpus
        if account.due > self._peak:
            self._peak = account.due
        self._served += 1
        party.served = self._served

    def correct(self, cluster: ClusterRecord, more: float) -> None:
        """An account was charged too little, or too much (less than 0)."""
        account = cluster.account
        account.due += more
        if more < 0 and self.is_fair:
            party = self._parties[account]
            if party.is_waiting:
                self.line.offer(party, (account.due, party.served))

    def release(self, cluster: ClusterRecord, cpus: int) -> None:
        """Jobs that had so many CPUs are no longer in flight."""
        account = cluster.account
        if account.most_cpus and cpus:
            self.relieved[account] = None
        account.cpus -= cpus
        self.cpus -= cpus

    def give_back(self, cluster: ClusterRecord, record: JobRecord) -> None:
        """A job has not run, or in vain: what it was charged is returned. Nothing else has been released yet."""
        self.release(cluster, record.cpus or 1)
        self.correct(cluster, -record.charge)
        record.charge = 0.0
