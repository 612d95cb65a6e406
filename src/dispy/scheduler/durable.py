"""Marks of durable jobs: stored before the core hears of them, handed before a node does, and before the node may
forget a result either over, or the result itself: that is kept until the user's callbacks have returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

from dispy.logs import logger
from dispy.model import ComputationId, JobDone, JobState, ProcessId
from dispy.recovery.journal import StorableJob
from dispy.scheduler.effects import Effects, JobEnded, JobsStarted, ResultDropped
from dispy.scheduler.jobs import JobRecord
from dispy.wire.blobsources import BlobSources, MemorySource


class MarkKeeper(Protocol):
    """Who keeps the marks of one or several clusters: `dispy.recovery.journal.Journal`, or a recovery under way."""

    def stored(self, jobs: Iterable[tuple[StorableJob, object, bytes]], now: float) -> None:
        """Jobs were submitted: each with its id and its arguments."""

    def handed(self, node: ProcessId, jobs: list[int]) -> None:
        """Jobs are about to be sent to a node."""

    def kept(self, jobs: Sequence[JobEnded], address: Callable[[ProcessId], str]) -> None:
        """Jobs have ended and callbacks are still to tell the program; `address` tells that of a node."""

    def over(self, jobs: Sequence[JobEnded], address: Callable[[ProcessId], str]) -> None:
        """Jobs have ended and the program knows."""

    def dropped(self, done: JobDone, body: bytes | memoryview, address: str) -> None:
        """A job that has ended otherwise has finished on a node; `address` is where that is."""

    def sync(self) -> None:
        """In a thread: let what was written survive the death of the machine."""


class DurableMarks:
    """The durable clusters of one service, and who keeps their marks. In the loop's thread."""

    def __init__(
        self,
        sources: BlobSources,
        address: Callable[[ProcessId], str],
        post: Callable[[Callable[[], None]], object],
    ) -> None:
        """`post` lets a function run in the loop, from any thread."""
        self._sources = sources
        self._address = address
        self._post = post
        self.keepers: dict[ComputationId, MarkKeeper] = {}
        """Of each durable cluster."""
        self._untold: dict[int, tuple[MarkKeeper, JobEnded]] = {}
        """Jobs whose callbacks have not returned; also of a cluster that is over."""
        self._told: deque[int] = deque()
        self._marking = False
        self._unsynced: set[MarkKeeper] = set()
        self._syncing: set[MarkKeeper] = set()

    def add(self, cluster: ComputationId, keeper: MarkKeeper) -> None:
        """A durable cluster."""
        self.keepers[cluster] = keeper

    def forget(self, cluster: ComputationId) -> None:
        """It is over."""
        self.keepers.pop(cluster, None)

    def store(self, records: Sequence[JobRecord]) -> None:
        """Jobs were submitted."""
        now = time.time()
        for keeper, mine in self._by_keeper(records, lambda record: record.cluster):
            with self._giving_up(keeper):
                keeper.stored([(record, _id_of(record), self._arguments(record)) for record in mine], now)
                self._sync_soon(keeper)

    def hand(self, effects: Effects) -> None:
        """Jobs are about to be sent."""
        for notice in effects.notices:
            if isinstance(notice, JobsStarted):
                for keeper, mine in self._by_keeper(notice.jobs, lambda record: record.cluster):
                    with self._giving_up(keeper):
                        keeper.handed(notice.node, [record.job for record in mine])

    def end(self, jobs: Iterable[JobEnded], untold: Collection[int]) -> None:
        """Jobs have ended; of those in `untold` callbacks will tell the program, and then `told` is called."""
        for keeper, mine in self._by_keeper(jobs, lambda ended: ended.job.cluster):
            # that a job is cancelled was the program's own wish, and no result is lost with it
            later = [ended for ended in mine if ended.job.job in untold and ended.state is not JobState.Cancelled]
            with self._giving_up(keeper):
                if later:
                    keeper.kept(later, self._address)
                    self._untold.update((ended.job.job, (keeper, ended)) for ended in later)
                if len(later) < len(mine):
                    keeper.over([ended for ended in mine if ended.job.job not in self._untold], self._address)
                self._sync_soon(keeper)

    def drop(self, dropped: ResultDropped) -> None:
        """A result came of a job that has ended otherwise: of which cluster it was is not known any more."""
        for keeper in dict.fromkeys(self.keepers.values()):
            with self._giving_up(keeper):
                keeper.dropped(dropped.done, dropped.body, self._address(dropped.node))
                self._sync_soon(keeper)

    def told(self, job: int) -> None:
        """From any thread: the callbacks of a job have returned. Marks are written for all that came meanwhile."""
        self._told.append(job)
        if not self._marking:
            self._marking = True
            self._post(self._mark_told)

    def _mark_told(self) -> None:
        self._marking = False
        by_keeper: dict[MarkKeeper, list[JobEnded]] = {}
        while self._told:
            keeper, ended = self._untold.pop(self._told.popleft(), (None, None))
            if keeper is not None and ended is not None:
                by_keeper.setdefault(keeper, []).append(ended)
        for keeper, mine in by_keeper.items():
            with self._giving_up(keeper):
                keeper.over(mine, self._address)
                self._sync_soon(keeper)

    @contextlib.contextmanager
    def _giving_up(self, keeper: MarkKeeper) -> Iterator[None]:
        """A keeper that fails is left alone from then on: a mark that is missing would make later ones lies, and jobs
        are worth more than their marks."""
        try:
            yield
        except Exception:
            for cluster in [cluster for cluster, known in self.keepers.items() if known is keeper]:
                del self.keepers[cluster]
            logger.exception(
                "durable jobs cannot be stored any more: they run, but those that have not ended are lost, or run "
                "again, if this program is killed"
            )

    def _by_keeper(self, things: Iterable[Any], cluster_of: Callable[[Any], ComputationId]) -> Any:
        sorted_out: dict[MarkKeeper, list[Any]] = {}
        for thing in things:
            keeper = self.keepers.get(cluster_of(thing))
            if keeper is not None:
                sorted_out.setdefault(keeper, []).append(thing)
        return sorted_out.items()

    def _arguments(self, record: JobRecord) -> bytes:
        if record.blob is None:
            return record.args
        source = self._sources.find(record.blob.name)
        assert isinstance(source, MemorySource)
        return bytes(source.read(0, source.ref.size))

    def _sync_soon(self, keeper: MarkKeeper) -> None:
        """One sync at a time; what is written meanwhile goes with the next."""
        if keeper in self._syncing:
            self._unsynced.add(keeper)
            return
        self._syncing.add(keeper)
        syncing = asyncio.get_running_loop().run_in_executor(None, keeper.sync)
        syncing.add_done_callback(lambda done: self._synced(keeper, done))

    def _synced(self, keeper: MarkKeeper, done: asyncio.Future[None]) -> None:
        self._syncing.discard(keeper)
        error = None if done.cancelled() else done.exception()
        if error is not None:
            logger.error("durable jobs may not survive the death of this machine: %s", error)
        elif keeper in self._unsynced:
            self._unsynced.discard(keeper)
            self._sync_soon(keeper)


def _id_of(record: JobRecord) -> object:
    return getattr(record.handle, "id", record.job)
