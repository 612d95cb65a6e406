"""The node core by value: jobs that need more than a turn on a CPU."""

from __future__ import annotations

from typing import Any

from corenode import MAP, REDUCE, Answer, Node, forks, heavy, node, ready, recalled

from dispy.model import BlobRef, FileSpec, JobDepends, JobOptions, JobSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


def test_a_job_that_brings_files_has_its_other_wishes(ready: Node) -> None:
    options = JobOptions(gpus=0, cpus=2, depends=JobDepends((FileSpec("data", BlobRef(b"f" * 32, 3)),)))
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 1, None, options)]), b"x")
    (fed_alone,) = ready.handle(ev.FilesLent(1, 1)).actions
    assert isinstance(fed_alone, do.FeedWorker)
    assert fed_alone.extra == do.JobExtra(2, 0, ())


def test_nothing_starts_beside_a_heavy_job_that_has_all_cpus(ready: Node) -> None:
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 1, None, JobOptions(cpus=2))]), b"x")
    assert ready.run(2).actions == []
    assert [type(action) for action in ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions] == [do.FeedWorker]


def test_no_more_heavy_jobs_go_back_than_were_asked_for(ready: Node) -> None:
    heavy = [JobSpec(job, 1, 1, None, JobOptions(cpus=2)) for job in (1, 2, 3)]
    ready.said(msg.RunJobs(MAP, heavy), b"xxx")
    assert ready.said(msg.RecallJobs(1)).sends == [recalled(3)]
    assert ready.said(msg.RecallJobs(5)).sends == [recalled(2)]


def test_a_heavy_job_keeps_its_cpus_when_fewer_are_offered(ready: Node) -> None:
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 1, None, JobOptions(cpus=2))]), b"x")
    ready.handle(ev.OfferChanged(1))
    ready.handle(ev.OfferChanged(0, "stopped"))


def test_heavy_jobs_share_cpus_and_gpus() -> None:
    node = Node(cpus=4)
    node.core.desk.feeder.gpus = 2
    node.lease()
    node.open()
    assert forks(node.run(101, 102, 103, 104)) == [MAP] * 4
    node.forked(1, 2, 3, 4)
    for worker in (1, 2, 3, 4):
        node.handle(ev.WorkerAnswered(worker, [Answer(1)]))
    given: Any = heavy(node, 1, 2, 3, cpus=1, gpus=1).actions
    assert [(each.worker, each.extra) for each in given] == [(1, do.JobExtra(1, 0, (0,))), (2, do.JobExtra(1, 0, (1,)))]
    assert [each.worker for each in node.run(4, 5).actions] == [3], "one CPU is kept for job 3"  # type: ignore[union-attr]
    third: Any = node.handle(ev.WorkerAnswered(1, [Answer(2)])).actions[0]
    assert third.extra == do.JobExtra(1, 0, (0,))


def test_a_job_for_all_cpus_waits_for_them_and_has_what_there_is(ready: Node) -> None:
    ready.run(1)
    assert heavy(ready, 2, cpus=0).actions == []
    assert ready.run(3).actions == [], "the CPUs are kept for job 2"
    given: Any = ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions[0]
    assert given.extra == do.JobExtra(2, 0, ())
    assert ready.handle(ev.WorkerAnswered(given.worker, [Answer(3 if given.worker == 1 else 2)])).actions != []


def test_a_heavy_job_makes_room_for_a_worker_of_its_computation(ready: Node) -> None:
    ready.open(REDUCE)
    assert heavy(ready, 1, key=REDUCE, cpus=2).actions == [do.RetireWorker(MAP, 1)]
    assert ready.handle(ev.WorkerDied(1, 0, "retired", expected=True)).actions == [do.ForkWorker(REDUCE, 3)]
    given: Any = ready.handle(ev.WorkerForked(3, 3)).actions[0]
    assert (given.computation, given.extra) == (REDUCE, do.JobExtra(2, 0, ()))


def test_nothing_waits_behind_a_heavy_job(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    heavy(ready, 1, memory=1)
    fed_now: Any = ready.run(2, 3, 4).actions
    assert {action.worker for action in fed_now} == {2}


def test_the_cpus_of_a_heavy_job_that_went_back_with_its_worker_are_free(ready: Node) -> None:
    heavy(ready, 1, cpus=2)
    ready.handle(ev.OfferChanged(0, "x"))
    assert ready.handle(ev.WorkerDied(1, 0, "x")).sends == [recalled(1)]
    ready.handle(ev.WorkerDied(2, 0, "x", expected=True))
    ready.handle(ev.OfferChanged(2))
    assert forks(ready.run(2, 3)) == [MAP, MAP]
