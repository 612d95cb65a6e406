"""Nodes and clusters that come and go: allocation, lease, computation, breaks, losses, closing.

What becomes of the jobs in between is in `flow`; dispatch follows every event, so nothing here hands out work.
"""

from __future__ import annotations

from typing import Final

from dispy.errors import InvalidTransition
from dispy.model import AvailInfo, ComputationId, Holder, JobState, NodeInfo
from dispy.scheduler.clusters import ClusterRecord, ClusterState
from dispy.scheduler.effects import (
    AskAllocation,
    ClusterEnded,
    JobRequeued,
    NodeClosed,
    NodeMeasured,
    NodeOffered,
    NodeOpened,
    NodeRefused,
)
from dispy.scheduler.events import ClusterClosing, ClusterOpened, NodeAllocated, NodeJoined
from dispy.scheduler.flow import cancel_cluster, end_hopeless, end_queue
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.nodes import NodeRecord, NodeState, Share, ShareState
from dispy.scheduler.placement import may_run
from dispy.scheduler.tables import Outbox, Tables
from dispy.wire.messages import (
    AskLease,
    CancelJobs,
    CloseComputation,
    ComputationRefused,
    LeaseGranted,
    OpenComputation,
    ReleaseLease,
)

RETRY_INTERVAL: Final = 10.0
"""Seconds after which a node is asked again that refused a computation for the time being (a full disk, say)."""

POISONOUS: Final = 3
"""A job is not given to another node when so many were lost in a row while they ran it."""


def open_cluster(tables: Tables, out: Outbox, event: ClusterOpened) -> None:
    """A client made a cluster: its owner says of every known node how much it wants."""
    id = event.computation.id
    if id in tables.clusters:
        raise InvalidTransition(f"cluster {id} was opened twice")
    cluster = ClusterRecord(event.computation, event.reentrant, event.open_ended, tables.ahead, event.named)
    tables.clusters[id] = cluster
    for node in tables.nodes.values():
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
            del tables.clusters[id], tables.closing[id]
            tables.restless.pop(id, None)
            out.notice(ClusterEnded(id))
            for node_id in cluster.asked:
                if (node := tables.nodes.get(node_id)) is not None:
                    release_if_unused(tables, out, node)


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
        idle = share.state in (ShareState.READY, ShareState.REFUSED) and not share.flight
        if idle and not any(may_run(share, shape) for shape in waiting) and not _may_return_to(share):
            cluster.declined[share.node.id] = None
            share.cpus = 0
            close_share(tables, out, share, "it can run none of the jobs that are left")


def _may_return_to(share: Share) -> bool:
    """Whether a job that is at a node now could be run here, should that one be lost."""
    flights = [other.flight for other in share.cluster.shares.values()]
    return any(may_run(share, record.shape) for flight in flights for record in flight.values())


def ask_allocation(out: Outbox, cluster: ClusterRecord, node: NodeRecord) -> None:
    """Ask the owner of a cluster that may still use nodes how much of this one it wants."""
    if cluster.wants_nodes:
        cluster.asked[node.id] = None
        out.notice(AskAllocation(cluster.id, node.id, node.info, node.address, node.avail))


def join(tables: Tables, out: Outbox, event: NodeJoined) -> None:
    """A node is here. One that is known already has a new link, whatever became of the old one."""
    known = tables.nodes.get(event.node)
    if known is not None:
        before = known.info.cpus
        known.info, known.address = event.info, event.address
        resume(tables, out, known)
        if before != known.info.cpus:
            tell_offer(out, known)
        return
    tables.joins += 1
    node = NodeRecord(event.node, event.info, event.address, tables.joins)
    tables.nodes[node.id] = node
    for cluster in tables.clusters.values():
        ask_allocation(out, cluster, node)
    release_if_unused(tables, out, node)


def describe(tables: Tables, out: Outbox, node: NodeRecord, info: NodeInfo) -> None:
    """The node says that it has changed. Of more CPUs every owner is asked anew how many it wants."""
    before, node.info = node.info.cpus, info
    if info.cpus > before:
        for cluster in tables.clusters.values():
            ask_allocation(out, cluster, node)
    tables.refresh(node)
    if info.cpus != before:
        tell_offer(out, node)
    for share in node.shares.values():
        end_hopeless(tables, out, share.cluster.queues)


def tell_offer(out: Outbox, node: NodeRecord) -> None:
    """Tell the clusters that use a node how many CPUs it offers now."""
    for share in node.shares.values():
        if share.state is ShareState.READY:
            used = 0 if share.is_paused else share.slots
            out.notice(NodeOffered(share.cluster.id, node.id, node.info.cpus, used))


def measure(node: NodeRecord, out: Outbox, avail: AvailInfo) -> None:
    """The node says what is free on its machine."""
    node.avail = avail
    for share in node.shares.values():
        if share.state is ShareState.READY:
            out.notice(NodeMeasured(share.cluster.id, node.id, avail))


def allocate(tables: Tables, out: Outbox, event: NodeAllocated) -> None:
    """The owner of a cluster says how many CPUs of a node it uses, for the first time or anew."""
    cluster, node = tables.clusters.get(event.cluster), tables.nodes.get(event.node)
    if cluster is None or node is None:
        tables.counters.ignored += 1
        return
    cluster.asked.pop(node.id, None)
    share = cluster.shares.get(node.id)
    if event.cpus <= 0:
        cluster.declined[node.id] = None
        if share is not None:
            share.cpus = 0
            close_share(tables, out, share, "the cluster does not use it any more")
            tables.refresh(node)
        end_hopeless(tables, out, cluster.queues)
        release_if_unused(tables, out, node)
        return
    cluster.declined.pop(node.id, None)
    if share is None:
        share = Share(cluster, node, event.cpus, event.files, event.setup_args, event.oversubscribe)
        cluster.shares[node.id] = node.shares[cluster.id] = share
    changed = (share.cpus, share.oversubscribe) != (event.cpus, event.oversubscribe)
    share.cpus, share.files, share.setup_args = event.cpus, event.files, event.setup_args
    share.oversubscribe = event.oversubscribe
    if changed:
        tell_limit(out, share)
    if share.state is ShareState.RENEWING:
        share.state = ShareState.WANTED
    want(tables, out, share)
    tables.refresh(node)
    if changed:
        tell_offer(out, node)
    end_hopeless(tables, out, cluster.queues)


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
        _open(out, share)
    elif node.state is NodeState.REFUSED and node.holder is not None:
        out.notice(NodeRefused(share.cluster.id, node.id, _held_by(node.holder), holder=node.holder))
    else:
        ask_lease(tables, out, node)


def ask_lease(tables: Tables, out: Outbox, node: NodeRecord) -> None:
    """Ask for the node's lease unless that has been done or nobody wants it."""
    if node.state in (NodeState.JOINED, NodeState.FREE) and node.broken_until is None and node.is_wanted:
        node.state = NodeState.ASKED
        out.send(node, AskLease(tables.token, tables.holder))


def _open(out: Outbox, share: Share) -> None:
    share.state, share.step = ShareState.OPENING, ""
    out.send(share.node, OpenComputation(share.spec, share.setup_args, share.limit, share.oversubscribe))


def lease_granted(tables: Tables, out: Outbox, node: NodeRecord, message: LeaseGranted) -> None:
    """The node is ours, or still ours: make its tables and these the same."""
    if node.state not in (NodeState.ASKED, NodeState.REFUSED):
        # an answer to an older question: what it lists may be out of date by now
        tables.counters.ignored += 1
        return
    node.state, node.holder = NodeState.LEASED, None
    held = {(attempt.job, attempt.attempt) for attempt in message.held}
    cancelled: list[int] = []
    flying: set[int] = set()
    for share in node.shares.values():
        missing = [record for record in share.flight.values() if (record.job, record.attempt) not in held]
        _never_received(tables, out, share, missing)
        for job, record in share.flight.items():
            held.remove((job, record.attempt))
            flying.add(job)
            if record.cancelled:
                cancelled.append(job)
    # a job has one number in all its attempts: an old result of one that is here again must not end it
    cancelled += sorted({job for job, _ in held} - flying)
    if cancelled:
        out.send(node, CancelJobs(cancelled))
    _match_computations(out, node, set(message.computations))
    tables.refresh(node)
    release_if_unused(tables, out, node)


def _never_received(tables: Tables, out: Outbox, share: Share, missing: list[JobRecord]) -> None:
    back = []
    for record in missing:
        del share.flight[record.job]
        if record.cpus:
            share.release(record)
        if record.cancelled:
            tables.end(out, record, JobState.Cancelled, "cancelled before it started")
        else:
            record.attempt -= 1
            back.append(record)
    tables.requeue(back)


def _match_computations(out: Outbox, node: NodeRecord, there: set[ComputationId]) -> None:
    for share in tuple(node.shares.values()):
        id = share.cluster.id
        if share.state is ShareState.CLOSING:
            out.send(node, CloseComputation(id, share.is_terminated))
        elif share.state in (ShareState.WANTED, ShareState.OPENING) or (
            share.state is ShareState.READY and id not in there
        ):
            # asked again even if it is opening there: the answer may have been lost with the link
            _open(out, share)
    for id in sorted(there - node.shares.keys()):
        out.send(node, CloseComputation(id, terminate=True))


def lease_refused(tables: Tables, out: Outbox, node: NodeRecord, holder: Holder) -> None:
    """Somebody else has the node; what we may have had there is gone."""
    if node.state not in (NodeState.ASKED, NodeState.LEASED, NodeState.REFUSED):
        tables.counters.ignored += 1
        return
    node.state, node.holder = NodeState.REFUSED, holder
    _lose_flights(tables, out, node, f"node {node.label} is {_held_by(holder)}", died=False)
    for share in tuple(node.shares.values()):
        if share.state is ShareState.CLOSING:
            computation_closed(tables, out, node, share.cluster.id)
        elif share.state in (ShareState.OPENING, ShareState.READY):
            share.state = ShareState.WANTED
            out.notice(NodeClosed(share.cluster.id, node.id, f"the node is {_held_by(holder)}"))
    settle_node(tables, out, node)
    out.notice(NodeRefused(None, node.id, _held_by(holder), holder=holder))
    tables.refresh(node)


def _held_by(holder: Holder) -> str:
    return f"used by {holder.user}@{holder.host} ({holder.program}, process {holder.pid})"


def computation_advanced(tables: Tables, node: NodeRecord, id: ComputationId, step: str, now: float) -> None:
    """The node says what it does to prepare it."""
    share = node.shares.get(id)
    if share is None or share.state is not ShareState.OPENING:
        tables.counters.ignored += 1
        return
    share.step, share.step_at = step, now


def computation_ready(tables: Tables, out: Outbox, node: NodeRecord, id: ComputationId) -> None:
    """Setup has run: jobs of the cluster may go there."""
    share = node.shares.get(id)
    if share is None or share.state is not ShareState.OPENING:
        tables.counters.ignored += 1
        return
    share.state = ShareState.READY
    out.notice(NodeOpened(id, node.id))
    tables.refresh(node)


def computation_refused(tables: Tables, out: Outbox, node: NodeRecord, message: ComputationRefused, now: float) -> None:
    """The node cannot run the cluster's jobs, for good or for now."""
    share = node.shares.get(message.computation)
    if share is None or share.state not in (ShareState.OPENING, ShareState.READY):
        tables.counters.ignored += 1
        return
    share.state, share.reason, share.final = ShareState.REFUSED, message.reason, message.final
    share.trace = message.trace
    if not message.final:
        tables.deadlines[share.cluster.id, node.id] = now + RETRY_INTERVAL
    out.notice(NodeRefused(message.computation, node.id, message.reason, message.trace))
    tables.refresh(node)
    end_hopeless(tables, out, share.cluster.queues)
    release_if_unused(tables, out, node)


def try_again(tables: Tables, out: Outbox, share: Share) -> None:
    """Ask a node again that could not open a computation for a while."""
    if share.cpus:
        share.state = ShareState.WANTED
        want(tables, out, share)


def computation_closed(tables: Tables, out: Outbox, node: NodeRecord, id: ComputationId, trace: str = "") -> None:
    """The computation is gone from the node."""
    share = node.shares.get(id)
    if share is None or share.state is not ShareState.CLOSING:
        tables.counters.ignored += 1
        return
    share.state = ShareState.CLOSED
    renewing = share.is_renewed and share.cpus > 0 and share.cluster.wants_nodes
    out.notice(NodeClosed(id, node.id, share.reason, trace, renewing))
    settle_node(tables, out, node)


def settle_node(tables: Tables, out: Outbox, node: NodeRecord) -> None:
    """Let go of shares whose last job has come back, and of a lease that nobody needs."""
    for share in tuple(node.shares.values()):
        if share.flight or share.state not in (ShareState.CLOSED, ShareState.REFUSED):
            continue
        if share.state is ShareState.CLOSED and share.cpus and share.cluster.wants_nodes:
            _open_again(tables, out, share)
        elif share.state is ShareState.CLOSED or not share.cpus:
            _drop_share(tables, out, share)
    release_if_unused(tables, out, node)


def _open_again(tables: Tables, out: Outbox, share: Share) -> None:
    share.reason, share.is_terminated = "", False
    if share.is_renewed:
        share.state, share.is_renewed = ShareState.RENEWING, False
        ask_allocation(out, share.cluster, share.node)
    else:
        share.state = ShareState.WANTED
        want(tables, out, share)


def close_share(tables: Tables, out: Outbox, share: Share, cause: str, *, terminate: bool = False) -> None:
    """Close a computation on a node, whose jobs finish first or, with `terminate`, are ended."""
    if share.state is ShareState.RENEWING:
        out.notice(NodeClosed(share.cluster.id, share.node.id, cause))
    if share.state in (ShareState.WANTED, ShareState.REFUSED, ShareState.RENEWING):
        if not share.flight:
            _drop_share(tables, out, share)
        return
    terminate = terminate or share.cluster.state is ClusterState.TERMINATING
    again = share.state is ShareState.CLOSING and (share.is_terminated or not terminate)
    if again or share.state is ShareState.CLOSED:
        return
    share.state, share.reason, share.is_terminated = ShareState.CLOSING, cause, terminate
    tables.refresh(share.node)
    if share.node.can_hear:
        out.send(share.node, CloseComputation(share.cluster.id, terminate))


def _drop_share(tables: Tables, out: Outbox, share: Share) -> None:
    tables.remove_share(share)
    end_hopeless(tables, out, share.cluster.queues)
    release_if_unused(tables, out, share.node)


def release_if_unused(tables: Tables, out: Outbox, node: NodeRecord) -> None:
    """Give up a lease, or a place in the line, that no cluster needs.

    A node that has just joined is released too: it may hold a lease of ours from before it was lost.
    """
    if node.id not in tables.nodes or node.state is NodeState.FREE or node.is_wanted:
        return
    if any(node.id in cluster.asked for cluster in tables.clusters.values()):
        return
    if node.broken_until is None:
        node.state, node.holder = NodeState.FREE, None
        tables.end_recall(node)
        out.send(node, ReleaseLease())


def suspect(tables: Tables, node: NodeRecord, is_suspect: bool) -> None:
    """The node is silent, or speaks again."""
    node.is_suspect = is_suspect
    tables.refresh(node)


def break_link(tables: Tables, node: NodeRecord, since: float) -> None:
    """The link is gone without a goodbye: no new work, and some time to come back."""
    node.broken_until = tables.deadlines[node.id] = since + tables.grace
    tables.end_recall(node)
    tables.refresh(node)


def resume(tables: Tables, out: Outbox, node: NodeRecord) -> None:
    """A new link to the same process: it says what it holds when it is asked for its lease."""
    node.broken_until, node.is_suspect, node.is_spent = None, False, False
    tables.deadlines.pop(node.id, None)
    tables.end_recall(node)
    # what was last said may have been lost: also a release
    node.state, node.holder = NodeState.JOINED, None
    tables.refresh(node)
    ask_lease(tables, out, node)
    release_if_unused(tables, out, node)


def lose_node(tables: Tables, out: Outbox, node: NodeRecord, cause: str) -> None:
    """The node is gone for good, and whatever it had with it."""
    tables.end_recall(node)
    tables.deadlines.pop(node.id, None)
    node.state = NodeState.FREE
    _lose_flights(tables, out, node, f"node {node.label} was lost ({cause})", died=True)
    del tables.nodes[node.id]
    tables.claims.pop(node, None)
    clusters = list(tables.clusters.values())
    for share in tuple(node.shares.values()):
        tables.remove_share(share)
        out.notice(NodeClosed(share.cluster.id, node.id, f"the node was lost ({cause})"))
    for cluster in clusters:
        cluster.asked.pop(node.id, None)
        cluster.declined.pop(node.id, None)
        for queue in [queue for queue in cluster.special.values() if queue.shape.node == node.id]:
            end_queue(tables, out, queue, f"node {node.label}, which it asks for, was lost ({cause})")
        end_hopeless(tables, out, cluster.queues)


def _lose_flights(tables: Tables, out: Outbox, node: NodeRecord, cause: str, *, died: bool) -> None:
    for share in tuple(node.shares.values()):
        lost, share.flight = share.flight, {}
        back = []
        for place, record in enumerate(lost.values()):
            if record.cpus:
                share.release(record)
            # those behind had hardly started: they did not kill it
            if died and place < share.slots:
                record.losses += 1
            if record.cancelled or not (share.cluster.is_reentrant or record.retries):
                tables.end(out, record, JobState.Abandoned, f"{cause} and the job may have started")
            elif record.losses >= POISONOUS:
                text = f"{cause}, the last of {record.losses} nodes in a row that were lost while they ran it"
                tables.end(out, record, JobState.Terminated, f"{text}; it is not given to another")
            else:
                if not share.cluster.is_reentrant:
                    record.failures += 1
                out.notice(JobRequeued(record, node.id, cause))
                back.append(record)
        tables.counters.requeued += len(back)
        tables.requeue(back)
