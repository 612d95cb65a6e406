"""An exclusive cluster and those that wait for it, when all of them are closing."""

from __future__ import annotations

import pytest

from dispy.model import (
    ComputationId,
    ComputationSpec,
    Ending,
    Holder,
    JobDone,
    JobOptions,
    JobState,
    NodeInfo,
    ProcessId,
)
from dispy.scheduler import events as ev
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import AskAllocation, ClusterEnded, Effects
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages as msg

ALONE, BEHIND = ComputationId("a" * 32), ComputationId("b" * 32)
MINE, THEIRS = ProcessId("1" * 32), ProcessId("2" * 32)
OTHER = Holder("bert", "host", 2, "other.py")


class Scheduler:
    """It has one node, and somebody else the other, where the exclusive cluster's only job must run."""

    def __init__(self) -> None:
        self.core = SchedulerCore(holder=Holder("anna", "host", 1, "p.py"), token=b"t" * 32)
        self.jobs = [JobRecord(1, ALONE, b"", options=JobOptions(THEIRS)), JobRecord(2, BEHIND, b"")]
        self.handle(ev.ClusterOpened(ComputationSpec(ALONE, "alone", "function"), exclusive=True))
        self.handle(ev.ClusterOpened(ComputationSpec(BEHIND, "behind", "function"), open_ended=False))
        for node in (MINE, THEIRS):
            self.handle(ev.NodeJoined(node, NodeInfo(node, "n", 1, "x", ()), "10.0.0.1"))
            self.handle(ev.NodeAllocated(ALONE, node, 1))
        self.handle(ev.NodeAllocated(BEHIND, MINE, 1))
        self.handle(ev.NodeAllocated(BEHIND, THEIRS, 0))
        self.said(MINE, msg.LeaseGranted([], []))
        self.said(THEIRS, msg.LeaseRefused(OTHER))
        self.said(MINE, msg.ComputationReady(ALONE))
        self.handle(ev.JobsSubmitted(self.jobs))

    def handle(self, event: ev.Event) -> Effects:
        effects = self.core.handle(event, 0.0)
        self.core.check()
        return effects

    def said(self, node: ProcessId, message: msg.AnyMessage, *bodies: bytes) -> Effects:
        return self.handle(ev.NodeSaid(node, message, bodies))

    def done(self, node: ProcessId, job: int) -> Effects:
        done = JobDone(job, 1, int(Ending.FINISHED), 1.0, 2.0, 1, 0, 0, 0)
        return self.said(node, msg.JobsDone(job, [done]), b"r")


def messages(effects: Effects) -> list[tuple[ProcessId, msg.AnyMessage]]:
    return [(send.node, send.message) for send in effects.sends]


@pytest.fixture
def scheduler() -> Scheduler:
    made = Scheduler()
    made.said(MINE, msg.ComputationReady(BEHIND))
    return made


def test_a_node_is_given_back_for_the_time_that_nobody_here_can_use_it(scheduler: Scheduler) -> None:
    assert messages(scheduler.handle(ev.ClusterClosing(BEHIND))) == [], "the exclusive cluster may still use the node"
    closed = [msg.CloseComputation(ALONE, terminate=False), msg.CloseComputation(BEHIND, terminate=False)]
    assert messages(scheduler.handle(ev.ClusterClosing(ALONE))) == [(MINE, message) for message in closed]
    scheduler.said(MINE, msg.ComputationClosed(ALONE))
    assert messages(scheduler.said(MINE, msg.ComputationClosed(BEHIND))) == [(MINE, msg.ReleaseLease())]
    assert scheduler.jobs[1].state is JobState.Created, "it may run when it is its turn"
    scheduler.said(THEIRS, msg.LeaseGranted([], []))
    scheduler.said(THEIRS, msg.ComputationReady(ALONE))
    scheduler.done(THEIRS, 1)
    notices = scheduler.said(THEIRS, msg.ComputationClosed(ALONE)).notices
    assert ClusterEnded(ALONE) in notices
    assert [(asked.cluster, asked.node) for asked in notices if isinstance(asked, AskAllocation)] == [(BEHIND, MINE)]
    scheduler.handle(ev.NodeAllocated(BEHIND, MINE, 1))
    scheduler.said(MINE, msg.LeaseGranted([], []))
    scheduler.said(MINE, msg.ComputationReady(BEHIND))
    scheduler.done(MINE, 2)
    assert [job.state for job in scheduler.jobs] == [JobState.Finished] * 2


def test_a_node_that_is_being_set_up_is_given_back_when_it_is_ready_or_refuses_for_now() -> None:
    for answer in (msg.ComputationReady(BEHIND), msg.ComputationRefused(BEHIND, "full", final=False)):
        scheduler = Scheduler()
        scheduler.handle(ev.ClusterClosing(ALONE))
        scheduler.handle(ev.ClusterClosing(BEHIND))
        scheduler.said(MINE, msg.ComputationClosed(ALONE))
        scheduler.said(MINE, answer)
        last = scheduler.said(MINE, msg.ComputationClosed(BEHIND))
        assert scheduler.core.snapshot().nodes[0].state == "free", last


def test_a_cluster_that_is_not_closing_keeps_its_nodes(scheduler: Scheduler) -> None:
    assert messages(scheduler.handle(ev.ClusterClosing(ALONE))) == [
        (MINE, msg.CloseComputation(ALONE, terminate=False))
    ]


def test_what_has_refused_for_good_is_not_asked_again() -> None:
    scheduler = Scheduler()
    scheduler.said(MINE, msg.ComputationRefused(BEHIND, "setup failed", "trace", final=True))
    scheduler.handle(ev.ClusterClosing(BEHIND))
    scheduler.handle(ev.ClusterClosing(ALONE))
    scheduler.said(MINE, msg.ComputationClosed(ALONE))
    assert scheduler.core.snapshot().nodes[0].state == "free"
    scheduler.said(THEIRS, msg.LeaseGranted([], []))
    scheduler.said(THEIRS, msg.ComputationReady(ALONE))
    scheduler.done(THEIRS, 1)
    notices = scheduler.said(THEIRS, msg.ComputationClosed(ALONE)).notices
    assert not [notice for notice in notices if isinstance(notice, AskAllocation)]
