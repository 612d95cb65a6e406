"""The nodes of one cluster as a shared scheduler tells of them, and what the cluster's owner hears."""

from __future__ import annotations

from msgspec import Struct

from dispy.model import NodeInfo, ProcessId
from dispy.nodes import NodeView
from dispy.scheduler.effects import NodeClosed, NodeRefused
from dispy.scheduler.owner import ClusterOwner
from dispy.wire.messages import AnyMessage
from dispy.wire.pool import NodeSeen
from dispy.wire.sharing import NodeChanged, NodeDeclined, NodeGone, NodeReady


class _Share(Struct):
    """What the cluster has of a node."""

    cpus: int
    """What the node offers."""
    used: int


class Sightings:
    """What is known of nodes. In the loop's thread."""

    def __init__(self, owner: ClusterOwner) -> None:
        self.views: dict[ProcessId, NodeView] = {}
        self._owner = owner
        self._shares: dict[ProcessId, _Share] = {}
        self._untold: set[ProcessId] = set()
        """Nodes that were ready on an earlier link, and of which nothing was said on this one."""

    def view(self, node: ProcessId, address: str = "") -> NodeView:
        """What users may know of a node; of one that was never told of, little."""
        view = self.views.get(node)
        if view is None:
            info = NodeInfo(node, address or node, 0, "", ())
            view = NodeView(node, info, address, 0)
            if address:
                self.views[node] = view
        return view

    def seen(self, seen: NodeSeen) -> NodeView:
        """A node is told of."""
        view = self.views[seen.process] = view_of(seen)
        return view

    def begin_anew(self) -> None:
        """On a new link the scheduler tells again of the nodes that are ready."""
        self._untold = set(self._shares)

    def close_untold(self) -> None:
        """It had time to do so: nodes of which it has said nothing are gone."""
        for node in list(self._untold):
            self._gone(NodeGone(self._owner.spec.id, node, "it was gone when the scheduler was there again"))

    def heard(self, message: AnyMessage) -> None:
        """Something is said of a node."""
        match message:
            case NodeReady(_, seen, cpus):
                self._untold.discard(seen.process)
                self._shares[seen.process] = _Share(seen.info.cpus, cpus)
                self._owner.node_opened(self.seen(seen), cpus)
            case NodeGone():
                self._gone(message)
            case NodeDeclined(cluster, seen, reason, trace, holder):
                self._forget(seen.process)
                refused = NodeRefused(cluster, seen.process, reason, trace, holder)
                self._owner.node_refused(self.seen(seen), refused)
            case NodeChanged(_, node, cpus, used, avail):
                self._changed(node, cpus, used)
                if avail is not None:
                    self._owner.node_measured(node, avail)

    def _changed(self, node: ProcessId, cpus: int, used: int) -> None:
        share = self._shares.get(node)
        if share is None or (cpus < 0 and used < 0):
            return
        share.cpus = share.cpus if cpus < 0 else cpus
        share.used = share.used if used < 0 else used
        self._owner.node_offered(node, share.cpus, share.used)

    def _gone(self, gone: NodeGone) -> None:
        if not gone.renewing:
            self._forget(gone.node)
        self._owner.node_closed(NodeClosed(gone.cluster, gone.node, gone.cause, gone.trace, gone.renewing))

    def _forget(self, node: ProcessId) -> None:
        self._shares.pop(node, None)
        self._untold.discard(node)


def view_of(seen: NodeSeen) -> NodeView:
    """What users may know of a node."""
    return NodeView(seen.process, seen.info, seen.address, seen.port, seen.avail, seen.places, seen.relays)
