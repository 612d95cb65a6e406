"""What becomes of nodes: they join, grant their lease or refuse it, lose their link and get another, are lost.

What becomes of the jobs in between is in `flow`; dispatch follows every event, so nothing here hands out work.
"""

from __future__ import annotations

from typing import Final

from dispy.model import AvailInfo, ComputationId, Holder, JobState, NodeInfo
from dispy.scheduler.effects import JobRequeued, NodeClosed, NodeMeasured, NodeRefused, NodeVanished
from dispy.scheduler.events import NodeJoined
from dispy.scheduler.flow import end_hopeless, end_queue
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.leases import ask_lease, release_if_unused
from dispy.scheduler.nodes import NodeRecord, NodeState, Share, ShareState
from dispy.scheduler.shares import (
    ask_allocation,
    computation_closed,
    held_by,
    open_or_park,
    open_share,
    settle_node,
    tell_offer,
)
from dispy.scheduler.tables import Outbox, Tables
from dispy.wire.messages import CancelJobs, CloseComputation, LeaseGranted

POISONOUS: Final = 3
"""A job is not given to another node when so many were lost in a row while they ran it."""


def join(tables: Tables, out: Outbox, event: NodeJoined) -> None:
    """A node is here. One that is known already has a new link, whatever became of the old one."""
    known = tables.nodes.get(event.node)
    if known is not None:
        before = known.info.cpus
        known.info, known.address = event.info, event.address
        for cluster in tables.clusters.values() if known.is_restored else ():
            if known.id in cluster.asked:
                ask_allocation(out, cluster, known)
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
    for share in node.shares.values():
        tables.reconsider(share.cluster)
    tables.refresh(node)
    if info.cpus != before:
        tell_offer(out, node)


def measure(node: NodeRecord, out: Outbox, avail: AvailInfo) -> None:
    """The node says what is free on its machine."""
    node.avail = avail
    for share in node.shares.values():
        if share.state is ShareState.READY:
            out.notice(NodeMeasured(share.cluster.id, node.id, avail))


def lease_granted(tables: Tables, out: Outbox, node: NodeRecord, message: LeaseGranted) -> None:
    """The node is ours, or still ours: make its tables and these the same."""
    if node.state not in (NodeState.ASKED, NodeState.REFUSED):
        # an answer to an older question: what it lists may be out of date by now
        tables.counters.ignored += 1
        return
    node.state, node.holder, node.is_restored = NodeState.LEASED, None, False
    held = {(attempt.job, attempt.attempt) for attempt in message.held}
    cancelled: list[int] = []
    flying: set[int] = set()
    for share in node.shares.values():
        missing = [record for record in share.flight.values() if (record.job, record.attempt) not in held]
        _never_received(tables, out, share, missing)
        for job, record in share.flight.items():
            flying.add(job)
            if record.cancelled:
                cancelled.append(job)
    # a job has one number in all its attempts: an old result of one that is here again must not end it
    cancelled += sorted({job for job, _ in held} - flying)
    if cancelled:
        out.send(node, CancelJobs(cancelled))
    _forsake(tables, node, held)
    _match_computations(tables, out, node, set(message.computations))
    tables.refresh(node)
    settle_node(tables, out, node)


def _forsake(tables: Tables, node: NodeRecord, held: set[tuple[int, int]]) -> None:
    """A node that was lost is here again: its attempts are ended there and their results mean nothing any more."""
    for job, attempt in held:
        record = tables.jobs.get(job)
        if record is not None and record.astray and record.astray.get(attempt) == node.id:
            del record.astray[attempt]


def _never_received(tables: Tables, out: Outbox, share: Share, missing: list[JobRecord]) -> None:
    back = []
    for record in missing:
        del share.flight[record.job]
        tables.give_back(record)
        if record.cpus:
            share.release(record)
        if record.cancelled:
            tables.end(out, record, JobState.Cancelled, "cancelled before it started")
        else:
            record.attempt -= 1
            back.append(record)
    tables.requeue(out, back)


def _match_computations(tables: Tables, out: Outbox, node: NodeRecord, there: set[ComputationId]) -> None:
    for share in tuple(node.shares.values()):
        id = share.cluster.id
        if share.state is ShareState.CLOSING:
            out.send(node, CloseComputation(id, share.is_terminated))
        elif share.state in (ShareState.WANTED, ShareState.PARKED) and id not in there:
            open_or_park(tables, out, share)
        elif share.state in (ShareState.WANTED, ShareState.PARKED, ShareState.OPENING) or (
            share.state is ShareState.READY and id not in there
        ):
            # asked again even if it is opening there: the answer may have been lost with the link
            open_share(out, share)
    for id in sorted(there - node.shares.keys()):
        out.send(node, CloseComputation(id, terminate=True))


def lease_refused(tables: Tables, out: Outbox, node: NodeRecord, holder: Holder) -> None:
    """Somebody else has the node; what we may have had there is gone."""
    if node.state not in (NodeState.ASKED, NodeState.LEASED, NodeState.REFUSED):
        tables.counters.ignored += 1
        return
    node.state, node.holder, node.is_restored = NodeState.REFUSED, holder, False
    _lose_flights(tables, out, node, f"node {node.label} is {held_by(holder)}", died=False)
    for share in tuple(node.shares.values()):
        if share.state is ShareState.CLOSING:
            computation_closed(tables, out, node, share.cluster.id)
        elif share.state is ShareState.PARKED:
            share.state = ShareState.WANTED
            del share.cluster.parked[node.id]
        elif share.state in (ShareState.OPENING, ShareState.READY):
            share.state = ShareState.WANTED
            tables.reconsider(share.cluster)
            out.notice(NodeClosed(share.cluster.id, node.id, f"the node is {held_by(holder)}"))
    settle_node(tables, out, node)
    out.notice(NodeRefused(None, node.id, held_by(holder), holder=holder))
    tables.refresh(node)


def suspect(tables: Tables, node: NodeRecord, is_suspect: bool) -> None:
    """The node is silent, or speaks again."""
    node.is_suspect = is_suspect
    tables.refresh(node)


def break_link(tables: Tables, node: NodeRecord, since: float, *, is_silent: bool = False) -> None:
    """The link is gone without a goodbye: no new work, and some time to come back."""
    node.broken_until = tables.deadlines[node.id] = since + node.grace
    node.is_silent = is_silent
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
    tables.lost = f"node {node.label} was lost ({cause})"
    if any(share.is_in_use and share.cluster.id not in tables.closing for share in node.shares.values()):
        out.notice(NodeVanished(node.id, tables.lost, is_last=len(tables.nodes) == 1, cause=cause))
    _lose_flights(tables, out, node, tables.lost, died=True)
    del tables.nodes[node.id]
    tables.idle.pop(node, None)
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
            tables.give_back(record)
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
                record.astray = {**(record.astray or {}), record.attempt: node.id}
                out.notice(JobRequeued(record, node.id, cause))
                back.append(record)
        tables.counters.requeued += len(back)
        tables.requeue(out, back)
