"""What a shared scheduler keeps on its disk, as its daemon sees that: the seam between the daemon and the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from dispy.model import ComputationId, ProcessId
from dispy.scheduler import events
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import Effects
from dispy.scheduler.fairness import Charged
from dispy.scheduler.places import Place
from dispy.wire.pool import JobOver
from dispy.wire.sharing import OpenCluster


class KeptCluster(msgspec.Struct, frozen=True):
    """A cluster that a client has opened."""

    opened: OpenCluster
    user: str
    """user@host, as fair share knows them."""
    proved: bool
    """Whether that is proved, not only said."""
    opened_at: float
    """Wall clock."""
    stored: int = 0
    """The last batch of submitted jobs that is on the disk."""
    state: str = "open"
    """open, draining, terminating, or ended: then it only waits for its client to take what it has."""


class KeptEnd(Struct, frozen=True):
    """How a job ended that its client has not acknowledged."""

    job: int
    """The scheduler's own number."""
    cluster: ComputationId
    over: JobOver
    """With the client's number."""
    body: bytes
    """Empty when it is large: then it is in a file."""
    size: int
    """Of the body."""


class Restored(Struct, frozen=True):
    """What the process before this one has left."""

    token: bytes
    """Proves the leases on nodes."""
    started: float
    """Wall clock of the first start with this directory."""
    clusters: Sequence[KeptCluster]
    ends: Mapping[ComputationId, Sequence[int]]
    """Jobs (own numbers) that have ended and that the clients of these clusters have not acknowledged."""
    highest: Mapping[ComputationId, int]
    """The highest of the client's numbers, of clusters that have jobs."""
    event: events.Restored
    """For the core, when all clusters that have not ended have an owner. `handle` of its jobs: the client's numbers."""
    places: Mapping[ProcessId, Sequence[Place]]
    """Where its nodes were last reached."""
    accounts: Mapping[str, Charged]
    """By user."""


class Keeper(Protocol):
    """Who keeps all that. Everything is called in the loop's thread and returns at once."""

    problem: str
    """Why nothing can be written now, as a sentence; empty when all is well."""
    on_problem: Callable[[str], None]
    """Called when `problem` changes."""
    on_broken: Callable[[str], None]
    """Called with a sentence when nothing will ever be written again."""
    places_of: Callable[[ProcessId], Sequence[Place]]
    """Where a node can be reached."""
    address_of: Callable[[ProcessId], str]
    """The address of a node, for people."""

    def note(self, core: SchedulerCore, event: events.Event | None, effects: Effects) -> None:
        """The core took this in (None: time has passed) and decided that; nothing of it has been performed."""

    def after(self, then: Callable[[], object]) -> None:
        """Call `then` when all that was told until now is on the disk: at once if it is. The order is kept."""

    def settled(self) -> asyncio.Future[None] | None:
        """Done when all that was told until now is on the disk; None: it is."""

    def numbers(self, count: int) -> int:
        """The first of so many numbers of jobs; they have never been given before."""

    def cluster_opened(self, cluster: KeptCluster) -> None:
        """A client has opened a cluster. Before the core hears of it."""

    def batch_stored(self, cluster: ComputationId, sequence: int) -> None:
        """All jobs of this batch (and of those before) have been given to the core."""

    def acknowledged(self, cluster: ComputationId, jobs: Sequence[int]) -> None:
        """The client has the ends of these jobs (own numbers)."""

    def cluster_over(self, cluster: ComputationId) -> None:
        """Forget a cluster and all that is left of it."""

    def accounts_stand(self, accounts: Mapping[str, Charged]) -> None:
        """What users have been charged so far."""

    def result_file(self, job: int) -> Path:
        """Where a large body of this job (own number) is, once it is on the disk."""

    async def read_ends(self, jobs: Sequence[int]) -> list[KeptEnd]:
        """How these jobs (own numbers) ended, which is on the disk: so many of the first as are worth one message."""

    async def close(self) -> None:
        """Write what is still to be written, and stop."""
