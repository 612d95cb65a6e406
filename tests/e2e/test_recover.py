"""A program is killed; another one gets its results, each once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy.errors import RecoveryError
from dispy.recovery.book import Book
from dispy.recovery.file import RecoveryFile

PROGRAM = """
import json, os, sys, time
import dispy

def work(marks, number, data):
    import pathlib, time
    assert open("common.txt").read() == "common"
    here = pathlib.Path(marks)
    with open(here / f"ran-{number}", "a") as ran:
        ran.write("x")
    while number and not (here / "gate").exists() and not (here / f"gate-{number}").exists():
        time.sleep(0.01)
    print("this is", number)
    (here / f"done-{number}").touch()
    return number * number + len(data)

marks, options = sys.argv[1], json.loads(sys.argv[2])
cluster = dispy.JobCluster(work, depends=[marks + "/common.txt"], **options)
jobs = [cluster.submit_job_id(f"id{n}", marks, n, bytes(n // 3 * 100_000)) for n in range(5)]
assert jobs[0]() == 0
print("in the midst of it", flush=True)
time.sleep(600)
"""
SECOND = """
import dispy

cluster = dispy.JobCluster(len, nodes=["127.0.0.1"])
[own] = cluster.service.recorder.paths
print("two files:", len(list(own.parent.iterdir())), flush=True)
cluster.shutdown()
"""

PINNED = """
import pathlib, sys, time
import dispy

def work(marks, number):
    import pathlib, time
    here = pathlib.Path(marks)
    (here / f"ran-{number}").touch()
    while number == 1 and not (here / "gate").exists():
        time.sleep(0.01)
    return dispy_node_name, number

marks = sys.argv[1]
cluster = dispy.JobCluster(work, nodes=["127.0.0.1"], durable=True)
assert cluster.submit(marks, 0)() == ("here", 0)
# with memory of its own no job is sent ahead of its turn
jobs = [cluster.submit_node("here", marks, n, dispy_memory="500MB") for n in (1, 2, 3)]
time.sleep(600)
"""


@pytest.fixture
def program(start_daemon: Callable[..., Any], tmp_path: Path, free_base_port: int) -> Callable[..., Any]:
    """`program(running, nodes=…)`: one that has a result, so many jobs running and the rest in its queue."""

    def start(wait_until: Callable[..., Any], running: int, **options: Any) -> Any:
        script = tmp_path / "program.py"
        script.write_text(PROGRAM)
        (tmp_path / "common.txt").write_text("common")
        options = {"nodes": ["127.0.0.1"], **options}
        process = start_daemon(
            sys.executable, str(script), str(tmp_path), json.dumps(options), env={"DISPY_PORT": str(free_base_port)}
        )
        process.wait_for("in the midst of it", timeout=60)
        wait_until(lambda: len(list(tmp_path.glob("ran-*"))) == running + 1, timeout=60)
        return process

    return start


def recover(**arguments: Any) -> list[Any]:
    """What `recover_jobs` with these arguments returns."""
    jobs = dispy.recover_jobs(**arguments)
    return [[job.id, job.status.name, job.result, job.stdout, job.exception] for job in jobs]


def without_first(jobs: list[Any]) -> list[Any]:
    """The program had the first result, but may have been killed before it had written or told that."""
    return [job for job in jobs if job[0] not in (1, "id0")]


def book_of(path: Path) -> Book:
    file, book = RecoveryFile.open(path)
    file.close()
    return book


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def files(environment: Path) -> list[Path]:
    return sorted((environment / ".local/state/dispy/recover").glob("*.recover"))


def finished(*numbers: int, ids: bool = False) -> list[Any]:
    return [[f"id{n}" if ids else n + 1, "Finished", n * n + n // 3 * 100_000, f"this is {n}\n", None] for n in numbers]


def test_results_come_once_and_wait_for_those_who_are_late(
    dispynode: Callable[..., Any],
    program: Callable[..., Any],
    tmp_path: Path,
    environment: Path,
    wait_until: Callable[..., Any],
) -> None:
    dispynode("--cpus", "2")
    kill(program(wait_until, 2))
    (tmp_path / "gate-1").touch()
    wait_until((tmp_path / "done-1").exists)
    first = without_first(recover(timeout=2))
    assert first in ([], finished(1)), "the other job still runs"
    (tmp_path / "gate").touch()
    found = [*first, *without_first(recover())]
    # The third was still with the program, or was at the node already and could start when the first had ended.
    assert found == (finished(1, 2, 3) if (tmp_path / "ran-3").exists() else finished(1, 2))
    assert recover() == []
    [path] = files(environment)
    assert recover(recover_file=str(path)) == []


def test_jobs_that_died_with_their_node_are_not_forgotten(
    dispynode: Callable[..., Any],
    program: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wait_until: Callable[..., Any],
) -> None:
    """Neither those of which the node had told, nor that there may have been others."""
    node = dispynode("--cpus", "2")
    path = tmp_path / "here.recover"
    kill(program(wait_until, 2, recover_file=str(path)))
    shutil.copy2(path, tmp_path / "unasked")
    wait_until(lambda: without_first(recover(recover_file=str(path), timeout=1)) or len(book_of(path).handed) == 2)
    kill(node)
    damaged = tmp_path / "prefix-node1" / "spool" / hashlib.sha256(book_of(path).program.token).hexdigest()
    damaged.mkdir(parents=True, exist_ok=True)
    (damaged / f"{1:020d}.batch").write_text("torn")
    dispynode("--cpus", "2", name="node1")
    ended = without_first(recover(recover_file=str(path)))
    assert [job[:2] for job in ended] == [[2, "Abandoned"], [3, "Abandoned"]]
    assert all("that node ended, or was started again, before" in job[-1] for job in ended)
    told = capsys.readouterr().err
    assert "lost without a trace" not in told
    assert "node node1 has 1 file with results of this program that cannot be read" in told
    assert without_first(recover(recover_file=str(tmp_path / "unasked"))) == []
    assert "was started again since: jobs that ran there when it ended are lost" in capsys.readouterr().err


def test_another_machine_that_has_the_file_and_the_secret(
    dispynode: Callable[..., Any],
    program: Callable[..., Any],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[..., Any],
) -> None:
    """Where pending jobs are ended, too."""
    dispynode("--cpus", "2")
    kill(program(wait_until, 2, recover_file=str(tmp_path / "here.recover")))
    assert files(environment) == []
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy2(tmp_path / "here.recover", elsewhere / "there")
    monkeypatch.setenv("DISPY_SECRET", (environment / ".config/dispy/secret").read_text().strip())
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(elsewhere))
    ended = without_first(recover(recover_file=str(elsewhere / "there"), terminate_pending=True))
    assert [job[:2] for job in ended] == [[2, "Terminated"], [3, "Terminated"]]
    assert all("KeyboardInterrupt" in job[-1] for job in ended)
    assert recover(recover_file=str(elsewhere / "there")) == []


def test_durable_jobs_go_on(
    dispynode: Callable[..., Any],
    program: Callable[..., Any],
    tmp_path: Path,
    environment: Path,
    wait_until: Callable[..., Any],
) -> None:
    dispynode("--cpus", "1")
    kill(program(wait_until, 1, durable=True))
    for name in ("program.py", "common.txt"):
        (tmp_path / name).unlink()
    [path] = files(environment)
    assert without_first(recover(timeout=0.5)) == []
    (tmp_path / "gate").touch()
    assert without_first(recover()) == finished(1, 2, 3, 4, ids=True)
    assert recover() == []
    assert {mark.name: mark.read_text() for mark in tmp_path.glob("ran-*")} == {f"ran-{n}": "x" for n in range(5)}
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("restarted", [False, True], ids=["the node lives", "the node is started again"])
def test_durable_jobs_for_one_node_run_there(
    dispynode: Callable[..., Any],
    start_daemon: Callable[..., Any],
    tmp_path: Path,
    free_base_port: int,
    wait_until: Callable[..., Any],
    restarted: bool,
) -> None:
    node = dispynode("--cpus", "1", name="here")
    script = tmp_path / "program.py"
    script.write_text(PINNED)
    process = start_daemon(sys.executable, str(script), str(tmp_path), env={"DISPY_PORT": str(free_base_port)})
    wait_until((tmp_path / "ran-1").exists, timeout=60)
    kill(process)
    if restarted:
        kill(node)
        dispynode("--cpus", "1", name="here")
    (tmp_path / "gate").touch()
    *_, first, second, third = dispy.recover_jobs()
    assert first.status is (dispy.DispyJob.Abandoned if restarted else dispy.DispyJob.Finished), first.exception
    assert [second.result, third.result] == [("here", 2), ("here", 3)], (second.exception, third.exception)


def test_two_programs_have_two_files_while_they_run(
    dispynode: Callable[..., Any],
    program: Callable[..., Any],
    start_daemon: Callable[..., Any],
    tmp_path: Path,
    environment: Path,
    free_base_port: int,
    wait_until: Callable[..., Any],
) -> None:
    dispynode("--cpus", "1")
    program(wait_until, 1)
    [path] = files(environment)
    second = start_daemon(sys.executable, "-c", SECOND, env={"DISPY_PORT": str(free_base_port)})
    second.wait_for("two files: 2")
    assert second.wait() == 0, second.output
    assert files(environment) == [path]
    with pytest.raises(RecoveryError, match=r"in use: the program that writes it still runs \(program\.py"):
        dispy.recover_jobs(path)
