"""How many fork servers start at a time on a machine with many nodes.

Each node lets few of its own start at a time (`startgate.py`). Two hundred nodes of one machine that get their first
jobs at once would still take every CPU, and their daemons would not be heard of for seconds. So the nodes of one user
share some files, each locked by a node while a fork server of it starts. A lock goes with its process, however that
ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

HOLD_TIMEOUT: Final = 1.0
"""Seconds after which another node may start one although this one has not come to its end."""
WAIT_TIMEOUT: Final = 60.0
"""Seconds after which a fork server starts although the others have not come to their ends."""
LEAST_INTERVAL: Final = 0.02
"""Seconds between looks whether it is this node's turn."""
LONGEST_INTERVAL: Final = 2.0
"""The same after a while: two hundred nodes that look five times a second take as much as what they wait for."""
_PART: Final = 0.1
"""So much of the time that was waited may be waited in vain."""


class Crowd:
    """The nodes of a user on a machine. To be used on the event loop's thread."""

    def __init__(self, directory: Path, most: int, wait_timeout: float = WAIT_TIMEOUT) -> None:
        """`directory` is where the files are; what cannot be made there limits nothing."""
        self._directory = directory
        self._most = most
        self._wait_timeout = wait_timeout

    async def enter(self) -> Callable[[], None]:
        """Wait until fewer than so many start; returns what is to be called at the end, once or more."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            while (lock := self._lock()) is None:
                waited = loop.time() - began
                if waited >= self._wait_timeout:
                    break
                await asyncio.sleep(look_interval(waited))
        except OSError:  # a disk that is full or not ours: without files, each node limits itself alone
            lock = None
        return _Hold(lock).end

    def _lock(self) -> int | None:
        """A descriptor of a file that is locked by it; None if all are locked by others."""
        for number in range(self._most):
            fd = os.open(self._directory / f"start-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
            except OSError:
                os.close(fd)
                raise
            else:
                return fd
        return None


def look_interval(waited: float) -> float:
    """Seconds until the next look of a node that has waited so many."""
    return min(LONGEST_INTERVAL, max(LEAST_INTERVAL, waited * _PART))


class _Hold:
    """A lock that is given back once, by whoever comes first."""

    def __init__(self, lock: int | None) -> None:
        self._lock = lock

    def end(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            # A process that is just being made may have the descriptor too for a moment: unlocked for all of them.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)
