"""Jobs with a memory limit: the kernel is put behind the sampling of their workers, where the machine grants that."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from dispy.node import limits, linux
from dispy.node.cgroups import ROOM, Groups
from dispy.node.channel import MEMORY_AT_FORK
from dispy.node.workerrecord import WorkerRecord

logger = logging.getLogger("dispy.node")


class MemoryBounds:
    """The limits of the workers of one fork server."""

    def __init__(self, groups: Groups | None, output_limit: int) -> None:
        """`groups`: None where sampling is all there is; `output_limit`: bytes kept of each output of a job."""
        self._groups = groups
        self._output_limit = output_limit

    def expect(self, worker: WorkerRecord, extras: Mapping[int, Mapping[str, object]], fork_server: int) -> None:
        """Jobs with `extras` are about to be given to a worker of that process."""
        for sequence, wanted in extras.items():
            memory = wanted.get("memory")
            if not isinstance(memory, int):
                continue
            worker.memory_limits[sequence] = memory
            # Before it hears of the job, so that all that the job starts is in the group. Such a job runs alone.
            if self._groups is not None and worker.pid and not worker.open:
                self._enclose(worker, self._groups, memory, fork_server)

    def _enclose(self, worker: WorkerRecord, groups: Groups, memory: int, fork_server: int) -> None:
        """Put a worker into a group of the kernel; where it refuses, sampling is all there is."""
        # Not every worker has measured itself yet; what it has then, it has from the fork server.
        at_fork = worker.cell[MEMORY_AT_FORK] or linux.private_memory(fork_server)
        try:
            if worker.group is None:
                worker.group = groups.make()
                worker.group.take(worker.pid)
            worker.group.limit(memory + at_fork + 2 * self._output_limit + ROOM)
        except OSError as error:
            logger.debug("the kernel does not watch the memory of worker %d: %s", worker.number, error)

    def lift(self, worker: WorkerRecord) -> bool:
        """The job with the limit has ended, the next one has none; False: the kernel keeps the limit."""
        try:
            if worker.group is not None:
                worker.group.lift()
        except OSError:
            return False
        return True

    def forget(self, worker: WorkerRecord) -> None:
        """The worker is gone."""
        if worker.group is not None and self._groups is not None:
            self._groups.remove(worker.group)


def kernel_verdict(worker: WorkerRecord, running: int, started: float) -> str:
    """The words for a job that the kernel has ended in its group; empty if it did not. `started`: wall clock."""
    limit = worker.memory_limits.get(running)
    if limit is None or worker.group is None or not worker.group.has_killed():
        return ""
    at_fork = worker.cell[MEMORY_AT_FORK]
    return limits.memory_verdict(worker.pid, at_fork, limit, worker.group, max(0.0, time.time() - started))
