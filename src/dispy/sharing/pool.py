"""What all guests of a shared scheduler have in common: the service, the disk, and the rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Sequence

from msgspec import Struct

from dispy.model import ProcessId
from dispy.nodes import NodeAllocate, NodeView, fitting
from dispy.scheduler.service import SchedulerService
from dispy.sharing.departed import DepartedNodes
from dispy.sharing.door import Door
from dispy.sharing.keeping import Keeper
from dispy.sharing.portions import Portions
from dispy.sharing.staging import Staging


class Rules(Struct, frozen=True):
    """What the owner of the scheduler allows."""

    nodes: Sequence[NodeAllocate]
    """The nodes that may be used; their host names have been resolved."""
    cooperative: bool = False
    """Programs may use more CPUs of a node than it offers, and everybody may steer every cluster."""
    cleanup_nodes: bool = False
    """Nodes keep no files of programs."""
    ping_interval: float | None = None
    """Seconds between questions for nodes; None: the usual."""
    zombie_interval: float = 3600.0
    """Seconds after which the cluster of a client that is gone is given up, once it has no pending jobs."""

    def allow(self, view: NodeView) -> bool:
        """Whether this node may be used."""
        return bool(fitting(self.nodes, view))

    def allow_host(self, host: str) -> bool:
        """Whether a node may be used that a client names."""
        return any(item.matches(host, host, item.port or 0) for item in self.nodes)

    @property
    def discovers(self) -> bool:
        """Whether nodes that nobody has named may be used."""
        return any(item.is_pattern for item in self.nodes)

    @property
    def named(self) -> list[tuple[str, int]]:
        """Hosts, and ports or 0, of nodes to dial."""
        return [(item.host, item.port or 0) for item in self.nodes if not item.is_pattern]


class Pool:
    """See the module."""

    def __init__(
        self,
        service: SchedulerService,
        keeper: Keeper,
        staging: Staging,
        rules: Rules,
        spawn: Callable[[Coroutine[None, None, None]], None],
        door: Door,
    ) -> None:
        self.service = service
        self.keeper = keeper
        self.staging = staging
        self.rules = rules
        self.spawn = spawn
        self.door = door
        self.portions = Portions(service.portal.loop.call_soon)
        self.departed = DepartedNodes()
        self.done: Counter[ProcessId] = Counter()
        """Jobs that ended on each node since the start."""
