"""Jobs on their way: submitted, handed to nodes, called back, cancelled, ended.

What becomes of nodes and computations is in `membership`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from dispy.errors import InvalidTransition
from dispy.model import ComputationId, Ending, HeldAttempt, JobDone, JobSpec, JobState, ProcessId
from dispy.scheduler.clusters import ClusterRecord, ClusterState
from dispy.scheduler.effects import JobEnded, JobsStarted
from dispy.scheduler.jobs import JobQueue, JobRecord
from dispy.scheduler.nodes import NodeRecord, Share, ShareState
from dispy.scheduler.policy import first_queue, how_many_to_recall, portion, whom_to_recall
from dispy.scheduler.tables import Outbox, Tables
from dispy.wire.messages import CancelJobs, JobsDone, RecallJobs, RunJobs

BATCH: Final = 512
"""Jobs in one message at most, so that the node works on the first while the next is encoded."""

SENTENCES: Final = {
    Ending.RAISED: "the function raised an exception",
    Ending.DIED: "its worker process died",
    Ending.INTERRUPTED: "interrupted while it ran",
    Ending.LIMITED: "a limit was exceeded",
    Ending.UNSENDABLE: "its result cannot be sent",
}


def submit(tables: Tables, out: Outbox, records: Sequence[JobRecord]) -> None:
    """Queue new jobs; those that can never run end at once."""
    jobs, cluster, queue = tables.jobs, None, None
    for record in records:
        if record.job in jobs:
            raise InvalidTransition(f"job {record.job} was submitted twice")
        if cluster is None or record.cluster != cluster.id:
            cluster, queue = tables.clusters.get(record.cluster), None
        if cluster is None or cluster.state is not ClusterState.OPEN:
            record.state = JobState.Cancelled
            tables.counters.ended += 1
            out.ended.append(JobEnded(record, JobState.Cancelled, cause="its cluster is closed"))
            continue
        if queue is None or record.options is not None or queue.node:
            queue = cluster.queue_for(record)
        jobs[record.job] = record
        cluster.jobs += 1
        queue.append(record)
        tables.runnable[queue] = None
    tables.counters.submitted += len(records)


def end_hopeless(tables: Tables, out: Outbox, queues: Iterable[JobQueue]) -> None:
    """End the jobs of queues when no node can ever run them; forget queues that are empty."""
    for queue in tuple(queues):
        if not queue.waiting:
            tables.runnable.pop(queue, None)
        elif cause := why_hopeless(tables, tables.clusters[queue.cluster], queue):
            end_queue(tables, out, queue, cause)


def end_queue(tables: Tables, out: Outbox, queue: JobQueue, cause: str) -> None:
    """Abandon all jobs that wait in a queue."""
    for record in [record for record in queue.jobs if record.state is JobState.Created]:
        tables.end(out, record, JobState.Abandoned, cause)
    tables.runnable.pop(queue, None)


def why_hopeless(tables: Tables, cluster: ClusterRecord, queue: JobQueue) -> str:
    """Why no node can ever run jobs of this queue; empty when one may."""
    if cluster.is_hopeless:
        refusals = "; ".join(f"{share.node.label}: {share.reason}" for share in cluster.shares.values())
        return f"every node refused it for good: {refusals}"
    if not queue.node:
        return ""
    node = tables.nodes.get(ProcessId(queue.node))
    if node is None:
        return f"the node that it asks for ({queue.node}) is not known, or was lost"
    if node.id in cluster.declined:
        return f"the cluster does not use node {node.label}, which it asks for"
    share = cluster.shares.get(node.id)
    if share is not None and share.state is ShareState.REFUSED and share.final:
        return f"node {node.label}, which it asks for, refused: {share.reason}"
    return ""


def dispatch(tables: Tables, out: Outbox) -> None:
    """Hand out every job that a node has room for, then call back what waits where others idle."""
    touched: dict[Share, None] = {}
    runnable = tables.runnable
    while runnable:
        queue, before_others = first_queue(runnable)
        cluster = tables.clusters[queue.cluster]
        found = _place(cluster, queue)
        if found is None:
            del runnable[queue]
            continue
        share, room = found
        count = portion(share, room, before_others, 1 if queue.node else len(cluster.rooms))
        _hand_over(queue, share, min(count, before_others))
        touched[share] = None
        if not queue.waiting:
            del runnable[queue]
    for share in touched:
        _send_batch(share, out)
    for node in {share.node.id: share.node for share in touched}.values():
        for share in node.shares.values():
            tables.weigh(share)
    if tables.restless:
        _recall(tables, out)


def _place(cluster: ClusterRecord, queue: JobQueue) -> tuple[Share, int] | None:
    if not queue.node:
        return cluster.rooms.best()
    share = cluster.shares.get(ProcessId(queue.node))
    if share is None:
        return None
    room, _ = share.standing()
    return (share, room) if room > 0 else None


def _hand_over(queue: JobQueue, share: Share, count: int) -> None:
    flight, batch, node, take = share.flight, share.batch, share.node.id, queue.take
    for _ in range(count):
        record = take()
        record.attempt += 1
        record.state = JobState.Running
        record.node = node
        flight[record.job] = record
        batch.append(record)


def _send_batch(share: Share, out: Outbox) -> None:
    batch, share.batch = share.batch, []
    for start in range(0, len(batch), BATCH):
        part = batch[start : start + BATCH]
        specs = [JobSpec(record.job, record.attempt, len(record.args), record.blob, record.options) for record in part]
        out.send(
            share.node,
            RunJobs(share.cluster.id, specs),
            [record.args for record in part if record.args],
        )
    out.notice(JobsStarted(share.node.id, batch))


def _recall(tables: Tables, out: Outbox) -> None:
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


def take_results(tables: Tables, out: Outbox, node: NodeRecord, message: JobsDone, bodies: Sequence[bytes]) -> None:
    """End the jobs whose attempts have ended; those that did not start wait again."""
    jobs, shares, id = tables.jobs, node.shares, node.id
    finished, ended = JobState.Finished, out.ended
    share: Share | None = None
    seconds, count, over = 0.0, 0, 0
    back: list[JobRecord] = []
    for done, body in zip(message.jobs, bodies, strict=True):
        record = jobs.get(done.job)
        if record is None or record.attempt != done.attempt or record.node != id:
            tables.counters.dropped += 1
            continue
        if share is None or share.cluster.id != record.cluster:
            _account(tables, share, seconds, count, over)
            share, seconds, count, over = shares[record.cluster], 0.0, 0, 0
        del share.flight[done.job]
        if done.started_at:
            seconds += done.ended_at - done.started_at
            count += 1
        if done.ending == 0:  # Ending.FINISHED: an enum member's lookup costs as much as this line
            record.state = finished
            del jobs[done.job]
            over += 1
            ended.append(JobEnded(record, finished, id, done, body))
        elif done.ending != Ending.NOT_STARTED:
            tables.end(out, record, JobState.Terminated, _sentence(done, body), done, body)
        elif record.cancelled:
            tables.end(out, record, JobState.Cancelled, "cancelled before it started", done, body)
        else:
            back.append(record)
    _account(tables, share, seconds, count, over)
    tables.requeue(back)
    node.is_spent = False
    tables.refresh(node)


def _account(tables: Tables, share: Share | None, seconds: float, count: int, over: int) -> None:
    if share is not None:
        share.cluster.jobs -= over
        tables.counters.ended += over
        if count:
            share.cluster.measure(seconds, count)


def _sentence(done: JobDone, body: bytes) -> str:
    """What people read first of a job that did not finish: for an exception its last line, else the first line."""
    start = done.result_size + done.stdout_size + done.stderr_size
    text = bytes(body[start : start + done.error_size]).decode("utf-8", "replace").strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return SENTENCES[Ending(done.ending)]
    return lines[-1] if done.ending == Ending.RAISED else lines[0]


def take_recalled(tables: Tables, out: Outbox, node: NodeRecord, attempts: Iterable[HeldAttempt]) -> None:
    """Queue jobs again that a node gave back; cancelled ones end."""
    wanted = node.recall[0] if node.recall is not None else None
    tables.end_recall(node)
    back: list[JobRecord] = []
    useful = False
    for held in attempts:
        record = tables.jobs.get(held.job)
        if record is None or record.attempt != held.attempt or record.node != node.id:
            tables.counters.ignored += 1
            continue
        del node.shares[record.cluster].flight[held.job]
        if record.cancelled:
            tables.end(out, record, JobState.Cancelled, "cancelled before it started")
            continue
        useful = useful or (record.cluster == wanted and not record.pinned)
        back.append(record)
    node.is_spent = not useful
    tables.requeue(back)
    tables.refresh(node)


def cancel(tables: Tables, out: Outbox, ids: Iterable[int], cause: str) -> None:
    """End jobs: at once those that wait; nodes are asked to end the others."""
    asked: dict[NodeRecord, list[int]] = {}
    for id in ids:
        record = tables.jobs.get(id)
        if record is None:
            continue
        if record.node is None:
            tables.end(out, record, JobState.Cancelled, cause)
        elif not record.cancelled:
            record.cancelled = True
            asked.setdefault(tables.nodes[record.node], []).append(id)
    for node, running in asked.items():
        # without a link it is told when it comes back and says what it holds
        if node.can_hear:
            out.send(node, CancelJobs(running))


def cancel_cluster(tables: Tables, out: Outbox, cluster: ComputationId) -> None:
    """End all jobs of a cluster that is being closed."""
    ids = [record.job for record in tables.jobs.values() if record.cluster == cluster]
    cancel(tables, out, ids, "cancelled: its cluster was closed")
