"""What the user wants of single nodes: use, pause, cap, close, set up anew.

Where a share is to change, `shares` carries it on, and dispatch follows every event.
"""

from __future__ import annotations

from typing import assert_never

from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.events import ClusterNarrowed, ClusterWidened, NodeSteered, Steering
from dispy.scheduler.flow import end_hopeless
from dispy.scheduler.leases import ask_lease
from dispy.scheduler.nodes import NodeRecord, Share, ShareState
from dispy.scheduler.shares import ask_allocation, close_share, tell_limit, want
from dispy.scheduler.tables import Outbox, Tables


def steer(tables: Tables, out: Outbox, event: NodeSteered) -> None:
    """The user changes how a cluster uses a node; what is not (or no longer) used can only be used."""
    cluster, node = tables.clusters.get(event.cluster), tables.nodes.get(event.node)
    share = cluster.shares.get(event.node) if cluster is not None else None
    if cluster is None or node is None or (share is None and event.how not in (Steering.USE, Steering.CLOSE)):
        tables.counters.ignored += 1
        return
    if share is None:
        _steer_unused(tables, out, cluster, node, event.how)
        return
    match event.how:
        case Steering.USE:
            _use(tables, out, share)
        case Steering.PAUSE:
            share.is_paused = True
        case Steering.CAP:
            share.is_paused = event.cpus <= 0
            if share.cpus and event.cpus > 0:
                share.cpus = event.cpus
                tell_limit(out, share)
        case Steering.CLOSE:
            cluster.declined[node.id] = None
            share.cpus, share.is_renewed = 0, False
            close_share(tables, out, share, "the user closed it for this cluster", terminate=event.terminate)
        case Steering.RENEW:
            _renew(tables, out, share, event.terminate)
        case _:
            assert_never(event.how)
    tables.reconsider(cluster)
    tables.refresh(node)


def widen(tables: Tables, event: ClusterWidened) -> None:
    """Jobs that no known node can run wait from now on for one that can."""
    cluster = tables.clusters.get(event.cluster)
    if cluster is None:
        tables.counters.ignored += 1
    else:
        cluster.is_open_ended, cluster.forsaken = True, ""


def narrow(tables: Tables, out: Outbox, event: ClusterNarrowed) -> None:
    """Jobs that no known node can ever run end, and with a cause also those for which there is no node at all."""
    cluster = tables.clusters.get(event.cluster)
    if cluster is None:
        tables.counters.ignored += 1
        return
    cluster.is_open_ended, cluster.named, cluster.forsaken = False, 0, event.cause
    end_hopeless(tables, out, cluster.queues)


def _steer_unused(tables: Tables, out: Outbox, cluster: ClusterRecord, node: NodeRecord, how: Steering) -> None:
    if how is Steering.USE:
        cluster.declined.pop(node.id, None)
        ask_allocation(out, cluster, node)
    else:
        cluster.declined[node.id] = None
        end_hopeless(tables, out, cluster.queues)


def _use(tables: Tables, out: Outbox, share: Share) -> None:
    cluster, node = share.cluster, share.node
    cluster.declined.pop(node.id, None)
    share.is_paused, share.is_needed = False, True
    if share.state is ShareState.PARKED:
        _open_parked(tables, out, share)
    elif share.state is ShareState.REFUSED:
        tables.deadlines.pop((cluster.id, node.id), None)
        if not share.cpus:  # it was closed while jobs still ran there: its owner says anew how much it wants
            share.cpus = node.info.cpus
            ask_allocation(out, cluster, node)
        share.state = ShareState.WANTED
        want(tables, out, share)
    elif not share.cpus:
        # it is being closed: when that is done its owner is asked as for a node that has just come
        share.cpus, share.is_renewed = node.info.cpus, True


def _open_parked(tables: Tables, out: Outbox, share: Share) -> None:
    del share.cluster.parked[share.node.id]
    share.state = ShareState.WANTED
    want(tables, out, share)


def _renew(tables: Tables, out: Outbox, share: Share, terminate: bool) -> None:
    if not share.cpus or share.state is ShareState.RENEWING:
        return
    share.is_needed = True
    if share.state is ShareState.PARKED:  # there is nothing of it there that could be cleaned up
        share.cluster.parked.pop(share.node.id)
        share.state = ShareState.WANTED
    if share.state in (ShareState.WANTED, ShareState.REFUSED) and not share.flight:
        tables.deadlines.pop((share.cluster.id, share.node.id), None)
        share.state = ShareState.RENEWING
        ask_allocation(out, share.cluster, share.node)
        ask_lease(tables, out, share.node)
        return
    share.is_renewed = True
    close_share(tables, out, share, "it is set up anew", terminate=terminate)
