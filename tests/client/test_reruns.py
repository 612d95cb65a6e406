"""What the log says of jobs that run again."""

from __future__ import annotations

import asyncio

import pytest

from dispy.reruns import Reruns


def said(capsys: pytest.CaptureFixture[str], *jobs: tuple[object, str]) -> list[str]:
    async def test() -> None:
        reruns = Reruns()
        for job, cause in jobs:
            reruns.add(job, cause)
        await asyncio.sleep(0)

    asyncio.run(test())
    return [line.partition(" dispy - ")[2] for line in capsys.readouterr().err.splitlines()]


def test_a_thousand_jobs_of_a_lost_node_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, *((number, "node n was lost") for number in range(1000)))
    assert lines == ["1000 jobs run again (0 … 999): node n was lost"]


def test_every_cause_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, ("a", "no room on n"), (2, "node n was lost"), (3, "node n was lost"))
    assert lines == ["job a runs again: no room on n", "2 jobs run again (2 … 3): node n was lost"]
