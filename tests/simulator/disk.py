"""The disk of a machine: what was written there outlives the daemon."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dispy.node import effects as do
from dispy.node import events as node_events
from simulator.workers import WALL

if TYPE_CHECKING:
    from simulator.node import SimNode


@dataclass
class Disk:
    """Batches of results, by the name of their lease and by their number."""

    leases: dict[bytes, dict[int, node_events.SpooledBatch]] = field(default_factory=dict)
    is_full: bool = False

    def put(self, lease: bytes, batch: node_events.SpooledBatch) -> None:
        self.leases.setdefault(lease, {})[batch.message.sequence] = batch

    def remove(self, lease: bytes, sequence: int) -> None:
        batches = self.leases.get(lease, {})
        batches.pop(sequence, None)
        if not batches:
            self.leases.pop(lease, None)

    def found(self) -> node_events.SpoolFound:
        """What the next daemon finds."""
        return node_events.SpoolFound(
            {lease: [batches[number] for number in sorted(batches)] for lease, batches in self.leases.items()}
        )

    def blobs(self) -> set[bytes]:
        """The large bodies of all batches."""
        batches = [batch for each in self.leases.values() for batch in each.values()]
        return {done.blob.name for batch in batches for done in batch.message.jobs if done.blob is not None}


class Writer:
    """The thread of a daemon that writes: one thing after another, some time later."""

    def __init__(self, node: SimNode) -> None:
        self.node, self.world, self.disk = node, node.world, node.machine.disk
        self._work: list[do.SpoolBatch | do.UnspoolBatches] = []

    def ask(self, work: do.SpoolBatch | do.UnspoolBatches) -> None:
        self._work.append(work)
        if len(self._work) == 1:
            self._later()

    def _later(self) -> None:
        self.world.clock.at(self.world.soon() + 0.05 * self.world.random.random(), self._do)

    def _do(self) -> None:
        if not self._work or not self.node.alive:
            return
        self._one(self._work.pop(0))
        if self._work:
            self._later()

    def _one(self, work: do.SpoolBatch | do.UnspoolBatches) -> None:
        if isinstance(work, do.UnspoolBatches):
            for sequence in work.sequences:
                self.disk.remove(work.lease, sequence)
            return
        numbers = [work.message.sequence]
        if self.disk.is_full:
            self.node.handle(node_events.SpoolFailed(work.lease, numbers))
            return
        written_at = self.world.clock.now + WALL
        self.disk.put(work.lease, node_events.SpooledBatch(work.message, work.bodies, written_at))
        self.node.handle(node_events.BatchesSpooled(work.lease, numbers))

    def close(self) -> None:
        """The daemon ends in order: everything is written first."""
        for work in self._work:
            if isinstance(work, do.UnspoolBatches) or not self.disk.is_full:
                self._one(work)
        self._work.clear()
