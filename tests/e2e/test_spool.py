"""Results outlive the program that wanted them and the daemon that has them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import dispy

SOON = 20.0
ARRAY = 300_000
"""As large as an array that comes instead of text."""
PROGRAM = """
import dispy

def work(gate, size):
    open(gate + "-on", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.02)
    if size == {array}:
        import numpy
        return numpy.full(size, 7, numpy.uint8)
    return "x" * size

if __name__ == "__main__":
    cluster = dispy.JobCluster(work, nodes={nodes!r})
    cluster.submit({gate!r}, {size})
    cluster.wait()
"""


@pytest.fixture
def killed(
    start_daemon: Callable[..., Any], wait_until: Callable[..., Any], free_base_port: int, tmp_path: Path
) -> Callable[..., list[psutil.Process]]:
    """`killed(nodes=…, size=…)`: a program was killed while its job runs, which ends as soon as `gate` is there.

    Returns the processes that it had started.
    """

    def run(*, nodes: str = "127.0.0.1", size: int = 1) -> list[psutil.Process]:
        gate = tmp_path / "gate"
        program = start_daemon(
            *(sys.executable, "-c", PROGRAM.format(nodes=nodes, gate=str(gate), size=size, array=ARRAY)),
            env={"DISPY_PORT": str(free_base_port)},
        )
        wait_until((tmp_path / "gate-on").exists, timeout=SOON)
        below = psutil.Process(program.pid).children(recursive=True)
        program.process.kill()
        program.process.wait()  # its output is open as long as a node that it started is there
        return below

    return run


def test_a_result_outlives_its_program_and_its_daemon(
    dispynode: Callable[..., Any], killed: Callable[..., Any], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    node = dispynode(name="here")
    killed(size=ARRAY)
    (tmp_path / "gate").touch()
    wait_until(lambda: list((tmp_path / "prefix-here" / "spool").rglob("*.batch")), timeout=SOON)
    node.process.kill()
    node.wait()
    second = dispynode(name="here")
    second.wait_for("to be fetched of programs that are gone: 1 result")
    [job] = dispy.recover_jobs(timeout=SOON)
    job.result[0] = 8
    assert job.result.sum() == 7 * ARRAY + 1
    wait_until(lambda: not list((tmp_path / "prefix-here" / "spool").iterdir()), timeout=SOON)
    assert dispy.recover_jobs(timeout=1) == []


def test_the_node_of_a_program_that_was_killed_stays_until_all_is_fetched(
    killed: Callable[..., Any], environment: Path
) -> None:
    """A job without an end can be stopped, and then nothing is left, be it a file."""
    below = killed(nodes="local")
    assert len(below) >= 4  # node, guard, fork server, worker
    [handle] = (environment / ".cache/dispy/handles").iterdir()
    assert handle.stat().st_mode & 0o777 == 0o600
    [job] = dispy.recover_jobs(timeout=SOON, terminate_pending=True)
    assert job.status == dispy.DispyJob.Terminated
    _, left = psutil.wait_procs(below, timeout=SOON)
    assert not left
    assert not list((environment / ".cache/dispy/handles").iterdir())
    assert not list((environment / ".cache/dispy/embedded").iterdir())


@pytest.mark.real
def test_a_result_for_which_the_disk_has_no_room(
    small_disk: Path, dispynode: Callable[..., Any], killed: Callable[..., Any], tmp_path: Path
) -> None:
    """It stays in memory, which is said once, and new work is refused until it is fetched."""
    (small_disk / "node").mkdir(mode=0o700)
    node = dispynode("--dest_path_prefix", str(small_disk / "node"))
    killed(size=4 << 20)
    (tmp_path / "gate").touch()
    node.wait_for("the disk is full. They stay in memory, and no new work is taken")
    [job] = dispy.recover_jobs(timeout=SOON)
    assert job.result == "x" * (4 << 20)
    assert not list((small_disk / "node" / "spool").rglob("*.batch"))
    assert "Traceback" not in node.output
