"""The node core by value: what running jobs say, the files that they send, what is asked about them."""

from __future__ import annotations

from typing import Any

import pytest
from corenode import ANNA, BERT, FILE, MAP, REDUCE, Answer, Node, ahead, node, ready, spec

from dispy.model import BlobRef, Ending, FileSpec, HeldAttempt, JobDone, JobSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects, Send
from dispy.node.results import INTERIM_MOST
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


def test_interim_results_that_nobody_hears_are_kept_in_bounds(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    said = [BlobRef(b"%032d" % number, 100_000) for number in range(1001)]
    for ref in said[:-1]:
        assert ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL), ref)).actions == []
    last = ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL), said[-1]))
    assert last.actions == [do.WithdrawResults([said[0].name])]


def test_an_interim_result_waits_like_a_result_and_ends_nothing(ready: Node) -> None:
    ready.run(1)
    blob = BlobRef(b"b" * 32, 9, False)
    small = Answer(2, Ending.PROVISIONAL, 0.0, 60.0, 2, body=b"so")
    effects = ready.handle(ev.WorkerSpoke(1, small))
    done = JobDone(1, 1, Ending.PROVISIONAL, 0.0, 60.0, 2, 0, 0, 0)
    assert effects == Effects([], [Send(ANNA, msg.JobsDone(3, [done]), [b"so"])])
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    large = Answer(2, Ending.PROVISIONAL, 0.0, 61.0, 9, body=b"")
    assert ready.handle(ev.WorkerSpoke(1, large, blob)) == Effects()
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    sends = ready.lease().sends
    assert sends[0].message == msg.LeaseGranted([HeldAttempt(1, 1)], [MAP])
    batches: list[Any] = [send.message for send in sends[1:]]
    assert [(batch.sequence, batch.jobs[0].ending) for batch in batches] == [(3, 7), (4, 7), (5, 0)]
    assert ready.said(msg.AckResults(4)).actions == [do.WithdrawResults([blob.name])]
    # the end is not acknowledged: the same attempt is not run again
    assert not ready.run(1).actions


def test_what_an_unknown_job_says_is_dropped(ready: Node) -> None:
    blob = BlobRef(b"b" * 32, 9, False)
    late = ready.handle(ev.WorkerSpoke(1, Answer(7, Ending.PROVISIONAL, body=b""), blob))
    assert late == Effects([do.WithdrawResults([blob.name])], [])


def running(node: Node) -> None:
    """Job 1 runs at worker 1; jobs 2 and 3 are behind it or at worker 2."""
    node.run(1, 2, 3)


def test_the_jobs_that_run_and_their_output(ready: Node) -> None:
    running(ready)
    listed: Any = ready.said(msg.ListJobs(MAP)).sends[0].message
    assert {held.job for held in listed.jobs} == {1, 2}
    assert ready.said(msg.ListJobs(REDUCE)).sends == [Send(ANNA, msg.JobsListed(REDUCE, []))]
    assert ready.said(msg.TailJob(1)).actions == [do.ReadTail(ANNA, MAP, 1, 2, 1)]
    assert ready.handle(ev.TailRead(ANNA, 1, b"out", b"e")).sends == [Send(ANNA, msg.JobTail(1, 3, 1), [b"out", b"e"])]
    for job in (3, 77):
        assert ready.said(msg.TailJob(job)) == Effects([], [Send(ANNA, msg.JobTail(job))])


def test_a_file_for_a_computation(ready: Node) -> None:
    file = FileSpec("a/b", BlobRef(b"f" * 32, 3))
    assert ready.said(msg.PlaceFile(MAP, file)).actions == [do.StoreFile(MAP, file)]
    assert ready.handle(ev.FileStored(MAP, "a/b", "full")).sends == [Send(ANNA, msg.FilePlaced(MAP, "a/b", "full"))]
    refused: Any = ready.said(msg.PlaceFile(REDUCE, file)).sends[0].message
    assert "not set up" in refused.reason


def test_a_file_of_a_job_is_offered_until_it_is_taken(ready: Node) -> None:
    running(ready)
    file = FileSpec("out", BlobRef(b"f" * 32, 3))
    other = FileSpec("other", file.blob)
    offer = msg.FileOffered(1, 1, file)
    assert ready.handle(ev.FileSent(7, 1, 2, file)).sends == [Send(ANNA, offer)]
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.handle(ev.FileSent(8, 1, 2, other)) == Effects()
    again = ready.lease().sends
    assert [send.message for send in again if isinstance(send.message, msg.FileOffered)] == [
        offer,
        msg.FileOffered(1, 1, other),
    ]
    assert ready.said(msg.FileTaken(file.blob.name, "", 1, "out")).actions == [do.AnswerParcel(7, True)]
    assert ready.said(msg.FileTaken(file.blob.name, "", 1, "out")).actions == []
    assert ready.said(msg.FileTaken(file.blob.name, "full", 1, "other")).actions == [do.AnswerParcel(8, False)]
    ready.handle(ev.FileSent(9, 1, 2, file))
    ready.handle(ev.ParcelDropped(9))
    assert ready.said(msg.FileTaken(file.blob.name, "", 1, "out")).actions == []
    assert ready.handle(ev.FileSent(10, 1, 99, file)).actions == [do.AnswerParcel(10, False)]


def test_interim_results_that_somebody_hears_are_all_kept(ready: Node) -> None:
    ready.run(1)
    for _ in range(INTERIM_MOST + 1):
        effects = ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL), BlobRef(b"n" * 32, 100_000)))
        assert effects.actions == []


def test_what_a_worker_says_on_a_free_node_is_dropped(node: Node) -> None:
    blob = BlobRef(b"n" * 32, 100_000)
    withdrawn = Effects([do.WithdrawResults([blob.name])], [])
    assert node.handle(ev.WorkerSpoke(1, Answer(1, Ending.PROVISIONAL))) == Effects()
    assert node.handle(ev.WorkerSpoke(1, Answer(1, Ending.PROVISIONAL), blob)) == withdrawn
    assert node.handle(ev.WorkerAnswered(1, [Answer(1)])) == Effects()
    assert node.handle(ev.WorkerDied(1, 1, "x")) == Effects()
    assert node.handle(ev.WorkerRecalled(1, 1, 2)) == Effects()


def test_what_an_older_attempt_says_is_dropped(ready: Node) -> None:
    ready.run(1)
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 2, 1)]), b"y")
    assert ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL))) == Effects()
    assert ready.handle(ev.FileSent(7, 1, 2, FILE)) == Effects([do.AnswerParcel(7, False)], [])


def test_files_of_jobs_are_refused_when_the_holder_is_given_up(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.FileSent(7, 1, 2, FILE))
    assert do.AnswerParcel(7, False) in ready.handle(ev.LinkLost(ANNA, goodbye=True)).actions
    assert ready.handle(ev.FileSent(8, 1, 2, FILE)) == Effects([do.AnswerParcel(8, False)], [])


def test_an_answer_for_a_link_that_is_gone_is_dropped(ready: Node) -> None:
    ready.run(1)
    assert ready.handle(ev.TailRead(BERT, 1, b"", b"")) == Effects()
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.handle(ev.TailRead(ANNA, 1, b"", b"")) == Effects()
    assert ready.handle(ev.FileStored(MAP, "a", "")) == Effects()


def test_a_file_is_taken_of_its_own_job_and_name(ready: Node) -> None:
    ready.run(1, 2)
    ready.handle(ev.FileSent(7, 1, 2, FILE))
    for taken in (
        msg.FileTaken(FILE.blob.name, "", 2, "out"),
        msg.FileTaken(b"g" * 32, "", 1, "out"),
        msg.FileTaken(FILE.blob.name, "", 1, "other"),
    ):
        assert ready.said(taken) == Effects()
    assert ready.said(msg.FileTaken(FILE.blob.name, "", 1, "out")).actions == [do.AnswerParcel(7, True)]


def test_a_job_that_lies_ready_in_a_worker_does_not_run(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    assert ready.said(msg.TailJob(2)) == Effects([], [Send(ANNA, msg.JobTail(2))])
    listed = [HeldAttempt(1, 1), HeldAttempt(3, 1)]
    assert ready.said(msg.ListJobs(MAP)).sends == [Send(ANNA, msg.JobsListed(MAP, listed))]


def test_a_file_waits_until_its_computation_stands(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    reason = "the node has not set up this computation"
    assert node.said(msg.PlaceFile(MAP, FILE)) == Effects([], [Send(ANNA, msg.FilePlaced(MAP, FILE.path, reason))])


@pytest.mark.parametrize("blob", [None, BlobRef(b"n" * 32, 100_000)])
def test_whoever_claims_results_hears_no_interim_ones(ready: Node, blob: BlobRef | None) -> None:
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.handle(ev.LinkOpened(BERT))
    ready.said(msg.ClaimResults(b"A"), peer=BERT)
    withdrawn = [] if blob is None else [do.WithdrawResults([blob.name])]
    assert ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL), blob)) == Effects(withdrawn, [])
