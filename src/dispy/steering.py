"""The methods of a cluster that steer single nodes: find, allocate, deallocate, close, set up anew, cap.

They say what is wanted and return at once; what follows is told by `cluster_status`. `scheduler.steering` obeys.
"""

from __future__ import annotations

import functools
from typing import Any

from dispy import config
from dispy.clusterbase import ClusterBase
from dispy.errors import SettingsError
from dispy.model import ProcessId
from dispy.nodes import DispyNode, NodeAllocate, parse_nodes
from dispy.scheduler.events import Steering


class NodeSteering(ClusterBase):
    """What a cluster can do with single nodes. A node is a `DispyNode`, an address or a name."""

    def discover_nodes(self, nodes: Any = None) -> int:
        """Look for nodes now: patterns by asking the network, hosts by dialling them.

        Which of them are used is for `nodes` of the cluster and `allocate_node` to say.

        Args:
            nodes: as for the cluster; None asks the network.

        Returns:
            0.

        Raises:
            SettingsError: an item has a form that is not known.
        """
        self._check_open()
        items, _ = parse_nodes(nodes)
        self._portal.call(self.service.look_for_nodes(self._id, items, lasting=False))
        return 0

    def allocate_node(self, node: Any) -> int:
        """Use nodes that were not named when the cluster was made, or use one again that was deallocated or closed.

        Args:
            node: an item of `nodes`, or a list of them; before older items that are no more specific.

        Returns:
            0.
        """
        self._check_open()
        items, _ = parse_nodes(node)
        for item in items:
            item.addresses()
        self._ledger.add_items(items)
        self._portal.call(self.service.look_for_nodes(self._id, items, lasting=True))
        for item in items:
            for found in self._portal.call(self.service.nodes_matching(item), config.MsgTimeout):
                self._steer(found, Steering.USE)
        return 0

    def deallocate_node(self, node: Any) -> int:
        """Run no further jobs of this cluster there. Jobs that it has go on, the computation stays set up.

        Returns:
            0, or -1 when the cluster does not use that node.
        """
        return self._steer_each(node, Steering.PAUSE)

    def close_node(self, node: Any, terminate_pending: bool = False) -> int:
        """Close this cluster on a node when its jobs there have ended; `terminate_pending` ends them now.

        Jobs that are to run only there are Abandoned.

        Returns:
            0, or -1 when the cluster does not use that node.
        """
        return self._steer_each(node, Steering.CLOSE, terminate=terminate_pending)

    def resetup_node(self, node: Any, terminate_pending: bool = False) -> int:
        """Clean up on a node when its jobs have ended (now, with `terminate_pending`), ask `allocate` again, run setup.

        The node is not released meanwhile. `cluster_status` hears `Initialized` when it is ready.

        Returns:
            0, or -1 when the cluster does not use that node.
        """
        return self._steer_each(node, Steering.RENEW, terminate=terminate_pending)

    def set_node_cpus(self, node: Any, cpus: int) -> int:
        """Use at most so many CPUs of a node for this cluster.

        Args:
            node: which.
            cpus: n > 0 at most n; 0 none until this is called again; n < 0 all but n.

        Returns:
            how many CPUs that is, or -1 when the cluster does not use that node.
        """
        if not isinstance(cpus, int) or isinstance(cpus, bool):
            raise SettingsError(f"set_node_cpus: cpus must be a whole number, not {cpus!r}")
        self._check_open()
        used = self._used(node)
        for process in used:
            effective = self._portal.call(self._cap(process, cpus), config.MsgTimeout)
        return effective if used else -1

    async def _cap(self, process: ProcessId, cpus: int) -> int:
        effective = self._ledger.cap(process, cpus, self.service.offered_by(process))
        self.service.steer(self._id, process, Steering.CAP, cpus=effective)
        return effective

    def _steer_each(self, node: Any, how: Steering, *, terminate: bool = False) -> int:
        self._check_open()
        used = self._used(node)
        for process in used:
            self._steer(process, how, terminate=terminate)
        return 0 if used else -1

    def _steer(self, process: ProcessId, how: Steering, *, terminate: bool = False) -> None:
        self._portal.post(functools.partial(self.service.steer, self._id, process, how, terminate=terminate))

    def _used(self, node: object) -> list[ProcessId]:
        """The nodes of this cluster that are meant; of a name there is rarely more than one."""
        return [process for process in self._meant(node) if self._uses(process)]

    def _uses(self, process: ProcessId) -> bool:
        return self._portal.call(self.service.uses(self._id, process), config.MsgTimeout)

    def _meant(self, node: object) -> list[ProcessId]:
        if isinstance(node, DispyNode):
            return [node.process]
        wanted = NodeAllocate(node) if isinstance(node, str) else node
        if not isinstance(wanted, NodeAllocate):
            raise SettingsError(f"a node is a DispyNode, an address or a name, not {node!r}")
        wanted.addresses()
        return self._portal.call(self.service.nodes_matching(wanted), config.MsgTimeout)
