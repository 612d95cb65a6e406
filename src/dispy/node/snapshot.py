"""What people may see of a node's core.

Part of the core: it looks and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from dispy.model import ComputationId, Holder
from dispy.node.jobs import JobDesk
from dispy.node.keeping import Keeper
from dispy.node.serving import Lease, Waiter


class Snapshot(Struct, frozen=True):
    """What people may see of a node."""

    holder: Holder | None
    waiting: int
    computations: list[tuple[ComputationId, str, str]]
    queued: int
    given: int
    workers: int
    unacknowledged: int
    unclaimed: int
    """Results whose scheduler is gone."""
    done: int
    served: int


def take_snapshot(lease: Lease | None, line: Sequence[Waiter], desk: JobDesk, keeper: Keeper, served: int) -> Snapshot:
    """Look at the tables of a core; `served`: leases that are over."""
    computations = [] if lease is None else list(lease.computations.values())
    return Snapshot(
        holder=None if lease is None else lease.holder_now,
        waiting=len(line),
        computations=[(each.id, each.spec.name, each.state.name.lower()) for each in computations],
        queued=sum(len(each.queue) + len(each.heavy) + len(each.arriving) for each in computations),
        given=sum(len(worker.jobs) for worker in desk.feeder.workers.values()),
        workers=len(desk.feeder.workers),
        unacknowledged=0 if lease is None else len(lease.results.attempts),
        unclaimed=sum(len(orphan.results.attempts) for orphan in keeper.orphans.values()),
        done=desk.outgoing.done,
        served=served,
    )
