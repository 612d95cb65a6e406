"""The claim of one node: what it holds of a program that is gone, fetched batch by batch.

A batch is acknowledged when all of it is in the recovery file, on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dispy.errors import TransferError
from dispy.logs import logger
from dispy.model import UNSTARTED, Ending, HeldAttempt, JobDone, NodeInfo, ProcessId
from dispy.recovery.book import Book, JobsHanded, ResultKept
from dispy.recovery.file import RecoveryFile
from dispy.wire.blobs import BlobExchange, BlobSources
from dispy.wire.link import Link
from dispy.wire.messages import (
    AckResults,
    AnyMessage,
    ClaimResults,
    JobsDone,
    NodeDescribed,
    ResultsClaimed,
)

_Batch = tuple[JobsDone, bytes]


class Claim:
    """One node process that was reached. All methods belong to the loop's thread."""

    def __init__(
        self, link: Link, file: RecoveryFile, book: Book, terminate: bool, on_news: Callable[[Claim], None]
    ) -> None:
        self.process: ProcessId = link.peer.process
        self.address = link.peer.address
        self.info: NodeInfo | None = None
        self.is_answered = False
        self.fetched = 0
        """Results that came from it."""
        self.unreadable = 0
        """Files with results that were damaged on its disk."""
        self.left: set[tuple[int, int]] = set()
        """Jobs with their attempts whose results have not arrived."""
        self.running = 0
        """How many of them ran when it was asked."""
        self.not_started: set[int] = set()
        """Jobs that it had and that had not started there."""
        self.link: Link | None = link
        self._file = file
        self._book = book
        self._terminate = terminate
        self._on_news = on_news
        self._exchange = BlobExchange(link, BlobSources())
        self._seen: set[int] = set()
        self._safe = 0
        """Up to which batch all is in the file."""
        self._batches: asyncio.Queue[_Batch] = asyncio.Queue()
        self._problem: BaseException | None = None
        self._task = asyncio.get_running_loop().create_task(self._take_batches(), name=f"claim {self.process}")
        self._task.add_done_callback(self._ended)

    @property
    def name(self) -> str:
        """For sentences."""
        return self.info.name if self.info is not None else self.address

    @property
    def is_done(self) -> bool:
        """Whether the node has nothing more for us."""
        return self.is_answered and not self.left

    def check(self) -> None:
        """Raise what went wrong here: the recovery file cannot be written.

        Raises:
            OSError: so it is.
        """
        if self._problem is not None:
            raise self._problem

    def link_replaced(self, link: Link) -> None:
        """There is another link to the same process; it tells again what it holds."""
        self.link = link
        self.is_answered = False
        self._exchange.link_replaced(link)

    def messages_arrived(self, messages: Sequence[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """Everything that one read brought."""
        for message, payload in messages:
            if self._exchange.message_arrived(message, payload):
                continue
            match message:
                case NodeDescribed(info):
                    if self.info is None or not self.is_answered:
                        self._ask()
                    self.info = info
                case ResultsClaimed(ended, running, unreadable):
                    self.unreadable = unreadable
                    self._answered(ended, running)
                case JobsDone():
                    self._batch_arrived(message, payload)
                case _:
                    pass  # what a node says to every scheduler

    def close(self, reason: str) -> None:
        """Let go of the node; what was not acknowledged stays there."""
        self._task.cancel()
        self._exchange.close(reason)
        if self.link is not None:
            self.link.close(reason)
            self.link = None

    def _ask(self) -> None:
        if self.link is not None:
            self.link.send(ClaimResults(self._book.program.token, self._terminate))

    def _answered(self, ended: list[HeldAttempt], running: list[HeldAttempt]) -> None:
        first = not self.is_answered
        self.is_answered = True
        self._note_running({held.job for held in running})
        self.running = len(running)
        self.left = {(held.job, held.attempt) for held in (*ended, *running)}
        if first and self.left:
            still = f", {len(running)} jobs still run" if running else ""
            logger.info("node %s (%s): %d results%s", self.name, self.address, len(ended), still)
        self._on_news(self)

    def _note_running(self, jobs: set[int]) -> None:
        """Should the node end before them, it is known what was lost, also by a later call."""
        if self.process not in self._book.nodes:
            return
        noted = [
            job
            for job in sorted(jobs)
            if job not in self._book.jobs
            and job not in self._book.returned
            and self._book.handed.get(job) != self.process
        ]
        if not noted:
            return
        entry = JobsHanded(self.process, noted)
        try:
            self._file.append([entry])
        except OSError as error:
            self._problem = error
            return
        self._book.add(entry)

    def _batch_arrived(self, message: JobsDone, payload: bytes | memoryview) -> None:
        if message.sequence <= self._safe:  # its acknowledgement was lost with an earlier link
            self._settle(message)
        elif message.sequence not in self._seen:
            self._seen.add(message.sequence)
            self._batches.put_nowait((message, bytes(payload)))

    def _settle(self, message: JobsDone) -> None:
        self._safe = max(self._safe, message.sequence)
        self.left -= {(done.job, done.attempt) for done in message.jobs if done.ending != Ending.PROVISIONAL}
        self.not_started |= {done.job for done in message.jobs if done.ending in UNSTARTED}
        if self.link is not None:
            self.link.send(AckResults(self._safe))
        self._on_news(self)

    async def _take_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            message, payload = await self._batches.get()
            kept = await self._with_bodies(message, payload)
            self._file.append(kept)
            await loop.run_in_executor(None, self._file.sync)
            for entry in kept:
                self._book.add(entry)
            self.fetched += len(kept)
            self._settle(message)

    async def _with_bodies(self, message: JobsDone, payload: bytes) -> list[ResultKept]:
        """The results of a batch that are worth keeping."""
        kept: list[ResultKept] = []
        at = 0
        for done in message.jobs:
            size = 0 if done.blob is not None else _body_size(done)
            body = payload[at : at + size]
            at += size
            if done.ending in (Ending.PROVISIONAL, *UNSTARTED) or done.job in self._book.returned:
                continue
            if done.blob is not None:
                try:
                    body = await self._exchange.fetch_bytes(done.blob)
                except TransferError as error:
                    done, body = _without_body(done, error)
            kept.append(ResultKept(done, self.address, body))
        return kept

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._problem = task.exception()
            self._on_news(self)


def _body_size(done: JobDone) -> int:
    return done.result_size + done.stdout_size + done.stderr_size + done.error_size


def _without_body(done: JobDone, error: TransferError) -> tuple[JobDone, bytes]:
    text = f"the result could not be fetched from the node: {error}".encode()
    lost = JobDone(done.job, done.attempt, int(Ending.DIED), done.started_at, done.ended_at, 0, 0, 0, len(text), None)
    return lost, text
