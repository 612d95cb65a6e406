"""When a computation is opened on a node that its cluster wants and has not needed so far: large pools, many clusters.

Where fifty clusters share two hundred nodes, each of them set up on each node would be ten thousand processes. So a
cluster that is not alone opens few nodes at once, others when its jobs are worth it; all other shares are parked.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Final

from dispy.model import ProcessId
from dispy.scheduler.clusters import ClusterRecord, Reach
from dispy.scheduler.fairness import UNMEASURED
from dispy.scheduler.jobs import JobQueue
from dispy.scheduler.nodes import IN_USE, Share, ShareState
from dispy.scheduler.placement import candidates, cpus_on, why_unfit
from dispy.scheduler.shares import open_share
from dispy.scheduler.tables import Outbox, Tables

LEEWAY: Final = 2
"""A cluster opens so many times the CPUs that it would have if each had equally many."""
LEAST: Final = 4
"""CPUs that it opens in any case, and at once when its jobs wait."""
MANY: Final = 64
"""Nodes of one cluster of which the CPUs are not counted for each event."""
CLOSE: Final = 16
"""One node more or less for each so many makes little difference."""
WORTH: Final = 0.2
"""Seconds of work for which a cluster in a crowd opens a CPU more: the first job there has a process started."""
COUNTED_AGAIN: Final = 1.0
"""Seconds."""


def open_needed(tables: Tables, out: Outbox) -> None:
    """Open the nodes that clusters need now and have not opened."""
    for id in tables.wanting:
        cluster = tables.clusters.get(id)
        if cluster is not None:
            cluster.is_growing = False
            if cluster.parked and cluster.wants_nodes:
                opener = _Opener(tables, out, cluster)
                opener.open_needed()
                cluster.is_growing = opener.is_opening
    tables.wanting.clear()


def _reach(cluster: ClusterRecord, now: float) -> int:
    """CPUs that a cluster may use. Of many nodes they are counted again when there are others, or after a while: in a
    crowd each of the nodes and programs that come would lead to a look at all that is there.
    """
    known, count = cluster.reach, len(cluster.shares)
    if count < MANY or abs(count - known.shares) * CLOSE > known.shares or now >= known.at + COUNTED_AGAIN:
        cpus = sum([share.slots for share in cluster.shares.values() if share.state in IN_USE])
        cluster.reach = known = Reach(cpus, count, now)
    return known.cpus


def _worth(cluster: ClusterRecord, rivals: int) -> int:
    """For how many CPUs more its jobs are work enough, where `rivals` clusters have jobs.

    Alone it may have as many as jobs wait. In a crowd, where none of its jobs has ended yet, those are waited for that
    it has out; they may be short.
    """
    plain = cluster.plain.waiting
    if rivals <= 1 or cluster.jobs == cluster.waiting:
        return plain
    if cluster.mean is None and cluster.estimate <= UNMEASURED:
        return 0
    return min(plain, int(plain * cluster.estimate / WORTH))


def _is_openable(share: Share) -> bool:
    return share.slots > 0 and not share.is_paused


class _Opener:
    """What one cluster has opened, and opens now."""

    __slots__ = ("_cluster", "_opening", "_out", "_reach", "_ready", "_tables")

    def __init__(self, tables: Tables, out: Outbox, cluster: ClusterRecord) -> None:
        self._tables = tables
        self._out = out
        self._cluster = cluster
        self._ready = self._opening = 0
        """CPUs that the cluster can use now; that it will be able to use soon."""
        for node, share in tuple(cluster.opened.items()):
            if share.state is ShareState.OPENING:
                self._opening += share.slots
            elif share.state is not ShareState.READY:
                del cluster.opened[node]
            elif not share.is_paused:
                self._ready += share.slots
        self._reach = _reach(cluster, tables.now)
        """CPUs that it may use."""

    @property
    def is_opening(self) -> bool:
        """Whether any node is being set up."""
        return self._opening > 0

    def open_needed(self) -> None:
        """Open what it is to have in any case, then what its jobs need."""
        tables, cluster = self._tables, self._cluster
        least = min(LEAST, tables.park_above)
        clusters = len(tables.clusters)
        eager = self._reach if clusters == 1 else max(least, min(LEAST, self._part(clusters)))
        # nodes of which the owner is still asked count: else each pool is small at first
        if self._reach + len(cluster.asked) <= max(tables.park_above, eager):
            self._open(cluster.parked.values(), self._reach + 1)
        elif (missing := eager - self._ready - self._opening) > 0:
            self._open(self._openable(), missing)
        if cluster.is_held or cluster.account.spare == 0:
            return
        for queue in cluster.special.values():
            if queue.waiting:
                self._open_for(queue)
        rivals = sum(1 for each in tables.clusters.values() if each.jobs)
        # twice as much each time, and no more than there are jobs: short ones may be over before it is open
        most = min(_worth(cluster, rivals), max(least, self._ready)) - self._opening
        if most <= 0:
            return
        parked = cluster.parked
        idle = [parked[node.id] for node in tables.idle if node.id in parked]
        self._open([share for share in idle if _is_openable(share)], most)
        if rivals > 1 and cluster.mean is None and cluster.estimate <= UNMEASURED:
            return
        most = min(most, self._part(rivals) - self._ready) - self._opening
        if most > 0:
            self._open(self._openable(), most)

    def _part(self, rivals: int) -> int:
        return ceil(LEEWAY * self._reach / max(1, rivals))

    def _openable(self) -> Iterable[Share]:
        return [share for share in self._cluster.parked.values() if _is_openable(share)]

    def _open_for(self, queue: JobQueue) -> None:
        """Open what jobs with wishes need: the node that they name, one that fits where none does, idle ones."""
        shape = queue.shape
        if shape.node:
            share = self._cluster.parked.get(ProcessId(shape.node))
            self._open([] if share is None or share.is_paused else [share], 1)
            return
        fitting = [share for share in self._openable() if not why_unfit(share, shape)]
        if not fitting:
            return
        states = {
            share.state
            for share in candidates(self._cluster, shape)
            if (share.is_usable or share.state is ShareState.OPENING) and not why_unfit(share, shape)
        }
        if not states:
            self._open(fitting, 1)
        elif ShareState.OPENING not in states:
            idle = (share for share in fitting if share.node.idle_cpus >= cpus_on(share, shape))
            self._open(idle, min(queue.waiting, max(1, self._ready)))

    def _open(self, shares: Iterable[Share], cpus: int) -> None:
        """Open so many CPUs of these, first where the fewest computations are open."""
        if cpus <= 0:
            return
        able = [share for share in shares if share.node.can_hear]
        for share in sorted(able, key=lambda share: (share.node.opened, share.node.order)):
            if cpus <= 0:
                break
            open_share(self._out, share)
            slots = share.slots
            cpus -= slots
            self._opening += slots
