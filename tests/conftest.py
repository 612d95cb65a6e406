"""What every test can rely on: an environment of its own, and a check that it leaves nothing behind.

Fixtures for tests that need real processes are here too; network namespaces are in `tests/e2e/conftest.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

REQUIRE_REAL = os.environ.get("DISPY_REQUIRE_REAL", "") not in {"", "0"}
PORTAL_THREADS = ("dispy-loop", "dispy-callbacks", "dispy-files-")
"""The threads of `dispy.portal` live as long as their process."""
PORTAL_DESCRIPTORS = ["anon_inode:[eventpoll]", "socket", "socket", "socket", "socket"]
SETTLE_TIMEOUT = 5.0
"""Seconds that threads, processes and connections get to be gone after a test."""
READY = "ready"
"""Stands in the line that dispynode prints when it can be used."""

hypothesis.settings.register_profile("dispy", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("dispy")


def pytest_configure() -> None:
    # Shells start what they run in the background with SIGINT ignored, and that would be inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Processes that lose their parent become children of the test run, so that the leak check sees them.
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it; elsewhere the check sees less
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With DISPY_REQUIRE_REAL=1 a test marked `real` must run: its skip is a failure."""
    report: Any = yield
    if REQUIRE_REAL and report.skipped and item.get_closest_marker("real"):
        report.outcome = "failed"
        report.longrepr = f"DISPY_REQUIRE_REAL=1, but: {report.longrepr[-1]}"
    return report


# ---- every test ----


@pytest.fixture(autouse=True)
def environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, leaves_nothing: None
) -> Path:
    """A home directory of its own, no settings from outside, traffic on loopback only; its home directory."""
    for name in list(os.environ):
        if name.startswith("DISPY_"):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home", numbered=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / ".local/state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / ".local/share"))
    monkeypatch.setenv("DISPY_INTERFACES", "lo")
    return home


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Fails a test that leaves a thread, a process or a descriptor (socket, event loop, file) behind."""
    threads, processes, descriptors = set(threading.enumerate()), _children(), _descriptors()
    portal_before = _portal_is_here()
    yield
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while True:
        left = _left_threads(threads) + _left_processes(processes)
        if not left:
            left = _left_descriptors(descriptors, portal_is_new=_portal_is_here() and not portal_before)
        if not left:
            return
        if time.monotonic() > deadline:
            pytest.fail("the test left behind: " + "; ".join(left))
        gc.collect()
        time.sleep(0.01)


def _portal_is_here() -> bool:
    return any(thread.name == PORTAL_THREADS[0] for thread in threading.enumerate())


def _left_threads(before: set[threading.Thread]) -> list[str]:
    return [
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread not in before and not thread.name.startswith(PORTAL_THREADS)
    ]


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _left_processes(before: set[psutil.Process]) -> list[str]:
    left = []
    for process in _children() - before:
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):  # it ended while we looked
            if process.status() == psutil.STATUS_ZOMBIE:
                if process.ppid() == os.getpid():
                    os.waitpid(process.pid, os.WNOHANG)
            elif "resource_tracker" not in " ".join(process.cmdline()):
                left.append(f"process {process.pid}: {' '.join(process.cmdline()) or process.name()}")
    return left


def _descriptors() -> dict[int, str]:
    """What the open descriptors are; nothing where there is no /proc."""
    found: dict[int, str] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed already
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _left_descriptors(before: dict[int, str], *, portal_is_new: bool) -> list[str]:
    left = [link for fd, link in _descriptors().items() if before.get(fd) != link]
    if portal_is_new:
        for kind in PORTAL_DESCRIPTORS:
            of_portal = next((link for link in left if link.startswith(kind)), None)
            if of_portal:
                left.remove(of_portal)
    return [f"descriptor of {link}" for link in left if not link.startswith(("/dev/", "/proc/"))]


# ---- tests that wait, and tests with real processes ----


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """`wait_until(predicate, timeout=10)`: its first true value, or a failure that shows the last one."""

    def wait(predicate: Callable[[], Any], timeout: float = 10.0) -> Any:
        deadline = time.monotonic() + timeout
        while not (value := predicate()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout} s; the last value was {value!r}")
            time.sleep(0.01)
        return value

    return wait


@pytest.fixture
def free_base_port() -> int:
    """A base port: it and the two above are free, for TCP and UDP; parallel test runs have ranges of their own."""
    return _find_base_port()


@pytest.fixture
def free_base_ports() -> list[int]:
    """Four of them."""
    return [_find_base_port() for _ in range(4)]


def _find_base_port() -> int:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(100):
        base = 20000 + worker % 4 * 3000 + secrets.randbelow(1000) * 3
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        if all(_is_free(port, kind) for port in range(base, base + 3) for kind in kinds):
            return base
    pytest.fail("no three ports in a row are free")


def _is_free(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


class Daemon:
    """A process that a test started; its output is read as it comes."""

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        self.command = list(command)
        self.process = subprocess.Popen(
            self.command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self.pid = self.process.pid
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name=f"output-of-{self.pid}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        return "\n".join(self.lines)

    def wait_for(self, text: str, timeout: float = 15.0) -> str:
        """The first line that contains the text; fails when the process or the time ends before it."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None or self._ended, timeout)
            line = found()
        if line is None:
            why = f"it ended with {self.process.wait()}" if self._ended else f"{timeout} s are over"
            pytest.fail(f"{' '.join(self.command)} did not print {text!r} ({why}); its output:\n{self.output}")
        return line

    def wait(self, timeout: float = 15.0) -> int:
        """Wait for its end; returns the exit code (negative: the signal)."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{' '.join(self.command)} still runs after {timeout} s; its output:\n{self.output}")
        self._reader.join(timeout)
        return code

    def close(self) -> None:
        """End it (SIGTERM, then SIGKILL) if it still runs, and forget it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(SETTLE_TIMEOUT)
        if self._reader.is_alive():
            os.killpg(self.pid, signal.SIGKILL)  # it leads its own group; only what it started can be left there
            self._reader.join()
            pytest.fail(f"{' '.join(self.command)} left processes that hold its output")
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start_daemon() -> Iterator[Callable[..., Daemon]]:
    """`start_daemon(*command, env={...})`: starts a process that is ended after the test."""
    daemons: list[Daemon] = []

    def start(*command: str, env: dict[str, str] | None = None) -> Daemon:
        daemons.append(Daemon(command, {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}))
        return daemons[-1]

    yield start
    for daemon in reversed(daemons):
        daemon.close()


@pytest.fixture
def dispynode(start_daemon: Callable[..., Daemon], tmp_path: Path, free_base_port: int) -> Callable[..., Daemon]:
    """`dispynode(*options, name=…)`: a real node daemon, in its own directory, ready to be used.

    Other keywords: `base_port` (else the test's `free_base_port`), `env`, `inside` (a command that enters a
    namespace), `ready=False` to not wait. Further nodes on one base port take a free TCP port.
    """
    started = 0

    def start(
        *options: str,
        name: str = "",
        base_port: int | None = None,
        env: dict[str, str] | None = None,
        inside: Sequence[str] = (),
        ready: bool = True,
    ) -> Daemon:
        nonlocal started
        started += 1
        name = name or f"node{started}"
        daemon = start_daemon(
            *(*inside, sys.executable, "-m", "dispy.node", "--daemon", "--name", name),
            *("--dest_path_prefix", str(tmp_path / f"prefix-{name}")),
            *options,
            env={"DISPY_PORT": str(base_port or free_base_port), **(env or {})},
        )
        if ready:
            daemon.wait_for(READY)
        return daemon

    return start


@pytest.fixture
def dispyscheduler(start_daemon: Callable[..., Daemon], tmp_path: Path, free_base_port: int) -> Callable[..., Daemon]:
    """`dispyscheduler(*options, env={...})`: a real shared scheduler with the directory `tmp_path / "scheduler"`, ready
    for programs at the port two above the test's `free_base_port`."""

    def start(*options: str, env: dict[str, str] | None = None, ready: bool = True) -> Daemon:
        daemon = start_daemon(
            *(sys.executable, "-m", "dispy.sharing.cli", "--daemon"),
            *("--dest_path_prefix", str(tmp_path / "scheduler")),
            *options,
            env={"DISPY_PORT": str(free_base_port), **(env or {})},
        )
        if ready:
            daemon.wait_for(READY)
        return daemon

    return start
