"""The node core by value: jobs that had not started and are wanted elsewhere."""

from __future__ import annotations

from typing import Any

from corenode import ANNA, MAP, Answer, Node, ahead, fed, gone, node, ready, recalled

from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


def test_recall_takes_the_last_of_the_queue(ready: Node) -> None:
    ready.run(1, 2, 3, 4, 5)
    assert ready.said(msg.RecallJobs(2)).sends == [recalled(5, 4)]
    assert ready.said(msg.RecallJobs(9)).sends == [recalled(3)]
    assert ready.said(msg.RecallJobs(9)).sends == [recalled()]


def test_recall_goes_on_to_the_workers(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(*range(1, 10))
    effects = ready.said(msg.RecallJobs(3))
    assert effects.actions == [do.RecallFromWorker(MAP, 1, 6), do.RecallFromWorker(MAP, 2, 6)]
    assert effects.sends == []
    assert ready.handle(ev.WorkerRecalled(1, 3, 6)).sends == []
    assert ready.handle(ev.WorkerRecalled(2, 3, 6)).sends == [recalled(9, 3, 4)]


def test_recall_is_answered_although_the_computation_is_cleaned_away(ready: Node) -> None:
    """The worker has run all that it had before it heard of the recall, and was ended with its computation."""
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3)
    assert ready.said(msg.RecallJobs(3)).actions == [do.RecallFromWorker(MAP, 1, 4)]
    ready.handle(ev.WorkerAnswered(1, [Answer(2), Answer(3)]))
    ready.handle(ev.WorkerAnswered(2, [Answer(2)]))
    ready.said(msg.CloseComputation(MAP))
    assert recalled() in ready.handle(ev.ComputationCleaned(MAP)).sends


def test_recall_is_answered_although_the_worker_dies(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3)
    ready.said(msg.RecallJobs(3))
    sends = ready.handle(ev.WorkerDied(1, 2, "exit code 1")).sends
    assert recalled() in sends


def test_a_worker_is_asked_once_for_what_it_has_not_started(ready: Node) -> None:
    ahead(ready, *range(1, 9))
    first = ready.said(msg.RecallJobs(1)).actions
    assert first == [do.RecallFromWorker(MAP, 1, 6), do.RecallFromWorker(MAP, 2, 6)]
    assert ready.said(msg.RecallJobs(1)) == Effects()


def test_a_worker_without_jobs_behind_is_not_asked(ready: Node) -> None:
    ready.run(1)
    assert ready.said(msg.RecallJobs(1)) == Effects([], [recalled()])
    assert ready.handle(ev.OfferChanged(0, "x")).actions == [do.RetireWorker(MAP, 2), do.RecallFromWorker(MAP, 1, 3)]


def test_who_gives_back_gets_nothing_meanwhile(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.said(msg.RecallJobs(1))
    assert ready.run(5) == Effects()
    assert ready.handle(ev.WorkerRecalled(1, 4, 4)).actions == [fed(1, 4)]


def test_a_cancelled_job_is_not_recalled(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.said(msg.CancelJobs([2]))
    assert ready.said(msg.RecallJobs(2)).actions == [do.RecallFromWorker(MAP, 2, 4)]
    assert ready.handle(ev.WorkerRecalled(1, 3, 4)).sends == [gone(3, 2)]
    assert ready.handle(ev.WorkerRecalled(2, 3, 4)).sends == [recalled(4)]


def test_after_grace_what_comes_back_from_workers_is_dropped(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.handle(ev.LinkLost(ANNA, goodbye=True))
    assert ready.handle(ev.WorkerRecalled(1, 3, 4)) == Effects()
    lease: Any = ready.core.lease
    assert set(lease.jobs) == {1, 3, 4}


def test_a_request_for_jobs_ends_with_its_link(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.said(msg.RecallJobs(2))
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.lease()
    assert ready.handle(ev.WorkerRecalled(1, 3, 4)).sends == []
    ready.handle(ev.WorkerRecalled(2, 3, 4))
    lease: Any = ready.core.lease
    assert set(lease.jobs) == {1, 2, 3, 4}
