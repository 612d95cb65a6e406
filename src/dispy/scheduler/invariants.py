"""Every table of the scheduler computed anew from the others: what must be true after every event."""

from __future__ import annotations

from typing import NoReturn

from dispy.errors import InvalidTransition
from dispy.model import JobState
from dispy.scheduler.clusters import ClusterRecord, ClusterState
from dispy.scheduler.jobs import JobQueue
from dispy.scheduler.nodes import Amount, NodeRecord, NodeState, Share, ShareState
from dispy.scheduler.placement import place, why_none_fits
from dispy.scheduler.tables import Tables


def check_tables(tables: Tables) -> None:
    """Compare all tables.

    Raises:
        InvalidTransition: two of them contradict each other.
    """
    _check_places(tables)
    for cluster in tables.clusters.values():
        _check_cluster(tables, cluster)
    for node in tables.nodes.values():
        _check_node(tables, node)
    for key in tables.deadlines:
        known = key[0] in tables.clusters if isinstance(key, tuple) else key in tables.nodes
        _require(known, f"there is a deadline for {key}, which is not known")
    _require(not tables.runnable, "a queue is still to be looked at after the dispatch pass")
    _require(not tables.restless, "a cluster is still to be balanced after the dispatch pass")
    counters = tables.counters
    _require(
        counters.submitted - counters.ended == len(tables.jobs),
        f"{counters.submitted} jobs came and {counters.ended} ended, but {len(tables.jobs)} are known",
    )


def _check_places(tables: Tables) -> None:
    """Every job is in exactly one queue or in exactly one flight."""
    places: dict[int, str] = {}
    for cluster in tables.clusters.values():
        for queue in cluster.queues:
            _check_queue(cluster, queue, places)
        for share in cluster.shares.values():
            _require(not share.batch, "a batch was not sent")
            for job, record in share.flight.items():
                _require(job not in places, f"job {job} is in two places")
                _require(record.state is JobState.Running, f"job {job} is at a node in state {record.state!r}")
                _require(record.node == share.node.id, f"job {job} names another node than the one it is at")
                _require(record.attempt > 0, f"job {job} is at a node without an attempt")
                places[job] = cluster.id
    _require(places.keys() == tables.jobs.keys(), "a job is nowhere, or somewhere and not known")
    for job, record in tables.jobs.items():
        _require(places[job] == record.cluster, f"job {job} is with another cluster")


def _check_queue(cluster: ClusterRecord, queue: JobQueue, places: dict[int, str]) -> None:
    waiting = list(queue)
    _require(len(waiting) == queue.waiting, f"a queue counts {queue.waiting} jobs, not {len(waiting)}")
    _require(queue.is_plain or cluster.special.get(queue.shape) is queue, "a queue stands under another shape")
    last: dict[int, int] = {}
    for record in waiting:
        priority = record.options.priority if record.options is not None else 0
        _require(last.get(priority, -1) < record.job, "a queue is not in the order of submission")
        last[priority] = record.job
        _require(record.job not in places, f"job {record.job} is in two places")
        _require(record.node is None, f"job {record.job} waits and has a node")
        _require(not record.cancelled, f"job {record.job} waits and is cancelled")
        _require(not record.cpus, f"job {record.job} waits and CPUs are kept for it")
        _require(record.shape == queue.shape, f"job {record.job} is in the queue of another shape")
        places[record.job] = cluster.id


def _check_cluster(tables: Tables, cluster: ClusterRecord) -> None:
    count = sum(1 for record in tables.jobs.values() if record.cluster == cluster.id)
    _require(count == cluster.jobs, f"cluster {cluster.id} counts {cluster.jobs} jobs, not {count}")
    closing = cluster.state is not ClusterState.OPEN
    _require(closing == (cluster.id in tables.closing), f"cluster {cluster.id} is closing or not")
    recalling = sum(
        node.recall[1] for node in tables.nodes.values() if node.recall is not None and node.recall[0] == cluster.id
    )
    _require(recalling == cluster.recalling, f"cluster {cluster.id} counts recalls wrongly")
    _require(
        cluster.idlers.keys() == {share.node.id for share in cluster.shares.values() if share.idle},
        f"cluster {cluster.id} does not know its idle shares",
    )
    _require(
        cluster.excesses.keys() == {share.node.id for share in cluster.shares.values() if share.excess},
        f"cluster {cluster.id} does not know where its jobs wait for CPUs",
    )
    entries = sum(share.entry is not None for share in cluster.shares.values())
    _require(entries == len(cluster.rooms), f"cluster {cluster.id} counts its rooms wrongly")
    for share in cluster.shares.values():
        _check_share(tables, cluster, share)
    for queue in cluster.special.values():
        if not queue.waiting:
            continue
        node = queue.shape.node
        _require(not node or node in tables.nodes, f"jobs wait for node {node}, which is lost")
        found = place(cluster, queue)
        # more may be sent ahead when the mean duration falls: that waits for the node's next word
        runs = found is not None and (queue.is_heavy or found[0].idle > 0)
        _require(not runs, f"a job with wishes of {cluster.id} waits although a node could run it")
        _require(not why_none_fits(cluster, queue), f"jobs of {cluster.id} wait for what no node has")
        _require(
            not queue.is_heavy or queue in tables.blocked, f"heavy jobs of {cluster.id} wait and are not looked at"
        )
    if cluster.is_hopeless:
        _require(not cluster.waiting, f"jobs of {cluster.id} wait although every node refused")


def _check_share(tables: Tables, cluster: ClusterRecord, share: Share) -> None:
    node = share.node
    _require(tables.nodes.get(node.id) is node, f"a share is of node {node.id}, which is not known")
    _require(node.shares.get(cluster.id) is share, f"node {node.id} does not know its share")
    heavy = [record for record in share.flight.values() if record.shape.is_heavy]
    _require(len(heavy) == share.heavy, f"node {node.id} counts its heavy jobs wrongly")
    _require(all(record.cpus for record in heavy), f"nothing is kept for a heavy job on node {node.id}")
    _require(sum(record.cpus for record in heavy) == share.heavy_cpus, f"node {node.id} counts kept CPUs wrongly")
    _require(share.heavy == len([1 for record in share.flight.values() if record.cpus]), "CPUs are kept for light jobs")
    if not share.idle:
        return
    _require(share.entry is not None, f"node {node.id} has an idle CPU and is not offered")
    waits = cluster.plain.waiting > 0
    _require(not waits, f"a job of {cluster.id} waits although node {node.id} could run it")


def _check_node(tables: Tables, node: NodeRecord) -> None:
    for id, share in node.shares.items():
        known = tables.clusters.get(id)
        _require(known is share.cluster, f"node {node.id} has a share of cluster {id}, which is not known")
    flight = [record.shape for share in node.shares.values() for record in share.flight.values()]
    taken = Amount(
        sum(share.heavy_cpus for share in node.shares.values()),
        sum(shape.memory for shape in flight),
        sum(shape.gpus for shape in flight),
    )
    _require(taken == node.taken, f"node {node.id} keeps {node.taken} for jobs that need {taken}")
    _require(node.claimed == Amount() or node in tables.claims, f"node {node.id} is kept free for nobody")
    _require(
        not node.claimed.cpus or node.claimed.cpus <= node.capacity, f"more of node {node.id} is claimed than it has"
    )
    broken = node.broken_until is not None
    _require(broken == (node.id in tables.deadlines), f"node {node.id} is without link or has a deadline")
    opened = any(
        share.state in (ShareState.OPENING, ShareState.READY, ShareState.CLOSING) for share in node.shares.values()
    )
    if not broken and (opened or node.is_wanted):
        _require(node.state is not NodeState.FREE, f"node {node.id} is wanted and its lease is not asked for")
    asked = any(node.id in cluster.asked for cluster in tables.clusters.values())
    if not broken and not node.is_wanted and not asked:
        _require(node.state is NodeState.FREE, f"no cluster uses node {node.id} and its lease is kept")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        _fail(sentence)


def _fail(sentence: str) -> NoReturn:
    raise InvalidTransition(f"the scheduler's tables contradict each other: {sentence}")
