"""Why a program waits, and where a job would run: `dispy explain`, and what is said unasked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dispy import certificates

HOLD = """
import dispy, time
cluster = dispy.JobCluster(time.sleep, nodes="127.0.0.1")
job = cluster.submit(60)
while job.status != dispy.DispyJob.Running:
    time.sleep(0.02)
print("holds it", flush=True)
"""
WAIT = """
import dispy
cluster = dispy.JobCluster(abs)
cluster.submit(-1).finish.wait(30)
"""
ALONE = """
import dispy
with dispy.JobCluster(abs) as cluster:
    print("result", cluster.submit(-1)())
"""


@pytest.fixture
def explain(free_base_port: int) -> Callable[..., tuple[int, dict[str, Any]]]:
    """`explain(*options, env={})`: the exit code of `dispy explain --json` and what it says."""

    def run(*options: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "dispy.cli", "explain", "--json", "--wait", "0.5", *options],
            env={**os.environ, "DISPY_PORT": str(free_base_port), **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    return run


def test_what_becomes_of_a_job_is_told_from_outside(
    dispynode: Callable[..., Any],
    start_daemon: Callable[..., Any],
    explain: Callable[..., Any],
    free_base_port: int,
) -> None:
    """One node that is free, then held; another of a group that is not ours. The program says the same unasked."""
    dispynode("--tag", "big", "--cpus", "1", name="n1")
    dispynode("--group", "theirs", name="n2")
    code, said = explain()
    assert (code, said["verdict"]) == (0, "runs"), said
    assert "would run now on n1" in said["sentences"][0]
    code, said = explain("--cpus", "2", "--tags", "big")
    assert code == 1
    assert "n1 has 1 CPU, not 2" in said["sentences"][0]
    env = {"DISPY_PORT": str(free_base_port), "DISPY_LOCAL": "never"}
    start_daemon(sys.executable, "-c", HOLD, env=env).wait_for("holds it", timeout=30)
    waiting = start_daemon(sys.executable, "-c", WAIT, env=env)
    line = waiting.wait_for("1 job waits: node n1 (127.0.0.1) is used by", timeout=30)
    assert re.search(r"\(-c, process \d+\) since 20", line), line
    code, said = explain()
    assert (code, [node["state"] for node in said["nodes"]]) == (1, ["busy"])
    assert "n1 is used by" in said["sentences"][0]
    assert said["refused"] == [{"name": "n2", "address": "127.0.0.1", "reason": "group"}]


def test_an_interface_that_is_not_there_is_named(explain: Callable[..., Any], free_base_port: int) -> None:
    env = {"DISPY_PORT": str(free_base_port), "DISPY_INTERFACES": "eth99"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )
    assert "result 1" in done.stdout, done.stderr
    assert "no interface or address eth99 is up on this machine; there are: lo (127.0.0.1)" in done.stderr
    code, said = explain(env=env)
    assert code == 3
    assert "eth99: no such interface or address is up" in said["tried"]


def test_nothing_starts_with_a_certificate_that_has_expired(
    dispynode: Callable[..., Any], free_base_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.make_ca(tmp_path)
    monkeypatch.setattr(certificates, "CERTIFICATE_DAYS", -1)
    made = certificates.make_certificate(tmp_path, "client", "one")
    env = {
        "DISPY_PORT": str(free_base_port),
        "DISPY_CERTFILE": str(made.certfile),
        "DISPY_KEYFILE": str(made.keyfile),
        "DISPY_CAFILE": str(tmp_path / "ca.pem"),
    }
    node = dispynode(env=env, ready=False)
    assert node.wait() in (1, 2), node.output
    assert f"the certificate in {made.certfile} expired on 20" in node.output
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"the certificate in {made.certfile} expired on 20" in done.stderr
