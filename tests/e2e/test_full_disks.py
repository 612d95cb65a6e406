"""What jobs need and a node has no room for: they run on another node."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dispy

SOON = 60.0
LARGE = 6 << 20
"""Bytes: more than the small disk has."""


@pytest.fixture(params=["durable", "shared"])
def cluster(
    request: pytest.FixtureRequest,
    small_disk: Path,
    dispynode: Callable[..., Any],
    dispyscheduler: Callable[..., Any],
    free_base_port: int,
) -> Iterator[Any]:
    """A cluster of one kind on two nodes; the disk of one is small."""
    dispynode("--cpus", "1", "--dest_path_prefix", str(small_disk / "node"), name="small")
    dispynode("--cpus", "1", name="roomy")
    if request.param == "shared":
        dispyscheduler()
        made: Any = dispy.SharedJobCluster(measure, dispy_port=free_base_port)
    else:
        made = dispy.JobCluster(measure, nodes="*", dispy_port=free_base_port, durable=True)
    yield made
    made.close(terminate=True)
    made.shutdown()


def measure(large: bytes | str) -> tuple[str, int]:
    import os

    size = len(large) if isinstance(large, bytes) else os.path.getsize(large)
    return dispy_node_name, size  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.real
def test_jobs_that_need_something_large_run_where_there_is_room(
    cluster: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "large"
    file.write_bytes(os.urandom(LARGE))
    scattered = cluster.scatter(os.urandom(LARGE))
    wait_until(lambda: len(cluster.status().nodes) == 2, timeout=SOON)
    jobs = [cluster.submit(scattered) for _ in range(3)]
    jobs += [cluster.submit("large", dispy_job_depends=[str(file)]) for _ in range(3)]
    for job in jobs:
        assert job() == ("roomy", LARGE), job.exception
    (small,) = [node for node in cluster.status().nodes if node.name == "small"]
    pinned = cluster.submit_node(small, scattered)
    pinned()
    assert pinned.status == dispy.DispyJob.Terminated
    assert "does not fit: the disk of" in pinned.exception
    assert "is full; make room there" in pinned.exception
