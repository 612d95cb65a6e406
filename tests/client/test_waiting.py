"""Waiting for several jobs at once, with and without an event loop."""

from __future__ import annotations

import asyncio
import pickle
import threading
import tracemalloc
from typing import Any

import pytest

import dispy
from dispy.job import DispyJob
from dispy.model import ComputationId, JobDone, JobState
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.events import ClusterOpened, JobsSubmitted
from dispy.scheduler.jobs import JobRecord


def finish(job: DispyJob, value: Any = None) -> None:
    body = pickle.dumps(value)
    job._settle(JobState.Finished, JobDone(1, 1, 0, 1.0, 2.0, len(body), 0, 0, 0), body, None, True, "10.0.0.1")


def later(seconds: float, *jobs: DispyJob) -> threading.Thread:
    def run() -> None:
        for job in jobs:
            pause.wait(seconds)
            finish(job, job.id)

    pause = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_jobs_come_in_the_order_in_which_they_end() -> None:
    jobs = [DispyJob() for _ in range(4)]
    finish(jobs[3])
    completed = dispy.as_completed(jobs)
    thread = later(0.0, jobs[2], jobs[0], jobs[1])
    assert list(completed) == [jobs[3], jobs[2], jobs[0], jobs[1]]
    thread.join()


def test_a_job_that_is_given_twice_comes_once() -> None:
    job = DispyJob()
    finish(job)
    assert list(dispy.as_completed([job, job])) == [job]
    assert list(dispy.as_completed([])) == []


def test_time_that_is_over() -> None:
    ended, pending = DispyJob(), DispyJob()
    finish(ended)
    completed = dispy.as_completed([ended, pending], timeout=0.05)
    assert next(completed) is ended
    with pytest.raises(TimeoutError, match=r"1 of the jobs did not end within 0\.05 s"):
        next(completed)


def test_awaiting_a_job_leaves_the_loop_free() -> None:
    job, ended = DispyJob(), DispyJob()
    finish(ended, "before")
    ticks: list[int] = []

    async def tick() -> None:
        while not job.finish.is_set():
            ticks.append(1)
            await asyncio.sleep(0.001)

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        thread = later(0.1, job)
        assert await job == job.id
        assert await ended == "before"
        await ticking
        thread.join()

    asyncio.run(main())
    assert len(ticks) > 5


def test_async_for_over_jobs() -> None:
    jobs = [DispyJob() for _ in range(4)]

    async def main() -> list[DispyJob]:
        thread = later(0.01, *jobs)
        found = [job async for job in dispy.as_completed(jobs)]
        thread.join()
        return found

    assert asyncio.run(main()) == jobs


def test_async_time_that_is_over_and_a_cancelled_wait() -> None:
    async def main() -> None:
        job = DispyJob()
        with pytest.raises(TimeoutError, match="did not end within"):
            async for _ in dispy.as_completed([job], timeout=0.02):
                pass
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_wait(job), 0.02)
        finish(job, 3)
        assert await job == 3

    asyncio.run(main())


async def _wait(job: DispyJob) -> Any:
    return await job


def test_a_job_that_ends_after_its_loop_was_closed() -> None:
    job = DispyJob()

    async def main() -> None:
        await asyncio.wait_for(_wait(job), 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    finish(job, 1)
    assert job() == 1


def test_a_large_result_is_whole_for_all_who_ask_at_once() -> None:
    job = DispyJob()
    finish(job, list(range(300_000)))
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(job())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(result) for result in results] == [300_000] * 4


def test_a_queued_job_takes_little_memory() -> None:
    from dispy.model import ComputationSpec, Holder
    from dispy.shipping import dumps_arguments, pack

    def nothing(number: int) -> int:
        return number

    count = 20_000
    shipment = pack(nothing, ())
    core = SchedulerCore(holder=Holder("anna", "host", 1, "prog.py"), token=b"t" * 32)
    cluster = ComputationId("1" * 32)
    core.handle(ClusterOpened(ComputationSpec(cluster, "nothing", "function")), 0.0)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    jobs = []
    records = []
    for number in range(count):
        job = DispyJob()
        job._record = JobRecord(100_000 + number, cluster, dumps_arguments(shipment, (number,), {}), job)
        records.append(job._record)
        jobs.append(job)
    core.handle(JobsSubmitted(records), 0.0)
    del records
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / count <= 700
