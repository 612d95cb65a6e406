"""Every table of the scheduler computed anew from the others: what must be true after every event."""

from __future__ import annotations

from typing import NoReturn

from dispy.errors import InvalidTransition
from dispy.model import JobState
from dispy.scheduler.clusters import ClusterRecord, ClusterState
from dispy.scheduler.nodes import NodeRecord, NodeState, Share, ShareState
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
        for pinned, queue in cluster.queues.items():
            waiting = [record for record in queue.jobs if record.state is JobState.Created]
            _require(len(waiting) == queue.waiting, f"a queue counts {queue.waiting} jobs, not {len(waiting)}")
            ids = [record.job for record in waiting]
            _require(ids == sorted(ids), "a queue is not in the order of submission")
            for record in waiting:
                _require(record.job not in places, f"job {record.job} is in two places")
                _require(record.node is None, f"job {record.job} waits and has a node")
                _require(not record.cancelled, f"job {record.job} waits and is cancelled")
                _require(record.pinned == pinned, f"job {record.job} is in another node's queue")
                places[record.job] = cluster.id
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
    for queue in cluster.queues.values():
        if queue.waiting and queue.node:
            _require(queue.node in tables.nodes, f"jobs wait for node {queue.node}, which is lost")
    if cluster.is_hopeless:
        _require(not cluster.waiting, f"jobs of {cluster.id} wait although every node refused")


def _check_share(tables: Tables, cluster: ClusterRecord, share: Share) -> None:
    node = share.node
    _require(tables.nodes.get(node.id) is node, f"a share is of node {node.id}, which is not known")
    _require(node.shares.get(cluster.id) is share, f"node {node.id} does not know its share")
    if not share.idle:
        return
    _require(share.entry is not None, f"node {node.id} has an idle CPU and is not offered")
    for pinned in ("", node.id):
        queue = cluster.queues.get(pinned)
        waits = queue is not None and queue.waiting > 0
        _require(not waits, f"a job of {cluster.id} waits although node {node.id} could run it")


def _check_node(tables: Tables, node: NodeRecord) -> None:
    for id, share in node.shares.items():
        known = tables.clusters.get(id)
        _require(known is share.cluster, f"node {node.id} has a share of cluster {id}, which is not known")
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
