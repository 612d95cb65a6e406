"""A scheduler that goes on where the process before it was killed: its tables made anew from what that one had stored.

Afterwards everything takes its usual course: a link to a node resumes, its lease is asked for with the same token, and
the node says what it holds; or it is lost.
"""

from __future__ import annotations

from dispy.errors import InvalidTransition
from dispy.model import JobState
from dispy.scheduler.closing import open_cluster
from dispy.scheduler.clusters import ClusterState
from dispy.scheduler.events import Restored
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.nodes import NodeRecord, Share, ShareState
from dispy.scheduler.tables import Outbox, Tables


def restore(tables: Tables, out: Outbox, event: Restored, now: float) -> None:
    """Take all of it in.

    Raises:
        InvalidTransition: something has happened here before.
    """
    if tables.clusters or tables.nodes:
        raise InvalidTransition("a scheduler can only be restored before anything else happens")
    for cluster in event.clusters:
        open_cluster(tables, out, cluster.opened)
        record = tables.clusters[cluster.opened.computation.id]
        record.state, record.forsaken = cluster.state, cluster.forsaken
        if cluster.state is not ClusterState.OPEN:
            tables.closing[record.id] = None
    for node in event.nodes:
        tables.joins += 1
        back = NodeRecord(node.node, node.info, node.address, tables.joins, is_restored=True)
        back.broken_until = tables.deadlines[back.id] = now + event.grace
        tables.nodes[back.id] = back
    _restore_shares(tables, event)
    for job in event.jobs:
        _restore_job(tables, job)
    tables.counters.submitted += len(event.jobs)
    for cluster_record in tables.clusters.values():
        for queue in cluster_record.queues:
            tables.runnable[queue] = None
        for known in tables.nodes.values():
            if known.id not in cluster_record.shares and known.id not in cluster_record.declined:
                cluster_record.asked[known.id] = None  # its owner is asked when the node is here again
    for known in tables.nodes.values():
        tables.refresh(known)


def _restore_shares(tables: Tables, event: Restored) -> None:
    for was in event.shares:
        cluster, node = tables.clusters.get(was.cluster), tables.nodes.get(was.node)
        if cluster is None or node is None:
            continue
        if was.cpus <= 0:
            cluster.declined[node.id] = None
            continue
        share = Share(cluster, node, was.cpus, was.files, was.setup_args, was.oversubscribe)
        share.is_paused = was.is_paused
        cluster.shares[node.id] = node.shares[cluster.id] = share


def _restore_job(tables: Tables, record: JobRecord) -> None:
    cluster = tables.clusters[record.cluster]
    tables.jobs[record.job] = record
    cluster.jobs += 1
    if record.node is None:
        cluster.queue_for(record).append(record)
        return
    node = tables.nodes[record.node]
    share = cluster.shares.get(node.id)
    if share is None:
        # it was being closed: what is there may finish
        share = Share(cluster, node, 0, state=ShareState.CLOSING, reason="the user closed it for this cluster")
        cluster.shares[node.id] = node.shares[cluster.id] = share
    if share.state is ShareState.WANTED:
        cluster.opened[node.id] = share
        share.state = ShareState.OPENING  # it was open: with the lease it is said again, and the node says so as well
    record.state = JobState.Running
    record.cancelled = record.cancelled or cluster.state is ClusterState.TERMINATING
    share.flight[record.job] = record
    node.busy[share] = None
    if record.cpus:
        share.hold(record, record.cpus)
    if cluster.is_exclusive:
        tables.alone = cluster.id
    cpus = record.cpus or 1
    record.charge, record.seen_at = cluster.estimate * cpus, 0.0
    tables.turns.charge(tables.turns.party_of(cluster), cpus, cluster.estimate)
