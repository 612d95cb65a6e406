"""The cluster of a client in a shared scheduler: what the service tells its owner goes to the client as messages.

It lives on when its client is gone. Jobs have two numbers: the client's, which are in all messages to it, and the
scheduler's, which are unique for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import msgspec

from dispy.logs import logger
from dispy.model import BlobRef, ComputationId
from dispy.nodes import NodeView
from dispy.scheduler.effects import JobEnded, JobRequeued, JobSpoke
from dispy.scheduler.events import CancelAsked, JobsSubmitted
from dispy.scheduler.jobs import JobRecord
from dispy.settings import INLINE_SIZE
from dispy.sharing.books import BatchBook
from dispy.sharing.guestnodes import GuestNodes
from dispy.sharing.identity import Identity, whose
from dispy.sharing.incoming import Incoming
from dispy.sharing.keeping import KeptCluster
from dispy.sharing.pool import Pool
from dispy.sharing.telling import Hearer, Telling
from dispy.wire.messages import AnyMessage
from dispy.wire.sharing import (
    ClusterAccepted,
    ClusterOver,
    ClusterSaid,
    JobSaid,
    JobsHanded,
    JobsStored,
    JobWaitsAgain,
    OpenCluster,
)
from dispy.words import counted

REST_AFTER: Final = 60.0
"""Seconds for which a cluster without jobs keeps its nodes when its client is away."""
PORTION: Final = 2048
"""Jobs that are cancelled in one turn of the loop: others are heard between two turns."""


class Attached(Hearer, Protocol):
    """The client of a guest, as far as the guest needs it."""

    guests: dict[ComputationId, Guest]
    """Its clusters."""


class Guest(GuestNodes):
    """One cluster (a `ClusterOwner`). All methods belong to the loop's thread."""

    may_embed = False
    wants_local = False
    allocates_slowly = False

    def __init__(
        self,
        pool: Pool,
        opened: OpenCluster,
        identity: Identity,
        opened_at: float,
        *,
        stored: int = 0,
        highest: int = 0,
        unread: Iterable[int] = (),
    ) -> None:
        """`stored` batches and jobs up to number `highest` were taken before the scheduler was started anew, and
        `unread` jobs (its own numbers) had ended, which the client has not acknowledged."""
        super().__init__(pool)
        rules = pool.rules
        self.owner = whose(identity.user, opened.holder, proved=identity.proved)
        """For people."""
        self.opened = msgspec.structs.replace(
            opened,
            computation=msgspec.structs.replace(
                opened.computation,
                keep_files=opened.computation.keep_files and not rules.cleanup_nodes,
                user=self.owner,
            ),
            open_ended=opened.open_ended and rules.discovers,
            discovers=opened.discovers and rules.discovers,
        )
        self.spec = self.opened.computation
        self.identity = identity
        self.user = identity.key
        self.exclusive = opened.exclusive
        self.reentrant = opened.reentrant
        self.open_ended = self.opened.open_ended
        self.wants_discovery = self.opened.discovers
        asked = opened.interval if opened.interval is None else min(max(opened.interval, 1.0), 1000.0)
        self.interval = rules.ping_interval or asked
        self.opened_at = opened_at
        self.client: Attached | None = None
        self.gone_at = pool.service.portal.loop.time()
        """When the client went, by the loop's clock."""
        self.jobs: dict[int, JobRecord] = {}
        """Jobs that have not ended, by the client's numbers."""
        self.batches = BatchBook(stored, highest)
        self.ends = Telling(pool, self.id, unread, self._finish_if_done)
        self.since: dict[int, float] = {}
        """When a node got a job, by the wall clock; of those that nodes have."""
        self.begun = self.gone_at
        """By the loop's clock."""
        self.done = 0
        self.ended_by = ""
        """Who else than its program ends its jobs, should they be ended."""
        self.is_ending = False
        """Its jobs are being ended."""
        self.is_resting = False
        """It has no nodes while its client is away and nothing of it is pending."""
        self.is_over = False
        """The service has done everything for it."""
        self._ended = asyncio.Event()
        self.files: dict[int, list[asyncio.Future[str]]] = {}
        """Jobs (the client's numbers) that send files, and who waits for the client's answers."""
        self.held: list[BlobRef] = []
        """Contents that are offered to nodes for it until its end."""
        self.objects: list[BlobRef] = []
        """Those of scattered objects, until its client lets go of them."""
        self.on_attached: Callable[[], None] = lambda: None
        """Called when the client is there (again)."""
        self.on_finished: Callable[[], None] = lambda: None
        """Called when the client has everything of it."""
        self.incoming = Incoming(pool, self)
        self._held_said = False
        """The client has been told that jobs of it are not taken in yet."""

    @property
    def kept(self) -> KeptCluster:
        """What is to survive the scheduler."""
        return KeptCluster(self.opened, self.user, self.identity.proved, self.opened_at)

    def send(self, message: AnyMessage, payload: Sequence[bytes] = ()) -> None:
        """Send to the client, if it is there."""
        if self.client is not None:
            self.client.send(message, payload)

    # ---- the client ----

    def attach(self, client: Attached, *, fresh: bool) -> None:
        """The client is there (again): tell it how everything stands."""
        if self.client is not client:
            self.incoming.drop()
        self.client = client
        self.ends.attach(client)
        self.send(ClusterAccepted(self.id, self.batches.stored, fresh, self._pool.door.batch_jobs))
        self.tell_nodes()
        self.on_attached()
        self.ends.send()
        self._finish_if_done()

    def detach(self, now: float) -> None:
        """The client is gone, perhaps for a while."""
        self.ends.detach()
        self.incoming.drop()
        self.client, self.gone_at = None, now

    def say(self, sentence: str) -> None:
        """Tell the user something."""
        self.send(ClusterSaid(self.id, sentence))

    def let_in(self) -> None:
        """There is room for more jobs of its user (see `Door`)."""
        self.incoming.go_on()

    def why_held(self) -> str:
        """Why jobs that its client has sent are not taken in; the end of a sentence."""
        return self._pool.door.why(self.user, self.identity.user)

    def say_held(self) -> None:
        """Tell the user once that jobs are not taken in yet."""
        if not self._held_said:
            self._held_said = True
            sentence = f"further jobs of {self.spec.name} wait in the program until others end: {self.why_held()}"
            logger.info("cluster %s (%s): %s", self.spec.name, self.id[:8], sentence)
            self.say(sentence)

    @property
    def is_forsaken(self) -> bool:
        """Whether its client has been gone for so long that it is not waited for."""
        return self.client is None and self._away_for >= self._pool.rules.zombie_interval

    @property
    def _away_for(self) -> float:
        """Seconds since the client went."""
        return self._pool.service.portal.loop.time() - self.gone_at

    # ---- jobs ----

    def submit(self, sequence: int, jobs: Sequence[JobRecord]) -> None:
        """Queue the jobs of a batch, and tell the client when they are safe."""
        for record in jobs:
            self.jobs[number_of(record)] = record
        if jobs:
            self._pool.service.handle(JobsSubmitted(jobs))
        self._pool.keeper.batch_stored(self.id, sequence)
        self._pool.keeper.after(lambda: self._stored(sequence))

    def _stored(self, sequence: int) -> None:
        self.batches.stored = max(self.batches.stored, sequence)
        self.send(JobsStored(self.id, self.batches.stored))

    def cancel(self, jobs: Iterable[int], by: str = "") -> int:
        """End these jobs (the client's numbers), wherever they are; returns how many have not ended.

        The user is told `by` whom, unless it is the program itself (empty).
        """
        numbers = [record.job for record in map(self.jobs.get, jobs) if record is not None]
        cause = f"cancelled before it started, by {by}" if by else "cancelled before it started"
        if by and numbers:
            sentence = f"{counted(len(numbers), 'job')} of {self.spec.name} cancelled by {by}"
            logger.info("%s (cluster %s of %s)", sentence, self.id[:8], self.owner)
            self.say(sentence)
        self._pool.service.handle(CancelAsked(numbers[:PORTION], cause))
        if len(numbers) > PORTION:
            self._pool.spawn(self._cancel_rest(numbers[PORTION:], cause))
        return len(numbers)

    async def _cancel_rest(self, numbers: list[int], cause: str) -> None:
        for start in range(0, len(numbers), PORTION):
            await asyncio.sleep(0)
            self._pool.service.handle(CancelAsked(numbers[start : start + PORTION], cause))

    def jobs_started(self, view: NodeView | None, jobs: Iterable[JobRecord]) -> None:
        """See `ClusterOwner`."""
        if view is not None:
            numbers = [number_of(record) for record in jobs]
            self.since.update(dict.fromkeys(numbers, time.time()))
            self.send(JobsHanded(self.id, view.process, numbers, view.address))

    def job_ended(self, ended: JobEnded, view: NodeView | None) -> bool:
        """See `ClusterOwner`."""
        record = ended.job
        number = number_of(record)
        self.jobs.pop(number, None)
        self.since.pop(number, None)
        self.done += 1
        if ended.node is not None:
            self._pool.done[ended.node] += 1
        self.ends.add(ended, number, "" if view is None else view.address)
        if self.files:
            for answer in self.files.pop(number, ()):
                if not answer.done():
                    answer.set_result("the job is not wanted any more")
        unneeded = [] if record.blob is None else [record.blob]
        if record.options is not None and record.options.depends is not None:
            unneeded += record.options.depends.contents
        if unneeded:
            self._pool.spawn(self._pool.staging.remove(unneeded))
        return False

    def batch_ended(self) -> None:
        """See `ClusterOwner`."""
        self.ends.batch_ended()
        door = self._pool.door
        if door.is_waited_at(self.user):  # soon: the service still goes through what has ended
            self._pool.service.portal.loop.call_soon(door.call, self.user)

    def job_spoke(self, spoke: JobSpoke, view: NodeView | None) -> None:
        """See `ClusterOwner`. Interim results are for a client that is there."""
        if self.client is None:
            return
        number = number_of(spoke.job)
        if len(spoke.result) <= INLINE_SIZE:
            self.send(JobSaid(self.id, number, spoke.node), (bytes(spoke.result),))
        else:
            self.send(JobSaid(self.id, number, spoke.node, self.client.sources.offer_parts([spoke.result])))

    def job_requeued(self, requeued: JobRequeued, view: NodeView | None) -> None:
        """See `ClusterOwner`."""
        self.since.pop(number_of(requeued.job), None)
        self.send(JobWaitsAgain(self.id, number_of(requeued.job), requeued.node, requeued.cause))

    # ---- the end ----

    def close(self, *, terminate: bool) -> None:
        """No more jobs come. With `terminate` those that are there are ended."""
        if self.is_over:
            self._finish_if_done()
            return
        self.is_ending = self.is_ending or terminate
        if terminate and (len(self.jobs) > PORTION or self.ended_by):
            self._pool.service.close_cluster(self.id, terminate=False)
            self._pool.spawn(self._end_jobs())
        else:
            self._pool.service.close_cluster(self.id, terminate)

    async def _end_jobs(self) -> None:
        """The last first, so that none starts meanwhile."""
        cause = f"cancelled before it started, by {self.ended_by}" if self.ended_by else "cancelled before it started"
        await self._cancel_rest([record.job for record in reversed(self.jobs.values())], cause)
        self._pool.service.close_cluster(self.id, terminate=True)

    def ended(self) -> None:
        """See `ClusterOwner`: all that is left is that the client takes what has ended, or comes back."""
        self.is_over = True
        self.ready.clear()
        self._ended.set()
        if not self.is_resting:
            self._pool.keeper.after(self._finish_if_done)

    @property
    def may_rest(self) -> bool:
        """Whether it holds nodes, or others back, for nothing."""
        is_idle = not (self.jobs or self.incoming.waits or self.is_over or self.is_resting)
        return is_idle and self.client is None and (self.is_forsaken or self._away_for >= REST_AFTER)

    def rest(self) -> None:
        """Let go of all nodes until the client is back."""
        self.is_resting = True
        self._pool.service.close_cluster(self.id, terminate=False)

    async def wake(self) -> None:
        """Its client is back: more jobs may come."""
        if self.is_resting:
            await self._ended.wait()
        if self.is_resting:  # another link may have come first
            self.is_resting = self.is_over = False
            self._ended.clear()
            await self._pool.service.adopt_cluster(self)
            self._pool.service.begin_cluster(self)

    @property
    def is_finished(self) -> bool:
        """Whether its client has everything, and the disk knows it."""
        return self.is_over and self.ends.is_settled

    def _finish_if_done(self) -> None:
        if self.is_finished:
            self.send(ClusterOver(self.id))
            self.on_finished()

    def log_loss(self) -> None:
        """Say what is lost when it is given up."""
        if len(self.ends):
            logger.warning(
                "cluster %s of %s is given up: nobody has taken %d results",
                self.spec.name,
                self.owner,
                len(self.ends),
            )


def number_of(record: JobRecord) -> int:
    """The client's number of a job."""
    number = record.handle
    assert isinstance(number, int)
    return number
