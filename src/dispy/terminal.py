"""The terminal in whose foreground a daemon runs: lines that its owner types, read beside everything else."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Final

_BUFFER_SIZE: Final = 4096


def is_wanted() -> bool:
    """Whether somebody can type: reading in the background would stop the process."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


class Terminal:
    """Reads lines and obeys them. `start`, then `stop`. A daemon says what the words mean (`obey`)."""

    greeting = ""

    def __init__(self, fd: int = 0, say: Callable[[str], None] | None = None) -> None:
        self._fd = fd
        self._say = say or _print
        self._rest = b""

    def start(self) -> None:
        """Begin to read."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_readable)
        self._say(self.greeting)

    def stop(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._fd)

    def obey(self, line: str) -> None:
        """Do what a line says."""
        raise NotImplementedError

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fd, _BUFFER_SIZE)
        except OSError:  # the terminal is gone; SIGHUP says what that means
            data = b""
        if not data:
            self.stop()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.obey(line.decode("utf-8", "replace"))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
