"""A shared scheduler that is killed, wherever it writes or sends: nothing is lost, nothing runs twice."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import dispy

KILLED: Final = -signal.SIGKILL
POINTS: Final = (
    "store.written",
    "send.ClusterAccepted",
    "send.JobsStored",
    "send.AskLease",
    "send.RunJobs",
    "send.AckResults",
    "send.JobsOver",
)
PROGRAM: Final = """
import sys, time
import dispy

def note(path, number):
    import os, time
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\\n" % number)
    os.close(fd)
    time.sleep(0.05)
    return number * number

path, port, first, count = sys.argv[1], *map(int, sys.argv[2:])
cluster = dispy.SharedJobCluster(note, dispy_port=port)
jobs = [cluster.submit(path, number) for number in range(first, first + count)]
results = [job() for job in jobs]
assert results == [number * number for number in range(first, first + count)], [job.exception for job in jobs]
cluster.close()
print("all is right", flush=True)
"""


@pytest.fixture
def shared(free_base_port: int) -> Iterator[Callable[..., Any]]:
    """`shared(computation)`: a cluster at the scheduler, which is ended after the test."""
    made: list[Any] = []

    def make(computation: Any) -> Any:
        made.append(dispy.SharedJobCluster(computation, dispy_port=free_base_port, recover_file=False))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close(terminate=True)


def noting(path: str, number: int) -> int:
    import os

    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\n" % number)
    os.close(fd)
    return number * number


def noting_and_lingering(path: str, number: int) -> None:
    import os
    import time

    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\n" % number)
    os.close(fd)
    time.sleep(600)


def numbers_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def kill(daemon: Any) -> None:
    daemon.process.kill()
    daemon.process.wait()


def test_two_programs_share_three_nodes_and_the_scheduler_is_killed_in_the_middle(
    dispyscheduler: Callable[..., Any],
    dispynode: Callable[..., Any],
    start_daemon: Callable[..., Any],
    free_base_port: int,
    free_base_ports: list[int],
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    ran, script = tmp_path / "ran", tmp_path / "program.py"
    script.write_text(PROGRAM)
    dispynode("--cpus", "1", name="one")
    dispynode("--cpus", "1", name="two")
    dispynode("--cpus", "1", "--join", f"127.0.0.1:{free_base_port}", name="three", base_port=free_base_ports[0])
    scheduler = dispyscheduler()
    programs = [
        start_daemon(sys.executable, str(script), str(ran), str(free_base_port), str(first), "60") for first in (0, 100)
    ]
    for count in (10, 50):
        wait_until(lambda count=count: len(numbers_in(ran)) > count, 60)
        kill(scheduler)
        scheduler = dispyscheduler()
    for program in programs:
        program.wait_for("all is right", 90)
        assert program.wait() == 0
    assert sorted(numbers_in(ran)) == [*range(60), *range(100, 160)]


def test_a_scheduler_dies_wherever_it_writes_or_sends(
    dispyscheduler: Callable[..., Any],
    dispynode: Callable[..., Any],
    shared: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """One program, in one process, sees all of it."""
    ran = tmp_path / "ran"
    dispynode("--cpus", "2")
    jobs: list[Any] = []
    scheduler = dispyscheduler(env={"DISPY_FAILPOINT": POINTS[0]}, ready=False)
    cluster = shared(noting)
    for point in [*POINTS[1:], ""]:
        for _ in range(100):
            if scheduler.process.poll() is not None:
                break
            jobs.append(cluster.submit(str(ran), len(jobs)))
            jobs[-1].finish.wait(0.2)
        assert scheduler.wait() == KILLED, scheduler.output
        scheduler = dispyscheduler(env={"DISPY_FAILPOINT": point}, ready=False)
    for job in jobs:
        assert job.finish.wait(60), f"job {job.id} does not end: {cluster.explain(job)}"
    assert [job.result for job in jobs] == [number * number for number in range(len(jobs))]
    assert sorted(numbers_in(ran)) == list(range(len(jobs)))


@pytest.mark.parametrize("back", ["scheduler", "client"])
def test_both_are_killed_and_whoever_recovers_gets_all(
    back: str,
    dispyscheduler: Callable[..., Any],
    dispynode: Callable[..., Any],
    start_daemon: Callable[..., Any],
    free_base_port: int,
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    """The scheduler is killed while a client is away for good, and a client while the scheduler is away."""
    ran, script = tmp_path / "ran", tmp_path / "program.py"
    script.write_text(PROGRAM)
    dispynode("--cpus", "2")
    scheduler = dispyscheduler()
    program = start_daemon(sys.executable, str(script), str(ran), str(free_base_port), "0", "40")
    wait_until(lambda: len(numbers_in(ran)) > 5, 60)
    first, second = (program, scheduler) if back == "scheduler" else (scheduler, program)
    kill(first)
    kill(second)
    dispyscheduler()
    may_be_delivered = set(numbers_in(ran))
    results = {job.result for job in dispy.recover_jobs(timeout=60)}
    assert {number * number for number in range(40) if number not in may_be_delivered} <= results
    assert sorted(numbers_in(ran)) == list(range(40))


def test_a_node_that_comes_back_at_another_place_is_not_waited_for_at_the_old_one(
    dispyscheduler: Callable[..., Any],
    dispynode: Callable[..., Any],
    shared: Callable[..., Any],
    free_base_port: int,
    free_base_ports: list[int],
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    """A scheduler that was killed waits 30 s for its nodes, but not for one whose directory another daemon has."""

    def start(base_port: int) -> Any:
        return dispynode("--cpus", "1", "--join", f"127.0.0.1:{free_base_port}", name="one", base_port=base_port)

    scheduler, node = dispyscheduler(), start(free_base_ports[0])
    cluster = shared(noting_and_lingering)
    job = cluster.submit(str(tmp_path / "ran"), 1)
    wait_until(lambda: numbers_in(tmp_path / "ran"), 30)
    kill(scheduler)
    kill(node)
    scheduler = dispyscheduler()
    start(free_base_ports[1])
    assert job.finish.wait(20), cluster.explain(job)
    assert job.status == dispy.DispyJob.Abandoned
    assert "it was restarted" in job.exception
