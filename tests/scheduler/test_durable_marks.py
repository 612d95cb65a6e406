"""Marks of durable jobs: whoever keeps them, the jobs go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from dispy.model import ComputationId, JobState
from dispy.scheduler.durable import DurableMarks
from dispy.scheduler.effects import JobEnded
from dispy.scheduler.jobs import JobRecord
from dispy.wire.blobs import BlobSources

CLUSTER = ComputationId("c")


class Keeper:
    """Notes what it hears; a failing one raises instead."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.heard: list[tuple[str, list[int]]] = []

    def _hear(self, what: str, jobs: list[int]) -> None:
        if self.fails:
            raise ValueError("of the keeper")
        self.heard.append((what, jobs))

    def stored(self, jobs: Any, now: float) -> None:
        self._hear("stored", [record.job for record, _, _ in jobs])

    def handed(self, node: str, jobs: list[int]) -> None:
        self._hear("handed", jobs)

    def kept(self, jobs: Any, address: object) -> None:
        self._hear("kept", [ended.job.job for ended in jobs])

    def over(self, jobs: Any, address: object) -> None:
        self._hear("over", [ended.job.job for ended in jobs])

    def sync(self) -> None:
        pass


def test_a_store_that_fails_loses_no_batch(capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        marks = DurableMarks(BlobSources(), lambda node: "", asyncio.get_running_loop().call_soon_threadsafe)
        failing, working = Keeper(fails=True), Keeper()
        marks.add(CLUSTER, cast("Any", failing))
        marks.add(ComputationId("d"), cast("Any", working))
        records = [JobRecord(number, ComputationId(name), b"") for number, name in enumerate("cdc")]
        marks.store(records)
        failing.fails = False
        marks.store(records)
        assert (failing.heard, working.heard) == ([], [("stored", [1]), ("stored", [1])])

    asyncio.run(run())
    assert capsys.readouterr().err.count("durable jobs cannot be stored any more") == 1


def test_a_job_is_over_when_callbacks_have_told_of_it() -> None:
    async def run() -> None:
        posted: list[Callable[[], None]] = []
        marks = DurableMarks(BlobSources(), lambda node: "", posted.append)
        keeper = Keeper()
        marks.add(CLUSTER, cast("Any", keeper))
        ended = [JobEnded(JobRecord(number, CLUSTER, b""), JobState.Finished) for number in range(4)]
        ended.append(JobEnded(JobRecord(4, CLUSTER, b""), JobState.Cancelled))
        marks.end(ended, {1, 2, 3, 4})
        assert keeper.heard == [("kept", [1, 2, 3]), ("over", [0, 4])]
        marks.forget(CLUSTER)
        for job in (2, 4, 1):
            marks.told(job)
        (mark,) = posted
        mark()
        assert keeper.heard[2:] == [("over", [2, 1])]
        marks.told(3)
        posted[1]()
        assert keeper.heard[3:] == [("over", [3])]

    asyncio.run(run())
