"""The nodes of a client's cluster in a shared scheduler: it decides how much of each it wants, and hears of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from dispy.model import AvailInfo, ComputationId, ProcessId
from dispy.nodes import NodeView
from dispy.scheduler.effects import NodeClosed, NodeRefused
from dispy.scheduler.events import NodeAllocated
from dispy.scheduler.owner import Allocation
from dispy.sharing.pool import Pool
from dispy.wire.messages import AnyMessage
from dispy.wire.pool import NodeSeen
from dispy.wire.sharing import AllocationAsked, NodeChanged, NodeDeclined, NodeGone, NodeReady, OpenCluster


class GuestNodes(ABC):
    """A part of `Guest`."""

    opened: OpenCluster
    exclusive: bool

    def __init__(self, pool: Pool) -> None:
        self.asked: dict[ProcessId, NodeSeen] = {}
        """Nodes of which the client has not said how much it wants."""
        self.ready: dict[ProcessId, int] = {}
        """Nodes that have it open, and how many of their CPUs it uses."""
        self._pool = pool

    @property
    def id(self) -> ComputationId:
        """Of the cluster."""
        return self.opened.computation.id

    @abstractmethod
    def send(self, message: AnyMessage, payload: Sequence[bytes] = ()) -> None:
        """Send to the client, if it is there."""

    def tell_nodes(self) -> None:
        """The client is there (again)."""
        for node, cpus in self.ready.items():
            view = self._pool.service.links.view(node)
            if view is not None:
                self.send(NodeReady(self.id, seen(view), cpus))
        for node in [node for node in self.asked if self._pool.service.links.view(node) is None]:
            del self.asked[node]
        for node_seen in self.asked.values():
            self.send(AllocationAsked(self.id, node_seen))

    def named_nodes(self) -> Iterable[tuple[str, int]]:
        """See `ClusterOwner`: those that the client names if they may be used, and the scheduler's own."""
        rules = self._pool.rules
        return dict.fromkeys([*(place for place in self.opened.named if rules.allow_host(place[0])), *rules.named])

    def allocate(self, view: NodeView, local: bool) -> Allocation | None:
        """See `ClusterOwner`: the client decides, when it is there."""
        if not self._pool.rules.allow(view):
            return Allocation(0)
        self.asked[view.process] = node = seen(view)
        self.send(AllocationAsked(self.id, node))
        return None

    def allocated(self, allocated: NodeAllocated) -> None:
        """The client has said how much of a node it wants."""
        view = self._pool.service.links.view(allocated.node)
        self.asked.pop(allocated.node, None)
        if view is None:
            return
        may_exceed = view.info.oversubscribe or (allocated.oversubscribe and self.may_exceed)
        cpus = allocated.cpus if may_exceed else min(allocated.cpus, view.info.cpus)
        if not self._pool.rules.allow(view):
            cpus = 0
        self._pool.service.allocating.answer(
            NodeAllocated(self.id, allocated.node, cpus, allocated.files, allocated.setup_args, may_exceed)
        )

    @property
    def may_exceed(self) -> bool:
        """Whether it may use more CPUs of a node than that offers: what others share is not for one to exceed."""
        return self.exclusive or self._pool.rules.cooperative

    def node_opened(self, view: NodeView, cpus: int) -> None:
        """See `ClusterOwner`."""
        self.ready[view.process] = cpus
        self.send(NodeReady(self.id, seen(view), cpus))

    def node_closed(self, closed: NodeClosed) -> None:
        """See `ClusterOwner`."""
        self.ready.pop(closed.node, None)
        self.send(NodeGone(self.id, closed.node, closed.cause, closed.trace, closed.renewing))

    def node_measured(self, node: ProcessId, avail: AvailInfo) -> None:
        """See `ClusterOwner`."""
        self.send(NodeChanged(self.id, node, avail=avail))

    def node_offered(self, node: ProcessId, cpus: int, used: int) -> None:
        """See `ClusterOwner`."""
        if node in self.ready:
            self.ready[node] = used
        self.send(NodeChanged(self.id, node, cpus, used))

    def node_refused(self, view: NodeView | None, refused: NodeRefused) -> None:
        """See `ClusterOwner`."""
        if refused.holder is None:
            self.ready.pop(refused.node, None)
        if view is not None:
            self.send(NodeDeclined(self.id, seen(view), refused.reason, refused.trace, refused.holder))


def seen(view: NodeView) -> NodeSeen:
    """A node as clients are told of it."""
    return NodeSeen(view.process, view.info, view.address, view.port, view.places, view.avail, view.relays)
