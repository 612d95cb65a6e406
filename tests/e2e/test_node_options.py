"""Options of dispynode as its owner uses them, with real daemons and programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

import dispy
from dispy import DispyJob

SOON = 20.0


@pytest.fixture
def cluster(free_base_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dispy.JobCluster]]:
    """`cluster(computation, …)`: on the nodes of this test only."""
    monkeypatch.setenv("DISPY_PORT", str(free_base_port))
    monkeypatch.setenv("DISPY_LOCAL", "never")
    clusters: list[dispy.JobCluster] = []

    def make(computation: Any, **settings: Any) -> dispy.JobCluster:
        clusters.append(dispy.JobCluster(computation, **settings))
        return clusters[-1]

    yield make
    for each in clusters:
        each.close(terminate=True)
        each.shutdown()


def ended(job: DispyJob) -> DispyJob:
    assert job.finish.wait(SOON), f"the job is still {job.status!r}"
    return job


def of_node(_: int) -> tuple[str, int]:
    return dispy_node_name, os.getpriority(os.PRIO_PROCESS, 0)  # type: ignore[name-defined]  # noqa: F821


def test_jobs_are_nice(dispynode: Callable[..., Any], cluster: Callable[..., dispy.JobCluster]) -> None:
    dispynode("--nice", "7", name="kind")
    job = ended(cluster(of_node).submit(1))
    assert job.result == ("kind", 7), job.exception


def test_larger_files_are_refused(
    dispynode: Callable[..., Any],
    cluster: Callable[..., dispy.JobCluster],
    wait_until: Callable[..., Any],
    tmp_path: Path,
) -> None:
    dispynode("--max_file_size", "1k")
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(2000))
    used = cluster(of_node, depends=[str(large)])
    job = used.submit(1)
    words = "large.bin has 2,000 bytes, and this node takes at most 1,024 (--max_file_size)"
    wait_until(lambda: words in used.explain(job))


def test_a_node_ends_after_so_many_programs(
    dispynode: Callable[..., Any], cluster: Callable[..., dispy.JobCluster]
) -> None:
    node = dispynode("--serve", "1")
    used = cluster(of_node)
    assert ended(used.submit(1)).status == DispyJob.Finished
    used.close()
    used.shutdown()
    assert node.wait() == 0
    assert "it has served 1 program" in node.output


def shut_down() -> None:
    dispynode_shutdown()  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("setup_in", ["node", "worker"])
def test_cleanup_may_end_the_node(
    dispynode: Callable[..., Any], cluster: Callable[..., dispy.JobCluster], setup_in: str
) -> None:
    node = dispynode("--client_shutdown", "--unsafe_setup")
    assert "--unsafe_setup has no effect: the setup function of a program runs in a process" in node.output
    used = cluster(of_node, cleanup=shut_down, setup_in=setup_in)
    assert ended(used.submit(1)).status == DispyJob.Finished
    used.close()
    assert node.wait() == 0


def test_cleanup_may_not_end_a_node_that_does_not_allow_it(
    dispynode: Callable[..., Any], cluster: Callable[..., dispy.JobCluster]
) -> None:
    node = dispynode()
    used = cluster(of_node, cleanup=shut_down)
    assert ended(used.submit(1)).status == DispyJob.Finished
    used.close()
    used.shutdown()
    assert node.process.poll() is None


def keep(name: str) -> str:
    with open(name, "w") as file:
        file.write("x")
    return os.getcwd()  # type: ignore[name-defined, no-any-return]  # noqa: F821


def test_files_that_a_program_wants_to_keep(
    dispynode: Callable[..., Any], cluster: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any]
) -> None:
    dispynode("--force_cleanup")
    used = cluster(keep, cleanup=False)
    job = ended(used.submit("kept"))
    used.close()
    used.shutdown()
    wait_until(lambda: not Path(job.result).exists())


def test_outside_of_its_hours_a_node_takes_nothing(
    dispynode: Callable[..., Any], cluster: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any]
) -> None:
    soon = datetime.now() + timedelta(hours=2)
    end = soon + timedelta(hours=1)
    dispynode("--service_start", f"{soon:%H:%M}", "--service_end", f"{end:%H:%M}")
    used = cluster(of_node)
    job = used.submit(1)
    wait_until(lambda: f"its service window begins at {soon:%H:%M}" in used.explain(job))
    assert job.status == DispyJob.Created


def test_a_node_waits_until_its_machine_is_idle(
    dispynode: Callable[..., Any], cluster: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any]
) -> None:
    dispynode("--idle-only", "0.0001")
    used = cluster(of_node)
    job = used.submit(1)
    wait_until(lambda: "its machine is in use" in used.explain(job))
    assert job.status == DispyJob.Created


def leave(_: int) -> int:
    """Start a process that nothing on the way down can find by its parents."""
    import subprocess

    child = subprocess.Popen(["setsid", "sleep", "300"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with open("child.pid", "w") as file:
        file.write(str(child.pid))
    time.sleep(100)  # type: ignore[name-defined]  # noqa: F821
    return 0


@pytest.mark.timeout(60)
def test_what_a_killed_daemon_and_guard_left_is_ended_at_the_next_start(
    dispynode: Callable[..., Any],
    cluster: Callable[..., dispy.JobCluster],
    wait_until: Callable[..., Any],
    tmp_path: Path,
) -> None:
    node = dispynode("--cpus", "1", name="victim")
    used = cluster(leave)
    used.submit(1)
    wait_until(lambda: [path for path in tmp_path.glob("prefix-victim/jobs/*/child.pid") if path.read_text()])
    daemon = psutil.Process(node.pid)
    # `setsid` becomes it
    wait_until(lambda: any(each.name() == "sleep" for each in daemon.children(recursive=True)))
    below = daemon.children(recursive=True)
    sleeping = next(each for each in below if each.name() == "sleep")
    # The fork server must not see that the guard is gone, and the guard not that the daemon is.
    for each in below:
        each.suspend()
    daemon.kill()
    for each in below:
        if each != sleeping:
            each.kill()
    psutil.wait_procs([daemon, *(each for each in below if each != sleeping)], 5)
    node.wait()
    sleeping.resume()
    assert sleeping.is_running()
    dispynode("--cpus", "1", name="victim")
    wait_until(lambda: not sleeping.is_running() or sleeping.status() == psutil.STATUS_ZOMBIE)
    assert not list(tmp_path.glob("prefix-victim/jobs/*"))
    used.close(terminate=True)
