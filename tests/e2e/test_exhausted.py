"""A machine that has nothing left: the node says so, keeps what it has, takes nothing new, and recovers by itself."""

from __future__ import annotations

import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import dispy

SOON = 30.0


@pytest.fixture
def here(clusters: Callable[..., dispy.JobCluster], free_base_port: int) -> Callable[..., dispy.JobCluster]:
    """`here(function)`: a cluster on the node of this machine, ended after the test."""
    return functools.partial(clusters, nodes="127.0.0.1", dispy_port=free_base_port)


def hold(folder: str, number: int) -> int:
    import pathlib
    import time

    pathlib.Path(folder, f"started-{number}").touch()
    while not pathlib.Path(folder, "gate").exists():
        time.sleep(0.02)
    return number


def descriptors(pid: int) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}


def allow_no_more(pid: int) -> tuple[int, int]:
    """Let a process open nothing further; returns the limits that it had."""
    used = descriptors(pid)
    for _ in range(10):  # without those that are open for a moment only
        time.sleep(0.01)
        used &= descriptors(pid)
    first_free = next(number for number in range(100_000) if number not in used)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, before[1]))
    return before


def test_a_node_without_descriptors(
    dispynode: Callable[..., Any],
    here: Callable[..., dispy.JobCluster],
    wait_until: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dispy.scheduler.shares.RETRY_INTERVAL", 0.5)
    node = dispynode("--cpus", "2")
    first = here(hold)
    running = first.submit(str(tmp_path), 1)
    wait_until((tmp_path / "started-1").exists)
    limits = allow_no_more(node.pid)
    behind = first.submit(str(tmp_path), 2)
    node.wait_for("hold: no worker could be started: no file descriptors are left", timeout=SOON)
    second = here(abs)
    waiting = second.submit(-7)
    wait_until(lambda: "refused for now" in second.explain(waiting), timeout=SOON)
    (tmp_path / "gate").touch()
    for job in (running, behind):  # what is there goes on, and takes the work of what is not
        assert job.finish.wait(SOON), first.explain(job)
        assert job.result in (1, 2), job.exception
    assert not waiting.finish.is_set()
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, limits)
    assert waiting.finish.wait(SOON), second.explain(waiting)
    assert waiting.result == 7
    assert node.output.count("no worker could be started") == 1
    assert "abs is refused for now" in node.output
    assert "Traceback" not in node.output


def test_results_of_a_node_without_descriptors_end_their_jobs(
    dispynode: Callable[..., Any],
    here: Callable[..., dispy.JobCluster],
    wait_until: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """A large result comes as a descriptor, which the node cannot take then; the job says so, and the next one runs."""
    node = dispynode("--cpus", "1")
    cluster = here(large)
    job = cluster.submit(str(tmp_path))
    wait_until((tmp_path / "started").exists)
    limits = allow_no_more(node.pid)
    (tmp_path / "gate").touch()
    assert job.finish.wait(SOON), cluster.explain(job)
    assert job.status == dispy.DispyJob.Terminated
    assert "its result cannot be taken over by the node: no file descriptors are left" in str(job.exception)
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, limits)
    again = cluster.submit(str(tmp_path))
    assert again.finish.wait(SOON), cluster.explain(again)
    assert len(again.result) == 1 << 20
    assert "Traceback" not in node.output


def large(folder: str) -> bytes:
    import pathlib
    import time

    pathlib.Path(folder, "started").touch()
    while not pathlib.Path(folder, "gate").exists():
        time.sleep(0.02)
    return bytes(1 << 20)


def weight(process: psutil.Process) -> tuple[int, int, int]:
    """Threads, descriptors, and MiB of memory."""
    return process.num_threads(), process.num_fds(), process.memory_info().rss >> 20


def listens(port: int) -> bool:
    """Whether nodes can join this program."""
    listening = [each for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return any(each.laddr.port == port for each in listening)


LISTENER = 2
"""Sockets for nodes that join, which a program has when it has run for a second."""


def test_clusters_that_come_and_go_leave_nothing(
    dispynode: Callable[..., Any], free_base_port: int, wait_until: Callable[..., Any]
) -> None:
    node = dispynode("--cpus", "1")
    processes = [psutil.Process(), psutil.Process(node.pid)]
    before: list[tuple[int, int, int]] = []
    with dispy.JobCluster(abs, nodes="127.0.0.1", dispy_port=free_base_port):
        wait_until(
            lambda: listens(free_base_port)
        )  # the certificate for that is made, and what makes it imported, once
    for number in range(100):
        cluster = dispy.JobCluster(abs, nodes="127.0.0.1", dispy_port=free_base_port)
        if number % 10 == 0:
            assert cluster.submit(-number)() == number
        cluster.close()
        if number == 20:  # the second scheduler has come and gone: all that stays is there
            before = [weight(process) for process in processes]
    for process, (threads, open_before, memory) in zip(processes, before, strict=True):
        wait_until(lambda process=process, most=open_before + LISTENER: process.num_fds() <= most)
        assert process.num_threads() <= threads
        assert weight(process)[2] <= memory + 8
    cluster.shutdown()


STOPPED = """
import sys
import dispy
def job(folder, number):
    import pathlib, time
    pathlib.Path(folder, f"started-{number}").touch()
    while not pathlib.Path(folder, "gate").exists():
        time.sleep(0.02)
    return number
cluster = dispy.JobCluster(job, nodes="127.0.0.1", pulse_interval=0.4)
jobs = [cluster.submit(sys.argv[1], number) for number in range(6)]
print("results", [job() for job in jobs], [job.status.name for job in jobs], flush=True)
cluster.shutdown()
"""


def test_a_program_that_was_stopped_for_longer_than_grace_goes_on(
    dispynode: Callable[..., Any],
    start_daemon: Callable[..., Any],
    wait_until: Callable[..., Any],
    free_base_port: int,
    tmp_path: Path,
) -> None:
    """Ctrl-Z, or a laptop that sleeps: the node finishes what runs and keeps the results; nothing runs twice."""
    node = dispynode("--cpus", "1", "--msg_timeout", "2")
    env = {"DISPY_PORT": str(free_base_port), "DISPY_LOCAL": "never"}
    client = start_daemon(sys.executable, "-c", STOPPED, str(tmp_path), env=env)
    wait_until((tmp_path / "started-0").exists, timeout=SOON)
    client.process.send_signal(signal.SIGSTOP)
    node.wait_for("ended: ", timeout=SOON)
    time.sleep(2.5)  # until the node has given up what had not started
    (tmp_path / "gate").touch()
    client.process.send_signal(signal.SIGCONT)
    line = client.wait_for("results", timeout=SOON)
    assert line.endswith(
        "results [0, 1, 2, 3, 4, 5] ['Finished', 'Finished', 'Finished', 'Finished', 'Finished', 'Finished']"
    )
    assert client.wait() == 0, client.output
