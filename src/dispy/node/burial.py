"""The end of a fork server: its guard is reaped; what came to the daemon because the guard did not live is ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Collection
from typing import Final

from dispy.node import linux
from dispy.node.leftovers import MARK

_GUARD_TIMEOUT: Final = 5.0
_SWEEP_INTERVAL: Final = 0.005


class Burial:
    """What happens once after a fork server was told to end, or has ended. On the event loop's thread."""

    def __init__(
        self, guard: subprocess.Popen[bytes], mark: str, pids: Collection[int], done: Callable[[], None]
    ) -> None:
        """`mark` is in the environment of all; `pids` are those known; `done` is called when none is left."""
        self._guard = guard
        self._mark = f"{MARK}={mark}".encode()
        self._pids = pids
        self._done = done
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        """Reap the guard as soon as it has ended all the others."""
        guard = self._guard
        if guard.poll() is not None:
            self._sweep()
            return
        pidfd = os.pidfd_open(guard.pid)

        def reap() -> None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
            timer.cancel()
            guard.wait()
            self._sweep()

        timer = self._loop.call_later(_GUARD_TIMEOUT, guard.kill)
        self._loop.add_reader(pidfd, reap)

    def _sweep(self) -> None:
        """End what came to this process because the guard did not live to do it; again while something is dying."""
        found = False
        for pid in linux.children():
            with contextlib.suppress(OSError):  # it is gone by now, or runs as somebody else
                if self._came_from_it(pid):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    found = True
        # A process that is not a zombie yet may still leave its children to us.
        if found or not all(map(linux.is_gone, self._pids)):
            self._loop.call_later(_SWEEP_INTERVAL, self._sweep)
        else:
            self._done()

    def _came_from_it(self, pid: int) -> bool:
        """Whether a child of this process was below the guard, which began a session. Raises OSError: it is gone."""
        # The environment of what is dying cannot be read any more, and the fork server is not known while it starts.
        if os.getsid(pid) == self._guard.pid or (pid in self._pids and linux.is_gone(pid)):
            return True
        with open(f"/proc/{pid}/environ", "rb") as file:
            return self._mark in file.read().split(b"\0")
