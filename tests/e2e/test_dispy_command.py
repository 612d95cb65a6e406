"""The `dispy` command with real nodes: programs run, their output comes back, the exit code tells how they ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 60


def dispy(*words: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dispy.cli", *words],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.fixture
def report(tmp_path: Path) -> str:
    """A program that shows its arguments and a file beside it, and ends with its second argument as exit code."""
    (tmp_path / "data.txt").write_text("some data\n")
    path = tmp_path / "report.sh"
    path.write_text('#!/bin/sh\necho "hello $1"; cat data.txt; echo "warned $1" >&2; exit ${2:-0}\n')
    path.chmod(0o755)
    return str(path)


def test_one_job_is_passed_through(report: str, tmp_path: Path) -> None:
    done = dispy("--local", "-f", "data.txt", "-a", "'big world'", report, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello big world\nsome data\n"
    assert "warned big world" in done.stderr


def test_several_jobs_are_grouped_and_a_failure_shows_in_the_exit_code(report: str, tmp_path: Path) -> None:
    done = dispy("--local", "-f", "data.txt", "-a", "one", "-a", "two 3", "-a", "three", report, cwd=tmp_path)
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if not line.startswith("==")] == [
        *("hello one", "some data", "hello two", "some data", "hello three", "some data")
    ]
    assert [line.split("  (")[0] for line in done.stdout.splitlines() if line.startswith("==")] == [
        *("== job 1: one", "== job 2: two 3", "== job 3: three")
    ]
    assert "dispy: job 2 (two 3): exit code 3 on 127.0.0.1" in done.stderr


def test_a_job_is_ended_after_its_time(tmp_path: Path) -> None:
    done = dispy(
        "--local", "--timeout", "0.2", "--job-cpus", "all", "--retries", "1", "-a", "60", "sleep", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "its limit was 0.2 s" in done.stderr


def test_json(report: str, tmp_path: Path) -> None:
    done = dispy("--local", "--json", "-f", "data.txt", "-a", "one", "-a", "two 3", report, cwd=tmp_path)
    assert done.returncode == 1
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["args"], first["exit_code"], first["stdout"]) == (["one"], 0, "hello one\nsome data\n")
    assert (second["args"], second["exit_code"], second["stderr"]) == (["two", "3"], 3, "warned two\n")
    assert first["node"] == "127.0.0.1"
    assert first["submit_time"] <= first["end_time"]


def test_ctrl_c_cancels_and_ends_with_130(
    start_daemon: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    mark = tmp_path / "started"
    program = tmp_path / "long.sh"
    program.write_text('#!/bin/sh\necho > "$1"\nexec sleep 1000\n')
    program.chmod(0o755)
    command = start_daemon(sys.executable, "-m", "dispy.cli", "--local", "-a", str(mark), str(program))
    wait_until(mark.exists, 30)
    command.process.send_signal(signal.SIGINT)
    assert command.wait(30) == 130
    assert "interrupted" in command.output


def test_a_second_signal_does_not_come_before_the_word_that_the_jobs_are_to_end(
    start_daemon: Callable[..., Any],
    dispyscheduler: Callable[..., Any],
    dispynode: Callable[..., Any],
    free_base_port: int,
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    program = tmp_path / "long.sh"
    program.write_text('#!/bin/sh\ntrap "" INT\necho $$ > "$1.new"\nmv "$1.new" "$1"\nwhile :; do sleep 0.1; done\n')
    program.chmod(0o755)
    mark = tmp_path / "started"
    dispynode("--cpus", "1")
    dispyscheduler()
    command = start_daemon(
        *(sys.executable, "-m", "dispy.cli", "--scheduler", "127.0.0.1", "-a", str(mark), str(program)),
        env={"DISPY_PORT": str(free_base_port)},
    )
    wait_until(mark.exists, 60)
    command.process.send_signal(signal.SIGTERM)
    command.wait_for("the jobs are being cancelled")
    command.process.send_signal(signal.SIGTERM)
    assert command.wait(30) == 128 + signal.SIGTERM
    wait_until(lambda: not Path("/proc", mark.read_text().strip()).exists(), 60)


def test_nodes_lists_who_answers(dispynode: Callable[..., Any], free_base_port: int) -> None:
    dispynode("--cpus", "1", name="worker1")
    done = dispy("nodes", "--json", "-p", str(free_base_port))
    assert done.returncode == 0, done.stderr
    (node,) = (json.loads(line) for line in done.stdout.splitlines())
    assert (node["name"], node["cpus"], node["state"], node["port"]) == ("worker1", 1, "free", free_base_port + 1)


def test_nodes_says_who_holds_a_node(
    dispynode: Callable[..., Any], start_daemon: Callable[..., Any], free_base_port: int, tmp_path: Path
) -> None:
    node = dispynode("--cpus", "1", name="worker1")
    holder = start_daemon(
        *(sys.executable, "-c"),
        f"import dispy, time; c = dispy.JobCluster(abs, nodes=['*'], dispy_port={free_base_port})\n"
        "print(c.submit(-1)(), 'held', flush=True); time.sleep(1000)",
        env={"DISPY_LOCAL": "never"},
    )
    holder.wait_for("held", 30)
    done = dispy("nodes", "--json", "-p", str(free_base_port))
    assert json.loads(done.stdout)["state"] == "busy", done.stdout + node.output
    holder.process.kill()


def test_nodes_says_who_refuses_and_why(dispynode: Callable[..., Any], free_base_port: int) -> None:
    dispynode("--secret", "something else", name="stranger")
    done = dispy("nodes", "-p", str(free_base_port))
    assert done.returncode == 1
    assert "Dispynode on this machine (stranger (127.0.0.1)) was started with another secret" in done.stdout


def test_programs_run_on_a_node_with_another_group_only_when_asked(
    dispynode: Callable[..., Any], free_base_port: int
) -> None:
    dispynode("--group", "blue", name="worker1")
    port = str(free_base_port)
    assert "in another group: worker1" in dispy("nodes", "-p", port).stdout
    done = dispy("-p", port, "--group", "blue", "-n", "worker1,*", "-a", "hi", "echo", env={"DISPY_LOCAL": "never"})
    assert (done.returncode, done.stdout) == (0, "hi\n"), done.stderr
