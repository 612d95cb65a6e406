"""Hands out jobs by turns: between users or clusters, as the policy says, and within quotas.

Nodes whose load fell are noted (`Tables.fresh`) and offered to those whose turn it is until they are full; what they
then still have is noted for all. So an event costs as much with a thousand users as with one, as long as enough work
waits. What a party is charged is in `fairness`.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final

from msgspec import Struct, field

from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.dispatching import block, hand_over, note, recall, send_batch
from dispy.scheduler.fairness import MOST_CREDIT, TURN_SECONDS, Account, Party, Policy, Rank, Turns
from dispy.scheduler.jobs import JobQueue, JobRecord
from dispy.scheduler.nodes import NEARLY, Load, NodeRecord, Share
from dispy.scheduler.placement import Choice, cpus_on
from dispy.scheduler.policy import before_next, portion
from dispy.scheduler.tables import Outbox, Tables
from dispy.wire.messages import RecallJobs

LOOK_INTERVAL: Final = 0.2
"""Seconds between looks at jobs that run, while others wait."""
LEAST_INTERVAL: Final = 0.02
"""The same where there are few nodes and something was sent ahead."""
MANY: Final = 1000
"""Nodes of which a look costs so much that there are no more looks than that."""
OVERLONG: Final = 2.0
"""Jobs that take so many times their mean have been sent ahead wrongly."""


def dispatch(tables: Tables, out: Outbox) -> None:
    """Hand out every job that a node has room for and whose owner may have it run."""
    turns = tables.turns
    if tables.blocked:
        tables.release_claims()
    if tables.now >= turns.next_look_at:
        _look(tables, turns, out)
    if turns.relieved:
        for account in turns.relieved:
            for cluster in account.clusters.values():
                tables.runnable.update(dict.fromkeys(queue for queue in cluster.queues if queue.waiting))
        turns.relieved.clear()
    wanted = _wanted(tables, turns) if tables.runnable else None
    if tables.fresh or wanted or tables.claims:
        hand = _Hand(tables, turns)
        hand.fill_fresh()
        if wanted:
            hand.serve(wanted)
        hand.finish(out)
    if tables.restless:
        recall(tables, out)


def _wanted(tables: Tables, turns: Turns) -> dict[Party, None]:
    """Those whose jobs wait anew, in the line from now on."""
    wanted: dict[Party, None] = {}
    for queue in tables.runnable:
        if queue.waiting and not (cluster := tables.clusters[queue.cluster]).is_held:
            wanted[turns.want(cluster, queue)] = None
    tables.runnable.clear()
    return wanted


def next_look(tables: Tables) -> float | None:
    """When running jobs are to be looked at although nothing happened; None: nothing would follow from that."""
    turns = tables.turns
    if not turns.cpus or not (turns.policy is Policy.FAIR or tables.crowded or tables.park_above):
        return None
    if len(turns.line) or (tables.idle and any(tables.clusters[id].parked for id in tables.crowded)):
        return turns.next_look_at
    return None


class _Hand(Struct, eq=False, gc=False):
    """What one pass hands out."""

    _tables: Tables
    _turns: Turns
    _batches: dict[Share, list[JobRecord]] = field(default_factory=dict)
    """What is yet to be sent."""
    _loads: dict[NodeRecord, Load] = field(default_factory=dict)
    """Of nodes whose load fell, and those that were given jobs."""
    _free: dict[NodeRecord, None] = field(default_factory=dict)
    """Those of them that take more jobs, as far as that does not depend on the cluster."""
    _choices: dict[JobQueue, Choice] = field(default_factory=dict)
    """Where jobs with wishes can go."""
    _looked: set[ClusterRecord] = field(default_factory=set)
    """Clusters that know the nodes whose load fell."""
    _aside: dict[Party, None] = field(default_factory=dict)
    """Parties that can have nothing in this pass."""
    _skipped: list[tuple[Party, JobQueue]] = field(default_factory=list)
    """Queues for which no node has room."""
    _spent: set[Account] = field(default_factory=set)
    """Users whose next job would exceed their quota: what comes after it must not take the CPUs."""

    def fill_fresh(self) -> None:
        """Give nodes whose load fell to those whose turn it is, until they are full or nobody wants them."""
        turns, free, loads = self._turns, self._free, self._loads
        for node in self._tables.fresh:
            load = loads[node] = node.settle()
            if load.vacancy > NEARLY:
                free[node] = None
        while free:
            party = turns.line.first()
            if party is None:
                break
            holder = self._holder(party) if turns.is_fair else None
            if (holder is None or not self._give(holder, holder.line.first(), None)) and not self._give(
                party, party.first, None
            ):
                turns.line.leave(party)
                self._aside[party] = None

    def serve(self, wanted: dict[Party, None]) -> None:
        """Give to parties that have new work what they can have; for all others nothing has changed."""
        heap: list[tuple[Rank, int, Party]] = []
        for number, party in enumerate(wanted):
            if party not in self._aside and (rank := self._turns.rank(party)) is not None:
                heap.append((rank, number, party))
        heapify(heap)
        while heap:
            _, number, party = heappop(heap)
            if not self._give(party, party.first, heap):
                self._aside[party] = None
            elif (rank := self._turns.rank(party)) is not None:
                heappush(heap, (rank, number, party))

    def finish(self, out: Outbox) -> None:
        """Send all of it, and note what nodes have left."""
        tables = self._tables
        if self._skipped or self._aside:
            self._put_back()
        for share, batch in self._batches.items():
            send_batch(share, batch, out)
        loads = self._loads
        for node in tables.claims:
            if node not in loads:
                loads[node] = node.settle()
        for node, load in loads.items():
            note(tables, node, load)
        tables.fresh.clear()
        for _, queue in self._skipped:
            cluster = tables.clusters[queue.cluster]
            if cluster.parked and (not queue.is_plain or (tables.idle and not cluster.is_growing)):
                tables.wanting[cluster.id] = None

    def _put_back(self) -> None:
        """Let those stand in the line again who could have nothing."""
        turns = self._turns
        for party, queue in self._skipped:
            if queue.rank is not None:
                party.line.offer(queue, queue.rank)
                party.is_waiting = True
                self._aside[party] = None
        # a node is kept for what needs several CPUs, and it is owed what it waits for that
        patient = {party for party, queue in self._skipped if queue.is_heavy}
        for party in self._aside:
            party.is_stuck = party not in patient
            turns.stay(party)

    def _holder(self, party: Party) -> Party | None:
        """Who has just ended a job on one of the nodes and may go on there: it is hardly ahead of whose turn it is."""
        account = party.account
        if not account.cpus:
            return None
        for node in self._free:
            share = self._tables.fresh[node]
            if share is not None and share.cluster.account is not account:
                holder = self._turns.party_of(share.cluster)
                if holder.entry is not None and holder.account.due <= account.due + TURN_SECONDS:
                    return holder
        return None

    def _give(self, party: Party, queue: JobQueue | None, others: list[tuple[Rank, int, Party]] | None) -> bool:
        """Hand out the next jobs of a party, of which this is the first queue; returns whether any can go anywhere.

        `others` is the heap of those who compete with it; None: those in the line.
        """
        tables = self._tables
        while queue is not None:
            cluster = tables.clusters[queue.cluster]
            if cluster.is_held:
                queue.tried_at = -1
                party.line.take()
                queue = party.line.first()
                continue
            found = self._place(cluster, queue)
            if found is None:
                among = self._among(queue)
                # a quota may have kept it from what was free
                queue.tried_at = -1 if cluster.account.most_cpus else self._turns.deepened
                if queue.is_heavy and (claimed := block(tables, cluster, queue, among)) is not None:
                    self._claim(claimed)
                party.line.take()
                self._skipped.append((party, queue))
                queue = party.line.first()
                continue
            share, room = found
            count = 1
            if (room > 1 or party.account.most_cpus) and not (
                count := self._count(party, others, cluster, queue, share, room)
            ):
                return False
            records, cpus = hand_over(queue, share, count, cluster.estimate)
            if (batch := self._batches.setdefault(share, records)) is not records:
                batch += records
            if party.is_stuck:
                party.is_stuck = False
                if (following := self._following(party, others)) is not None:
                    party.account.due = max(party.account.due, following.account.due - MOST_CREDIT)
            self._turns.charge(party, cpus, cluster.estimate)
            load = self._loads.get(share.node)
            if load is None:
                self._loads[share.node] = share.node.settle()
            else:
                load.wanted += cpus
                load.vacancy -= cpus if queue.is_heavy else count / cluster.depth
                if cluster.depth > 1 or load.wanted > load.cpus:
                    load.is_crowded = True
                if load.vacancy <= NEARLY:
                    self._free.pop(share.node, None)
            if not queue.waiting:
                tables.forget_queue(queue)
            return True
        return False

    def _claim(self, node: NodeRecord) -> None:
        """Less of a node is free than before: some is kept for a job."""
        load = self._loads.get(node)
        if load is not None and node.is_usable:
            load.vacancy = node.vacancy
            if load.vacancy <= NEARLY:
                self._free.pop(node, None)

    def _following(self, party: Party, others: list[tuple[Rank, int, Party]] | None) -> Party | None:
        """Whose turn it is after that of a party."""
        if others is not None:
            return others[0][2] if others else None
        line = self._turns.line
        first = line.first()
        return line.second() if first is party else first

    def _place(self, cluster: ClusterRecord, queue: JobQueue) -> tuple[Share, int] | None:
        """Where jobs of a queue can go, the nodes whose load fell among all others."""
        fresh = self._tables.fresh
        if queue.is_plain and len(fresh) == 1 and cluster not in self._looked:
            (node,) = fresh
            share = cluster.shares.get(node.id)
            if share is None:
                return cluster.rooms.best()
            return cluster.rooms.best_with(share, self._loads[node])
        if not queue.is_plain:
            choice = self._choices.get(queue)
            if choice is None:
                choice = self._choices[queue] = Choice(cluster, queue, self._among(queue))
            return choice.best()
        self._show_fresh(cluster)
        return cluster.rooms.best()

    def _among(self, queue: JobQueue) -> Iterable[NodeRecord] | None:
        """The nodes that may have room for jobs with wishes; None: any may."""
        return self._tables.fresh if queue.tried_at == self._turns.deepened else None

    def _show_fresh(self, cluster: ClusterRecord) -> None:
        """Let a cluster find the nodes whose load fell."""
        if cluster in self._looked:
            return
        self._looked.add(cluster)
        shares = cluster.shares
        for node in self._tables.fresh:
            share = shares.get(node.id)
            if share is not None:
                room, load = share.standing(self._loads[node])
                if room > 0:
                    cluster.rooms.offer(share, load)

    def _count(
        self,
        party: Party,
        others: list[tuple[Rank, int, Party]] | None,
        cluster: ClusterRecord,
        queue: JobQueue,
        share: Share,
        room: int,
    ) -> int:
        """How many jobs of the queue a share is given before it is the turn of another."""
        account = party.account
        if account.most_cpus:
            spare = account.spare or 0
            if spare < (cpus_on(share, queue.shape) if queue.is_heavy else 1) or account in self._spent:
                self._spent.add(account)
                return 0
            room = min(room, spare)
        if queue.is_heavy or room == 1:
            return 1
        most = max(1, self._before_others(party, others, cluster, queue))
        rooms = len(cluster.rooms) if queue.is_plain else len(cluster.shares)
        return min(portion(share, room, most, 1 if queue.shape.node else rooms), most)

    def _before_others(
        self, party: Party, others: list[tuple[Rank, int, Party]] | None, cluster: ClusterRecord, queue: JobQueue
    ) -> int:
        """How many jobs of the queue come before those of other queues of the party, and of other parties."""
        line, most = party.line, queue.top().waiting
        if len(line) > 1:
            second = line.second()
            most = before_next(queue, None if second is None else second.rank)
        policy = self._turns.policy
        if most == 1 or policy is Policy.EARLY_CLUSTER or (following := self._following(party, others)) is None:
            return most
        match policy:
            case Policy.FAIR:
                seconds = max(0.0, following.account.due - party.account.due) + self._tables.ahead
                return max(1, min(most, int(seconds / cluster.estimate)))
            case Policy.FAIR_CLUSTER:
                return max(1, min(most, int(self._tables.ahead / cluster.estimate)))
            case Policy.FIFO:
                other = following.line.first()
                return most if other is None else min(most, before_next(queue, other.rank))


def _look(tables: Tables, turns: Turns, out: Outbox) -> None:
    """Charge for jobs that run longer than was charged for them, and call back what waits behind such jobs."""
    now = tables.now
    turns.next_look_at = now + _until_next_look(tables)
    for cluster in tables.clusters.values():
        if cluster.parked and cluster.waiting:
            tables.wanting[cluster.id] = None
    running: dict[ClusterRecord, tuple[float, int]] = {}
    for node in tables.nodes.values():
        for share in node.busy:
            if share.step:  # before its first job can begin: that tells nothing of how long jobs take
                continue
            cluster = share.cluster
            together, count = running.get(cluster, (0.0, 0))
            least = now
            for record in islice(share.flight.values(), share.slots):
                if not record.seen_at:
                    record.seen_at = now
                took = now - record.seen_at
                cpus = record.cpus or 1
                if took * cpus > record.charge:
                    turns.correct(cluster, took * cpus - record.charge)
                    record.charge = took * cpus
                together, count, least = together + took, count + 1, min(least, took)
            running[cluster] = together, count
            if cluster.mean is not None and least > max(OVERLONG * cluster.mean, tables.ahead):
                share.is_stuck = True
    for cluster, (together, count) in running.items():
        if count and together / count > cluster.estimate:
            cluster.estimate = together / count
        _recall_stuck(tables, cluster, turns, out)


def _until_next_look(tables: Tables) -> float:
    """Seconds: the fewer nodes, the sooner it is seen that jobs wait behind one that takes long."""
    if not tables.crowded:
        return LOOK_INTERVAL
    return min(LOOK_INTERVAL, max(LEAST_INTERVAL, LOOK_INTERVAL / MANY * len(tables.nodes)))


def _recall_stuck(tables: Tables, cluster: ClusterRecord, turns: Turns, out: Outbox) -> None:
    """What waits at nodes behind jobs that take much longer than was thought goes where a CPU is free first."""
    if turns.line.first() is None and not (cluster.parked and tables.idle):
        return
    for share in cluster.excesses.values():
        node = share.node
        if not share.is_stuck or node.recall is not None or node.is_spent or not node.can_hear:
            continue
        if excess := share.excess:
            node.recall = (cluster.id, excess)
            cluster.recalling += excess
            out.send(node, RecallJobs(excess))
