"""The far end of `dispy up` and `dispy down`: starts a node that stays when its starter goes, and stops it again.

A request is one JSON line on standard input, so that the secret is on no command line; the answer is one on standard
output, behind a mark, because the shells of some machines greet.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psutil

from dispy import settings
from dispy.node.leftovers import start_time

MARK: Final = "dispy-answer "
_LOOK_INTERVAL: Final = 0.1


@dataclass(slots=True)
class Answer:
    """What became of a request."""

    ok: bool
    text: str
    pid: int = 0
    log: str = ""


@dataclass(frozen=True, slots=True)
class Launched:
    """Where the one node is written down that was launched on this machine for a base port and group."""

    record: Path
    log: Path
    prefix: Path

    @classmethod
    def of(cls, base_port: int, group: str) -> Launched:
        """Named after the machine, because machines may share a home directory."""
        name = "-".join([socket.gethostname(), str(base_port), *([quote(group, safe="")] if group else [])])
        directory = settings.state_dir() / "nodes"
        return cls(
            directory / f"{name}.json", directory / f"{name}.log", settings.default_prefix().with_name(f"node-{name}")
        )

    def process(self) -> psutil.Process | None:
        """The node, if it runs."""
        with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):  # no record, or nobody there: no node
            known = json.loads(self.record.read_text())
            process = psutil.Process(known["pid"])
            if start_time(process.pid) == known["began"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def remember(self, pid: int) -> None:
        """Write down the node that was started."""
        self.record.write_text(json.dumps({"pid": pid, "began": start_time(pid)}))

    def last_words(self) -> str:
        """The last line that the node has logged, without time and level."""
        with contextlib.suppress(OSError):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                parts = lines[-1].split(maxsplit=3)
                return parts[3] if len(parts) == 4 and parts[0][:2] == "20" else lines[-1]
        return "it said nothing"


def launch() -> int:
    """Read a request from standard input, do it, answer; returns the exit code."""
    try:
        request = json.loads(sys.stdin.readline())
        launched = Launched.of(request["base_port"], request["group"])
        if request["action"] == "up":
            answer = _start(launched, request)
        else:
            answer = _stop(launched, now=request["now"], wait=request["wait"])
    except (OSError, ValueError, KeyError, TypeError, psutil.Error) as error:
        answer = Answer(False, f"{type(error).__name__}: {error}")
    print(MARK + json.dumps(asdict(answer)), flush=True)  # noqa: T201 - this is the answer
    return 0 if answer.ok else 1


def _start(launched: Launched, request: dict[str, Any]) -> Answer:
    there = launched.process()
    if there is not None:
        return Answer(True, f"a node runs already (process {there.pid})", there.pid, str(launched.log))
    launched.record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = list(request["options"])
    if not any(option.startswith(("--dest_path_prefix", "--dest-path-prefix")) for option in options):
        options += ["--dest_path_prefix", str(launched.prefix)]
    with _notices() as notices, open(launched.log, "ab") as log:
        environment = {**os.environ, **request["environment"], "NOTIFY_SOCKET": notices.getsockname()}
        process = subprocess.Popen(
            [sys.executable, "-m", "dispy.node", "--daemon", *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        launched.remember(process.pid)
        deadline = time.monotonic() + request["wait"]
        while time.monotonic() < deadline:
            if _is_ready(notices):
                return Answer(True, f"process {process.pid}: {launched.last_words()}", process.pid, str(launched.log))
            if process.poll() is not None:
                launched.record.unlink(missing_ok=True)
                return Answer(False, f"the node ended at once: {launched.last_words()}", log=str(launched.log))
    process.terminate()
    launched.record.unlink(missing_ok=True)
    text = f"the node was not ready within {request['wait']:g} s and was ended: {launched.last_words()}"
    return Answer(False, text, log=str(launched.log))


def _stop(launched: Launched, *, now: bool, wait: float) -> Answer:
    process = launched.process()
    if process is None:
        return Answer(True, "no node runs there that `dispy up` has started")
    process.send_signal(signal.SIGTERM if now else signal.SIGINT)
    deadline = time.monotonic() + wait
    while launched.process() is not None:
        if time.monotonic() > deadline:
            doing = "has not ended" if now else "finishes its jobs first (--now ends them)"
            text = f"process {process.pid} was told to end and {doing}"
            return Answer(False, text, process.pid, str(launched.log))
        time.sleep(_LOOK_INTERVAL)
    launched.record.unlink(missing_ok=True)
    return Answer(True, f"process {process.pid} has ended", process.pid, str(launched.log))


@contextlib.contextmanager
def _notices() -> Iterator[socket.socket]:
    """A socket to which the node says that it is ready, as to a service manager."""
    directory = tempfile.mkdtemp(prefix="dispy-")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(os.path.join(directory, "notices"))
            sock.settimeout(_LOOK_INTERVAL)
            yield sock
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _is_ready(notices: socket.socket) -> bool:
    try:
        return b"READY=1" in notices.recv(4096)
    except TimeoutError:
        return False
