"""The scheduler's host by itself: what queued jobs and owners that fail do to it. No link is made."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from dispy.model import ComputationId, JobState
from dispy.portal import portal
from dispy.scheduler import handover
from dispy.scheduler.effects import ClusterEnded, Effects, JobEnded, JobsEnded
from dispy.scheduler.events import CancelAsked, Event, JobsSubmitted
from dispy.scheduler.identity import ServiceSettings
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.service import SchedulerService
from dispy.secrets import credentials_from_key

CLUSTERS = ComputationId("a" * 32), ComputationId("b" * 32)


def record(number: int, cluster: ComputationId = CLUSTERS[0]) -> JobRecord:
    return JobRecord(number, cluster, b"", None, None, None)


def a_service() -> SchedulerService:
    return SchedulerService(portal(), ServiceSettings(credentials_from_key(b"s" * 32), "", 9700, 9700, ()))


class Owner:
    """Keeps what it is told, and raises after that."""

    def __init__(self, cluster: ComputationId, error: BaseException | None = None) -> None:
        self.spec = SimpleNamespace(id=cluster, name="f", files=(), code=None)
        self.told: list[Any] = []
        self._error = error

    def _tell(self, what: Any) -> None:
        self.told.append(what)
        if self._error is not None:
            raise self._error

    def job_ended(self, ended: JobEnded, _view: object) -> bool:
        self._tell(ended.job.job)
        return False

    def batch_ended(self) -> None:
        self._tell("batch")

    def ended(self) -> None:
        self._tell("ended")


@pytest.mark.parametrize("error", [ValueError("of an owner"), SystemExit("of an owner")], ids=repr)
def test_an_owner_that_raises_keeps_nothing_from_others(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    service = a_service()
    bad, good = Owner(CLUSTERS[0], error), Owner(CLUSTERS[1])
    service.owners.update({CLUSTERS[0]: bad, CLUSTERS[1]: good})  # type: ignore[dict-item]
    jobs = [record(1), record(2), record(3, CLUSTERS[1])]
    notices = [
        JobsEnded([JobEnded(job, JobState.Abandoned, cause="") for job in jobs]),
        ClusterEnded(CLUSTERS[0]),
        ClusterEnded(CLUSTERS[1]),
    ]
    service._perform(None, Effects([], notices))
    assert bad.told == [1, 2, "batch", "ended"]
    assert good.told == [3, "batch", "ended"]
    assert "of an owner" in capsys.readouterr().err


def test_queued_jobs_are_handed_over_by_portions_and_before_they_are_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "FLUSH_MOST", 10)
    service = a_service()
    handled: list[Event] = []
    monkeypatch.setattr(service, "handle", handled.append)

    async def submit_and_see(count: int) -> list[int]:
        """Turns of the loop are this coroutine's: what is posted runs when it has returned."""
        for number in range(count):
            service.submit(record(number))
        return [len(event.jobs) for event in handled if isinstance(event, JobsSubmitted)]

    async def nothing() -> None:
        pass

    assert portal().call(submit_and_see(35)) == []
    while sum(len(event.jobs) for event in handled if isinstance(event, JobsSubmitted)) < 35:
        portal().call(nothing())
    assert [len(event.jobs) for event in handled if isinstance(event, JobsSubmitted)] == [10, 10, 10, 5]
    handled.clear()
    portal().call(submit_and_see(35))
    service.cancel(record(34))
    while not any(isinstance(event, CancelAsked) for event in handled):
        portal().call(nothing())
    assert isinstance(handled[-1], CancelAsked)
    assert sum(len(event.jobs) for event in handled[:-1] if isinstance(event, JobsSubmitted)) == 35


def test_whoever_submits_while_the_loop_is_late_lets_it_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that submit without a pause would keep the interpreter lock from the loop."""
    service = a_service()
    clock, pauses = [0.0], list[float]()
    monkeypatch.setattr(handover, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=pauses.append))
    monkeypatch.setattr(service, "handle", lambda event: None)

    def submit_all() -> None:
        service.submit(record(1))
        clock[0] += handover.LATE
        service.submit(record(2))
        assert not pauses, "it is not late yet"
        clock[0] += 0.001
        service.submit(record(3))

    async def with_the_loop(in_thread: bool) -> None:
        """The loop takes nothing meanwhile: it is in this coroutine."""
        if in_thread:
            submitting = threading.Thread(target=submit_all)
            submitting.start()
            submitting.join()
        else:
            submit_all()

    service.portal.call(with_the_loop(in_thread=False))
    assert not pauses, "the loop waits for nobody"
    service.portal.call(asyncio.sleep(0))
    service.portal.call(with_the_loop(in_thread=True))
    assert pauses == [handover.LATE_PAUSE]
