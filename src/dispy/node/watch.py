"""What the daemon keeps of each worker, and the watch over those that start or run.

The watch looks only when there is something to see: at workers that should have started, and at the output of jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from dispy.node import limits, linux
from dispy.node.cgroups import Group
from dispy.node.channel import CELL_SIZE, MEMORY_AT_FORK, RUNNING, STDERR_AT, STDOUT_AT
from dispy.node.deaths import size_words
from dispy.node.outbox import Outbox
from dispy.node.replies import Reply

_INTERVAL: Final = 0.03
_START_TIMEOUT: Final = 10.0
"""Seconds within which a forked worker must run; one that does not hangs on a lock of setup's."""
_KILL_AT: Final = 10
"""Times the output limit at which a job is ended."""


class WorkerRecord:
    """One worker as the daemon sees it."""

    __slots__ = (
        "answered",
        "begun_at",
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
        self.group: Group | None = None
        """The control group in which it is, if a job with a memory limit was given to it."""
        self.expected = False
        self.speaks = False
        """Among the replies that were read and not delivered is one that ends no job."""


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


class Watch:
    """Looks at workers as long as one starts or runs jobs. To be used on the event loop's thread."""

    def __init__(
        self, workers: Mapping[int, WorkerRecord], output_limit: int, send_signal: Callable[[int, int, int], None]
    ) -> None:
        self._workers = workers
        self._output_limit = output_limit
        self._signal = send_signal
        self._timer: asyncio.TimerHandle | None = None
        self.setup_in = "node"
        """Where setup runs: a worker that runs it itself may take its time to start."""

    def wake(self) -> None:
        """There is something to look at again."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        busy = False
        for worker in list(self._workers.values()):
            if not worker.cell[MEMORY_AT_FORK] and worker.forked_at:
                busy = True
                self._look_at_start(worker)
            elif worker.open:
                busy = True
                self._look_at_output(worker)
        if busy:
            self.wake()

    def _look_at_start(self, worker: WorkerRecord) -> None:
        if self.setup_in == "node" and time.monotonic() - worker.forked_at > _START_TIMEOUT:
            worker.forked_at = time.monotonic()
            self._signal(worker.number, 0, signal.SIGKILL)

    def _look_at_output(self, worker: WorkerRecord) -> None:
        cell = worker.cell
        running = cell[RUNNING]
        if not running:
            return
        if worker.seen != running:
            worker.seen = running
            # A job with a limit of its own is given when its worker has nothing else to do.
            worker.begun_at = worker.fed_at if running in worker.memory_limits else time.time()
        if worker.memory_limits:
            self._look_at_memory(worker, running)
        half = self._output_limit // 2
        for index, word in enumerate((STDOUT_AT, STDERR_AT)):
            at = cell[word]
            end = os.fstat(worker.outputs[index]).st_size
            if end - at <= 2 * half:
                continue
            if cell[RUNNING] != running:
                return
            # Offsets only grow, so that this part can never belong to a later job.
            begin = max(at + half, worker.punched[index])
            if end - half > begin:
                linux.punch(worker.outputs[index], begin, end - half - begin)
                worker.punched[index] = end - half
            if end - at > _KILL_AT * self._output_limit and worker.limited[0] != running:
                name = ("stdout", "stderr")[index]
                limit = f"{size_words(self._output_limit)} are kept, {_KILL_AT} times as much ends a job"
                worker.limited = (running, f"it wrote {size_words(end - at)} to {name} ({limit})")
                self._signal(worker.number, running, signal.SIGKILL)

    def _look_at_memory(self, worker: WorkerRecord, running: int) -> None:
        for sequence in [sequence for sequence in worker.memory_limits if sequence < running]:
            del worker.memory_limits[sequence]
        limit = worker.memory_limits.get(running)
        if limit is None or worker.limited[0] == running:
            return
        seconds = max(0.0, time.time() - worker.begun_at)  # the clock may have been set meanwhile
        verdict = limits.memory_verdict(worker.pid, worker.cell[MEMORY_AT_FORK], limit, worker.group, seconds)
        if verdict and worker.cell[RUNNING] == running:
            worker.limited = (running, verdict)
            self._signal(worker.number, running, signal.SIGKILL)
