"""Where jobs with wishes can run: nodes that satisfy them, nodes that are kept free for them.

A job that needs more than is free anywhere claims a node: what comes after it in the order does not get the CPUs (or
memory, or GPUs) that it waits for, so that a stream of small jobs cannot keep it out. Claims are made anew in every
dispatch pass, in the order of the jobs.
"""

from __future__ import annotations

from collections.abc import Iterable

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
    shares = candidates(cluster, queue.shape)
    if among is not None:
        here = [share for node in among if (share := cluster.shares.get(node.id)) is not None]
        shares = [share for share in here if queue.shape.node in ("", share.node.id)]
    best: tuple[float, int] | None = None
    found: tuple[Share, int] | None = None
    for share in shares:
        room, load = _room(share, queue)
        if room > 0 and (best is None or (load, share.node.order) < best) and not why_unfit(share, queue.shape):
            best, found = (load, share.node.order), (share, room)
    return found


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


def claim(cluster: ClusterRecord, queue: JobQueue) -> NodeRecord | None:
    """Keep the node free for the first job of a queue where that can be soonest; None when it must wait for others."""
    shape = queue.shape
    best: Share | None = None
    for share in candidates(cluster, shape):
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
    if best is None:
        return None
    best.node.claimed.add(cpus_on(best, shape), shape.memory, shape.gpus)
    return best.node


def _nearness(node: NodeRecord) -> tuple[float, int]:
    return node.load + node.claimed.cpus - node.capacity, node.order
