"""Client and node die by their own hand wherever they persist or send; what comes after them keeps the promise."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from test_chaos import HERE, check_results

KILLED: Final = -signal.SIGKILL
NODE_POINTS: Final = (
    "left.before-rename",
    "left.after-rename",
    "send.NodeDescribed",
    "send.LeaseGranted",
    "sent.LeaseGranted",
    "send.NeedChunk",
    "blobstore.before-rename",
    "blobstore.after-rename",
    "placed.before-rename",
    "send.ComputationReady",
    "send.JobsDone",
    "sent.JobsDone",
    "send.Chunk",
)
CLIENT_POINTS: Final = (
    "secret.before-link",
    "recovery.before-rename",
    "recovery.after-rename",
    "recovery.before-append",
    "recovery.after-append:3",
    "recovery.before-sync",
    "recovery.after-sync",
    "send.AskLease",
    "send.OpenComputation",
    "send.Chunk",
    "send.RunJobs",
    "sent.RunJobs:3",
    "send.AckResults",
)
SPOOL_POINTS: Final = (
    "spool.before-rename",
    "spool.after-rename",
    "spool.before-unlink",
    "spool.after-unlink",
)
LAST_CLIENT_POINT: Final = "send.CloseComputation"
"""At the end of a program."""
GRACE: Final = "1"
"""Seconds that nodes wait for a client that is gone."""


@pytest.fixture
def start_client(
    start_daemon: Callable[..., Any], free_base_port: int, tmp_path: Path
) -> Callable[[str, list[int]], Any]:
    """`start_client(failpoint, ports)`: the program of the chaos suite."""

    def start(failpoint: str, ports: list[int]) -> Any:
        env = {"DISPY_PORT": str(free_base_port), "DISPY_LOCAL": "never", "DISPY_FAILPOINT": failpoint}
        return start_daemon(sys.executable, str(HERE / "client.py"), str(tmp_path), *map(str, ports), env=env)

    return start


def test_a_node_dies_wherever_it_persists_or_sends(
    dispynode: Callable[..., Any],
    free_base_ports: list[int],
    tmp_path: Path,
    start_client: Callable[[str, list[int]], Any],
) -> None:
    """Another node and one program see them come and go."""
    steady, *places = free_base_ports
    dispynode("--cpus", "1", name="steady", base_port=steady)
    client = start_client("", [port + 1 for port in free_base_ports])
    points = list(NODE_POINTS)
    mortals: dict[int, tuple[str, Any]] = {}
    deadline = time.monotonic() + 100
    while points or mortals:
        for place in places:
            if place not in mortals and points:
                point = points.pop()
                options = {"name": f"mortal{len(points)}", "base_port": place, "env": {"DISPY_FAILPOINT": point}}
                mortals[place] = point, dispynode("--cpus", "1", **options, ready=False)
            elif place in mortals and mortals[place][1].process.poll() is not None:
                point, mortal = mortals.pop(place)
                assert mortal.wait() == KILLED, f"{point}: {mortal.output}"
        assert time.monotonic() < deadline, f"still alive: {[point for point, _ in mortals.values()]}"
        assert client.process.poll() is None, client.output
        time.sleep(0.02)
    (tmp_path / "stop").touch()
    assert client.wait(60) == 0, client.output
    check_results(tmp_path)


def test_a_client_dies_wherever_it_persists_or_sends(
    dispynode: Callable[..., Any],
    free_base_ports: list[int],
    tmp_path: Path,
    start_client: Callable[[str, list[int]], Any],
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[..., Any],
) -> None:
    """Its successor goes on with what it had not written down."""
    node = dispynode(
        "--cpus", "2", "--msg_timeout", GRACE, base_port=free_base_ports[1], env={"DISPY_SECRET": "shared"}
    )
    for point in CLIENT_POINTS:
        monkeypatch.setenv("DISPY_SECRET", "" if point.startswith("secret") else "shared")
        assert start_client(point, [free_base_ports[1] + 1]).wait(30) == KILLED, point
    last = start_client(LAST_CLIENT_POINT, [free_base_ports[1] + 1])
    wait_until(lambda: f"once {last.pid}-" in (tmp_path / "results").read_text(), timeout=30)
    (tmp_path / "stop").touch()
    assert last.wait(30) == KILLED, LAST_CLIENT_POINT
    assert start_client("", [free_base_ports[1] + 1]).wait(30) == 0
    check_results(tmp_path)
    assert "Traceback" not in node.output


def test_a_node_dies_while_it_keeps_results_on_its_disk(
    dispynode: Callable[..., Any],
    free_base_ports: list[int],
    tmp_path: Path,
    start_client: Callable[[str, list[int]], Any],
    wait_until: Callable[..., Any],
) -> None:
    """First its program is killed, then it, at each step of keeping results and of letting go of them."""
    base = free_base_ports[1]
    results = tmp_path / "results"
    results.touch()

    def start_node(point: str) -> Any:
        options = ("--cpus", "2", "--msg_timeout", GRACE)
        return dispynode(*options, name="keeper", base_port=base, env={"DISPY_FAILPOINT": point})

    for point in SPOOL_POINTS:
        node, client, before = start_node(point), start_client("", [base + 1]), results.stat().st_size
        wait_until(lambda node=node, before=before: node.process.poll() or results.stat().st_size > before, timeout=30)
        client.process.kill()
        client.wait()
        if "unlink" in point and node.process.poll() is None:
            recovering = start_client("", [base + 1])
            assert node.wait(30) == KILLED, point
            recovering.process.kill()
            recovering.wait()
        assert node.wait(30) == KILLED, point
    start_node("")
    last, before = start_client("", [base + 1]), results.stat().st_size
    wait_until(lambda: results.stat().st_size > before, timeout=30)
    (tmp_path / "stop").touch()
    assert last.wait(60) == 0, last.output
    check_results(tmp_path)
