"""Which clusters may run at all: exclusive clusters and those that wait for them.

An exclusive cluster waits until the clusters before it have no jobs left; those that come after it wait for it. Then it
has everything to itself until it is over. CPUs of a user are counted where jobs are handed out, in `turns`.
"""

from __future__ import annotations

from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.shares import ask_allocation
from dispy.scheduler.tables import Outbox, Tables


def admit(tables: Tables, out: Outbox) -> None:
    """Say anew which clusters are held up by exclusive ones."""
    clusters = tables.clusters
    if tables.alone not in clusters:
        tables.alone = None
    first = next(iter(tables.exclusives), None)
    if tables.alone is None and first is not None and not clusters_before(tables, clusters[first]):
        tables.alone = first
    tables.is_holding, behind = bool(tables.exclusives), False
    for id, cluster in clusters.items():
        behind = behind or id == first
        was, cluster.is_held = cluster.is_held, behind if tables.alone is None else id != tables.alone
        if was and not cluster.is_held:
            tables.runnable.update(dict.fromkeys(queue for queue in cluster.queues if queue.waiting))
            for node in tables.nodes.values():
                if not (node.id in cluster.shares or node.id in cluster.declined or node.id in cluster.asked):
                    ask_allocation(out, cluster, node)  # it was given back for the time being


def clusters_before(tables: Tables, exclusive: ClusterRecord) -> list[ClusterRecord]:
    """Clusters with jobs for which an exclusive one waits."""
    before = []
    for cluster in tables.clusters.values():
        if cluster is exclusive:
            break
        if cluster.jobs:
            before.append(cluster)
    return before
