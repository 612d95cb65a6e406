"""The watch over workers that start or run.

It looks only when there is something to see: at workers that should have started, and at the output of jobs.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final

from dispy.node import limits, linux
from dispy.node.channel import MEMORY_AT_FORK, STDERR_AT, STDOUT_AT
from dispy.node.workerrecord import WorkerRecord
from dispy.words import size

_INTERVAL: Final = 0.03
_START_TIMEOUT: Final = 10.0
"""Seconds within which a forked worker must run; one that does not hangs on a lock of setup's."""
_KILL_AT: Final = 10
"""Times the output limit at which a job is ended."""


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
        running = worker.running()
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
            fd, at, end = worker.extent(word)
            if end - at <= 2 * half:
                continue
            if worker.running() != running:
                return
            # Offsets only grow, so that this part can never belong to a later job.
            begin = max(at + half, worker.punched[index])
            if end - half > begin:
                linux.punch(fd, begin, end - half - begin)
                worker.punched[index] = end - half
            if end - at > _KILL_AT * self._output_limit and worker.limited[0] != running:
                name = ("stdout", "stderr")[index]
                limit = f"{size(self._output_limit)} are kept, {_KILL_AT} times as much ends a job"
                worker.limited = (running, f"it wrote {size(end - at, like=self._output_limit)} to {name} ({limit})")
                self._signal(worker.number, running, signal.SIGKILL)

    def _look_at_memory(self, worker: WorkerRecord, running: int) -> None:
        for sequence in [sequence for sequence in worker.memory_limits if sequence < running]:
            del worker.memory_limits[sequence]
        limit = worker.memory_limits.get(running)
        if limit is None or worker.limited[0] == running:
            return
        seconds = max(0.0, time.time() - worker.begun_at)  # the clock may have been set meanwhile
        verdict = limits.memory_verdict(worker.pid, worker.cell[MEMORY_AT_FORK], limit, worker.group, seconds)
        if verdict and worker.running() == running:
            worker.limited = (running, verdict)
            self._signal(worker.number, running, signal.SIGKILL)
