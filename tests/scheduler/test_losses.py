"""Nodes that are lost, or go to somebody else, in situations that only few tests make. By value."""

from __future__ import annotations

from typing import Any

import pytest
import test_scheduler_core as core

from dispy.model import AvailInfo, Ending, HeldAttempt, JobState, ProcessId
from dispy.scheduler import events as ev
from dispy.scheduler.effects import Effects, JobsEnded, NodeClosed, NodeVanished
from dispy.wire import messages as msg

MAP, REDUCE, N1, N2, N3, OTHER = core.MAP, core.REDUCE, core.N1, core.N2, core.N3, core.OTHER
said, info = core.said, core.info
ASK, RELEASE, CLOSE = core.ASK, msg.ReleaseLease(), msg.CloseComputation(MAP)


@pytest.fixture
def scheduler() -> Any:
    """MAP, whose jobs may run twice, is open; no node."""
    made = core.Scheduler()
    made.open(reentrant=True)
    return made


@pytest.fixture
def ahead(scheduler: Any) -> Any:
    """Jobs 2 to 6 are on N1 (one CPU)."""
    scheduler.ready()
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    scheduler.submit(2, 3, 4, 5, 6)
    return scheduler


def recalls(effects: Effects) -> list[tuple[str, int]]:
    return [(send.node, send.message.count) for send in effects.sends if isinstance(send.message, msg.RecallJobs)]


def ended_in(effects: Effects) -> list[tuple[int, JobState]]:
    notices = [notice for notice in effects.notices if isinstance(notice, JobsEnded)]
    return [(one.job.job, one.state) for notice in notices for one in notice.jobs]


def refuse_lease(scheduler: Any, node: ProcessId) -> Effects:
    """The link breaks, and when it is back somebody else has the node."""
    scheduler.handle(ev.LinkBroken(node))
    scheduler.handle(ev.LinkResumed(node))
    effects: Effects = scheduler.said(node, msg.LeaseRefused(OTHER))
    return effects


# ---- the lease goes to somebody else ----


def test_an_owner_that_gives_back_a_node_that_somebody_else_has_leaves_the_line(scheduler: Any) -> None:
    scheduler.ready()
    refuse_lease(scheduler, N1)
    effects = scheduler.handle(ev.NodeAllocated(MAP, N1, 0))
    assert effects.sends == said(N1, RELEASE)
    assert not scheduler.core.uses(MAP, N1)


def test_the_load_of_a_node_that_somebody_else_has_is_not_told(scheduler: Any) -> None:
    scheduler.ready()
    refuse_lease(scheduler, N1)
    assert scheduler.said(N1, msg.LoadMeasured(AvailInfo(50.0, 1, 2, 3.0))) == Effects()


def test_what_was_closed_on_a_node_that_somebody_else_has_is_forgotten_with_its_last_job(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.submit(1)
    scheduler.handle(ev.NodeAllocated(MAP, N1, 0))
    scheduler.said(N1, msg.ComputationClosed(MAP))
    assert refuse_lease(scheduler, N1).sends == said(N1, RELEASE)
    assert not scheduler.core.uses(MAP, N1)


# ---- recalls ----


def test_a_new_link_without_an_end_of_the_old_one_ends_a_recall(ahead: Any) -> None:
    assert recalls(ahead.ready(N2)) == [(N1, 2)]
    assert ahead.handle(ev.LinkResumed(N1)).sends == said(N1, ASK)
    held = [HeldAttempt(number, 1) for number in (2, 3, 4, 5, 6)]
    assert recalls(ahead.said(N1, msg.LeaseGranted(held, [MAP]))) == [(N1, 2)]


def test_a_recall_ends_with_its_node(ahead: Any) -> None:
    ahead.ready(N2, 4)
    effects = ahead.handle(ev.NodeLost(N1, "it burns"))
    assert core.sends_of(effects) == [(N2, [2, 3, 4, 5, 6])]
    assert recalls(ahead.ready(N3, 1)) == [(N2, 1)], "the recall that was lost is not waited for"


def test_a_recall_ends_when_the_node_is_released(ahead: Any) -> None:
    assert recalls(ahead.ready(N2)) == [(N1, 2)]
    ahead.handle(ev.NodeAllocated(MAP, N1, 0))
    ahead.done(N1, 2, 3, 4, 5, 6, seconds=0.0023)
    assert ahead.said(N1, msg.ComputationClosed(MAP)).sends == said(N1, RELEASE)
    assert ahead.said(N1, msg.JobsRecalled([])) == Effects()


# ---- losses ----


def test_people_read_whether_a_link_broke_or_nothing_was_heard(scheduler: Any) -> None:
    closed = []
    for silent_for in (0.0, 2.5):
        scheduler.ready()
        scheduler.handle(ev.LinkBroken(N1, silent_for=silent_for))
        notices = scheduler.timeout(scheduler.now + 5.0).notices
        closed += [notice.cause for notice in notices if isinstance(notice, NodeClosed)]
    assert closed == [
        "the node was lost (its link broke and did not come back within 5 s)",
        "the node was lost (nothing was heard of it for 5 s)",
    ]


def test_the_loss_of_a_node_that_nobody_counted_on_is_not_told_to_all(scheduler: Any) -> None:
    scheduler.ready(N1)
    scheduler.ready(N2)
    scheduler.said(N1, msg.ComputationRefused(MAP, "setup failed"))
    assert scheduler.handle(ev.NodeLost(N1, "gone")).notices == [NodeClosed(MAP, N1, "the node was lost (gone)")]
    vanished = scheduler.handle(ev.NodeLost(N2, "gone")).notices[0]
    assert isinstance(vanished, NodeVanished)
    assert vanished.is_last


def test_the_loss_of_a_node_whose_cluster_is_ending_is_not_told_to_all(scheduler: Any) -> None:
    scheduler.ready(N1)
    scheduler.ready(N2)
    scheduler.submit(1)
    scheduler.handle(ev.ClusterClosing(MAP))
    notices = scheduler.handle(ev.NodeLost(N2, "gone")).notices
    assert not [notice for notice in notices if isinstance(notice, NodeVanished)]


def test_nothing_is_remembered_of_a_lost_node_that_was_asked_about_or_is_not_used(scheduler: Any) -> None:
    scheduler.open(REDUCE)
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(REDUCE, N1, 0))
    scheduler.handle(ev.NodeLost(N1, "gone"))
    scheduler.handle(ev.ClusterNarrowed(MAP, "no node can come"))
    assert ended_in(scheduler.submit(1)) == [(1, JobState.Abandoned)]
    scheduler.join()
    scheduler.submit(2, cluster=REDUCE, node=N1)
    assert scheduler.core.lacks_nodes(2), "the owner is asked anew"


# ---- three nodes in a row ----


def test_jobs_that_waited_behind_the_one_that_ran_did_not_kill_the_node(scheduler: Any) -> None:
    scheduler.ready(N1)
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    scheduler.submit(2, 3)
    for node, following in ((N1, N2), (N2, N3), (N3, N1)):
        assert [one.job for one in scheduler.core.jobs_at(node, MAP)] == [2, 3]
        effects = scheduler.handle(ev.NodeLost(node, "gone"))
        scheduler.ready(following)
    assert ended_in(effects) == [(2, JobState.Terminated)]
    assert [one.job for one in scheduler.core.jobs_at(N1, MAP)] == [3]


def test_nodes_that_go_to_somebody_else_were_not_killed_by_their_jobs(scheduler: Any) -> None:
    scheduler.ready(N1)
    scheduler.submit(1)
    for _ in range(4):
        assert ended_in(refuse_lease(scheduler, N1)) == []
        scheduler.said(N1, msg.LeaseGranted([], []))
        assert core.sends_of(scheduler.said(N1, msg.ComputationReady(MAP))) == [(N1, [1])]


def test_every_lost_attempt_may_return(scheduler: Any) -> None:
    """The results of the first and of the second attempt may both be on a disk."""
    scheduler.ready(N1)
    scheduler.submit(1)
    scheduler.handle(ev.NodeLost(N1, "restarted"))
    scheduler.ready(N2)
    scheduler.handle(ev.NodeLost(N2, "restarted"))
    scheduler.ready(N3)
    batch = msg.JobsDone(1, [core.result(1, 1)])
    assert ended_in(scheduler.handle(ev.NodeSaid(N3, batch, [b"r"]))) == [(1, JobState.Finished)]
    assert scheduler.core.counters.returned == 1


# ---- nodes without which there is no hope ----


def test_jobs_end_when_the_last_node_that_did_not_refuse_is_given_back() -> None:
    scheduler = core.Scheduler()
    scheduler.open(open_ended=False)
    for node in (N1, N2):
        scheduler.ready(node)
    scheduler.said(N1, msg.ComputationRefused(MAP, "setup failed"))
    scheduler.submit(1, 2)
    assert ended_in(scheduler.handle(ev.NodeAllocated(MAP, N2, 0))) == []
    scheduler.done(N2, 1)
    assert ended_in(scheduler.said(N2, msg.ComputationClosed(MAP))) == [(2, JobState.Abandoned)]


def test_a_node_that_is_closed_twice_with_its_jobs_is_told_once(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.submit(1)
    closing = ev.NodeSteered(MAP, N1, ev.Steering.CLOSE, 0, True)
    assert scheduler.handle(closing).sends == said(N1, msg.CloseComputation(MAP, terminate=True))
    assert scheduler.handle(closing) == Effects()
    assert scheduler.handle(ev.NodeSteered(MAP, N1, ev.Steering.CLOSE)) == Effects()
    scheduler.done(N1, 1, ending=Ending.INTERRUPTED)
