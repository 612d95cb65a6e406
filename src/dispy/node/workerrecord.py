"""What the daemon keeps of each worker: its socket, its cell, its outputs, and what it was given."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
from typing import Final

from dispy.node.cgroups import Group
from dispy.node.channel import CELL_SIZE, RUNNING, STDOUT_AT
from dispy.node.outbox import Outbox
from dispy.node.replies import Reply

_TAIL_SIZE: Final = 64 << 10


class WorkerRecord:
    """One worker as the daemon sees it."""

    __slots__ = (
        "answered",
        "begun_at",
        "broken",
        "cancels",
        "cell",
        "cell_map",
        "early",
        "expected",
        "fds",
        "fed",
        "fed_at",
        "forked_at",
        "group",
        "limited",
        "memory_limits",
        "number",
        "objects",
        "open",
        "outbox",
        "outputs",
        "pid",
        "punched",
        "rest",
        "seen",
        "socket",
        "speaks",
    )

    def __init__(
        self, number: int, sock: socket.socket, outbox: Outbox, outputs: tuple[int, int], cell_map: mmap.mmap
    ) -> None:
        self.number = number
        self.socket = sock
        self.outbox = outbox
        self.outputs = outputs
        self.cell_map = cell_map
        self.cell = memoryview(cell_map).cast("Q")
        self.pid = 0
        self.forked_at = 0.0
        self.answered = 0
        """Highest sequence that it answered."""
        self.fed = 0
        """Highest sequence that it was given."""
        self.fed_at = 0.0
        self.open = 0
        """Jobs that it was given and that are neither answered nor recalled."""
        self.rest = b""
        self.fds: list[int] = []
        """Descriptors that came and whose reply has not come whole."""
        self.early: list[Reply] = []
        """Answers that came before the fork server reported the fork."""
        self.seen = 0
        """Sequence that the watch saw running, since `begun_at`."""
        self.begun_at = 0.0
        self.punched = [0, 0]
        self.cancels: list[int] = []
        self.limited: tuple[int, str] = (0, "")
        self.memory_limits: dict[int, int] = {}
        """Bytes that jobs may use, by sequence."""
        self.objects: set[bytes] = set()
        """Names of the scattered objects that it has been given."""
        self.group: Group | None = None
        """The control group in which it is, if a job with a memory limit was given to it."""
        self.expected = False
        self.broken = ""
        """Why nothing that it says is read any more; empty: it is."""
        self.speaks = False
        """Among the replies that were read and not delivered is one that ends no job."""

    def running(self) -> int:
        """Sequence of the job that it runs, 0: none; the cell, into which a job can write, is not simply believed."""
        told = int(self.cell[RUNNING])
        if told > self.fed:
            return self.answered + 1 if self.open else 0
        if told > self.answered:
            return told
        return self.seen if self.answered < self.seen <= self.fed else 0

    def extent(self, word: int) -> tuple[int, int, int]:
        """Where the output of its job lies that begins at this word of the cell: descriptor, begin, end."""
        fd = self.outputs[word - STDOUT_AT]
        end = os.fstat(fd).st_size
        return fd, min(self.cell[word], end), end

    def tail(self, word: int) -> bytes:
        """The last of that output."""
        fd, begin, end = self.extent(word)
        at = max(begin, end - _TAIL_SIZE)
        return os.pread(fd, end - at, at)

    def close(self) -> None:
        """Let go of all that the daemon has of it."""
        self.outbox.close()
        self.socket.close()
        self.cell.release()
        self.cell_map.close()
        for fd in (*self.outputs, *self.fds):
            os.close(fd)


def open_record(number: int, loop: asyncio.AbstractEventLoop) -> tuple[WorkerRecord, tuple[int, int]]:
    """What the daemon has of a worker that is to be forked, and the two descriptors that only the worker needs.

    Raises:
        OSError: the machine has not enough of something; nothing is left open.
    """
    with contextlib.ExitStack() as on_error:

        def opened(fd: int) -> int:
            on_error.callback(os.close, fd)
            return fd

        ours, theirs = socket.socketpair()
        on_error.callback(ours.close)
        on_error.callback(theirs.close)
        cell = opened(os.memfd_create("dispy-cell", os.MFD_CLOEXEC))
        os.ftruncate(cell, CELL_SIZE)
        cell_map = mmap.mmap(cell, CELL_SIZE)
        on_error.callback(cell_map.close)
        stdout, stderr = (opened(os.memfd_create(f"dispy-{name}", os.MFD_CLOEXEC)) for name in ("stdout", "stderr"))
        ours.setblocking(False)
        on_error.pop_all()
    record = WorkerRecord(number, ours, Outbox(ours, loop), (stdout, stderr), cell_map)
    return record, (theirs.detach(), cell)
