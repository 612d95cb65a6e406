"""Results that are handed to the successor of a scheduler whose process is gone. Pure.

A claim is one link's: it ends with it, and what was not acknowledged by then waits on. While the claimed lease lives,
its jobs run to their end (or are ended) and its results go to the claimer; nothing new is taken.
"""

from __future__ import annotations

from msgspec import Struct

from dispy.model import HeldAttempt, ProcessId
from dispy.node.computations import ComputationDesk
from dispy.node.effects import Effects, Send
from dispy.node.keeping import Keeper, forget
from dispy.node.results import Results
from dispy.node.serving import Lease, lease_name
from dispy.wire import messages as msg


class Claim(Struct):
    """Somebody wants the results of a lease whose token he has."""

    name: bytes
    """Of the lease."""
    peer: ProcessId
    terminate: bool
    answered: bool = False


class ClaimDesk:
    """The claims that stand: one per lease and one per link."""

    __slots__ = ("_computations", "_keeper", "claims")

    def __init__(self, computations: ComputationDesk, keeper: Keeper) -> None:
        self._computations = computations
        self._keeper = keeper
        self.claims: dict[bytes, Claim] = {}
        """By the name of the lease."""

    def of(self, peer: ProcessId) -> Claim | None:
        """The claim of this link."""
        return next((claim for claim in self.claims.values() if claim.peer == peer), None)

    def ask(self, peer: ProcessId, message: msg.ClaimResults) -> None:
        """Note a claim of a link without one; `settle` answers it as soon as that is possible."""
        name = lease_name(message.token)
        self.claims[name] = Claim(name, peer, message.terminate)

    def drop(self, peer: ProcessId, lease: Lease | None) -> None:
        """The link of the claimer is gone, or he wants no more."""
        if (claim := self.of(peer)) is not None:
            del self.claims[claim.name]
            if lease is not None and lease.claimer == peer:
                lease.claimer = None

    def acknowledged(self, peer: ProcessId, sequence: int, lease: Lease | None, effects: Effects) -> None:
        """The claimer has these batches."""
        claim = self.of(peer)
        if claim is not None and claim.answered and (results := self._results(claim, lease)) is not None:
            self._keeper.acknowledge(claim.name, results, sequence, effects)

    def settle(self, lease: Lease | None, now: float, effects: Effects) -> None:
        """Answer the claims that can be answered."""
        for claim in self.claims.values():
            if claim.answered:
                continue
            running: list[HeldAttempt] = []
            if lease is not None and lease.name == claim.name:
                if not self._take_over(lease, claim, now, effects):
                    continue
                running = [HeldAttempt(job.job, job.attempt) for job in lease.jobs.values()]
            claim.answered = True
            results = self._results(claim, lease)
            ended = [] if results is None else list(results.held())
            unreadable = self._keeper.unreadable.get(claim.name, 0)
            effects.sends.append(Send(claim.peer, msg.ResultsClaimed(ended, running, unreadable)))
            if results is not None:
                effects.sends += [Send(claim.peer, batch.message, batch.bodies) for batch in results.batches]

    def _take_over(self, lease: Lease, claim: Claim, now: float, effects: Effects) -> bool:
        """Let the lease speak to the claimer, unless its holder is there, or it is not known yet what has started."""
        if lease.peer is not None:
            return False
        if not lease.expired:
            self._computations.expire(lease, effects)
        lease.zombie_at = None
        workers = [worker for computation in lease.computations.values() for worker in computation.workers.values()]
        if any(worker.recalling for worker in workers):
            return False
        forget(lease.name, lease.results.drop_interim(), effects)
        if claim.terminate:
            for computation in lease.computations.values():
                self._computations.close(lease, computation, terminate=True, now=now, effects=effects)
        lease.claimer = claim.peer
        return True

    def _results(self, claim: Claim, lease: Lease | None) -> Results | None:
        if lease is not None and lease.name == claim.name:
            return lease.results
        orphan = self._keeper.orphans.get(claim.name)
        return None if orphan is None else orphan.results

    def check(self, lease: Lease | None, links: set[ProcessId]) -> None:
        """Recompute what can be."""
        peers = [claim.peer for claim in self.claims.values()]
        assert len(set(peers)) == len(peers), "a link with two claims"
        assert set(peers) <= links, "a claim without a link"
        if lease is not None:
            claim = self.claims.get(lease.name)
            answered = claim is not None and claim.answered
            assert (lease.claimer is not None) == answered, "the lease speaks to the wrong claimer"
            assert claim is None or not answered or lease.claimer == claim.peer
            assert lease.claimer is None or lease.peer is None, "a lease speaks to two"
