"""What a killed daemon left is found and ended; a predecessor that ignores SIGTERM as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dispy.errors import NodeError
from dispy.node import leftovers, workdir
from dispy.node.workdir import Prefix

SLEEPER = "import time; print('up', flush=True); time.sleep(100)"
STUBBORN = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
os.write(lock, f"{os.getpid()}\\n".encode())
print("up", flush=True)
time.sleep(100)
"""


def start(code: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.stdout.close()
    return process


def test_a_marked_process_is_ended_and_no_other() -> None:
    marked = start(SLEEPER, env={leftovers.MARK: "abc"})
    other = start(SLEEPER, env={leftovers.MARK: "abcd"})
    try:
        assert leftovers.marked(["abc"]) == [marked.pid]
        assert leftovers.end({}, ["abc"]) == 1
        assert marked.wait(5) == -9
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_process_with_another_start_time_is_somebody_else() -> None:
    process = start(SLEEPER)
    began = leftovers.start_time(process.pid)
    assert began is not None
    try:
        assert leftovers.end({process.pid: began - 1}, []) == 0
        assert process.poll() is None
    finally:
        assert leftovers.end({process.pid: began}, []) == 1
        process.wait(5)


def test_what_was_written_down_is_ended_at_the_next_start(tmp_path: Path) -> None:
    first = Prefix.claim(tmp_path)
    process = start(SLEEPER, env={leftovers.MARK: "abc"})
    first.add_mark("abc")
    (tmp_path / "jobs/x").mkdir()
    first.add_directory(tmp_path / "jobs/x")
    first.release()
    Prefix.claim(tmp_path).release()
    assert process.wait(5) == -9
    assert not (tmp_path / "jobs/x").exists()


def test_a_predecessor_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workdir, "_END_TIMEOUT", 0.2)
    process = start(STUBBORN, str(tmp_path / "lock"))
    try:
        with pytest.raises(NodeError, match=f"process {process.pid}"):
            Prefix.claim(tmp_path)
        Prefix.claim(tmp_path, clean=True).release()
        assert process.wait(5) == -9
    finally:
        process.kill()
        process.wait()
