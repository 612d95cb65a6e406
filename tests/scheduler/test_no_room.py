"""Nodes that have no room for what a job needs: it goes elsewhere, and ends where that is nowhere. By value."""

from __future__ import annotations

from typing import Any

import pytest
import test_scheduler_core as core

from dispy.model import Ending, HeldAttempt, JobOptions, JobState
from dispy.scheduler import events as ev
from dispy.scheduler.effects import Effects, JobRequeued, JobsEnded
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages as msg

MAP, N1, N2, N3 = core.MAP, core.N1, core.N2, core.N3
FULL = b"it does not fit: the disk is full"


@pytest.fixture
def scheduler() -> Any:
    """MAP is open on two nodes with a CPU each."""
    made = core.Scheduler()
    made.open()
    for node in (N1, N2):
        made.ready(node, 1)
    return made


def need(scheduler: Any, *numbers: int, **options: Any) -> Effects:
    records = [JobRecord(number, MAP, b"%d" % number, options=JobOptions(**options)) for number in numbers]
    scheduler.jobs.update((record.job, record) for record in records)
    effects: Effects = scheduler.handle(ev.JobsSubmitted(records))
    return effects


def no_room(scheduler: Any, node: Any, *numbers: int) -> Effects:
    effects: Effects = scheduler.done(node, *numbers, ending=Ending.NO_ROOM, seconds=0, text=FULL)
    return effects


def endings(effects: Effects) -> list[tuple[int, JobState, str | None]]:
    notices = [notice for notice in effects.notices if isinstance(notice, JobsEnded)]
    return [(one.job.job, one.state, one.cause) for notice in notices for one in notice.jobs]


def told(effects: Effects) -> list[str]:
    return [notice.cause for notice in effects.notices if isinstance(notice, JobRequeued)]


def test_a_job_goes_where_there_is_room_and_its_owner_hears_once_of_the_node(scheduler: Any) -> None:
    need(scheduler, 1, 2, 3, priority=1)
    assert [scheduler.jobs[job].node for job in (1, 2, 3)] == [N1, N2, None]
    effects = no_room(scheduler, N1, 1)
    assert not endings(effects)
    assert told(effects) == [
        "it does not fit: the disk is full (on node n1 (10.0.0.1); what has no room there runs elsewhere)"
    ]
    assert core.sends_of(effects) == [(N1, [3])], "which may have room for that one"
    effects = no_room(scheduler, N1, 3)
    assert (told(effects), core.sends_of(effects)) == ([], [])
    why = "node n1 (10.0.0.1) has no room for what it needs (it does not fit: the disk is full)"
    assert why in scheduler.core.explain(1)
    assert core.sends_of(scheduler.done(N2, 2)) == [(N2, [1])]
    assert core.sends_of(scheduler.done(N2, 1)) == [(N2, [3])]
    assert endings(scheduler.done(N2, 3)) == [(3, JobState.Finished, None)]


@pytest.mark.parametrize("options", [{}, {"priority": 1}])
def test_a_job_that_no_node_has_room_for_ends(scheduler: Any, options: dict[str, int]) -> None:
    if options:
        need(scheduler, 1, **options)
    else:  # large arguments can be what there is no room for
        scheduler.submit(1)
    assert core.sends_of(no_room(scheduler, N1, 1)) == [(N2, [1])]
    assert endings(no_room(scheduler, N2, 1)) == [(1, JobState.Terminated, FULL.decode())]


def test_a_job_that_may_be_tried_again_is_tried_everywhere_again(scheduler: Any) -> None:
    need(scheduler, 1, retries=1)
    no_room(scheduler, N1, 1)
    effects = no_room(scheduler, N2, 1)
    assert (endings(effects), core.sends_of(effects)) == ([], [(N1, [1])])
    no_room(scheduler, N1, 1)
    assert [job for job, *_ in endings(no_room(scheduler, N2, 1))] == [1]


def test_a_job_that_may_only_run_there_ends(scheduler: Any) -> None:
    need(scheduler, 1, node=N2)
    assert endings(no_room(scheduler, N2, 1)) == [(1, JobState.Terminated, FULL.decode())]


def test_a_cancelled_job_is_cancelled(scheduler: Any) -> None:
    scheduler.submit(1)
    scheduler.handle(ev.CancelAsked([1]))
    assert [(job, state) for job, state, _ in endings(no_room(scheduler, N1, 1))] == [(1, JobState.Cancelled)]


def test_a_node_that_had_no_room_is_tried_again_when_the_others_are_gone(scheduler: Any) -> None:
    scheduler.submit(1, 2)
    no_room(scheduler, N1, 1)
    effects = scheduler.handle(ev.NodeLost(N2, "its machine is down"))
    assert core.sends_of(effects) == [(N1, [1])]
    assert (1, JobState.Terminated, FULL.decode()) in endings(no_room(scheduler, N1, 1))


def test_a_job_waits_for_nodes_that_are_named_and_have_not_come() -> None:
    scheduler: Any = core.Scheduler()
    scheduler.handle(ev.ClusterOpened(core.spec(MAP), open_ended=False, named=2))
    scheduler.ready(N1, 1)
    scheduler.submit(1)
    assert endings(no_room(scheduler, N1, 1)) == []
    assert "node n1 (10.0.0.1) has no room for what it needs" in scheduler.core.explain(1)
    assert core.sends_of(scheduler.ready(N2, 1)) == [(N2, [1])]


def test_what_has_no_room_on_an_idle_node_is_called_back_for_it_once_at_most(scheduler: Any) -> None:
    scheduler.submit(0)
    scheduler.done(N1, 0, seconds=0.001)  # so several are sent ahead
    need(scheduler, *range(1, 9), priority=1)
    for _ in range(3):
        for job in [job for job, record in scheduler.jobs.items() if record.node == N1 and job]:
            no_room(scheduler, N1, job)
    ahead = [record for record in scheduler.jobs.values() if record.node == N2][1:]
    recalled = [HeldAttempt(record.job, record.attempt) for record in ahead if record.without]
    assert recalled
    effects = scheduler.said(N2, msg.JobsRecalled(recalled))
    assert not [send for send in effects.sends if isinstance(send.message, msg.RecallJobs)]
    assert {scheduler.jobs[held.job].node for held in recalled} <= {N2, None}
