"""Keeps the CPUs of a node supplied: which worker gets which jobs, and when workers are forked, drained, recalled.

Called after every event, it decides from the whole state; it changes tables and appends actions, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct, field

from dispy.node.effects import Action, Arguments, FeedWorker, ForkWorker, JobExtra, RecallFromWorker, RetireWorker
from dispy.node.serving import Computation, ForkServerState, HeldJob, Worker, WorkerState
from dispy.node.slots import (
    NEWCOMER_SECONDS,
    STALL_SECONDS,
    STARVE_SECONDS,
    prefetch_depth,
    share_out,
)

STANDING: Final = ForkServerState.STANDING


class Feeder(Struct):
    """All workers of the node and the rules by which they get jobs."""

    cpus: int
    workers: dict[int, Worker] = field(default_factory=dict)
    last_worker: int = 0
    gpus: int = 0
    oversubscribe: bool = False
    """Computations may use more CPUs than there are, if their owner wants that."""
    capacity: int = 0
    """CPUs that jobs may use, as the last dispatch found it."""
    peak: int = 0
    """The most that it was since the oldest heavy job began: what the offer loses, running jobs keep."""
    heavy: dict[Worker, HeldJob] = field(default_factory=dict)
    """Workers that run a heavy job; it may have ended since the last dispatch."""
    kept: int = 0
    """CPUs that heavy jobs use or wait for."""

    def dispatch(self, computations: Iterable[Computation], now: float, actions: list[Action]) -> None:
        """Give out what can be given out."""
        running = [computation for computation in computations if computation.server is STANDING]
        self._resize(running, actions)
        if self.heavy:
            self.heavy = {worker: job for worker, job in self.heavy.items() if worker.jobs.get(job.sequence) is job}
        kept = 0
        for computation in running:
            if computation.heavy:
                kept += self._feed_heavy(computation, now, actions)
        self.kept = kept + self._in_use() if self.heavy else kept
        self._let_newcomers_in(running, now, actions)
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
            if computation.server is not STANDING:
                continue
            if computation.starved_since is not None:
                times.append(computation.starved_since + STARVE_SECONDS)
            if computation.fork_after is not None:
                times.append(computation.fork_after)
            holder = None if computation.queue else self._fullest(computation)
            if holder is not None and self._spare(computation) > 0:
                times.append(holder.progress_at + STALL_SECONDS)
        return min(times) if times else None

    def drain(self, worker: Worker, actions: list[Action]) -> None:
        """Give the worker nothing more; it ends when it has answered what it has."""
        worker.state = WorkerState.RETIRING
        if worker.jobs:
            self.recall(worker, actions)
        else:
            self.end_if_drained(worker, actions)

    def end_if_drained(self, worker: Worker, actions: list[Action]) -> None:
        """Tell a worker that has no jobs left to end, once, if it is retiring."""
        if worker.state is WorkerState.RETIRING and not worker.told_to_end:
            worker.told_to_end = True
            actions.append(RetireWorker(worker.computation, worker.id))

    def recall(self, worker: Worker, actions: list[Action]) -> None:
        """Ask the worker, which has jobs, for all that it has not started, unless that is under way."""
        if not worker.recalling:
            worker.recalling = worker.sequence + 1
            actions.append(RecallFromWorker(worker.computation, worker.id, worker.recalling))

    def remove(self, worker: Worker, computation: Computation) -> None:
        """The worker is gone."""
        del self.workers[worker.id]
        del computation.workers[worker.id]

    def _resize(self, running: list[Computation], actions: list[Action]) -> None:
        """Find how many CPUs jobs may use; when that fell, workers beyond it end after the job that they run."""
        before, most = self.capacity, self.cpus
        if most:
            for computation in running:
                if computation.oversubscribe or self.oversubscribe:
                    most = max(most, computation.limit)
        self.capacity = most
        self.peak = max(self.peak, most) if self.heavy else most
        if most < before:
            workers = [worker for computation in running for worker in computation.workers.values()]
            staying = sorted([each for each in workers if each.state is not WorkerState.RETIRING], key=_job_count)
            for worker in staying[: max(0, len(staying) - most)]:
                self.drain(worker, actions)

    def _bound(self, computation: Computation) -> int:
        """CPUs that a computation may use; 0: no fewer than all jobs together."""
        if self.capacity == self.cpus:
            return computation.limit
        allowed = self.capacity if computation.oversubscribe or self.oversubscribe else self.cpus
        return min(computation.limit or self.cpus, allowed)

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
                and (not worker.jobs or not worker.is_stalled(now))
                and not (isolated and worker.sequence)
            ):
                takers.append(worker)
        if self.kept or self._bound(computation):
            takers = self._within_bounds(computation, takers)
        if not takers:
            return
        held = [len(worker.jobs) for worker in takers]
        gives = share_out(len(computation.queue), held, depth, starting)
        for worker, count in zip(takers, gives, strict=True):
            if count:
                actions.append(self._give(worker, computation, count, now))

    def check(self) -> None:
        """Compare what heavy jobs have with what there is.

        Raises:
            AssertionError: something was given twice, which is a bug here.
        """
        running = [job for worker, job in self.heavy.items() if worker.jobs.get(job.sequence) is job]
        specials = [job.wishes for job in running]
        assert sum(special.cpus for special in specials) <= self.peak, "CPUs were given twice"
        gpus = [number for special in specials for number in special.gpus]
        assert len(set(gpus)) == len(gpus), "a GPU was given twice"

    def _feed_heavy(self, computation: Computation, now: float, actions: list[Action]) -> int:
        """Start heavy jobs in their order; returns the CPUs that are to be kept free for the first that must wait."""
        limit = min(self._bound(computation) or self.capacity, self.capacity)
        while computation.heavy:
            job = computation.heavy[0]
            special = job.wishes
            cpus = min(special.cpus or limit, limit)
            in_use = {number for each in self.heavy.values() for number in each.wishes.gpus}
            gpus = [number for number in range(self.gpus) if number not in in_use]
            wanted = min(special.wanted_gpus, self.gpus)
            if cpus > self._spare(computation) or len(gpus) < wanted:
                return cpus
            worker = self._free_worker(computation, now, actions)
            if worker is None:
                return cpus
            computation.heavy.popleft()
            special.cpus, special.gpus = cpus, tuple(gpus[:wanted])
            worker.sequence += 1
            job.worker, job.sequence, worker.progress_at = worker, worker.sequence, now
            worker.jobs[worker.sequence] = job
            self.heavy[worker] = job
            assert job.arguments is not None
            extra = JobExtra(cpus, special.memory, special.gpus)
            objects = None if job.loan is None else job.loan.here or None
            actions.append(FeedWorker(computation.id, worker.id, [(worker.sequence, job.arguments)], extra, objects))
        return 0

    def _free_worker(self, computation: Computation, now: float, actions: list[Action]) -> Worker | None:
        """An idle worker of the computation; None when one is on its way or must be made room for."""
        for worker in computation.workers.values():
            if worker.is_idle and not worker.recalling and not (computation.spec.isolate and worker.sequence):
                return worker
        if _starting(computation) or (computation.fork_after is not None and now < computation.fork_after):
            return None
        if len(self.workers) < self.capacity:
            self._fork_one(computation, actions)
        elif not any(worker.state is WorkerState.RETIRING for worker in self.workers.values()):
            # one of its own that is idle and cannot be had will answer or end by itself
            others = (worker for worker in self.workers.values() if worker.id not in computation.workers)
            idle = next((worker for worker in others if worker.is_idle), None)
            if idle is not None:
                self.drain(idle, actions)
        return None

    def _in_use(self, computation: Computation | None = None) -> int:
        """CPUs that heavy jobs use, of all computations or of one."""
        return sum([job.wishes.cpus for job in self.heavy.values() if computation in (None, job.computation)])

    def _light(self, computation: Computation | None = None) -> list[Worker]:
        """Workers that are busy with other jobs."""
        workers = self.workers if computation is None else computation.workers
        return [worker for worker in workers.values() if worker.jobs and worker not in self.heavy]

    def _spare(self, computation: Computation) -> int:
        """CPUs on which the computation could start something now."""
        spare = self.capacity - self._in_use() - len(self._light())
        if bound := self._bound(computation):
            spare = min(spare, bound - self._in_use(computation) - len(self._light(computation)))
        return spare

    def _within_bounds(self, computation: Computation, takers: list[Worker]) -> list[Worker]:
        """Of workers that take jobs those that may: the rest of the CPUs is kept, or not for this computation, and
        nothing is put behind a heavy job.
        """
        everybody, own = self._light(), self._light(computation)
        most = max(0, self.capacity - self.kept)
        mine = max(0, (self._bound(computation) or self.capacity) - self._in_use(computation))
        staying = {worker.id for worker in everybody[:most]} & {worker.id for worker in own[:mine]}
        idle = max(0, min(most - len(everybody), mine - len(own)))
        return [worker for worker in takers if worker.id in staying] + [worker for worker in takers if not worker.jobs][
            :idle
        ]

    def _give(self, worker: Worker, computation: Computation, count: int, now: float) -> FeedWorker:
        if not worker.jobs:
            worker.progress_at = now
        given: list[tuple[int, Arguments]] = []
        objects: dict[bytes, int] | None = None
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
            if job.loan is not None and job.loan.here:
                if objects is None:
                    objects = {}
                objects.update(job.loan.here)
        worker.sequence = sequence
        return FeedWorker(computation.id, worker.id, given, None, objects)

    def _fork(self, running: list[Computation], now: float, actions: list[Action]) -> None:
        lacking: dict[Computation, int] = {}
        for computation in running:
            if computation.fork_after is not None and now >= computation.fork_after:
                computation.fork_after = None
            if not computation.queue:
                computation.starved_since = None
                continue
            missing = len(computation.queue) - _starting(computation)
            if bound := self._bound(computation):
                light = [worker for worker in computation.workers.values() if worker not in self.heavy]
                missing = min(missing, bound - self._in_use(computation) - len(light))
            if missing > 0 and computation.fork_after is None:
                lacking[computation] = missing
            else:
                computation.starved_since = None
        free = self.capacity - len(self.workers)
        if self.kept:
            starting = sum(worker.state is WorkerState.STARTING for worker in self.workers.values())
            free = min(free, self.capacity - self.kept - len(self._light()) - starting)
        while free > 0 and lacking:
            computation = min(lacking, key=lambda each: (len(each.workers), _unserved_since(each, now)))
            self._fork_one(computation, actions)
            free -= 1
            lacking[computation] -= 1
            if not lacking[computation]:
                computation.starved_since = None
                del lacking[computation]
        for computation in running:
            if computation.workers or computation not in lacking:
                computation.unserved_since = None
            elif computation.unserved_since is None:
                computation.unserved_since = now
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

    def _let_newcomers_in(self, running: list[Computation], now: float, actions: list[Action]) -> None:
        """The next workers that have answered all that they had make room for computations that have none at all."""
        waiting = 0
        for computation in running:
            since = computation.unserved_since
            waiting += since is not None and now >= since + NEWCOMER_SECONDS
        if not waiting:
            return
        waiting -= sum(worker.state is WorkerState.RETIRING for worker in self.workers.values())
        # one that has just been forked for somebody else who waited has its turn first
        idle = [each for each in self.workers.values() if each.is_idle and each.sequence]
        for worker in idle[: max(0, waiting)]:
            self.drain(worker, actions)

    def _take_from_stalled(self, computation: Computation, now: float, actions: list[Action]) -> None:
        holder = self._fullest(computation)
        if holder is not None and holder.is_stalled(now) and self._spare(computation) > 0:
            self.recall(holder, actions)

    def _fullest(self, computation: Computation) -> Worker | None:
        """The worker with most jobs that it has not started and that are not being taken back."""
        fullest, most = None, 1  # the one that it runs
        for worker in computation.workers.values():
            if len(worker.jobs) > most and not worker.recalling:
                fullest, most = worker, len(worker.jobs)
        return fullest


def requeue(computation: Computation, jobs: list[HeldJob]) -> None:
    """Put jobs that had not started back to the front of the queue, in their order."""
    for job in reversed(jobs):
        job.worker = None
        job.sequence = 0
        (computation.heavy if job.special is not None and job.special.is_heavy else computation.queue).appendleft(job)


def _starting(computation: Computation) -> int:
    return sum(worker.state is WorkerState.STARTING for worker in computation.workers.values())


def _unserved_since(computation: Computation, now: float) -> float:
    return now if computation.unserved_since is None else computation.unserved_since


def _worker_count(computation: Computation) -> int:
    return len(computation.workers)


def _job_count(worker: Worker) -> int:
    return len(worker.jobs)
