"""What becomes of what one cluster has of one node: allocated by its owner, opened, refused, closed.

The records are in `nodes`. How the node's lease is asked for is in `leases`, what happens to the node in `membership`.
"""

from __future__ import annotations

from typing import Final

from dispy.model import ComputationId, Holder
from dispy.scheduler.clusters import ClusterRecord, ClusterState
from dispy.scheduler.effects import AskAllocation, NodeClosed, NodeOffered, NodeOpened, NodeRefused
from dispy.scheduler.events import NodeAllocated
from dispy.scheduler.flow import end_hopeless
from dispy.scheduler.leases import ask_lease, release_if_unused
from dispy.scheduler.nodes import NodeRecord, Share, ShareState
from dispy.scheduler.tables import Outbox, Tables
from dispy.wire.messages import CloseComputation, ComputationRefused, OpenComputation

RETRY_INTERVAL: Final = 10.0
"""Seconds after which a node is asked again that refused a computation for the time being (a full disk, say)."""


def ask_allocation(out: Outbox, cluster: ClusterRecord, node: NodeRecord) -> None:
    """Ask the owner of a cluster that may still use nodes how much of this one it wants."""
    if cluster.wants_nodes:
        cluster.asked[node.id] = None
        out.notice(AskAllocation(cluster.id, node.id, node.info, node.address, node.avail))


def allocate(tables: Tables, out: Outbox, event: NodeAllocated) -> None:
    """The owner of a cluster says how many CPUs of a node it uses, for the first time or anew."""
    cluster, node = tables.clusters.get(event.cluster), tables.nodes.get(event.node)
    if cluster is None or node is None:
        tables.counters.ignored += 1
        return
    cluster.asked.pop(node.id, None)
    if event.cpus <= 0:
        cluster.declined[node.id] = None
        share = cluster.shares.get(node.id)
        if share is not None:
            share.cpus = 0
            close_share(tables, out, share, "the cluster does not use it any more")
            tables.refresh(node)
    else:
        _use(tables, out, cluster, node, event)
    end_hopeless(tables, out, cluster.queues)
    # also a share that is used may be one that the node has refused for good
    release_if_unused(tables, out, node)


def _use(tables: Tables, out: Outbox, cluster: ClusterRecord, node: NodeRecord, event: NodeAllocated) -> None:
    share = cluster.shares.get(node.id)
    cluster.declined.pop(node.id, None)
    if share is None:
        share = Share(cluster, node, event.cpus, event.files, event.setup_args, event.oversubscribe)
        cluster.shares[node.id] = node.shares[cluster.id] = share
    tables.reconsider(cluster)
    changed = (share.cpus, share.oversubscribe) != (event.cpus, event.oversubscribe)
    share.cpus, share.files, share.setup_args = event.cpus, event.files, event.setup_args
    share.oversubscribe = event.oversubscribe
    node.exceeds = node.exceeds or event.oversubscribe
    if changed:
        tell_limit(out, share)
    if share.state is ShareState.RENEWING:
        share.state = ShareState.WANTED
    want(tables, out, share)
    tables.refresh(node)
    if changed:
        tell_offer(out, node)


def tell_offer(out: Outbox, node: NodeRecord) -> None:
    """Tell the clusters that use a node how many CPUs it offers now."""
    for share in node.shares.values():
        if share.state is ShareState.READY:
            used = 0 if share.is_paused else share.slots
            out.notice(NodeOffered(share.cluster.id, node.id, node.info.cpus, used))


def tell_limit(out: Outbox, share: Share) -> None:
    """The cluster may use more or fewer CPUs of a node than before: a computation that is opened again takes that."""
    if share.state in (ShareState.OPENING, ShareState.READY) and share.node.can_hear:
        out.send(share.node, OpenComputation(share.spec, share.setup_args, share.limit, share.oversubscribe))


def want(tables: Tables, out: Outbox, share: Share) -> None:
    """Bring a share forward that waits for its node's lease."""
    node = share.node
    if share.state is not ShareState.WANTED:
        return
    if node.can_hear:
        open_or_park(tables, out, share)
    elif node.holder is not None:
        out.notice(NodeRefused(share.cluster.id, node.id, held_by(node.holder), holder=node.holder))
    else:
        ask_lease(tables, out, node)


def open_or_park(tables: Tables, out: Outbox, share: Share) -> None:
    """The node is ours and the computation not open there: `parking` says when it is to be."""
    if not tables.park_above or share.is_needed:
        open_share(out, share)
    else:
        share.state = ShareState.PARKED
        share.cluster.parked[share.node.id] = share
        tables.reconsider(share.cluster)


def open_share(out: Outbox, share: Share) -> None:
    """Have the node open the computation."""
    share.cluster.parked.pop(share.node.id, None)
    share.cluster.opened[share.node.id] = share
    share.state, share.step = ShareState.OPENING, ""
    out.send(share.node, OpenComputation(share.spec, share.setup_args, share.limit, share.oversubscribe))


def held_by(holder: Holder) -> str:
    """Who has a node, in words."""
    away = f": {holder.absence}" if holder.gone else ""
    return f"used by {holder.user}@{holder.host} ({holder.program}, process {holder.pid}){away}"


def computation_advanced(tables: Tables, node: NodeRecord, id: ComputationId, step: str, now: float) -> None:
    """The node says what it does to prepare it, or for its first job."""
    share = node.shares.get(id)
    if share is None or share.state not in (ShareState.OPENING, ShareState.READY):
        tables.counters.ignored += 1
        return
    share.step, share.step_at = step, now


def computation_ready(tables: Tables, out: Outbox, node: NodeRecord, id: ComputationId) -> None:
    """Files are there, setup (if there is one) has run: jobs of the cluster may go there.

    The node says so again when it has done what it does for the first job.
    """
    share = node.shares.get(id)
    if share is not None and share.state is ShareState.READY:
        share.step = ""
        return
    if share is None or share.state is not ShareState.OPENING:
        tables.counters.ignored += 1
        return
    share.step = ""
    share.state = ShareState.READY
    tables.reconsider(share.cluster)
    out.notice(NodeOpened(id, node.id))
    tables.refresh(node)


def computation_refused(tables: Tables, out: Outbox, node: NodeRecord, message: ComputationRefused, now: float) -> None:
    """The node cannot run the cluster's jobs, for good or for now."""
    share = node.shares.get(message.computation)
    if share is None or share.state not in (ShareState.OPENING, ShareState.READY):
        tables.counters.ignored += 1
        return
    share.state, share.reason, share.final = ShareState.REFUSED, message.reason, message.final
    share.trace, share.is_lost = message.trace, message.lost
    node.over[share] = None
    tables.reconsider(share.cluster)
    if not message.final:
        tables.deadlines[share.cluster.id, node.id] = now + RETRY_INTERVAL
    out.notice(NodeRefused(message.computation, node.id, message.reason, message.trace))
    tables.refresh(node)
    end_hopeless(tables, out, share.cluster.queues)
    release_if_unused(tables, out, node)


def try_again(tables: Tables, out: Outbox, share: Share) -> None:
    """Ask a node again that could not open a computation for a while."""
    if share.cpus:
        share.state, share.is_renewed = ShareState.WANTED, False
        want(tables, out, share)


def computation_closed(tables: Tables, out: Outbox, node: NodeRecord, id: ComputationId, trace: str = "") -> None:
    """The computation is gone from the node."""
    share = node.shares.get(id)
    if share is None or share.state is not ShareState.CLOSING:
        tables.counters.ignored += 1
        return
    share.state = ShareState.CLOSED
    node.over[share] = None
    renewing = share.is_renewed and share.cpus > 0 and share.cluster.wants_nodes
    out.notice(NodeClosed(id, node.id, share.reason, trace, renewing))
    settle_node(tables, out, node)


def settle_node(tables: Tables, out: Outbox, node: NodeRecord) -> None:
    """Let go of shares whose last job has come back, and of a lease that nobody needs."""
    for share in tuple(node.over):
        if share.state not in (ShareState.CLOSED, ShareState.REFUSED):
            del node.over[share]
            continue
        if share.flight:
            continue
        is_over = share.state is ShareState.CLOSED or share.is_renewed
        if is_over and share.cpus and share.cluster.wants_nodes:
            _open_again(tables, out, share)
        elif share.state is ShareState.CLOSED or not share.cpus:
            _drop_share(tables, out, share)
    release_if_unused(tables, out, node)


def _open_again(tables: Tables, out: Outbox, share: Share) -> None:
    share.reason, share.is_terminated = "", False
    if share.is_renewed:
        tables.deadlines.pop((share.cluster.id, share.node.id), None)
        share.state, share.is_renewed = ShareState.RENEWING, False
        ask_allocation(out, share.cluster, share.node)
    else:
        share.state = ShareState.WANTED
        want(tables, out, share)


def close_share(tables: Tables, out: Outbox, share: Share, cause: str, *, terminate: bool = False) -> None:
    """Close a computation on a node, whose jobs finish first or, with `terminate`, are ended."""
    if share.state is ShareState.RENEWING:
        out.notice(NodeClosed(share.cluster.id, share.node.id, cause))
    if share.state in (ShareState.WANTED, ShareState.PARKED, ShareState.REFUSED, ShareState.RENEWING):
        if not share.flight:
            _drop_share(tables, out, share)
        return
    terminate = terminate or share.cluster.state is ClusterState.TERMINATING
    again = share.state is ShareState.CLOSING and (share.is_terminated or not terminate)
    if again or share.state is ShareState.CLOSED:
        return
    if share.state is not ShareState.CLOSING:
        share.step_at = tables.now
    share.state, share.reason, share.is_terminated = ShareState.CLOSING, cause, terminate
    tables.reconsider(share.cluster)
    tables.refresh(share.node)
    if share.node.can_hear:
        out.send(share.node, CloseComputation(share.cluster.id, terminate))


def _drop_share(tables: Tables, out: Outbox, share: Share) -> None:
    tables.remove_share(share)
    end_hopeless(tables, out, share.cluster.queues)
    release_if_unused(tables, out, share.node)
