"""Networks that fail while jobs run: silence in one direction, half-open connections, loss, delay, machines that go."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

NAMES: Final = ("n1", "n2", "n3")
SILENCE: Final = 5.0
"""Seconds without a byte after which a node is lost."""
TIMES: Final = 10
"""A promised bound is tested with so many times its value: the machine may be busy."""

ROUNDS = """
import itertools, pathlib, sys, time
import dispy
folder = pathlib.Path(sys.argv[1])
def job(folder, name):
    import os, pathlib, time
    folder = pathlib.Path(folder)
    (folder / f"{name}.{dispy_node_name}").touch()
    try:
        while not (folder / f"{name}.gate").exists():
            time.sleep(0.02)
    except KeyboardInterrupt:
        (folder / f"{name}.stopped").touch()
        raise
    return name
cluster = dispy.JobCluster(job, reentrant=True)
for number in itertools.count():
    while not (folder / f"round-{number}").exists():
        time.sleep(0.02)
    if (folder / f"round-{number}").read_text():
        break
    jobs = [cluster.submit(str(folder), f"{number}-{each}") for each in range(3)]
    print("round", number, [job() for job in jobs], [job.exception for job in jobs], flush=True)
cluster.shutdown()
"""


class Rounds:
    """A program that gives one job to each of three nodes, round after round."""

    def __init__(self, folder: Path, client: Any, wait_until: Callable[..., Any]) -> None:
        self._folder = folder
        self._client = client
        self._wait_until = wait_until
        self._number = -1

    def begin(self, victim: str) -> str:
        """A new round; the name of the job that waits on the victim."""
        self._number += 1
        (self._folder / f"round-{self._number}").touch()
        self._wait_until(lambda: all(list(self._folder.glob(f"{self._number}-*.{name}")) for name in NAMES), timeout=30)
        [path] = self._folder.glob(f"{self._number}-*.{victim}")
        return path.stem

    def run_again(self, job: str, victim: str, *, within: float) -> float:
        """The other jobs end; seconds until this one runs on another node as well."""
        began = time.monotonic()
        for each in range(3):
            if f"{self._number}-{each}" != job:
                (self._folder / f"{self._number}-{each}.gate").touch()
        others = [self._folder / f"{job}.{name}" for name in NAMES if name != victim]
        self._wait_until(lambda: any(path.exists() for path in others), timeout=TIMES * within)
        return time.monotonic() - began

    def end(self, job: str, *, stopped: bool) -> None:
        """All jobs end with their results; the old attempt of this one is told to stop where its node is back."""
        if stopped:
            self._wait_until((self._folder / f"{job}.stopped").exists, timeout=30)
        for each in range(3):
            (self._folder / f"{self._number}-{each}.gate").touch()
        results = [f"{self._number}-{each}" for each in range(3)]
        self._client.wait_for(f"round {self._number} {results} [None, None, None]", timeout=30)

    def finish(self) -> None:
        """No more rounds."""
        (self._folder / f"round-{self._number + 1}").write_text("end")
        assert self._client.wait(20) == 0, self._client.output


def nft(netns: Any, rules: str) -> None:
    """Rules for the switch between client and nodes."""
    subprocess.run(["nsenter", f"--net=/run/netns/{netns.switch}", "nft", rules], check=True, capture_output=True)


def drop(netns: Any, rule: str) -> None:
    """Lose what the rule names until `heal`."""
    nft(
        netns,
        "add table bridge faults; add chain bridge faults f { type filter hook forward priority 0; }; "
        f"add rule bridge faults f {rule} drop",
    )


def heal(netns: Any) -> None:
    nft(netns, "delete table bridge faults")


@pytest.fixture
def node(netns: Any, dispynode: Callable[..., Any]) -> Callable[..., Any]:
    """`node(namespace)`: a node with one CPU in a namespace; started again, it is the same machine after a reboot."""

    def start(name: str) -> Any:
        return dispynode("--cpus", "1", name=name, base_port=9700, inside=netns.inside(name), env=netns.env)

    return start


@pytest.fixture
def program(netns: Any, start_daemon: Callable[..., Any]) -> Callable[..., Any]:
    """`program(text, *arguments)`: a program in the client's namespace."""

    def start(text: str, *arguments: str) -> Any:
        env = {"DISPY_PORT": "9700", "DISPY_LOCAL": "never", **netns.env}
        return start_daemon(*netns.inside("client"), sys.executable, "-c", text, *arguments, env=env)

    return start


@pytest.mark.timeout(240)
def test_nodes_that_fall_silent_vanish_or_come_back(
    netns: Any, node: Callable[..., Any], program: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """One program through all of them: jobs run again where needed, old attempts end when their node is back."""
    daemons = {name: node(name) for name in NAMES}
    rounds = Rounds(tmp_path, program(ROUNDS, str(tmp_path)), wait_until)

    # Killed: the end of its connection and a refused dial say so at once.
    job = rounds.begin("n3")
    daemons["n3"].process.kill()
    took = {"killed": rounds.run_again(job, "n3", within=1.0)}
    rounds.end(job, stopped=False)
    daemons["n3"] = node("n3")

    # Stopped: its kernel answers for it, and it says nothing.
    job = rounds.begin("n2")
    daemons["n2"].process.send_signal(signal.SIGSTOP)
    took["stopped"] = rounds.run_again(job, "n2", within=SILENCE)
    daemons["n2"].process.send_signal(signal.SIGCONT)
    rounds.end(job, stopped=True)

    # What it says does not arrive here.
    job = rounds.begin("n2")
    drop(netns, "iifname p-n2 oifname p-client")
    took["mute"] = rounds.run_again(job, "n2", within=SILENCE)
    heal(netns)
    rounds.end(job, stopped=True)

    # What is said here does not arrive there: the node gives the link up and says so, then nobody answers a dial.
    job = rounds.begin("n1")
    drop(netns, "iifname p-client oifname p-n1")
    took["deaf"] = rounds.run_again(job, "n1", within=2 * SILENCE)
    heal(netns)
    rounds.end(job, stopped=True)

    # The machine is reset: no word of farewell, all processes gone; then a connection that only one side knows.
    job = rounds.begin("n2")
    drop(netns, "iifname p-n2")
    below = psutil.Process(daemons["n2"].pid).children(recursive=True)
    daemons["n2"].process.kill()
    for process in below:
        if process.is_running():
            process.kill()
    psutil.wait_procs(below, timeout=10)
    (tmp_path / f"{job}.n2").unlink()  # it is another node now, which may get the job as well
    daemons["n2"] = node("n2")
    heal(netns)
    took["rebooted"] = rounds.run_again(job, "", within=SILENCE)
    rounds.end(job, stopped=False)
    rounds.begin("n2")
    rounds.end("", stopped=False)
    rounds.finish()
    print({what: round(seconds, 2) for what, seconds in took.items()})


SUMS = """
import sys
import dispy
def double(number, ballast):
    import time
    time.sleep(0.02)
    return 2 * number, dispy_node_name, ballast
cluster = dispy.JobCluster(double, reentrant=True)
print("first", cluster.submit(0, b"")()[0], flush=True)
jobs = [cluster.submit(number, bytes(100_000) if number % 15 == 7 else b"") for number in range(int(sys.argv[1]))]
ended = [job() for job in jobs]
assert not any(job.exception for job in jobs), [job.exception for job in jobs if job.exception]
assert [len(each[2]) for each in ended] == [100_000 if number % 15 == 7 else 0 for number in range(len(ended))]
print("sum", sum(each[0] for each in ended), "on", sorted({each[1] for each in ended}), flush=True)
cluster.shutdown()
"""


def test_a_third_of_all_packets_lost(netns: Any, node: Callable[..., Any], program: Callable[..., Any]) -> None:
    for name in NAMES:
        node(name)
    client = program(SUMS, "30")
    client.wait_for("first 0")
    drop(netns, "numgen random mod 100 < 30")
    client.wait_for(f"sum {30 * 29}", timeout=90)
    heal(netns)
    assert client.wait(20) == 0


@pytest.fixture
def slow_switch(netns: Any, start_daemon: Callable[..., Any]) -> Any:
    """Another switch in place of the network's own: 200 ms each way, every fifth frame twice, every fifth late."""
    places = []
    for name in ("client", *NAMES):
        subprocess.run([*netns.inside(name), "ip", "link", "del", "eth0"], check=True)
        places.append(f"{netns.prefix}-{name}={netns.address(name)}")
    if not Path("/dev/net/tun").exists():
        pytest.skip("a slow network needs /dev/net/tun")
    switch = start_daemon(sys.executable, str(Path(__file__).with_name("tapswitch.py")), "0.2", "0.2", "0.2", *places)
    switch.wait_for("switching")
    return switch


def test_a_slow_network_that_repeats_and_reorders(
    slow_switch: Any, node: Callable[..., Any], program: Callable[..., Any]
) -> None:
    for name in NAMES:
        node(name)
    client = program(SUMS, "30")
    line = client.wait_for(f"sum {30 * 29}", timeout=90)
    assert line.endswith("on ['n1', 'n2', 'n3']")
    assert client.wait(20) == 0


def test_a_client_that_vanishes_leaves_its_nodes_to_the_next(
    netns: Any, node: Callable[..., Any], program: Callable[..., Any], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    """Its machine is gone without a word: the node's end of the connection is silent, then given up."""
    node("n1")
    first = program(ROUNDS, str(tmp_path))
    (tmp_path / "round-0").touch()
    wait_until(lambda: list(tmp_path.glob("0-*.n1")), timeout=20)
    netns.cut("client")
    first.process.kill()
    first.wait()
    netns.join("client")
    for each in range(3):
        (tmp_path / f"0-{each}.gate").touch()
    second = program(SUMS, "3")
    second.wait_for("sum 6 on ['n1']", timeout=TIMES * SILENCE)
    assert second.wait(20) == 0
    assert len(list(tmp_path.glob("0-*.n1"))) == 1, "what had not started is dropped with its client"
