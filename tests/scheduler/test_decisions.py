"""Decisions of the scheduler core that only few situations show: what waits, breaks or ends meanwhile. By value."""

from __future__ import annotations

from typing import Any

import pytest
import test_scheduler_core as core

from dispy.model import ComputationId, Ending, HeldAttempt, JobOptions, JobState, NodeInfo, ProcessId
from dispy.scheduler import events as ev
from dispy.scheduler.effects import (
    AskAllocation,
    ClusterEnded,
    Effects,
    JobsEnded,
    NodeClosed,
    NodeOffered,
    NodeRefused,
)
from dispy.scheduler.events import Steering
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages as msg

MAP, REDUCE, N1, N2, N3 = core.MAP, core.REDUCE, core.N1, core.N2, core.N3
ASK, HELD_BY, OTHER = core.ASK, core.HELD_BY, core.OTHER
Scheduler, only, said, info, sends_of, spec = (
    core.Scheduler,
    core.only,
    core.said,
    core.info,
    core.sends_of,
    core.spec,
)
RELEASE = msg.ReleaseLease()
OPEN, CLOSE = msg.OpenComputation(spec()), msg.CloseComputation(MAP)


@pytest.fixture
def scheduler() -> Any:
    """MAP is open; no node."""
    made = Scheduler()
    made.open()
    return made


@pytest.fixture
def busy(scheduler: Any) -> Any:
    """MAP is open, job 1 runs on N1 (one CPU), jobs 2 and 3 wait."""
    scheduler.ready()
    scheduler.submit(1, 2, 3)
    return scheduler


@pytest.fixture
def ahead(scheduler: Any) -> Any:
    """MAP is open, jobs 2 to 6 are on N1 (one CPU)."""
    scheduler.ready()
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    scheduler.submit(2, 3, 4, 5, 6)
    return scheduler


def wish(scheduler: Any, number: int, cluster: ComputationId = MAP, **options: Any) -> Effects:
    record = JobRecord(number, cluster, b"%d" % number, options=JobOptions(**options))
    scheduler.jobs[number] = record
    effects: Effects = scheduler.handle(ev.JobsSubmitted([record]))
    return effects


def allocate(scheduler: Any, node: ProcessId, cpus: int, cluster: ComputationId = MAP) -> Effects:
    effects: Effects = scheduler.handle(ev.NodeAllocated(cluster, node, cpus))
    return effects


def steer(scheduler: Any, how: Steering, cpus: int = 0, *, terminate: bool = False, node: ProcessId = N1) -> Effects:
    effects: Effects = scheduler.handle(ev.NodeSteered(MAP, node, how, cpus, terminate))
    return effects


def ended_in(effects: Effects) -> list[tuple[int, JobState]]:
    """Which jobs ended how."""
    notices = [notice for notice in effects.notices if isinstance(notice, JobsEnded)]
    return [(one.job.job, one.state) for notice in notices for one in notice.jobs]


# ---- a link breaks meanwhile ----


def test_what_a_node_said_before_its_link_broke_is_ignored_except_results(busy: Any) -> None:
    busy.handle(ev.LinkBroken(N1))
    for message in (msg.LeaseGranted([], []), msg.NodeDescribed(info(N1, 7)), msg.JobsRecalled([HeldAttempt(1, 1)])):
        assert busy.said(N1, message) == Effects()
    assert busy.core.counters.ignored == 3
    assert busy.core.snapshot().nodes[0].info == info(N1)
    assert busy.core.jobs_at(N1, MAP) == [busy.jobs[1]]


def test_nothing_is_sent_to_a_node_without_link_and_all_of_it_afterwards(busy: Any) -> None:
    busy.handle(ev.LinkBroken(N1))
    assert allocate(busy, N1, 0) == Effects()
    assert busy.handle(ev.LinkResumed(N1)).sends == said(N1, ASK)
    granted = msg.LeaseGranted([HeldAttempt(1, 1)], [MAP])
    assert busy.said(N1, granted).sends == said(N1, CLOSE)


def test_a_close_that_ends_jobs_is_said_again_after_a_break(busy: Any) -> None:
    busy.handle(ev.LinkBroken(N1))
    assert steer(busy, Steering.CLOSE, terminate=True) == Effects()
    busy.handle(ev.LinkResumed(N1))
    granted = msg.LeaseGranted([HeldAttempt(1, 1)], [MAP])
    assert busy.said(N1, granted).sends == said(N1, msg.CloseComputation(MAP, terminate=True))


def test_a_break_does_not_ask_for_a_lease_and_the_next_link_does(scheduler: Any) -> None:
    scheduler.join()
    scheduler.handle(ev.LinkBroken(N1))
    assert allocate(scheduler, N1, 1) == Effects()
    assert scheduler.handle(ev.LinkResumed(N1)) == Effects(said(N1, ASK))
    assert scheduler.core.next_deadline() is None


def test_a_node_that_nobody_wants_any_more_after_a_break_is_released(scheduler: Any) -> None:
    scheduler.join()
    allocate(scheduler, N1, 1)
    scheduler.handle(ev.LinkBroken(N1))
    assert allocate(scheduler, N1, 0) == Effects()
    assert scheduler.handle(ev.LinkResumed(N1)) == Effects(said(N1, RELEASE))


def test_a_break_ends_a_recall(ahead: Any) -> None:
    assert ahead.ready(N2).sends == said(N1, msg.RecallJobs(2))
    ahead.handle(ev.LinkBroken(N1))
    ahead.handle(ev.LinkResumed(N1))
    held = [HeldAttempt(number, 1) for number in (2, 3, 4, 5, 6)]
    assert ahead.said(N1, msg.LeaseGranted(held, [MAP])).sends == said(N1, msg.RecallJobs(2))


def test_a_break_lets_a_node_be_asked_again_that_gave_nothing_back(ahead: Any) -> None:
    ahead.ready(N2)
    assert ahead.said(N1, msg.JobsRecalled([])).sends == []
    ahead.handle(ev.LinkBroken(N1))
    ahead.handle(ev.LinkResumed(N1))
    held = [HeldAttempt(number, 1) for number in (2, 3, 4, 5, 6)]
    assert ahead.said(N1, msg.LeaseGranted(held, [MAP])).sends == said(N1, msg.RecallJobs(2))


def test_a_silent_node_whose_link_breaks_is_trusted_again_on_the_next(busy: Any) -> None:
    busy.handle(ev.NodeSuspected(N1))
    busy.handle(ev.LinkBroken(N1))
    busy.handle(ev.LinkResumed(N1))
    busy.said(N1, msg.LeaseGranted([HeldAttempt(1, 1)], [MAP]))
    assert sends_of(busy.done(N1, 1)) == [(N1, [2])]


def test_a_cancelled_attempt_that_never_arrived_ends(busy: Any) -> None:
    busy.handle(ev.LinkBroken(N1))
    busy.handle(ev.CancelAsked([1]))
    busy.handle(ev.LinkResumed(N1))
    effects = busy.said(N1, msg.LeaseGranted([], [MAP]))
    assert ended_in(effects) == [(1, JobState.Cancelled)]
    assert sends_of(effects) == [(N1, [2])]


def test_a_heavy_attempt_that_never_arrived_frees_its_cpus(scheduler: Any) -> None:
    scheduler.ready(N1, 2)
    wish(scheduler, 1, cpus=2)
    scheduler.handle(ev.LinkBroken(N1))
    scheduler.handle(ev.LinkResumed(N1))
    effects = scheduler.said(N1, msg.LeaseGranted([], [MAP]))
    assert sends_of(effects) == [(N1, [1])]
    assert scheduler.jobs[1].attempt == 1


def test_an_answer_to_an_older_question_about_the_lease_changes_nothing(busy: Any) -> None:
    assert busy.said(N1, msg.LeaseGranted([], [])) == Effects()
    assert busy.core.counters.ignored == 1
    assert busy.core.jobs_at(N1, MAP) == [busy.jobs[1]]


def test_a_refusal_of_a_lease_that_was_not_asked_for_changes_nothing(scheduler: Any) -> None:
    scheduler.join()
    assert scheduler.said(N1, msg.LeaseRefused(OTHER)) == Effects()
    assert scheduler.core.counters.ignored == 1
    assert scheduler.core.snapshot().nodes[0].holder is None


def test_who_holds_a_node_is_forgotten_with_the_link(scheduler: Any) -> None:
    scheduler.join()
    allocate(scheduler, N1, 1)
    scheduler.said(N1, msg.LeaseRefused(OTHER))
    assert scheduler.core.snapshot().nodes[0].holder == OTHER
    scheduler.handle(ev.LinkBroken(N1))
    scheduler.handle(ev.LinkResumed(N1))
    assert scheduler.core.snapshot().nodes[0].holder is None
    assert scheduler.core.snapshot().nodes[0].state == "asked"


def test_a_lost_node_leaves_no_deadline(busy: Any) -> None:
    busy.handle(ev.LinkBroken(N1))
    busy.handle(ev.NodeLost(N1, "it burns"))
    assert busy.core.next_deadline() is None


def test_two_deadlines_at_once(scheduler: Any) -> None:
    """The node without link is lost, and with it the share that would have been asked again."""
    scheduler.ready(N1)
    scheduler.said(N1, msg.ComputationRefused(MAP, "disk full", final=False))
    scheduler.now = 5.0
    scheduler.handle(ev.LinkBroken(N1))
    assert scheduler.core.next_deadline() == 10.0
    assert scheduler.timeout(9.9) == Effects()
    effects = scheduler.timeout(10.0)
    assert effects.sends == []
    assert isinstance(effects.notices[-1], NodeClosed)
    assert scheduler.core.next_deadline() is None


# ---- recalls ----


def test_a_node_is_let_go_when_it_gives_back_its_last_jobs_after_its_end(ahead: Any) -> None:
    ahead.ready(N2)
    allocate(ahead, N1, 0)
    for number in (2, 3, 4):
        ahead.done(N1, number, seconds=0.0023)
    ahead.said(N1, msg.ComputationClosed(MAP))
    effects = ahead.said(N1, msg.JobsRecalled([HeldAttempt(5, 1), HeldAttempt(6, 1)]))
    assert RELEASE in [send.message for send in effects.sends]
    assert sends_of(effects) == [(N2, [5, 6])]


def test_a_recall_that_brought_only_pinned_or_cancelled_jobs_brought_nothing(ahead: Any) -> None:
    assert ahead.ready(N2).sends == said(N1, msg.RecallJobs(2))
    ahead.handle(ev.CancelAsked([6]))
    assert ahead.said(N1, msg.JobsRecalled([HeldAttempt(6, 1)])).sends == [], "it is not asked again at once"


def test_a_recall_that_brought_a_job_is_followed_by_the_next_while_others_idle(ahead: Any) -> None:
    assert ahead.ready(N2, 4).sends == said(N1, msg.RecallJobs(4))
    effects = ahead.said(N1, msg.JobsRecalled([HeldAttempt(6, 1)]))
    assert sends_of(effects) == [(N2, [6])]
    assert effects.sends[-1].message == msg.RecallJobs(3)


def test_what_a_node_gives_back_that_it_does_not_have_is_counted(busy: Any) -> None:
    given = [HeldAttempt(1, 9), HeldAttempt(99, 1), HeldAttempt(2, 0)]
    busy.said(N1, msg.JobsRecalled(given))
    assert busy.core.counters.ignored == 3
    assert busy.core.jobs_at(N1, MAP) == [busy.jobs[1]]


# ---- refusals and closing ----


def test_what_a_node_does_for_the_first_job_of_an_open_computation_is_known(busy: Any) -> None:
    assert busy.said(N1, msg.ComputationAdvanced(MAP, "its code is being loaded")) == Effects()
    assert busy.core.explain(1).endswith("which is preparing the computation: its code is being loaded.")
    assert busy.core.explain(1, busy.now + 3.5).endswith("its code is being loaded since 3 s.")
    assert busy.said(N1, msg.ComputationReady(MAP)) == Effects(), "nobody is told twice that it is open"
    assert busy.core.explain(1).endswith("and runs there or is about to.")


def test_what_a_node_says_of_a_computation_that_is_not_open_is_counted(busy: Any) -> None:
    busy.said(N1, msg.ComputationAdvanced(REDUCE, "setup"))
    busy.said(N1, msg.ComputationReady(REDUCE))
    busy.said(N1, msg.ComputationRefused(REDUCE, "no"))
    busy.said(N1, msg.ComputationClosed(REDUCE))
    busy.said(N1, msg.ComputationClosed(MAP))
    assert busy.core.counters.ignored == 5


def test_a_refusal_of_a_computation_that_closes_is_ignored(busy: Any) -> None:
    allocate(busy, N1, 0)
    assert busy.said(N1, msg.ComputationRefused(MAP, "no")) == Effects()
    assert busy.core.counters.ignored == 1


def test_a_node_that_refused_and_is_given_back_is_asked_no_more(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.said(N1, msg.ComputationRefused(MAP, "disk full", final=False))
    assert allocate(scheduler, N1, 0).sends == said(N1, RELEASE)
    assert scheduler.core.next_deadline() is None
    assert not scheduler.core.uses(MAP, N1)


def test_a_node_that_refused_for_good_is_kept_while_it_still_has_jobs(busy: Any) -> None:
    assert busy.said(N1, msg.ComputationRefused(MAP, "the server of jobs died")).sends == []
    assert busy.done(N1, 1).sends == said(N1, RELEASE)


def test_a_node_that_was_given_back_and_still_has_jobs_is_let_go_with_the_last(busy: Any) -> None:
    busy.said(N1, msg.ComputationRefused(MAP, "disk full", final=False))
    assert allocate(busy, N1, 0).sends == []
    assert busy.timeout(10.0) == Effects(), "it is not asked again"
    assert busy.done(N1, 1).sends == said(N1, RELEASE)
    assert not busy.core.uses(MAP, N1)


def test_a_node_that_somebody_else_holds_is_told_to_each_cluster_that_wants_it_later(scheduler: Any) -> None:
    scheduler.open(REDUCE)
    scheduler.join()
    allocate(scheduler, N1, 1)
    scheduler.said(N1, msg.LeaseRefused(OTHER))
    assert allocate(scheduler, N1, 1, REDUCE) == only(NodeRefused(REDUCE, N1, HELD_BY, holder=OTHER))


def test_a_lease_that_goes_to_somebody_else_ends_a_share_that_was_closing(busy: Any) -> None:
    busy.handle(ev.LinkBroken(N1))
    busy.handle(ev.LinkResumed(N1))
    allocate(busy, N1, 0)
    effects = busy.said(N1, msg.LeaseRefused(OTHER))
    assert ended_in(effects) == [(1, JobState.Abandoned)]
    assert NodeClosed(MAP, N1, "the cluster does not use it any more") in effects.notices
    assert effects.sends == said(N1, RELEASE), "it leaves the line"


def test_a_node_is_used_again_by_a_cluster_whose_share_was_closing(busy: Any) -> None:
    allocate(busy, N1, 0)
    allocate(busy, N1, 1)
    busy.done(N1, 1)
    effects = busy.said(N1, msg.ComputationClosed(MAP))
    assert effects.sends == said(N1, OPEN)
    assert sends_of(busy.said(N1, msg.ComputationReady(MAP))) == [(N1, [2])]


def test_a_computation_that_is_reopened_forgets_that_its_jobs_were_to_be_ended(busy: Any) -> None:
    steer(busy, Steering.CLOSE, terminate=True)
    allocate(busy, N1, 1)
    busy.done(N1, 1, ending=Ending.INTERRUPTED)
    busy.said(N1, msg.ComputationClosed(MAP))
    busy.said(N1, msg.ComputationReady(MAP))
    assert allocate(busy, N1, 0).sends == said(N1, CLOSE)
    assert steer(busy, Steering.CLOSE, terminate=True).sends == said(N1, msg.CloseComputation(MAP, terminate=True))


def test_fewer_cpus_are_told_to_a_node_that_still_opens_the_computation(scheduler: Any) -> None:
    scheduler.join(N1, 4)
    allocate(scheduler, N1, 4)
    scheduler.said(N1, msg.LeaseGranted([], []))
    assert allocate(scheduler, N1, 2).sends == said(N1, msg.OpenComputation(spec(), b"", 2))
    assert allocate(scheduler, N1, 2) == Effects(), "nothing has changed"


def test_an_offer_is_told_only_to_clusters_that_are_open_there(scheduler: Any) -> None:
    scheduler.open(REDUCE)
    scheduler.ready(N1, 2)
    allocate(scheduler, N1, 2, REDUCE)
    assert scheduler.said(N1, msg.NodeDescribed(info(N1, 1))).notices == [NodeOffered(MAP, N1, 1, 1)]


def test_closing_a_cluster_that_was_draining_ends_its_jobs(busy: Any) -> None:
    busy.handle(ev.ClusterClosing(MAP))
    effects = busy.handle(ev.ClusterClosing(MAP, terminate=True))
    assert ended_in(effects) == [(2, JobState.Cancelled), (3, JobState.Cancelled)]
    assert busy.handle(ev.ClusterClosing(MAP)) == Effects(), "it goes on being terminated"
    assert busy.core.snapshot().clusters[0].state == "terminating"


def test_opening_a_cluster_twice_is_a_bug(scheduler: Any) -> None:
    with pytest.raises(core.InvalidTransition, match="was opened twice"):
        scheduler.open()


def test_a_closed_cluster_lets_go_of_nodes_of_which_its_owner_was_only_asked(scheduler: Any) -> None:
    scheduler.join()
    assert scheduler.handle(ev.ClusterClosing(MAP)) == Effects(said(N1, RELEASE), [ClusterEnded(MAP)])


def test_a_draining_cluster_uses_nodes_that_come_and_one_without_jobs_does_not(busy: Any) -> None:
    busy.handle(ev.ClusterClosing(MAP))
    assert busy.join(N2).notices == [AskAllocation(MAP, N2, info(N2), "10.0.0.1")]
    for number in (1, 2, 3):
        busy.done(N1, number)
    assert busy.join(N3) == Effects(said(N3, RELEASE))


def test_a_terminating_cluster_asks_for_no_node(busy: Any) -> None:
    busy.handle(ev.ClusterClosing(MAP, terminate=True))
    assert busy.join(N2) == Effects(said(N2, RELEASE))


# ---- questions ----


def test_whose_attempt_it_is(busy: Any) -> None:
    runs = busy.core.runs
    assert runs(N1, 1, 1)
    assert not runs(N2, 1, 1)
    assert not runs(N1, 1, 2)
    assert not runs(N1, 99, 1)
    assert busy.core.uses(MAP, N1)
    assert not busy.core.uses(MAP, N2)


def test_whether_a_job_waits_for_want_of_nodes(busy: Any) -> None:
    assert not busy.core.lacks_nodes(1), "it runs"
    assert not busy.core.lacks_nodes(2), "it is the next on N1"
    assert not busy.core.lacks_nodes(99)
    busy.handle(ev.NodeLost(N1, "it was killed"))
    assert busy.core.lacks_nodes(2)
    assert not busy.core.uses(REDUCE, N1)


def test_time_goes_on_when_something_is_due(scheduler: Any) -> None:
    scheduler.submit(1)
    scheduler.ready(N1)
    scheduler.submit(2)
    scheduler.join(N2)
    allocate(scheduler, N2, 1)
    scheduler.said(N2, msg.LeaseGranted([], []))
    scheduler.said(N2, msg.ComputationAdvanced(MAP, "setup still running"))
    scheduler.timeout(7.0)
    assert "setup still running since 7 s" in scheduler.core.explain(2)


def test_what_waits_is_told_when_nothing_of_its_cluster_runs(scheduler: Any) -> None:
    assert scheduler.core.why_waiting() is None
    scheduler.submit(1)
    assert scheduler.core.why_waiting() == "1 job waits: no node has been found."


def test_the_state_of_a_node_for_people(busy: Any) -> None:
    busy.handle(ev.NodeSuspected(N1))
    assert busy.core.snapshot().nodes[0].state == "suspect"
    busy.handle(ev.LinkBroken(N1))
    assert busy.core.snapshot().nodes[0].state == "broken"


def test_a_node_with_a_new_link_says_anew_what_it_is(scheduler: Any) -> None:
    scheduler.join()
    described = NodeInfo(N1, "renamed", 3, "x", ())
    scheduler.handle(ev.NodeJoined(N1, described, "10.0.0.2"))
    view = scheduler.core.snapshot().nodes[0]
    assert (view.info, view.address) == (described, "10.0.0.2")


# ---- jobs ----


def test_jobs_of_several_clusters_submitted_together(scheduler: Any) -> None:
    scheduler.open(REDUCE)
    scheduler.ready(N1, 1, MAP)
    scheduler.ready(N2, 1, REDUCE)
    records = [JobRecord(1, MAP, b"1"), JobRecord(2, REDUCE, b"2"), JobRecord(3, core.ComputationId("9" * 32), b"3")]
    records += [JobRecord(4, MAP, b"4", options=JobOptions(node=N1)), JobRecord(5, MAP, b"5")]
    scheduler.jobs.update((record.job, record) for record in records)
    effects = scheduler.handle(ev.JobsSubmitted(records))
    assert ended_in(effects) == [(3, JobState.Cancelled)]
    assert sorted(sends_of(effects)) == [(N1, [1]), (N2, [2])]
    assert (scheduler.core.counters.submitted, scheduler.core.counters.ended) == (5, 1)
    assert sends_of(scheduler.done(N1, 1)) == [(N1, [4])]
    assert sends_of(scheduler.done(N1, 4)) == [(N1, [5])]


def test_a_cluster_without_hope_waits_for_what_its_owner_says_of_a_node(scheduler: Any) -> None:
    scheduler.join()
    assert scheduler.submit(1) == Effects()
    assert scheduler.handle(ev.ClusterNarrowed(MAP, "no other can come")) == Effects()
    assert ended_in(allocate(scheduler, N1, 0)) == [(1, JobState.Abandoned)]


def test_a_cluster_without_hope_goes_on_with_the_nodes_that_it_has(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.handle(ev.ClusterNarrowed(MAP, "no other can come"))
    assert sends_of(scheduler.submit(1, 2)) == [(N1, [1])]
    effects = scheduler.handle(ev.NodeLost(N1, "it burns"))
    assert ended_in(effects) == [(1, JobState.Abandoned), (2, JobState.Abandoned)]


@pytest.mark.parametrize("final", [True, False])
def test_jobs_that_ask_for_a_node_wait_unless_it_refused_for_good(busy: Any, final: bool) -> None:
    busy.ready(N2)
    assert wish(busy, 4, node=N1) == Effects()
    effects = busy.said(N1, msg.ComputationRefused(MAP, "no room", final=final))
    assert ended_in(effects) == ([(4, JobState.Abandoned)] if final else [])


def test_idle_cpus_are_served_by_as_few_recalls_as_will_do(scheduler: Any) -> None:
    """Both N1 and N2 have four jobs that wait; the one idle CPU of N3 is served by one of them."""
    for node in (N1, N2):
        scheduler.ready(node)
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    scheduler.submit(*range(2, 12))
    sends = scheduler.ready(N3).sends
    assert [send.message for send in sends] == [msg.RecallJobs(2)]


def test_many_idle_cpus_are_served_by_several_recalls(scheduler: Any) -> None:
    for node in (N1, N2):
        scheduler.ready(node)
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    scheduler.submit(*range(2, 12))
    sends = scheduler.ready(N3, 6).sends
    assert [send.message for send in sends] == [msg.RecallJobs(4), msg.RecallJobs(2)]


@pytest.mark.parametrize("kind", ["pinned", "heavy", "of another cluster"])
def test_a_recall_that_brought_what_cannot_go_elsewhere_is_not_repeated(scheduler: Any, kind: str) -> None:
    scheduler.open(REDUCE)
    scheduler.ready(N1, 1, MAP, REDUCE)
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    if kind == "pinned":
        for number in (2, 3):
            wish(scheduler, number, node=N1)
    elif kind == "of another cluster":
        scheduler.submit(2, 3, cluster=REDUCE)
    else:
        wish(scheduler, 2, cpus=0)
        scheduler.submit(3)
    scheduler.submit(4, 5, 6)
    before = scheduler.core.jobs_at(N1, MAP) + scheduler.core.jobs_at(N1, REDUCE)
    scheduler.ready(N2)
    given = [HeldAttempt(one.job, 1) for one in before if one.job in (2, 3)][-1:]
    effects = scheduler.said(N1, msg.JobsRecalled(given))
    assert not [send for send in effects.sends if isinstance(send.message, msg.RecallJobs)]


# ---- idle nodes: what they could run is known to be gone with them ----


def test_an_idle_node_that_goes_to_somebody_else(scheduler: Any) -> None:
    scheduler.ready()
    effects = scheduler.said(N1, msg.LeaseRefused(OTHER))
    assert [type(notice) for notice in effects.notices] == [NodeClosed, NodeRefused]
    assert scheduler.submit(1) == Effects()


def test_an_idle_node_with_a_new_link_gets_work_when_it_has_granted_its_lease(scheduler: Any) -> None:
    scheduler.ready()
    assert scheduler.handle(ev.LinkResumed(N1)).sends == said(N1, ASK)
    assert scheduler.submit(1) == Effects()
    assert sends_of(scheduler.said(N1, msg.LeaseGranted([], [MAP]))) == [(N1, [1])]


@pytest.mark.parametrize("event", [ev.NodeSuspected(N1), ev.LinkBroken(N1)])
def test_an_idle_node_that_is_silent_or_without_link(scheduler: Any, event: Any) -> None:
    scheduler.ready()
    scheduler.handle(event)
    assert scheduler.submit(1) == Effects()


def test_an_idle_node_that_refuses_or_is_closed_or_paused(scheduler: Any) -> None:
    for node in (N1, N2, N3):
        scheduler.ready(node)
    scheduler.said(N1, msg.ComputationRefused(MAP, "no room", final=False))
    allocate(scheduler, N2, 0)
    steer(scheduler, Steering.PAUSE, node=N3)
    assert scheduler.submit(1) == Effects()


def test_a_lost_node_that_was_kept_free_for_a_job_frees_the_line(scheduler: Any) -> None:
    scheduler.ready(N1, 2)
    scheduler.submit(1)
    wish(scheduler, 2, cpus=2)
    assert sends_of(scheduler.submit(3)) == []
    scheduler.handle(ev.NodeLost(N1, "it burns"))
    effects = scheduler.ready(N2, 2)
    assert sends_of(effects) == [(N2, [2])]
    assert sends_of(scheduler.done(N2, 2)) == [(N2, [3])]


# ---- steering meanwhile ----


def test_a_node_that_is_being_closed_is_neither_capped_nor_renewed(busy: Any) -> None:
    steer(busy, Steering.CLOSE)
    assert steer(busy, Steering.CAP, 1) == Effects()
    assert steer(busy, Steering.RENEW, terminate=True) == Effects()
    busy.done(N1, 1)
    assert busy.said(N1, msg.ComputationClosed(MAP)).sends == said(N1, RELEASE)


def test_a_node_is_set_up_anew_once_at_a_time(busy: Any) -> None:
    steer(busy, Steering.RENEW)
    assert steer(busy, Steering.RENEW) == Effects()
    busy.done(N1, 1)
    assert busy.said(N1, msg.ComputationClosed(MAP)).notices[1:] == [AskAllocation(MAP, N1, info(N1), "10.0.0.1")]
    assert steer(busy, Steering.RENEW) == Effects()
    assert allocate(busy, N1, 1).sends == said(N1, OPEN)


def test_a_node_that_refused_for_now_is_set_up_anew_at_once(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.said(N1, msg.ComputationRefused(MAP, "disk full", final=False))
    assert steer(scheduler, Steering.RENEW) == only(AskAllocation(MAP, N1, info(N1), "10.0.0.1"))
    assert scheduler.core.next_deadline() is None
    assert allocate(scheduler, N1, 1).sends == said(N1, OPEN)


def test_a_node_that_refused_for_good_and_was_released_is_asked_for_again_to_be_set_up_anew(scheduler: Any) -> None:
    scheduler.ready()
    assert scheduler.said(N1, msg.ComputationRefused(MAP, "setup failed")).sends == said(N1, RELEASE)
    assert steer(scheduler, Steering.RENEW) == Effects(said(N1, ASK), [AskAllocation(MAP, N1, info(N1), "10.0.0.1")])
    assert scheduler.said(N1, msg.LeaseGranted([], [])) == Effects()
    assert allocate(scheduler, N1, 1).sends == said(N1, OPEN)


def test_what_is_steered_and_not_known_is_counted(busy: Any) -> None:
    busy.handle(ev.ClusterNarrowed(REDUCE))
    busy.handle(ev.ClusterWidened(REDUCE))
    busy.handle(ev.NodeSteered(REDUCE, N1, Steering.USE))
    busy.handle(ev.NodeSteered(MAP, N2, Steering.CLOSE))
    busy.join(N2)
    busy.handle(ev.NodeSteered(MAP, N2, Steering.PAUSE))
    assert busy.core.counters.ignored == 5


def test_a_closing_cluster_gives_back_only_what_is_ready_and_idle(scheduler: Any) -> None:
    scheduler.ready(N1)
    scheduler.join(N2)
    allocate(scheduler, N2, 1)
    scheduler.ready(N3)
    wish(scheduler, 1, node=N1)
    wish(scheduler, 2, node=N1)
    assert scheduler.handle(ev.ClusterClosing(MAP)).sends == [core.Send(N3, CLOSE)]
    assert scheduler.said(N2, msg.LeaseGranted([], [])).sends == said(N2, OPEN)
    assert scheduler.said(N2, msg.ComputationReady(MAP)).sends == said(N2, CLOSE)


def test_a_closing_cluster_with_plain_jobs_or_without_waiting_ones_keeps_its_nodes(scheduler: Any) -> None:
    scheduler.ready(N1)
    scheduler.ready(N2)
    wish(scheduler, 1, node=N1)
    assert scheduler.handle(ev.ClusterClosing(MAP)).sends == [], "nothing waits"
    other = Scheduler()
    other.open()
    other.ready(N1)
    other.ready(N2)
    other.handle(ev.NodeSuspected(N2))
    wish(other, 1, node=N1)
    wish(other, 2, node=N1)
    other.submit(3)
    assert other.handle(ev.ClusterClosing(MAP)).sends == [], "the plain job may run there"


# ---- jobs with wishes ----


def test_what_only_a_node_can_run_of_which_nothing_was_said_yet_waits(scheduler: Any) -> None:
    scheduler.ready(N1)
    scheduler.join(N2, 4)
    scheduler.handle(ev.ClusterNarrowed(MAP))
    assert wish(scheduler, 1, cpus=4) == Effects()
    assert ended_in(allocate(scheduler, N2, 0)) == [(1, JobState.Abandoned)]


def test_the_node_that_can_be_free_soonest_is_kept_free(scheduler: Any) -> None:
    scheduler.ready(N1, 2)
    scheduler.ready(N2, 3)
    scheduler.submit(1, 2, 3, 4, 5)
    first = [one.job for one in scheduler.core.jobs_at(N1, MAP)]
    second = [one.job for one in scheduler.core.jobs_at(N2, MAP)]
    assert (len(first), len(second)) == (2, 3)
    wish(scheduler, 6, priority=1)
    assert sends_of(scheduler.done(N2, second[0])) == [(N2, [6])]
    scheduler.handle(ev.CancelAsked([6]))
    scheduler.done(N2, 6)
    wish(scheduler, 7, cpus=2)
    assert sends_of(scheduler.submit(8)) == [], "N2 is kept free, which lacks only one CPU"
    assert sends_of(scheduler.done(N2, second[1])) == [(N2, [7])]
