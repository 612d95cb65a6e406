"""The node core by value: jobs that need more than a turn on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
from corenode import MAP, REDUCE, Answer, Node, ahead, fed, forks, heavy, node, ready, recalled

from dispy.model import BlobRef, ComputationSpec, FileSpec, JobDepends, JobOptions, JobSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects
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
    given: Any = ready.handle(ev.WorkerForked(3)).actions[0]
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


def opened(node: Node, computation: Any, limit: int = 0, *, oversubscribe: bool = False, isolate: bool = False) -> None:
    """Open a computation with its bounds."""
    one = ComputationSpec(computation, "compute", "function", "cpython-3.11", isolate=isolate)
    node.said(msg.OpenComputation(one, b"", limit, oversubscribe=oversubscribe))
    node.prepared(computation)


@pytest.mark.parametrize(
    ("limit", "oversubscribe", "others", "others_over", "cpus", "starts"),
    [
        pytest.param(0, False, 0, False, 1, 3, id="the rest of the CPUs"),
        pytest.param(0, False, 0, False, 4, 0, id="nothing is left"),
        pytest.param(2, False, 0, False, 1, 2, id="its own bound"),
        pytest.param(6, False, 0, False, 1, 3, id="a bound above the CPUs that it may not use"),
        pytest.param(6, True, 0, False, 1, 5, id="more than there are"),
        pytest.param(6, False, 7, True, 1, 4, id="what another one may use beyond the CPUs is not for it"),
        pytest.param(0, False, 7, True, 1, 4, id="nor when it has no bound"),
        pytest.param(0, False, 7, True, 5, 2, id="beside a job beyond the CPUs"),
        pytest.param(6, True, 7, True, 5, 2, id="two that may use more share what the larger one may"),
    ],
)
def test_what_starts_beside_a_heavy_job(
    limit: int, oversubscribe: bool, others: int, others_over: bool, cpus: int, starts: int
) -> None:
    """On four CPUs, beside a heavy job of another computation."""
    node = Node(cpus=4)
    node.lease()
    opened(node, REDUCE, others, oversubscribe=others_over)
    opened(node, MAP, limit, oversubscribe=oversubscribe)
    assert forks(heavy(node, 1, key=REDUCE, cpus=cpus, memory=1)) == [REDUCE]
    given: Any = node.handle(ev.WorkerForked(1)).actions
    assert given[0].extra == do.JobExtra(cpus, 1, ())
    effects = node.run(*range(11, 21))
    assert forks(effects) == [MAP] * starts
    workers = [action.worker for action in effects.actions if isinstance(action, do.ForkWorker)]
    first = [action for worker in workers for action in node.handle(ev.WorkerForked(worker)).actions]
    assert first == [fed(worker, 1) for worker in workers], "one job each"
    if workers:
        node.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
        again: Any = node.handle(ev.WorkerAnswered(workers[0], [Answer(1, ended_at=50.001)])).actions
        assert {action.worker for action in again} <= set(workers), "no other worker"
        assert not forks(Effects(again))


def test_a_heavy_job_has_at_most_what_its_computation_may_use() -> None:
    node = Node(cpus=4)
    node.lease()
    opened(node, MAP, 3)
    heavy(node, 1, cpus=0)
    given: Any = node.handle(ev.WorkerForked(1)).actions[0]
    assert given.extra == do.JobExtra(3, 0, ())
    assert node.run(2) == Effects(), "its computation has all that it may use"


def test_a_heavy_job_waits_for_cpus_within_the_bound_of_its_computation() -> None:
    node = Node(cpus=4)
    node.lease()
    opened(node, MAP, 2)
    node.run(1)
    node.forked(1)
    assert heavy(node, 2, cpus=2) == Effects(), "two CPUs are free, but not for this computation"
    given: Any = node.handle(ev.WorkerAnswered(1, [Answer(1)])).actions[0]
    assert given.extra == do.JobExtra(2, 0, ())


def test_a_heavy_job_starts_beyond_the_cpus_where_that_is_allowed() -> None:
    node = Node(cpus=2)
    node.lease()
    opened(node, MAP, 4, oversubscribe=True)
    node.run(1, 2)
    node.forked(1, 2)
    assert forks(heavy(node, 3, cpus=2)) == [MAP]
    given: Any = node.handle(ev.WorkerForked(3)).actions[0]
    assert given.extra == do.JobExtra(2, 0, ())
    assert heavy(node, 4, memory=1) == Effects(), "all four are in use"


def test_a_process_of_an_isolated_computation_runs_one_heavy_job(node: Node) -> None:
    node.lease()
    opened(node, MAP, isolate=True)
    assert forks(heavy(node, 1, memory=1)) == [MAP]
    node.forked(1)
    node.handle(ev.WorkerAnswered(1, [Answer(1)]))
    assert heavy(node, 2, memory=1).actions == [do.ForkWorker(MAP, 2)]


def test_an_isolated_process_that_has_run_its_job_ends_by_itself(node: Node) -> None:
    """It keeps its place until then: nobody is told to make room."""
    node.lease()
    opened(node, MAP, isolate=True)
    heavy(node, 1, 2, memory=1)
    node.forked(1)
    node.forked(2)
    node.handle(ev.WorkerAnswered(1, [Answer(1)]))
    assert heavy(node, 3, memory=1) == Effects()
    assert node.handle(ev.WorkerDied(1, 0, "done", expected=True)).actions == [do.ForkWorker(MAP, 3)]


def test_a_worker_that_is_asked_to_give_back_gets_no_heavy_job_meanwhile(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    recalls: Any = ready.said(msg.RecallJobs(2)).actions
    ready.handle(ev.WorkerAnswered(1, [Answer(2), Answer(3)]))
    assert heavy(ready, 5, memory=1) == Effects(), "worker 1 is idle, and has not said what it has not started"
    given: Any = ready.handle(ev.WorkerRecalled(1, recalls[0].before, recalls[0].before)).actions
    assert [(each.worker, each.jobs[0][0]) for each in given] == [(1, 4)]


def test_one_worker_is_forked_for_the_first_heavy_job(node: Node) -> None:
    node.lease()
    node.open()
    assert heavy(node, 1, 2, memory=1).actions == [do.ForkWorker(MAP, 1)]
    assert heavy(node, 3, memory=1) == Effects(), "it is on its way"


def test_a_heavy_job_waits_like_others_after_a_stillborn_worker(node: Node) -> None:
    node.lease()
    node.open()
    heavy(node, 1, memory=1)
    assert node.handle(ev.WorkerDied(1, 0, "x")) == Effects()
    assert node.wait(0.09) == Effects()
    assert node.wait(0.02).actions == [do.ForkWorker(MAP, 2)]


def test_one_worker_at_a_time_makes_room_for_a_heavy_job(ready: Node) -> None:
    ready.open(REDUCE)
    assert heavy(ready, 1, key=REDUCE, memory=1).actions == [do.RetireWorker(MAP, 1)]
    assert heavy(ready, 2, key=REDUCE, memory=1) == Effects(), "one is on its way out"


def test_heavy_jobs_start_in_their_order(ready: Node) -> None:
    """A small one does not overtake a large one that waits, or the large one would wait for ever."""
    ready.run(1)
    assert heavy(ready, 2, cpus=2) == Effects()
    assert heavy(ready, 3, memory=1) == Effects()
    given: Any = ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions
    assert [each.extra for each in given] == [do.JobExtra(2, 0, ())]
