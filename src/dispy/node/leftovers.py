"""What a daemon that was killed has left running, found by what it had written down.

Processes are named by pid and start time; what they started carries the fork server's mark in its environment,
wherever it went.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Final

MARK: Final = "DISPY_FORK_SERVER"
"""Variable in the environment of a fork server and of all below it."""
_TIMEOUT: Final = 5.0
_INTERVAL: Final = 0.01


def start_time(pid: int) -> int | None:
    """When a process began, in ticks since boot: with the pid it names a process for good."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def marked(marks: Iterable[str]) -> list[int]:
    """Processes that carry one of the marks."""
    words = {f"{MARK}={mark}".encode() for mark in marks}
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            # Processes of others cannot be read, and others end while we look.
            with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
                if not words.isdisjoint(file.read().split(b"\0")):
                    found.append(int(entry))
    return found


def end(processes: Mapping[int, int], marks: Iterable[str]) -> int:
    """Kill these processes (start times by pid) and all that is marked, until none is left; returns how many."""
    marks = tuple(marks)
    killed = set()
    for pid, began in processes.items():
        if began and start_time(pid) == began:
            killed.add(pid)
            _kill(pid)
    until = time.monotonic() + _TIMEOUT
    while marks and (left := marked(marks)) and time.monotonic() < until:
        killed.update(left)
        for pid in left:
            _kill(pid)
        time.sleep(_INTERVAL)
    return len(killed)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or belongs to another user
        os.kill(pid, signal.SIGKILL)
