"""Jobs that had not started: given back to the scheduler, queued again, or dropped because nobody waits for them.

Part of the node's core.
"""

from __future__ import annotations

from dispy.model import Ending
from dispy.node.effects import Effects
from dispy.node.feeding import Feeder, requeue
from dispy.node.outgoing import Outgoing
from dispy.node.serving import Computation, HeldJob, Lease, RecallRequest, Worker


class Returning:
    """What becomes of jobs before they start, when they are not to start here."""

    __slots__ = ("_feeder", "_outgoing")

    def __init__(self, feeder: Feeder, outgoing: Outgoing) -> None:
        self._feeder = feeder
        self._outgoing = outgoing

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
        request = RecallRequest(count - len(taken), self._outgoing.let_go(lease, taken, effects), set())
        if request.wanted > 0:
            for worker in self._feeder.workers.values():
                if worker.unstarted:
                    self._feeder.recall(worker, effects.actions)
                if worker.recalling:
                    request.waiting.add(worker.id)
        if request.waiting:
            lease.recalls.append(request)
        else:
            self._outgoing.tell_recalled(lease, request.taken, effects)

    def answer(self, lease: Lease, worker: Worker, jobs: list[HeldJob], effects: Effects) -> list[HeldJob]:
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
                request.taken += self._outgoing.let_go(lease, taken, effects)
        for request in [each for each in lease.recalls if not each.waiting]:
            lease.recalls.remove(request)
            self._outgoing.tell_recalled(lease, request.taken, effects)
        return kept + left

    def put_back(self, lease: Lease, computation: Computation, jobs: list[HeldJob], effects: Effects) -> None:
        """Jobs that a worker had not started are here again: end, forget, give back or queue them."""
        cancelled = [job for job in jobs if job.cancelled]
        if cancelled:
            current = [job for job in cancelled if job not in lease.superseded]
            for job in cancelled:
                lease.superseded.discard(job)
                self._outgoing.release(job, effects)
            self._outgoing.end(lease, current, Ending.NOT_STARTED, "", effects)
            jobs = [job for job in jobs if not job.cancelled]
        if not jobs:
            return
        if lease.expired:
            self._outgoing.let_go(lease, jobs, effects)
        elif lease.giving_back or computation.refused:
            self._outgoing.tell_recalled(lease, self._outgoing.let_go(lease, jobs, effects), effects)
        else:
            requeue(computation, jobs)

    def give_back(self, lease: Lease, computation: Computation, effects: Effects) -> None:
        """The computation cannot run here: what has not started goes back to the scheduler."""
        computation.refused = True
        jobs = self._empty(computation)
        if jobs:
            self._outgoing.tell_recalled(lease, self._outgoing.let_go(lease, jobs, effects), effects)

    def give_back_all(self, lease: Lease, effects: Effects) -> None:
        """The node ends at once: what has not started goes back, also out of the workers."""
        lease.giving_back = True
        jobs = [job for computation in lease.computations.values() for job in self._empty(computation)]
        if jobs:
            self._outgoing.tell_recalled(lease, self._outgoing.let_go(lease, jobs, effects), effects)
        self._recall_all(effects)

    def drop_unstarted(self, lease: Lease, effects: Effects) -> None:
        """Nobody waits for them any more."""
        for computation in lease.computations.values():
            self._outgoing.let_go(lease, self._empty(computation), effects)
        self._recall_all(effects)

    def _recall_all(self, effects: Effects) -> None:
        for worker in self._feeder.workers.values():
            if worker.unstarted:
                self._feeder.recall(worker, effects.actions)

    def _empty(self, computation: Computation) -> list[HeldJob]:
        jobs = [*computation.queue, *computation.heavy, *computation.arriving.values()]
        computation.queue.clear()
        computation.heavy.clear()
        computation.arriving.clear()
        return jobs
