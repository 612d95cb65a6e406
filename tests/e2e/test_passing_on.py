"""Large files that several nodes need: once from the program, the rest from node to node."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy.wire.connection import Link
from dispy.wire.messages import Chunk

NODES = 8
SIZE = 40 << 20


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
