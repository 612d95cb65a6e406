"""What becomes of the jobs on a node: taken in, answered, lost with their worker.

Who gives them to workers is `dispy.node.feeding`; those that are ended by force are in `dispy.node.forcing`, those that
do not start here in `dispy.node.returning`, and all leave through `dispy.node.outgoing`. The path that every job takes
(`take` → feeding → `worker_answered`) makes no object per job beyond the job itself and its `JobDone`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dispy.model import BlobRef, Ending, JobDone, JobOptions, JobSpec
from dispy.node import events as ev
from dispy.node.arguments import ArgumentTable
from dispy.node.effects import Effects, LendFiles, WithdrawResults
from dispy.node.feeding import Feeder
from dispy.node.forcing import Forcing
from dispy.node.objects import ObjectTable
from dispy.node.outgoing import Outgoing
from dispy.node.returning import Returning
from dispy.node.serving import (
    Computation,
    HeldJob,
    Lease,
    Loan,
    Special,
    WorkerState,
)
from dispy.node.verdicts import clip, death_text, over_time

EXHAUSTED_MOST = 3
"""So many workers in a row must have come to nothing before jobs go elsewhere for a while."""
EXHAUSTED_INTERVAL = 1.0
"""Seconds between two attempts to start a worker on a machine that has nothing left for one."""
STILLBORN_MOST = 5
"""So many workers in a row that ended before they answered anything mean that the computation cannot run."""


class JobDesk:
    """The jobs of the lease and the workers that run them."""

    __slots__ = ("arguments", "feeder", "forcing", "objects", "outgoing", "returning")

    def __init__(self, cpus: int, gpus: int = 0, *, oversubscribe: bool = False) -> None:
        self.feeder = Feeder(cpus, gpus=gpus, oversubscribe=oversubscribe)
        self.arguments = ArgumentTable()
        self.objects = ObjectTable()
        self.outgoing = Outgoing(self.arguments, self.objects)
        self.forcing = Forcing(self.feeder, self.outgoing)
        self.returning = Returning(self.feeder, self.outgoing)

    def take(
        self,
        lease: Lease,
        computation: Computation,
        specs: list[JobSpec],
        payload: bytes | memoryview,
        now: float,
        effects: Effects,
    ) -> None:
        """Queue the jobs of a batch; an attempt that is here already is ignored, an older one gives way."""
        view = memoryview(payload)
        jobs, ended, queue = lease.jobs, lease.results.attempts, computation.queue
        offset = 0
        for spec in specs:
            number = spec.job
            start, offset = offset, offset + spec.size
            if (number in jobs or number in ended) and not self._is_new(lease, spec, now, effects):
                continue
            if spec.options is not None and spec.options.depends is not None:
                job = HeldJob(number, spec.attempt, computation, view[start:offset])
                self._take_options(job, spec.options)
                self._lend(lease, job, spec, effects)
            elif spec.blob is None:
                job = HeldJob(number, spec.attempt, computation, view[start:offset])
                if spec.options is None:
                    queue.append(job)
                else:
                    self._take_options(job, spec.options)
                    computation.enqueue(job)
            else:
                job = HeldJob(number, spec.attempt, computation, None)
                if spec.options is not None:
                    self._take_options(job, spec.options)
                self.arguments.expect(lease, job, spec.blob, effects)
            jobs[number] = job

    def _lend(self, lease: Lease, job: HeldJob, spec: JobSpec, effects: Effects) -> None:
        """Take in a job that needs files of its own, or scattered objects."""
        assert spec.options is not None
        assert spec.options.depends is not None
        depends = spec.options.depends
        objects = tuple({blob.name: blob for blob in depends.objects}.values())
        job.loan = Loan(depends.files, not depends.files, objects)
        if depends.files:
            effects.actions.append(LendFiles(job.computation.id, job.job, job.attempt, depends.files))
        self.objects.expect(lease, job, job.loan, effects)
        if spec.blob is None:
            job.admit()
        else:
            self.arguments.expect(lease, job, spec.blob, effects)

    def files_lent(self, lease: Lease | None, event: ev.FilesLent, effects: Effects) -> None:
        """The files of a job are here, or cannot be had."""
        job = None if lease is None else lease.jobs.get(event.job)
        if job is None or job.attempt != event.attempt or job.loan is None or job.loan.is_here:
            return
        assert lease is not None, "a job without a lease"
        if event.reason:
            self.outgoing.unqueue([job], effects)
            text = f"what it depends on did not reach the node: {event.reason}"
            self.outgoing.end(lease, [job], _without(event), text, effects)
        else:
            job.loan.is_here = True
            job.admit()

    def _take_options(self, job: HeldJob, options: JobOptions) -> None:
        job.special = Special(options)
        if options.timeout > 0:
            self.forcing.timed[job] = None

    def _is_new(self, lease: Lease, spec: JobSpec, now: float, effects: Effects) -> bool:
        if lease.results.attempts.get(spec.job, -1) >= spec.attempt:
            return False
        held = lease.jobs.get(spec.job)
        if held is None:
            return True
        if held.attempt >= spec.attempt:
            return False
        if held.worker is None:
            self.outgoing.unqueue([held], effects)
        else:
            lease.superseded.add(held)
            self.forcing.cancel_given(held, now, effects)
        return True

    def arguments_failed(self, lease: Lease | None, event: ev.ArgumentsFailed, effects: Effects) -> None:
        """End the jobs that waited for them."""
        jobs = self.arguments.waiting(event.name)
        if jobs:
            assert lease is not None, "a job without a lease"
            self.outgoing.unqueue(jobs, effects)
            text = f"its arguments did not reach the node: {event.reason}"
            self.outgoing.end(lease, jobs, _without(event), text, effects)

    def object_failed(self, lease: Lease | None, event: ev.ObjectFailed, effects: Effects) -> None:
        """End the jobs that waited for it."""
        jobs = self.objects.waiting(event.name)
        if jobs:
            assert lease is not None, "a job without a lease"
            self.outgoing.unqueue(jobs, effects)
            text = f"a scattered object did not reach the node: {event.reason}"
            self.outgoing.end(lease, jobs, _without(event), text, effects)

    def worker_forked(self, event: ev.WorkerForked) -> None:
        """It takes jobs from now on."""
        worker = self.feeder.workers.get(event.worker)
        if worker is not None and worker.state is WorkerState.STARTING:
            worker.state = WorkerState.READY

    def worker_answered(self, lease: Lease | None, event: ev.WorkerAnswered, now: float, effects: Effects) -> None:
        """Turn replies into results for the scheduler."""
        worker = self.feeder.workers.get(event.worker)
        if worker is None:
            _withdraw(event.blobs, [], effects)
            return
        assert lease is not None, "a worker without a lease"
        worker.progress_at = now
        computation = lease.computations[worker.computation]
        done: list[JobDone] = []
        bodies: list[bytes] = []
        blobs = event.blobs
        given, jobs, ended = worker.jobs, lease.jobs, lease.results.attempts
        seconds = 0.0
        for reply in event.replies:
            sequence = reply.sequence
            job = given.pop(sequence, None)
            if job is None:
                continue
            started, finished = reply.started_at, reply.ended_at
            seconds += finished - started
            if job.blob is not None or job.loan is not None:
                self.outgoing.release(job, effects)
            if lease.superseded and job in lease.superseded:
                lease.superseded.remove(job)
                continue
            number = job.job
            del jobs[number]
            ended[number] = job.attempt
            blob = blobs.get(sequence) if blobs else None
            done.append(
                JobDone(
                    number,
                    job.attempt,
                    reply.ending,
                    started,
                    finished,
                    reply.result_size,
                    reply.stdout_size,
                    reply.stderr_size,
                    reply.error_size,
                    blob,
                )
            )
            if blob is None:
                bodies.append(reply.body)
            if job.special is not None and job.special.overdue and reply.ending != Ending.FINISHED:
                done[-1].ending = int(Ending.LIMITED)
                if blob is None:
                    bodies[-1] = _with_verdict(done[-1], reply, job.special.timeout)
        if event.replies:
            worker.answered += len(event.replies)
            computation.stillborn = computation.exhausted = computation.deaths = 0
            # a job can write anything into its worker's answers
            computation.measure(seconds if seconds < math.inf else 0.0, len(event.replies))
        if blobs:
            _withdraw(blobs, done, effects)
        if done:
            self.outgoing.tell_done(lease, done, bodies, effects)
        self.forcing.after_progress(worker, now, effects)

    def worker_spoke(self, lease: Lease | None, event: ev.WorkerSpoke, effects: Effects) -> None:
        """Pass an interim result on, among the results."""
        worker, reply = self.feeder.workers.get(event.worker), event.reply
        job = None if worker is None else worker.jobs.get(reply.sequence)
        if lease is None or job is None or job in lease.superseded or lease.claimer is not None:
            if event.blob is not None:
                effects.actions.append(WithdrawResults([event.blob.name]))
            return
        said_at, size = reply.ended_at, reply.result_size
        done = JobDone(job.job, job.attempt, Ending.PROVISIONAL, 0.0, said_at, size, 0, 0, 0, event.blob)
        self.outgoing.tell_done(lease, [done], [reply.body] if event.blob is None else [], effects)

    def worker_died(
        self, lease: Lease | None, event: ev.WorkerDied, now: float, effects: Effects
    ) -> Computation | None:
        """End the job that it ran, queue the others again; returns the worker's computation."""
        worker = self.feeder.workers.get(event.worker)
        if worker is None:
            return None
        assert lease is not None, "a worker without a lease"
        computation = lease.computations[worker.computation]
        self.feeder.remove(worker, computation)
        if event.exhausted:
            computation.exhausted += 1
            computation.fork_after = now + EXHAUSTED_INTERVAL
        elif not (event.running or event.expected or worker.answered or worker.told_to_end):
            computation.stillborn += 1
            computation.fork_after = now + 0.1 * computation.stillborn
        running = worker.jobs.pop(event.running, None)
        if running is not None:
            self._end_running(lease, running, event, effects)
        self.returning.answer(lease, worker, [], effects)
        self.returning.put_back(lease, computation, list(worker.jobs.values()), effects)
        worker.jobs.clear()
        return computation

    def gives_up(self, computation: Computation) -> bool:
        """Whether its workers die before they can run anything."""
        return computation.stillborn >= STILLBORN_MOST

    def must_pause(self, computation: Computation) -> bool:
        """Whether the machine has had nothing left for a worker for a while, and none is here."""
        return computation.exhausted >= EXHAUSTED_MOST and not computation.workers

    def forget_workers(self, lease: Lease, computation: Computation, effects: Effects) -> None:
        """Its processes are gone."""
        for worker in list(computation.workers.values()):
            self.feeder.remove(worker, computation)
            self.returning.answer(lease, worker, [], effects)

    def _end_running(self, lease: Lease, job: HeldJob, event: ev.WorkerDied, effects: Effects) -> None:
        self.outgoing.release(job, effects)
        if job in lease.superseded:
            lease.superseded.remove(job)
            return
        del lease.jobs[job.job]
        if event.limited:
            ending, cause = Ending.LIMITED, event.cause
        elif job.special is not None and job.special.overdue and not job.cancelled:
            ending = Ending.LIMITED
            cause = f"{over_time(event.ended - (event.started or event.ended), job.special.timeout)} ({event.cause})"
        else:
            ending = Ending.INTERRUPTED if job.cancelled else Ending.DIED
            cause = f"its worker process ended: {event.cause}"
        stdout, stderr = clip(event.stdout), clip(event.stderr)
        error = death_text(cause, event.stderr).encode()
        started = event.started or event.ended
        sizes = (0, len(stdout), len(stderr), len(error))
        done = JobDone(job.job, job.attempt, ending, started, event.ended, *sizes)
        lease.results.attempts[job.job] = job.attempt
        self.outgoing.tell_done(lease, [done], [stdout + stderr + error], effects)

    def worker_recalled(self, lease: Lease | None, event: ev.WorkerRecalled, now: float, effects: Effects) -> None:
        """Jobs come back from a worker: to who asked for them, else to the front of the queue."""
        worker = self.feeder.workers.get(event.worker)
        if worker is None:
            return
        assert lease is not None, "a worker without a lease"
        worker.recalling = 0
        numbers = [number for number in worker.jobs if event.first <= number < event.before]
        jobs = [worker.jobs.pop(number) for number in numbers]
        computation = lease.computations[worker.computation]
        jobs = self.returning.answer(lease, worker, jobs, effects)
        self.returning.put_back(lease, computation, jobs, effects)
        self.forcing.after_progress(worker, now, effects)


def _without(event: ev.ArgumentsFailed | ev.ObjectFailed | ev.FilesLent) -> Ending:
    """How jobs end that cannot start without what has not come."""
    return Ending.NO_ROOM if event.no_room else Ending.DIED


def _withdraw(blobs: Mapping[int, BlobRef], done: list[JobDone], effects: Effects) -> None:
    """Of the large bodies of replies, let go of those that nobody is told of."""
    told = {each.blob.name for each in done if each.blob is not None}
    gone = [ref.name for ref in blobs.values() if ref.name not in told]
    if gone:
        effects.actions.append(WithdrawResults(gone))


def _with_verdict(done: JobDone, reply: ev.Reply, timeout: float) -> bytes:
    """The body of a reply whose error text begins with what is said of a job over its time."""
    verdict = f"{over_time(reply.ended_at - reply.started_at, timeout)}\n".encode()
    done.error_size += len(verdict)
    at = len(reply.body) - reply.error_size
    return b"".join((reply.body[:at], verdict, reply.body[at:]))
