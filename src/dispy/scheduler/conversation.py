"""What is said beside the running of jobs: questions to nodes and their answers, and files that jobs send.

The core has no part in it: nothing here changes who runs what.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from pathlib import Path
from typing import Any

from dispy import config
from dispy.errors import TransferError
from dispy.logs import logger
from dispy.model import ComputationId, FileSpec, HeldAttempt, ProcessId
from dispy.scheduler.links import Reached
from dispy.wire.beneath import BeneathSink
from dispy.wire.blobs import BlobExchange
from dispy.wire.messages import (
    AnyMessage,
    FileOffered,
    FilePlaced,
    FileTaken,
    JobsListed,
    JobTail,
    ListJobs,
    PlaceFile,
    TailJob,
)


class Conversation:
    """The scheduler's part in it; all methods belong to the loop's thread."""

    def __init__(
        self,
        reach: Callable[[ProcessId], Reached | None],
        is_wanted: Callable[[ProcessId, int, int], bool],
        spawn: Callable[[Coroutine[None, None, None]], None],
        deliver: Callable[[Reached, FileOffered], Awaitable[str]] | None = None,
    ) -> None:
        """`is_wanted` tells whether a node runs this attempt of a job for us.

        `deliver` takes files that jobs send; without it they are put below the working directory.
        """
        self._reach = reach
        self._is_wanted = is_wanted
        self._spawn = spawn
        self._deliver = deliver or self._fetch
        self._waiting: dict[Hashable, list[asyncio.Future[Any]]] = {}
        self._taking: set[Hashable] = set()
        """Files of jobs that are on their way."""

    # ---- questions ----

    async def tail(self, node: ProcessId, job: int) -> tuple[bytes, bytes]:
        """The end of what a job has printed so far; nothing when the node does not answer."""
        with contextlib.suppress(TimeoutError):
            stdout, stderr = await self._ask(node, TailJob(job), (node, JobTail, job))
            return stdout, stderr
        return b"", b""

    async def running(self, node: ProcessId, computation: ComputationId) -> list[HeldAttempt]:
        """The attempts of a computation that run on a node by its own account; none when it does not answer."""
        with contextlib.suppress(TimeoutError):
            held: list[HeldAttempt] = await self._ask(node, ListJobs(computation), (node, JobsListed, computation))
            return held
        return []

    async def place(self, node: ProcessId, computation: ComputationId, file: FileSpec) -> str:
        """Let a node fetch a file into the computation's directory; returns why that failed, else nothing."""
        try:
            reason: str = await self._ask(
                node, PlaceFile(computation, file), (node, FilePlaced, computation, file.path), None
            )
        except TimeoutError:
            return "the node does not answer"
        return reason

    async def _ask(self, node: ProcessId, question: AnyMessage, key: Hashable, limit: float | None = -1.0) -> Any:
        """Ask, and wait for the answer that `key` names; raises TimeoutError, at once without a link."""
        reached = self._reach(node)
        if reached is None or reached.link is None:
            raise TimeoutError
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        reached.link.send(question)
        try:
            return await asyncio.wait_for(future, config.MsgTimeout if limit == -1.0 else limit)
        finally:
            waiting = self._waiting[key]
            waiting.remove(future)
            if not waiting:
                del self._waiting[key]

    def heard(self, reached: Reached, message: AnyMessage, payload: bytes | memoryview) -> None:
        """A node has answered, or a job of it sends a file."""
        node = reached.process
        match message:
            case JobTail(job, stdout_size):
                both = bytes(payload)
                self._answer((node, JobTail, job), (both[:stdout_size], both[stdout_size:]))
            case JobsListed(computation, jobs):
                self._answer((node, JobsListed, computation), jobs)
            case FilePlaced(computation, path, reason):
                self._answer((node, FilePlaced, computation, path), reason)
            case FileOffered():
                self._offered(reached, message)

    def _answer(self, key: Hashable, value: object) -> None:
        for future in self._waiting.get(key, ()):
            if not future.done():
                future.set_result(value)

    def link_gone(self, node: ProcessId) -> None:
        """What was asked over the link to a node may have been lost with it."""
        for key, futures in self._waiting.items():
            if isinstance(key, tuple) and key[0] == node:
                for future in futures:
                    if not future.done():
                        future.set_exception(TimeoutError())

    # ---- files of jobs ----

    def _offered(self, reached: Reached, offer: FileOffered) -> None:
        key = (reached.process, offer.job, offer.file.blob.name, offer.file.path)
        if key not in self._taking:
            self._taking.add(key)
            self._spawn(self._take(reached, offer, key))

    async def _take(self, reached: Reached, offer: FileOffered, key: Hashable) -> None:
        file = offer.file
        try:
            is_wanted = self._is_wanted(reached.process, offer.job, offer.attempt)
            reason = await self._deliver(reached, offer) if is_wanted else "the job is not wanted any more"
        finally:
            self._taking.discard(key)
        if reason:
            logger.warning("a job's file %s was not taken: %s", file.path, reason)
        if reached.link is not None:
            reached.link.send(FileTaken(file.blob.name, reason, offer.job, file.path))

    async def _fetch(self, reached: Reached, offer: FileOffered) -> str:
        return await fetch_here(reached.exchange, offer.file)


async def fetch_here(exchange: BlobExchange, file: FileSpec) -> str:
    """Put a job's file below the program's working directory; returns why that failed, else nothing."""
    most = config.MaxFileSize
    if most and file.blob.size > most:
        return f"it has {file.blob.size:,} bytes; dispy.config.MaxFileSize allows {most:,}"
    try:
        here = Path.cwd()
        await exchange.fetch_into(BeneathSink(here, file), file.blob, f"{file.path} in {here}")
    except (TransferError, OSError) as error:
        return str(error)
    return ""
