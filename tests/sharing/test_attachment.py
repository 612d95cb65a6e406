"""One cluster at a shared scheduler, by value: what is sent, and what its owner is told, whatever breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from dispy.errors import SettingsError, TransferError
from dispy.model import (
    BlobRef,
    ComputationId,
    ComputationSpec,
    Holder,
    JobDone,
    JobOptions,
    JobState,
    NodeInfo,
    ProcessId,
)
from dispy.scheduler.jobs import JobRecord
from dispy.sharing.attachment import FORGOTTEN, UNSTORED, Attachment
from dispy.sharing.doings import Doings
from dispy.sharing.submitting import SubmitLine
from dispy.wire.messages import AnyMessage
from dispy.wire.pool import JobOver, NodeSeen
from dispy.wire.sharing import (
    AckOver,
    CancelSubmitted,
    CloseCluster,
    ClusterAccepted,
    ClusterDeclined,
    ClusterOver,
    JobSaid,
    JobsHanded,
    JobsOver,
    JobsStored,
    JobWaitsAgain,
    KeepObjects,
    NarrowCluster,
    NodeChanged,
    NodeDeclined,
    NodeGone,
    NodeReady,
    OpenCluster,
    SteerShare,
    SubmitJobs,
    WidenCluster,
)

ID = ComputationId("c" * 32)
NODE = ProcessId("n" * 32)
SEEN = NodeSeen(NODE, NodeInfo(NODE, "one", 4, "Linux", ()), "10.0.0.1", 9701)


class Owner:
    """Notes what it is told; callbacks of jobs in `slow` have not returned."""

    spec = ComputationSpec(ID, "compute", "function")

    def __init__(self, reentrant: bool) -> None:
        self.reentrant = reentrant
        self.said: list[Any] = []
        self.slow: set[int] = set()

    def job_ended(self, ended: Any, view: Any) -> bool:
        address = None if view is None else view.address
        self.said.append((ended.job.job, ended.state.name, bytes(ended.body), ended.cause, address))
        return ended.job.job in self.slow

    def batch_ended(self) -> None: ...

    def jobs_started(self, view: Any, jobs: Sequence[JobRecord]) -> None:
        self.said.append(("started", view.address, [record.job for record in jobs]))

    def job_requeued(self, requeued: Any, view: Any) -> None:
        self.said.append(("again", requeued.job.job, requeued.cause))

    def job_spoke(self, spoke: Any, view: Any) -> None:
        self.said.append(("spoke", spoke.job.job, spoke.result))

    def node_opened(self, view: Any, cpus: int) -> None:
        self.said.append(("opened", view.info.name, cpus))

    def node_closed(self, closed: Any) -> None:
        self.said.append(("closed", closed.node, closed.cause, closed.renewing))

    def node_offered(self, node: ProcessId, cpus: int, used: int) -> None:
        self.said.append(("offered", cpus, used))

    def node_refused(self, view: Any, refused: Any) -> None:
        self.said.append(("refused", view.info.name, refused.reason))

    def node_measured(self, node: ProcessId, avail: Any) -> None:
        self.said.append(("measured", avail))

    def ended(self) -> None:
        self.said.append("over")

    def news(self) -> list[Any]:
        said, self.said = self.said, []
        return said


class Process:
    """What an attachment has around it."""

    def __init__(self, reentrant: bool = False) -> None:
        self.owner = Owner(reentrant)
        self.messages: list[AnyMessage] = []
        self.payloads: list[bytes] = []
        self.events: list[str] = []
        self.blobs: dict[bytes, bytes | None] = {}
        self.gate = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.taken_back: list[int] = []
        opening = OpenCluster(self.owner.spec, b"t" * 32, Holder("anna", "here", 1, "p.py"))
        doings = Doings(
            self._send,
            self._fetch,
            lambda coroutine: self.tasks.append(asyncio.ensure_future(coroutine)),
            lambda record: self.taken_back.append(record.job),
            lambda: self.events.append("accepted"),
            lambda: self.events.append("over"),
        )
        self.attachment = Attachment(self.owner, opening, doings)  # type: ignore[arg-type]

    def _send(self, message: AnyMessage, payload: Sequence[bytes]) -> None:
        self.messages.append(message)
        self.payloads += payload

    async def _fetch(self, ref: BlobRef) -> bytes:
        await self.gate.wait()
        content = self.blobs[ref.name]
        if content is None:
            raise TransferError("it is not there")
        return content

    def sent(self) -> list[AnyMessage]:
        messages, self.messages = self.messages, []
        return messages

    def hear(self, *messages: AnyMessage, payload: bytes = b"") -> None:
        for message in messages:
            self.attachment.heard(message, payload)
        self.attachment.acknowledge()

    def submit(self, *jobs: int, options: JobOptions | None = None) -> list[JobRecord]:
        records = [JobRecord(job, ID, b"args", None, None, options) for job in jobs]
        self.attachment.submit(records)
        return records

    def accept(self, stored: int = 0, *, fresh: bool = False) -> None:
        self.attachment.open()
        self.hear(ClusterAccepted(ID, stored, fresh))

    async def settle(self) -> None:
        self.gate.set()
        await asyncio.gather(*self.tasks)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


def batches(messages: Sequence[AnyMessage]) -> list[tuple[int, list[int]]]:
    return [
        (message.sequence, [spec.job for spec in message.jobs])
        for message in messages
        if isinstance(message, SubmitJobs)
    ]


def done(job: int, size: int = 0, blob: BlobRef | None = None) -> JobOver:
    return JobOver(job, JobState.Finished, NODE, None, JobDone(job, 0, 0, 1.0, 2.0, size, 0, 0, 0, blob), "10.0.0.1")


@in_loop
async def test_nothing_is_submitted_before_the_cluster_is_accepted_and_then_each_batch_once() -> None:
    process = Process()
    process.submit(1, 2)
    assert process.sent() == []
    process.attachment.open()
    [opening] = process.sent()
    assert isinstance(opening, OpenCluster)
    process.hear(ClusterAccepted(ID, 0, True))
    process.submit(3)
    assert batches(process.sent()) == [(1, [1, 2]), (2, [3])]
    assert process.events == ["accepted"]
    process.hear(JobsStored(ID, 1))
    process.attachment.link_gone()
    process.submit(4)
    assert process.sent() == []
    process.accept(stored=1)
    assert batches(process.sent()) == [(2, [3]), (3, [4])]
    assert process.events == ["accepted"]


@in_loop
async def test_ends_are_told_once_and_acknowledged() -> None:
    process = Process()
    process.accept()
    process.submit(1, 2, 3, options=JobOptions(priority=1))
    process.sent()
    process.hear(NodeReady(ID, SEEN, 4), JobsHanded(ID, NODE, [1, 2], "10.0.0.1"))
    lost = JobOver(3, JobState.Abandoned, None, "its node is gone")
    process.hear(JobsOver(ID, 1, [done(1, 3), done(2, 4), lost]), payload=b"onetwo2")
    assert process.owner.news() == [
        ("opened", "one", 4),
        ("started", "10.0.0.1", [1, 2]),
        (1, "Finished", b"one", None, "10.0.0.1"),
        (2, "Finished", b"two2", None, "10.0.0.1"),
        (3, "Abandoned", b"", "its node is gone", None),
    ]
    assert process.taken_back == [1, 2, 3]
    assert process.sent() == [AckOver(ID, 1)]
    process.accept(stored=1)
    process.hear(JobsOver(ID, 1, [done(2, 4)]), payload=b"two2")
    assert process.owner.news() == []
    assert [message for message in process.sent() if isinstance(message, AckOver)] == [AckOver(ID, 1)]


@in_loop
async def test_large_bodies_are_fetched_in_the_order_of_what_their_job_said() -> None:
    process = Process()
    process.accept()
    process.submit(1, 2, 3)
    process.sent()
    process.blobs = {b"said": b"so far", b"result": b"large", b"gone": None}
    process.hear(JobSaid(ID, 1, NODE, BlobRef(b"said", 6, False)))
    process.hear(JobSaid(ID, 1, NODE), payload=b"further")
    process.hear(JobsOver(ID, 1, [done(1, 3), done(2, 3)]), payload=b"onetwo")
    process.hear(JobsOver(ID, 2, [done(3, blob=BlobRef(b"gone", 5, False))]))
    assert process.owner.news() == [(2, "Finished", b"two", None, "10.0.0.1")]
    assert process.sent() == []
    await process.settle()
    cause = "the result could not be fetched from the scheduler: it is not there"
    assert process.owner.news() == [
        ("spoke", 1, b"so far"),
        ("spoke", 1, b"further"),
        (1, "Finished", b"one", None, "10.0.0.1"),
        (3, "Terminated", b"", cause, "10.0.0.1"),
    ]
    assert process.sent()[-1] == AckOver(ID, 2)


@in_loop
async def test_a_body_that_a_break_has_taken_away_is_told_again() -> None:
    process = Process()
    process.accept()
    process.submit(1)
    process.blobs = {b"old": None, b"new": b"large"}
    process.hear(JobsOver(ID, 1, [done(1, blob=BlobRef(b"old", 5, False))]))
    process.attachment.link_gone()
    process.accept(stored=1)
    process.hear(JobsOver(ID, 1, [done(1, blob=BlobRef(b"new", 5, False))]))
    await process.settle()
    assert process.owner.news() == [(1, "Finished", b"large", None, "10.0.0.1")]
    assert process.sent()[-1] == AckOver(ID, 1)


@in_loop
async def test_an_end_is_safe_when_callbacks_have_returned() -> None:
    process = Process()
    process.owner.slow = {1}
    process.accept()
    process.submit(1, 2)
    process.sent()
    process.hear(JobsOver(ID, 1, [done(1), done(2)]))
    assert process.sent() == []
    process.attachment.told(1)
    assert process.sent() == [AckOver(ID, 1)]
    process.attachment.told(1)
    assert process.sent() == []


@in_loop
async def test_a_cancelled_job_ends_here_if_it_was_not_sent_and_there_if_it_was() -> None:
    process = Process()
    first, _ = process.submit(1, 2)
    process.attachment.cancel(first)
    assert [end[:2] for end in process.owner.news()] == [(1, "Cancelled")]
    process.accept()
    sent = process.attachment.jobs[2]
    process.sent()
    process.attachment.cancel(sent)
    process.attachment.cancel(first)
    assert process.sent() == [CancelSubmitted(ID, [2])]
    process.accept(stored=1)
    assert process.sent()[-1] == CancelSubmitted(ID, [2])
    process.hear(JobsOver(ID, 1, [JobOver(2, JobState.Cancelled, None, "cancelled")]))
    process.sent()
    process.accept(stored=1)
    assert [type(message) for message in process.sent()] == [OpenCluster]


@in_loop
async def test_what_was_said_without_a_link_is_said_on_the_next_and_wishes_that_last_on_every_one() -> None:
    process = Process()
    widen, steer = WidenCluster(ID, (("host", 0),), False, True), SteerShare(ID, NODE, "pause")
    process.attachment.say(widen, lasting=True)
    process.attachment.say(steer)
    process.attachment.narrow()
    process.accept()
    assert process.sent()[1:] == [widen, steer, NarrowCluster(ID)]
    process.accept()
    assert process.sent()[1:] == [widen]


@in_loop
async def test_every_link_is_told_what_to_keep_before_the_jobs_that_need_it() -> None:
    process = Process()
    attachment = process.attachment
    model, table = BlobRef(b"m" * 32, 1), BlobRef(b"t" * 32, 1)
    attachment.keep_object(model)
    process.accept()
    assert process.sent()[1:] == [KeepObjects(ID, (model,))]
    attachment.keep_object(table)
    attachment.keep_object(model)
    assert process.sent() == [KeepObjects(ID, (model, table))] * 2
    attachment.drop_object(model)
    assert process.sent() == [KeepObjects(ID, (model, table))], "it was scattered twice"
    process.accept()
    assert process.sent()[1:] == [KeepObjects(ID, (model, table))]
    attachment.link_gone()
    attachment.drop_object(model)
    attachment.drop_object(table)
    process.accept()
    assert process.sent()[1:] == [KeepObjects(ID, ())], "what was dropped meanwhile is not kept for ever"


@pytest.mark.parametrize("terminate", [False, True])
def test_a_cluster_is_closed_once_on_each_link(terminate: bool) -> None:
    async def run() -> None:
        process = Process()
        process.accept()
        process.submit(1)
        process.attachment.close(terminate)
        assert process.sent()[-1] == CloseCluster(ID, terminate)
        process.hear(JobsStored(ID, 1))
        assert process.sent() == []
        process.accept(stored=1)
        assert process.sent()[-1] == CloseCluster(ID, terminate)
        process.hear(JobsOver(ID, 1, [done(1)]), ClusterOver(ID))
        assert process.owner.news()[-1] == "over"
        assert process.events == ["accepted", "over"]

    asyncio.run(run())


@in_loop
async def test_a_cluster_is_closed_when_all_its_jobs_have_been_sent() -> None:
    process = Process()
    process.attachment._line = SubmitLine(credit=1)
    process.accept()
    process.submit(1, 2)
    process.attachment.close(terminate=False)
    assert batches(process.sent()) == [(1, [1])]
    process.hear(JobsStored(ID, 1))
    assert [type(message) for message in process.sent()] == [SubmitJobs, CloseCluster]


@in_loop
async def test_jobs_that_are_not_stored_do_not_keep_a_cluster_that_is_ended() -> None:
    process = Process()
    process.accept()
    process.submit(1)
    process.hear(JobsStored(ID, 1))
    process.submit(2)
    process.attachment.close(terminate=True)
    process.attachment.end_unstored()
    assert process.owner.news() == [(2, "Cancelled", b"", UNSTORED, None)]
    process.hear(JobsOver(ID, 1, [done(1)]))
    assert "over" in process.owner.news()
    stored = Process()
    stored.accept()
    stored.submit(1)
    stored.hear(JobsStored(ID, 1))
    stored.attachment.close(terminate=True)
    stored.attachment.end_unstored()
    assert stored.owner.news() == []


@in_loop
async def test_jobs_that_the_scheduler_had_not_taken_in_are_cancelled_when_it_has_ended_their_cluster() -> None:
    process = Process()
    process.accept()
    process.submit(1)
    process.submit(2)
    process.hear(JobsStored(ID, 1))
    process.attachment.close(terminate=True)
    process.hear(JobsOver(ID, 1, [done(1)]))
    process.owner.news()
    process.hear(ClusterOver(ID))
    assert process.owner.news() == [(2, "Cancelled", b"", UNSTORED, None), "over"]


@in_loop
async def test_what_waits_for_credit_does_not_keep_a_cluster_that_is_ended() -> None:
    process = Process()
    process.attachment._line = SubmitLine(credit=1)
    process.accept()
    process.submit(1)
    process.submit(2)
    process.submit(3)
    process.sent()
    process.attachment.close(terminate=True)
    assert process.sent() == [CloseCluster(ID, True)]


@in_loop
async def test_a_cluster_that_was_never_accepted_is_closed_here() -> None:
    process = Process()
    process.submit(1)
    process.attachment.close(terminate=True)
    assert [end if end == "over" else end[:2] for end in process.owner.news()] == [(1, "Cancelled"), "over"]


@pytest.mark.parametrize("terminate", [False, True])
def test_a_cluster_without_jobs_is_closed_at_once_where_nobody_has_heard_of_it(terminate: bool) -> None:
    async def run() -> None:
        process = Process()
        process.attachment.close(terminate)
        assert (process.owner.news(), process.events) == (["over"], ["over"])
        asked = Process()
        asked.attachment.open()
        asked.attachment.link_gone()
        asked.attachment.close(terminate)
        assert asked.owner.news() == [], "the word that it was taken up may be lost"
        assert asked.attachment.may_be_left
        assert not asked.attachment.is_untold
        asked.attachment.give_up("nobody answers")
        assert (asked.owner.news(), asked.events) == (["over"], ["over"])

    asyncio.run(run())


@in_loop
async def test_what_has_come_is_over_for_a_scheduler_that_is_back_after_a_cluster_without_jobs_was_closed() -> None:
    process = Process()
    process.accept()
    process.submit(1, 2)
    process.hear(JobsStored(ID, 1), JobsOver(ID, 1, [done(1)]))
    process.attachment.link_gone()
    process.attachment.close(terminate=False)
    assert not process.attachment.may_be_left, "a job is pending"
    process.accept(stored=1)
    process.hear(JobsOver(ID, 1, [done(1), done(2)]))
    process.attachment.link_gone()
    assert process.attachment.may_be_left
    assert process.attachment.is_untold
    process.owner.news()
    process.sent()
    process.attachment.give_up("nobody answers")
    assert (process.owner.news(), process.events) == (["over"], ["accepted"])
    assert not process.attachment.is_untold
    process.accept(stored=1)
    assert process.sent()[-1] == CloseCluster(ID, terminate=False)
    process.hear(JobsOver(ID, 1, [done(1), done(2)]), ClusterOver(ID))
    assert process.sent() == [AckOver(ID, 1)]
    assert (process.owner.news(), process.events) == ([], ["accepted", "over"])


@in_loop
async def test_a_cluster_is_declined() -> None:
    process = Process()
    process.hear(ClusterDeclined(ID, "too many"))
    with pytest.raises(SettingsError, match="does not take up cluster compute: too many"):
        process.attachment.decided.result()
    later = Process()
    later.accept()
    later.submit(1)
    later.hear(ClusterDeclined(ID, "another has it"))
    later.submit(2)
    assert [end[:2] for end in later.owner.news()] == [(1, "Abandoned"), (2, "Abandoned")]
    later.attachment.close(terminate=False)
    assert later.owner.news() == ["over"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_scheduler_that_has_forgotten_the_cluster_gets_what_may_run(reentrant: bool) -> None:
    async def run() -> None:
        process = Process(reentrant)
        process.accept()
        process.submit(1, 2)
        process.hear(JobsStored(ID, 1))
        process.submit(3)
        process.sent()
        process.attachment.link_gone()
        process.submit(4)
        process.accept(fresh=True)
        ended = [end[:4] for end in process.owner.news()]
        assert ended == ([] if reentrant else [(1, "Abandoned", b"", FORGOTTEN), (2, "Abandoned", b"", FORGOTTEN)])
        assert batches(process.sent()) == [(1, [1, 2, 3, 4] if reentrant else [3, 4])]

    asyncio.run(run())


@in_loop
async def test_jobs_that_are_left_to_a_scheduler_which_does_not_answer() -> None:
    process = Process()
    process.accept()
    process.submit(1)
    process.attachment.link_gone()
    process.attachment.close(terminate=True)
    assert process.attachment.is_untold
    process.attachment.give_up("nobody answers")
    assert not process.attachment.is_untold
    assert process.owner.news() == [(1, "Abandoned", b"", "nobody answers", None), "over"]
    assert process.events == ["accepted"], "it is not over there"
    process.accept(stored=1)
    assert process.sent()[-1] == CloseCluster(ID, terminate=True)
    process.hear(JobsOver(ID, 1, [done(1)]), ClusterOver(ID))
    assert process.sent() == [AckOver(ID, 1)]
    assert (process.owner.news(), process.events) == ([], ["accepted", "over"])


@in_loop
async def test_what_is_told_of_nodes() -> None:
    process = Process()
    process.accept()
    process.submit(1)
    gone = NodeGone(ID, NODE, "it is gone")
    process.hear(
        NodeReady(ID, SEEN, 2),
        NodeChanged(ID, NODE, 3),
        NodeChanged(ID, NODE, used=1),
        NodeChanged(ID, NODE, avail=None),
        JobsHanded(ID, NODE, [1, 7], "10.0.0.1"),
    )
    assert process.attachment.jobs[1].node == NODE
    process.hear(JobWaitsAgain(ID, 1, NODE, "lost"), JobWaitsAgain(ID, 7, NODE, "lost"))
    assert process.attachment.jobs[1].node is None
    process.hear(
        NodeGone(ID, NODE, "set up anew", renewing=True),
        gone,
        NodeChanged(ID, NODE, 4),
        NodeDeclined(ID, SEEN, "no Python"),
    )
    assert process.owner.news() == [
        ("opened", "one", 2),
        ("offered", 3, 2),
        ("offered", 3, 1),
        ("started", "10.0.0.1", [1]),
        ("again", 1, "lost"),
        ("closed", NODE, "set up anew", True),
        ("closed", NODE, "it is gone", False),
        ("refused", "one", "no Python"),
    ]


@in_loop
async def test_nodes_that_are_not_told_of_on_a_new_link_are_gone() -> None:
    process = Process()
    other = NodeSeen(ProcessId("o" * 32), NodeInfo(ProcessId("o" * 32), "other", 1, "Linux", ()), "10.0.0.2", 9701)
    process.accept()
    process.hear(NodeReady(ID, SEEN, 2), NodeReady(ID, other, 1))
    process.attachment.nodes.close_untold()
    process.owner.news()
    process.accept()
    process.hear(NodeReady(ID, other, 1))
    process.owner.news()
    process.attachment.nodes.close_untold()
    assert [said[:2] for said in process.owner.news()] == [("closed", NODE)]


def test_what_is_wrong_with_one_owner_is_no_matter_of_others(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        process = Process()
        process.accept()
        process.submit(1, 2)
        told = process.owner.job_ended

        def fails_first(ended: Any, view: Any) -> bool:
            if ended.job.job == 1:
                raise RuntimeError("it cannot")
            return told(ended, view)

        process.owner.job_ended = fails_first  # type: ignore[method-assign]
        process.hear(JobsOver(ID, 1, [done(1), done(2)]))
        assert [end[0] for end in process.owner.news()] == [2]
        assert process.sent()[-1] == AckOver(ID, 1)

    asyncio.run(run())
