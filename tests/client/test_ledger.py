"""The books of a cluster: what they show of nodes, by value."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispy.errors import ClosedError
from dispy.job import DispyJob
from dispy.ledger import ClusterLedger
from dispy.model import AvailInfo, ComputationId, ComputationSpec, JobState, NodeInfo, ProcessId
from dispy.nodes import DispyNode, NodeAllocate, NodeView
from dispy.portal import Portal
from dispy.scheduler.effects import JobEnded
from dispy.scheduler.jobs import JobRecord
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


def test_what_is_accepted_is_handed_over_before_the_seal() -> None:
    ledger = ledger_that_hears([])
    ledger.cluster_status = None
    outbox: list[JobRecord] = []
    first, second = (JobRecord(number, ComputationId("c"), b"") for number in range(2))
    ledger.accept(first, outbox.append)
    assert not ledger.seal(if_idle=True), "a job is pending"
    ledger.accept(second, outbox.append)
    assert ledger.seal()
    with pytest.raises(ClosedError, match="compute is being closed"):
        ledger.accept(first, outbox.append)
    assert (outbox, ledger.pending) == ([first, second], 2)


def test_a_ledger_without_jobs_is_sealed_at_once() -> None:
    assert ledger_that_hears([]).seal(if_idle=True)


def test_the_mark_of_a_job_follows_its_callbacks() -> None:
    heard: list[Any] = []
    ledger = ledger_that_hears(heard)
    ledger.cluster_status = None
    ended = JobEnded(JobRecord(7, ComputationId("c"), b"", DispyJob()), JobState.Cancelled)
    assert not ledger.job_ended(ended, None), "nothing is durable"
    ledger.when_told = lambda job: heard.append(("told", job))
    assert not ledger.job_ended(ended, None), "there is no callback"
    ledger.job_status = lambda job: heard.append("job_status")
    ledger.cluster_status = lambda status, node, job: heard.append("cluster_status")
    heard.clear()
    assert ledger.job_ended(ended, None)
    assert heard == ["job_status", "cluster_status", ("told", 7)]
