"""How jobs of one client ended, on the way to the client: stored or held by nodes, told, acknowledged, forgotten."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from dispy.model import BlobRef, ComputationId
from dispy.scheduler.effects import JobEnded
from dispy.settings import INLINE_SIZE
from dispy.sharing.books import End, EndsBook
from dispy.sharing.pool import Pool
from dispy.wire.blobsources import BlobSources
from dispy.wire.messages import AnyMessage
from dispy.wire.pool import JobOver
from dispy.wire.sharing import JobsOver


class Hearer(Protocol):
    """A client, as far as it is told how jobs ended."""

    sources: BlobSources
    """What the client can fetch."""

    def send(self, message: AnyMessage, payload: Sequence[bytes] = ()) -> None:
        """Send a message; without a link it is dropped."""


class Telling:
    """The ends of one cluster. In the loop's thread."""

    def __init__(self, pool: Pool, id: ComputationId, unread: Iterable[int], on_progress: Callable[[], None]) -> None:
        """`unread` jobs (the scheduler's numbers) ended before the scheduler was started anew; `on_progress` is called
        when the client has acknowledged some, or the disk has some."""
        self._pool = pool
        self._id = id
        self._on_progress = on_progress
        self._book = EndsBook(unread)
        self._to_be_stored = 0
        """Ends that are being written to the disk."""
        self._client: Hearer | None = None

    def __len__(self) -> int:
        """Ends that the client has not acknowledged."""
        return len(self._book)

    @property
    def is_settled(self) -> bool:
        """Whether the client has acknowledged all, and the disk knows it."""
        return not self._book.fresh and not len(self._book)

    def attach(self, client: Hearer) -> None:
        """The client is there (again), and is to be told all anew: `send` when it knows that it is accepted."""
        self._withdraw(self._book.attach())
        self._client = client

    def detach(self) -> None:
        """The client is gone, perhaps for a while."""
        self._withdraw(self._book.detach())
        self._client = None

    def add(self, ended: JobEnded, number: int, address: str) -> None:
        """A job (the client's number) has ended; `batch_ended` follows when that was all."""
        done = ended.done
        if done is not None:
            done.job, done.blob = number, None  # nobody reads it any more but the store, which knows what the job is
        over = JobOver(number, ended.state, ended.node, ended.cause, done, address)
        self._book.add(_end(ended.job.job, over, ended.body, len(ended.body), is_held=done is not None))

    def batch_ended(self) -> None:
        """Tell what may be told at once, and the rest when it is on the disk."""
        count = self._book.fresh - self._to_be_stored
        self._to_be_stored += count
        self.send()
        self._pool.keeper.after(lambda: self._stored(count))

    def _stored(self, count: int) -> None:
        self._to_be_stored -= count
        self._book.stored(count)
        self.send()
        self._on_progress()

    def send(self) -> None:
        """Tell the client of ended jobs, as many as may be on their way."""
        client = self._client
        if client is None:
            return
        while (batch := self._book.next_batch()) is not None:
            sequence, ends = batch
            client.send(
                JobsOver(self._id, sequence, [self._offered(end, client.sources) for end in ends]),
                [end.body for end in ends if end.size],
            )
        if (unread := self._book.next_unread()) is not None:
            self._pool.spawn(self._read(unread))

    async def _read(self, numbers: list[int]) -> None:
        kept = await self._pool.keeper.read_ends(numbers)
        self._book.read(numbers, [_end(end.job, end.over, end.body, end.size) for end in kept])
        self.send()

    def acknowledge(self, sequence: int) -> None:
        """The client has all ends up to this batch."""
        done = self._book.acknowledge(sequence)
        self._withdraw(done)
        if done:
            self._pool.keeper.acknowledged(self._id, [end.number for end in done])
        self.send()
        self._on_progress()

    def _offered(self, end: End, sources: BlobSources) -> JobOver:
        """An end as the client is told it: a large body is fetched."""
        done = end.over.done
        if end.large and done is not None:
            done.blob = BlobRef(os.urandom(32), end.large, False)
            with contextlib.suppress(OSError):  # then the client asks in vain, and says so
                sources.offer_path(self._pool.keeper.result_file(end.number), done.blob)
        return end.over

    def _withdraw(self, ends: Iterable[End]) -> None:
        """The client does not fetch these any more."""
        for end in ends:
            done = end.over.done
            if done is not None and done.blob is not None and self._client is not None:
                self._client.sources.withdraw(done.blob.name)


def _end(job: int, over: JobOver, body: bytes | memoryview, size: int, *, is_held: bool = False) -> End:
    """The end of a job (own number) with a body of this size; a large one is offered from the disk."""
    if size <= INLINE_SIZE:
        return End(job, over, bytes(body), size, 0, is_held)
    return End(job, over, b"", 0, size)
