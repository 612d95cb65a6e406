"""Queues of jobs that wait: order, what is passed over, what is forgotten. By value, beyond what `test_policy` says."""

from __future__ import annotations

import pytest

from dispy.model import BlobRef, ComputationId, JobOptions, JobState
from dispy.scheduler.jobs import PLAIN, JobQueue, JobRecord, Lane, Shape

MAP = ComputationId("1" * 32)


def job(number: int, priority: int = 0, **options: object) -> JobRecord:
    wishes = JobOptions(priority=priority, **options) if priority or options else None  # type: ignore[arg-type]
    return JobRecord(number, MAP, b"", options=wishes)


def queue(*numbers: int) -> JobQueue:
    made = JobQueue(MAP)
    for number in numbers:
        made.append(job(number))
    return made


def end(some: JobQueue, record: JobRecord) -> None:
    """A job that waits is cancelled."""
    record.state = JobState.Cancelled
    some.discard(record)


def numbers_of(records: object) -> list[int]:
    return [record.job for record in records]  # type: ignore[attr-defined]


# ---- what a job asks for ----


@pytest.mark.parametrize(
    ("shape", "is_heavy"),
    [
        (PLAIN, False),
        (Shape(node="n", tags=("a",)), False),
        (Shape(cpus=0), True),
        (Shape(cpus=2), True),
        (Shape(memory=1), True),
        (Shape(gpus=1), True),
    ],
)
def test_a_job_that_occupies_more_than_its_turn_on_a_cpu_is_heavy(shape: Shape, is_heavy: bool) -> None:
    assert shape.is_heavy is is_heavy
    assert (JobQueue(MAP, shape).is_heavy, JobQueue(MAP, shape).is_plain) == (is_heavy, shape == PLAIN)


def test_what_a_job_asks_of_its_node() -> None:
    assert job(1).shape == PLAIN
    assert (job(1).pinned, job(1).retries) == ("", 0)
    wishes = job(1, node="n", cpus=2, memory=3, gpus=4, tags=("a",), retries=2)
    assert wishes.shape == Shape("n", 2, 3, 4, ("a",))
    assert (wishes.pinned, wishes.retries) == ("n", 2)


@pytest.mark.parametrize(("failures", "left"), [(0, 2), (1, 1), (2, 0), (3, 0)])
def test_failures_use_up_retries(failures: int, left: int) -> None:
    record = job(1, retries=2)
    record.failures = failures
    assert record.retries == left


def test_large_arguments_are_named() -> None:
    assert JobRecord(1, MAP, b"", blob=BlobRef(b"b" * 32, 1)).shape == PLAIN


# ---- lanes ----


def test_the_first_of_a_lane_is_the_first_that_still_waits() -> None:
    lane, records = Lane(), [job(number) for number in (1, 2, 3)]
    lane.jobs.extend(records)
    lane.waiting = 2
    records[0].state = JobState.Cancelled
    assert lane.head() is lane.head() is records[1]
    assert lane.take(1) == records[1:2]
    assert (lane.waiting, lane.head()) == (1, records[2])


def test_taking_passes_over_jobs_that_ended_one_after_the_other() -> None:
    some = queue(1, 2, 3, 4)
    records = list(some)
    end(some, records[1])
    end(some, records[2])
    assert some.waiting == 2
    assert numbers_of(some.take(2)) == [1, 4]
    assert some.waiting == 0


def test_jobs_come_back_between_those_that_wait_and_none_is_lost() -> None:
    some = queue(2, 4, 6)
    some.put_back([job(5), job(1), job(3)])
    assert some.waiting == 6
    assert numbers_of(some.take(6)) == [1, 2, 3, 4, 5, 6]


def test_a_job_that_comes_back_stands_before_one_that_ended_meanwhile() -> None:
    some = queue(1, 2, 3)
    end(some, next(iter(some)))
    some.put_back([job(0)])
    assert some.rank == (0, 0)
    assert numbers_of(some.take(3)) == [0, 2, 3]


def test_a_lane_of_which_every_job_was_cancelled_keeps_none_of_them() -> None:
    some = queue(1, 2)
    first, second = some
    end(some, first)
    assert numbers_of(some) == [2]
    end(some, second)
    assert not some._lanes[0].jobs
    assert some.waiting == 0


# ---- priorities ----


def test_a_lane_that_is_empty_is_not_served_and_may_fill_again() -> None:
    some = queue(1)
    some.append(job(2, priority=3))
    assert (some.top().priority, some.rank) == (3, (-3, 2))
    assert numbers_of(some.take(1)) == [2]
    assert (some.top().priority, some.rank) == (0, (0, 1))
    some.append(job(3, priority=3))
    some.append(job(4, priority=5))
    assert [numbers_of(some.take(1)) for _ in range(3)] == [[4], [3], [1]]


def test_jobs_that_come_back_stand_in_the_lane_of_their_priority() -> None:
    some = queue(5)
    some.put_back([job(7, priority=2), job(3), job(6, priority=2), job(9, priority=-1)])
    assert some.waiting == 5
    assert [numbers_of(some.take(1)) for _ in range(5)] == [[6], [7], [3], [5], [9]]


def test_a_cancelled_job_leaves_the_lane_of_its_priority() -> None:
    some = queue(1)
    urgent = job(2, priority=3)
    some.append(urgent)
    end(some, urgent)
    assert (some.waiting, some.rank, numbers_of(some)) == (1, (0, 1), [1])
