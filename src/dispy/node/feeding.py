"""Keeps the CPUs of a node supplied: which worker gets which jobs, and when workers are forked, drained, recalled.

Called after every event, it decides from the whole state; it changes tables and appends actions, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dispy.node.effects import Action, Arguments, FeedWorker, ForkWorker, RecallFromWorker, RetireWorker
from dispy.node.serving import Computation, HeldJob
from dispy.node.slots import (
    STALL_SECONDS,
    STARVE_SECONDS,
    Worker,
    WorkerState,
    prefetch_depth,
    share_out,
)


@dataclass(slots=True)
class Feeder:
    """All workers of the node and the rules by which they get jobs."""

    cpus: int
    workers: dict[int, Worker] = field(default_factory=dict)
    last_worker: int = 0

    def dispatch(self, computations: Iterable[Computation], now: float, actions: list[Action]) -> None:
        """Give out what can be given out."""
        running = [computation for computation in computations if computation.can_run]
        for computation in running:
            if computation.queue:
                self._feed(computation, now, actions)
        self._fork(running, now, actions)
        for computation in running:
            if not computation.queue:
                self._take_from_stalled(computation, now, actions)

    def next_deadline(self, computations: Iterable[Computation]) -> float | None:
        """When `dispatch` is to be called although nothing happened."""
        times = []
        for computation in computations:
            if not computation.can_run:
                continue
            if computation.starved_since is not None:
                times.append(computation.starved_since + STARVE_SECONDS)
            if computation.fork_after is not None:
                times.append(computation.fork_after)
            holder = None if computation.queue else self._fullest(computation)
            if holder is not None and self._has_room(computation):
                times.append(holder.progress_at + STALL_SECONDS)
        return min(times, default=None)

    def drain(self, worker: Worker, actions: list[Action]) -> None:
        """Give the worker nothing more; it ends when it has answered what it has."""
        worker.state = WorkerState.RETIRING
        if worker.jobs:
            self.recall(worker, actions)
        else:
            self.end_if_drained(worker, actions)

    def end_if_drained(self, worker: Worker, actions: list[Action]) -> None:
        """Tell a retiring worker to end once it has no jobs."""
        if worker.state is WorkerState.RETIRING and not worker.jobs and not worker.told_to_end:
            worker.told_to_end = True
            actions.append(RetireWorker(worker.computation, worker.id))

    def recall(self, worker: Worker, actions: list[Action]) -> None:
        """Ask the worker for all that it has not started, unless that is under way."""
        if not worker.recalling and worker.jobs:
            worker.recalling = worker.sequence + 1
            actions.append(RecallFromWorker(worker.computation, worker.id, worker.recalling))

    def resize(self, cpus: int, actions: list[Action]) -> None:
        """Use so many CPUs from now on: workers beyond that end after the job that they run."""
        self.cpus = cpus
        staying = [each for each in self.workers.values() if each.state is not WorkerState.RETIRING]
        staying.sort(key=_job_count)
        for worker in staying[: max(0, len(staying) - cpus)]:
            self.drain(worker, actions)

    def remove(self, worker: Worker, computation: Computation) -> None:
        """The worker is gone."""
        del self.workers[worker.id]
        del computation.workers[worker.id]

    def _feed(self, computation: Computation, now: float, actions: list[Action]) -> None:
        isolated = computation.spec.isolate
        depth = 1 if isolated else prefetch_depth(computation.mean)
        takers = []
        starting = 0
        for worker in computation.workers.values():
            if worker.state is WorkerState.STARTING:
                starting += 1
            elif (
                worker.state is WorkerState.READY
                and not worker.recalling
                and (not worker.jobs or (depth > 1 and not worker.is_stalled(now)))
                and not (isolated and worker.sequence)
            ):
                takers.append(worker)
        if not takers:
            return
        held = [len(worker.jobs) for worker in takers]
        gives = share_out(len(computation.queue), held, depth, starting)
        for worker, count in zip(takers, gives, strict=True):
            if count:
                actions.append(self._give(worker, computation, count, now))

    def _give(self, worker: Worker, computation: Computation, count: int, now: float) -> FeedWorker:
        if not worker.jobs:
            worker.progress_at = now
        given: list[tuple[int, Arguments]] = []
        jobs = worker.jobs
        sequence = worker.sequence
        take = computation.queue.popleft
        for _ in range(count):
            job = take()
            sequence += 1
            job.worker = worker
            job.sequence = sequence
            jobs[sequence] = job
            given.append((sequence, job.arguments))  # type: ignore[arg-type]  # queued jobs have them
        worker.sequence = sequence
        return FeedWorker(computation.id, worker.id, given)

    def _fork(self, running: list[Computation], now: float, actions: list[Action]) -> None:
        lacking: dict[Computation, int] = {}
        for computation in running:
            if computation.fork_after is not None and now >= computation.fork_after:
                computation.fork_after = None
            missing = len(computation.queue) - _starting(computation)
            if missing > 0 and computation.fork_after is None:
                lacking[computation] = missing
            else:
                computation.starved_since = None
        free = self.cpus - len(self.workers)
        while free > 0 and lacking:
            computation = min(lacking, key=_worker_count)
            self._fork_one(computation, actions)
            free -= 1
            lacking[computation] -= 1
            if not lacking[computation]:
                computation.starved_since = None
                del lacking[computation]
        if lacking:
            self._make_room(lacking, running, now, actions)

    def _fork_one(self, computation: Computation, actions: list[Action]) -> None:
        self.last_worker += 1
        worker = Worker(self.last_worker, computation.id)
        self.workers[worker.id] = computation.workers[worker.id] = worker
        actions.append(ForkWorker(computation.id, worker.id))

    def _make_room(
        self, lacking: dict[Computation, int], running: list[Computation], now: float, actions: list[Action]
    ) -> None:
        """Idle workers of others end at once; after a while one above its share ends after its job."""
        leaving = sum(worker.state is WorkerState.RETIRING for worker in self.workers.values())
        needed = sum(lacking.values()) - leaving
        for worker in list(self.workers.values()):
            if needed <= 0:
                break
            if worker.is_idle and not any(worker.id in computation.workers for computation in lacking):
                self.drain(worker, actions)
                needed -= 1
        share = max(1, self.cpus // max(1, len(running)))
        for computation in lacking:
            count = len(computation.workers)
            richest = max(running, key=_worker_count)
            if leaving or needed <= 0 or count >= share or len(richest.workers) <= count:
                computation.starved_since = None
            elif computation.starved_since is None:
                computation.starved_since = now
            elif now >= computation.starved_since + STARVE_SECONDS:
                computation.starved_since = None
                ready = [each for each in richest.workers.values() if each.state is WorkerState.READY]
                if ready:
                    self.drain(min(ready, key=_job_count), actions)

    def _take_from_stalled(self, computation: Computation, now: float, actions: list[Action]) -> None:
        holder = self._fullest(computation)
        if holder is not None and holder.is_stalled(now) and self._has_room(computation):
            self.recall(holder, actions)

    def _has_room(self, computation: Computation) -> bool:
        """Whether a job of it could start at once somewhere."""
        return len(self.workers) < self.cpus or any(worker.is_idle for worker in computation.workers.values())

    def _fullest(self, computation: Computation) -> Worker | None:
        """The worker with most jobs that it has not started and that are not being taken back."""
        holders = [each for each in computation.workers.values() if each.unstarted and not each.recalling]
        return max(holders, key=_job_count, default=None)


def requeue(computation: Computation, jobs: list[HeldJob]) -> None:
    """Put jobs that had not started back to the front of the queue, in their order."""
    for job in jobs:
        job.worker = None
        job.sequence = 0
    computation.queue.extendleft(reversed(jobs))


def _starting(computation: Computation) -> int:
    return sum(worker.state is WorkerState.STARTING for worker in computation.workers.values())


def _worker_count(computation: Computation) -> int:
    return len(computation.workers)


def _job_count(worker: Worker) -> int:
    return len(worker.jobs)
