"""Batches of results: of several clusters, of jobs with retries, of attempts that were lost; what is told and kept."""

from __future__ import annotations

from typing import Any

import pytest
import test_scheduler_core as core

from dispy.model import Ending, HeldAttempt, JobOptions, JobState, ProcessId
from dispy.scheduler import events as ev
from dispy.scheduler.effects import Effects, JobRequeued, JobsEnded
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages as msg

MAP, REDUCE, N1, N2, N3 = core.MAP, core.REDUCE, core.N1, core.N2, core.N3
result, said = core.result, core.said


@pytest.fixture
def scheduler() -> Any:
    """MAP, whose jobs may run twice, is open; no node."""
    made = core.Scheduler()
    made.open(reentrant=True)
    return made


@pytest.fixture
def returning(scheduler: Any) -> Any:
    """The node with the first attempt of job 1 was lost; it runs again on N3, and N2 is the lost one, restarted."""
    scheduler.ready(N1)
    scheduler.submit(1)
    scheduler.handle(ev.NodeLost(N1, "it was restarted"))
    scheduler.ready(N3)
    scheduler.ready(N2)
    return scheduler


def wish(scheduler: Any, number: int, **options: Any) -> Effects:
    record = JobRecord(number, MAP, b"", options=JobOptions(**options))
    scheduler.jobs[number] = record
    effects: Effects = scheduler.handle(ev.JobsSubmitted([record]))
    return effects


def bring(scheduler: Any, node: ProcessId, attempt: int = 1) -> Effects:
    """A node brings the result of an attempt at job 1."""
    effects: Effects = scheduler.handle(ev.NodeSaid(node, msg.JobsDone(1, [result(1, attempt)]), [b"r"]))
    return effects


def test_results_of_several_clusters_in_one_batch_count_for_each(scheduler: Any) -> None:
    scheduler.open(REDUCE)
    scheduler.ready(N1, 4, MAP, REDUCE)
    scheduler.submit(1, 2)
    scheduler.submit(3, cluster=REDUCE)
    batch = [result(1, seconds=1.0), result(3, seconds=5.0), result(2, seconds=3.0)]
    scheduler.handle(ev.NodeSaid(N1, msg.JobsDone(1, batch), [b"r"] * 3))
    clusters = scheduler.core.snapshot().clusters
    # the mean moves by one seventeenth of the difference with a further job
    assert [(view.in_flight, view.mean) for view in clusters] == [(0, pytest.approx(1 + 2 / 17)), (0, 5.0)]
    assert scheduler.core.counters.ended == 3


def test_only_jobs_that_ran_and_took_turns_are_measured(scheduler: Any) -> None:
    scheduler.ready(N1, 4)
    wish(scheduler, 1, cpus=2)
    scheduler.submit(2, 3)
    scheduler.done(N1, 1, seconds=9.0)
    scheduler.done(N1, 2, ending=Ending.NOT_STARTED)
    assert scheduler.core.snapshot().clusters[0].mean is None
    scheduler.done(N1, 3, ending=Ending.RAISED, seconds=2.0)
    assert scheduler.core.snapshot().clusters[0].mean == 2.0


def test_people_read_how_many_retries_are_left(scheduler: Any) -> None:
    scheduler.ready()
    wish(scheduler, 1, retries=3)
    texts = []
    for _ in range(3):
        effects = scheduler.done(N1, 1, ending=Ending.DIED)
        texts += [notice.cause for notice in effects.notices if isinstance(notice, JobRequeued)]
    where = "its worker process died (on node n1 (10.0.0.1);"
    assert texts == [
        f"{where} 2 more retries after this)",
        f"{where} 1 more retry after this)",
        f"{where} no more retries after this)",
    ]


def test_a_job_of_a_closed_cluster_is_cancelled_at_once(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.submit(1)
    scheduler.handle(ev.ClusterClosing(MAP))
    scheduler.submit(2)
    assert (scheduler.jobs[1].state, scheduler.jobs[2].state) == (JobState.Running, JobState.Cancelled)


def test_an_attempt_that_did_not_start_uses_up_no_retry(scheduler: Any) -> None:
    scheduler.ready()
    wish(scheduler, 1, retries=1)
    effects = scheduler.done(N1, 1, ending=Ending.NOT_STARTED)
    assert core.sends_of(effects) == [(N1, [1])]
    assert not [notice for notice in effects.notices if isinstance(notice, JobRequeued)]
    assert (scheduler.jobs[1].retries, scheduler.core.counters.retried) == (1, 0)


def test_a_job_that_was_interrupted_at_its_node_is_not_tried_again(scheduler: Any) -> None:
    scheduler.ready()
    wish(scheduler, 1, retries=1)
    (ended,) = scheduler.done(N1, 1, ending=Ending.INTERRUPTED).notices
    assert isinstance(ended, JobsEnded)
    assert [(one.state, one.cause) for one in ended.jobs] == [(JobState.Terminated, "interrupted while it ran")]


def test_a_failure_that_is_tried_again_ends_a_row_of_losses(scheduler: Any) -> None:
    """Two nodes were lost while they ran it, then it failed on a third, then another two are lost."""
    wish(scheduler, 1, retries=1)
    nodes = [ProcessId(letter * 32) for letter in "abcde"]
    core.NAMES.update({node: node[0] for node in nodes if node not in core.NAMES})
    for node in nodes[:3]:
        scheduler.ready(node)
    scheduler.handle(ev.NodeLost(nodes[0], "gone"))
    scheduler.handle(ev.NodeLost(nodes[1], "gone"))
    scheduler.done(nodes[2], 1, ending=Ending.RAISED)
    scheduler.handle(ev.NodeLost(nodes[2], "gone"))
    scheduler.ready(nodes[3])
    scheduler.handle(ev.NodeLost(nodes[3], "gone"))
    assert core.sends_of(scheduler.ready(nodes[4])) == [(nodes[4], [1])]


def test_a_lost_node_that_is_here_again_ends_nothing_with_an_old_result(scheduler: Any) -> None:
    """It was the process that was thought to be lost: it will be told to end the attempt, or was."""
    scheduler.ready(N1)
    scheduler.submit(1)
    scheduler.handle(ev.NodeLost(N1, "silence"))
    scheduler.join(N1)
    assert bring(scheduler, N1).notices == []
    assert (scheduler.core.counters.dropped, scheduler.jobs[1].state) == (1, JobState.Created)


def test_a_job_whose_result_has_returned_is_ended_where_it_runs(returning: Any) -> None:
    assert bring(returning, N2).sends == said(N3, msg.CancelJobs([1]))
    assert returning.core.jobs_at(N3, MAP) == []


def test_a_job_that_is_being_cancelled_is_not_cancelled_again_when_its_result_returns(returning: Any) -> None:
    assert returning.handle(ev.CancelAsked([1])).sends == said(N3, msg.CancelJobs([1]))
    assert bring(returning, N2).sends == []


def test_a_node_without_link_is_told_later_that_a_result_has_returned(returning: Any) -> None:
    returning.handle(ev.LinkBroken(N3))
    assert bring(returning, N2).sends == []
    returning.handle(ev.LinkResumed(N3))
    granted = msg.LeaseGranted([HeldAttempt(1, 2)], [MAP])
    assert returning.said(N3, granted).sends == said(N3, msg.CancelJobs([1]))


def test_what_nodes_do_not_say_to_programs_is_ignored_and_counted(scheduler: Any) -> None:
    scheduler.join()
    assert scheduler.said(N1, msg.RecallJobs(1)) == Effects()
    assert scheduler.core.counters.ignored == 1


def test_jobs_that_are_to_end_or_wait_again_are_marked_for_who_keeps_them(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.submit(1)
    wish(scheduler, 2, node=N1)
    assert scheduler.handle(ev.CancelAsked([1, 2])).marked == [scheduler.jobs[1]], "the other has ended"
    assert scheduler.handle(ev.CancelAsked([1])).marked == []
    scheduler.done(N1, 1, ending=Ending.INTERRUPTED)
    scheduler.submit(3)
    assert scheduler.done(N1, 3, ending=Ending.NOT_STARTED).marked == [scheduler.jobs[3]]


# ---- queues of jobs with wishes are forgotten with their last job: there may be one for each job ----


def special(scheduler: Any) -> list[Any]:
    """The queues of MAP for jobs with wishes."""
    return list(scheduler.core._tables.clusters[MAP].special)


def test_a_queue_is_forgotten_when_its_last_job_was_handed_out(scheduler: Any) -> None:
    scheduler.ready(N1)
    wish(scheduler, 1, node=N1)
    assert special(scheduler) == []
    wish(scheduler, 2, node=N1)
    assert len(special(scheduler)) == 1
    scheduler.done(N1, 1)
    assert special(scheduler) == []


def test_a_queue_is_forgotten_when_its_jobs_have_no_hope(scheduler: Any) -> None:
    scheduler.ready(N1)
    wish(scheduler, 1, cpus=5)
    assert len(special(scheduler)) == 1
    scheduler.handle(ev.ClusterNarrowed(MAP))
    assert special(scheduler) == []


def test_a_queue_of_cancelled_jobs_is_forgotten_when_a_node_has_room(scheduler: Any) -> None:
    scheduler.ready(N1)
    scheduler.submit(1)
    wish(scheduler, 2, node=N1)
    scheduler.handle(ev.CancelAsked([2]))
    scheduler.done(N1, 1)
    assert special(scheduler) == []
