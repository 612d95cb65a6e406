"""Jobs on their way: submitted, called back, cancelled, ended. `turns` hands them to nodes.

What becomes of nodes is in `membership`, of computations on them in `shares`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from msgspec import Struct

from dispy.errors import InvalidTransition
from dispy.model import ComputationId, Ending, HeldAttempt, JobDone, JobState, ProcessId
from dispy.scheduler.clusters import ClusterRecord, ClusterState
from dispy.scheduler.effects import JobEnded, JobRequeued, JobSpoke, ResultDropped
from dispy.scheduler.jobs import JobQueue, JobRecord, Shape
from dispy.scheduler.nodes import NodeRecord, Share, ShareState, traces_of
from dispy.scheduler.placement import why_none_fits
from dispy.scheduler.tables import Outbox, Tables
from dispy.wire.messages import CancelJobs, JobsDone
from dispy.words import counted, listed

_FINISHED: Final = JobState.Finished
ENDED_AT_ONCE: Final = 2048
"""Jobs without hope that end with one event: others are heard before the next portion."""
RETRIED: Final = frozenset({Ending.RAISED, Ending.DIED, Ending.LIMITED, Ending.UNSENDABLE, Ending.NO_ROOM})
"""Endings after which a job is tried again that has retries left."""

SENTENCES: Final = {
    Ending.RAISED: "the function raised an exception",
    Ending.DIED: "its worker process died",
    Ending.INTERRUPTED: "interrupted while it ran",
    Ending.LIMITED: "a limit was exceeded",
    Ending.UNSENDABLE: "its result cannot be sent",
    Ending.NO_ROOM: "the node has no room for what it needs",
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
        if queue is None or record.options is not None or not queue.is_plain:
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
            tables.forget_queue(queue)
            continue
        if queue in tables.ending:
            continue
        cluster, shape = tables.clusters[queue.cluster], queue.shape
        cause = why_hopeless(tables, cluster, shape)
        if cause and shape.without and not why_hopeless(tables, cluster, shape._replace(without=())):
            _try_everywhere(tables, out, queue)
        elif cause:
            end_queue(tables, out, queue, cause)


def _try_everywhere(tables: Tables, out: Outbox, queue: JobQueue) -> None:
    """The nodes are gone that might have had room: those that had none may have it by now, else the jobs end there."""
    records: list[JobRecord] = []
    while queue.waiting:
        records += queue.take(queue.top().waiting)
    tables.forget_queue(queue)
    for record in records:
        record.without = ()
    tables.requeue(out, records)


def end_queue(tables: Tables, out: Outbox, queue: JobQueue, cause: str) -> None:
    """Abandon the jobs that wait in a queue: so many at once, the others by `end_further`."""
    at_once = list(islice(queue, max(0, ENDED_AT_ONCE - len(out.ended))))
    for record in at_once:
        tables.end(out, record, JobState.Abandoned, cause)
    if queue.waiting:
        tables.ending[queue] = cause
    else:
        tables.forget_queue(queue)


def end_further(tables: Tables, out: Outbox) -> None:
    """Go on with queues whose jobs are being ended. If a node has come that can run those that are left, they run."""
    for queue, cause in list(tables.ending.items()):
        del tables.ending[queue]
        if why_hopeless(tables, tables.clusters[queue.cluster], queue.shape):
            end_queue(tables, out, queue, cause)


def why_hopeless(tables: Tables, cluster: ClusterRecord, shape: Shape) -> str:
    """Why no node can ever run jobs of this shape; empty when one may."""
    most = cluster.account.most_cpus
    if most and shape.cpus > most:
        return f"it asks for {counted(shape.cpus, 'CPU')}, and {cluster.account.label} may have {most} at once"
    if cluster.is_held and cluster.id in tables.closing:
        return ""  # it may have given nodes back until it is its turn
    if cluster.forsaken and not cluster.shares and not cluster.asked:
        return cluster.forsaken
    if cluster.is_hopeless:
        refusals = listed(f"{share.node.label}: {share.reason}" for share in cluster.shares.values())
        return f"every node refused it for good: {refusals}{traces_of(cluster.shares.values())}"
    if not shape.node:
        return why_none_fits(cluster, shape)
    node = tables.nodes.get(ProcessId(shape.node))
    if node is None:
        return f"the node that it asks for ({shape.node}) is not known, or was lost"
    if node.id in cluster.declined:
        return f"the cluster does not use node {node.label}, which it asks for"
    share = cluster.shares.get(node.id)
    if share is not None and share.state is ShareState.REFUSED and share.final:
        return f"node {node.label}, which it asks for, refused: {share.reason}{traces_of([share])}"
    return why_none_fits(cluster, shape)


def take_results(
    tables: Tables, out: Outbox, node: NodeRecord, message: JobsDone, bodies: Sequence[bytes | memoryview]
) -> dict[NodeRecord, None]:
    """End the jobs whose attempts have ended; those that did not start wait again.

    Returns:
        Every node that has fewer jobs now: this one, and those that worked again at a job of which a result returned.
    """
    jobs, shares, id = tables.jobs, node.shares, node.id
    finished, ended = _FINISHED, out.ended
    share: Share | None = None
    heavy: Tally | None = None
    seconds, count, over, freed, charged = 0.0, 0, 0, 0, 0.0
    back: list[JobRecord] = []
    touched: dict[NodeRecord, None] = {node: None}
    for done, body in zip(message.jobs, bodies, strict=True):
        record = jobs.get(done.job)
        if record is None or record.attempt != done.attempt or record.node != id:
            if record is not None and _has_returned(record, done, id):
                _end_returned(tables, out, node, record, done, body, touched)
            else:
                tables.counters.dropped += 1
                if record is None and done.ending == Ending.FINISHED:
                    out.notice(ResultDropped(id, done, body))
                    ended = out.ended
            continue
        if share is None or share.cluster.id != record.cluster:
            if share is not None:
                _account(tables, share, heavy, seconds, count, over, freed, charged)
            share, heavy = shares[record.cluster], None
            seconds, count, over, freed, charged = 0.0, 0, 0, 0, 0.0
        if done.ending == 7:  # Ending.PROVISIONAL, written as the next one
            out.notice(JobSpoke(record, id, body))
            ended = out.ended
            continue
        del share.flight[done.job]
        charged += record.charge
        if record.cpus:
            heavy = heavy or Tally()
            heavy.add(record.cpus, done)
            freed += record.cpus
            share.release(record)
        else:
            freed += 1
            if done.started_at:
                seconds += done.ended_at - done.started_at
                count += 1
        if done.ending == 0:  # Ending.FINISHED: an enum member's lookup costs as much as this line
            record.state = finished
            del jobs[done.job]
            over += 1
            ended.append(JobEnded(record, finished, id, done, body))
        elif done.ending == Ending.NO_ROOM and not record.cancelled and _goes_elsewhere(out, share, record, done, body):
            ended = out.ended
            back.append(record)
        elif done.ending in RETRIED and record.retries and not record.cancelled:
            _try_again(tables, out, node, record, _sentence(done, body))
            ended = out.ended
            back.append(record)
        elif done.ending != Ending.NOT_STARTED and not (done.ending == Ending.NO_ROOM and record.cancelled):
            tables.end(out, record, JobState.Terminated, _sentence(done, body), done, body)
        elif record.cancelled:
            tables.end(out, record, JobState.Cancelled, "cancelled before it started", done, body)
        else:
            back.append(record)
    if share is not None:
        _account(tables, share, heavy, seconds, count, over, freed, charged)
    if back:
        tables.requeue(out, back)
    node.is_spent = False
    for each in touched:
        if each not in tables.fresh:
            tables.refresh(each)
    return touched


def _goes_elsewhere(out: Outbox, share: Share, record: JobRecord, done: JobDone, body: bytes | memoryview) -> bool:
    """A node has no room for what a job needs: leave it out, if another may run it; else none is left out any more.

    The job's owner is told of the first such job of a node: there may be many, and none of them has started.
    """
    node, is_news, reason = share.node, not share.no_room, _sentence(done, body)
    share.no_room = reason
    record.without = tuple(sorted({*record.without, node.id}))
    if why_none_fits(share.cluster, record.shape):
        record.without = ()
        return False
    if is_news:
        text = f"{reason} (on node {node.label}; what has no room there runs elsewhere)"
        out.notice(JobRequeued(record, node.id, text))
    return True


def _has_returned(record: JobRecord, done: JobDone, node: ProcessId) -> bool:
    """Whether this is the result of an attempt whose node was lost, from the disk of that node.

    Only from another process: one that itself came back was told to end the attempt, which may show in its result.
    """
    lost_with = None if record.astray is None else record.astray.get(done.attempt)
    return lost_with is not None and lost_with != node and done.ending == Ending.FINISHED


def _end_returned(
    tables: Tables,
    out: Outbox,
    node: NodeRecord,
    record: JobRecord,
    done: JobDone,
    body: bytes | memoryview,
    touched: dict[NodeRecord, None],
) -> None:
    """End a job that waits again, or is at work again somewhere, with the result of an earlier attempt."""
    tables.counters.returned += 1
    if record.node is not None:
        again = tables.nodes[record.node]
        share = again.shares[record.cluster]
        del share.flight[record.job]
        tables.give_back(record)
        if record.cpus:
            share.release(record)
        touched[again] = None
        if again.can_hear and not record.cancelled:
            out.send(again, CancelJobs([record.job]))
    record.node = node.id
    tables.end(out, record, JobState.Finished, None, done, body)


def _try_again(tables: Tables, out: Outbox, node: NodeRecord, record: JobRecord, sentence: str) -> None:
    """An attempt has failed and the job may have another."""
    record.failures += 1
    record.losses = 0
    tables.counters.retried += 1
    left = record.retries
    text = f"{sentence} (on node {node.label}; {left or 'no'} more {'retry' if left == 1 else 'retries'} after this)"
    out.notice(JobRequeued(record, node.id, text))


class Tally(Struct):
    """What heavy jobs of one share took that have ended in a batch."""

    seconds: float = 0.0
    slot_seconds: float = 0.0
    count: int = 0

    def add(self, cpus: int, done: JobDone) -> None:
        """One that occupied so many CPUs has ended."""
        if done.started_at:
            took = done.ended_at - done.started_at
            self.seconds += took
            self.slot_seconds += took * cpus
            self.count += 1


def _account(
    tables: Tables,
    share: Share,
    heavy: Tally | None,
    seconds: float,
    count: int,
    over: int,
    freed: int,
    charged: float,
) -> None:
    """Take in what jobs of one share took that have ended: `count` light ones, and those of the tally.

    `over` of them have ended for good; together they had `freed` CPUs and were charged `charged`.
    """
    cluster, turns = share.cluster, tables.turns
    share.is_stuck = False
    cluster.jobs -= over
    tables.counters.ended += over
    if count:
        depth = cluster.depth
        cluster.measure(seconds, count)
        if cluster.depth >= 2 * depth:
            turns.deepened += 1
    if heavy is not None:
        cluster.reckon(seconds + heavy.seconds, count + heavy.count)
        seconds += heavy.slot_seconds
    elif count:
        cluster.reckon(seconds, count)
    cluster.account.used += seconds
    turns.correct(cluster, seconds - charged)
    turns.release(cluster, freed)
    tables.fresh[share.node] = share


def _sentence(done: JobDone, body: bytes | memoryview) -> str:
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
        share = node.shares[record.cluster]
        del share.flight[held.job]
        useful = useful or (
            record.cluster == wanted and not (record.pinned or record.without or record.cancelled or record.cpus)
        )
        tables.give_back(record)
        if record.cpus:
            share.release(record)
        if record.cancelled:
            tables.end(out, record, JobState.Cancelled, "cancelled before it started")
            continue
        back.append(record)
    node.is_spent = not useful
    tables.requeue(out, back)
    tables.refresh(node)


def cancel(tables: Tables, out: Outbox, ids: Iterable[int], cause: str) -> None:
    """End jobs: at once those that wait; nodes are asked to end the others."""
    asked: dict[NodeRecord, list[int]] = {}
    marked: list[JobRecord] = []
    for id in ids:
        record = tables.jobs.get(id)
        if record is None:
            continue
        if record.node is None:
            tables.end(out, record, JobState.Cancelled, cause)
        elif not record.cancelled:
            record.cancelled = True
            marked.append(record)
            asked.setdefault(tables.nodes[record.node], []).append(id)
    out.mark(marked)
    for node, running in asked.items():
        # without a link it is told when it comes back and says what it holds
        if node.can_hear:
            out.send(node, CancelJobs(running))


def cancel_cluster(tables: Tables, out: Outbox, cluster: ComputationId) -> None:
    """End all jobs of a cluster that is being closed."""
    ids = [record.job for record in tables.jobs.values() if record.cluster == cluster]
    cancel(tables, out, ids, "cancelled: its cluster was closed")
