"""The beginning of a cluster, and its end: its last jobs, its shares of nodes, its record."""

from __future__ import annotations

from zlib import crc32

from dispy.errors import InvalidTransition
from dispy.scheduler.clusters import ClusterRecord, ClusterState
from dispy.scheduler.effects import ClusterEnded
from dispy.scheduler.events import ClusterClosing, ClusterOpened
from dispy.scheduler.fairness import Account
from dispy.scheduler.flow import cancel_cluster
from dispy.scheduler.leases import release_if_unused
from dispy.scheduler.nodes import Share, ShareState
from dispy.scheduler.placement import may_run
from dispy.scheduler.shares import ask_allocation, close_share
from dispy.scheduler.tables import Outbox, Tables


def open_cluster(tables: Tables, out: Outbox, event: ClusterOpened) -> None:
    """A client made a cluster: its owner says of every known node how much it wants."""
    id = event.computation.id
    if id in tables.clusters:
        raise InvalidTransition(f"cluster {id} was opened twice")
    account = tables.accounts.get(event.user)
    if account is None:
        account = tables.accounts[event.user] = Account(event.user, tables.max_cpus_per_user)
    cluster = ClusterRecord(
        event.computation,
        event.reentrant,
        event.open_ended,
        tables.ahead,
        account,
        event.exclusive,
        named=event.named,
    )
    tables.clusters[id] = account.clusters[id] = cluster
    tables.turns.party_of(cluster)
    if cluster.is_exclusive:
        tables.exclusives[id] = None
    cluster.is_held = bool(tables.exclusives)
    nodes = list(tables.nodes.values())
    if tables.park_above:
        # those of whom the answer comes first are opened at once: that shall not be the same ones for every cluster
        nodes.sort(key=lambda node: (node.opened, crc32(f"{id}{node.id}".encode())))
    for node in nodes:
        ask_allocation(out, cluster, node)


def close_cluster(tables: Tables, out: Outbox, event: ClusterClosing) -> None:
    """No more jobs come; what is there ends, or is ended now."""
    cluster = tables.clusters.get(event.cluster)
    if cluster is None:
        tables.counters.ignored += 1
        return
    tables.closing[cluster.id] = None
    if event.terminate:
        cluster.state = ClusterState.TERMINATING
        cancel_cluster(tables, out, cluster.id)
    elif cluster.state is ClusterState.OPEN:
        cluster.state = ClusterState.DRAINING


def finish_closing(tables: Tables, out: Outbox) -> None:
    """Let go of clusters whose last job has ended."""
    for id in tuple(tables.closing):
        cluster = tables.clusters[id]
        if cluster.jobs:
            _let_go_of_useless(tables, out, cluster)
            continue
        for share in tuple(cluster.shares.values()):
            close_share(tables, out, share, "the cluster is closed")
        if not cluster.shares:
            del tables.clusters[id], tables.closing[id], cluster.account.clusters[id]
            tables.exclusives.pop(id, None)
            tables.turns.forget(cluster)
            out.notice(ClusterEnded(id))
            for node_id in cluster.asked:
                release_if_unused(tables, out, tables.nodes[node_id])
    alone = None if tables.alone is None else tables.clusters.get(tables.alone)
    if alone is not None and alone.id in tables.closing:
        for id in tables.closing:
            _let_go_for_now(tables, out, tables.clusters[id], alone)


def _let_go_of_useless(tables: Tables, out: Outbox, cluster: ClusterRecord) -> None:
    """Give back nodes that can run none of the jobs that a closing cluster has left: another program may need them.

    Else two programs could wait for each other's nodes for ever.
    """
    if cluster.plain.waiting:
        return
    waiting = [queue.shape for queue in cluster.special.values() if queue.waiting]
    if not waiting:
        return
    for share in tuple(cluster.shares.values()):
        decided = share.state in (ShareState.PARKED, ShareState.READY, ShareState.REFUSED)
        if decided and not any(may_run(share, shape) for shape in waiting) and not _may_return_to(share):
            cluster.declined[share.node.id] = None
            share.cpus = 0
            close_share(tables, out, share, "it can run none of the jobs that are left")


def _let_go_for_now(tables: Tables, out: Outbox, cluster: ClusterRecord, alone: ClusterRecord) -> None:
    """Give back nodes of a closing cluster that waits for an exclusive one which is closing and has no use for them:
    the node that it waits for may be with a program that waits for these. `admit` asks for them again.
    """
    if not cluster.is_held:
        return
    for share in tuple(cluster.shares.values()):
        decided = share.state in (ShareState.PARKED, ShareState.READY)
        refused = share.state is ShareState.REFUSED and not share.final
        if (decided or refused) and not share.flight and share.node.id in alone.declined:
            share.cpus = 0
            close_share(tables, out, share, "it waits for a cluster that runs alone and has no use for this node")


def _may_return_to(share: Share) -> bool:
    """Whether a job that is at a node now could be run here, should that one be lost."""
    flights = [other.flight for other in share.cluster.shares.values()]
    return any(may_run(share, record.shape) for flight in flights for record in flight.values())
