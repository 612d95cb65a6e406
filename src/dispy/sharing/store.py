"""The store of a shared scheduler: what its core changes is gathered while a commit runs, and written by one thread.

Nothing here waits for the disk: who rests on what was noted asks by `after`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from dispy.errors import StoreError
from dispy.failpoints import ARMED, hit
from dispy.logs import logger
from dispy.model import ComputationId, ProcessId
from dispy.scheduler import events
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import Effects
from dispy.scheduler.places import Place
from dispy.sharing.keeping import KeptCluster, Restored
from dispy.sharing.reopening import past_of, reopen
from dispy.sharing.storefile import Batch, End, Mark, StoreFile, is_damage

RETRY_AFTER: Final = 2.0
"""Seconds until a batch is written again that could not be written."""
BLOCK: Final = 100_000
"""Numbers of jobs that are set aside at once."""
PASSING: Final = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_BUSY", "SQLITE_READONLY", "SQLITE_NOMEM")
"""Beginnings of the names of errors that may pass."""


async def open_store(directory: Path) -> tuple[Store, Restored]:
    """Open the store in this directory, or make one; say what lay there.

    Raises:
        StoreError: it cannot be used; the message says why and what to do.
    """
    loop = asyncio.get_running_loop()
    file, restored = await loop.run_in_executor(None, _open, directory)
    return Store(loop, file, file.meta()["next"]), restored


def _open(directory: Path) -> tuple[StoreFile, Restored]:
    try:
        file = StoreFile(directory)
    except OSError as error:
        raise StoreError(f"{directory} cannot be used: {error}") from error
    try:
        restored = reopen(file)
        file.remove_leftovers()
    except (sqlite3.Error, ValueError, LookupError) as error:
        file.close()
        raise StoreError(file.damaged(error)) from error
    return file, restored


class Store:
    """Implements `dispy.sharing.keeping.Keeper`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, file: StoreFile, next_job: int) -> None:
        """`next_job`: no number from there on has been given to a job."""
        self.problem = ""
        self.on_problem: Callable[[str], None] = lambda sentence: None
        self.on_broken: Callable[[str], None] = lambda sentence: None
        self.places_of: Callable[[ProcessId], Sequence[Place]] = lambda node: ()
        self.address_of: Callable[[ProcessId], str] = lambda node: ""
        self._loop = loop
        self._file = file
        self._next = self._set_aside = next_job
        self._batch = Batch(1)
        """What was told since the last one was given to the thread."""
        self._is_empty = True
        self._is_writing = False
        self._stored = 0
        """Number of the last batch on the disk."""
        self._waiting: deque[tuple[int, Callable[[], object]]] = deque()
        """What is to be done when the batch of this number is on the disk."""
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dispy-store", daemon=True)
        self._thread.start()

    # ---- what the core changes ----

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

    # ---- what the daemon tells ----

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

    def result_file(self, job: int) -> Path:
        """Where a large body of this job (own number) is, once it is on the disk."""
        return self._file.results / str(job)

    # ---- who waits ----

    def after(self, then: Callable[[], object]) -> None:
        """Call `then` when all that was told until now is on the disk: at once if it is. The order is kept."""
        last = self._batch.number - self._is_empty
        if last <= self._stored and not self._waiting:
            then()
        else:
            self._waiting.append((last, then))

    def settled(self) -> asyncio.Future[None] | None:
        """Done when all that was told until now is on the disk; None: it is."""
        if self._is_empty and not self._is_writing and not self._waiting:
            return None
        future: asyncio.Future[None] = self._loop.create_future()
        self.after(lambda: None if future.done() else future.set_result(None))
        return future

    async def close(self) -> None:
        """Write what is still to be written, and stop. What cannot be written now is lost."""
        if self._thread.is_alive():
            if not self.problem and not self._stop.is_set() and (settled := self.settled()) is not None:
                await settled
            self._stop.set()
            self._queue.put(None)
            await self._loop.run_in_executor(None, self._thread.join)
        self._file.close()

    # ---- batches ----

    def _gather(self) -> Batch:
        """The batch for what is told now. It is written with all that this turn of the loop still brings."""
        if self._is_empty:
            self._is_empty = False
            if not self._is_writing:
                self._loop.call_soon(self._send)
        return self._batch

    def _send(self) -> None:
        if self._is_empty or self._is_writing:
            return
        batch = self._batch
        self._batch = Batch(batch.number + 1)
        self._is_empty, self._is_writing = True, True
        self._queue.put(batch)

    def _written(self, number: int) -> None:
        self._stored, self._is_writing = number, False
        self._send()
        waiting = self._waiting
        while waiting and waiting[0][0] <= self._stored:
            _, then = waiting[0]
            try:
                then()
            except Exception:  # the others wait for the same
                logger.exception("something that waited for the disk failed; the scheduler goes on")
            waiting.popleft()

    # ---- in the thread ----

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            while not self._stop.is_set():
                problem = self._try(batch)
                if problem is None:
                    break
                self._stop.wait(RETRY_AFTER)
            if self._stop.is_set():
                return

    def _try(self, batch: Batch) -> str | None:
        """Write a batch; returns why that failed, else None."""
        if ARMED:
            hit("store.write")
        try:
            self._file.write(batch)
        except (sqlite3.Error, OSError) as error:
            if not may_pass(error):
                self._break(error)
                return str(error)
            sentence = (
                f"the scheduler cannot write to {self._file.path} ({error}): it takes no new jobs until it can, keeps "
                "what it has, and tries again"
            )
            self._tell(self._set_problem, sentence)
            return sentence
        except Exception as error:  # a bug of ours: the daemon must not go on as if it were stored
            self._break(error)
            return str(error)
        if ARMED:
            hit("store.written")
        self._tell(self._done, batch.number)
        return None

    def _break(self, error: Exception) -> None:
        logger.error("the store of the scheduler is broken", exc_info=error)
        self._stop.set()
        failed = f"the scheduler cannot go on without its store, which failed ({error!r})"
        self._tell(self.on_broken, self._file.damaged(error) if is_damage(error) else failed)

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def _done(self, number: int) -> None:
        self._set_problem("")
        self._written(number)

    def _set_problem(self, sentence: str) -> None:
        if sentence != self.problem:
            self.problem = sentence
            if sentence:
                logger.error("%s", sentence)
            else:
                logger.warning("the scheduler can write to %s again", self._file.path)
            self.on_problem(sentence)


def may_pass(error: Exception) -> bool:
    """Whether it is worth trying again after this error."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", "").startswith(PASSING)
    return isinstance(error, OSError)
