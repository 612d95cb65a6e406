"""Jobs that are ended by force, because somebody wants it or their time is over, step by step.

Part of the node's core.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable

from dispy.model import Ending
from dispy.node.effects import CancelInWorker, Effects, SignalWorker
from dispy.node.feeding import Feeder
from dispy.node.outgoing import Outgoing
from dispy.node.serving import HeldJob, Lease, Worker
from dispy.node.slots import Escalation


class Forcing:
    """Jobs with a time limit, and the steps against those that do not end."""

    __slots__ = ("_feeder", "_outgoing", "timed")

    def __init__(self, feeder: Feeder, outgoing: Outgoing) -> None:
        self._feeder = feeder
        self._outgoing = outgoing
        self.timed: dict[HeldJob, float | None] = {}
        """Jobs with a time limit, and when it is over for those that run."""

    def watch_time(self, lease: Lease, now: float, effects: Effects) -> None:
        """Let the clocks of jobs with a time limit run while they do, and end those that are over it."""
        for job, until in list(self.timed.items()):
            worker, special = job.worker, job.wishes
            if lease.jobs.get(job.job) is not job:
                del self.timed[job]
            elif worker is None or worker.head() is not job:
                self.timed[job] = None
            elif until is None:
                self.timed[job] = now + special.timeout
            elif now >= until:
                special.overdue = True
                if worker.escalation is None:
                    self._interrupt(worker, job, now, effects)

    def cancel(self, lease: Lease, numbers: Iterable[int], now: float, effects: Effects) -> None:
        """End these jobs wherever they are; unknown ones have ended already."""
        waiting = []
        for number in numbers:
            job = lease.jobs.get(number)
            if job is None:
                continue
            if job.worker is None:
                waiting.append(job)
            else:
                self.cancel_given(job, now, effects)
        if waiting:
            self._outgoing.unqueue(waiting, effects)
            self._outgoing.end(lease, waiting, Ending.NOT_STARTED, "", effects)

    def cancel_given(self, job: HeldJob, now: float, effects: Effects) -> None:
        """End a job that was given to a worker: interrupt it, or take it back if another one is before it."""
        worker = job.worker
        assert worker is not None
        job.cancelled = True
        if worker.head() is job:
            if worker.escalation is None:
                self._interrupt(worker, job, now, effects)
        else:
            self._feeder.recall(worker, effects.actions)

    def _interrupt(self, worker: Worker, job: HeldJob, now: float, effects: Effects) -> None:
        worker.escalation = Escalation.begin(job.sequence, now)
        effects.actions.append(CancelInWorker(worker.computation, worker.id, job.sequence))

    def deadlines(self) -> Iterable[float]:
        """When the next steps against jobs that do not end are due."""
        steps = [each.escalation.deadline for each in self._feeder.workers.values() if each.escalation]
        if self.timed:
            steps += [until for job, until in self.timed.items() if until is not None and not job.wishes.overdue]
        return steps

    def escalate(self, now: float, effects: Effects) -> None:
        """Take the steps that are due."""
        for worker in self._feeder.workers.values():
            step = worker.escalation
            if step is None or now < step.deadline:
                continue
            number = step.advance(now)
            if number is signal.SIGINT:
                effects.actions.append(CancelInWorker(worker.computation, worker.id, step.sequence))
            else:
                effects.actions.append(SignalWorker(worker.computation, worker.id, step.sequence, int(number)))

    def after_progress(self, worker: Worker, now: float, effects: Effects) -> None:
        """The worker's first job has changed: end it if it is to be ended, end the worker if that is due."""
        if worker.escalation is not None and worker.escalation.sequence not in worker.jobs:
            worker.escalation = None
        head = worker.head()
        if head is None:
            self._feeder.end_if_drained(worker, effects.actions)
        elif head.cancelled and worker.escalation is None:
            self._interrupt(worker, head, now, effects)
