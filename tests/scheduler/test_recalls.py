"""Jobs that wait at one node while CPUs idle at another: how many are called back, from whom, and when again."""

from __future__ import annotations

from typing import Any

import pytest
import test_scheduler_core as core

from dispy.model import HeldAttempt, JobOptions, ProcessId
from dispy.scheduler import events as ev
from dispy.scheduler.effects import Effects
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages as msg

MAP, REDUCE, N1, N2, N3 = core.MAP, core.REDUCE, core.N1, core.N2, core.N3


@pytest.fixture
def scheduler() -> Any:
    """MAP and REDUCE are open on N1 (one CPU); five jobs may be sent ahead."""
    made = core.Scheduler()
    made.open()
    made.open(REDUCE)
    made.ready(N1, 1, MAP, REDUCE)
    made.submit(1)
    made.done(N1, 1, seconds=0.0023)
    return made


def recalls(effects: Effects) -> list[tuple[str, int]]:
    return [(send.node, send.message.count) for send in effects.sends if isinstance(send.message, msg.RecallJobs)]


def give_back(scheduler: Any, *numbers: int) -> Effects:
    held = [HeldAttempt(number, scheduler.jobs[number].attempt) for number in numbers]
    effects: Effects = scheduler.said(N1, msg.JobsRecalled(held))
    return effects


def wish(scheduler: Any, number: int, **options: Any) -> None:
    record = JobRecord(number, MAP, b"", options=JobOptions(**options))
    scheduler.jobs[number] = record
    scheduler.handle(ev.JobsSubmitted([record]))


def test_no_more_is_called_back_than_the_idle_cpus_need(scheduler: Any) -> None:
    """Two jobs wait at each of N1 and N2: one of them is enough for the one CPU of N3."""
    scheduler.ready(N2)
    scheduler.submit(*range(2, 8))
    assert [len(scheduler.core.jobs_at(node, MAP)) for node in (N1, N2)] == [3, 3]
    assert [count for _, count in recalls(scheduler.ready(N3))] == [1]


def test_what_is_on_its_way_back_already_is_not_called_back_again(scheduler: Any) -> None:
    scheduler.submit(2, 3, 4, 5, 6)
    assert recalls(scheduler.ready(N2, 2)) == [(N1, 2)]
    assert recalls(scheduler.handle(ev.CancelAsked([99]))) == []
    effects = give_back(scheduler, 5, 6)
    assert (core.sends_of(effects), recalls(effects)) == ([(N2, [5, 6])], [])


@pytest.mark.parametrize(
    ("given", "is_followed"),
    [((6,), True), ((2,), False), ((2, 6), True), ((6, 2), True), ((), False)],
    ids=["a job", "a pinned one", "both", "both, the pinned one last", "none"],
)
def test_a_recall_is_followed_by_another_when_it_brought_a_job_that_may_go_elsewhere(
    scheduler: Any, given: tuple[int, ...], is_followed: bool
) -> None:
    wish(scheduler, 2, node=N1)
    scheduler.submit(3, 4, 5, 6)
    assert recalls(scheduler.ready(N2, 4)) == [(N1, 4)]
    assert bool(recalls(give_back(scheduler, *given))) is is_followed


def test_a_recall_that_brought_only_a_cancelled_job_is_not_followed_by_another(scheduler: Any) -> None:
    scheduler.submit(2, 3, 4, 5, 6)
    assert recalls(scheduler.ready(N2, 4)) == [(N1, 4)]
    scheduler.handle(ev.CancelAsked([6]))
    assert recalls(give_back(scheduler, 6)) == []


def test_a_recall_that_brought_only_jobs_of_another_cluster_is_not_followed_by_another(scheduler: Any) -> None:
    scheduler.submit(2, cluster=REDUCE)
    scheduler.done(N1, 2, seconds=0.0023)
    scheduler.submit(3, cluster=REDUCE)
    scheduler.submit(4, 5, 6, 7)
    assert recalls(scheduler.ready(N2, 4)) == [(N1, 4)]
    assert recalls(give_back(scheduler, 3)) == []


def test_a_recall_that_brought_only_a_job_for_which_cpus_are_kept_is_not_followed_by_another() -> None:
    """Such jobs are not among those that wait for a turn: it could be given back again and again."""
    scheduler = core.Scheduler()
    scheduler.open()
    scheduler.ready(N1, 4)
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    wish(scheduler, 2, cpus=2)
    scheduler.submit(*range(3, 13))
    assert len(scheduler.core.jobs_at(N1, MAP)) == 11
    assert recalls(scheduler.ready(N2, 8)) == [(N1, 8)]
    effects = give_back(scheduler, 2)
    assert (core.sends_of(effects), recalls(effects)) == ([(N2, [2])], [])


def test_a_node_that_gave_nothing_is_asked_again_when_one_of_its_jobs_has_ended(scheduler: Any) -> None:
    scheduler.submit(2, 3, 4, 5, 6)
    scheduler.ready(N2, 4)
    assert recalls(give_back(scheduler)) == []
    assert recalls(scheduler.ready(N3)) == []
    assert recalls(scheduler.done(N1, 2, seconds=0.0023)) == [(N1, 3)]


def test_a_recall_for_a_cluster_that_has_ended_meanwhile_is_forgotten(scheduler: Any) -> None:
    scheduler.submit(2, 3, 4, 5, 6)
    scheduler.ready(N2, 4)
    scheduler.handle(ev.ClusterClosing(MAP, terminate=True))
    scheduler.done(N1, 2, 3, 4, 5, 6)
    for node in (N1, N2):
        scheduler.said(node, msg.ComputationClosed(MAP))
    assert [cluster.cluster for cluster in scheduler.core.snapshot().clusters] == [REDUCE]
    assert scheduler.said(N1, msg.JobsRecalled([])) == Effects()


@pytest.mark.parametrize("gone", [ev.LinkBroken(N1), ev.NodeLost(N1, "it burns")], ids=["no link", "lost"])
def test_when_a_node_that_was_asked_is_gone_another_is_asked_at_once(scheduler: Any, gone: ev.Event) -> None:
    """Whether the node had jobs of the cluster or not: else the idle CPU would wait for another event."""
    scheduler.ready(N2)
    scheduler.submit(*range(2, 10))
    assert recalls(scheduler.ready(N3, 2)) == [(N1, 2)]
    assert (N2, 2) in recalls(scheduler.handle(gone))


def test_a_job_that_waits_because_its_cluster_may_use_fewer_cpus_than_heavy_jobs_have_is_called_back() -> None:
    scheduler = core.Scheduler()
    scheduler.open()
    scheduler.ready(N1, 4)
    wish(scheduler, 1, cpus=3)
    scheduler.submit(2)
    scheduler.handle(ev.NodeAllocated(MAP, N1, 3))
    assert recalls(scheduler.ready(N2)) == [(N1, 1)]


# ---- jobs that take much longer than others of their cluster ----


@pytest.fixture
def stuck(scheduler: Any) -> Any:
    """MAP has N1 and N2 (one CPU each, five jobs may be sent ahead), 40 jobs; those at N1 have begun long ago."""
    scheduler.ready(N2)
    scheduler.submit(*range(2, 42))
    at = {node: [record.job for record in scheduler.core.jobs_at(node, MAP)] for node in (N1, N2)}
    assert [len(jobs) for jobs in at.values()] == [5, 5]
    assert recalls(scheduler.timeout(0.2)) == [], "they are seen for the first time"
    scheduler.now = 0.21
    scheduler.done(N2, *at[N2][:3], seconds=0.0023)
    scheduler.first = at[N1][0]
    return scheduler


def test_what_waits_behind_a_job_that_takes_long_is_called_back_while_others_wait(stuck: Any) -> None:
    assert recalls(stuck.timeout(0.23)) == [(N1, 4)]


def test_a_node_with_a_job_that_takes_long_gets_nothing_ahead_until_that_has_ended(stuck: Any) -> None:
    stuck.timeout(0.23)
    first, *back = [record.job for record in stuck.core.jobs_at(N1, MAP)]
    assert first == stuck.first
    give_back(stuck, *back)
    assert [record.job for record in stuck.core.jobs_at(N1, MAP)] == [first]
    assert back[0] in [record.job for record in stuck.core.jobs_at(N2, MAP)] or stuck.core.waiting
    stuck.done(N1, first, seconds=0.0023)
    assert len(stuck.core.jobs_at(N1, MAP)) == 5


def test_nothing_is_called_back_from_jobs_that_take_long_when_nobody_waits(scheduler: Any) -> None:
    scheduler.ready(N2)
    scheduler.submit(*range(2, 9))
    scheduler.timeout(0.2)
    assert recalls(scheduler.timeout(0.4)) == []


def test_the_more_nodes_there_are_the_more_seldom_running_jobs_are_looked_at(scheduler: Any) -> None:
    scheduler.submit(*range(2, 42))
    scheduler.timeout(0.2)
    assert scheduler.core.next_deadline() == pytest.approx(0.22)
    nodes = scheduler.core._tables.nodes
    nodes.update({ProcessId(f"{number:032x}"): nodes[N1] for number in range(499)})
    scheduler.core.handle_timeout(0.22)
    assert scheduler.core.next_deadline() == pytest.approx(0.32)
