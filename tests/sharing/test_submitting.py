"""Jobs on their way to a shared scheduler: every submit arrives once, every end is acknowledged when it is safe."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dispy.model import BlobRef, ComputationId, JobState
from dispy.scheduler.jobs import JobRecord
from dispy.sharing.settling import SafeBatches
from dispy.sharing.submitting import (
    BATCH_JOBS,
    BATCH_SIZE,
    FEW_BATCHES,
    JOB_SIZE,
    WORTH_A_BATCH,
    Batch,
    SubmitLine,
)


def record(job: int, args: bytes = b"args", blob: BlobRef | None = None) -> JobRecord:
    return JobRecord(job, ComputationId("c"), args, None, blob)


def jobs_of(batches: list[Batch]) -> list[int]:
    return [spec.job for batch in batches for spec in batch.jobs]


def test_jobs_are_sent_in_batches_and_their_order() -> None:
    line = SubmitLine()
    line.add(record(job) for job in range(BATCH_JOBS + 2))
    first, second = line.take()
    assert (first.sequence, len(first.jobs), second.sequence, len(second.jobs)) == (1, BATCH_JOBS, 2, 2)
    assert jobs_of([first, second]) == list(range(BATCH_JOBS + 2))
    assert [spec.size for spec in second.jobs] == [4, 4]
    assert second.payload == [b"args", b"args"]
    assert not line.take()
    assert not line.has_unsent


def test_a_scheduler_may_want_smaller_batches_and_gets_few_at_a_time() -> None:
    line = SubmitLine()
    line.limit(3)
    line.add(record(job) for job in range(1000))
    batches = line.take()
    assert [len(batch.jobs) for batch in batches] == [3] * FEW_BATCHES
    assert not line.take()
    line.stored(2)
    assert jobs_of(line.take()) == [24, 25, 26, 27, 28, 29]
    line.limit(0)
    line.stored(FEW_BATCHES + 2)
    assert [len(batch.jobs) for batch in line.take()] == [970]


def test_a_batch_has_a_size() -> None:
    line = SubmitLine()
    line.add(record(job, bytes(BATCH_SIZE // 4)) for job in range(10))
    assert [len(batch.jobs) for batch in line.take()] == [4, 4, 2]


def test_what_is_beyond_the_credit_waits_until_something_is_stored() -> None:
    line = SubmitLine(credit=3 * (JOB_SIZE + 4))
    line.add(record(job) for job in range(5))
    assert jobs_of(line.take()) == [0, 1, 2]
    assert line.has_unsent
    assert not line.take()
    line.stored(1)
    assert jobs_of(line.take()) == [3, 4]


def test_arguments_in_blobs_count_for_the_credit_and_one_job_may_be_larger_than_all_of_it() -> None:
    line = SubmitLine(credit=1000)
    line.add([record(1, b"", BlobRef(b"1" * 32, 5000)), record(2)])
    assert jobs_of(line.take()) == [1]
    line.stored(1)
    assert jobs_of(line.take()) == [2]


def test_a_job_that_ended_here_is_not_sent() -> None:
    line = SubmitLine()
    gone, wanted = record(1), record(2)
    line.add([gone, wanted])
    gone.state = JobState.Cancelled
    assert jobs_of(line.take()) == [2]
    line.add([gone])
    assert not line.take()
    assert not line.has_unsent


def test_a_scheduler_that_has_forgotten_gets_batches_from_the_first_number_on() -> None:
    line = SubmitLine()
    first, second, third = record(1), record(2), record(3)
    line.add([first])
    line.take()
    line.stored(1)
    line.add([second])
    line.take()
    line.add([third])
    assert (line.had_stored, line.unstored_jobs()) == (1, {2})
    line.begin_anew([second])
    batches = line.take()
    assert (jobs_of(batches), batches[0].sequence, line.had_stored) == ([2, 3], 1, 0)


class Storing:
    """The other end: stores batches in the order of their numbers, each once."""

    def __init__(self) -> None:
        self.sequence = 0
        self.jobs: list[int] = []

    def take(self, batch: Batch) -> None:
        if batch.sequence > self.sequence:
            assert batch.sequence == self.sequence + 1
            self.sequence = batch.sequence
            self.jobs += [spec.job for spec in batch.jobs]


@given(st.data())
def test_whatever_breaks_every_job_is_stored_once(data: st.DataObject) -> None:
    """A break loses what is on its way, a restart what has arrived and is not stored."""
    line, there = SubmitLine(credit=data.draw(st.integers(1, 10)) * (JOB_SIZE + 4)), Storing()
    submitted = 0
    under_way: list[Batch] = []
    arrived: list[Batch] = []
    for step in data.draw(st.lists(st.sampled_from(["submit", "arrive", "store", "tell", "break"]), max_size=60)):
        match step:
            case "submit":
                line.add([record(submitted), record(submitted + 1)])
                submitted += 2
                under_way += line.take()
            case "arrive" if under_way:
                arrived.append(under_way.pop(0))
            case "store" if arrived:
                there.take(arrived.pop(0))
            case "tell":
                line.stored(there.sequence)
                under_way += line.take()
            case "break":
                arrived.clear()
                under_way = line.resume(there.sequence) + line.take()
    while arrived or under_way or line.has_unsent:
        for batch in arrived + under_way:
            there.take(batch)
        arrived, under_way = [], line.resume(there.sequence) + line.take()
    assert there.jobs == list(range(submitted))


def test_a_batch_is_acknowledged_when_all_of_it_and_all_before_it_is_safe() -> None:
    safe = SafeBatches()
    safe.arrived(1)
    assert safe.news() == 1
    assert safe.news() is None
    safe.arrived(2, pending=2)
    safe.arrived(3)
    assert safe.news() is None
    safe.safe(2)
    assert safe.news() is None
    safe.safe(2)
    assert safe.news() == 3


@given(st.lists(st.integers(0, 3), max_size=8), st.integers())
def test_acknowledged_is_exactly_what_is_safe(pendings: list[int], seed: int) -> None:
    safe, told = SafeBatches(), 0
    unsafe = [number for number, count in enumerate(pendings, 1) for _ in range(count)]
    random.Random(seed).shuffle(unsafe)
    for number, count in enumerate(pendings, 1):
        safe.arrived(number, count)
    while True:
        told = safe.news() or told
        assert told == (min(unsafe) - 1 if unsafe else len(pendings))
        if not unsafe:
            break
        safe.safe(unsafe.pop())


def test_jobs_that_come_one_by_one_wait_for_each_other_while_many_batches_are_not_stored() -> None:
    line = SubmitLine()
    sent: list[list[int]] = []

    def submit(number: int) -> None:
        line.add([record(number)])
        sent.extend([spec.job for spec in batch.jobs] for batch in line.take())

    for number in range(1, FEW_BATCHES + WORTH_A_BATCH):
        submit(number)
    assert sent == [[number] for number in range(1, FEW_BATCHES + 1)]
    submit(FEW_BATCHES + WORTH_A_BATCH)
    assert [len(each) for each in sent[FEW_BATCHES:]] == [WORTH_A_BATCH]
    submit(10_000)
    assert len(sent) == FEW_BATCHES + 1
    line.stored(2)
    assert [[spec.job for spec in batch.jobs] for batch in line.take()] == [[10_000]]
