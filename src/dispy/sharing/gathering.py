"""What a shared scheduler changes, gathered until it is written, and who waits for that. Plain tables."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from dispy.logs import logger
from dispy.model import ComputationId, ProcessId
from dispy.scheduler import events
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import Effects
from dispy.scheduler.fairness import Charged
from dispy.scheduler.places import Place
from dispy.sharing.keeping import KeptCluster
from dispy.sharing.reopening import past_of
from dispy.sharing.storewriting import Batch, End, Mark

BLOCK: Final = 100_000
"""Numbers of jobs that are set aside at once."""


class Gathering:
    """One batch is gathered while another is written."""

    def __init__(self, next_job: int, on_first: Callable[[], object]) -> None:
        """`next_job`: no number from there on has been given to a job. `on_first` is called when something was told and
        nothing is being written: `take` it soon, with all that comes until then."""
        self.places_of: Callable[[ProcessId], Sequence[Place]] = lambda node: ()
        self.address_of: Callable[[ProcessId], str] = lambda node: ""
        self._on_first = on_first
        self._next = self._set_aside = next_job
        self._batch = Batch(1)
        """What was told since the last one was taken."""
        self._is_empty = True
        self._is_writing = False
        self._stored = 0
        """Number of the last batch on the disk."""
        self._waiting: deque[tuple[int, Callable[[], object]]] = deque()
        """What is to be done when the batch of this number is on the disk."""

    @property
    def is_settled(self) -> bool:
        """Whether all that was told is on the disk and nobody waits."""
        return self._is_empty and not self._is_writing and not self._waiting

    # ---- what is told ----

    def note(self, core: SchedulerCore, event: events.Event | None, effects: Effects) -> None:
        """The core took this in (None: time has passed) and decided that; nothing of it has been performed."""
        changes = core.changes(event, effects)
        if not changes:
            return
        batch = self._gather()
        for record in changes.submitted:
            batch.submitted[record.job] = record
        for record in changes.marked:
            batch.marks[record.job] = Mark(record.attempt, record.node, past_of(record))
        addresses: dict[ProcessId, str] = {}
        for ended in changes.ended:
            node = ended.node
            if node is not None and node not in addresses:
                addresses[node] = self.address_of(node)
            batch.ends[ended.job.job] = End(ended, "" if node is None else addresses[node])
        batch.cluster_marks += changes.clusters
        batch.shares += changes.shares
        for joined in changes.nodes:
            batch.nodes.append((joined, tuple(self.places_of(joined.node))))
            if batch.known is not None:
                batch.known |= {joined.node}
        if changes.known is not None:
            batch.known = changes.known

    def numbers(self, count: int) -> int:
        """The first of so many numbers of jobs; they have never been given before."""
        first = self._next
        self._next += count
        if self._next > self._set_aside:
            self._set_aside = self._next + BLOCK
            self._gather().next_job = self._set_aside
        return first

    def cluster_opened(self, cluster: KeptCluster) -> None:
        """A client has opened a cluster. Before the core hears of it."""
        self._gather().clusters.append(cluster)

    def batch_stored(self, cluster: ComputationId, sequence: int) -> None:
        """All jobs of this batch (and of those before) have been given to the core."""
        self._gather().stored[cluster] = sequence

    def acknowledged(self, cluster: ComputationId, jobs: Sequence[int]) -> None:
        """The client has the ends of these jobs (own numbers)."""
        self._gather().taken += jobs

    def cluster_over(self, cluster: ComputationId) -> None:
        """Forget a cluster and all that is left of it."""
        self._gather().over.append(cluster)

    def accounts_stand(self, accounts: Mapping[str, Charged]) -> None:
        """What users have been charged so far."""
        self._gather().accounts = dict(accounts)

    # ---- who waits ----

    def after(self, then: Callable[[], object]) -> None:
        """Call `then` when all that was told until now is on the disk: at once if it is. The order is kept."""
        last = self._batch.number - self._is_empty
        if last <= self._stored and not self._waiting:
            then()
        else:
            self._waiting.append((last, then))

    # ---- batches ----

    def _gather(self) -> Batch:
        if self._is_empty:
            self._is_empty = False
            if not self._is_writing:
                self._on_first()
        return self._batch

    def take(self) -> Batch | None:
        """The batch that is to be written now; None when one is being written, or when there is nothing."""
        if self._is_empty or self._is_writing:
            return None
        batch = self._batch
        self._batch = Batch(batch.number + 1)
        self._is_empty, self._is_writing = True, True
        return batch

    def written(self, number: int) -> None:
        """The batch that was taken is on the disk. Before who waits is called, the next may be taken."""
        self._stored, self._is_writing = number, False
        if not self._is_empty:
            self._on_first()

    def call_waiting(self) -> None:
        """Call who waits for what is on the disk."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= self._stored:
            _, then = waiting[0]
            try:
                then()
            except Exception:  # the others wait for the same
                logger.exception("something that waited for the disk failed; the scheduler goes on")
            waiting.popleft()
