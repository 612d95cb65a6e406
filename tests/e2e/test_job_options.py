"""Options of jobs on a real node: limits that bite, CPUs and GPUs that are kept, priorities, further attempts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dispy

SECRET = "a secret for these tests alone"
SOON = 30.0


@pytest.fixture
def cluster_on(
    dispynode: Callable[..., Any], free_base_port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., dispy.JobCluster]]:
    """`cluster_on(computation, *options)`: a cluster on a node with two CPUs and these options of dispynode."""
    monkeypatch.setenv("DISPY_SECRET", SECRET)
    clusters: list[dispy.JobCluster] = []

    def make(computation: Any, *options: str) -> dispy.JobCluster:
        if not clusters:
            dispynode("--cpus", "2", *options, name="one")
        clusters.append(dispy.JobCluster(computation, nodes="127.0.0.1", dispy_port=free_base_port))
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.close(terminate=True)
        cluster.shutdown()


def ended(job: dispy.DispyJob | None) -> dispy.DispyJob:
    assert job is not None
    assert job.finish.wait(SOON), f"the job is still {job.status!r}"
    return job


def test_time_limit(cluster_on: Callable[..., dispy.JobCluster]) -> None:
    def job(seconds: float) -> float:
        time.sleep(seconds)  # noqa: F821
        return seconds

    cluster = cluster_on(job)
    long = [cluster.submit(60, dispy_timeout=0.5) for _ in range(2)]
    short = [cluster.submit(0.01, dispy_timeout=30) for _ in range(20)]
    for each in long:
        assert ended(each).status == dispy.DispyJob.Terminated
        assert re.match(r"time: it ran 0\.[5-9] s, its limit was 0\.5 s", each.exception or ""), each.exception
    assert [ended(each).result for each in short] == [0.01] * 20


def test_memory_limit_and_cpus(cluster_on: Callable[..., dispy.JobCluster]) -> None:
    def job(size: int) -> tuple[str, str]:
        kept = []
        for _ in range(size):
            kept.append(bytearray(os.urandom(1024)) * 1024)  # noqa: F821
            time.sleep(0.002)  # noqa: F821
        return os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES", "")  # noqa: F821

    cluster = cluster_on(job, "--gpus", "2")
    assert ended(cluster.submit(1)).result == ("1", "")
    assert ended(cluster.submit(1, dispy_cpus="all", dispy_gpus=2)).result == ("2", "0,1")
    fine = cluster.submit(10, dispy_memory="300MiB")
    big = ended(cluster.submit(200, dispy_memory="60MiB"))
    assert big.status == dispy.DispyJob.Terminated
    assert re.match(r"killed: memory \d+ MiB over the limit of 60 MiB after ", big.exception or ""), big.exception
    assert ended(fine).status == dispy.DispyJob.Finished
    many = cluster.submit(1, dispy_gpus=3)
    assert "has 2 GPUs, not 3" in (ended(many).exception or "")
    assert many.status == dispy.DispyJob.Abandoned


def test_a_job_of_two_cpus_runs_alone_and_soon(cluster_on: Callable[..., dispy.JobCluster], tmp_path: Path) -> None:
    def job(folder: str, name: str, seconds: float) -> int:
        with open(f"{folder}/{name}", "w"):
            time.sleep(seconds)  # noqa: F821
            there = len(os.listdir(folder))  # noqa: F821
        os.unlink(f"{folder}/{name}")  # noqa: F821
        return there

    cluster = cluster_on(job)
    folder = tmp_path / "running"
    folder.mkdir()
    before = [cluster.submit(str(folder), f"a{number}", 0.05) for number in range(20)]
    wide = cluster.submit(str(folder), "wide", 0.3, dispy_cpus=2)
    after = [cluster.submit(str(folder), f"b{number}", 0.05) for number in range(60)]
    assert ended(wide).result == 1, "nothing else ran"
    assert sum(each.status == dispy.DispyJob.Finished for each in after) < 30
    assert all(ended(each).result <= 2 for each in before + after)


def test_priority_tags_and_retries(cluster_on: Callable[..., dispy.JobCluster], tmp_path: Path) -> None:
    def job(folder: str, name: str) -> str:
        with open(f"{folder}/order", "a") as file:
            file.write(f"{name} ")
        time.sleep(0.1)  # noqa: F821
        if name == "fails" and not os.path.exists(f"{folder}/failed"):  # noqa: F821
            open(f"{folder}/failed", "w").close()
            raise ValueError("the first time")
        if name == "dies":
            os._exit(3)  # noqa: F821
        return name

    cluster = cluster_on(job, "--tag", "ssd")
    assert ended(cluster.submit(str(tmp_path), "x", dispy_tags="ssd")).result == "x"
    lacking = ended(cluster.submit(str(tmp_path), "y", dispy_tags=["ssd", "huge"]))
    assert "does not have the tag huge" in (lacking.exception or "")
    assert ended(cluster.submit(str(tmp_path), "fails", dispy_retries=2)).result == "fails"
    dying = ended(cluster.submit(str(tmp_path), "dies", dispy_retries=2))
    assert dying.status == dispy.DispyJob.Terminated
    (tmp_path / "order").unlink()
    jobs = [cluster.submit(str(tmp_path), "low") for _ in range(10)]
    node = cluster.status().nodes[0]
    high = cluster.submit_node(node, str(tmp_path), "high", dispy_priority=5)
    assert ended(high).result == "high"
    for each in jobs:
        ended(each)
    assert (tmp_path / "order").read_text().split().index("high") < 8
