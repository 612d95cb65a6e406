"""The steps of handing out jobs, and calling back what waits where others idle. `turns` says whose job comes next."""

from __future__ import annotations

from typing import Final

from dispy.model import JobSpec, JobState
from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.effects import JobsStarted
from dispy.scheduler.jobs import JobQueue
from dispy.scheduler.nodes import NodeRecord, Share
from dispy.scheduler.placement import claim, cpus_on
from dispy.scheduler.policy import how_many_to_recall, whom_to_recall
from dispy.scheduler.tables import Outbox, Tables
from dispy.wire.messages import RecallJobs, RunJobs

BATCH: Final = 512
"""Jobs in one message at most, so that the node works on the first while the next is encoded."""


def block(tables: Tables, cluster: ClusterRecord, queue: JobQueue) -> NodeRecord | None:
    """Nothing is free for the first job of a queue of heavy ones: keep a node free for it if one can be."""
    tables.blocked[queue] = None
    node = claim(cluster, queue)
    if node is not None:
        tables.claims[node] = None
    return node


def hand_over(queue: JobQueue, share: Share, count: int, seconds: float) -> int:
    """Give the first jobs of a queue to a share, each charged `seconds` a CPU; they are sent when the pass is over.

    Returns:
        The CPUs that all of them have, or will have in their turn.
    """
    flight, node = share.flight, share.node.id
    records = queue.take(count)
    cpus, running = 1, JobState.Running
    if queue.is_heavy:
        cpus = cpus_on(share, queue.shape)
        for record in records:
            share.hold(record, cpus)
    charge = seconds * cpus
    for record in records:
        record.attempt += 1
        record.state = running
        record.node = node
        record.charge = charge
        flight[record.job] = record
    share.node.busy[share] = None
    share.batch += records
    return count * cpus


def send_batch(share: Share, out: Outbox) -> None:
    """Send what a share was given in this pass."""
    batch, share.batch = share.batch, []
    for start in range(0, len(batch), BATCH):
        part = batch[start : start + BATCH] if len(batch) > BATCH else batch
        specs = [JobSpec(record.job, record.attempt, len(record.args), record.blob, record.options) for record in part]
        out.send(
            share.node,
            RunJobs(share.cluster.id, specs),
            [record.args for record in part if record.args],
        )
    out.notice(JobsStarted(share.node.id, batch))


def recall(tables: Tables, out: Outbox) -> None:
    """Call back jobs that wait for a CPU where others of their cluster's are idle."""
    for cluster in [tables.clusters[id] for id in tables.restless if id in tables.clusters]:
        share = whom_to_recall(cluster.excesses.values())
        if share is None:
            continue
        idle = sum(share.idle for share in cluster.idlers.values()) - cluster.recalling
        while share is not None and idle > 0:
            count = how_many_to_recall(share.excess, idle)
            share.node.recall = (cluster.id, count)
            cluster.recalling += count
            idle -= count
            out.send(share.node, RecallJobs(count))
            share = whom_to_recall(cluster.excesses.values())
    tables.restless.clear()
