"""Large files that several nodes need: once from the program, the rest from node to node."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy.wire.connection import Link
from dispy.wire.messages import Chunk
from dispy.wire.transfer import LARGE_CHUNK, WINDOW_LIMIT

NODES = 8
SIZE = 80 << 20
"""So much that what nodes ask of the program before they know of each other is a small part of it."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes of blobs that leave this process, by the hexadecimal digits of their name."""
    count: Counter[str] = Counter()
    send = Link.send

    def counting(self: Link, message: Any, payload: Any = ()) -> None:
        if isinstance(message, Chunk):
            count[message.name.hex()] += sum(map(len, payload))
        send(self, message, payload)

    monkeypatch.setattr(Link, "send", counting)
    return count


def digest(path: str) -> str:
    import hashlib
    import pathlib

    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_eight_nodes_get_a_file_once_from_the_program(
    clusters: Callable[..., Any],
    dispynode: Callable[..., Any],
    wait_until: Callable[..., Any],
    free_base_port: int,
    big: Path,
    sent: Counter[str],
) -> None:
    daemons = [dispynode("--cpus", "1", name=f"n{number}", ready=False) for number in range(NODES)]
    for daemon in daemons:
        daemon.wait_for("ready")
    opened: set[str] = set()

    def status(status: int, node: Any, job: Any) -> None:
        if status == dispy.DispyNode.Initialized:
            opened.add(node.name)

    def make() -> Any:
        opened.clear()
        return clusters(digest, depends=[str(big)], dispy_port=free_base_port, cluster_status=status)

    right = hashlib.sha256(big.read_bytes()).hexdigest()
    cluster = make()
    jobs = [cluster.submit("big") for _ in range(2 * NODES)]
    assert {job() for job in jobs} == {right}
    wait_until(lambda: len(opened) == NODES, timeout=60)
    assert sent[right] <= 1.3 * SIZE, sent
    before = sent[right]
    again = make()
    assert {again.submit("big")() for _ in range(NODES)} == {right}
    assert sent[right] == before


def test_a_link_that_is_cut_in_the_middle_brings_the_rest(
    clusters: Callable[..., Any],
    dispynode: Callable[..., Any],
    free_base_port: int,
    big: Path,
    sent: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuts: list[int] = []
    send = Link.send
    right = hashlib.sha256(big.read_bytes()).hexdigest()

    def cutting(self: Link, message: Any, payload: Any = ()) -> None:
        send(self, message, payload)
        if not cuts and sent[right] > 0.8 * SIZE:
            cuts.append(sent[right])
            self.abort("the test has cut it")

    monkeypatch.setattr(Link, "send", cutting)
    dispynode("--cpus", "1")
    cluster = clusters(digest, depends=[str(big)], dispy_port=free_base_port)
    assert cluster.submit("big")() == right
    assert cuts
    assert sent[right] <= SIZE + WINDOW_LIMIT + LARGE_CHUNK  # what was under way comes again


def test_nodes_of_a_shared_scheduler_pass_files_on(
    dispyscheduler: Callable[..., Any], dispynode: Callable[..., Any], free_base_port: int, big: Path
) -> None:
    scheduler = dispyscheduler(ready=False)
    nodes = [dispynode("--cpus", "1", name=f"n{number}", ready=False) for number in range(3)]
    for daemon in (scheduler, *nodes):
        daemon.wait_for("ready")

    def wait(gate: str) -> str:
        import pathlib
        import time

        while not pathlib.Path(gate).exists():
            time.sleep(0.01)
        return digest("big")

    right = hashlib.sha256(big.read_bytes()).hexdigest()
    gate = big.with_name("gate")
    cluster = dispy.SharedJobCluster(wait, depends=[str(big), digest], dispy_port=free_base_port)
    try:
        jobs = [cluster.submit(str(gate)) for _ in nodes]
        said = [daemon.wait_for("of it came from other nodes", timeout=90) for daemon in nodes]
        gate.touch()
        assert [job() for job in jobs] == [right] * len(jobs)
    finally:
        cluster.close(terminate=True)
        cluster.shutdown()
    from_others = [float(re.search(r"; ([0-9.]+) Mi?B of it", line)[1]) for line in said]  # type: ignore[index]
    assert sum(from_others) >= (len(nodes) - 1.5) * SIZE / (1 << 20)


SLOW_LINK = """
import sys, time
import dispy
def echo(number):
    return number
def size(path):
    import os
    return os.path.getsize(path)
with dispy.JobCluster(echo, nodes=["10.77.0.11"]) as cluster:
    assert cluster.submit(0)() == 0
    with dispy.JobCluster(size, nodes=["10.77.0.11"], depends=[sys.argv[1]]) as other:
        job = other.submit("big")
        times = []
        while job.status in (dispy.DispyJob.Created, dispy.DispyJob.Running):
            began = time.monotonic()
            assert cluster.submit(len(times))() == len(times)
            times.append(time.monotonic() - began)
        assert job() == int(sys.argv[2]), job.exception
print("longest of", len(times), round(max(times), 3), flush=True)
"""


def test_on_a_slow_link_nothing_waits_long_behind_a_file(
    netns: Any, dispynode: Callable[..., Any], start_daemon: Callable[..., Any], tmp_path: Path
) -> None:
    """At 16 Mbit/s a job goes there and back while a file is on its way."""
    shape = f"-n {netns.switch} qdisc add dev p-n1 root tbf rate 16mbit burst 16kb latency 1s"
    shaped = subprocess.run(["tc", *shape.split()], capture_output=True, text=True)
    if shaped.returncode:
        pytest.skip(f"the kernel cannot make a link slow (tbf): {shaped.stderr.strip()}")
    size = 6 << 20
    (tmp_path / "big").write_bytes(os.urandom(size))
    (tmp_path / "program.py").write_text(SLOW_LINK)
    dispynode("--cpus", "2", name="n1", base_port=9700, inside=netns.inside("n1"), env=netns.env)
    program = start_daemon(
        *(*netns.inside("client"), sys.executable, str(tmp_path / "program.py"), str(tmp_path / "big"), str(size)),
        env={**netns.env, "DISPY_PORT": "9700"},
    )
    said = program.wait_for("longest of", timeout=90)
    rounds, longest = said.split()[-2:]
    assert int(rounds) > 5
    assert float(longest) < 10 * 0.5, said  # ten times what is promised: the machine may be busy
