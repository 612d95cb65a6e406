"""What becomes of the computations of a lease: opened, prepared, refused, started again, closed, cleaned.

Part of the node's core: events in, effects out, nothing else.
"""

from __future__ import annotations

from dispy.model import ComputationId
from dispy.node import events as ev
from dispy.node.effects import AnswerParcel, CleanComputation, Effects, PrepareComputation, Send, StartForkServer
from dispy.node.jobs import JobDesk
from dispy.node.serving import Computation, ComputationState, ForkServerState, Lease
from dispy.wire import messages as msg

FORK_SERVER_LIVES = 3
"""A fork server that died so often in a row, without a job that came to its end, is not started again."""


class ComputationDesk:
    """The computations of the lease. Every method takes the lease; nothing is kept here."""

    __slots__ = ("_jobs",)

    def __init__(self, jobs: JobDesk) -> None:
        self._jobs = jobs

    def ask_open(self, lease: Lease, message: msg.OpenComputation, effects: Effects, *, ending: bool) -> None:
        """Prepare it, unless the node is `ending`; one that is closing is opened again afterwards."""
        assert lease.peer is not None
        spec = message.computation
        computation = lease.computations.get(spec.id)
        if ending or lease.ended:
            refusal = msg.ComputationRefused(spec.id, "the node is ending", final=False)
            effects.sends.append(Send(lease.peer, refusal))
        elif computation is None:
            self._open(lease, message, effects)
        elif computation.state is ComputationState.READY:
            computation.limit, computation.oversubscribe = message.cpus, message.oversubscribe
            effects.sends.append(Send(lease.peer, msg.ComputationReady(spec.id)))
        elif computation.state is ComputationState.OPENING:
            computation.limit, computation.oversubscribe = message.cpus, message.oversubscribe
        else:
            computation.reopen = message

    def _open(self, lease: Lease, message: msg.OpenComputation, effects: Effects) -> None:
        assert lease.peer is not None
        spec = message.computation
        computation = Computation(spec, message.setup_args, limit=message.cpus, oversubscribe=message.oversubscribe)
        lease.computations[spec.id] = computation
        effects.actions.append(PrepareComputation(lease.peer, computation.spec, computation.setup_args))

    def ask_close(self, lease: Lease, message: msg.CloseComputation, now: float, effects: Effects) -> None:
        """Close it when its jobs have ended; ComputationClosed is said in any case."""
        assert lease.peer is not None
        computation = lease.computations.get(message.computation)
        if computation is None:
            effects.sends.append(Send(lease.peer, msg.ComputationClosed(message.computation)))
            return
        computation.reopen = None
        # also one that was refused and is being cleaned: whoever asks for a close waits for the answer
        computation.told_closed = False
        self.close(lease, computation, terminate=message.terminate, now=now, effects=effects)

    def close(self, lease: Lease, computation: Computation, *, terminate: bool, now: float, effects: Effects) -> None:
        """Take no more jobs of it; with `terminate` end those that are here."""
        if computation.state is ComputationState.CLEANING:
            return
        if terminate:
            jobs = [job.job for job in lease.jobs.values() if job.computation is computation]
            self._jobs.forcing.cancel(lease, jobs, now, effects)
        computation.state = ComputationState.CLOSING

    def expire(self, lease: Lease, effects: Effects) -> None:
        """Nobody came back in time: what has not started is dropped, what runs may end, and nobody takes its files."""
        lease.grace_at = None
        lease.expired = True
        self._jobs.returning.drop_unstarted(lease, effects)
        effects.actions += [AnswerParcel(parcel, False) for parcel in lease.parcels]
        lease.parcels.clear()
        for computation in lease.computations.values():
            if computation.state is ComputationState.OPENING:
                computation.state = ComputationState.CLOSING

    def clean_empty(self, lease: Lease, effects: Effects) -> None:
        """Clear away what is closing and has no jobs."""
        for computation in lease.computations.values():
            if computation.state is ComputationState.CLOSING and computation.is_empty:
                computation.state = ComputationState.CLEANING
                has_run = computation.server is ForkServerState.STANDING
                effects.actions.append(CleanComputation(computation.id, has_run))
                computation.server = ForkServerState.ABSENT

    def advanced(self, lease: Lease | None, event: ev.ComputationAdvanced, effects: Effects) -> None:
        """Its preparation has come to a step that may take long."""
        if lease is not None and _living(lease, event.computation) is not None:
            _tell(lease, msg.ComputationAdvanced(event.computation, event.step), effects)

    def prepared(self, lease: Lease | None, event: ev.ComputationPrepared, effects: Effects) -> None:
        """Its files are here. Its fork server starts with its first job, or now if users expect its setup to run."""
        if lease is None or (computation := _living(lease, event.computation)) is None:
            return
        computation.prepared = True
        if not computation.spec.has_setup:
            self._ready(lease, computation, effects)

    def start_needed(self, lease: Lease, effects: Effects) -> None:
        """Start the fork servers that are needed and are not there."""
        for computation in lease.computations.values():
            if computation.server is ForkServerState.ABSENT and computation.lacks_server:
                computation.server = ForkServerState.STARTING
                effects.actions.append(StartForkServer(computation.id))

    def started(self, lease: Lease | None, event: ev.ForkServerStarted, effects: Effects) -> None:
        """Its fork server stands; that is told also of one that was ready before, to whom its start was told."""
        if lease is None or (computation := _living(lease, event.computation)) is None:
            return
        computation.server = ForkServerState.STANDING
        self._ready(lease, computation, effects)

    def _ready(self, lease: Lease, computation: Computation, effects: Effects) -> None:
        if computation.state in (ComputationState.OPENING, ComputationState.READY):
            computation.state = ComputationState.READY
            _tell(lease, msg.ComputationReady(computation.id), effects)

    def failed(self, lease: Lease | None, event: ev.ComputationFailed, effects: Effects) -> None:
        """It could not be prepared, or its fork server not be started."""
        if lease is not None and (computation := _living(lease, event.computation)) is not None:
            self._refuse(lease, computation, event, effects)

    def _refuse(self, lease: Lease, computation: Computation, why: ev.ComputationFailed, effects: Effects) -> None:
        """Say that it cannot run here, give its jobs back, remove it."""
        if computation.state is not ComputationState.CLOSING:
            # first, or the scheduler would send the jobs here again
            refusal = msg.ComputationRefused(computation.id, why.reason, why.trace, why.final, why.lost)
            _tell(lease, refusal, effects)
            computation.told_closed = True
        self._jobs.returning.give_back(lease, computation, effects)
        computation.server = ForkServerState.ABSENT
        computation.state = ComputationState.CLOSING

    def cleaned(self, lease: Lease | None, event: ev.ComputationCleaned, effects: Effects) -> None:
        """Nothing of it is left."""
        computation = None if lease is None else lease.computations.get(event.computation)
        if computation is None or computation.state is not ComputationState.CLEANING:
            return
        assert lease is not None, "a computation without a lease"
        self._jobs.forget_workers(lease, computation, effects)
        del lease.computations[computation.id]
        if not computation.told_closed:
            _tell(lease, msg.ComputationClosed(computation.id, event.trace), effects)
        if computation.reopen is not None and lease.peer is not None:
            self._open(lease, computation.reopen, effects)

    def fork_server_died(
        self, lease: Lease | None, event: ev.ForkServerDied, now: float, wall: float, effects: Effects
    ) -> None:
        """End the jobs that ran below it; it may be started again, unless it has died too often in a row.

        `wall` is the wall clock at `now`.
        One that is killed while it starts has no workers; its jobs wait for the next.
        """
        if lease is None or (computation := _living(lease, event.computation)) is None:
            return
        for worker in list(computation.workers.values()):
            running = next(iter(worker.jobs), 0)
            death = ev.WorkerDied(worker.id, running, event.cause, ended=wall)
            self._jobs.worker_died(lease, death, now, effects)
        computation.server = ForkServerState.ABSENT
        computation.deaths += 1
        if computation.deaths >= FORK_SERVER_LIVES:
            reason = f"its fork server died {computation.deaths} times in a row; last: {event.cause}"
            self._refuse(lease, computation, ev.ComputationFailed(computation.id, reason), effects)

    def worker_died(self, lease: Lease | None, event: ev.WorkerDied, now: float, effects: Effects) -> None:
        """A worker ended; a computation whose workers cannot live is refused."""
        computation = self._jobs.worker_died(lease, event, now, effects)
        if computation is None or computation.state is ComputationState.CLEANING:
            return
        assert lease is not None, "a worker without a lease"
        if event.setup_failed:
            trace = event.stderr.decode("utf-8", "replace")
            reason = "setup failed in a worker: " + trace.strip().rpartition("\n")[2]
            self._refuse(lease, computation, ev.ComputationFailed(computation.id, reason, trace), effects)
        elif event.exhausted and self._jobs.must_pause(computation):
            self._refuse(lease, computation, ev.ComputationFailed(computation.id, event.cause, final=False), effects)
        elif self._jobs.gives_up(computation):
            count = computation.stillborn
            reason = f"{count} workers in a row ended before they could run a job; last: {event.cause}"
            self._refuse(lease, computation, ev.ComputationFailed(computation.id, reason), effects)


def _living(lease: Lease, key: ComputationId) -> Computation | None:
    computation = lease.computations.get(key)
    return None if computation is None or computation.state is ComputationState.CLEANING else computation


def _tell(lease: Lease, message: msg.AnyMessage, effects: Effects) -> None:
    if lease.peer is not None:
        effects.sends.append(Send(lease.peer, message))
