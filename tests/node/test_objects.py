"""The node core by value: scattered objects are fetched once, kept for a while, and let go."""

from __future__ import annotations

import pytest
from corenode import ANNA, MAP, REDUCE, Answer, Node, gone, node, ready

from dispy.model import BlobRef, Ending, FileSpec, HeldAttempt, JobDepends, JobOptions, JobSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects, Send
from dispy.node.objects import IDLE_SECONDS
from dispy.wire import messages as msg

__all__ = ["node", "ready"]

MODEL, TABLE = BlobRef(b"m" * 32, 1 << 30), BlobRef(b"t" * 32, 9)
FETCH, FORGET = do.FetchObject(ANNA, MODEL), do.ForgetObject(MODEL.name)


def needing(*jobs: int, objects: tuple[BlobRef, ...] = (MODEL,), key: object = MAP, **wishes: object) -> msg.RunJobs:
    options = JobOptions(depends=JobDepends((), objects), **wishes)  # type: ignore[arg-type]
    return msg.RunJobs(key, [JobSpec(job, 1, 1, None, options) for job in jobs])  # type: ignore[arg-type]


def given(worker: int, sequence: int, *objects: tuple[bytes, int], key: object = MAP) -> do.FeedWorker:
    return do.FeedWorker(key, worker, [(sequence, memoryview(b"x"))], None, dict(objects))  # type: ignore[arg-type]


def test_many_jobs_fetch_an_object_once_and_each_worker_is_told(ready: Node) -> None:
    assert ready.said(needing(1, 2, 3), b"xxx").actions == [FETCH]
    effects = ready.handle(ev.ObjectFetched(MODEL.name, 7))
    assert effects.actions == [given(1, 2, (MODEL.name, 7)), given(2, 2, (MODEL.name, 7))]
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == [given(1, 3, (MODEL.name, 7))]
    assert ready.said(needing(4), b"x").actions == [], "the next job finds it"


def test_an_object_stays_for_a_while_after_its_last_job(ready: Node) -> None:
    ready.said(needing(1), b"x")
    ready.handle(ev.ObjectFetched(MODEL.name, 7))
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert FORGET not in ready.wait(IDLE_SECONDS - 1).actions
    assert ready.said(needing(2), b"x").actions == [given(1, 3, (MODEL.name, 7))]
    assert FORGET not in ready.wait(10 * IDLE_SECONDS).actions, "a job needs it"
    ready.handle(ev.WorkerAnswered(1, [Answer(3)]))
    assert FORGET in ready.wait(IDLE_SECONDS).actions
    assert ready.said(needing(3), b"x").actions == [FETCH], "it is fetched again"


def test_the_end_of_a_lease_lets_go_of_objects(ready: Node) -> None:
    ready.said(needing(1), b"x")
    ready.handle(ev.ObjectFetched(MODEL.name, 7))
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    ready.said(msg.CloseComputation(MAP))
    ready.handle(ev.ComputationCleaned(MAP))
    assert FORGET in ready.said(msg.ReleaseLease()).actions


def test_an_object_that_cannot_be_had_ends_the_jobs_that_wait(ready: Node) -> None:
    ready.said(needing(1, 2), b"xx")
    ready.run(3)
    effects = ready.handle(ev.ObjectFailed(MODEL.name, "the disk is full"))
    text = b"a scattered object did not reach the node: the disk is full"
    done = gone(3, 1, Ending.DIED, text)
    assert effects.actions == [FORGET]
    (send,) = effects.sends
    assert send.message.jobs == [done.message.jobs[0], gone(3, 2, Ending.DIED, text).message.jobs[0]]  # type: ignore[union-attr]
    assert list(send.payload) == [text, text]
    assert ready.handle(ev.ObjectFailed(MODEL.name, "twice")) == Effects()


def test_an_object_that_cannot_be_stored_here_may_be_stored_elsewhere(ready: Node) -> None:
    ready.said(needing(1), b"x")
    text = b"a scattered object did not reach the node: it does not fit"
    effects = ready.handle(ev.ObjectFailed(MODEL.name, "it does not fit", no_room=True))
    assert effects.sends[0].message.jobs == gone(3, 1, Ending.NO_ROOM, text).message.jobs  # type: ignore[union-attr]


def test_an_object_that_nobody_waits_for_any_more_is_forgotten(ready: Node) -> None:
    ready.said(needing(1), b"x")
    assert ready.said(msg.CancelJobs([1])) == Effects([FORGET], [gone(3, 1)])
    assert ready.handle(ev.ObjectFetched(MODEL.name, 7)) == Effects([FORGET], []), "too late"
    ready.said(needing(2), b"x")
    recalled = ready.said(msg.RecallJobs(1))
    assert recalled == Effects([FORGET], [Send(ANNA, msg.JobsRecalled([HeldAttempt(2, 1)]))])


def test_a_new_link_fetches_what_has_not_come(ready: Node) -> None:
    ready.said(needing(1), b"x")
    ready.said(needing(2, objects=(TABLE,)), b"x")
    ready.handle(ev.ObjectFetched(TABLE.name, 8))
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.lease().actions == [FETCH]
    assert ready.handle(ev.ObjectFetched(TABLE.name, 9)).actions == [do.ForgetObject(TABLE.name)], "twice"


def test_a_job_waits_for_all_that_it_needs(ready: Node) -> None:
    blob, file = BlobRef(b"a" * 32, 70_000, False), FileSpec("data", BlobRef(b"f" * 32, 3))
    options = JobOptions(depends=JobDepends((file,), (MODEL, TABLE, MODEL)))
    effects = ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 0, blob, options)]))
    assert [type(action) for action in effects.actions] == [
        do.LendFiles,
        do.FetchObject,
        do.FetchObject,
        do.FetchArguments,
    ]
    for event in (ev.ObjectFetched(TABLE.name, 8), ev.FilesLent(1, 1), ev.ArgumentsFetched(blob.name, 9)):
        assert ready.handle(event).actions == []
    fed = do.FeedWorker(MAP, 1, [(2, 9)], None, {TABLE.name: 8, MODEL.name: 7})
    assert ready.handle(ev.ObjectFetched(MODEL.name, 7)).actions == [fed]
    assert do.ReturnFiles(MAP, 1, 1) in ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions


def test_a_heavy_job_gets_its_objects(ready: Node) -> None:
    ready.said(needing(1, cpus=2), b"x")
    (fed,) = ready.handle(ev.ObjectFetched(MODEL.name, 7)).actions
    assert isinstance(fed, do.FeedWorker)
    assert (fed.extra, fed.objects) == (do.JobExtra(2), {MODEL.name: 7})


def test_a_job_that_comes_back_from_a_dead_worker_still_has_its_objects(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.said(needing(1, 2, 3, 4), b"xxxx")
    ready.handle(ev.ObjectFetched(MODEL.name, 7))
    effects = ready.handle(ev.WorkerDied(1, 2, "exit code 1"))
    (fed,) = [action for action in effects.actions if isinstance(action, do.FeedWorker)]
    assert fed.objects == {MODEL.name: 7}


def test_two_computations_share_an_object(ready: Node) -> None:
    ready.open(REDUCE)
    assert ready.said(needing(1), b"x").actions == [FETCH]
    assert ready.said(needing(2, key=REDUCE), b"x").actions == []
    forks = ready.handle(ev.ObjectFetched(MODEL.name, 7)).actions
    assert given(1, 2, (MODEL.name, 7)) in forks
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert FORGET not in ready.wait(10 * IDLE_SECONDS).actions, "the other one needs it"


@pytest.mark.parametrize("objects", [(), (MODEL,)])
def test_a_newer_attempt_takes_over(ready: Node, objects: tuple[BlobRef, ...]) -> None:
    ready.said(needing(1), b"x")
    newer = msg.RunJobs(MAP, [JobSpec(1, 2, 1, None, JobOptions(depends=JobDepends((), objects)))])
    effects = ready.said(newer, b"y")
    if objects:
        assert effects.actions == [FORGET, FETCH]
        effects = ready.handle(ev.ObjectFetched(MODEL.name, 7))
    assert any(isinstance(action, do.FeedWorker) for action in effects.actions)
