"""The store of a shared scheduler: a thread of its own writes what is gathered; the loop never waits for it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from msgspec import Struct

from dispy.errors import StoreError
from dispy.failpoints import ARMED, hit
from dispy.logs import logger
from dispy.sharing.gathering import Gathering
from dispy.sharing.keeping import KeptEnd, Restored
from dispy.sharing.reopening import read_ends, reopen
from dispy.sharing.storefile import StoreFile, is_damage
from dispy.sharing.storewriting import Batch

RETRY_AFTER: Final = 2.0
"""Seconds until a batch is written again that could not be written."""
IDLE_AFTER: Final = 1.0
"""Seconds without anything to write after which the file is made smaller, a little each time."""
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


class Reading(Struct, frozen=True):
    """What the thread is to read, and who waits for it."""

    jobs: Sequence[int]
    answer: asyncio.Future[list[KeptEnd]]


class Store(Gathering):
    """Implements `dispy.sharing.keeping.Keeper`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, file: StoreFile, next_job: int) -> None:
        """`next_job`: no number from there on has been given to a job."""
        super().__init__(next_job, lambda: loop.call_soon(self._send))
        self.problem = ""
        self.on_problem: Callable[[str], None] = lambda sentence: None
        self.on_broken: Callable[[str], None] = lambda sentence: None
        self._loop = loop
        self._file = file
        self._queue: SimpleQueue[Batch | Reading | None] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dispy-store", daemon=True)
        self._thread.start()

    def result_file(self, job: int) -> Path:
        """Where a large body of this job (own number) is, once it is on the disk."""
        return self._file.results / str(job)

    def settled(self) -> asyncio.Future[None] | None:
        """Done when all that was told until now is on the disk; None: it is."""
        if self.is_settled:
            return None
        future: asyncio.Future[None] = self._loop.create_future()
        self.after(lambda: None if future.done() else future.set_result(None))
        return future

    async def read_ends(self, jobs: Sequence[int]) -> list[KeptEnd]:
        """How these jobs (own numbers) ended, which is on the disk: so many of the first as are worth one message."""
        answer: asyncio.Future[list[KeptEnd]] = self._loop.create_future()
        self._queue.put(Reading(jobs, answer))
        return await answer

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

    def _send(self) -> None:
        """Give the thread what this turn of the loop has brought, or the time of the last commit."""
        if (batch := self.take()) is not None:
            self._queue.put(batch)

    def _done(self, number: int) -> None:
        self._set_problem("")
        self.written(number)
        self.call_waiting()

    # ---- in the thread ----

    def _work(self) -> None:
        waiting: list[Batch | Reading] = []
        """What could not be done. Meanwhile no other batch comes."""
        retry_at = 0.0
        shrinks = True
        while not self._stop.is_set():
            timeout = max(0.0, retry_at - time.monotonic()) if waiting else IDLE_AFTER if shrinks else None
            orders: list[Batch | Reading | None]
            try:
                orders = [self._queue.get(timeout=timeout)]
                shrinks = True
            except Empty:
                orders, waiting = [*waiting], []
                if not orders:
                    shrinks = self._shrink()
            failed = [order for order in orders if order is not None and not self._try(order)]
            if failed:
                waiting += failed
                retry_at = time.monotonic() + RETRY_AFTER

    def _shrink(self) -> bool:
        """Give some of what the file does not need back to the disk; returns whether there is more."""
        try:
            return self._file.shrink()
        except sqlite3.Error as error:
            if not may_pass(error):
                self._break(error)
            return False

    def _try(self, order: Batch | Reading) -> bool:
        """Do it; false when that failed."""
        try:
            if isinstance(order, Batch):
                self._write(order)
            else:
                self._tell(_answer, order.answer, read_ends(self._file, order.jobs))
        except (sqlite3.Error, OSError) as error:
            if may_pass(error):
                if isinstance(order, Batch):
                    sentence = (
                        f"the scheduler cannot write to {self._file.path} ({error}): it takes no new jobs until it "
                        "can, keeps what it has, and tries again"
                    )
                    self._tell(self._set_problem, sentence)
                else:
                    logger.warning("results cannot be read from %s (%s): tried again", self._file.path, error)
            else:
                self._break(error)
            return False
        except Exception as error:  # a bug of ours: the daemon must not go on as if it were stored
            self._break(error)
            return False
        return True

    def _write(self, batch: Batch) -> None:
        if ARMED:
            hit("store.write")
        self._file.write(batch)
        if ARMED:
            hit("store.written")
        self._tell(self._done, batch.number)

    def _break(self, error: Exception) -> None:
        logger.error("the store of the scheduler is broken", exc_info=error)
        self._stop.set()
        failed = f"the scheduler cannot go on without its store, which failed ({error!r})"
        self._tell(self.on_broken, self._file.damaged(error) if is_damage(error) else failed)

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

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


def _answer(future: asyncio.Future[list[KeptEnd]], ends: list[KeptEnd]) -> None:
    if not future.done():
        future.set_result(ends)
