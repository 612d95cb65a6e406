"""Attempts at one job: how often it is given to another node, and that an earlier one never outdoes a later one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy

import dispy

SOON = 30.0


@pytest.fixture
def cluster_of(free_base_ports: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`cluster_of(computation, ports, …)`: a cluster that knows these nodes only; it is ended after the test."""
    made: list[dispy.JobCluster] = []
    monkeypatch.setenv("DISPY_LOCAL", "never")

    def make(computation: Any, ports: list[int], **settings: Any) -> dispy.JobCluster:
        nodes = [("127.0.0.1", port) for port in ports]
        made.append(dispy.JobCluster(computation, nodes=nodes, dispy_port=free_base_ports[0], **settings))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close(terminate=True)
        cluster.shutdown()


def kill_the_node(folder: str) -> None:
    """Ends the daemon above its own fork server and guard."""
    import os
    import pathlib

    (pathlib.Path(folder) / dispy_node_name).touch()  # type: ignore[name-defined] # noqa: F821
    os.kill(int((pathlib.Path(folder) / f"{dispy_node_name}.pid").read_text()), signal.SIGKILL)  # type: ignore[name-defined] # noqa: F821
    signal.pause()


@pytest.mark.parametrize(
    ("settings", "options", "attempts"), [({"reentrant": True}, {}, 3), ({}, {"dispy_retries": 1}, 2)]
)
def test_a_job_that_kills_its_nodes_is_not_given_to_all_of_them(
    dispynode: Callable[..., Any],
    cluster_of: Callable[..., dispy.JobCluster],
    free_base_ports: list[int],
    tmp_path: Path,
    settings: dict[str, Any],
    options: dict[str, Any],
    attempts: int,
) -> None:
    """Three in a row are enough, or one more than it has retries; then it says so, and the others go on."""
    for base in free_base_ports:
        node = dispynode("--cpus", "1", name=f"n{base}", base_port=base + 1)
        (tmp_path / f"n{base}.pid").write_text(str(node.pid))
    ports = [base + 2 for base in free_base_ports]
    cluster = cluster_of(kill_the_node, ports, **settings)
    job = cluster.submit(str(tmp_path), **options)
    assert job.finish.wait(SOON)
    hit = [base for base in free_base_ports if (tmp_path / f"n{base}").exists()]
    assert len(hit) == attempts
    if settings:
        assert job.status == dispy.DispyJob.Terminated
        assert "the last of 3 nodes in a row that were lost while they ran it" in str(job.exception)
    else:
        assert job.status == dispy.DispyJob.Abandoned
        assert "may have started" in str(job.exception)
    (rest,) = [base for base in free_base_ports if base not in hit][:1]
    assert cluster_of(os.getpid, [rest + 2]).submit()() not in {None, os.getpid()}


def wait_for_gate(folder: str) -> str:
    import pathlib
    import time

    name = dispy_node_name  # type: ignore[name-defined] # noqa: F821
    (pathlib.Path(folder) / f"{name}.started").touch()
    while not (pathlib.Path(folder) / f"{name}.gate").exists():
        time.sleep(0.02)
    return str(name)


def test_a_late_reply_of_an_earlier_attempt_counts_for_nothing(
    dispynode: Callable[..., Any],
    cluster_of: Callable[..., dispy.JobCluster],
    free_base_ports: list[int],
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    """The first node falls silent, ends the job meanwhile, and comes back with its result while the second runs it."""
    proxies: dict[str, Proxy] = {}
    try:
        for base in free_base_ports[1:3]:
            dispynode("--cpus", "1", name=f"n{base}", base_port=base)
            proxies[f"n{base}"] = Proxy(base + 1)
        cluster = cluster_of(
            wait_for_gate, [proxy.port for proxy in proxies.values()], reentrant=True, pulse_interval=0.2
        )
        job = cluster.submit(str(tmp_path))
        [first] = wait_until(lambda: [path.stem for path in tmp_path.glob("*.started")], timeout=SOON)
        proxies[first].cut("silence")
        (tmp_path / f"{first}.gate").touch()
        wait_until(lambda: len(list(tmp_path.glob("*.started"))) == 2, timeout=SOON)
        [second] = [name for name in proxies if name != first]
        proxies[first].mend()
        wait_until(lambda: len(cluster.status().nodes) == 2, timeout=SOON)
        assert not job.finish.is_set()
        (tmp_path / f"{second}.gate").touch()
        assert job.finish.wait(SOON)
        assert job.result == second
    finally:
        for proxy in proxies.values():
            proxy.close()
