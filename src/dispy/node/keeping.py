"""What becomes of results that wait: when they go to the disk, how long they outlive their lease. Pure.

The directory of a lease in the spool is named by the SHA-256 of its token; here that is the lease's *name*, by which
results are found again whoever proves the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from dispy.node import events as ev
from dispy.node.effects import Effects, SpoolBatch, TrustSpool, UnspoolBatches, WithdrawResults
from dispy.node.results import INTERIM_BYTES, INTERIM_MOST, Freed, Kept, Results
from dispy.node.serving import Lease

RETRY_AFTER: Final = 10.0
"""Seconds until a disk that could not be written is tried again."""


class Orphan(Struct):
    """Results whose lease is over and whose scheduler, or its successor, may still come for them."""

    results: Results
    until: float


class Keeper:
    """The results that nobody has acknowledged: those of leases that are over, and the way of all to the disk."""

    __slots__ = ("orphans", "retry_at", "unreadable", "zombie_interval")

    def __init__(self, zombie_interval: float) -> None:
        self.zombie_interval = zombie_interval
        self.orphans: dict[bytes, Orphan] = {}
        """By the name of their lease."""
        self.unreadable: Mapping[bytes, int] = {}
        """Damaged files with results, by the name of their lease."""
        self.retry_at: float | None = None
        """The disk could not be written: nothing is tried before this time, and then one batch at first."""

    def adopt(self, lease: Lease, now: float, effects: Effects) -> None:
        """The lease is over; its results wait."""
        forget(lease.name, lease.results.drop_interim(), effects)
        if lease.results.batches:
            self.orphans[lease.name] = Orphan(lease.results, now + self.zombie_interval)
            self.hurry(lease.results, now)

    def found(self, event: ev.SpoolFound, now: float, wall_offset: float) -> int:
        """Take in what an earlier daemon has left on the disk; returns the highest number of a batch."""
        highest = 0
        self.unreadable = event.unreadable
        for name, batches in event.leases.items():
            results = Results()
            for each in batches:
                results.restore(each.message, each.bodies, now)
            written_at = max(each.written_at for each in batches)
            # A clock that was set back since then must not keep them for ever.
            self.orphans[name] = Orphan(results, min(now, written_at - wall_offset) + self.zombie_interval)
            highest = max(highest, results.sequence)
        return highest

    def acknowledge(self, name: bytes, results: Results, sequence: int, effects: Effects) -> None:
        """Forget the batches up to this number."""
        forget(name, results.acknowledge(sequence), effects)
        orphan = self.orphans.get(name)
        if orphan is not None and not orphan.results.batches:
            del self.orphans[name]

    def bound_interim(self, lease: Lease, effects: Effects) -> None:
        """Nobody hears what running jobs say: keep the last of it only."""
        forget(lease.name, lease.results.drop_interim(most=INTERIM_MOST, size=INTERIM_BYTES), effects)

    def hurry(self, results: Results, now: float) -> None:
        """Nobody hears of these: they are to be on the disk soon."""
        if not results.is_spooled:
            results.look_at = now

    def deadline(self, lease: Lease | None) -> float | None:
        """When `handle_timeout` has something to do."""
        look_at = None if lease is None else lease.results.look_at
        if not self.orphans and self.retry_at is None:
            return look_at
        times = [self.retry_at, look_at]
        for orphan in self.orphans.values():
            times += (orphan.until, orphan.results.look_at)
        return min([at for at in times if at is not None], default=None)

    def handle_timeout(self, lease: Lease | None, now: float, effects: Effects) -> None:
        """Let go of what is too old, write what is due."""
        for name, orphan in list(self.orphans.items()):
            if now >= orphan.until:
                self.acknowledge(name, orphan.results, orphan.results.sequence, effects)
            else:
                self._look(name, orphan.results, now, linked=False, effects=effects)
        if lease is not None:
            self._look(lease.name, lease.results, now, linked=lease.hearer is not None, effects=effects)
        if self.retry_at is not None and now >= self.retry_at:
            # Nothing waits for the disk any more, so that nothing tells whether it can be written.
            self.retry_at = None
            effects.actions.append(TrustSpool())

    def _look(self, name: bytes, results: Results, now: float, *, linked: bool, effects: Effects) -> None:
        if results.look_at is None or now < results.look_at:
            return
        if self.retry_at is not None and now < self.retry_at:
            results.look_at = self.retry_at
            return
        due = results.due(now, linked=linked, most=None if self.retry_at is None else 1)
        effects.actions += [SpoolBatch(name, batch.message, batch.bodies) for batch in due]
        if self.retry_at is not None and due:
            self.retry_at = now + RETRY_AFTER

    def spooled(self, lease: Lease | None, event: ev.BatchesSpooled, now: float) -> None:
        """These batches are safe; the disk can be written."""
        results = self._results(lease, event.lease)
        if results is not None:
            results.written(event.sequences, Kept.DISK)
        if self.retry_at is not None:
            self.retry_at = None
            for each in (*(orphan.results for orphan in self.orphans.values()), *([lease.results] if lease else [])):
                self.hurry(each, now)

    def failed(self, lease: Lease | None, event: ev.SpoolFailed, now: float) -> None:
        """These batches stay in memory until the disk can be written."""
        self.retry_at = now + RETRY_AFTER
        results = self._results(lease, event.lease)
        if results is not None:
            results.written(event.sequences, Kept.MEMORY)
            results.look_at = self.retry_at

    def write_all(self, lease: Lease | None, now: float, effects: Effects) -> None:
        """The node ends: whatever is not on the disk is to go there now."""
        waiting = [(name, orphan.results) for name, orphan in self.orphans.items()]
        if lease is not None:
            waiting.append((lease.name, lease.results))
        for name, results in waiting:
            due = results.due(now, linked=False)
            effects.actions += [SpoolBatch(name, batch.message, batch.bodies) for batch in due]

    def _results(self, lease: Lease | None, name: bytes) -> Results | None:
        if lease is not None and lease.name == name:
            return lease.results
        orphan = self.orphans.get(name)
        return None if orphan is None else orphan.results

    def check(self, lease: Lease | None) -> None:
        """Recompute what can be."""
        for name, orphan in self.orphans.items():
            assert orphan.results.batches, "an orphan without results"
            assert lease is None or lease.name != name, "results of the lease lie with the orphans"
            orphan.results.check()
        if lease is not None:
            lease.results.check()


def forget(name: bytes, freed: Freed, effects: Effects) -> None:
    """Nobody will fetch this any more: neither over a link, nor from the disk."""
    if freed.blobs:
        effects.actions.append(WithdrawResults(freed.blobs))
    if freed.spooled:
        effects.actions.append(UnspoolBatches(name, freed.spooled))
