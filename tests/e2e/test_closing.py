"""The end of a cluster: what callbacks submit meanwhile, what is refused, and how long it may take."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import closing
from dispy.errors import ClosedError

SOON = 20.0


def same(number: int) -> int:
    return number


def endless(path: str) -> None:
    Path(path).touch()
    while True:
        time.sleep(0.01)


def setup_nothing(gate: str) -> None:
    """Only what was set up is cleaned up."""


def clean_up_when_told(gate: str) -> None:
    while not Path(gate).exists():
        time.sleep(0.01)


def test_what_callbacks_submit_while_close_waits_is_run(local: Callable[..., dispy.JobCluster]) -> None:
    jobs: list[dispy.DispyJob] = []
    closes = threading.Event()

    def follow(job: dispy.DispyJob) -> None:
        closes.wait(SOON)
        if job.result < 3:
            jobs.append(cluster.submit(job.result + 1))

    cluster = local(same, job_status=follow)
    jobs.append(cluster.submit(0))
    jobs[0]()
    closes.set()
    assert cluster.close() is True
    assert [job.result for job in jobs] == [0, 1, 2, 3]


def test_every_job_that_a_cluster_accepts_ends(
    local: Callable[..., dispy.JobCluster], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    accepted: list[dispy.DispyJob] = []
    refused: list[ClosedError] = []

    def follow(job: dispy.DispyJob) -> None:
        try:
            accepted.append(cluster.submit(str(tmp_path / "another")))
        except ClosedError as error:
            refused.append(error)

    cluster = local(endless, job_status=follow)
    accepted += [cluster.submit(str(tmp_path / f"{number}")) for number in range(20)]
    wait_until((tmp_path / "0").exists, timeout=SOON)
    cluster.cancel(accepted[-1])
    wait_until(lambda: len(accepted) == 21, timeout=SOON)
    assert cluster.close(timeout=0.01, terminate=True) is True
    assert len(refused) == 20, "those that the end of the cluster has ended were told after it took no more"
    states = {job.status for job in accepted if job.finish.is_set()}
    assert all(job.finish.is_set() for job in accepted)
    assert states <= {dispy.DispyJob.Cancelled, dispy.DispyJob.Terminated}
    assert any("its cluster was closed" in (job.exception or "") for job in accepted)
    assert cluster.wait(0)


def test_close_keeps_its_time_with_a_callback_that_hangs(
    local: Callable[..., dispy.JobCluster], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(closing, "CALLBACK_PATIENCE", 0.1)
    gate, began = threading.Event(), threading.Event()

    def hang(job: dispy.DispyJob) -> None:
        began.set()
        gate.wait()

    cluster = local(same, job_status=hang)
    try:
        assert cluster.submit(1)() == 1
        assert began.wait(SOON)
        assert cluster.close(timeout=0.01) is False
        assert cluster.submit(2)() == 2, "it is still open"
        assert cluster.close(timeout=0.01, terminate=True) is True
        assert "hang has been running for" in capsys.readouterr().err
        with pytest.raises(ClosedError):
            cluster.submit(3)
    finally:
        gate.set()


def test_a_cluster_whose_nodes_clear_up_for_long_says_so(
    local: Callable[..., dispy.JobCluster],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wait_until: Callable[..., Any],
) -> None:
    monkeypatch.setattr(closing, "SAY_AFTER", 0.05)
    monkeypatch.setattr(closing, "SAY_AGAIN", 0.05)
    gate, said = tmp_path / "gate", ""
    node = dispy.NodeAllocate("*", setup_args=(str(gate),))
    cluster = local(same, nodes=["local", node], setup=setup_nothing, cleanup=clean_up_when_told)
    assert cluster.submit(1)() == 1
    closer = threading.Thread(target=cluster.close, kwargs={"terminate": True})
    closer.start()

    def is_said_again() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return said.count(" clearing up") > 1

    try:
        wait_until(is_said_again, timeout=SOON)
        assert "same is not closed yet: node " in said
        since = r"(is clearing up|has been clearing up for \d+ s)"
        assert re.search(rf"\(127\.0\.0\.1\) {since}; waiting for that; Ctrl-C again: without waiting", said), said
    finally:
        gate.touch()
        closer.join()
    assert cluster.is_closed
