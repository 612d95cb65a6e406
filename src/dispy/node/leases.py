"""Who holds a node: links, leases asked for, granted, taken up again, given back; who stands in line.

The lower half of the node's core (`dispy.node.core`): the tables, and what links and leases do with them.
"""

from __future__ import annotations

import msgspec

from dispy.model import HeldAttempt, NodeInfo, ProcessId
from dispy.node import events as ev
from dispy.node.claims import ClaimDesk
from dispy.node.computations import ComputationDesk
from dispy.node.departure import Departure
from dispy.node.effects import Effects, HangUp, NoteLease, Send
from dispy.node.jobs import JobDesk
from dispy.node.keeping import Keeper
from dispy.node.serving import ComputationState, Lease, Waiter
from dispy.settings import GRACE_TIMEOUT, ZOMBIE_INTERVAL
from dispy.wire import messages as msg

_IS_BACK = "the process that submitted these jobs is back"


class Leases:
    """Who speaks with the node, who holds it and who waits for it."""

    def __init__(
        self,
        info: NodeInfo,
        *,
        wall_offset: float = 0.0,
        grace: float = GRACE_TIMEOUT,
        zombie_interval: float = ZOMBIE_INTERVAL,
        serve: int | None = None,
        notes_leases: bool = False,
        last_sequence: int = 0,
    ) -> None:
        """`wall_offset` is wall clock minus `now`; with `notes_leases` NoteLease is asked for."""
        self.info = info
        self.wall_offset = wall_offset
        self.grace = grace
        self.zombie_interval = zombie_interval
        self.serve = serve
        """Leases after which the node ends; None: never."""
        self.served = 0
        """Leases that are over."""
        self.notes_leases = notes_leases
        self.lease: Lease | None = None
        self.line: list[Waiter] = []
        self.links: set[ProcessId] = set()
        self.desk = JobDesk(info.cpus, info.gpus, oversubscribe=info.oversubscribe)
        self.computations = ComputationDesk(self.desk)
        self.keeper = Keeper(zombie_interval)
        self.claims = ClaimDesk(self.computations, self.keeper)
        self.departure: Departure | None = None
        """It has been told to end."""
        self.ended = False
        """Exit has been decided; nothing follows."""
        self.last_sequence = last_sequence
        """Number of the last batch of results of all leases that are over, also in daemons before this one."""

    def _on_link_opened(self, event: ev.LinkOpened, now: float, effects: Effects) -> None:
        if event.peer in self.links:
            self._drop_link(event.peer, goodbye=False, now=now, effects=effects)
        self.links.add(event.peer)
        holder = None if self.lease is None else self.lease.holder_now
        effects.sends.append(Send(event.peer, msg.NodeDescribed(msgspec.structs.replace(self.info, holder=holder))))

    def _on_link_lost(self, event: ev.LinkLost, now: float, effects: Effects) -> None:
        if event.peer in self.links:
            self._drop_link(event.peer, goodbye=event.goodbye, now=now, effects=effects)

    def _drop_link(self, peer: ProcessId, *, goodbye: bool, now: float, effects: Effects) -> None:
        self.links.discard(peer)
        self.line = [waiter for waiter in self.line if waiter.peer != peer]
        lease = self.lease
        self._drop_claim(peer, now)
        if lease is None or lease.peer != peer:
            return
        lease.peer = None
        lease.recalls.clear()
        lease.grace_at = now + self.grace
        lease.zombie_at = None if goodbye else now + self.zombie_interval
        self.keeper.hurry(lease.results, now)
        if goodbye:
            self.computations.expire(lease, effects)
        successor = next((waiter for waiter in self.line if waiter.token == lease.token), None)
        if successor is not None and not lease.ended:
            self.line.remove(successor)
            self._resume(lease, successor.peer, now, effects)

    def _drop_claim(self, peer: ProcessId, now: float) -> None:
        self.claims.drop(peer, self.lease)
        if self.lease is not None and self.lease.hearer is None:
            self.keeper.hurry(self.lease.results, now)

    def _displace(self, name: bytes, reason: str, now: float, effects: Effects) -> None:
        """Somebody else has proved this token now: end the link that claimed it."""
        if (claim := self.claims.claims.get(name)) is not None:
            self._hang_up(claim.peer, reason, now, effects)

    def _on_ask_lease(self, peer: ProcessId, ask: msg.AskLease, now: float, effects: Effects) -> None:
        if self.departure is not None and (self.lease is None or self.lease.token != ask.token):
            self._hang_up(peer, "the node is ending", now, effects)
            return
        # Another process with this token keeps its place: which of the two is gone shows when a link ends.
        self.line = [each for each in self.line if each.peer != peer]
        self._drop_claim(peer, now)
        lease = self.lease
        if lease is None:
            self._grant(Waiter(ask.token, ask.holder, peer), now, effects)
        elif lease.token == ask.token and not lease.ended and lease.peer in (None, peer):
            self._resume(lease, peer, now, effects)
        else:
            self.line.append(Waiter(ask.token, ask.holder, peer))
            if lease.ended or lease.token != ask.token:
                effects.sends.append(Send(peer, msg.LeaseRefused(lease.holder_now)))
            # else another process speaks with this lease: which of the two is gone shows soon, then comes the answer

    def _resume(self, lease: Lease, peer: ProcessId, now: float, effects: Effects) -> None:
        """Its holder, or whoever goes on for him, is here again."""
        self._displace(lease.name, _IS_BACK, now, effects)
        lease.peer = peer
        lease.grace_at = lease.zombie_at = None
        lease.expired = False
        self._tell_granted(lease, effects)
        self.desk.arguments.fetch_again(lease, effects)
        self.desk.objects.fetch_again(lease, effects)

    def _grant(self, waiter: Waiter, now: float, effects: Effects) -> None:
        holder = msgspec.structs.replace(waiter.holder, since=now + self.wall_offset)
        self.lease = lease = Lease(waiter.token, holder, waiter.peer)
        if self.notes_leases:
            effects.actions.append(NoteLease(lease.name))
        self._displace(lease.name, _IS_BACK, now, effects)
        orphan = self.keeper.orphans.pop(lease.name, None)
        if orphan is not None:
            lease.results = orphan.results
        # numbers go on from lease to lease: a late acknowledgement must not mean a batch of the next one
        lease.results.sequence = max(lease.results.sequence, self.last_sequence)
        self._tell_granted(lease, effects)

    def _tell_granted(self, lease: Lease, effects: Effects) -> None:
        assert lease.peer is not None
        held = [HeldAttempt(job.job, job.attempt) for job in lease.jobs.values()]
        held += lease.results.held()
        ready = [each.id for each in lease.computations.values() if each.state is ComputationState.READY]
        effects.sends.append(Send(lease.peer, msg.LeaseGranted(held, ready)))
        effects.sends += [Send(lease.peer, batch.message, batch.bodies) for batch in lease.results.batches]
        effects.sends += [Send(lease.peer, offer) for offer in lease.parcels.values()]

    def _on_release(self, peer: ProcessId, now: float, effects: Effects) -> None:
        self.line = [each for each in self.line if each.peer != peer]
        self._drop_claim(peer, now)
        lease = self.lease
        if lease is None or lease.peer != peer:
            return
        lease.ended = lease.released = True
        for computation in lease.computations.values():
            self.computations.close(lease, computation, terminate=True, now=now, effects=effects)
        self.keeper.acknowledge(lease.name, lease.results, lease.results.sequence, effects)

    def _hang_up(self, peer: ProcessId, reason: str, now: float, effects: Effects) -> None:
        effects.actions.append(HangUp(peer, reason))
        self._drop_link(peer, goodbye=False, now=now, effects=effects)
