"""How a program ends: with jobs pending, by Ctrl-C, in a with block. On every Python that is here."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = str(ROOT / "src")
PYTHONS = [sys.executable, *(str(path) for path in sorted(ROOT.glob(".venv-3*/bin/python")))]

START = """
import os, sys, time
import dispy

def nap(seconds, mark):
    import pathlib, time
    pathlib.Path(mark + ".started").touch()
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        pathlib.Path(mark + ".interrupted").touch()
        raise
    pathlib.Path(mark + ".done").touch()

def heard(job):
    print("ended", job.status.name, flush=True)

cluster = dispy.JobCluster(nap, nodes="local", job_status=heard)
"""


@pytest.fixture(params=PYTHONS, ids=lambda path: Path(path).parents[1].name)
def program(request: pytest.FixtureRequest, start_daemon: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`program(text, before="")`: a process that runs START between both; `MARK` in the text is a path for marks."""

    def start(text: str, before: str = "") -> Any:
        script = tmp_path / "program.py"
        script.write_text(before + START + text.replace("MARK", repr(str(tmp_path / "mark"))))
        return start_daemon(request.param, str(script), env={"PYTHONPATH": SRC})

    return start


def marks(tmp_path: Path) -> set[str]:
    return {path.suffix for path in tmp_path.glob("mark.*")}


def interrupt(process: Any) -> None:
    """As Ctrl-C at a terminal does to the program, whose node has a session of its own."""
    os.kill(process.pid, signal.SIGINT)


def test_a_program_that_ends_waits_for_its_jobs_and_says_so(program: Callable[..., Any], tmp_path: Path) -> None:
    process = program("cluster.submit(3, MARK)\nprint('over', flush=True)\n")
    process.wait_for("1 of nap")
    assert process.wait() == 0, process.output
    assert "ended Finished" in process.output
    assert marks(tmp_path) == {".started", ".done"}


def test_a_short_wait_at_the_end_is_silent(program: Callable[..., Any], tmp_path: Path) -> None:
    process = program("cluster.submit(0, MARK)()\ncluster.submit(0.2, MARK)\n")
    assert process.wait() == 0, process.output
    assert "ended Finished" in process.output
    assert "waiting for them" not in process.output


def test_interrupt_while_it_waits_at_the_end_ends_it(
    program: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    process = program("cluster.submit(60, MARK)\n")
    process.wait_for("waiting for them")
    wait_until(lambda: ".started" in marks(tmp_path))
    before = time.monotonic()
    interrupt(process)
    assert process.wait(15) == -signal.SIGINT, process.output
    assert time.monotonic() - before < 10
    assert "Traceback" not in process.output
    wait_until(lambda: ".interrupted" in marks(tmp_path))


def test_what_the_program_registered_for_its_end_still_runs_after_an_interrupt(
    program: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """Callbacks hear of the jobs that were ended, and functions that were registered before the cluster run too."""
    process = program("cluster.submit(60, MARK)\n", "import atexit\natexit.register(print, 'registered')\n")
    process.wait_for("waiting for them")
    wait_until(lambda: ".started" in marks(tmp_path))
    interrupt(process)
    assert process.wait(15) == -signal.SIGINT, process.output
    assert "ended Terminated" in process.output
    assert "registered" in process.output


def test_a_program_does_not_wait_for_what_can_never_run(program: Callable[..., Any]) -> None:
    """Its only node cannot run setup; another might come, but nobody waits for that at the end of a program."""
    process = program(
        "def refuse():\n    raise RuntimeError('no licence')\n"
        "other = dispy.JobCluster(nap, setup=refuse, job_status=heard)\n"
        "job = other.submit(0, MARK)\n"
        "print('over', flush=True)\n"
    )
    assert process.wait(30) == 0, process.output
    assert "1 of nap" in process.output
    assert "jobs of nap end without a result: every node refused it for good" in process.output
    assert "no licence" in process.output


def test_interrupt_that_nobody_catches_cancels_the_jobs(
    program: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    process = program("job = cluster.submit(60, MARK)\nprint('waits', flush=True)\njob()\n")
    process.wait_for("waits")
    wait_until(lambda: ".started" in marks(tmp_path))
    interrupt(process)
    assert process.wait(15) != 0
    assert "KeyboardInterrupt" in process.output
    assert "ended Terminated" in process.output
    assert ".interrupted" in marks(tmp_path)


def test_interrupt_that_is_caught_cancels_nothing(
    program: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    process = program(
        "job = cluster.submit(2, MARK)\n"
        "try:\n    print('waits', flush=True)\n    job()\n"
        "except KeyboardInterrupt:\n    print('caught', flush=True)\n"
        "job()\nprint(f'then {job.status.name}')\n"
    )
    process.wait_for("waits")
    wait_until(lambda: ".started" in marks(tmp_path))
    interrupt(process)
    process.wait_for("caught")
    assert process.wait() == 0, process.output
    assert "then Finished" in process.output
    assert marks(tmp_path) == {".started", ".done"}


def test_interrupt_that_leaves_a_with_block_cancels(
    program: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    process = program(
        "try:\n    with cluster:\n        job = cluster.submit(60, MARK)\n        print('waits', flush=True)\n"
        "        job()\n"
        "except KeyboardInterrupt:\n    print('left', job.status.name, flush=True)\n"
    )
    process.wait_for("waits")
    wait_until(lambda: ".started" in marks(tmp_path))
    interrupt(process)
    process.wait_for("left Terminated")
    assert process.wait() == 0, process.output


def test_callbacks_may_steer_and_close_their_cluster(program: Callable[..., Any], tmp_path: Path) -> None:
    process = program(
        "count = 0\n"
        "def more(job):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 1:\n"
        "        raise ValueError('from a callback')\n"
        "    if count == 2:\n"
        "        assert cluster.submit(0, MARK)() is None\n"
        "        cluster.wait()\n"
        "    if count == 3:\n"
        "        print('closed', cluster.close(), cluster.close(), flush=True)\n"
        "cluster.job_status = more\n"
        "for _ in range(2): cluster.submit(0, MARK)\n"
        "cluster.wait()\n"
    )
    process.wait_for("closed True None")
    assert process.wait() == 0, process.output
    assert "ValueError: from a callback" in process.output
    assert "Traceback" in process.output
