"""Marks of durable jobs: whoever keeps them, the jobs go on."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from dispy.model import ComputationId
from dispy.scheduler.durable import DurableMarks
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

    def over(self, jobs: Any, address: object) -> None:
        self._hear("over", [ended.job.job for ended in jobs])

    def sync(self) -> None:
        pass


def test_a_store_that_fails_loses_no_batch(capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        marks = DurableMarks(BlobSources(), lambda node: "")
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
