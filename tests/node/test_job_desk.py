"""The node core by value: jobs taken in, answered, lost with their worker; arguments and files that come apart."""

from __future__ import annotations

from typing import Any

import pytest
from corenode import ANNA, FILE, MAP, Answer, Node, fed, gone, node, ready

from dispy.model import BlobRef, Ending, FileSpec, HeldAttempt, JobDepends, JobDone, JobOptions, JobSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects, Send
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


def test_attempt_that_is_here_is_ignored(ready: Node) -> None:
    ready.run(1, 2, 3)
    assert ready.run(1, 3) == Effects()
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert ready.run(1) == Effects()


def test_newer_attempt_replaces_an_older_one(ready: Node) -> None:
    ready.run(1, 2, 3)
    newer = msg.RunJobs(MAP, [JobSpec(3, 2, 1), JobSpec(1, 2, 1)])
    assert ready.said(newer, b"yy").actions == [do.CancelInWorker(MAP, 1, 2)]
    effects = ready.handle(ev.WorkerAnswered(1, [Answer(2, Ending.INTERRUPTED)]))
    assert effects.sends == []
    assert effects.actions == [do.FeedWorker(MAP, 1, [(3, memoryview(b"y"))])]


def test_large_results_that_nobody_is_told_of_are_let_go(ready: Node) -> None:
    ready.run(1)
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 2, 1)]), b"y")
    large = BlobRef(b"n" * 32, 100_000)
    withdrawn = do.WithdrawResults([large.name])
    assert withdrawn in ready.handle(ev.WorkerAnswered(1, [Answer(2)], {2: large})).actions, "an old attempt"
    assert ready.handle(ev.WorkerAnswered(7, [Answer(2)], {2: large})).actions == [withdrawn], "an unknown worker"


def test_dead_worker_ends_its_job_and_is_replaced(ready: Node) -> None:
    ready.run(1, 2, 3)
    death = ev.WorkerDied(1, 2, "killed by SIGSEGV", b"out", b"a\nb\n", 60.0, 61.0)
    effects = ready.handle(death)
    assert effects.actions == [do.ForkWorker(MAP, 3)]
    text = b"its worker process ended: killed by SIGSEGV\nThe last lines of its stderr:\na\nb"
    expected = JobDone(1, 1, Ending.DIED, 60.0, 61.0, 0, 3, 4, len(text))
    assert effects.sends == [Send(ANNA, msg.JobsDone(3, [expected]), [b"outa\nb\n" + text])]


def test_dead_worker_gives_unstarted_jobs_back_to_the_front(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(*range(1, 13))
    ready.handle(ev.WorkerDied(1, 2, "exit code 1"))
    computation = ready.core.lease.computations[MAP]  # type: ignore[union-attr]
    assert [job.job for job in computation.queue][:4] == [2, 3, 4, 9]


BLOB = BlobRef(b"h" * 32, 1 << 20)


def large(node: Node, *jobs: int) -> Effects:
    return node.said(msg.RunJobs(MAP, [JobSpec(job, 1, 0, BLOB) for job in jobs]))


def test_shared_arguments_are_fetched_once_and_forgotten_after_the_last_job(ready: Node) -> None:
    assert large(ready, 1, 2) == Effects([do.FetchArguments(ANNA, BLOB)], [])
    effects = ready.handle(ev.ArgumentsFetched(BLOB.name, 77))
    assert effects.actions == [do.FeedWorker(MAP, 1, [(2, 77)]), do.FeedWorker(MAP, 2, [(2, 77)])]
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == []
    forget = [do.ForgetArguments(BLOB.name)]
    assert ready.handle(ev.WorkerAnswered(2, [Answer(2)])).actions == forget


def test_arguments_that_cannot_be_fetched_end_the_job(ready: Node) -> None:
    large(ready, 1)
    effects = ready.handle(ev.ArgumentsFailed(BLOB.name, "gone"))
    text = b"its arguments did not reach the node: gone"
    assert effects == Effects([do.ForgetArguments(BLOB.name)], [gone(3, 1, Ending.DIED, text)])


def test_arguments_that_come_too_late_are_forgotten(ready: Node) -> None:
    large(ready, 1)
    effects = ready.said(msg.CancelJobs([1]))
    assert effects == Effects([do.ForgetArguments(BLOB.name)], [gone(3, 1)])
    effects = ready.handle(ev.ArgumentsFetched(BLOB.name, 77))
    assert effects == Effects([do.ForgetArguments(BLOB.name)], [])


def test_a_new_link_fetches_again(ready: Node) -> None:
    large(ready, 1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.lease().actions == [do.FetchArguments(ANNA, BLOB)]


def test_batch_with_a_wrong_length_ends_the_link(ready: Node) -> None:
    effects = ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 5)]), b"xxx")
    assert effects.actions == [do.HangUp(ANNA, "the arguments of a batch are not as long as it says")]


def bringing(*jobs: int, blob: BlobRef | None = None) -> msg.RunJobs:
    """Jobs that bring a file each."""
    options = JobOptions(depends=JobDepends((FileSpec("data", BlobRef(b"f" * 32, 3)),)))
    return msg.RunJobs(MAP, [JobSpec(job, 1, 0 if blob else 1, blob, options) for job in jobs])


def lend(job: int) -> do.LendFiles:
    return do.LendFiles(MAP, job, 1, (FileSpec("data", BlobRef(b"f" * 32, 3)),))


def test_a_job_waits_for_the_files_that_it_brings(ready: Node) -> None:
    assert ready.said(bringing(1, 2), b"xx").actions == [lend(1), lend(2)]
    assert ready.handle(ev.FilesLent(1, 1)).actions == [fed(1, 2)]
    failed = ready.handle(ev.FilesLent(2, 1, "the disk is full"))
    assert failed.actions == [do.ReturnFiles(MAP, 2, 1)]
    done: Any = failed.sends[0]
    assert done.message.jobs[0].ending == Ending.DIED
    assert done.payload[0].endswith(b"the disk is full")
    ready.said(bringing(3), b"x")
    full: Any = ready.handle(ev.FilesLent(3, 1, "it does not fit", no_room=True)).sends[0]
    assert full.message.jobs[0].ending == Ending.NO_ROOM
    assert do.ReturnFiles(MAP, 1, 1) in ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions
    assert ready.handle(ev.FilesLent(1, 1)) == Effects()


def test_files_and_large_arguments_come_in_any_order(ready: Node) -> None:
    blob = BlobRef(b"a" * 32, 70_000, False)
    assert ready.said(bringing(1, blob=blob)).actions == [lend(1), do.FetchArguments(ANNA, blob)]
    assert ready.handle(ev.ArgumentsFetched(blob.name, 9)).actions == []
    assert ready.said(bringing(2, blob=blob)).actions == [lend(2)]
    assert [type(action) for action in ready.handle(ev.FilesLent(2, 1)).actions] == [do.FeedWorker]
    assert [type(action) for action in ready.handle(ev.FilesLent(1, 1)).actions] == [do.FeedWorker]


def test_files_of_a_job_that_does_not_run_go_back(ready: Node) -> None:
    ready.said(bringing(1, 2), b"xx")
    assert ready.said(msg.CancelJobs([1])).actions == [do.ReturnFiles(MAP, 1, 1)]
    recalled = ready.said(msg.RecallJobs(1))
    assert recalled.actions == [do.ReturnFiles(MAP, 2, 1)]
    assert recalled.sends == [Send(ANNA, msg.JobsRecalled([HeldAttempt(2, 1)]))]


def test_answers_without_jobs_change_no_table(ready: Node) -> None:
    ready.run(1)
    assert ready.handle(ev.WorkerAnswered(1, [Answer(77)])) == Effects()
    assert ready.handle(ev.WorkerRecalled(1, 3, 3)) == Effects()
    assert ready.said(msg.ListJobs(MAP)).sends == [Send(ANNA, msg.JobsListed(MAP, [HeldAttempt(1, 1)]))]


def test_files_that_nobody_waits_for_change_nothing(ready: Node) -> None:
    options = JobOptions(depends=JobDepends((FILE,)))
    ready.run(1)
    ready.said(msg.RunJobs(MAP, [JobSpec(2, 2, 1, None, options)]), b"x")
    for late in (ev.FilesLent(1, 1), ev.FilesLent(2, 1), ev.FilesLent(2, 1, "no"), ev.FilesLent(77, 1)):
        assert ready.handle(late) == Effects(), late
    assert ready.handle(ev.FilesLent(2, 2)).actions == [fed(2, 2)]
    assert ready.handle(ev.FilesLent(2, 2)) == Effects(), "twice"


def test_arguments_that_nobody_waits_for_cannot_fail(ready: Node) -> None:
    blob = BlobRef(b"h" * 32, 1 << 20)
    assert ready.handle(ev.ArgumentsFailed(blob.name, "x")) == Effects(), "unknown"
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 0, blob)]))
    ready.handle(ev.ArgumentsFetched(blob.name, 7))
    assert ready.handle(ev.ArgumentsFailed(blob.name, "x")) == Effects(), "they are here"
    again = ready.handle(ev.ArgumentsFetched(blob.name, 8))
    assert again == Effects([do.ForgetArguments(blob.name)], []), "twice"


@pytest.mark.parametrize("ended_at", [float("inf"), float("nan"), -1e9])
def test_times_that_make_no_sense_are_not_measured(ready: Node, ended_at: float) -> None:
    """A job can write anything into the answers of its worker."""
    computation = ready.core.lease.computations[MAP]  # type: ignore[union-attr]
    ready.run(1)
    ready.handle(ev.WorkerAnswered(1, [Answer(2, ended_at=ended_at)]))
    assert computation.mean == pytest.approx(0.6, abs=0.001)


def test_the_arguments_of_an_attempt_are_let_go_when_it_ends_with_its_worker(ready: Node) -> None:
    large(ready, 1)
    ready.handle(ev.ArgumentsFetched(BLOB.name, 7))
    assert do.ForgetArguments(BLOB.name) in ready.handle(ev.WorkerDied(1, 2, "x")).actions
    ready.said(bringing(2), b"x")
    ready.handle(ev.FilesLent(2, 1))
    worker = next(iter(ready.core.lease.computations[MAP].workers))  # type: ignore[union-attr]
    sequence = ready.core.lease.jobs[2].sequence  # type: ignore[union-attr]
    assert do.ReturnFiles(MAP, 2, 1) in ready.handle(ev.WorkerDied(worker, sequence, "x")).actions
