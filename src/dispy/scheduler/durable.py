"""Marks of durable jobs: stored before the core hears of them, handed before a node does, over before the node may
forget the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from dispy.logs import logger
from dispy.model import ComputationId, ProcessId
from dispy.recovery.journal import StorableJob
from dispy.scheduler.effects import Effects, JobEnded, JobsStarted
from dispy.scheduler.jobs import JobRecord
from dispy.wire.blobsources import BlobSources, MemorySource


class MarkKeeper(Protocol):
    """Who keeps the marks of one or several clusters: `dispy.recovery.journal.Journal`, or a recovery under way."""

    def stored(self, jobs: Iterable[tuple[StorableJob, object, bytes]], now: float) -> None:
        """Jobs were submitted: each with its id and its arguments."""

    def handed(self, node: ProcessId, jobs: list[int]) -> None:
        """Jobs are about to be sent to a node."""

    def over(self, jobs: Sequence[JobEnded], address: Callable[[ProcessId], str]) -> None:
        """Jobs have ended and the program knows; `address` tells that of a node."""

    def sync(self) -> None:
        """In a thread: let what was written survive the death of the machine."""


class DurableMarks:
    """The durable clusters of one service, and who keeps their marks. In the loop's thread."""

    def __init__(self, sources: BlobSources, address: Callable[[ProcessId], str]) -> None:
        self._sources = sources
        self._address = address
        self._keepers: dict[ComputationId, MarkKeeper] = {}
        self._unsynced: set[MarkKeeper] = set()
        self._syncing: set[MarkKeeper] = set()

    def __bool__(self) -> bool:
        return bool(self._keepers)

    def add(self, cluster: ComputationId, keeper: MarkKeeper) -> None:
        """A durable cluster."""
        self._keepers[cluster] = keeper

    def forget(self, cluster: ComputationId) -> None:
        """It is over."""
        self._keepers.pop(cluster, None)

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

    def end(self, jobs: Iterable[JobEnded]) -> None:
        """Jobs have ended."""
        for keeper, mine in self._by_keeper(jobs, lambda ended: ended.job.cluster):
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
            for cluster in [cluster for cluster, known in self._keepers.items() if known is keeper]:
                del self._keepers[cluster]
            logger.exception(
                "durable jobs cannot be stored any more: they run, but those that have not ended are lost, or run "
                "again, if this program is killed"
            )

    def _by_keeper(self, things: Iterable[Any], cluster_of: Callable[[Any], ComputationId]) -> Any:
        sorted_out: dict[MarkKeeper, list[Any]] = {}
        for thing in things:
            keeper = self._keepers.get(cluster_of(thing))
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
