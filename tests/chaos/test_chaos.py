"""Real processes under a hail of kills and cuts: every result is right, seen once, and nothing is left behind.

The seed is printed. `DISPY_CHAOS_SEED` makes another plan, or replays one: the same faults in the same order (which
process they hit depends on what runs). `DISPY_CHAOS_SECONDS` makes it longer. A fault comes when its time has come and
the jobs have gone on since the one before, so a slow machine takes longer and is asked nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil
import pytest
from proxy import Cut, Proxy

from dispy.node.serving import lease_name
from dispy.recovery.book import ProgramBegun, decode

HERE: Final = Path(__file__).parent
SEED: Final = int(os.environ.get("DISPY_CHAOS_SEED") or 5)
SECONDS: Final = float(os.environ.get("DISPY_CHAOS_SECONDS") or 60)
MINUTE: Final = 60.0
KILLS: Final = {"worker": 60, "fork server": 14, "guard": 6, "node": 18, "client": 4}
CUTS: Final = 21
"""A minute's."""
LONG_CUT: Final = 6.5
"""Seconds after which a silent node has been lost for certain."""
FORK_SERVER_KILLS: Final = 2
"""In the life of a node; the third death of a fork server makes the node refuse its computation."""
PATIENCE: Final = 60.0
"""Seconds within which jobs must go on after a fault; a node that is lost costs 5, a client that was killed as many."""
LIMIT: Final = 600 + 10 * SECONDS


class Node:
    """One daemon that is started again in its place, behind its own proxy."""

    def __init__(self, start: Callable[..., Any], name: str, base_port: int) -> None:
        self._start = start
        self._name = name
        self._base_port = base_port
        self.outputs: list[str] = []
        self.fork_server_kills = 0
        self.mend_at: float | None = None
        self.daemon = self._start("--cpus", "2", name=name, base_port=base_port)
        self.proxy = Proxy(base_port + 1)

    def kill(self) -> None:
        """SIGKILL as soon as it is ready, and a new daemon with the same name, port and directory, not waited for."""
        self.daemon.wait_for("ready")
        self.daemon.process.kill()
        self.daemon.wait()
        self.outputs.append(self.daemon.output)
        self.fork_server_kills = 0
        self.daemon = self._start("--cpus", "2", name=self._name, base_port=self._base_port, ready=False)

    def below(self) -> dict[str, list[psutil.Process]]:
        """Guards, fork servers and workers, as far as they are there."""
        found: dict[str, list[psutil.Process]] = {"guard": [], "fork server": [], "worker": []}
        generation = psutil.Process(self.daemon.pid).children()
        for kind in found:
            found[kind] = [each for each in generation if each.status() != psutil.STATUS_ZOMBIE]
            generation = [child for each in found[kind] for child in each.children()]
        return found


class Chaos:
    """The jobs, and what is done to them."""

    def __init__(self, random: Random, nodes: list[Node], folder: Path, start_client: Callable[[], Any]) -> None:
        self._random = random
        self._nodes = nodes
        self._folder = folder
        self._start_client = start_client
        self.done: Counter[str] = Counter()
        self.client = start_client()

    def run(self, seconds: float) -> None:
        """Enough faults, evenly spread over the seconds, or over more if jobs take their time to go on."""
        rounds = max(1, round(seconds / MINUTE))
        plan = ["cut"] * CUTS * rounds + [kind for kind, count in KILLS.items() for _ in range(count * rounds)]
        self._random.shuffle(plan)
        began = time.monotonic()
        for number, kind in enumerate(plan):
            self._wait(began + seconds * number / len(plan))
            while not self._strike(kind):  # there was nobody to hit just now
                self._wait(time.monotonic() + 0.05)
            self.done[kind] += 1
        self._wait(began + seconds)
        while any(node.mend_at is not None for node in self._nodes):
            self._mend()
            time.sleep(0.02)

    def _results(self) -> int:
        path = self._folder / "results"
        return path.stat().st_size if path.exists() else 0

    def _wait(self, until: float) -> None:
        """Until that time, and until a job has ended; both cuts are mended meanwhile."""
        before, latest = self._results(), time.monotonic() + PATIENCE
        while time.monotonic() < until or self._results() == before:
            assert time.monotonic() < max(latest, until + PATIENCE), f"no job has ended since {dict(self.done)}"
            assert self.client.process.poll() is None, self.client.output
            self._mend()
            time.sleep(0.02)

    def _mend(self) -> None:
        for node in self._nodes:
            if node.mend_at is not None and time.monotonic() >= node.mend_at:
                node.proxy.mend()
                node.mend_at = None

    def _strike(self, kind: str) -> bool:
        node = self._random.choice(self._nodes)
        if kind in {"fork server", "guard"} and all(
            each.fork_server_kills >= FORK_SERVER_KILLS for each in self._nodes
        ):
            kind = "node"  # a new daemon takes more of them
        if kind == "client":
            self.client.process.kill()
            self.client.wait()
            self.client = self._start_client()
            return True
        if kind == "cut":
            return self._cut(node)
        if kind == "node":
            node.kill()
            return True
        if kind != "worker" and node.fork_server_kills >= FORK_SERVER_KILLS:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself while we looked
            victims = node.below()[kind]
            if victims:
                self._random.choice(victims).kill()
                node.fork_server_kills += kind != "worker"
                return True
        return False

    def _cut(self, node: Node) -> bool:
        if sum(each.mend_at is not None for each in self._nodes) > 1 or node.mend_at is not None:
            return False
        how: Cut = self._random.choice(("reset", "silence", "deaf", "mute"))
        seconds = LONG_CUT if self._random.random() < 0.15 else self._random.uniform(0.1, 3.5)
        node.proxy.cut(how)
        node.mend_at = time.monotonic() + seconds
        return True


@pytest.fixture
def nodes(dispynode: Callable[..., Any], free_base_ports: list[int]) -> Iterator[list[Node]]:
    """Three of them, each to be reached through its proxy alone."""
    made: list[Node] = []
    try:
        for number in (1, 2, 3):  # each of them is closed below, whatever becomes of the next
            made.append(Node(dispynode, f"node{number}", free_base_ports[number]))  # noqa: PERF401
        yield made
    finally:
        for node in made:
            node.proxy.close()


def check_nothing_is_left(folder: Path, home: Path, clients: int) -> None:
    """Beside what the test itself has made there are the locks and marks of nodes, locks of fork servers that start,
    empty lists of leftovers, the secret, and a recovery file of each client that was killed. A node that was away while
    such a file was recovered keeps what it has for that client until that is too old: those jobs were told as lost.
    """
    ours = {"one", "results", "starts", "stop"}
    nodes = {f"prefix-node{number}/{name}" for number in (1, 2, 3) for name in ("daemon", "identity", "left", "lock")}
    found = files_below(folder)
    kept = {name for name in found if "/blobs/" in name}
    assert len(kept) <= 3, "nodes keep the content of files for the next program, and nothing else"
    at_home = files_below(home)
    recovery = [name for name in at_home if name.endswith(".recover")]
    programs = [decode((home / name).read_bytes()).entries[0] for name in recovery]
    killed = {lease_name(program.token).hex() for program in programs if isinstance(program, ProgramBegun)}
    late = {name for name in found if "/spool/" in name and Path(name).parent.name in killed}
    assert set(found) <= ours | nodes | kept | late
    assert len(recovery) <= clients, "a program that ends in order leaves no recovery file"
    starts = {name for name in at_home if name.startswith(".local/state/dispy/starts/start-")}
    assert set(at_home) <= {".config/dispy/secret", *recovery, *starts}


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.timeout(LIMIT)
def test_kills_and_cuts(
    nodes: list[Node],
    start_daemon: Callable[..., Any],
    free_base_ports: list[int],
    tmp_path: Path,
    environment: Path,
) -> None:
    """Every job ends once, with its right result or a cause that is one of our faults; nothing is left."""
    print(f"DISPY_CHAOS_SEED={SEED}")
    (tmp_path / "tmp").mkdir()
    env = {"DISPY_PORT": str(free_base_ports[0]), "DISPY_LOCAL": "never", "TMPDIR": str(tmp_path / "tmp")}
    ports = [str(node.proxy.port) for node in nodes]

    def start_client() -> Any:
        return start_daemon(sys.executable, str(HERE / "client.py"), str(tmp_path), *ports, env=env)

    chaos = Chaos(Random(SEED), nodes, tmp_path, start_client)
    chaos.run(SECONDS)
    (tmp_path / "stop").touch()
    assert chaos.client.wait(120) == 0, chaos.client.output
    print(dict(chaos.done), (tmp_path / "results").stat().st_size)
    check_results(tmp_path)
    for node in nodes:
        node.daemon.wait_for("ready")
        node.daemon.process.send_signal(signal.SIGTERM)
        node.daemon.wait()
        output = "\n".join([*node.outputs, node.daemon.output])
        print(output)
        assert "Traceback" not in output, output
    check_nothing_is_left(tmp_path, environment, chaos.done["client"])


def check_results(folder: Path) -> None:
    """Each reentrant job has one result, and the sum is right; no other job has started twice."""
    lines = [line.split() for line in (folder / "results").read_text().splitlines()]
    results = [(int(number), int(result)) for kind, number, result in lines if kind == "again"]
    numbers = Counter(number for number, _ in results)
    assert set(numbers) == set(range(len(numbers)))
    assert [number for number, count in numbers.items() if count > 1] == []
    assert sum(result for _, result in results) == sum(3 * number + 1 for number in numbers)
    starts = Counter((folder / "starts").read_text().split() if (folder / "starts").exists() else [])
    assert [number for number, count in starts.items() if count > 1] == []
    finished = {number for kind, number, how in lines if kind == "once" and how == "finished"}
    assert finished <= set(starts)
