"""Objects that many jobs need: sent to each node once, in memory that its workers share, let go when none does."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import dispy
from dispy.errors import ClosedError, ShippingError

ARRAY = numpy.random.default_rng(1).random(500_000)
"""4 MB that cannot be compressed."""


def look(marks: str, number: int, array: Any, things: Any = None) -> dict[str, Any]:
    """Where an array lies, when two workers of this node have it."""
    import os
    import pathlib
    import time

    node = dispy_node_name  # type: ignore[name-defined]  # noqa: F821
    (pathlib.Path(marks) / f"{node}-{os.getpid()}").touch()
    while len(list(pathlib.Path(marks).glob(f"{node}-*"))) < 2:
        time.sleep(0.01)
    address, here = array.ctypes.data, {}
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ (\S+ \d+) +(.*)", line):
            here = {"mode": match[3], "inode": match[4], "path": match[5]}
            found = int(match[1], 16) <= address < int(match[2], 16)
        elif found and line.startswith("Anonymous:"):
            here["own"] = line.split()[1]
            break
    return {
        **here,
        "node": node,
        "worker": (os.getpid(), id(array), id(things and things["deep"][0][1])),
        "sum": float(array.sum()),
        "writeable": array.flags.writeable,
        "word": things and things["deep"][0][1]["word"],
    }


def sent() -> int:
    """Bytes that other processes have acknowledged to the TCP sockets of this one, whatever they were."""
    total = 0
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the one of the listing is gone
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as each:
                    total += struct.unpack_from("Q", each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 120)[0]
    return total


def blobs_open(process: Any) -> list[str]:
    """Files of its store that a node has open."""
    found = [os.readlink(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir() if fd.is_symlink()]
    return [path for path in found if "/blobs/" in path]


def test_twenty_jobs_on_two_nodes(
    clusters: Callable[..., Any],
    dispynode: Callable[..., Any],
    tmp_path: Path,
    wait_until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    free_base_port: int,
) -> None:
    monkeypatch.setenv("DISPY_PORT", str(free_base_port))
    daemons = [dispynode("--cpus", "2", name=name) for name in ("one", "two")]
    cluster = clusters(look)
    wait_until(lambda: len(cluster._ledger.nodes) == 2)
    nodes = list(cluster._ledger.nodes.values())
    before = sent()
    array = cluster.scatter(ARRAY)
    table = cluster.scatter({"word": "deep down"})
    jobs = [
        cluster.submit_node(nodes[number % 2], str(tmp_path), number, array, things={"deep": [(1, table)]})
        for number in range(20)
    ]
    looks = [job() for job in jobs]
    assert all(looks), [job.exception for job in jobs]
    assert ARRAY.nbytes < sent() - before < 2.2 * ARRAY.nbytes, "each node fetches it once, from here or the other"
    for node in nodes:
        mine = [each for each in looks if each["node"] == node.name]
        assert len(mine) == 10
        assert len({each["worker"][0] for each in mine}) == 2
        assert len({each["worker"] for each in mine}) == 2, "each worker unpickles it once"
        assert len({each["inode"] for each in mine}) == 1, "both map the same file"
    assert {(each["mode"], each["own"], each["writeable"]) for each in looks} == {("r--s", "0", False)}
    assert {(each["sum"], each["word"]) for each in looks} == {(float(ARRAY.sum()), "deep down")}
    assert all(f"/prefix-{each['node']}/blobs/" in each["path"] for each in looks)
    # calls of map find it there
    after = sent()
    mapped = list(cluster.map(itertools.repeat(str(tmp_path)), range(40), itertools.repeat(array)))
    assert {each["sum"] for each in mapped} == {float(ARRAY.sum())}
    assert sent() - after < ARRAY.nbytes / 10
    # a second one of the same content is another name for it; what is closed is let go when its jobs have ended
    again = cluster.scatter(ARRAY)
    last = cluster.submit(str(tmp_path), 1, again)
    for scattered in (array, table, again):
        scattered.close()
    assert last()["sum"] == float(ARRAY.sum())
    with pytest.raises(ClosedError, match=r"<Scattered of look: 4\.0 MB, closed> cannot be given to a job"):
        cluster.submit(str(tmp_path), 1, array)
    with pytest.raises(ClosedError, match="closed> cannot be given to a job") as refused:
        list(cluster.map([str(tmp_path)], [1], [array]))
    assert refused.value.__notes__ == ["The calls of map from number 0 on (the first is 0) were not made."]
    wait_until(lambda: not cluster.service.offers.held)
    cluster.close()
    wait_until(lambda: not any(blobs_open(daemon) for daemon in daemons))


def change(array: Any) -> None:
    """What no job can do."""
    array[0] = 5


def test_what_cannot_be(local: Callable[..., Any]) -> None:
    cluster, other, program = local(len), local(len), local("/bin/true")
    scattered = cluster.scatter([1, 2, 3])
    with pytest.raises(ShippingError, match="can only be given to jobs of its cluster"):
        other.submit(scattered)
    own = other.scatter([1, 2, 3])
    with pytest.raises(ShippingError, match=r"the object\[1\] .* cannot be pickled"):
        cluster.scatter([1, (n for n in range(3))])
    with pytest.raises(ShippingError, match="can only stand in arguments of jobs"):
        cluster.scatter([scattered])
    with pytest.raises(ShippingError, match="can only be given to jobs of its cluster"):
        other.submit(scattered)
    with pytest.raises(ShippingError, match="true is a program, whose arguments are texts"):
        program.scatter([1])
    with pytest.raises(ShippingError, match="cannot be given to a program"):
        program.submit(scattered)
    with pytest.raises(ShippingError, match="can only be given to jobs of its cluster"):
        list(other.map([scattered]))
    changing = local(change)
    job = changing.submit(changing.scatter(numpy.zeros(10)))
    assert job() is None
    assert "read-only" in job.exception, "however small it is"
    # a snapshot, which each worker keeps as jobs leave it; and a cluster of its own
    assert [cluster.submit(scattered)(), other.submit(own)()] == [3, 3]
    for each in (cluster, other, program, changing):
        each.close()
    assert scattered.is_closed
    with pytest.raises(ClosedError, match="is closed; make another"):
        cluster.scatter(1)
    assert not cluster.service.offers.held


def test_the_next_node_gets_it_when_one_is_lost(
    clusters: Callable[..., Any],
    dispynode: Callable[..., Any],
    tmp_path: Path,
    wait_until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    free_base_port: int,
) -> None:
    def wait(array: Any, marks: str) -> float:
        import pathlib
        import time

        (pathlib.Path(marks) / dispy_node_name).touch()  # type: ignore[name-defined]  # noqa: F821
        while not (pathlib.Path(marks) / "two").exists():
            time.sleep(0.01)
        return float(array.sum())

    monkeypatch.setenv("DISPY_PORT", str(free_base_port))
    node = dispynode("--cpus", "1", name="one")
    cluster = clusters(wait, reentrant=True)
    job = cluster.submit(cluster.scatter(ARRAY), str(tmp_path))  # nobody has it but the job
    wait_until((tmp_path / "one").exists)
    dispynode("--cpus", "1", name="two")
    os.kill(node.pid, signal.SIGKILL)
    assert job() == float(ARRAY.sum()), job.exception


PROGRAM = """
import pathlib, sys, time
import dispy

class Table:
    def __init__(self, rows):
        self.rows = rows

def work(marks, number, table):
    import pathlib, time
    here = pathlib.Path(marks)
    (here / f"ran-{number}").touch()
    while not (here / "gate").exists():
        time.sleep(0.01)
    return number, sum(table.rows)

cluster = dispy.JobCluster(work, nodes=["127.0.0.1"], durable=True)
table = cluster.scatter(Table(range(100_000)))
jobs = [cluster.submit(sys.argv[1], number, table) for number in range(3)]
time.sleep(600)
"""


def test_durable_jobs_have_it_when_their_program_is_gone(
    start_daemon: Callable[..., Any],
    dispynode: Callable[..., Any],
    tmp_path: Path,
    wait_until: Callable[..., Any],
    free_base_port: int,
) -> None:
    node = dispynode("--cpus", "1", name="one")
    (tmp_path / "program.py").write_text(PROGRAM)
    program = start_daemon(
        sys.executable, str(tmp_path / "program.py"), str(tmp_path), env={"DISPY_PORT": str(free_base_port)}
    )
    wait_until(lambda: list(tmp_path.glob("ran-*")), timeout=60)
    for daemon in (program, node):
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
    for left in (tmp_path / "prefix-one" / "blobs").iterdir():
        left.unlink()
    (tmp_path / "gate").touch()
    dispynode("--cpus", "1", name="one")
    jobs = dispy.recover_jobs()
    results = [job.result for job in jobs if job.status is dispy.DispyJob.Finished]
    assert results[-2:] == [(1, 4999950000), (2, 4999950000)], [job.exception for job in jobs]


def test_a_shared_scheduler_fetches_it_once(
    dispyscheduler: Callable[..., Any],
    dispynode: Callable[..., Any],
    tmp_path: Path,
    wait_until: Callable[..., Any],
    free_base_port: int,
) -> None:
    def total(array: Any) -> float:
        return float(array.sum())

    staged = tmp_path / "scheduler" / "blobs"
    dispynode("--cpus", "2", name="one")
    scheduler = dispyscheduler()
    cluster = dispy.SharedJobCluster(total, dispy_port=free_base_port)
    try:
        before = len(list(staged.iterdir()))
        array = cluster.scatter(ARRAY)
        for _ in range(3):  # one after another: no job holds it meanwhile
            assert cluster.submit(array)() == float(ARRAY.sum())
        assert ARRAY.nbytes < sent() < 1.2 * ARRAY.nbytes
        assert len(list(staged.iterdir())) == before + 1
        # a scheduler that is started again is told again what to keep, and lets go of the rest
        os.kill(scheduler.pid, signal.SIGKILL)
        scheduler.wait()
        scheduler = dispyscheduler()
        assert cluster.submit(array)() == float(ARRAY.sum())
        array.close()
        wait_until(lambda: len(list(staged.iterdir())) == before)
    finally:
        cluster.close(terminate=True)
        cluster.shutdown()
