"""What owners of clusters say of nodes, and when: too late, anew, while a computation is refused, closed or renewed."""

from __future__ import annotations

from typing import Any

import pytest
import test_scheduler_core as core

from dispy.model import ComputationId, JobState, ProcessId
from dispy.scheduler import events as ev
from dispy.scheduler.effects import Effects, JobsEnded, NodeClosed
from dispy.scheduler.events import Steering
from dispy.wire import messages as msg

MAP, REDUCE, N1, N2 = core.MAP, core.REDUCE, core.N1, core.N2
said, info, spec = core.said, core.info, core.spec
ASK, RELEASE = core.ASK, msg.ReleaseLease()


@pytest.fixture
def scheduler() -> Any:
    """MAP is open, and no other nodes can come than those that do."""
    made = core.Scheduler()
    made.open(open_ended=False)
    return made


@pytest.fixture
def busy(scheduler: Any) -> Any:
    """Job 1 of MAP runs on N1 (one CPU), jobs 2 and 3 wait."""
    scheduler.ready()
    scheduler.submit(1, 2, 3)
    return scheduler


def allocate(scheduler: Any, node: ProcessId, cpus: int, cluster: ComputationId = MAP) -> Effects:
    effects: Effects = scheduler.handle(ev.NodeAllocated(cluster, node, cpus))
    return effects


def steer(scheduler: Any, how: Steering, cpus: int = 0, *, terminate: bool = False) -> Effects:
    effects: Effects = scheduler.handle(ev.NodeSteered(MAP, N1, how, cpus, terminate))
    return effects


def ended_in(effects: Effects) -> list[tuple[int, JobState]]:
    notices = [notice for notice in effects.notices if isinstance(notice, JobsEnded)]
    return [(one.job.job, one.state) for notice in notices for one in notice.jobs]


@pytest.mark.parametrize(("cluster", "node"), [(REDUCE, N1), (MAP, N2)])
def test_an_answer_about_what_is_gone_is_ignored(scheduler: Any, cluster: ComputationId, node: ProcessId) -> None:
    scheduler.join(N1)
    assert allocate(scheduler, node, 1, cluster) == Effects()
    assert scheduler.core.counters.ignored == 1


def test_an_owner_that_wants_a_node_after_all_has_jobs_that_name_it_wait(scheduler: Any) -> None:
    scheduler.join()
    allocate(scheduler, N1, 0)
    assert allocate(scheduler, N1, 1).sends == said(N1, ASK)
    assert ended_in(scheduler.submit(1, node=N1)) == []


def test_jobs_end_when_their_owner_says_nothing_new_of_the_last_node_which_refused_for_good(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.said(N1, msg.ComputationRefused(MAP, "setup failed"))
    scheduler.said(N1, msg.NodeDescribed(info(N1, 2)))
    assert ended_in(scheduler.submit(1)) == [], "the node has more CPUs, and the owner is asked"
    assert ended_in(allocate(scheduler, N1, 2)) == [(1, JobState.Abandoned)]


def test_another_number_of_cpus_is_told_when_the_node_hears_again(scheduler: Any) -> None:
    scheduler.ready(N1, 4)
    scheduler.handle(ev.LinkBroken(N1))
    assert allocate(scheduler, N1, 2).sends == []
    scheduler.handle(ev.LinkResumed(N1))
    opened = msg.OpenComputation(spec(), b"", 2)
    assert scheduler.said(N1, msg.LeaseGranted([], [])).sends == said(N1, opened)


def test_a_computation_that_is_set_up_anew_with_other_cpus_is_opened_once(scheduler: Any) -> None:
    scheduler.ready(N1, 4)
    steer(scheduler, Steering.RENEW)
    scheduler.said(N1, msg.ComputationClosed(MAP))
    assert allocate(scheduler, N1, 2).sends == said(N1, msg.OpenComputation(spec(), b"", 2))


def test_an_answer_that_lets_a_cluster_use_more_than_is_offered_is_told_alone(scheduler: Any) -> None:
    scheduler.ready(N1, 4)
    effects = scheduler.handle(ev.NodeAllocated(MAP, N1, 4, oversubscribe=True))
    assert effects.sends == said(N1, msg.OpenComputation(spec(), b"", 0, oversubscribe=True))


def test_a_node_that_is_used_again_before_it_was_closed_is_not_renewed(busy: Any) -> None:
    allocate(busy, N1, 0)
    allocate(busy, N1, 1)
    busy.done(N1, 1)
    closed = busy.said(N1, msg.ComputationClosed(MAP)).notices[0]
    assert closed == NodeClosed(MAP, N1, "the cluster does not use it any more", renewing=False)


def test_what_is_closed_and_has_results_on_their_way_is_not_closed_again(busy: Any) -> None:
    allocate(busy, N1, 0)
    busy.said(N1, msg.ComputationClosed(MAP))
    assert steer(busy, Steering.CLOSE, terminate=True) == Effects()
    assert busy.done(N1, 1).sends == said(N1, RELEASE)


def test_a_node_that_refused_is_released_when_its_last_job_turns_out_not_to_have_arrived(busy: Any) -> None:
    busy.handle(ev.ClusterWidened(MAP))
    busy.said(N1, msg.ComputationRefused(MAP, "the server of jobs died"))
    busy.handle(ev.LinkBroken(N1))
    busy.handle(ev.LinkResumed(N1))
    assert busy.said(N1, msg.LeaseGranted([], [])).sends == said(N1, RELEASE)


def test_a_node_that_was_closed_is_let_go_when_its_last_job_turns_out_not_to_be_there(busy: Any) -> None:
    allocate(busy, N1, 0)
    busy.said(N1, msg.ComputationClosed(MAP))
    busy.handle(ev.LinkBroken(N1))
    assert busy.handle(ev.LinkResumed(N1)).sends == said(N1, ASK)
    assert busy.said(N1, msg.LeaseGranted([], [])).sends == said(N1, RELEASE)
    assert not busy.core.uses(MAP, N1)


def test_nodes_of_equal_load_are_used_in_the_order_in_which_they_joined(scheduler: Any) -> None:
    scheduler.join(N1)
    scheduler.ready(N2)
    allocate(scheduler, N1, 1)
    scheduler.said(N1, msg.LeaseGranted([], []))
    scheduler.said(N1, msg.ComputationReady(MAP))
    assert core.sends_of(scheduler.submit(1)) == [(N1, [1])]


def test_jobs_that_a_node_could_run_and_cannot_any_more_end(scheduler: Any) -> None:
    scheduler.ready(N1, 4)
    scheduler.submit(1, 2)
    record = core.JobRecord(3, MAP, b"", options=core.JobOptions(cpus=3))
    assert ended_in(scheduler.handle(ev.JobsSubmitted([record]))) == []
    assert ended_in(scheduler.said(N1, msg.NodeDescribed(info(N1, 2)))) == [(3, JobState.Abandoned)]
