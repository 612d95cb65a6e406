"""The node core by value: computations opened, refused, started again, closed, opened again."""

from __future__ import annotations

import pytest
from corenode import ANNA, MAP, REDUCE, Answer, Node, done, fed, forks, gone, heavy, node, ready, recalled, spec

from dispy.model import Ending
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects, Send
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


def test_close_of_a_refused_computation_is_answered(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    node.handle(ev.ComputationFailed(MAP, "setup failed"))
    assert node.said(msg.CloseComputation(MAP)) == Effects()
    assert node.handle(ev.ComputationCleaned(MAP)).sends == [Send(ANNA, msg.ComputationClosed(MAP))]


def test_computation_is_prepared_then_ready(node: Node) -> None:
    node.lease()
    effects = node.said(msg.OpenComputation(spec(), b"args"))
    assert effects == Effects([do.PrepareComputation(ANNA, spec(), b"args")], [])
    ready = [Send(ANNA, msg.ComputationReady(MAP))]
    assert node.handle(ev.ComputationPrepared(MAP)) == Effects([], ready)
    assert node.said(msg.OpenComputation(spec(), b"args")) == Effects([], ready)


def test_computation_that_fails_is_refused_and_its_jobs_go_back(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    node.run(1)
    effects = node.handle(ev.ComputationFailed(MAP, "setup failed", "trace"))
    assert effects.actions == [do.CleanComputation(MAP, False)]
    refused = msg.ComputationRefused(MAP, "setup failed", "trace", True)
    assert effects.sends == [Send(ANNA, refused), recalled(1)]
    assert node.handle(ev.ComputationCleaned(MAP)) == Effects()


def test_close_waits_for_jobs(ready: Node) -> None:
    ready.run(1)
    assert ready.said(msg.CloseComputation(MAP)) == Effects()
    assert ready.run(2).sends == [recalled(2)]
    effects = ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert effects == Effects([do.CleanComputation(MAP, True)], [done(3, 1)])
    closed = msg.ComputationClosed(MAP, "trace")
    assert ready.handle(ev.ComputationCleaned(MAP, "trace")).sends == [Send(ANNA, closed)]


def test_close_with_terminate_ends_jobs(ready: Node) -> None:
    ready.run(1, 2, 3)
    effects = ready.said(msg.CloseComputation(MAP, terminate=True))
    assert effects.actions == [do.CancelInWorker(MAP, 1, 2), do.CancelInWorker(MAP, 2, 2)]
    assert effects.sends == [gone(3, 3)]


def test_close_while_opening(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    assert node.said(msg.CloseComputation(MAP)).actions == [do.CleanComputation(MAP, False)]


def test_opened_again_while_it_closes(ready: Node) -> None:
    ready.said(msg.CloseComputation(MAP))
    assert ready.said(msg.OpenComputation(spec())) == Effects()
    effects = ready.handle(ev.ComputationCleaned(MAP))
    prepare = [do.PrepareComputation(ANNA, spec(), b"")]
    assert effects == Effects(prepare, [Send(ANNA, msg.ComputationClosed(MAP))])


def test_fork_server_is_started_again_twice_then_the_computation_refused(ready: Node) -> None:
    ready.run(1, 2, 3)
    effects = ready.handle(ev.ForkServerDied(MAP, "killed by SIGKILL"))
    assert effects.actions == [do.StartForkServer(MAP)]
    ended = [each.jobs[0] for each in (send.message for send in effects.sends) if isinstance(each, msg.JobsDone)]
    assert [(each.job, each.ending) for each in ended] == [(1, Ending.DIED), (2, Ending.DIED)]
    told = [Send(ANNA, msg.ComputationReady(MAP))]
    assert ready.handle(ev.ForkServerStarted(MAP)) == Effects([do.ForkWorker(MAP, 3)], told)
    assert ready.handle(ev.ForkServerDied(MAP, "x")).actions == [do.StartForkServer(MAP)]
    ready.handle(ev.ForkServerStarted(MAP))
    effects = ready.handle(ev.ForkServerDied(MAP, "x"))
    assert effects.actions == [do.CleanComputation(MAP, False)]
    reason = "its fork server died 3 times in a row; last: x"
    assert effects.sends == [Send(ANNA, msg.ComputationRefused(MAP, reason, "", True)), recalled(3)]


def test_a_fork_server_that_dies_now_and_then_is_always_started_again(ready: Node) -> None:
    for job in range(1, 31):
        effects = ready.handle(ev.ForkServerDied(MAP, "killed by SIGKILL"))
        assert not [send for send in effects.sends if isinstance(send.message, msg.ComputationRefused)]
        ready.run(job)
        actions = ready.handle(ev.ForkServerStarted(MAP)).actions
        (worker,) = [action.worker for action in actions if isinstance(action, do.ForkWorker)]
        (feed,) = [action for action in ready.forked(worker) if isinstance(action, do.FeedWorker)]
        ready.handle(ev.WorkerAnswered(worker, [Answer(feed.jobs[0][0])]))


def test_a_computation_that_was_to_be_opened_again_is_not_when_its_link_is_gone(ready: Node) -> None:
    ready.said(msg.CloseComputation(MAP))
    ready.said(msg.OpenComputation(spec(MAP)))
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.handle(ev.ComputationCleaned(MAP)).actions == []


def test_workers_that_are_born_dead_are_given_up(node: Node) -> None:
    node.lease()
    node.open()
    node.run(1)
    for worker in range(1, 5):
        node.handle(ev.WorkerDied(worker, 0, "exit code 1"))
        assert node.wait(1).actions == [do.ForkWorker(MAP, worker + 1)]
    effects = node.handle(ev.WorkerDied(5, 0, "exit code 1"))
    assert effects.actions == [do.CleanComputation(MAP, False)]
    reason = "5 workers in a row ended before they could run a job; last: exit code 1"
    assert effects.sends == [Send(ANNA, msg.ComputationRefused(MAP, reason, "", True)), recalled(1)]


def test_without_anything_left_for_workers_jobs_go_back_for_a_while(node: Node) -> None:
    """Unlike workers that die, this says nothing of the computation: the scheduler may ask again."""
    node.lease()
    node.open()
    node.run(1)
    cause = "no worker could be started: no memory is left"
    for worker in range(1, 3):
        assert node.handle(ev.WorkerDied(worker, 0, cause, exhausted=True)).actions == []
        assert node.wait(1).actions == [do.ForkWorker(MAP, worker + 1)]
    effects = node.handle(ev.WorkerDied(3, 0, cause, exhausted=True))
    assert effects.actions == [do.CleanComputation(MAP, False)]
    assert effects.sends == [Send(ANNA, msg.ComputationRefused(MAP, cause, "", False)), recalled(1)]


def test_without_anything_left_for_another_worker_those_that_are_here_go_on(ready: Node) -> None:
    computation = ready.core.lease.computations[MAP]  # type: ignore[union-attr]
    ready.run(1, 2, 3)
    ready.handle(ev.WorkerDied(1, 1, "killed by SIGKILL"))
    for worker in range(3, 8):
        effects = ready.handle(ev.WorkerDied(worker, 0, "nothing is left", exhausted=True))
        assert not effects.sends
        assert ready.wait(1).actions == [do.ForkWorker(MAP, worker + 1)]
    assert computation.exhausted == 5
    ready.handle(ev.WorkerForked(8))
    ready.handle(ev.WorkerDied(8, 0, "exit code 1"))
    assert 2 in computation.workers


def test_a_step_of_a_preparation_is_told_to_the_holder(node: Node) -> None:
    step = ev.ComputationAdvanced(MAP, "environment")
    assert node.handle(step) == Effects(), "free"
    node.lease()
    assert node.handle(step) == Effects(), "unknown"
    node.said(msg.OpenComputation(spec()))
    assert node.handle(step) == Effects([], [Send(ANNA, msg.ComputationAdvanced(MAP, "environment"))])
    node.handle(ev.LinkLost(ANNA, goodbye=False))
    assert node.handle(step) == Effects(), "nobody hears"


def test_nothing_is_told_of_a_computation_that_is_cleaned_away(ready: Node) -> None:
    assert ready.said(msg.CloseComputation(MAP)).actions == [do.CleanComputation(MAP, True)]
    for event in (
        ev.ComputationAdvanced(MAP, "x"),
        ev.ComputationPrepared(MAP),
        ev.ForkServerStarted(MAP),
        ev.ComputationFailed(MAP, "x"),
        ev.ForkServerDied(MAP, "x"),
        ev.WorkerDied(1, 0, "x", setup_failed=True),
    ):
        assert ready.handle(event) == Effects(), event
    assert ready.handle(ev.ComputationCleaned(MAP, "trace")).sends == [Send(ANNA, msg.ComputationClosed(MAP, "trace"))]
    assert ready.handle(ev.ComputationCleaned(MAP)) == Effects(), "twice"


def test_bounds_of_a_computation_can_change_while_it_is_opened(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 4, oversubscribe=True))
    assert node.said(msg.OpenComputation(spec(), b"", 1)) == Effects()
    node.prepared()
    assert forks(node.run(1, 2, 3)) == [MAP]
    assert node.said(msg.OpenComputation(spec(), b"", 0)) == Effects(
        [do.ForkWorker(MAP, 2)], [Send(ANNA, msg.ComputationReady(MAP))]
    )


def test_a_close_takes_back_that_it_is_to_be_opened_again(ready: Node) -> None:
    ready.said(msg.CloseComputation(MAP))
    ready.said(msg.OpenComputation(spec()))
    ready.said(msg.CloseComputation(MAP))
    assert ready.handle(ev.ComputationCleaned(MAP)) == Effects([], [Send(ANNA, msg.ComputationClosed(MAP))])


def test_a_computation_that_fails_while_it_closes_is_not_refused(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    node.run(1)
    node.said(msg.CloseComputation(MAP))
    effects = node.handle(ev.ComputationFailed(MAP, "no"))
    assert effects.sends == [recalled(1)]
    assert effects.actions == [do.CleanComputation(MAP, False)]
    assert node.handle(ev.ComputationCleaned(MAP)).sends == [Send(ANNA, msg.ComputationClosed(MAP))]


def test_what_opens_is_not_finished_for_nobody(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    assert node.handle(ev.LinkLost(ANNA, goodbye=True)).actions == [do.CleanComputation(MAP, False)]


def test_jobs_of_other_computations_go_on_when_one_is_closed(ready: Node) -> None:
    ready.open(REDUCE)
    ready.run(1, 2)
    ready.run(3, key=REDUCE)
    assert ready.said(msg.CloseComputation(REDUCE, terminate=True)) == Effects(
        [do.CleanComputation(REDUCE, True)], [gone(3, 3)]
    )


def test_a_worker_that_cannot_set_up_refuses_its_computation_once(ready: Node) -> None:
    ready.run(1, 2, 3)
    failed = ev.WorkerDied(1, 0, "x", stderr=b"Traceback\nValueError: no\n", setup_failed=True)
    effects = ready.handle(failed)
    refused = msg.ComputationRefused(
        MAP, "setup failed in a worker: ValueError: no", "Traceback\nValueError: no\n", True
    )
    assert effects.sends[0] == Send(ANNA, refused)
    again = ready.handle(ev.WorkerDied(2, 0, "x", setup_failed=True))
    assert not [send for send in again.sends if isinstance(send.message, msg.ComputationRefused)]


def test_only_what_is_being_cleaned_is_gone_afterwards(ready: Node) -> None:
    assert ready.handle(ev.ComputationCleaned(MAP)) == Effects()
    assert ready.run(1).actions == [fed(1, 2)]


def test_nothing_is_prepared_on_a_free_node(node: Node) -> None:
    for event in (
        ev.ComputationPrepared(MAP),
        ev.ForkServerStarted(MAP),
        ev.ComputationFailed(MAP, "x"),
        ev.ForkServerDied(MAP, "x"),
    ):
        assert node.handle(event) == Effects(), event


def test_a_worker_that_ends_as_it_should_is_not_stillborn(node: Node) -> None:
    node.lease()
    node.open()
    node.run(1)
    assert node.handle(ev.WorkerDied(1, 0, "x", expected=True)).actions == [do.ForkWorker(MAP, 2)]
    assert node.handle(ev.WorkerDied(2, 0, "x")).actions == [], "a stillborn one: later"
    assert node.wait(0.1).actions == [do.ForkWorker(MAP, 3)]


def test_a_computation_is_not_opened_again_in_a_lease_that_is_over(ready: Node) -> None:
    ready.said(msg.CloseComputation(MAP))
    ready.said(msg.OpenComputation(spec()))
    ready.said(msg.ReleaseLease())
    closed = [Send(ANNA, msg.ComputationClosed(MAP))]
    assert ready.handle(ev.ComputationCleaned(MAP)) == Effects([do.Announce()], closed)


def test_what_opens_is_given_up_when_grace_is_over(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    node.handle(ev.LinkLost(ANNA, goodbye=False))
    assert node.wait(node.core.grace).actions == [do.CleanComputation(MAP, False)]


@pytest.mark.parametrize("how", ["stillborn", "exhausted"])
def test_workers_that_come_to_nothing_are_counted_in_a_row(ready: Node, how: str) -> None:
    """An answer in between begins the count anew."""
    ready.handle(ev.WorkerDied(1, 0, "x", expected=True))
    ready.run(1, 2)
    died = dict.fromkeys(["exhausted"], how == "exhausted")
    for worker in (3, 4):
        ready.handle(ev.WorkerDied(worker, 0, "x", **died))
        ready.wait(1)
    ready.handle(ev.WorkerAnswered(2, [Answer(2)]))
    computation = ready.core.lease.computations[MAP]  # type: ignore[union-attr]
    assert (computation.stillborn, computation.exhausted) == (0, 0)


def test_a_close_waits_for_heavy_jobs(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    heavy(node, 1, memory=1)
    assert node.said(msg.CloseComputation(MAP)) == Effects()
    assert node.handle(ev.ComputationPrepared(MAP)).actions == [do.StartForkServer(MAP)]
    assert node.handle(ev.ForkServerStarted(MAP)).actions == [do.ForkWorker(MAP, 1)]
    node.forked(1)
    assert node.handle(ev.WorkerAnswered(1, [Answer(1)])).actions == [do.CleanComputation(MAP, True)]


@pytest.mark.parametrize(
    ("stillborn", "how"),
    [
        (1, "before its first job"),
        (0, "in its first job"),
        (0, "after a job"),
        (0, "as it should"),
        (0, "as it was told"),
    ],
)
def test_a_worker_is_stillborn_that_ends_unasked_before_its_first_job(node: Node, stillborn: int, how: str) -> None:
    node.lease()
    node.open()
    node.run(1)
    if how == "as it was told":
        assert node.handle(ev.OfferChanged(0, "x")).actions == [do.RetireWorker(MAP, 1)]
    elif how != "before its first job":
        node.forked(1)
    if how == "after a job":
        node.handle(ev.WorkerAnswered(1, [Answer(1)]))
    node.handle(ev.WorkerDied(1, int(how == "in its first job"), "x", expected=how == "as it should"))
    computation = node.core.lease.computations[MAP]  # type: ignore[union-attr]
    assert computation.stillborn == stillborn
    assert (computation.fork_after is None) == (not stillborn)


def test_a_machine_that_has_nothing_left_is_blamed_for_its_own_deaths_only(ready: Node) -> None:
    """Three workers could not be started; then the last one dies in its job."""
    ready.run(1, 2, 3)
    ready.handle(ev.WorkerDied(1, 2, "killed"))
    for worker in (3, 4, 5):
        ready.wait(1)
        ready.handle(ev.WorkerDied(worker, 0, "no memory", exhausted=True))
    told = ready.handle(ev.WorkerDied(2, 2, "killed")).sends
    assert not [send for send in told if isinstance(send.message, msg.ComputationRefused)]


def test_a_close_of_what_is_not_here_is_answered(node: Node) -> None:
    node.lease()
    assert node.said(msg.CloseComputation(MAP)) == Effects([], [Send(ANNA, msg.ComputationClosed(MAP))])
