"""The store of a shared scheduler: a thread of its own writes what is gathered; the loop never waits for it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from dispy.errors import StoreError
from dispy.failpoints import ARMED, hit
from dispy.logs import logger
from dispy.sharing.gathering import Gathering
from dispy.sharing.keeping import Restored
from dispy.sharing.reopening import reopen
from dispy.sharing.storefile import Batch, StoreFile, is_damage

RETRY_AFTER: Final = 2.0
"""Seconds until a batch is written again that could not be written."""
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
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
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
