"""`DispyJob` by itself: fields, waiting, results that are unpickled late."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest

from dispy.job import DispyJob, Waiters
from dispy.model import Ending, JobDone, JobState
from dispy.nodes import DispyNode
from dispy.settings import INLINE_SIZE


def done(
    result: bytes = b"", out: bytes = b"", err: bytes = b"", error: bytes = b"", ending: int = 0
) -> tuple[Any, bytes]:
    body = result + out + err + error
    return JobDone(1, 1, ending, 10.0, 12.5, len(result), len(out), len(err), len(error)), body


def settle(
    job: DispyJob, state: JobState = JobState.Finished, text: bool = True, cause: str | None = None, **parts: Any
) -> None:
    how, body = done(**parts)
    job._settle(state, how, body, cause, text, "10.0.0.1")


class Unloadable:
    def __reduce__(self) -> Any:
        return (_refuse, ())


def _refuse() -> None:
    raise ValueError("not here")


def test_a_finished_job_has_all_its_fields() -> None:
    job = DispyJob()
    settle(job, result=pickle.dumps([1, 2]), out=b"out\n", err="é".encode())
    assert (job(), job.stdout, job.stderr, job.exception) == ([1, 2], "out\n", "é", None)
    assert (job.start_time, job.end_time, job.ip_addr, job.host) == (10.0, 12.5, "10.0.0.1", "10.0.0.1")
    assert job.status is DispyJob.Finished
    assert job.finish.is_set()


def test_states_are_the_numbers_of_the_original_and_sort_as_these() -> None:
    states = ["Created", "Running", "ProvisionalResult", "Cancelled", "Terminated", "Abandoned", "Finished"]
    assert [int(getattr(DispyJob, name)) for name in states] == [5, 6, 7, 8, 9, 10, 11]
    assert DispyJob.Cancelled < DispyJob.Terminated < DispyJob.Abandoned < DispyJob.Finished
    assert (DispyNode.Initialized, DispyNode.Closed, DispyNode.AvailInfo) == (4, 16, 17)
    assert DispyJob().status == DispyJob.Created


def test_output_of_programs_is_bytes_and_bad_text_is_kept() -> None:
    program, function = DispyJob(), DispyJob()
    settle(program, text=False, result=pickle.dumps(0), out=b"\xff")
    settle(function, text=True, result=pickle.dumps(0), out=b"\xff")
    assert program.stdout == b"\xff"
    assert function.stdout == "�"


def test_a_job_that_failed_has_its_cause_and_no_result() -> None:
    job = DispyJob()
    settle(job, JobState.Terminated, cause="short", error=b"a traceback", ending=int(Ending.RAISED))
    assert (job(), job.exception, job.execution_trace) == (None, "a traceback", "a traceback")
    other = DispyJob()
    other._settle(JobState.Abandoned, None, b"", "the node was lost", True, None)
    assert (other(), other.exception, other.status) == (None, "the node was lost", DispyJob.Abandoned)
    assert other.end_time is not None


@pytest.mark.parametrize("padding", [0, INLINE_SIZE + 1])
def test_an_interim_result_is_shown_until_the_end(padding: int) -> None:
    interim = pickle.dumps(("so far", b"x" * padding))
    job = DispyJob()
    job._take_provisional(interim)
    copy = job._snapshot()
    assert (job.status, job.result[0], job._ended) == (DispyJob.ProvisionalResult, "so far", False)
    job._take_provisional(interim)
    settle(job, result=pickle.dumps("end"))
    assert (job(), job.status) == ("end", DispyJob.Finished)
    assert (copy.status, copy.result[0]) == (DispyJob.ProvisionalResult, "so far")
    failed = DispyJob()
    failed._take_provisional(interim)
    settle(failed, JobState.Terminated, cause="short", ending=int(Ending.RAISED))
    assert (failed(), failed.exception) == (None, "short")
    odd = DispyJob()
    odd._take_provisional(pickle.dumps((b"x" * padding, Unloadable())))
    assert odd.result is None
    assert (odd.status, "not here" in str(odd.exception)) == (DispyJob.ProvisionalResult, True)
    settle(odd, result=pickle.dumps("end"))
    assert (odd(), odd.exception) == ("end", None)


@pytest.mark.parametrize("padding", [0, INLINE_SIZE + 1])
def test_a_result_that_cannot_be_unpickled_ends_the_job_terminated(padding: int) -> None:
    job = DispyJob()
    settle(job, result=pickle.dumps((b"x" * padding, Unloadable())))
    assert job() is None
    assert job.status is DispyJob.Terminated
    assert "not here" in (job.exception or "")


class _Wordless(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class _Numeric(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


def _raise(kind: type[BaseException], *args: object) -> None:
    raise kind(*args)


class Raising:
    def __init__(self, kind: type[BaseException], *args: object) -> None:
        self.how = (kind, *args)

    def __reduce__(self) -> Any:
        return (_raise, self.how)


@pytest.mark.parametrize("padding", [0, INLINE_SIZE + 1])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Raising(SystemExit, 4), "SystemExit: 4"),
        (Raising(GeneratorExit), "GeneratorExit"),
        (Raising(asyncio.CancelledError), "CancelledError"),
        (Raising(_Wordless), "_Wordless: (its text cannot be told: SystemExit)"),
        (Raising(_Numeric), "_Numeric: (its text cannot be told: TypeError)"),
    ],
)
def test_whatever_a_result_raises_while_it_is_unpickled_ends_its_job(how: Raising, words: str, padding: int) -> None:
    job = DispyJob()
    job._take_provisional(pickle.dumps((b"x" * padding, how)))
    assert job.result is None
    settle(job, result=pickle.dumps((b"x" * padding, how)))
    assert job.finish.is_set()
    assert (job.status, job.result) == (DispyJob.Terminated, None)
    assert job.exception == f"the result cannot be unpickled in this program: {words}"


def test_ctrl_c_of_the_user_leaves_the_result_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    job = DispyJob()
    settle(job, result=pickle.dumps(b"x" * (INLINE_SIZE + 1)))
    with monkeypatch.context() as patched:
        patched.setattr("dispy.buffers.loads", lambda _: _raise(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _ = job.status
    assert (job.status, len(job.result)) == (DispyJob.Finished, INLINE_SIZE + 1)


def test_an_interrupt_that_a_result_raises_in_another_thread_is_its_own() -> None:
    job = DispyJob()
    data = pickle.dumps(Raising(KeyboardInterrupt))
    thread = threading.Thread(target=lambda: settle(job, result=data))
    thread.start()
    thread.join()
    assert (job.status, job.result) == (DispyJob.Terminated, None)


def test_a_large_result_is_unpickled_by_whoever_asks_first() -> None:
    job = DispyJob()
    settle(job, result=pickle.dumps(b"x" * (INLINE_SIZE + 1)))
    assert job._lazy is not None
    assert len(job.result) == INLINE_SIZE + 1
    assert job._lazy is None


def test_many_threads_wait_for_one_job() -> None:
    job = DispyJob()
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(job())) for _ in range(8)]
    for thread in threads:
        thread.start()
    settle(job, result=pickle.dumps("all"))
    for thread in threads:
        thread.join()
    assert results == ["all"] * 8


def test_ids_count_and_can_be_set_and_jobs_sort() -> None:
    first, second = DispyJob(), DispyJob()
    assert second.id == first.id + 1
    assert sorted([second, first]) == [first, second]
    second.id = "mine"
    assert {second: 1}[second] == 1
    assert "mine" in repr(second)


def test_clear_resets_finish() -> None:
    job = DispyJob()
    event = job.finish
    settle(job, result=pickle.dumps(1))
    assert event.is_set()
    assert job(clear=True) == 1
    assert not event.is_set()


def test_a_snapshot_has_every_field() -> None:
    job = DispyJob("name")
    settle(job, result=pickle.dumps(1), out=b"out", cause="why")
    job.submit_time = 5.0
    job._record = object()  # type: ignore[assignment]
    job._lazy = b"large"
    job._waiters = Waiters()
    fields = [name for name in DispyJob.__slots__ if name != "__weakref__"]
    copy = job._snapshot()
    assert [getattr(copy, name) for name in fields] == [getattr(job, name) for name in fields]


def test_the_end_is_seen_by_a_snapshot_that_is_asked_before_and_after_it() -> None:
    job = DispyJob()
    before, after = job._snapshot(), job._snapshot()
    event = before.finish
    assert not event.is_set()
    settle(job)
    assert event.is_set()
    assert after.finish is event
    late = DispyJob()
    copy = late._snapshot()
    settle(late)
    assert copy.finish.wait(0)
    assert late.finish is copy.finish


def test_a_snapshot_keeps_its_own_state_and_shares_the_end() -> None:
    job = DispyJob()
    job.status = DispyJob.Running
    snapshot = job._snapshot()
    settle(job, result=pickle.dumps(1))
    assert snapshot.status is DispyJob.Running
    assert snapshot.finish.is_set()
