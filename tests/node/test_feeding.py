"""The node core by value: which worker gets which jobs, when workers are forked, drained and asked to give back."""

from __future__ import annotations

import sys
from types import FrameType

import pytest
from corenode import ANNA, MAP, REDUCE, Answer, Node, ahead, done, fed, forks, heavy, node, ready, spec

from dispy.model import ComputationId, ComputationSpec, JobSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects
from dispy.node.results import SPOOL_AFTER
from dispy.node.slots import NEWCOMER_SECONDS, STALL_SECONDS, STARVE_SECONDS
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


def test_workers_are_forked_on_demand_up_to_the_cpus(node: Node) -> None:
    node.lease()
    node.open()
    assert node.run(1).actions == [do.ForkWorker(MAP, 1)]
    assert node.run(2, 3).actions == [do.ForkWorker(MAP, 2)]
    assert node.forked(1, 2) == [fed(1, 1), fed(2, 1)]


def test_jobs_wait_until_the_computation_is_ready(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    assert node.run(1) == Effects()
    assert node.prepared(MAP).actions == [do.StartForkServer(MAP), do.ForkWorker(MAP, 1)]


def test_long_jobs_are_given_one_at_a_time(ready: Node) -> None:
    assert ready.run(1, 2, 3).actions == [fed(1, 2), fed(2, 2)]
    effects = ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert effects == Effects([fed(1, 3)], [done(3, 1)])


def test_short_jobs_are_given_in_batches(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    assert ready.run(*range(1, 13)).actions == [fed(1, 2, 3, 4, 5), fed(2, 2, 3, 4, 5)]


def test_stalled_worker_gives_back_for_an_idle_one(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3, 4, 5, 6)
    answers = [Answer(number, ended_at=50.001) for number in (2, 3, 4)]
    ready.handle(ev.WorkerAnswered(2, answers))
    assert ready.wait(0.01).actions == [do.RecallFromWorker(MAP, 1, 5)]
    assert ready.handle(ev.WorkerRecalled(1, 3, 5)).actions == [fed(2, 5, 6)]


def test_idle_workers_make_room_for_another_computation(ready: Node) -> None:
    ready.open(REDUCE)
    assert ready.run(1, key=REDUCE).actions == [do.RetireWorker(MAP, 1)]
    assert ready.handle(ev.WorkerDied(1, 0, "exit code 0")).actions == [do.ForkWorker(REDUCE, 3)]


def test_starved_computation_takes_a_cpu_after_its_job(ready: Node) -> None:
    ready.open(REDUCE)
    ready.run(1, 2, 3, 4)
    assert ready.run(5, key=REDUCE) == Effects()
    assert ready.wait(0.2).actions == [do.RecallFromWorker(MAP, 1, 3)]
    ready.handle(ev.WorkerRecalled(1, 3, 3))
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == [do.RetireWorker(MAP, 1)]


def test_fewer_cpus_end_the_workers_beyond(ready: Node) -> None:
    ready.run(1)
    assert ready.handle(ev.OfferChanged(1)).actions == [do.RetireWorker(MAP, 2)]
    ready.handle(ev.WorkerDied(2, 0, "retired", expected=True))
    assert ready.run(2).actions == []
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == [fed(1, 3)]


def test_a_computation_may_oversubscribe_and_others_may_not(node: Node) -> None:
    node.lease()
    node.open()
    node.said(msg.OpenComputation(spec(REDUCE), b"", 4, oversubscribe=True))
    node.prepared(REDUCE)
    assert forks(node.run(1, 2, 3)) == [MAP, MAP], "two CPUs are there"
    assert forks(node.run(11, 12, 13, 14, key=REDUCE)) == [REDUCE, REDUCE], "four in all"
    node.forked(1, 2, 3, 4)
    node.handle(ev.WorkerAnswered(1, [Answer(1)]))
    effects = node.handle(ev.WorkerAnswered(2, [Answer(1)]))
    assert effects.actions == [do.RetireWorker(MAP, 2)], "an idle one makes room"
    effects = node.handle(ev.WorkerDied(2, 0, "retired", expected=True))
    assert forks(effects) == [REDUCE]


def test_a_computation_that_oversubscribes_no_more_lets_workers_go(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 4, oversubscribe=True))
    node.prepared(MAP)
    assert forks(node.run(1, 2, 3, 4, 5)) == [MAP] * 4
    node.forked(1, 2, 3, 4)
    for worker in (1, 2, 3):
        node.handle(ev.WorkerAnswered(worker, [Answer(1)]))
    effects = node.said(msg.OpenComputation(spec(), b"", 0))
    retired = [action.worker for action in effects.actions if isinstance(action, do.RetireWorker)]
    assert len(retired) == 2
    assert 4 not in retired, "it is busy"


def test_without_permission_a_computation_gets_what_the_node_offers(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 4))
    node.prepared(MAP)
    assert forks(node.run(1, 2, 3)) == [MAP, MAP]


def test_a_stalled_worker_keeps_its_jobs_when_no_cpu_is_free(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4, 5, 6)
    assert ready.wait(1.0) == Effects()
    assert ready.core.next_deadline() is None


def test_a_worker_is_told_once_to_end(ready: Node) -> None:
    assert ready.handle(ev.OfferChanged(1)).actions == [do.RetireWorker(MAP, 1)]
    assert ready.handle(ev.WorkerAnswered(1, [])).actions == []
    assert ready.handle(ev.WorkerAnswered(2, [])).actions == [], "nobody wants it to end"


def test_fewer_cpus_end_idle_workers_first(ready: Node) -> None:
    ready.run(1)
    assert ready.handle(ev.OfferChanged(1)).actions == [do.RetireWorker(MAP, 2)]
    assert ready.handle(ev.OfferChanged(1, "x")).actions == []


def test_the_owner_of_a_node_can_let_everybody_oversubscribe(node: Node) -> None:
    node.core.desk.feeder.oversubscribe = True
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 3))
    node.prepared(MAP)
    assert forks(node.run(1, 2, 3, 4)) == [MAP] * 3


def test_a_limit_beneath_the_cpus_is_kept(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 1, oversubscribe=True))
    node.prepared(MAP)
    assert forks(node.run(1, 2, 3)) == [MAP]
    assert node.forked(1) == [fed(1, 1)]


def test_the_largest_limit_counts(node: Node) -> None:
    node.lease()
    for key, limit in ((MAP, 5), (REDUCE, 3)):
        node.said(msg.OpenComputation(spec(key), b"", limit, oversubscribe=True))
        node.prepared(key)
    assert len(forks(node.run(*range(1, 9)))) == 5
    node.handle(ev.OfferChanged(0, "x"))
    assert node.core.desk.feeder.capacity == 0


def test_a_process_of_an_isolated_computation_runs_one_job(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(ComputationSpec(MAP, "compute", "function", "cpython-3.11", isolate=True)))
    node.prepared(MAP)
    node.run(1, 2, 3, 4)
    assert node.forked(1, 2) == [fed(1, 1), fed(2, 1)]
    assert node.handle(ev.WorkerAnswered(1, [Answer(1, ended_at=50.0001)])).actions == []
    assert node.handle(ev.WorkerDied(1, 0, "done", expected=True)).actions == [do.ForkWorker(MAP, 3)]


def test_a_stalled_worker_gets_nothing_ahead(ready: Node) -> None:
    ahead(ready, 1, 2)
    ready.wait(0.01)
    assert ready.run(3) == Effects()


def test_a_worker_that_starts_finds_a_job(node: Node) -> None:
    node.lease()
    node.open()
    node.run(1, 2)
    assert node.forked(1) == [fed(1, 1)]
    assert node.handle(ev.WorkerAnswered(1, [Answer(1, ended_at=50.001)])).actions == [fed(1, 2)]
    assert node.run(3, 4, 5).actions == [fed(1, 3, 4)]
    assert node.forked(2) == [fed(2, 1)]


def test_a_computation_waits_for_the_worker_that_makes_room(ready: Node) -> None:
    ready.wait(2)
    ready.open(REDUCE)
    assert ready.run(1, key=REDUCE).actions == [do.RetireWorker(MAP, 1)]
    assert ready.core.next_deadline() is None, "there is nothing to take from anybody"


def test_one_worker_at_a_time_is_taken_from_the_richest(ready: Node) -> None:
    ready.open(REDUCE)
    ready.run(1, 2, 3, 4)
    ready.run(5, 6, key=REDUCE)
    assert ready.wait(0.2).actions == [do.RecallFromWorker(MAP, 1, 3)]
    ready.handle(ev.WorkerRecalled(1, 3, 3))
    assert ready.wait(10) == Effects(), "the one that leaves is waited for, however long its job takes"


def test_a_computation_with_its_share_takes_nothing() -> None:
    node = Node(cpus=3)
    node.lease()
    node.open()
    node.open(REDUCE)
    node.run(1, 2)
    node.run(3, key=REDUCE)
    node.forked(1, 2, 3)
    node.run(4, 5)
    node.run(6, 7, key=REDUCE)
    assert node.wait(10) == Effects(), "two and one of three"


def test_nothing_is_taken_from_a_computation_that_has_as_little() -> None:
    """A heavy job has the other CPUs."""
    node = Node(cpus=4)
    node.lease()
    node.open()
    node.open(REDUCE)
    heavy(node, 1, cpus=3)
    node.run(2, key=REDUCE)
    node.forked(1, 2)
    node.run(3, 4, key=REDUCE)
    assert node.wait(10) == Effects()


def test_a_computation_that_has_got_a_cpu_is_starved_no_more() -> None:
    node = Node(cpus=4)
    node.lease()
    node.open()
    node.open(REDUCE)
    node.run(1, 2, 3, 4)
    node.forked(1, 2, 3, 4)
    node.run(5, key=REDUCE)
    assert node.core.next_deadline() == STARVE_SECONDS
    assert node.handle(ev.WorkerDied(1, 1, "x")).actions == [do.ForkWorker(REDUCE, 5)]
    assert node.core.next_deadline() == SPOOL_AFTER, "that is for the result of the dead worker"


def test_as_many_idle_workers_make_room_as_are_lacking() -> None:
    node = Node(cpus=4)
    node.lease()
    node.open()
    node.open(REDUCE)
    node.run(1, 2, 3, 4)
    node.forked(1, 2, 3, 4)
    for worker in (1, 2, 3):
        node.handle(ev.WorkerAnswered(worker, [Answer(1)]))
    assert node.run(5, key=REDUCE).actions == [do.RetireWorker(MAP, 1)]
    assert node.run(6, 7, 8, key=REDUCE).actions == [do.RetireWorker(MAP, 2), do.RetireWorker(MAP, 3)]


def test_a_worker_that_starts_for_a_computation_is_one_that_it_need_not_be_given(node: Node) -> None:
    node.lease()
    node.open()
    assert node.run(1).actions == [do.ForkWorker(MAP, 1)]
    assert node.handle(ev.WorkerAnswered(1, [])) == Effects()


def test_the_poorer_computation_gets_the_next_cpu() -> None:
    node = Node(cpus=3)
    node.lease()
    node.open()
    node.open(REDUCE)
    node.run(1, 2, 3)
    node.forked(1, 2, 3)
    node.run(4)
    node.run(5, key=REDUCE)
    assert forks(node.handle(ev.WorkerDied(1, 1, "x"))) == [REDUCE]


def test_what_a_stalled_worker_has_ahead_stays_when_every_cpu_is_taken(node: Node) -> None:
    """Its computation may use one CPU, and that is busy."""
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 1))
    node.prepared(MAP)
    node.run(1)
    node.forked(1)
    node.handle(ev.WorkerAnswered(1, [Answer(1, ended_at=50.001)]))
    node.said(msg.AckResults(9))
    assert node.run(2, 3, 4).actions == [fed(1, 2, 3, 4)]
    node.wait(2)
    assert node.core.next_deadline() is None


@pytest.fixture
def late(ready: Node) -> Node:
    """As `ready`, ten seconds later: nobody has heard of the workers for long."""
    ready.wait(10)
    return ready


def test_a_worker_that_was_idle_for_long_is_not_stalled(late: Node) -> None:
    assert ahead(late, 1, 2, 3, 4).actions == [fed(1, 2, 3), fed(2, 2, 3)]
    assert late.run(5, 6).actions == [fed(1, 4), fed(2, 4)]


def test_a_worker_that_has_just_answered_is_not_stalled(late: Node) -> None:
    ahead(late, 1, 2, 3, 4)
    late.now += 0.75 * STALL_SECONDS
    late.handle(ev.WorkerAnswered(1, [Answer(2, ended_at=50.001)]))
    late.now += 0.75 * STALL_SECONDS
    assert late.run(5, 6).actions == [fed(1, 4, 5)], "worker 2 is silent"


def test_a_computation_that_is_given_less_uses_less_although_its_workers_are_there(ready: Node) -> None:
    ready.said(msg.OpenComputation(spec(), b"", 1))
    assert ready.run(1, 2).actions == [fed(1, 2)]
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == [fed(1, 3)]


def test_a_computation_that_lacks_nothing_any_more_is_starved_no_more(ready: Node) -> None:
    ready.wait(2)
    ready.open(REDUCE)
    ready.run(1, 2, 3, 4)
    ready.run(5, key=REDUCE)
    assert ready.core.next_deadline() == 2 + STARVE_SECONDS
    ready.said(msg.RecallJobs(1))
    ready.said(msg.CancelJobs([5]))
    ready.said(msg.AckResults(99))
    assert ready.wait(1) == Effects()
    assert ready.run(6, key=REDUCE) == Effects()
    assert ready.wait(0.9 * STARVE_SECONDS) == Effects()


def test_what_waits_behind_a_long_job_goes_to_a_cpu_that_nobody_uses(node: Node) -> None:
    node.lease()
    node.open()
    node.run(1)
    node.forked(1)
    node.handle(ev.WorkerAnswered(1, [Answer(1)]))
    assert ahead(node, 2, 3, 4, 5).actions == [fed(1, 2, 3, 4, 5)]
    assert node.wait(0.01).actions == [do.RecallFromWorker(MAP, 1, 6)]
    assert node.handle(ev.WorkerRecalled(1, 3, 6)).actions == [do.ForkWorker(MAP, 2)]


def test_what_waits_behind_a_long_job_goes_to_the_cpu_of_an_idle_worker_of_others(node: Node) -> None:
    node.lease()
    node.open()
    node.open(REDUCE)
    node.run(1)
    node.run(2, key=REDUCE)
    node.forked(1, 2)
    node.handle(ev.WorkerAnswered(1, [Answer(1)]))
    node.handle(ev.WorkerAnswered(2, [Answer(1)]))
    ahead(node, 3, 4, 5, 6)
    assert node.wait(0.01).actions == [do.RecallFromWorker(MAP, 1, 6)]
    assert node.handle(ev.WorkerRecalled(1, 3, 6)).actions == [do.RetireWorker(REDUCE, 2)]


def test_what_waits_behind_a_long_job_stays_beside_a_heavy_one_that_has_the_other_cpus() -> None:
    node = Node(cpus=4)
    node.lease()
    node.open()
    heavy(node, 1, cpus=3)
    node.run(2)
    node.forked(1, 2)
    node.handle(ev.WorkerAnswered(2, [Answer(1)]))
    node.said(msg.AckResults(9))
    assert ahead(node, 3, 4, 5).actions == [fed(2, 2, 3, 4)]
    assert node.wait(10) == Effects()


def test_what_is_being_cleaned_away_has_no_share() -> None:
    """Two of four CPUs are for each of the two that run."""
    node = Node(cpus=4)
    node.lease()
    node.open()
    third = ComputationId("3" * 32)
    node.open(third)
    node.open(REDUCE)
    assert node.said(msg.CloseComputation(third)).actions == [do.CleanComputation(third, True)]
    node.run(*range(1, 9))
    node.forked(1, 2, 3, 4)
    node.run(11, 12, key=REDUCE)
    node.wait(0.1)
    node.handle(ev.WorkerRecalled(1, 2, 2))
    node.handle(ev.WorkerAnswered(1, [Answer(1)]))
    assert node.handle(ev.WorkerDied(1, 0, "retired", expected=True)).actions == [do.ForkWorker(REDUCE, 5)]
    assert node.core.next_deadline() == node.now + STARVE_SECONDS


def test_a_computation_without_a_worker_gets_the_next_cpu_on_which_a_job_ends(ready: Node) -> None:
    ready.open(REDUCE)
    ready.run(1, 2, 3, 4)
    assert ready.run(5, key=REDUCE) == Effects()
    assert ready.wait(2 * NEWCOMER_SECONDS) == Effects()
    assert ready.handle(ev.WorkerAnswered(2, [Answer(2)])).actions == [do.RetireWorker(MAP, 2)]
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == [fed(1, 3)], "one has made room"
    assert ready.handle(ev.WorkerDied(2, 0, "retired", expected=True)).actions == [do.ForkWorker(REDUCE, 3)]


def test_computations_that_both_lack_a_worker_take_turns() -> None:
    """On one CPU: a worker that was forked for one of them runs a job before it makes room for the other."""
    node = Node(1)
    node.lease()
    node.open()
    node.open(REDUCE)
    node.run(1, 2)
    node.run(3, key=REDUCE)
    node.wait(2 * NEWCOMER_SECONDS)
    assert node.forked(1) == [fed(1, 1)]
    assert node.handle(ev.WorkerAnswered(1, [Answer(1)])).actions == [do.RetireWorker(MAP, 1)]
    node.wait(2 * NEWCOMER_SECONDS)
    assert node.handle(ev.WorkerDied(1, 0, "retired", expected=True)).actions == [do.ForkWorker(REDUCE, 2)]


def test_a_cpu_does_not_change_hands_at_once(ready: Node) -> None:
    """Else computations of short jobs would cost a process for each job."""
    ready.open(REDUCE)
    ready.run(1, 2, 3, 4)
    ready.run(5, key=REDUCE)
    ready.wait(0.5 * NEWCOMER_SECONDS)
    assert ready.handle(ev.WorkerAnswered(2, [Answer(2)])).actions == [fed(2, 3)]


def test_a_lonely_job_costs_few_calls(ready: Node) -> None:
    """Two decisions, and the deadlines after them."""
    calls = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call"

    core, now = ready.core, ready.now
    sys.setprofile(note)
    try:
        core.handle(ev.SchedulerSaid(ANNA, msg.RunJobs(MAP, [JobSpec(1, 1, 1)], 2), b"x"), now)
        core.next_deadline()
        core.handle(ev.WorkerAnswered(1, [Answer(2)]), now + 0.001)
        core.next_deadline()
    finally:
        sys.setprofile(None)
    assert calls <= 66
