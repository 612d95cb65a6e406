"""The leases of nodes: when one is asked for, and when it is given up."""

from __future__ import annotations

from dispy.scheduler.nodes import NodeRecord, NodeState
from dispy.scheduler.tables import Outbox, Tables
from dispy.wire.messages import AskLease, ReleaseLease


def ask_lease(tables: Tables, out: Outbox, node: NodeRecord) -> None:
    """Ask for the node's lease unless that has been done or nobody wants it.

    One that the process before this one may have asked for can only be given back by who has proved that it is his.
    """
    wanted = node.is_wanted or node.is_restored
    if node.state in (NodeState.JOINED, NodeState.FREE) and node.broken_until is None and wanted:
        node.state = NodeState.ASKED
        out.send(node, AskLease(tables.token, tables.holder))


def release_if_unused(tables: Tables, out: Outbox, node: NodeRecord) -> None:
    """Give up a lease, or a place in the line, that no cluster needs.

    A node that has just joined is released too: it may hold a lease of ours from before it was lost.
    """
    if node.state is NodeState.FREE or node.is_wanted or node.is_restored:
        return
    if any(node.id in cluster.asked for cluster in tables.clusters.values()):
        return
    if node.broken_until is None:
        node.state, node.holder = NodeState.FREE, None
        tables.end_recall(node)
        out.send(node, ReleaseLease())
