"""The commands that look at a pool, against a real scheduler, a real node, and programs of two users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dispy.cli import main

PROGRAM = """
import sys
import dispy

def wait_for_ever(begun):
    import pathlib, time
    pathlib.Path(begun).touch()
    time.sleep(3600)

if __name__ == "__main__":
    with dispy.SharedJobCluster(wait_for_ever) as cluster:
        jobs = [cluster.submit(sys.argv[1]) for _ in range(3)]
        print("submitted", flush=True)
        for job in jobs:
            job()
    print(*(job.status.name for job in jobs), flush=True)
"""


@pytest.fixture
def pool(dispyscheduler: Callable[..., Any], dispynode: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A scheduler with a node of one CPU."""
    monkeypatch.setenv("DISPY_SECRET", "ours")
    scheduler = dispyscheduler("--admin_secret", "the admin's")
    dispynode("--cpus", "1", name="n1")
    return scheduler


@pytest.fixture
def dispy(pool: Any, free_base_port: int, environment: Path) -> Callable[..., Result]:
    """`dispy(*words, home=…)`: a command of the user whose home that is, by default of the one whose test this is."""

    def run(*words: str, home: Path = environment) -> Result:
        env = {"DISPY_PORT": str(free_base_port), "XDG_STATE_HOME": str(home / ".local/state")}
        return CliRunner().invoke(main, list(words), env=env)

    return run


@pytest.mark.timeout(90)
def test_jobs_are_seen_and_ended_by_whom_they_belong_to(
    dispy: Callable[..., Result],
    start_daemon: Callable[..., Any],
    free_base_port: int,
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    begun = tmp_path / "begun"
    program = start_daemon(sys.executable, "-c", PROGRAM, str(begun), env={"DISPY_PORT": str(free_base_port)})
    program.wait_for("submitted", timeout=30)

    def jobs(*words: str, **more: Any) -> list[dict[str, Any]]:
        return [json.loads(line) for line in dispy("jobs", "--json", *words, **more).stdout.splitlines()]

    def states() -> list[str]:
        return [job["state"] for job in jobs()]

    wait_until(begun.exists, timeout=30)
    assert states() == ["Running", "Created", "Created"]
    assert [job["node"] for job in jobs("wait_for_ever")] == ["n1", "", ""]
    assert [job["since"] > 0 for job in jobs()] == [True, False, False]
    (shown,) = json.loads(dispy("status", "--json").stdout)["clusters"]
    assert (shown["name"], shown["mine"], shown["running"], shown["waiting"]) == ("wait_for_ever", True, 1, 2)

    stranger = tmp_path / "stranger"
    assert jobs(home=stranger) == []
    refused = dispy("cancel", "wait_for_ever", home=stranger)
    assert refused.exit_code == 1
    assert refused.stderr.strip()
    assert "Traceback" not in refused.stderr
    assert len(jobs("--admin_secret", "the admin's", home=stranger)) == 3

    second = jobs()[1]["job"]
    ended = dispy("cancel", "wait_for_ever", str(second))
    assert (ended.exit_code, ended.stdout) == (0, "1 job is being ended.\n")
    wait_until(lambda: states() == ["Running", "Created"])
    assert dispy("cancel", shown["cluster"][:6], "--admin_secret", "the admin's", home=stranger).exit_code == 0
    assert program.wait(30) == 0, program.output
    assert "Terminated Cancelled Cancelled" in program.output


@pytest.mark.timeout(60)
def test_programs_run_through_the_scheduler_and_errors_are_in_words(
    dispy: Callable[..., Result], free_base_port: int
) -> None:
    words = ("--scheduler", "127.0.0.1", "-a", "one", "-a", "two", "--json", "/bin/echo")
    done = subprocess.run(
        [sys.executable, "-m", "dispy.cli", *words],
        env={**os.environ, "DISPY_PORT": str(free_base_port)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["stdout"] for line in done.stdout.splitlines()] == ["one\n", "two\n"]
    (node,) = json.loads(dispy("status", "--json").stdout)["nodes"]
    assert (node["name"], node["done"]) == ("n1", 2)
    assert dispy("cancel", "nothing").stderr.startswith("Error: the scheduler has no cluster 'nothing'")
    assert "has another secret" in dispy("status", "--secret", "theirs").stderr
    assert "no scheduler answers at" in dispy("top", "--scheduler", f"127.0.0.1:{free_base_port - 1}").stderr
    assert "talks to nodes only at this port" in dispy("status", "--scheduler", f"127.0.0.1:{free_base_port}").stderr
    assert "is node n1, not a scheduler" in dispy("status", "--scheduler", f"127.0.0.1:{free_base_port + 1}").stderr
