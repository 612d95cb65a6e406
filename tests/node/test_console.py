"""The console of a node: what it shows, by value, and a real node in a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispy.model import AvailInfo, Holder, NodeInfo, NodeStatus, ProcessId
from dispy.node.steering import status_rows


def info(cpus: int, **more: Any) -> NodeInfo:
    return NodeInfo(ProcessId("a" * 32), "alpha", cpus, "linux", (), **more)


def test_what_is_shown_of_a_node_in_use() -> None:
    holder = Holder("anna", "box", 7, "run.py", since=1000.0)
    status = NodeStatus(
        info=info(2, holder=holder),
        cpus=2,
        window="from 17:00, no new jobs from 06:30, jobs end at 07:00",
        waiting=1,
        computations=(("compute", "ready"),),
        queued=5,
        given=2,
        workers=2,
        unacknowledged=1,
        done=10,
        served=3,
        avail=AvailInfo(cpu=50.0, memory=3 << 30, disk=5 * 10**9, swap=100.0),
        now=1000.0 + 3725,
    )
    rows = dict(status_rows(status))
    assert rows["CPUs"] == "2 CPUs offered"
    assert rows["service"] == "from 17:00, no new jobs from 06:30, jobs end at 07:00"
    assert rows["used by"].startswith("anna@box (run.py, process 7) since ")
    assert rows["used by"].endswith(", 1:02:05 h")
    assert rows["in line"] == "1 more program"
    assert rows["computation"] == "compute (ready)"
    assert rows["jobs here"] == "2 at 2 workers, 5 queued"
    assert rows["jobs done"] == "10, 1 of them not yet fetched"
    assert rows["free"] == "CPU 50 %, memory 3.0 GiB, disk 5.0 GB"


def test_what_is_shown_of_a_node_whose_program_is_gone() -> None:
    holder = Holder("anna", "box", 7, "run.py", since=1000.0, gone=True, results=2)
    rows = status_rows(NodeStatus(info(2, holder=holder), 2, now=1010.0))
    assert rows[2] == (
        "",
        "that program is gone or cut off, 2 results wait for `dispy recover` there; "
        "`release` frees the node when no job runs any more",
    )


def test_what_is_shown_of_a_free_node() -> None:
    rows = status_rows(NodeStatus(info(0, closed="its owner has stopped it"), 1))
    assert ("jobs here", "none") in rows
    assert ("jobs done", "0") in rows
    assert rows[:2] == [("CPUs", "no CPU offered: its owner has stopped it"), ("used by", "nobody")]


class Terminal:
    """A node in the foreground of a terminal of its own."""

    def __init__(self, *options: str, env: dict[str, str]) -> None:
        self.fd, theirs = pty.openpty()
        # A session of its own whose terminal it is: only then is it in the foreground.
        code = (
            "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
            "from dispy.node.cli import main; main(sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *options],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "COLUMNS": "100", "TERM": "dumb", **env},
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def wait_for(self, text: str, timeout: float = 15.0) -> None:
        """Read until the text has come; what is read is forgotten."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                pytest.fail(f"{text!r} did not come; there is:\n{self.seen}")
            try:
                self.seen += os.read(self.fd, 4096).decode("utf-8", "replace")
            except OSError:
                pytest.fail(f"it ended before {text!r} came:\n{self.seen}")
        self.seen = self.seen.partition(text)[2]

    def type(self, line: str) -> None:
        os.write(self.fd, f"{line}\n".encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal(tmp_path: Path, free_base_port: int) -> Iterator[Terminal]:
    """A node with two CPUs, ready."""
    options = ("--cpus", "1", "--name", "alpha", "--dest_path_prefix", str(tmp_path / "p"))
    node = Terminal(*options, env={"DISPY_PORT": str(free_base_port)})
    try:
        node.wait_for("Type help")
        yield node
    finally:
        node.close()


def test_a_node_obeys_what_is_typed(terminal: Terminal) -> None:
    terminal.type("help")
    terminal.wait_for("release   let go")
    terminal.type("")
    terminal.wait_for("1 CPU offered")
    terminal.wait_for("nobody")
    terminal.type("stop")
    terminal.wait_for("no CPU offered: its owner has stopped it")
    terminal.type("cpus 1")
    terminal.wait_for("noted: it will offer 1 CPU, now it offers none: its owner has stopped it")
    terminal.type("start")
    terminal.wait_for("1 CPU offered")
    terminal.type("cpus")
    terminal.wait_for("This node offers 1 CPU. How many shall it offer")
    terminal.type("many")
    terminal.wait_for("'many' is no number of CPUs")
    terminal.type("cpus 9999")
    terminal.wait_for("to offer more add --oversubscribe")
    terminal.type("cpus 1")
    terminal.wait_for("1 CPU offered")
    terminal.type("hours 8:00")
    terminal.wait_for("say START STOP")
    terminal.type("hours always")
    terminal.wait_for("1 CPU offered")
    terminal.type("exit now")
    terminal.wait_for("exit stands alone, without 'now': nothing was done")
    terminal.type("release")
    terminal.wait_for("nobody uses this node")
    terminal.type("quit")
    terminal.wait_for("ended: it was told to end now")
    assert terminal.process.wait(10) == 0


def test_exit_ends_a_free_node(terminal: Terminal) -> None:
    terminal.type("exit")
    terminal.wait_for("ending after the jobs that are here")
    assert terminal.process.wait(10) == 0
