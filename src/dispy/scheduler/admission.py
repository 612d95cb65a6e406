"""Which clusters may run at all, and which jobs are taken in: exclusive clusters, and the number of jobs of a user.

An exclusive cluster waits until the clusters before it have no jobs left; those that come after it wait for it. Then it
has everything to itself until it is over. CPUs of a user are counted where jobs are handed out, in `turns`.
"""

from __future__ import annotations

from collections.abc import Sequence

from dispy.model import JobState
from dispy.scheduler.clusters import ClusterRecord, ClusterState
from dispy.scheduler.effects import JobEnded
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.tables import Outbox, Tables
from dispy.words import counted


def admit(tables: Tables) -> None:
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


def clusters_before(tables: Tables, exclusive: ClusterRecord) -> list[ClusterRecord]:
    """Clusters with jobs for which an exclusive one waits."""
    before = []
    for cluster in tables.clusters.values():
        if cluster is exclusive:
            break
        if cluster.jobs:
            before.append(cluster)
    return before


def within_quota(tables: Tables, out: Outbox, records: Sequence[JobRecord]) -> list[JobRecord]:
    """Jobs that are taken in; those that are more than their user may have end."""
    most = tables.quotas.jobs
    taken: list[JobRecord] = []
    left: dict[str, int] = {}
    for record in records:
        cluster = tables.clusters.get(record.cluster)
        if cluster is not None and cluster.state is ClusterState.OPEN:
            account = cluster.account
            if account.user not in left:
                left[account.user] = most - account.jobs
            if left[account.user] <= 0:
                record.state = JobState.Abandoned
                cause = (
                    f"{account.label} has {counted(most, 'job')} that have not ended, which is the most that this "
                    "scheduler takes of one user; it can be submitted again when some have ended"
                )
                tables.counters.submitted += 1
                tables.counters.ended += 1
                out.ended.append(JobEnded(record, JobState.Abandoned, cause=cause))
                continue
            left[account.user] -= 1
        taken.append(record)
    return taken
