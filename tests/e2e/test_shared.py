"""Programs that share nodes through dispyscheduler, as their users see it: the same as with clusters of their own."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dispy
from dispy.errors import SettingsError


@pytest.fixture
def pool(
    dispyscheduler: Callable[..., Any], dispynode: Callable[..., Any], free_base_port: int
) -> Iterator[Callable[..., dispy.SharedJobCluster]]:
    """`pool(computation, …)`: a shared cluster; the scheduler has a node with two CPUs."""
    made: list[dispy.SharedJobCluster] = []
    dispynode("--cpus", "2", name="one")
    dispyscheduler()

    def make(computation: Any, **settings: Any) -> dispy.SharedJobCluster:
        made.append(dispy.SharedJobCluster(computation, dispy_port=free_base_port, **settings))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close(terminate=True)
    for cluster in made:
        cluster.shutdown()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What dispy logs in this process."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda entry: said.append(entry.getMessage())  # type: ignore[method-assign]
    dispy.logger.addHandler(handler)
    yield said
    dispy.logger.removeHandler(handler)


def square(number: int) -> int:
    return number * number


def wait_for_file(path: str) -> str:
    import pathlib

    while not pathlib.Path(path).exists():
        time.sleep(0.01)
    return pathlib.Path(path).name


def test_two_clusters_and_large_things_and_callbacks(
    pool: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    events: list[tuple[int, str]] = []
    told: list[int] = []
    (tmp_path / "words.txt").write_text("common words")

    def digest(data: bytes, times: int, array: Any) -> tuple[str, bytes, str, Any]:
        print("here is", len(data))
        array[:] += 1
        with open("words.txt") as words:
            return hashlib.sha256(data).hexdigest(), data * times, words.read(), array

    def event(status: int, node: Any, job: Any) -> None:
        events.append((status, node.name if node is not None else ""))

    first = pool(digest, depends=[hashlib, str(tmp_path / "words.txt")], cluster_status=event)
    second = pool(square, job_status=lambda job: told.append(job.result))
    data = [os.urandom(300_000 * number) for number in range(4)]
    large = [first.submit(each, 3, np.zeros(len(each))) for each in data]
    small = [second.submit(number) for number in range(500)]
    for job, each in zip(large, data, strict=True):
        *rest, array = job()
        assert rest == [hashlib.sha256(each).hexdigest(), each * 3, "common words"]
        array[:] += 1
        assert array.sum() == 2 * len(each)
    assert large[1].stdout == "here is 300000\n"
    assert [job() for job in small] == [number * number for number in range(500)]
    assert {job.ip_addr for job in large + small} == {"127.0.0.1"}
    wait_until(lambda: len(told) == 500)
    assert sorted(told) == [number * number for number in range(500)]
    assert (dispy.DispyNode.Initialized, "one") in events
    assert first.close()
    assert second.close()
    assert [node.jobs_done for node in first._ledger.gone.values()] == [4]
    assert (dispy.DispyNode.Closed, "one") in events


def test_what_a_program_says_of_jobs_and_nodes(
    pool: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Explain, status, tail, node_jobs, cancel, send_file, files of jobs, interim results, failures, steering."""

    def work(gate: str, size: int) -> str:
        import pathlib

        print("begun", flush=True)
        pathlib.Path("made.txt").write_text("made on the node")
        dispy_send_file("made.txt")  # type: ignore[name-defined]  # noqa: F821
        dispy_provisional_result(bytes(size))  # type: ignore[name-defined]  # noqa: F821
        while not pathlib.Path(gate).exists():
            time.sleep(0.01)
        if gate.endswith("raise"):
            raise ValueError("as it should")
        return pathlib.Path("sent.txt").read_text()

    said: list[tuple[int, int]] = []

    def status(job: Any) -> None:
        said.append((job.id, len(job.result) if job.status == job.ProvisionalResult else -1))

    cluster = pool(work, job_status=status)
    gate = tmp_path / "gate"
    first, second = cluster.submit(str(gate), 200_000), cluster.submit(str(tmp_path / "raise"), 5)
    third, fourth = cluster.submit("never", 0), cluster.submit("never", 0)
    wait_until(lambda: (first.id, 200_000) in said and (second.id, 5) in said)
    assert first._args == (str(gate), 200_000)
    assert first.tail() == ("begun\n", "")
    wait_until(lambda: (tmp_path / "made.txt").exists() or Path("made.txt").exists())
    [node] = cluster.status().nodes
    assert (node.name, node.cpus, node.busy) == ("one", 2, 2)
    assert {job.id for job in cluster.node_jobs(node)} >= {first.id, second.id}
    assert [job.id for job in cluster.node_jobs("one", from_node=True)] == [first.id, second.id]
    assert re.match(f"Job {first.id} .*node one", cluster.explain(first))
    assert re.match(f"Job {third.id} ", cluster.explain(third))
    (tmp_path / "sent.txt").write_text("sent from the program")
    assert cluster.send_file(str(tmp_path / "sent.txt"), node) == 0
    assert cluster.cancel(third) == 0
    assert third() is None
    assert third.status == third.Cancelled
    assert cluster.deallocate_node(node) == 0
    (tmp_path / "raise").touch()
    assert second() is None
    assert (second.status, "as it should" in second.exception) == (second.Terminated, True)
    assert "deallocated" in cluster.explain(fourth)
    assert cluster.cancel(fourth) == 0
    assert cluster.allocate_node("one") == 0
    gate.touch()
    assert first() == "sent from the program"
    assert cluster.submit_node("nobody", 1) is None
    cluster.print_status()
    assert "127.0.0.1 (one)" in capsys.readouterr().out
    Path("made.txt").unlink(missing_ok=True)


class OnlyOne(dispy.NodeAllocate):
    """Runs in the program, and remembers what it was asked."""

    asked: list[str]

    def allocate(
        self, cluster: Any, ip_addr: str, name: str, cpus: int, avail_info: Any = None, platform: str = ""
    ) -> int:
        self.asked.append(f"{name} {cpus} {threading.current_thread().name}")
        self.setup_args = (name,)
        return 1


def test_allocate_of_the_program_decides_and_an_exclusive_cluster_waits_for_its_turn(
    pool: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    def load(name: str) -> int:
        global where
        where = name  # type: ignore[name-defined]
        return 0

    def tell(gate: str) -> str:
        import pathlib

        while gate and not pathlib.Path(gate).exists():
            time.sleep(0.01)
        return str(where)  # type: ignore[name-defined]

    items = OnlyOne("*")
    items.asked = []
    cluster = pool(tell, nodes=[items], setup=load)
    gate = tmp_path / "gate"
    held = cluster.submit(str(gate))
    wait_until(lambda: held.status == held.Running)
    assert items.asked[0].startswith("one 2 dispy-files")
    assert [node.cpus for node in cluster.status().nodes] == [1]
    alone = pool(square, exclusive=True)
    job = alone.submit(7)
    wait_until(lambda: "exclusive" in alone.explain(job))
    gate.touch()
    assert held() == "one"
    assert cluster.close()
    assert job() == 49


def test_a_link_that_breaks_loses_nothing_and_repeats_nothing(pool: Callable[..., Any], tmp_path: Path) -> None:
    def append(path: str, number: int) -> int:
        with open(path, "a") as ran:
            ran.write(f"{number}\n")
        return number

    cluster = pool(append)
    ran = tmp_path / "ran"
    jobs = []
    for number in range(300):
        jobs.append(cluster.submit(str(ran), number))
        if number % 100 == 50:
            jobs[-1]()
            link = cluster.service._uplink.link
            cluster._portal.post(link.abort, "for this test")
    assert [job() for job in jobs] == list(range(300))
    assert sorted(int(line) for line in ran.read_text().split()) == list(range(300))


def test_who_is_refused_is_told_so(dispyscheduler: Callable[..., Any], free_base_port: int) -> None:
    dispyscheduler("--cluster_secret", "for the programs", "--node_secret", "for the nodes")
    for secret in ("something else", "for the nodes"):
        with pytest.raises(
            SettingsError, match=r"the scheduler at .* refuses this program: .*that of nodes does not do"
        ):
            dispy.SharedJobCluster(square, dispy_port=free_base_port, secret=secret)


def test_a_scheduler_that_comes_late_and_one_that_is_restarted(
    dispyscheduler: Callable[..., Any],
    dispynode: Callable[..., Any],
    free_base_port: int,
    wait_until: Callable[..., Any],
    tmp_path: Path,
    log: list[str],
) -> None:
    dispynode("--cpus", "2", name="one")
    cluster = dispy.SharedJobCluster(wait_for_file, dispy_port=free_base_port, reentrant=False)
    jobs = [cluster.submit(str(tmp_path / f"gate{number}")) for number in range(4)]
    assert "there is no link to the scheduler" in cluster.explain(jobs[0])
    wait_until(lambda: f"there is no link to the scheduler at 127.0.0.1:{free_base_port + 2}" in "".join(log))
    first = dispyscheduler()
    wait_until(lambda: jobs[0].status == jobs[0].Running and jobs[1].status == jobs[1].Running)
    first.process.kill()
    first.wait()
    (tmp_path / "gate0").touch()
    jobs += [cluster.submit(str(tmp_path / "gate4"))]
    assert cluster.cancel(jobs[3]) == 0
    dispyscheduler()
    for number in (1, 2, 4):
        (tmp_path / f"gate{number}").touch()
    assert [jobs[number]() for number in (0, 1, 2, 4)] == ["gate0", "gate1", "gate2", "gate4"]
    assert jobs[3]() is None
    assert jobs[3].status in (jobs[3].Cancelled, jobs[3].Terminated), "it may have started before it was known"
    assert cluster.close()
    cluster.shutdown()


def test_a_cluster_whose_scheduler_is_not_there_is_closed_when_all_its_jobs_have_ended(
    dispyscheduler: Callable[..., Any],
    dispynode: Callable[..., Any],
    free_base_port: int,
    tmp_path: Path,
    log: list[str],
) -> None:
    file = tmp_path / "recover"
    never = dispy.SharedJobCluster(square, dispy_port=free_base_port, recover_file=file)
    assert never.cancel(never.submit(1)) == 0
    assert never.close(), "nobody has heard of it: at once"
    dispynode("--cpus", "1", name="one")
    scheduler = dispyscheduler()
    cluster = dispy.SharedJobCluster(square, dispy_port=free_base_port, recover_file=file)
    assert [cluster.submit(number)() for number in range(3)] == [0, 1, 4]
    scheduler.process.kill()
    scheduler.wait()
    assert cluster.close(timeout=60)
    cluster.shutdown()
    place = f"the scheduler at 127.0.0.1:{free_base_port + 2} does not answer"
    assert any(place in line and "it could not be told that square is closed" in line for line in log)
    assert not any("nodes are being told" in line for line in log)
    assert not file.exists(), "all of it is in the hands of its program"


def test_what_is_more_than_a_user_may_have_waits_and_is_lost_only_with_its_cluster(
    dispyscheduler: Callable[..., Any],
    dispynode: Callable[..., Any],
    free_base_port: int,
    wait_until: Callable[..., Any],
    tmp_path: Path,
    log: list[str],
) -> None:
    dispynode("--cpus", "2", name="one")
    dispyscheduler("--max_jobs_per_user", "3")
    cluster = dispy.SharedJobCluster(square, dispy_port=free_base_port)
    jobs = [cluster.submit(number) for number in range(60)]
    assert [job() for job in jobs] == [number * number for number in range(60)]
    cluster.close()
    waiting = dispy.SharedJobCluster(wait_for_file, dispy_port=free_base_port)
    jobs = []
    for _ in range(8):
        jobs.append(waiting.submit(str(tmp_path / "gate")))
        wait_until(lambda: "waits here" not in waiting.explain(jobs[-1]))
    wait_until(lambda: any("--max_jobs_per_user" in sentence for sentence in log))
    assert "--max_jobs_per_user" in waiting.explain(jobs[-1])
    waiting.close(terminate=True)
    assert jobs[-1]() is None
    assert jobs[-1].status == jobs[-1].Cancelled
    waiting.shutdown()
    cluster.shutdown()


KILLED = """
import pathlib, sys, time
import dispy

def work(gate, number):
    import pathlib, time
    while number and not pathlib.Path(gate).exists():
        time.sleep(0.01)
    with open(gate + f"-{number}", "a") as ran:
        ran.write("x")
    return number * number

cluster = dispy.SharedJobCluster(work, recover_file=sys.argv[2])
jobs = [cluster.submit(sys.argv[1], number) for number in range(6)]
assert jobs[0]() == 0
print("in the midst of it", flush=True)
time.sleep(600)
"""


def test_jobs_of_a_program_that_is_killed_go_on_and_are_recovered(
    dispyscheduler: Callable[..., Any],
    dispynode: Callable[..., Any],
    start_daemon: Callable[..., Any],
    free_base_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DISPY_PORT", str(free_base_port))
    dispynode("--cpus", "2", name="one")
    dispyscheduler()
    (tmp_path / "program.py").write_text(KILLED)
    gate, file = tmp_path / "gate", tmp_path / "recover"
    program = start_daemon(sys.executable, str(tmp_path / "program.py"), str(gate), str(file))
    program.wait_for("in the midst of it")
    program.process.send_signal(signal.SIGKILL)
    program.wait()
    assert [job.result for job in dispy.recover_jobs(file, timeout=1.0) if job.result] == []
    gate.touch()
    jobs = dispy.recover_jobs(file)
    assert [(job.id, job.result) for job in jobs if job.id > 1] == [
        (number + 1, number * number) for number in range(1, 6)
    ]
    assert {path.read_text() for path in tmp_path.glob("gate-*")} == {"x"}
    assert dispy.recover_jobs(file) == []


PROGRAMS = Path(__file__).resolve().parent / "programs"


@pytest.mark.parametrize("name", ["classic", "memory", "steering"])
def test_an_old_program_runs_with_shared_in_place_of_its_own(
    name: str, dispyscheduler: Callable[..., Any], dispynode: Callable[..., Any], free_base_port: int, tmp_path: Path
) -> None:
    from test_old_programs import EXPECTED

    dispynode("--cpus", "2", name="one")
    dispyscheduler()
    program = tmp_path / f"{name}.py"
    program.write_text((PROGRAMS / f"{name}.py").read_text().replace("JobCluster", "SharedJobCluster"))
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "DISPY_PORT": str(free_base_port)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    for text in EXPECTED[name]:
        assert text in done.stdout, done.stdout + done.stderr
