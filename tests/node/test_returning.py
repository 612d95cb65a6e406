"""The node core by value: jobs that had not started and are wanted elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from corenode import ANNA, FILE, MAP, REDUCE, Answer, Node, ahead, fed, gone, heavy, node, ready, recalled

from dispy.model import BlobRef, JobDepends, JobOptions, JobSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects
from dispy.wire import messages as msg

__all__ = ["node", "ready"]
BLOB = BlobRef(b"h" * 32, 1 << 20)


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


def arriving(node: Node, *jobs: int) -> None:
    """Jobs whose arguments are being fetched."""
    node.said(msg.RunJobs(MAP, [JobSpec(job, 1, 0, BLOB) for job in jobs]))


def test_jobs_that_are_arriving_go_back_as_well(ready: Node) -> None:
    arriving(ready, 1, 2)
    assert ready.said(msg.RecallJobs(1)) == Effects([], [recalled(2)]), "job 1 still needs the arguments"
    assert ready.said(msg.RecallJobs(1)) == Effects([do.ForgetArguments(BLOB.name)], [recalled(1)])
    assert ready.handle(ev.ArgumentsFetched(BLOB.name, 7)) == Effects([do.ForgetArguments(BLOB.name)], [])


def test_what_waits_goes_back_before_what_arrives_and_no_more_than_was_asked_for(ready: Node) -> None:
    ready.run(1, 2, 3)
    arriving(ready, 4)
    heavy(ready, 5, cpus=2)
    assert ready.said(msg.RecallJobs(2)).sends == [recalled(3, 5)]
    assert ready.said(msg.RecallJobs(2)).sends == [recalled(4)]


def test_the_longest_queue_gives_back_first(ready: Node) -> None:
    ready.open(REDUCE)
    ready.run(1, 2, 3)
    ready.run(11, 12, key=REDUCE)
    assert ready.said(msg.RecallJobs(1)).sends == [recalled(12)]


@pytest.mark.parametrize("why", ["no offer", "end now", "refused", "grace is over"])
def test_all_that_has_not_started_leaves(ready: Node, why: str) -> None:
    """What is queued, heavy or arriving; the arguments of the last are let go."""
    ready.run(1, 2, 3)
    heavy(ready, 4, cpus=2)
    arriving(ready, 5)
    match why:
        case "no offer":
            effects = ready.handle(ev.OfferChanged(0, "x"))
        case "end now":
            effects = ready.handle(ev.ExitAsked(at_once=True))
        case "refused":
            effects = ready.handle(ev.ComputationFailed(MAP, "x"))
        case _:
            effects = ready.handle(ev.LinkLost(ANNA, goodbye=True))
    told = [send for send in effects.sends if isinstance(send.message, msg.JobsRecalled)]
    assert told == ([] if why == "grace is over" else [recalled(3, 4, 5)])
    assert do.ForgetArguments(BLOB.name) in effects.actions
    lease: Any = ready.core.lease
    assert set(lease.jobs) == {1, 2}


def test_nothing_is_said_where_nothing_goes_back(ready: Node) -> None:
    assert ready.handle(ev.ExitAsked(at_once=True)).sends == []


def test_a_refused_computation_takes_nothing_back_from_its_workers(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.handle(ev.ComputationFailed(MAP, "x"))
    recall: Any = ready.said(msg.RecallJobs(0)).sends
    assert recall == [recalled()]
    assert ready.handle(ev.WorkerDied(1, 2, "x")).sends[1:] == [recalled(2)]


@pytest.fixture
def single() -> Node:
    """As `ready`, with one CPU and jobs so short that they are given ahead."""
    node = Node(cpus=1)
    node.lease()
    node.open()
    node.run(101)
    node.forked(1)
    node.handle(ev.WorkerAnswered(1, [Answer(1)]))
    node.said(msg.AckResults(1))
    node.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    return node


def test_an_older_attempt_that_comes_back_lets_its_arguments_go_and_is_not_told(single: Node) -> None:
    """Job 2 lies ready behind job 1; its newer attempt has arguments of its own."""
    single.run(1)
    arriving(single, 2)
    single.handle(ev.ArgumentsFetched(BLOB.name, 7))
    newer = single.said(msg.RunJobs(MAP, [JobSpec(2, 2, 1)]), b"y")
    assert newer == Effects([do.RecallFromWorker(MAP, 1, 4)], [])
    back = single.handle(ev.WorkerRecalled(1, 3, 4))
    assert back.sends == []
    assert back.actions == [do.ForgetArguments(BLOB.name), do.FeedWorker(MAP, 1, [(4, memoryview(b"y"))])]
    assert not single.core.lease.superseded  # type: ignore[union-attr]


def test_a_cancelled_job_that_comes_back_lets_its_files_go(ready: Node) -> None:
    options = JobOptions(depends=JobDepends((FILE,)))
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2)
    ready.said(msg.RunJobs(MAP, [JobSpec(3, 1, 1, None, options)]), b"x")
    given: Any = ready.handle(ev.FilesLent(3, 1)).actions[0]
    (recall,) = ready.said(msg.CancelJobs([3])).actions
    assert isinstance(recall, do.RecallFromWorker)
    back = ready.handle(ev.WorkerRecalled(given.worker, given.jobs[0][0], recall.before))
    assert back == Effects([do.ReturnFiles(MAP, 3, 1)], [gone(3, 3)])


def test_jobs_that_come_back_are_queued_in_front_in_their_order(single: Node) -> None:
    single.run(*range(1, 7))
    assert [job.job for job in single.core.lease.computations[MAP].queue] == [5, 6]  # type: ignore[union-attr]
    single.said(msg.CancelJobs([4]))
    back = single.handle(ev.WorkerRecalled(1, 4, 6))
    assert back.sends == [gone(2, 4)]
    assert back.actions == [fed(1, 6, 7)]
    lease: Any = single.core.lease
    assert {job.sequence: job.job for job in lease.jobs.values()} == {2: 1, 3: 2, 6: 3, 7: 5, 0: 6}


def test_what_is_not_in_the_answer_of_a_worker_stays_there(single: Node) -> None:
    single.run(1, 2, 3)
    assert single.handle(ev.WorkerRecalled(1, 3, 3)) == Effects()
    assert single.handle(ev.WorkerRecalled(1, 3, 4)).actions == [fed(1, 5)]
    lease: Any = single.core.lease
    assert {job.sequence: job.job for job in lease.jobs.values()} == {2: 1, 5: 2, 4: 3}


def test_a_job_with_a_time_limit_goes_back_to_the_queue_that_it_came_from(single: Node) -> None:
    """It is no heavy one: jobs may wait ahead of it and behind it."""
    heavy(single, 1, 2, 3, timeout=5.0)
    single.said(msg.CancelJobs([3]))
    assert single.handle(ev.WorkerRecalled(1, 3, 5)).actions == [fed(1, 5)]
