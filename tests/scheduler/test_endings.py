"""The end of clusters, and what users steer meanwhile: which nodes are given back, which jobs end. By value."""

from __future__ import annotations

from typing import Any

import pytest
import test_scheduler_core as core

from dispy.model import JobOptions, JobState, NodeInfo, ProcessId
from dispy.scheduler import events as ev
from dispy.scheduler import flow
from dispy.scheduler.effects import AskAllocation, ClusterEnded, Effects, JobsEnded
from dispy.scheduler.events import Steering
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages as msg

MAP, REDUCE, N1, N2, N3 = core.MAP, core.REDUCE, core.N1, core.N2, core.N3
Send, said, info = core.Send, core.said, core.info
ASK, RELEASE, CLOSE, OPEN = core.ASK, msg.ReleaseLease(), msg.CloseComputation(MAP), msg.OpenComputation(core.spec())
ASKED = AskAllocation(MAP, N1, info(N1), "10.0.0.1")


@pytest.fixture
def scheduler() -> Any:
    """MAP is open; no node."""
    made = core.Scheduler()
    made.open()
    return made


def wish(scheduler: Any, *numbers: int, **options: Any) -> Effects:
    """Jobs with the same wishes."""
    records = [JobRecord(number, MAP, b"%d" % number, options=JobOptions(**options)) for number in numbers]
    scheduler.jobs.update((record.job, record) for record in records)
    effects: Effects = scheduler.handle(ev.JobsSubmitted(records))
    return effects


def steer(scheduler: Any, how: Steering, cpus: int = 0, *, terminate: bool = False, node: ProcessId = N1) -> Effects:
    effects: Effects = scheduler.handle(ev.NodeSteered(MAP, node, how, cpus, terminate))
    return effects


def endings(effects: Effects) -> list[tuple[int, JobState, str | None]]:
    notices = [notice for notice in effects.notices if isinstance(notice, JobsEnded)]
    return [(one.job.job, one.state, one.cause) for notice in notices for one in notice.jobs]


# ---- nodes that are of no use to what is left ----


def test_a_closing_cluster_keeps_a_node_that_can_run_what_waits_though_not_now(scheduler: Any) -> None:
    for node in (N1, N2):
        scheduler.ready(node)
    steer(scheduler, Steering.PAUSE, node=N2)
    wish(scheduler, 1, node=N2)
    assert scheduler.handle(ev.ClusterClosing(MAP)).sends == [Send(N1, CLOSE)]
    assert core.sends_of(steer(scheduler, Steering.USE, node=N2)) == [(N2, [1])]


def test_a_closing_cluster_gives_back_a_node_when_the_last_job_for_it_is_cancelled(scheduler: Any) -> None:
    for node in (N1, N2):
        scheduler.ready(node)
    steer(scheduler, Steering.PAUSE, node=N2)
    wish(scheduler, 1, node=N2)
    wish(scheduler, 2, 3, node=N1)
    assert scheduler.handle(ev.ClusterClosing(MAP)).sends == []
    assert scheduler.handle(ev.CancelAsked([1])).sends == [Send(N2, CLOSE)]


def test_a_closing_cluster_gives_back_a_node_that_refused_for_now_and_is_of_no_use(scheduler: Any) -> None:
    for node in (N1, N2):
        scheduler.ready(node)
    scheduler.said(N2, msg.ComputationRefused(MAP, "disk full", final=False))
    wish(scheduler, 1, 2, node=N1)
    assert scheduler.handle(ev.ClusterClosing(MAP)).sends == said(N2, RELEASE)
    assert scheduler.core.next_deadline() is None


def test_a_node_that_was_given_back_early_is_not_waited_for() -> None:
    """Two nodes were named: one is of no use and given back, the other cannot run what is left any more."""
    scheduler = core.Scheduler()
    scheduler.handle(ev.ClusterOpened(core.spec(), open_ended=False, named=2))
    scheduler.ready(N1)
    scheduler.handle(ev.NodeJoined(N2, NodeInfo(N2, "n2", 1, "x", (), tags=("a",)), "10.0.0.1"))
    scheduler.handle(ev.NodeAllocated(MAP, N2, 1))
    scheduler.said(N2, msg.LeaseGranted([], []))
    scheduler.said(N2, msg.ComputationReady(MAP))
    wish(scheduler, 1, 2, tags=("a",))
    assert scheduler.handle(ev.ClusterClosing(MAP)).sends == [Send(N1, CLOSE)]
    scheduler.said(N1, msg.ComputationClosed(MAP))
    cause = "no node can run it: n2 (10.0.0.1) does not have the tag a"
    effects = scheduler.said(N2, msg.NodeDescribed(info(N2)))
    assert endings(effects) == [(2, JobState.Abandoned, cause)]


# ---- steering ----


def test_jobs_that_name_a_node_which_the_user_closes_end_with_that_cause(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.submit(1)
    wish(scheduler, 2, node=N1)
    cause = "the cluster does not use node n1 (10.0.0.1), which it asks for"
    assert endings(steer(scheduler, Steering.CLOSE)) == [(2, JobState.Abandoned, cause)]


@pytest.mark.parametrize("is_used", [True, False], ids=["while it is closed", "after it was not used"])
def test_jobs_wait_for_a_node_that_the_user_wants_again(scheduler: Any, is_used: bool) -> None:
    if is_used:
        scheduler.ready()
        scheduler.submit(1)
    else:
        scheduler.join()
    steer(scheduler, Steering.CLOSE)
    steer(scheduler, Steering.USE)
    assert endings(wish(scheduler, 2, node=N1)) == []
    assert scheduler.core.lacks_nodes(2)


def test_a_node_that_the_user_closes_before_its_lease_was_granted_is_released(scheduler: Any) -> None:
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    assert steer(scheduler, Steering.CLOSE).sends == said(N1, RELEASE)


def test_a_node_that_is_idle_is_set_up_anew_by_closing_it_first(scheduler: Any) -> None:
    scheduler.ready()
    assert steer(scheduler, Steering.RENEW).sends == said(N1, CLOSE)
    assert scheduler.said(N1, msg.ComputationClosed(MAP)).notices[-1] == ASKED
    assert scheduler.handle(ev.NodeAllocated(MAP, N1, 1)).sends == said(N1, OPEN)


@pytest.mark.parametrize("final", [True, False])
def test_a_node_that_refused_and_still_has_jobs_is_set_up_anew_after_them(scheduler: Any, final: bool) -> None:
    scheduler.ready()
    scheduler.submit(1)
    scheduler.said(N1, msg.ComputationRefused(MAP, "the server of jobs died", final=final))
    assert steer(scheduler, Steering.RENEW) == Effects()
    effects = scheduler.done(N1, 1)
    assert (effects.sends, effects.notices[-1]) == ([], ASKED)
    assert scheduler.core.next_deadline() is None
    assert scheduler.handle(ev.NodeAllocated(MAP, N1, 1)).sends == said(N1, OPEN)


def test_a_node_that_refused_and_is_asked_again_meanwhile_is_not_set_up_twice(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.submit(1)
    scheduler.said(N1, msg.ComputationRefused(MAP, "disk full", final=False))
    steer(scheduler, Steering.RENEW)
    assert scheduler.timeout(10.0).sends == said(N1, OPEN)
    scheduler.done(N1, 1)
    assert scheduler.said(N1, msg.ComputationReady(MAP)).sends == []
    scheduler.handle(ev.NodeAllocated(MAP, N1, 0))
    assert scheduler.said(N1, msg.ComputationClosed(MAP)).sends == said(N1, RELEASE)
    assert REDUCE not in scheduler.core.snapshot().clusters
    assert not scheduler.core.uses(MAP, N3)


# ---- many jobs without hope ----


@pytest.fixture
def three_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "ENDED_AT_ONCE", 3)


@pytest.mark.usefixtures("three_at_once")
def test_many_jobs_for_which_there_is_no_node_end_by_portions(scheduler: Any) -> None:
    scheduler.submit(*range(1, 9))
    told = [scheduler.handle(ev.ClusterNarrowed(MAP, "no node can come"))]
    while scheduler.core.next_deadline() is not None:
        told.append(scheduler.timeout(scheduler.core.next_deadline()))
    assert [[job for job, *_ in endings(each)] for each in told] == [[1, 2, 3], [4, 5, 6], [7, 8]]
    assert {cause for each in told for *_, cause in endings(each)} == {"no node can come"}


@pytest.mark.usefixtures("three_at_once")
def test_all_jobs_that_name_a_node_which_was_lost_end_with_that_cause(scheduler: Any) -> None:
    scheduler.ready()
    steer(scheduler, Steering.PAUSE)
    wish(scheduler, *range(1, 5), node=N1)
    wish(scheduler, *range(5, 8), node=N1, priority=1)
    effects = [scheduler.handle(ev.NodeLost(N1, "it was restarted")), scheduler.timeout(0.0), scheduler.timeout(0.0)]
    cause = "node n1 (10.0.0.1), which it asks for, was lost (it was restarted)"
    ended = [end for each in effects for end in endings(each)]
    assert sorted(ended) == [(job, JobState.Abandoned, cause) for job in range(1, 8)]
    assert scheduler.core.next_deadline() is None


@pytest.mark.usefixtures("three_at_once")
def test_jobs_that_were_to_end_run_when_a_node_comes_in_time(scheduler: Any) -> None:
    scheduler.submit(*range(1, 6))
    scheduler.handle(ev.ClusterNarrowed(MAP, "no node can come"))
    assert core.sends_of(scheduler.ready(N1, 2)) == [(N1, [4, 5])]
    assert endings(scheduler.timeout(0.0)) == []
    assert scheduler.core.next_deadline() is None


@pytest.mark.usefixtures("three_at_once")
def test_a_cluster_is_over_when_the_last_of_them_has_ended(scheduler: Any) -> None:
    scheduler.submit(*range(1, 6))
    scheduler.handle(ev.ClusterClosing(MAP))
    assert not any(isinstance(each, ClusterEnded) for each in scheduler.handle(ev.ClusterNarrowed(MAP, "none")).notices)
    assert ClusterEnded(MAP) in scheduler.timeout(0.0).notices
