"""Where jobs with wishes can run: nodes that satisfy them, nodes that are kept free for them.

A job that needs more than is free anywhere claims a node: what comes after it in the order does not get the CPUs (or
memory, or GPUs) that it waits for, so that a stream of small jobs cannot keep it out. Claims are made anew in every
dispatch pass, in the order of the jobs; only nodes whose load fell since the pass before can be nearer than what was
claimed then.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heapreplace

from dispy.model import ProcessId
from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.jobs import PLAIN, JobQueue, Shape
from dispy.scheduler.nodes import NEARLY, NodeRecord, Share, ShareState
from dispy.scheduler.prospects import why_lacking
from dispy.words import counted, listed


def candidates(cluster: ClusterRecord, shape: Shape) -> Iterable[Share]:
    """Shares on which a job of this shape may run as far as its node is named."""
    if not shape.node:
        return cluster.shares.values()
    share = cluster.shares.get(ProcessId(shape.node))
    return () if share is None else (share,)


def cpus_on(share: Share, shape: Shape) -> int:
    """CPUs that a job of this shape occupies there."""
    return shape.cpus or share.slots


def why_unfit(share: Share, shape: Shape) -> str:
    """What the node lacks for this shape even when nothing else runs there; empty if nothing.

    A node that offers no CPU for the time being is not judged by its CPUs.
    """
    node = share.node
    if shape.without and node.id in shape.without:
        return f"has no room for what it needs{f' ({share.no_room})' if share.no_room else ''}"
    if reason := why_lacking(node.info, shape):
        return reason
    account = share.cluster.account
    if account.most_cpus and (cpus := cpus_on(share, shape)) > account.most_cpus:
        return f"would have {counted(cpus, 'CPU')} at work, and {account.label} may have {account.most_cpus} at once"
    if shape.cpus > share.slots and node.capacity:
        if not share.cpus:
            return "is not used by this cluster any more"
        if share.slots < node.capacity:
            return f"lets this cluster use {counted(share.slots, 'CPU')}, not {shape.cpus}"
        return f"has {counted(node.capacity, 'CPU')}, not {shape.cpus}"
    return ""


def may_run(share: Share, shape: Shape) -> bool:
    """Whether the node could run a job of this shape if nothing else ran there."""
    return shape.node in ("", share.node.id) and not why_unfit(share, shape)


def why_none_fits(cluster: ClusterRecord, shape: Shape) -> str:
    """Why no node that can come can ever run jobs of this shape; empty when one may.

    Jobs for which nodes had no room do not wait for nodes that nobody has named.
    """
    if shape == PLAIN or cluster.asked:
        return ""
    is_open_ended = cluster.is_open_ended and not shape.without
    if not shape.node and (is_open_ended or len(cluster.shares) + len(cluster.declined) < cluster.named):
        return ""
    reasons = []
    for share in candidates(cluster, shape):
        if share.state is ShareState.REFUSED and share.final:
            reasons.append(f"{share.node.label} refused: {share.reason}")
        elif reason := why_unfit(share, shape):
            reasons.append(f"{share.node.label} {reason}")
        else:
            return ""
    return f"no node can run it: {listed(reasons)}" if reasons else ""


def place(
    cluster: ClusterRecord, queue: JobQueue, among: Iterable[NodeRecord] | None = None
) -> tuple[Share, int] | None:
    """The least loaded share that takes jobs of this queue now, and how many; None when none does.

    `among` are the only nodes that may have room for jobs with wishes; None: any may.
    """
    if queue.is_plain:
        return cluster.rooms.best()
    return Choice(cluster, queue, among).best()


class Choice:
    """The shares on which jobs of a queue with wishes can go, the least loaded first, as long as loads only rise."""

    __slots__ = ("_heap", "_queue")

    def __init__(self, cluster: ClusterRecord, queue: JobQueue, among: Iterable[NodeRecord] | None = None) -> None:
        """`among` as for `place`."""
        self._queue = queue
        self._heap: list[tuple[float, int, Share]] = []
        for share in _candidates_among(cluster, queue.shape, among):
            room, load = _room(share, queue)
            if room > 0 and not why_unfit(share, queue.shape):
                self._heap.append((load, share.node.order, share))
        heapify(self._heap)

    def best(self) -> tuple[Share, int] | None:
        """The least loaded share and how many jobs it takes; None when none takes any."""
        heap = self._heap
        while heap:
            noted, order, share = heap[0]
            room, load = _room(share, self._queue)
            if room <= 0:
                heappop(heap)
            elif load > noted:
                heapreplace(heap, (load, order, share))
            else:
                return share, room
        return None


def _candidates_among(cluster: ClusterRecord, shape: Shape, among: Iterable[NodeRecord] | None) -> Iterable[Share]:
    if among is None:
        return candidates(cluster, shape)
    here = [share for node in among if (share := cluster.shares.get(node.id)) is not None]
    return [share for share in here if shape.node in ("", share.node.id)]


def _room(share: Share, queue: JobQueue) -> tuple[int, float]:
    if queue.is_heavy:
        return (1, share.node.load) if has_free(share, queue.shape) else (0, 0.0)
    return share.standing()


def has_free(share: Share, shape: Shape) -> bool:
    """Whether the node has free what a heavy job of this shape asks for, beside all claims."""
    if not share.is_usable:
        return False
    node = share.node
    cpus, claimed = cpus_on(share, shape), node.claimed
    return (
        share.load + cpus <= share.slots + NEARLY
        and node.load + claimed.cpus + cpus <= node.capacity + NEARLY
        and node.taken.memory + claimed.memory + shape.memory <= node.info.memory
        and node.taken.gpus + claimed.gpus + shape.gpus <= node.info.gpus
    )


def claim(cluster: ClusterRecord, queue: JobQueue, among: Iterable[NodeRecord] | None = None) -> NodeRecord | None:
    """Keep the node free for the first job of a queue where that can be soonest; None when it must wait for others.

    `among` are the nodes that may have become nearer since the last claim for the queue; None: there was none.
    """
    shape = queue.shape
    best = _nearest(cluster, shape, among)
    was = queue.claimed_at
    if among is not None and was is not None and (best is None or _nearness(best.node) > was):
        best = _nearest(cluster, shape, None)
    queue.claimed_at = None if best is None else _nearness(best.node)
    if best is None:
        return None
    best.node.claimed.add(cpus_on(best, shape), shape.memory, shape.gpus)
    return best.node


def _nearest(cluster: ClusterRecord, shape: Shape, among: Iterable[NodeRecord] | None) -> Share | None:
    best: Share | None = None
    for share in _candidates_among(cluster, shape, among):
        if not share.is_usable or why_unfit(share, shape):
            continue
        node = share.node
        claimed = node.claimed
        if (
            claimed.cpus + cpus_on(share, shape) <= node.capacity
            and claimed.memory + shape.memory <= node.info.memory
            and claimed.gpus + shape.gpus <= node.info.gpus
            and (best is None or _nearness(node) < _nearness(best.node))
        ):
            best = share
    return best


def _nearness(node: NodeRecord) -> tuple[float, int]:
    return node.load + node.claimed.cpus - node.capacity, node.order
