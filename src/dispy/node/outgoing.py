"""How attempts leave a node: taken out of every table, their arguments let go, the scheduler told.

Part of the node's core. Every way out ends here, exactly once for each attempt.
"""

from __future__ import annotations

from dispy.model import Ending, HeldAttempt, JobDone
from dispy.node.arguments import ArgumentTable
from dispy.node.effects import Effects, ReturnFiles, Send
from dispy.node.objects import ObjectTable
from dispy.node.serving import HeldJob, Lease
from dispy.wire.messages import JobsRecalled


class Outgoing:
    """The way out."""

    __slots__ = ("_arguments", "_objects", "done", "now")

    def __init__(self, arguments: ArgumentTable, objects: ObjectTable) -> None:
        self._arguments = arguments
        self._objects = objects
        self.now = 0.0
        """The time of the event that is being handled."""
        self.done = 0
        """Attempts that have ended here, of all leases."""

    def unqueue(self, jobs: list[HeldJob], effects: Effects) -> None:
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
            self.release(job, effects)

    def release(self, job: HeldJob, effects: Effects) -> None:
        """An attempt needs what came for it no more."""
        if job.blob is not None:
            self._arguments.release(job, effects)
        if job.loan is not None:
            if job.loan.files:
                effects.actions.append(ReturnFiles(job.computation.id, job.job, job.attempt))
            self._objects.release(job, job.loan, self.now, effects)

    def let_go(self, lease: Lease, jobs: list[HeldJob], effects: Effects) -> list[HeldAttempt]:
        """Forget attempts that had not started."""
        for job in jobs:
            del lease.jobs[job.job]
            self.release(job, effects)
        return [HeldAttempt(job.job, job.attempt) for job in jobs]

    def end(self, lease: Lease, jobs: list[HeldJob], ending: Ending, text: str, effects: Effects) -> None:
        """End attempts that never ran."""
        if not jobs:
            return
        error = text.encode()
        done = []
        for job in jobs:
            del lease.jobs[job.job]
            lease.results.attempts[job.job] = job.attempt
            done.append(JobDone(job.job, job.attempt, ending, 0.0, 0.0, 0, 0, 0, len(error)))
        self.tell_done(lease, done, [error] * len(done), effects)

    def tell_done(self, lease: Lease, done: list[JobDone], bodies: list[bytes], effects: Effects) -> None:
        """Tell the scheduler how attempts ended, or keep that until somebody hears."""
        batch = lease.results.add(done, bodies, self.now)
        self.done += len(done)
        hearer = lease.hearer
        if hearer is not None:
            effects.sends.append(Send(hearer, batch.message, bodies))
        else:
            lease.results.look_at = self.now

    def tell_recalled(self, lease: Lease, held: list[HeldAttempt], effects: Effects) -> None:
        """Tell the scheduler which attempts are its own again."""
        if lease.peer is not None:
            effects.sends.append(Send(lease.peer, JobsRecalled(held)))
