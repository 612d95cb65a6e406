"""Reaching other machines by the system's ssh, many at a time: what is run there, and what came of it.

The far end is `dispy.node.launch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dispy.errors import SettingsError
from dispy.node.launch import MARK

CONNECT_TIMEOUT = 10
"""Seconds that a machine has to answer ssh, if the time for all is not shorter."""
ENVIRONMENT = "$HOME/.local/share/dispy"
"""Where the far side's own environment is made."""
_NOISE = ("warning: permanently added", "** warning", "pseudo-terminal")
"""Lines of ssh that are no errors."""


@dataclass(frozen=True, slots=True)
class Way:
    """How machines are reached and what is run there."""

    ssh_options: tuple[str, ...]
    command: str
    timeout: float
    parallel: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one machine."""

    host: str
    ok: bool
    text: str
    pid: int = 0
    log: str = ""


def far_command(python: str | None, command: str | None, install: str | None) -> str:
    """What the far side's shell is to run: a dispy that is told, or one that is found there, or one that is made."""
    if command:
        return f"exec {command} --launch"
    if python:
        return f"exec {shlex.quote(python)} -m dispy.node.cli --launch"
    make = ""
    if install:
        make = (
            f'python3 -m venv "{ENVIRONMENT}" >&2 && "{ENVIRONMENT}/bin/pip" install -q {shlex.quote(install)} >&2 '
            f'</dev/null && exec "{ENVIRONMENT}/bin/python" -m dispy.node.cli --launch; exit 1; '
        )
    script = (
        f'for p in {shlex.quote(sys.executable)} "{ENVIRONMENT}/bin/python" python3 python; do '
        'if "$p" -c "import dispy.node.launch" >/dev/null 2>&1 </dev/null; then '
        'exec "$p" -m dispy.node.cli --launch; fi; done; '
        'for c in dispynode "$HOME/.local/bin/dispynode" /opt/dispy/bin/dispynode; do '
        'if command -v "$c" >/dev/null 2>&1; then exec "$c" --launch; fi; done; '
        f"{make}"
        'echo "no dispy was found there: install it (--install dispy), or say where it is with --python" >&2; exit 127'
    )
    return f"exec sh -c {shlex.quote(script)}"


async def reach_all(
    hosts: Sequence[str], request: dict[str, Any], way: Way, tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """Send the request to all machines, so many at a time; `tell` hears of each as soon as it is over.

    Raises:
        SettingsError: there is no ssh here.
    """
    if shutil.which("ssh") is None:
        raise SettingsError("there is no ssh on this machine; install it (openssh-client)")
    turns = asyncio.Semaphore(way.parallel)

    async def reach(host: str) -> Outcome:
        async with turns:
            outcome = await _reach(host, request, way)
        tell(outcome)
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(reach(host)) for host in hosts]
    return [task.result() for task in tasks]


async def _reach(host: str, request: dict[str, Any], way: Way) -> Outcome:
    connect = f"ConnectTimeout={max(1, min(CONNECT_TIMEOUT, round(way.timeout)))}"
    words = ["ssh", "-T", "-o", "BatchMode=yes", "-o", connect, *way.ssh_options, "--", host, way.command]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        async with asyncio.timeout(way.timeout):
            out, err = await process.communicate(json.dumps(request).encode() + b"\n")
    except TimeoutError:
        return Outcome(host, False, f"nothing came back within {way.timeout:g} s")
    finally:
        if process.returncode is None:
            # What ssh has started (a proxy command, say) is in its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()
    return outcome_of(host, out.decode(errors="replace"), err.decode(errors="replace"), process.returncode or 0)


def outcome_of(host: str, out: str, err: str, code: int) -> Outcome:
    """What the far side answered, or else the first line that tells why not."""
    for line in out.splitlines():
        if line.startswith(MARK):
            with contextlib.suppress(ValueError, TypeError):  # half a line is no answer
                return Outcome(host, **json.loads(line.removeprefix(MARK)))
    said = [line.strip() for line in err.splitlines() if line.strip() and not line.lower().startswith(_NOISE)]
    return Outcome(host, False, said[0] if said else f"ssh ended with {code} and said nothing")
