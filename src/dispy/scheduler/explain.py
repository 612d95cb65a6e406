"""Why a job is where it is, and why a cluster waits, in one sentence, from the tables alone."""

from __future__ import annotations

from typing import Final

from dispy.model import SHARED_SCHEDULER, ComputationId, ProcessId
from dispy.scheduler.admission import clusters_before
from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.fairness import Policy
from dispy.scheduler.jobs import JobQueue, JobRecord, Shape
from dispy.scheduler.nodes import NodeRecord, NodeState, Share, ShareState, traces_of
from dispy.scheduler.placement import candidates, why_unfit
from dispy.scheduler.prospects import joined, used_by, why_closed, wishes
from dispy.scheduler.tables import Tables
from dispy.wire.pool import NodeStanding
from dispy.words import counted, listed

LOOKED_AT: Final = 2_000
"""Clusters times nodes that are looked at to say why jobs wait; the loop does nothing else meanwhile."""

_SHARED: Final = (
    "a shared scheduler keeps a node while clusters are open there; a SharedJobCluster need not wait for it"
)


def explain_job(tables: Tables, job: int) -> str:
    """Why this job is where it is."""
    record = tables.jobs.get(job)
    if record is None:
        return f"Job {job} has ended, or has not been submitted yet."
    if record.node is not None:
        return _in_flight(tables, record)
    cluster = tables.clusters[record.cluster]
    if record.pinned:
        node = tables.nodes.get(ProcessId(record.pinned))
        where = f"Job {job} may only run on node {node.label if node else record.pinned}"
        share = cluster.shares.get(node.id) if node is not None else None
        if share is None:
            return f"{where}, and the cluster's program has not said yet how much it uses of it."
        return f"{where}, which {why_unfit(share, record.shape) or _why_not(share, tables.now)}.{traces_of([share])}"
    if held := _why_held_up(tables, cluster, record.shape):
        return f"Job {job} waits{_for_what(record.shape)}: {held}."
    why = _why_shape_waits(tables, cluster, record.shape)
    unfit = [why_unfit(share, record.shape) for share in candidates(cluster, record.shape)]
    is_hopeless = bool(unfit) and all(unfit)  # then others do not keep it waiting
    before = 0 if is_hopeless else sum(queue.before(record) for queue in cluster.queues)
    line = f" It waits behind {before} other{'s' if before > 1 else ''} of its cluster." if before else ""
    return f"Job {job} waits{_for_what(record.shape)}: {why}.{line}{traces_of(cluster.shares.values())}"


def lacks_nodes(tables: Tables, job: int) -> bool:
    """Whether it is for want of nodes that this job waits: then it matters which were looked for and which refused."""
    record = tables.jobs.get(job)
    if record is None or record.node is not None:
        return False
    cluster, shape = tables.clusters[record.cluster], record.shape
    could = any(share.is_usable and not why_unfit(share, shape) for share in candidates(cluster, shape))
    return not could and not _why_held_up(tables, cluster, shape)


def standings(tables: Tables, id: ComputationId) -> list[NodeStanding]:
    """Every node that a cluster wants to use."""
    cluster = tables.clusters.get(id)
    return [] if cluster is None else [_standing(share, tables.now) for share in cluster.shares.values()]


def _standing(share: Share, now: float) -> NodeStanding:
    node = share.node
    problem = "" if share.is_usable else _why_not(share, now)
    return NodeStanding(node.id, node.info.name, node.address, share.cpus, len(share.flight), problem)


def explain_cluster(tables: Tables, id: ComputationId) -> str:
    """Why jobs of this cluster wait; empty when none does."""
    cluster = tables.clusters.get(id)
    if cluster is None:
        return ""
    return " ".join(_wait(queue.waiting, _why(tables, cluster, queue)) for queue in cluster.queues if queue.waiting)


def explain_stuck(tables: Tables, id: ComputationId) -> str:
    """Why jobs of this cluster wait that will not get their turn: nothing of it runs, or no known node can run them.

    Empty when there are no such jobs.
    """
    cluster = tables.clusters.get(id)
    if cluster is None:
        return ""
    return " ".join(_wait(queue.waiting, _why(tables, cluster, queue)) for queue in _stuck(cluster))


def explain_all_stuck(tables: Tables) -> str:
    """The same for all clusters: one sentence for each reason.

    This is asked every second, so that of many clusters that may use many nodes only the first are explained.
    """
    reasons: dict[str, tuple[int, int]] = {}
    looked_at = 0
    rest = ""
    for cluster in tables.clusters.values():
        for queue in _stuck(cluster):
            if looked_at > LOOKED_AT:
                rest = " Jobs of further clusters wait, too."
                break
            looked_at += 1 + len(cluster.shares)
            why = _why(tables, cluster, queue)
            clusters, jobs = reasons.get(why, (0, 0))
            reasons[why] = clusters + 1, jobs + queue.waiting
    return " ".join(_wait(jobs, why, clusters) for why, (clusters, jobs) in reasons.items()) + rest


def _stuck(cluster: ClusterRecord) -> list[JobQueue]:
    """Queues whose jobs will not get their turn."""
    if cluster.waiting == cluster.jobs:
        return [queue for queue in cluster.queues if queue.waiting]
    stuck = []
    for queue in cluster.special.values():
        shares = list(candidates(cluster, queue.shape)) if queue.waiting else []
        if shares and all(why_unfit(share, queue.shape) for share in shares):
            stuck.append(queue)
    return stuck


def _wait(jobs: int, why: str, clusters: int = 1) -> str:
    of = f" of {clusters} clusters" if clusters > 1 else ""
    return f"{counted(jobs, 'job')}{of} {'waits' if jobs == 1 else 'wait'}{why}"


def _waits(jobs: int) -> str:
    return f"{counted(jobs, 'job')} {'waits' if jobs == 1 else 'wait'}"


def _why(tables: Tables, cluster: ClusterRecord, queue: JobQueue) -> str:
    return f"{_for_what(queue.shape)}: {_why_shape_waits(tables, cluster, queue.shape)}."


def _for_what(shape: Shape) -> str:
    wanted = wishes(shape)
    return f" for {wanted}" if wanted else ""


def _why_shape_waits(tables: Tables, cluster: ClusterRecord, shape: Shape) -> str:
    if reason := _why_held_up(tables, cluster, shape):
        return reason
    shares = list(candidates(cluster, shape))
    unfit = {share: reason for share in shares if (reason := why_unfit(share, shape))}
    if not shares or (not unfit and not shape.is_heavy):
        return _why_waiting(tables, cluster)
    sentences = [f"node {share.node.label} {reason}" for share, reason in unfit.items()]
    if len(unfit) == len(shares):
        return f"no node that is known can run it ({listed(sentences)})"
    parked = [share for share in shares if share.state is ShareState.PARKED and share not in unfit]
    for share in shares:
        if share in unfit or share in parked:
            continue
        node = share.node
        if not share.is_usable:
            sentences.append(f"node {node.label} {_why_not(share, tables.now)}")
        elif node.claimed.cpus:
            sentences.append(f"node {node.label} is being kept free, for this job or one before it")
        else:
            sentences.append(f"on node {node.label} not enough is free")
    return "; ".join([listed(sentences), *_parked(parked)])


def _why_held_up(tables: Tables, cluster: ClusterRecord, shape: Shape) -> str:
    """What keeps it waiting whatever nodes could run: a cluster that runs alone, a quota; empty: nothing."""
    account = cluster.account
    if not cluster.is_held:
        spare = account.spare
        if spare is None or spare >= max(1, shape.cpus):
            return ""
        return f"{account.label} has jobs on {counted(account.cpus, 'CPU')}, and may have {account.most_cpus} at once"
    if tables.alone is not None:
        return f"{_whose(tables, tables.clusters[tables.alone])} runs alone until it is over (exclusive)"
    first = tables.clusters[next(iter(tables.exclusives))]
    if first is not cluster:
        return f"{_whose(tables, first)} is to run alone before it (exclusive)"
    before = listed(
        f"{_whose(tables, each)} has {counted(each.jobs, 'job')}" for each in clusters_before(tables, cluster)
    )
    return f"it is to run alone (exclusive), and clusters before it have jobs left: {before}"


def _whose(tables: Tables, cluster: ClusterRecord) -> str:
    name, user = cluster.computation.name, cluster.account.user
    is_one_of_many = any(
        each is not cluster and each.computation.name == name and each.account.user == user
        for each in tables.clusters.values()
    )
    number = f" ({cluster.id[:8]})" if is_one_of_many else ""
    return f"cluster {name}{number}{f' of {user}' if user else ''}"


def _whose_turn(tables: Tables, cluster: ClusterRecord) -> str:
    """Who comes next where turns are taken; the end of a sentence, or empty."""
    turns = tables.turns
    first = turns.line.first()
    queue = None if first is None else first.line.first()
    if first is None or queue is None or queue.cluster == cluster.id:
        return ""
    other = tables.clusters[queue.cluster]
    own = turns.party_of(cluster)
    if turns.policy is Policy.FAIR and first is not own:
        less = own.account.due - first.account.due
        had = f"has had {less:.3g} CPU seconds less than {own.account.label}" if less > 0 else "was served longer ago"
        return f"; the next CPU is for {first.account.label}, who {had}"
    match turns.policy:
        case Policy.FAIR_CLUSTER:
            why = "was served longer ago"
        case Policy.EARLY_CLUSTER:
            why = "was made first"
        case Policy.FAIR | Policy.FIFO:
            least = min(each.rank for each in cluster.queues if each.rank is not None)
            is_urgent = queue.rank is not None and queue.rank[0] < least[0]
            why = "has jobs of higher priority" if is_urgent else "has submitted jobs before it"
    return f"; the next CPU is for {_whose(tables, other)}, which {why} ({_waits(other.waiting)})"


def _in_flight(tables: Tables, record: JobRecord) -> str:
    assert record.node is not None
    node = tables.nodes[record.node]
    share = node.shares[record.cluster]
    text = f"Job {record.job} was handed to node {node.label} (attempt {record.attempt})"
    if record.cancelled:
        return f"{text} and is being cancelled there."
    if node.broken_until is not None:
        return f"{text}, whose link is broken; it is given {tables.grace:g} s to come back."
    if node.is_suspect:
        return f"{text}, which has been silent for a while."
    if share.step and share.state is ShareState.READY:
        return f"{text}, which is preparing the computation: {_step(share, tables.now)}."
    before = list(share.flight).index(record.job)
    if before < share.slots or record.cpus:
        return f"{text} and runs there or is about to."
    return f"{text} and waits there behind {before} other{'s' if before > 1 else ''} of its cluster."


def _why_waiting(tables: Tables, cluster: ClusterRecord) -> str:
    if not cluster.shares:
        if not tables.nodes:
            return f"{tables.lost}; waiting for it or another" if tables.lost else "no node has been found"
        away = [node.label for node in tables.nodes.values() if node.broken_until is not None]
        if len(away) == len(tables.nodes):
            one = len(away) == 1
            return (
                f"no node is there: {joined(away)} {'was' if one else 'were'} there before and "
                f"{'does' if one else 'do'} not answer"
            )
        if cluster.asked:
            return "nodes have been found, and the cluster's program has not said yet which of them it uses"
        closed = [f"node {node.label} {why_closed(node.info)}" for node in tables.nodes.values() if not node.info.cpus]
        if len(closed) == len(tables.nodes):
            return listed(closed)
        return f"{_nodes(len(tables.nodes))} found, and the cluster uses none of them"
    ready = [share for share in cluster.shares.values() if share.is_usable]
    unusable = [share for share in cluster.shares.values() if not share.is_usable]
    sentences = [
        f"node {share.node.label} {_why_not(share, tables.now)}"
        for share in unusable
        if share.state is not ShareState.PARKED
    ]
    parked = _parked([share for share in unusable if share.state is ShareState.PARKED])
    others = "; ".join([*([listed(sentences)] if sentences else ()), *parked])
    if not ready:
        return others
    slots = sum(share.slots for share in ready)
    cpus = "the CPU" if slots == 1 else f"all {slots} CPUs"
    text = f"{cpus} of {_nodes(len(ready))} {'is' if slots == 1 else 'are'} busy"
    if any(share.node.claimed.cpus for share in ready):
        text += ", or kept free for a job that needs several"
    text += _whose_turn(tables, cluster)
    return f"{text} ({others})" if others else text


def _why_not(share: Share, now: float) -> str:
    """What keeps a share from being given work; the end of a sentence about its node."""
    node = share.node
    if share.state is ShareState.REFUSED:
        return f"refused: {share.reason}" if share.final else f"refused for now: {share.reason}"
    if node.broken_until is not None:
        return "lost its link and is given some time to come back"
    if not node.info.cpus:
        return why_closed(node.info)
    if node.state is not NodeState.LEASED:
        return _why_not_leased(node)
    if node.is_suspect:
        return "has been silent for a while"
    match share.state:
        case ShareState.PARKED if share.is_paused:
            return "is deallocated for this cluster (allocate_node uses it again)"
        case ShareState.PARKED:
            others = sum(1 for other in share.cluster.shares.values() if other.is_usable)
            return (
                f"is not opened for this cluster yet: {counted(others, 'other node does', 'other nodes do')} its work"
            )
        case ShareState.WANTED | ShareState.OPENING:
            if share.step:
                return f"is preparing the computation: {_step(share, now)}"
            return "is preparing the computation (files, code, setup)"
        case ShareState.CLOSING | ShareState.CLOSED if not share.is_renewed:
            seconds = int(now - share.step_at)
            return f"has been clearing up for {seconds} s" if seconds else "is clearing up"
        case ShareState.CLOSING | ShareState.CLOSED | ShareState.RENEWING:
            return "is being set up anew (resetup_node)"
        case _ if share.is_paused:
            return "is deallocated for this cluster (allocate_node uses it again)"
        case _:
            return "has all its CPUs busy"


def _step(share: Share, now: float) -> str:
    """What a node does to prepare a computation, and for how long."""
    seconds = int(now - share.step_at)
    return f"{share.step} since {seconds} s" if seconds else share.step


def _parked(shares: list[Share]) -> list[str]:
    """One sentence for all nodes that are not opened yet, if there are any."""
    if not shares:
        return []
    return [
        f"{counted(len(shares), 'node is', 'nodes are')} not opened for this cluster yet, and opened when it is of use"
    ]


def _why_not_leased(node: NodeRecord) -> str:
    if node.holder is not None:
        shared = f" ({_SHARED})" if node.holder.program == SHARED_SCHEDULER else ""
        return f"{used_by(node.holder)}; this program stands in line{shared}"
    return "has not answered yet whether it is free"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
