"""The steps of handing out jobs, and calling back what waits where others idle. `turns` says whose job comes next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dispy.model import JobSpec, JobState
from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.effects import JobsStarted
from dispy.scheduler.jobs import JobQueue, JobRecord
from dispy.scheduler.nodes import NEARLY, Load, NodeRecord, Share
from dispy.scheduler.placement import claim, cpus_on
from dispy.scheduler.policy import how_many_to_recall, whom_to_recall
from dispy.scheduler.tables import Outbox, Tables
from dispy.wire.messages import RecallJobs, RunJobs

_RUNNING: Final = JobState.Running
BATCH: Final = 512
"""Jobs in one message at most, so that the node works on the first while the next is encoded."""


def block(
    tables: Tables, cluster: ClusterRecord, queue: JobQueue, among: Iterable[NodeRecord] | None
) -> NodeRecord | None:
    """Nothing is free for the first job of a queue of heavy ones: keep a node free for it if one can be.

    `among` as for `claim`.
    """
    tables.blocked[queue] = None
    node = claim(cluster, queue, among)
    if node is not None:
        tables.claims[node] = None
    return node


def hand_over(queue: JobQueue, share: Share, count: int, seconds: float) -> tuple[list[JobRecord], int]:
    """Give the first jobs of a queue to a share, each charged `seconds` a CPU; `send_batch` is yet to send them.

    Returns:
        The jobs, and the CPUs that all of them have, or will have in their turn.
    """
    flight, node = share.flight, share.node.id
    records = queue.take(count)
    cpus = 1
    if queue.is_heavy:
        cpus = cpus_on(share, queue.shape)
        for record in records:
            share.hold(record, cpus)
    charge = seconds * cpus
    for record in records:
        record.attempt += 1
        record.state = _RUNNING
        record.node = node
        record.charge = charge
        flight[record.job] = record
    share.node.busy[share] = None
    return records, count * cpus


def send_batch(share: Share, batch: list[JobRecord], out: Outbox) -> None:
    """Send what a share was given in this pass."""
    for start in range(0, len(batch), BATCH):
        part = batch[start : start + BATCH] if len(batch) > BATCH else batch
        specs: list[JobSpec] = []
        payload: list[bytes] = []
        for record in part:
            args = record.args
            specs.append(JobSpec(record.job, record.attempt, len(args), record.blob, record.options))
            if args:
                payload.append(args)
        out.send(share.node, RunJobs(share.cluster.id, specs), payload)
    out.notice(JobsStarted(share.node.id, batch))


def note(tables: Tables, node: NodeRecord, load: Load) -> None:
    """Put right what is derived from the load of a node.

    Where its CPUs all have work, that is only what concerns clusters with jobs there.
    """
    cpus, wanted = load.cpus, load.wanted
    if load.vacancy > NEARLY:
        for share in node.shares.values():
            room, weight = share.standing(load)
            if room > 0:
                share.cluster.rooms.offer(share, weight)
    is_open = wanted < cpus and node.is_usable
    if tables.park_above:
        if node.is_idle and node.id in tables.nodes:
            tables.idle[node] = None
        else:
            tables.idle.pop(node, None)
    if is_open or node.is_open:
        for share in node.shares.values():
            tables.weigh(share, wanted)
    elif load.is_crowded or node.is_crowded:
        # nothing is idle here: what is left to know is what waits for a CPU
        for share in (*node.busy, *load.emptied):
            tables.weigh(share, wanted)
    node.is_open, node.is_crowded = is_open, load.is_crowded


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
