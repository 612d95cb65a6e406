"""`dispyscheduler` with real nodes and programs: its secrets, nodes that join, its death, nodes that others hold."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

import dispy
import dispy.cli

SECRET = "a secret for these tests alone"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPY_SECRET", SECRET)


@pytest.fixture
def shared(free_base_port: int) -> Iterator[Callable[..., Any]]:
    """`shared(computation, …)`: a cluster at the scheduler, which is ended after the test."""
    made: list[Any] = []

    def make(computation: Any, **settings: Any) -> Any:
        made.append(dispy.SharedJobCluster(computation, dispy_port=free_base_port, recover_file=False, **settings))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close(terminate=True)


def noting(path: str, number: int, seconds: float) -> int:
    import os
    import time

    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{number}\n".encode())
    os.close(fd)
    time.sleep(seconds)
    return number * number


def square(number: int) -> int:
    return number * number


def test_programs_and_nodes_may_have_different_secrets(
    dispyscheduler: Callable[..., Any], shared: Callable[..., Any], dispynode: Callable[..., Any]
) -> None:
    dispynode("--cpus", "1")
    daemon = dispyscheduler("--node_secret", SECRET, "--cluster_secret", "of programs")
    assert [job() for job in [shared(square, secret="of programs").submit(3)]] == [9]
    with pytest.raises(dispy.errors.DispyError, match="secret"):
        shared(square)
    daemon.wait_for("was refused")


def test_a_program_without_the_certificate_that_the_scheduler_wants_is_refused_at_once(
    dispyscheduler: Callable[..., Any], shared: Callable[..., Any], tmp_path: Path
) -> None:
    for words in (["ca"], ["scheduler", "pool"], ["client", "me"]):
        done = click.testing.CliRunner().invoke(dispy.cli.main, ["cert", *words, "-o", str(tmp_path)])
        assert done.exit_code == 0, done.output
    authority = str(tmp_path / "ca.pem")
    own = [str(tmp_path / f"scheduler-pool.{suffix}") for suffix in ("pem", "key")]
    dispyscheduler("--cluster_certfile", own[0], "--cluster_keyfile", own[1], "--cluster_cafile", authority)
    with pytest.raises(dispy.errors.SettingsError, match="wants certificates of programs, and this one has none"):
        shared(square)
    shared(
        square,
        certfile=str(tmp_path / "client-me.pem"),
        keyfile=str(tmp_path / "client-me.key"),
        cafile=authority,
    )


def test_nodes_may_come_by_themselves(
    dispyscheduler: Callable[..., Any],
    shared: Callable[..., Any],
    dispynode: Callable[..., Any],
    free_base_port: int,
    free_base_ports: list[int],
) -> None:
    dispyscheduler()
    dispynode("--cpus", "1", "--join", f"127.0.0.1:{free_base_port}", base_port=free_base_ports[0])
    assert shared(square).submit(5)() == 25


def test_a_scheduler_that_ends_and_comes_back_loses_and_doubles_nothing(
    dispyscheduler: Callable[..., Any],
    shared: Callable[..., Any],
    dispynode: Callable[..., Any],
    wait_until: Callable[..., Any],
    tmp_path: Path,
) -> None:
    node = dispynode("--cpus", "2")
    daemon = dispyscheduler()
    paths = [tmp_path / "first", tmp_path / "second"]
    clusters = [shared(noting) for _ in paths]
    jobs = [
        (number, cluster.submit(str(path), number, 0.05))
        for number in range(30)
        for cluster, path in zip(clusters, paths, strict=True)
    ]
    for how, done in ((signal.SIGKILL, 5), (signal.SIGTERM, 25)):
        wait_until(lambda: sum(job.status == dispy.DispyJob.Finished for _, job in jobs) > done)  # noqa: B023
        os.kill(daemon.pid, how)
        daemon.wait()
        late = clusters[0].submit(str(paths[0]), 100 + done, 0)
        before, daemon = daemon, dispyscheduler()
        daemon.wait_for("going on with 2 clusters")
    assert "for the next start" in before.output
    assert "ended: the scheduler ends, and means to come back" in node.output
    assert [job() for _, job in jobs] == [number * number for number, _ in jobs]
    assert late() == 125 * 125
    assert [sorted(map(int, path.read_text().split())) for path in paths] == [[*range(30), 105, 125], [*range(30)]]


def test_who_waits_for_a_node_that_another_program_holds_is_told(
    dispyscheduler: Callable[..., Any],
    shared: Callable[..., Any],
    dispynode: Callable[..., Any],
    clusters: Callable[..., Any],
    free_base_port: int,
    wait_until: Callable[..., Any],
    tmp_path: Path,
) -> None:
    dispynode("--cpus", "1")
    daemon = dispyscheduler()
    path = tmp_path / "ran"
    alone = clusters(noting, nodes="127.0.0.1", dispy_port=free_base_port)
    first = alone.submit(str(path), 1, 1.0)
    wait_until(path.exists)
    waiting = shared(square)
    second = waiting.submit(2)
    daemon.wait_for("used by")
    wait_until(lambda: "used by" in waiting.explain(second))
    assert first() == 1
    alone.close()
    assert second() == 4


def test_the_same_program_can_have_several_clusters_and_files_go_through(
    dispyscheduler: Callable[..., Any], shared: Callable[..., Any], dispynode: Callable[..., Any], tmp_path: Path
) -> None:
    def read(name: str, more: bytes) -> tuple[str, bytes]:
        with open(name) as file:
            return file.read(), more * 2

    dispynode("--cpus", "2")
    dispyscheduler()
    (tmp_path / "data.txt").write_text("content")
    cluster, other = shared(read, depends=[str(tmp_path / "data.txt")]), shared(square)
    large = os.urandom(200_000)
    job, also = cluster.submit("data.txt", large), other.submit(4)
    assert job() == ("content", large * 2)
    assert also() == 16
    cluster.close()
    left = [*(tmp_path / "scheduler" / "arguments").iterdir(), *(tmp_path / "scheduler" / "results").iterdir()]
    deadline = time.monotonic() + 10
    while left and time.monotonic() < deadline:
        left = [each for each in left if each.exists()]
        time.sleep(0.01)
    assert not left
