"""The books of a cluster: what they show of nodes, by value."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from dispy.ledger import ClusterLedger
from dispy.model import AvailInfo, ComputationId, ComputationSpec, NodeInfo, ProcessId
from dispy.nodes import DispyNode, NodeAllocate, NodeView
from dispy.portal import Portal
from dispy.shipping import Shipment

ONE = ProcessId("1" * 32)


def ledger_that_hears(heard: list[Any]) -> ClusterLedger:
    def at_once(function: Callable[[], None]) -> None:
        function()

    portal = cast("Portal", SimpleNamespace(callback=at_once))
    made = ClusterLedger(
        portal,
        ComputationSpec(ComputationId("c"), "compute", "function"),
        Shipment("function", "compute", ""),
        [NodeAllocate("*")],
        local=False,
        may_embed=False,
        reentrant=False,
        interval=None,
    )
    made.constructed_at = 1e-9
    made.cluster_status = lambda status, node, job: heard.append((status, node.cpus, node.avail_cpus))
    return made


def view(cpus: int) -> NodeView:
    return NodeView(ONE, NodeInfo(ONE, "one", cpus, "Linux", ()), "10.0.0.1", 9701)


def test_nodes_show_what_they_offer_now() -> None:
    heard: list[Any] = []
    ledger = ledger_that_hears(heard)
    ledger.node_offered(ONE, 8, 8)
    ledger.node_opened(view(4), 3)
    (node,) = ledger.nodes.values()
    assert (node.cpus, node.avail_cpus, node.name, node.ip_addr) == (3, 4, "one", "10.0.0.1")
    ledger.node_offered(ONE, 2, 2)
    assert (node.cpus, node.avail_cpus) == (2, 2)
    ledger.node_measured(ONE, AvailInfo(50.0, 1, 2, 3.0))
    ledger.node_offered(ONE, 6, 3)
    ledger.node_opened(view(5), 5)
    assert (node.cpus, node.avail_cpus) == (5, 5)
    assert heard == [
        (DispyNode.Initialized, 3, 4),
        (DispyNode.AvailInfo, 2, 2),
        (DispyNode.AvailInfo, 3, 6),
        (DispyNode.Initialized, 5, 5),
    ]
