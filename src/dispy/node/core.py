"""The node's decisions: what follows from what schedulers say, its owner wants and happens to jobs.

A plain object: events in, effects out. No I/O, clock, task or log. `dispy.node.service` is its host.
Who holds the node is in `dispy.node.leases`, what becomes of computations in `dispy.node.computations`, of jobs in
`dispy.node.jobs`, of results that wait in `dispy.node.keeping` and `dispy.node.claims`; who gets which job is in
`dispy.node.feeding`, when a node that is to end does so in `dispy.node.departure`.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from dispy.model import HeldAttempt, JobSpec, ProcessId
from dispy.node import conversation
from dispy.node import events as ev
from dispy.node.departure import Departure
from dispy.node.effects import Announce, Effects, Exit, HangUp, Send
from dispy.node.invariants import check_jobs, check_lease
from dispy.node.leases import Leases
from dispy.node.serving import ComputationState, Lease, lease_name
from dispy.node.snapshot import Snapshot, take_snapshot
from dispy.wire import messages as msg
from dispy.words import counted


class NodeCore(Leases):
    """All that a node knows and decides."""

    def handle(self, event: ev.Event, now: float) -> Effects:
        """Take one event in and return all that it causes."""
        effects = Effects()
        if self.ended:
            return effects
        self.desk.outgoing.now = now
        match event:
            case ev.WorkerAnswered():
                self.desk.worker_answered(self.lease, event, now, effects)
            case ev.SchedulerSaid():
                self._on_said(event, now, effects)
            case ev.WorkerSpoke():
                self.desk.worker_spoke(self.lease, event, effects)
                if self.lease is not None and self.lease.hearer is None:
                    self.keeper.bound_interim(self.lease, effects)
            case ev.FileSent():
                conversation.file_sent(self.lease, self.desk.feeder, event, effects)
            case ev.FilesLent():
                self.desk.files_lent(self.lease, event, effects)
            case ev.ParcelDropped():
                conversation.parcel_dropped(self.lease, event)
            case ev.TailRead() | ev.FileStored():
                conversation.answered(self.lease, event, effects)
            case ev.WorkerForked():
                self.desk.worker_forked(event)
            case ev.WorkerDied():
                self.computations.worker_died(self.lease, event, now, effects)
            case ev.WorkerRecalled():
                self.desk.worker_recalled(self.lease, event, now, effects)
            case ev.ArgumentsFetched():
                self.desk.arguments.fetched(event, effects)
            case ev.ArgumentsFailed():
                self.desk.arguments_failed(self.lease, event, effects)
            case ev.ObjectFetched():
                self.desk.objects.fetched(event, effects)
            case ev.ObjectFailed():
                self.desk.object_failed(self.lease, event, effects)
            case ev.ComputationAdvanced():
                self.computations.advanced(self.lease, event, effects)
            case ev.ComputationPrepared():
                self.computations.prepared(self.lease, event, effects)
            case ev.ForkServerStarted():
                self.computations.started(self.lease, event, effects)
            case ev.ComputationFailed():
                self.computations.failed(self.lease, event, effects)
            case ev.ComputationCleaned():
                self.computations.cleaned(self.lease, event, effects)
                if event.shutdown:
                    self._on_exit_asked(ev.ExitAsked(at_once=False), now, effects)
            case ev.ForkServerDied():
                self.computations.fork_server_died(self.lease, event, now, now + self.wall_offset, effects)
            case ev.LinkOpened():
                self._on_link_opened(event, now, effects)
            case ev.LinkLost():
                self._on_link_lost(event, now, effects)
            case ev.BatchesSpooled():
                self.keeper.spooled(self.lease, event, now)
            case ev.SpoolFailed():
                self.keeper.failed(self.lease, event, now)
            case ev.SpoolFound():
                highest = self.keeper.found(event, now, self.wall_offset)
                self.last_sequence = max(self.last_sequence, highest)
            case ev.LoadSampled():
                if self.lease is not None and self.lease.peer is not None:
                    effects.sends.append(Send(self.lease.peer, msg.LoadMeasured(event.avail)))
            case ev.OfferChanged():
                self._on_offer_changed(event, effects)
            case ev.EndAsked():
                self._on_end_asked(event, now, effects)
            case ev.ReleaseAsked():
                self._on_release_asked(effects)
            case ev.ExitAsked():
                self._on_exit_asked(event, now, effects)
            case _:
                assert_never(event)
        self._settle(now, effects)
        return effects

    def next_deadline(self) -> float | None:
        """When `handle_timeout` is to be called, on the clock of `now`."""
        times = [] if (waiting := self.keeper.deadline(self.lease)) is None else [waiting]
        if (lease := self.lease) is not None:
            times += [at for at in (lease.grace_at, lease.zombie_at) if at is not None]
            feeding = self.desk.feeder.next_deadline(lease.computations.values())
            if feeding is not None and not (self.departure and self.departure.at_once):
                times.append(feeding)
        times += self.desk.forcing.deadlines()
        if self.desk.objects and (idle := self.desk.objects.deadline()) is not None:
            times.append(idle)
        if self.departure is not None:
            times += self.departure.deadlines()
        return None if self.ended else min(times, default=None)

    def handle_timeout(self, now: float) -> Effects:
        """Do what is due at `now`."""
        effects = Effects()
        if self.ended:
            return effects
        self.desk.outgoing.now = now
        self.keeper.handle_timeout(self.lease, now, effects)
        if (lease := self.lease) is not None:
            if lease.grace_at is not None and now >= lease.grace_at:
                self.computations.expire(lease, effects)
            if lease.zombie_at is not None and now >= lease.zombie_at:
                lease.zombie_at = None
        self.desk.forcing.escalate(now, effects)
        if self.desk.objects:
            self.desk.objects.forget_idle(now, effects)
        self._settle(now, effects)
        return effects

    def snapshot(self) -> Snapshot:
        """What people may see."""
        return take_snapshot(self.lease, self.line, self.desk, self.keeper, self.served)

    def check(self) -> None:
        """Recompute every table from the others.

        Raises:
            AssertionError: two of them differ, which is a bug here.
        """
        lease = self.lease
        check_jobs(self.desk, lease)
        self.keeper.check(lease)
        self.claims.check(lease, self.links)
        assert len({waiter.peer for waiter in self.line}) == len(self.line), "stands in line twice"
        assert all(waiter.peer in self.links for waiter in self.line), "waits without a link"
        if lease is None:
            assert not self.line or self.departure, "somebody waits for a free node"
            return
        if not self.ended:
            check_lease(self.desk, lease, in_line=bool(self.line))
        assert lease.peer is None or lease.peer in self.links, "the lease speaks over a link that is gone"
        assert lease.peer is not None or lease.expired or lease.grace_at is not None or lease.ended

    def _on_said(self, event: ev.SchedulerSaid, now: float, effects: Effects) -> None:
        message, peer = event.message, event.peer
        if peer not in self.links:
            return
        if isinstance(message, msg.AskLease):
            self._on_ask_lease(peer, message, now, effects)
            return
        if isinstance(message, msg.ReleaseLease):
            self._on_release(peer, now, effects)
            return
        lease = self.lease
        if isinstance(message, msg.ClaimResults):
            if lease is not None and lease.peer == peer:
                self._hang_up(peer, "one link cannot hold a lease and claim results", now, effects)
            else:
                self._drop_claim(peer, now)
                self._displace(lease_name(message.token), "another process claims the same results", now, effects)
                self.claims.ask(peer, message)
            return
        if lease is None or lease.peer != peer:
            self._on_stranger(peer, message, effects)
            return
        match message:
            case msg.RunJobs():
                if message.acknowledged:
                    self.keeper.acknowledge(lease.name, lease.results, message.acknowledged, effects)
                self._on_run_jobs(lease, message, event.payload, now, effects)
            case msg.AckResults():
                self.keeper.acknowledge(lease.name, lease.results, message.sequence, effects)
            case msg.CancelJobs():
                self.desk.forcing.cancel(lease, message.jobs, now, effects)
            case msg.RecallJobs():
                self.desk.returning.recall(lease, message.count, effects)
            case msg.OpenComputation():
                self.computations.ask_open(lease, message, effects, ending=self.departure is not None)
            case msg.CloseComputation():
                self.computations.ask_close(lease, message, now, effects)
            case msg.FileTaken() | msg.PlaceFile() | msg.TailJob() | msg.ListJobs():
                conversation.asked(lease, message, effects)
            case _:
                reason = f"a scheduler does not send {type(message).__name__} to a node"
                self._hang_up(peer, reason, now, effects)

    def _on_stranger(self, peer: ProcessId, message: msg.AnyMessage, effects: Effects) -> None:
        """Whoever has lost the lease is told that nothing of it is here; the rest is stale."""
        if isinstance(message, msg.RunJobs):
            effects.sends.append(Send(peer, _given_back(message.jobs)))
        elif isinstance(message, msg.CloseComputation):
            effects.sends.append(Send(peer, msg.ComputationClosed(message.computation)))
        elif isinstance(message, msg.AckResults):
            self.claims.acknowledged(peer, message.sequence, self.lease, effects)

    def _on_run_jobs(
        self, lease: Lease, message: msg.RunJobs, payload: bytes | memoryview, now: float, effects: Effects
    ) -> None:
        assert lease.peer is not None
        computation = lease.computations.get(message.computation)
        takes = (ComputationState.OPENING, ComputationState.READY)
        refuses = self.departure or not self.info.cpus
        if computation is None or refuses or computation.state not in takes:
            effects.sends.append(Send(lease.peer, _given_back(message.jobs)))
            return
        if sum([spec.size for spec in message.jobs]) != len(payload):
            reason = "the arguments of a batch are not as long as it says"
            self._hang_up(lease.peer, reason, now, effects)
            return
        self.desk.take(lease, computation, message.jobs, payload, now, effects)

    def _on_offer_changed(self, event: ev.OfferChanged, effects: Effects) -> None:
        """Tell everybody; nothing new starts beyond the offer, and without one what has not started goes back."""
        before = self.info
        if self.departure is not None or (before.cpus, before.closed) == (event.cpus, event.reason):
            return
        self.info = msgspec.structs.replace(before, cpus=event.cpus, closed=event.reason)
        lease = self.lease
        holder = None if lease is None else lease.holder_now
        description = msg.NodeDescribed(msgspec.structs.replace(self.info, holder=holder))
        effects.sends += [Send(peer, description) for peer in sorted(self.links)]
        self.desk.feeder.cpus = event.cpus
        if lease is not None:
            if event.cpus:
                lease.giving_back = False
            else:
                self.desk.returning.give_back_all(lease, effects)
        elif event.cpus and not before.cpus:
            effects.actions.append(Announce())

    def _on_end_asked(self, event: ev.EndAsked, now: float, effects: Effects) -> None:
        lease = self.lease
        if lease is None or lease.ended:
            return
        lease.ended = True  # before the link ends: another process with its token would take it up
        if lease.peer is not None:
            self._hang_up(lease.peer, event.reason, now, effects)
        for computation in lease.computations.values():
            self.computations.close(lease, computation, terminate=True, now=now, effects=effects)

    def _on_release_asked(self, effects: Effects) -> None:
        lease = self.lease
        if lease is not None and lease.peer is None:
            lease.zombie_at = None
            self.computations.expire(lease, effects)

    def _on_exit_asked(self, event: ev.ExitAsked, now: float, effects: Effects) -> None:
        if self.departure is not None and (self.departure.at_once or not event.at_once):
            return
        for waiter in list(self.line):
            self._hang_up(waiter.peer, "the node is ending", now, effects)
        lease = self.lease
        self.departure = Departure.begin(event, now, self.zombie_interval)
        if event.at_once:
            if lease is not None:
                self.desk.returning.give_back_all(lease, effects)
            return
        self.info = msgspec.structs.replace(self.info, cpus=0, closed="it is ending")
        if lease is not None and lease.peer is not None:
            effects.sends.append(Send(lease.peer, msg.NodeDescribed(self.info)))

    def _due(self, departure: Departure, now: float, effects: Effects) -> Exit | HangUp | None:
        if self.lease is None:
            return departure.without_lease(now, unfetched=bool(self.keeper.orphans))
        recalling = any(worker.recalling for worker in self.desk.feeder.workers.values())
        return departure.with_lease(self.lease, self.computations, now, effects, recalling=recalling)

    def _depart(self, due: Exit | HangUp | None, now: float, effects: Effects) -> None:
        """Take the step that is due on the way to the end."""
        match due:
            case Exit(reason):
                self._exit(reason, now, effects)
            case HangUp(peer, reason):
                self._hang_up(peer, reason, now, effects)

    def _settle(self, now: float, effects: Effects) -> None:
        """Decide from the whole state what follows."""
        if self.claims.claims:
            self.claims.settle(self.lease, now, effects)
        lease = self.lease
        if self.departure is not None:
            self._depart(self._due(self.departure, now, effects), now, effects)
        if lease is None or self.ended:
            return
        if lease.expired and lease.is_idle and not lease.ended:
            lease.ended = bool(self.line) or lease.zombie_at is None
        if not (self.departure and self.departure.at_once):
            if not lease.ended:
                self.computations.start_needed(lease, effects)
            self.desk.feeder.dispatch(lease.computations.values(), now, effects.actions)
        if self.desk.forcing.timed:
            self.desk.forcing.watch_time(lease, now, effects)
        if lease.ended:
            for computation in lease.computations.values():
                computation.reopen = None
                self.computations.close(lease, computation, terminate=False, now=now, effects=effects)
        self.computations.clean_empty(lease, effects)
        if lease.ended and not lease.computations:
            self._free(lease, now, effects)

    def _free(self, lease: Lease, now: float, effects: Effects) -> None:
        self.lease = None
        self.desk.objects.forget_idle(now, effects, all_of_them=True)
        self.last_sequence = max(self.last_sequence, lease.results.sequence)
        if lease.released:
            self.keeper.acknowledge(lease.name, lease.results, lease.results.sequence, effects)
        else:
            self.keeper.adopt(lease, now, effects)
        self.served += 1
        if self.departure is not None:
            due = self.departure.after_lease(now, unfetched=bool(self.keeper.orphans))
            self._depart(due, now, effects)
        elif self.served == self.serve:
            self._exit(f"it has served {counted(self.served, 'program')}", now, effects)
        elif self.line:
            self._grant(self.line.pop(0), now, effects)
        elif self.info.cpus:
            effects.actions.append(Announce())

    def _exit(self, reason: str, now: float, effects: Effects) -> None:
        self.ended = True
        self.keeper.write_all(self.lease, now, effects)
        effects.actions.append(Exit(reason))


def _given_back(jobs: list[JobSpec]) -> msg.JobsRecalled:
    return msg.JobsRecalled([HeldAttempt(spec.job, spec.attempt) for spec in jobs])
