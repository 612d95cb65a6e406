"""What must survive the process of a shared scheduler, read off each event and what that has caused. Pure.

Who keeps it stores it before anything is performed that rests on it: that is the seam to `dispy.sharing.store`.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from dispy.model import ComputationId, ProcessId
from dispy.scheduler import events
from dispy.scheduler.effects import ClusterEnded, Effects, JobEnded, JobsEnded, JobsStarted
from dispy.scheduler.events import RestoredNode, RestoredShare
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.tables import Tables
from dispy.wire.messages import NodeDescribed


class ClusterMark(Struct):
    """How a cluster stands now."""

    cluster: ComputationId
    state: str
    """open, draining, terminating or ended."""
    is_open_ended: bool
    forsaken: str


class Changes(Struct):
    """What one event has changed. A job that was submitted may be marked or ended as well."""

    submitted: Sequence[JobRecord] = ()
    marked: list[JobRecord] = field(default_factory=list)
    """Handed to a node, waiting again, or to be ended: what counts is how they stand now."""
    ended: list[JobEnded] = field(default_factory=list)
    clusters: list[ClusterMark] = field(default_factory=list)
    nodes: list[RestoredNode] = field(default_factory=list)
    """New ones, and those that have changed."""
    known: frozenset[ProcessId] | None = None
    """The nodes that are still known; None: none was lost."""
    shares: list[RestoredShare] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.submitted
            or self.marked
            or self.ended
            or self.clusters
            or self.nodes
            or self.known is not None
            or self.shares
        )


def changes_of(tables: Tables, event: events.Event | None, effects: Effects) -> Changes:
    """What must be kept of an event (None: of a timeout) and its effects; `tables` have taken them in."""
    changes = Changes(marked=list(effects.marked))
    match event:
        case events.JobsSubmitted(jobs):
            changes.submitted = jobs
        case events.ClusterOpened(computation):
            _mark_cluster(tables, changes, computation.id)
        case events.ClusterWidened(cluster) | events.ClusterNarrowed(cluster) | events.ClusterClosing(cluster):
            _mark_cluster(tables, changes, cluster)
        case events.NodeJoined(node) | events.NodeSaid(node, NodeDescribed()):
            _mark_node(tables, changes, node)
        case events.NodeLost() | events.Restored() | None:
            changes.known = frozenset(tables.nodes)
        case events.NodeAllocated(cluster, node) | events.NodeSteered(cluster, node):
            _mark_share(tables, changes, cluster, node)
    for notice in effects.notices:
        match notice:
            case JobsStarted(_, jobs):
                changes.marked += jobs
            case JobsEnded(ended):
                changes.ended += ended
            case ClusterEnded(cluster):
                changes.clusters.append(ClusterMark(cluster, "ended", is_open_ended=False, forsaken=""))
    return changes


def _mark_cluster(tables: Tables, changes: Changes, id: ComputationId) -> None:
    cluster = tables.clusters.get(id)
    if cluster is not None:
        state = cluster.state.name.lower()
        changes.clusters.append(ClusterMark(id, state, cluster.is_open_ended, cluster.forsaken))


def _mark_node(tables: Tables, changes: Changes, id: ProcessId) -> None:
    node = tables.nodes.get(id)
    if node is not None:
        changes.nodes.append(RestoredNode(id, node.info, node.address))


def _mark_share(tables: Tables, changes: Changes, id: ComputationId, node: ProcessId) -> None:
    cluster = tables.clusters.get(id)
    if cluster is None:
        return
    share = cluster.shares.get(node)
    if share is not None and share.cpus > 0:
        changes.shares.append(
            RestoredShare(id, node, share.cpus, share.files, share.setup_args, share.oversubscribe, share.is_paused)
        )
    elif node in cluster.declined:
        changes.shares.append(RestoredShare(id, node, 0))
