"""What becomes of the jobs on a node: taken in, given to workers, answered, ended by force, recalled.

Every way in which an attempt leaves the node goes through here, exactly once. The path that every job takes
(`take` → feeding → `worker_answered`) makes no object per job beyond the job itself and its `JobDone`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping

from dispy.model import BlobRef, Ending, HeldAttempt, JobDone, JobOptions, JobSpec
from dispy.node import events as ev
from dispy.node.arguments import ArgumentTable
from dispy.node.effects import CancelInWorker, Effects, LendFiles, ReturnFiles, Send, SignalWorker, WithdrawResults
from dispy.node.feeding import Feeder, requeue
from dispy.node.serving import (
    Computation,
    HeldJob,
    Lease,
    Loan,
    RecallRequest,
    Special,
    Worker,
    WorkerState,
)
from dispy.node.slots import Escalation
from dispy.node.verdicts import clip, death_text, over_time
from dispy.wire.messages import JobsRecalled

EXHAUSTED_MOST = 3
"""So many workers in a row must have come to nothing before jobs go elsewhere for a while."""
EXHAUSTED_INTERVAL = 1.0
"""Seconds between two attempts to start a worker on a machine that has nothing left for one."""
STILLBORN_MOST = 5
"""So many workers in a row that ended before they answered anything mean that the computation cannot run."""


class JobDesk:
    """The jobs of the lease and the workers that run them."""

    __slots__ = ("arguments", "done", "feeder", "now", "timed")

    def __init__(self, cpus: int, gpus: int = 0, *, oversubscribe: bool = False) -> None:
        self.feeder = Feeder(cpus, gpus=gpus, oversubscribe=oversubscribe)
        self.timed: dict[HeldJob, float | None] = {}
        """Jobs with a time limit, and when it is over for those that run."""
        self.now = 0.0
        """The time of the event that is being handled."""
        self.done = 0
        """Attempts that have ended here, of all leases."""
        self.arguments = ArgumentTable()

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
        """Take in a job that needs files of its own."""
        assert spec.options is not None
        assert spec.options.depends is not None
        job.loan = Loan(spec.options.depends.files)
        effects.actions.append(LendFiles(job.computation.id, job.job, job.attempt, job.loan.files))
        if spec.blob is None:
            job.admit()
        else:
            job.arguments = None
            self.arguments.expect(lease, job, spec.blob, effects)

    def files_lent(self, lease: Lease | None, event: ev.FilesLent, effects: Effects) -> None:
        """The files of a job are here, or cannot be had."""
        job = None if lease is None else lease.jobs.get(event.job)
        if lease is None or job is None or job.attempt != event.attempt or job.loan is None or job.loan.is_here:
            return
        if event.reason:
            self._unqueue([job], effects)
            self._end(lease, [job], Ending.DIED, f"what it depends on did not reach the node: {event.reason}", effects)
        else:
            job.loan.is_here = True
            job.admit()

    def _take_options(self, job: HeldJob, options: JobOptions) -> None:
        job.special = Special(options)
        if options.timeout > 0:
            self.timed[job] = None

    def watch_time(self, lease: Lease, now: float, effects: Effects) -> None:
        """Let the clocks of jobs with a time limit run while they do, and end those that are over it."""
        for job, until in list(self.timed.items()):
            worker, special = job.worker, job.special
            assert special is not None
            if lease.jobs.get(job.job) is not job:
                del self.timed[job]
            elif worker is None or worker.head() is not job:
                self.timed[job] = None
            elif until is None:
                self.timed[job] = now + special.timeout
            elif now >= until and not special.overdue:
                special.overdue = True
                if worker.escalation is None:
                    self._interrupt(worker, job, now, effects)

    def _is_new(self, lease: Lease, spec: JobSpec, now: float, effects: Effects) -> bool:
        if lease.results.attempts.get(spec.job, -1) >= spec.attempt:
            return False
        held = lease.jobs.get(spec.job)
        if held is None:
            return True
        if held.attempt >= spec.attempt:
            return False
        del lease.jobs[spec.job]
        if held.worker is None:
            self._unqueue([held], effects)
        else:
            lease.superseded.add(held)
            self._cancel_given(held, now, effects)
        return True

    def arguments_failed(self, lease: Lease | None, event: ev.ArgumentsFailed, effects: Effects) -> None:
        """End the jobs that waited for them."""
        jobs = self.arguments.waiting(event.name)
        if lease is None or not jobs:
            return
        text = f"its arguments did not reach the node: {event.reason}"
        self._unqueue(jobs, effects)
        self._end(lease, jobs, Ending.DIED, text, effects)

    def worker_forked(self, event: ev.WorkerForked, now: float) -> None:
        """It takes jobs from now on."""
        worker = self.feeder.workers.get(event.worker)
        if worker is not None:
            worker.pid = event.pid
            if worker.state is WorkerState.STARTING:
                worker.state = WorkerState.READY

    def worker_answered(self, lease: Lease | None, event: ev.WorkerAnswered, now: float, effects: Effects) -> None:
        """Turn replies into results for the scheduler."""
        worker = self.feeder.workers.get(event.worker)
        if worker is None or lease is None:
            _withdraw(event.blobs, [], effects)
            return
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
                self._release(job, effects)
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
                verdict = f"{over_time(finished - started, job.special.timeout)}\n".encode()
                done[-1].ending = int(Ending.LIMITED)
                if blob is None:
                    done[-1].error_size += len(verdict)
                    at = len(reply.body) - reply.error_size
                    bodies[-1] = b"".join((reply.body[:at], verdict, reply.body[at:]))
        if event.replies:
            worker.answered += len(event.replies)
            computation.stillborn = computation.exhausted = 0
            computation.measure(seconds, len(event.replies))
        if blobs:
            _withdraw(blobs, done, effects)
        if done:
            self._tell_done(lease, done, bodies, effects)
        self._after_progress(worker, now, effects)

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
        self._tell_done(lease, [done], [reply.body] if event.blob is None else [], effects)

    def _after_progress(self, worker: Worker, now: float, effects: Effects) -> None:
        """The worker's first job has changed: end it if it is to be ended, end the worker if that is due."""
        if worker.escalation is not None and worker.escalation.sequence not in worker.jobs:
            worker.escalation = None
        head = worker.head()
        if head is None:
            self.feeder.end_if_drained(worker, effects.actions)
        elif head.cancelled and worker.escalation is None:
            self._interrupt(worker, head, now, effects)

    def worker_died(
        self, lease: Lease | None, event: ev.WorkerDied, now: float, effects: Effects
    ) -> Computation | None:
        """End the job that it ran, queue the others again; returns the worker's computation."""
        worker = self.feeder.workers.get(event.worker)
        if worker is None or lease is None:
            return None
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
        self._answer_recalls(lease, worker, [], effects)
        self._return(lease, computation, list(worker.jobs.values()), effects)
        worker.jobs.clear()
        return computation

    def gives_up(self, computation: Computation) -> bool:
        """Whether its workers die before they can run anything."""
        return computation.stillborn >= STILLBORN_MOST and not computation.refused

    def must_pause(self, computation: Computation) -> bool:
        """Whether the machine has had nothing left for a worker for a while, and none is here."""
        return computation.exhausted >= EXHAUSTED_MOST and not computation.workers and not computation.refused

    def forget_workers(self, computation: Computation) -> None:
        """Its processes are gone."""
        for worker in list(computation.workers.values()):
            self.feeder.remove(worker, computation)

    def _end_running(self, lease: Lease, job: HeldJob, event: ev.WorkerDied, effects: Effects) -> None:
        if job.blob is not None or job.loan is not None:
            self._release(job, effects)
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
        self._tell_done(lease, [done], [stdout + stderr + error], effects)

    def cancel(self, lease: Lease, numbers: Iterable[int], now: float, effects: Effects) -> None:
        """End these jobs wherever they are; unknown ones have ended already."""
        waiting = []
        for number in numbers:
            job = lease.jobs.get(number)
            if job is None or job.cancelled:
                continue
            if job.worker is None:
                waiting.append(job)
            else:
                self._cancel_given(job, now, effects)
        if waiting:
            self._unqueue(waiting, effects)
            self._end(lease, waiting, Ending.NOT_STARTED, "", effects)

    def _cancel_given(self, job: HeldJob, now: float, effects: Effects) -> None:
        worker = job.worker
        assert worker is not None
        job.cancelled = True
        if worker.head() is job:
            if worker.escalation is None:
                self._interrupt(worker, job, now, effects)
        else:
            self.feeder.recall(worker, effects.actions)

    def _interrupt(self, worker: Worker, job: HeldJob, now: float, effects: Effects) -> None:
        worker.escalation = Escalation.begin(job.sequence, now)
        effects.actions.append(CancelInWorker(worker.computation, worker.id, job.sequence))

    def deadlines(self) -> Iterable[float]:
        """When the next steps against jobs that do not end are due."""
        steps = [each.escalation.deadline for each in self.feeder.workers.values() if each.escalation]
        if self.timed:
            steps += [
                until
                for job, until in self.timed.items()
                if until is not None and job.special is not None and not job.special.overdue
            ]
        return steps

    def escalate(self, now: float, effects: Effects) -> None:
        """Take the steps that are due."""
        for worker in self.feeder.workers.values():
            step = worker.escalation
            if step is None or now < step.deadline:
                continue
            number = step.advance(now)
            if number is signal.SIGINT:
                effects.actions.append(CancelInWorker(worker.computation, worker.id, step.sequence))
            else:
                effects.actions.append(SignalWorker(worker.computation, worker.id, step.sequence, int(number)))

    def recall(self, lease: Lease, count: int, effects: Effects) -> None:
        """Give up to `count` jobs back that have not started: from the queues, then from the workers."""
        taken: list[HeldJob] = []
        for computation in sorted(lease.computations.values(), key=lambda each: -len(each.queue)):
            while computation.queue and len(taken) < count:
                taken.append(computation.queue.pop())
            while computation.heavy and len(taken) < count:
                taken.append(computation.heavy.pop())
            while computation.arriving and len(taken) < count:
                taken.append(computation.arriving.popitem()[1])
        request = RecallRequest(count - len(taken), self._let_go(lease, taken, effects), set())
        if request.wanted > 0:
            for worker in self.feeder.workers.values():
                if worker.unstarted:
                    self.feeder.recall(worker, effects.actions)
                if worker.recalling:
                    request.waiting.add(worker.id)
        if request.waiting:
            lease.recalls.append(request)
        else:
            self._tell_recalled(lease, request.taken, effects)

    def worker_recalled(self, lease: Lease | None, event: ev.WorkerRecalled, now: float, effects: Effects) -> None:
        """Jobs come back from a worker: to who asked for them, else to the front of the queue."""
        worker = self.feeder.workers.get(event.worker)
        if worker is None or lease is None:
            return
        worker.recalling = 0
        numbers = [number for number in worker.jobs if event.first <= number < event.before]
        jobs = [worker.jobs.pop(number) for number in numbers]
        computation = lease.computations[worker.computation]
        for job in jobs:
            job.worker = None
            job.sequence = 0
        jobs = self._answer_recalls(lease, worker, jobs, effects)
        self._return(lease, computation, jobs, effects)
        self._after_progress(worker, now, effects)

    def _answer_recalls(self, lease: Lease, worker: Worker, jobs: list[HeldJob], effects: Effects) -> list[HeldJob]:
        """Give jobs to the scheduler's requests that wait for this worker; returns those that are left."""
        if not lease.recalls:
            return jobs
        left = [job for job in jobs if not job.cancelled]
        kept = [job for job in jobs if job.cancelled]
        for request in lease.recalls:
            if worker.id in request.waiting:
                request.waiting.discard(worker.id)
                cut = max(0, len(left) - request.wanted)
                taken, left = left[cut:], left[:cut]
                request.wanted -= len(taken)
                request.taken += self._let_go(lease, taken, effects)
        for request in [each for each in lease.recalls if not each.waiting]:
            lease.recalls.remove(request)
            self._tell_recalled(lease, request.taken, effects)
        return kept + left

    def _return(self, lease: Lease, computation: Computation, jobs: list[HeldJob], effects: Effects) -> None:
        """Jobs that a worker had not started are here again: end, forget, give back or queue them."""
        cancelled = [job for job in jobs if job.cancelled]
        if cancelled:
            current = [job for job in cancelled if job not in lease.superseded]
            for job in cancelled:
                lease.superseded.discard(job)
                if job.blob is not None or job.loan is not None:
                    self._release(job, effects)
            self._end(lease, current, Ending.NOT_STARTED, "", effects)
            jobs = [job for job in jobs if not job.cancelled]
        if not jobs:
            return
        if lease.expired:
            self._let_go(lease, jobs, effects)
        elif lease.giving_back or computation.refused:
            self._tell_recalled(lease, self._let_go(lease, jobs, effects), effects)
        else:
            requeue(computation, jobs)

    def give_back(self, lease: Lease, computation: Computation, effects: Effects) -> None:
        """The computation cannot run here: what has not started goes back to the scheduler."""
        computation.refused = True
        jobs = self._empty(computation)
        if jobs:
            self._tell_recalled(lease, self._let_go(lease, jobs, effects), effects)

    def give_back_all(self, lease: Lease, effects: Effects) -> None:
        """The node ends at once: what has not started goes back, also out of the workers."""
        lease.giving_back = True
        jobs = [job for computation in lease.computations.values() for job in self._empty(computation)]
        if jobs:
            self._tell_recalled(lease, self._let_go(lease, jobs, effects), effects)
        self._recall_all(effects)

    def drop_unstarted(self, lease: Lease, effects: Effects) -> None:
        """Nobody waits for them any more."""
        for computation in lease.computations.values():
            self._let_go(lease, self._empty(computation), effects)
        self._recall_all(effects)

    def _recall_all(self, effects: Effects) -> None:
        for worker in self.feeder.workers.values():
            if worker.unstarted:
                self.feeder.recall(worker, effects.actions)

    def _empty(self, computation: Computation) -> list[HeldJob]:
        jobs = [*computation.queue, *computation.heavy, *computation.arriving.values()]
        computation.queue.clear()
        computation.heavy.clear()
        computation.arriving.clear()
        return jobs

    def _unqueue(self, jobs: list[HeldJob], effects: Effects) -> None:
        """Take jobs out of the queue or the arrivals, and let their arguments go."""
        gone = set(jobs)
        for computation in {job.computation for job in jobs}:
            for queue in (computation.queue, computation.heavy):
                left = [job for job in queue if job not in gone]
                queue.clear()
                queue.extend(left)
        for job in jobs:
            if job.computation.arriving.get(job.job) is job:
                del job.computation.arriving[job.job]
            if job.blob is not None or job.loan is not None:
                self._release(job, effects)

    def _release(self, job: HeldJob, effects: Effects) -> None:
        """An attempt needs what came for it no more."""
        if job.blob is not None:
            self.arguments.release(job, effects)
        if job.loan is not None:
            effects.actions.append(ReturnFiles(job.computation.id, job.job, job.attempt))

    def _let_go(self, lease: Lease, jobs: list[HeldJob], effects: Effects) -> list[HeldAttempt]:
        """Forget attempts that had not started."""
        for job in jobs:
            del lease.jobs[job.job]
            if job.blob is not None or job.loan is not None:
                self._release(job, effects)
        return [HeldAttempt(job.job, job.attempt) for job in jobs]

    def _end(self, lease: Lease, jobs: list[HeldJob], ending: Ending, text: str, effects: Effects) -> None:
        """End attempts that never ran."""
        if not jobs:
            return
        error = text.encode()
        done = []
        for job in jobs:
            del lease.jobs[job.job]
            lease.results.attempts[job.job] = job.attempt
            done.append(JobDone(job.job, job.attempt, ending, 0.0, 0.0, 0, 0, 0, len(error)))
        self._tell_done(lease, done, [error] * len(done), effects)

    def _tell_done(self, lease: Lease, done: list[JobDone], bodies: list[bytes], effects: Effects) -> None:
        batch = lease.results.add(done, bodies, self.now)
        self.done += len(done)
        hearer = lease.hearer
        if hearer is not None:
            effects.sends.append(Send(hearer, batch.message, bodies))
        else:
            lease.results.look_at = self.now

    def _tell_recalled(self, lease: Lease, held: list[HeldAttempt], effects: Effects) -> None:
        if lease.peer is not None:
            effects.sends.append(Send(lease.peer, JobsRecalled(held)))

    def check(self, lease: Lease | None) -> None:
        """Recompute every table from the others."""
        workers = self.feeder.workers
        computations = {} if lease is None else lease.computations
        running = [
            each
            for computation in computations.values()
            if computation.can_run
            for each in computation.workers.values()
        ]
        staying = [each for each in running if each.state is not WorkerState.RETIRING]
        assert len(staying) <= max(self.feeder.cpus, self.feeder.capacity), "more workers than CPUs"
        self.feeder.check()
        by_computation = {id: each for one in computations.values() for id, each in one.workers.items()}
        assert by_computation == workers, "workers and computations differ"
        seen: list[HeldJob] = []
        for computation in computations.values():
            for job in (*computation.queue, *computation.heavy):
                assert job.worker is None
                assert (job in computation.heavy) == (job.special is not None and job.special.is_heavy)
                assert job.arguments is not None
                seen.append(job)
            for number, job in computation.arriving.items():
                assert job.job == number
                assert job.arguments is None or (job.loan is not None and not job.loan.is_here)
                seen.append(job)
        for worker in workers.values():
            for sequence, job in worker.jobs.items():
                assert job.worker is worker
                assert job.sequence == sequence <= worker.sequence
                seen.append(job)
            assert list(worker.jobs) == sorted(worker.jobs)
            assert worker.escalation is None or worker.escalation.sequence in worker.jobs
        assert len(set(seen)) == len(seen), "a job is in two places"
        held = set() if lease is None else {*lease.jobs.values(), *lease.superseded}
        assert set(seen) == held, "a job is lost or left over"
        self.arguments.check(held)


def _withdraw(blobs: Mapping[int, BlobRef], done: list[JobDone], effects: Effects) -> None:
    """Of the large bodies of replies, let go of those that nobody is told of."""
    told = {each.blob.name for each in done if each.blob is not None}
    gone = [ref.name for ref in blobs.values() if ref.name not in told]
    if gone:
        effects.actions.append(WithdrawResults(gone))
