"""The names that a running job sees without importing anything, and what it says to the daemon while it runs.

Functions find them as globals, programs as environment variables.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import threading
import time
import types
from collections.abc import Mapping, Sequence
from typing import Final

from dispy import namespace
from dispy.node import calls, linux
from dispy.node.channel import INLINE, PROVISIONAL, REPLY, RUNNING, send_with

LOGGER_NAME: Final = "dispynode"
MESSAGE_TIMEOUT: Final = 10.0
"""Seconds that a job waits by default until what it sends has arrived (the original's MsgTimeout)."""


class Speaker:
    """The worker's own voice beside the answers to its jobs; jobs may use it from any of their threads."""

    def __init__(self, sock: socket.socket, cell: memoryview) -> None:
        self._socket = sock
        self._cell = cell
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def say(self, ending: int, body: bytes, fds: Sequence[int] = ()) -> bool:
        """Send something that does not end the running job.

        Returns:
            False when no job runs in this process.
        """
        if os.getpid() != self._pid:
            return False
        with self._lock:
            sequence = self._cell[RUNNING]
            if not sequence:
                return False
            frame = REPLY.pack(sequence, ending, len(fds), 0, len(body), 0, 0, 0, 0.0, time.time())
            if ending == PROVISIONAL and fds:
                send_with(self._socket, frame, fds)
            elif fds:
                send_with(self._socket, frame + body, fds)
            else:
                self._socket.sendall(frame + body)
        return True

    def silence(self) -> None:
        """Nothing more is said, by whatever thread."""
        self._lock.acquire()


WHOLE_FRAMES: Final[tuple[types.CodeType, ...]] = (Speaker.say.__code__, send_with.__code__)
"""Code that must not be interrupted halfway: the daemon would read nonsense."""

_speaker: Speaker | None = None


def speak_through(speaker: Speaker) -> None:
    """This process runs jobs from now on, and what they say goes this way."""
    global _speaker
    _speaker = speaker


def dispy_provisional_result(result: object, relay: bool = False, timeout: float = MESSAGE_TIMEOUT) -> int:
    """Give the client an interim result; the job goes on.

    Args:
        result: whatever can be pickled.
        relay, timeout: accepted for old programs; it is handed over at once.

    Returns:
        0 when it is on its way, -1 when no job runs here (in setup, or in a process that the job started).

    Raises:
        UnsendableError: it cannot be pickled; the message names the part.
    """
    if _speaker is None:
        return -1
    data = calls.dumps_result(result)
    if len(data) <= INLINE:
        return 0 if _speaker.say(PROVISIONAL, data) else -1
    fd = linux.memory_file("dispy-result", data)
    try:
        return 0 if _speaker.say(PROVISIONAL, data, [fd]) else -1
    finally:
        os.close(fd)


def console_logger(fd: int) -> logging.Logger:
    """A logger that writes to the node's console, not to the job's output."""
    logger = logging.getLogger(LOGGER_NAME)
    stream = io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s job: %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    return logger


def give_names(job_names: Mapping[str, str], console: int) -> None:
    """For functions: put the names where their code finds them."""
    functions = {function.__name__: function for function in (dispy_provisional_result,)}
    namespace.inject({**job_names, **functions, "dispynode_logger": console_logger(console)})


def give_environment(job_names: Mapping[str, str], directory: str) -> None:
    """For programs: put the names into the environment and the computation's directory first on PATH."""
    os.environ.update(job_names)
    os.environ["PATH"] = os.pathsep.join(filter(None, (directory, os.environ.get("PATH", ""))))
