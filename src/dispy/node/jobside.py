"""The names that a running job sees without importing anything, and what it says to the daemon while it runs.

Functions find them as globals, programs as environment variables.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import stat
import threading
import time
import types
from collections.abc import Mapping, Sequence
from typing import Final

from dispy import namespace
from dispy.buffers import Readable
from dispy.node import calls, freememory
from dispy.node.channel import INLINE, PROVISIONAL, REPLY, RUNNING, SENT_FILE, send_with

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

    def say(self, ending: int, body: bytes, fds: Sequence[int] = (), apart: int = 0) -> bool:
        """Send something that does not end the running job.

        Args:
            ending: what it is.
            body: what is said, unless it is the content of a descriptor.
            fds: what goes along.
            apart: bytes of the body when it is the content of a descriptor.

        Returns:
            False when no job runs in this process.
        """
        if os.getpid() != self._pid:
            return False
        with self._lock:
            sequence = self._cell[RUNNING]
            if not sequence:
                return False
            size = len(body) or apart
            frame = REPLY.pack(sequence, ending, len(fds), 0, size, 0, 0, 0, 0.0, time.time()) + body
            if fds:
                send_with(self._socket, frame, fds)
            else:
                self._socket.sendall(frame)
        return True

    def silence(self) -> None:
        """Nothing more is said, by whatever thread."""
        self._lock.acquire()


WHOLE_FRAMES: Final[tuple[types.CodeType, ...]] = (Speaker.say.__code__, send_with.__code__)
"""Code that must not be interrupted halfway: the daemon would read nonsense."""

_speaker: Speaker | None = None
_directory = ""
"""Of the computation."""


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
    parts: list[Readable] = data if isinstance(data, list) else [data]
    size = sum(map(len, parts))
    if size <= INLINE:
        return 0 if _speaker.say(PROVISIONAL, b"".join(parts)) else -1
    fd = freememory.file_of(parts, size)
    try:
        return 0 if _speaker.say(PROVISIONAL, b"", [fd], size) else -1
    finally:
        os.close(fd)


def dispy_send_file(path: str, relay: bool = False, timeout: float | None = MESSAGE_TIMEOUT) -> int:
    """Copy a file to the directory in which the client's program runs, and wait until it is there.

    Args:
        path: below the computation's directory it keeps its place, else only its name.
        relay: accepted for old programs.
        timeout: seconds to wait; None waits as long as it takes.

    Returns:
        0 when the client has it; -1 when not, which the node's console tells with the reason where it is known here.
    """
    if _speaker is None:
        return -1
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe may wait for ever
            raise ValueError("it is not a regular file")
        with open(path, "rb", buffering=0) as file:
            return _send_file(_speaker, path, file, timeout)
    except (OSError, ValueError, TypeError) as error:
        logging.getLogger(LOGGER_NAME).warning("%s is not sent: %s", path, error)
        return -1


def _send_file(speaker: Speaker, path: str, file: io.FileIO, timeout: float | None) -> int:
    status = os.fstat(file.fileno())
    import hashlib  # loads OpenSSL, which most jobs do not need

    digest = hashlib.file_digest(file, "sha256").hexdigest()
    place = os.path.relpath(os.path.realpath(path), _directory)
    if place.startswith(os.pardir + os.sep):
        place = os.path.basename(path)
    said = {"path": place, "digest": digest, "size": status.st_size, "mode": status.st_mode, "mtime": status.st_mtime}
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            if not speaker.say(SENT_FILE, json.dumps(said).encode(), [file.fileno(), theirs.fileno()]):
                return -1
        ours.settimeout(timeout)
        return 0 if ours.recv(1) else -1


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
    global _directory
    _directory = os.path.realpath(job_names.get("dispy_job_path", os.curdir))
    functions = {function.__name__: function for function in (dispy_provisional_result, dispy_send_file)}
    namespace.inject({**job_names, **functions, "dispynode_logger": console_logger(console)})


def give_environment(job_names: Mapping[str, str], directory: str) -> None:
    """For programs: put the names into the environment and the computation's directory first on PATH."""
    os.environ.update(job_names)
    os.environ["PATH"] = os.pathsep.join(filter(None, (directory, os.environ.get("PATH", ""))))
