"""Moving blobs over a link: whoever needs one asks for chunks, and the other side reads and sends them.

One `BlobExchange` per link does both directions. Files are read, written and hashed in threads, never in the loop.
What to ask for is decided in `dispy.wire.transfer`; where blobs come from and go to is in `blobsources` and
`blobstore`.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from dispy import pages
from dispy.errors import TransferError
from dispy.logs import logger
from dispy.model import BlobRef, Role
from dispy.wire.blobsources import BlobSources, FileSource, Offered, SourceError
from dispy.wire.blobstore import (
    AsideSink,
    BlobStore,
    ContentLost,
    MemfdSink,
    MemorySink,
    Sink,
    WrongContent,
    blob_text,
    write_error,
)
from dispy.wire.datagrams import clean_name
from dispy.wire.fetch import BlobLink, Fetch
from dispy.wire.handing import Handing, is_near
from dispy.wire.messages import AnyMessage, BlobFetched, BlobGone, Chunk, DescriptorRefused, NeedChunk, NeedDescriptor
from dispy.wire.transfer import LARGE_CHUNK
from dispy.words import size

__all__ = ["BlobExchange", "BlobLink", "BlobSources", "BlobStore"]

T = TypeVar("T")

READS_LIMIT: Final = 4096
"""Requests of one peer that may wait for the disk."""
REASON_LIMIT: Final = 500
SHARED_SIZE: Final = 16 << 20
"""Blobs that are named by their hash and have this size or more are passed on between those that fetch them."""
_READS_AT_ONCE: Final = 16


class BlobExchange:
    """Fetches blobs over a link and serves those that this process offers.

    When the link breaks, fetches wait for `link_replaced` and go on where they were, or for `close`.
    `on_fetched` hears the name of a blob that the other side has got whole; nothing is withdrawn here. `on_shareable`
    hears, once for each, which blobs the other side asks for that it could pass on.
    """

    def __init__(
        self,
        link: BlobLink,
        sources: Offered,
        *,
        on_fetched: Callable[[bytes], None] | None = None,
        on_shareable: Callable[[BlobRef], None] | None = None,
    ) -> None:
        self._link = link
        self._sources = sources
        self._on_fetched = on_fetched
        self._on_shareable = on_shareable
        self._told: set[bytes] = set()
        self._loop = asyncio.get_running_loop()
        self._fetches: dict[bytes, Fetch[Any]] = {}
        self._unwanted: Counter[bytes] = Counter()
        self._reads: list[tuple[NeedChunk, FileSource]] = []
        self._reading = False
        self._handing = Handing(sources)
        self._closed = ""

    def message_arrived(self, message: AnyMessage, payload: bytes | memoryview) -> bool:
        """Deal with a message if it is about blobs; False when it is not."""
        match message:
            case Chunk(name, offset):
                if fetch := self._asked_by(name):
                    fetch.arrived(offset, payload)
            case NeedChunk():
                self._serve(message)
            case BlobGone(name, reason, final):
                if fetch := self._asked_by(name):
                    why = clean_name(reason, REASON_LIMIT) or "no reason given"
                    cause = f"{self._link.peer.name} cannot give {blob_text(fetch.ref)}: {why}"
                    fetch.gone(ContentLost(cause) if final else TransferError(cause))
            case NeedDescriptor():
                if not self._closed:
                    self._handing.give(self._link.send, message, hashed_only=self._link.peer.role is Role.PEER)
            case DescriptorRefused():
                self._handing.refused(message)
            case BlobFetched(name):
                self._told.discard(name)
                if self._on_fetched is not None:
                    self._on_fetched(name)
            case _:
                return False
        return True

    async def fetch_memory(self, ref: BlobRef) -> memoryview:
        """The content in memory of its own.

        Raises:
            TransferError: the other side does not have it, it is not what its name says, there is no memory for it, or
                the exchange was closed.
        """
        fd = await self._handed_over(ref)
        if fd is None:
            return await self._fetch(ref, MemorySink(ref))
        try:
            return memoryview(pages.mapped(fd))
        except OSError as error:
            raise write_error(ref, error, "memory") from error
        finally:
            os.close(fd)

    async def fetch_bytes(self, ref: BlobRef) -> bytes:
        """The content as bytes. Raises as `fetch_memory`."""
        return bytes(await self.fetch_memory(ref))

    async def fetch_memfd(self, ref: BlobRef) -> int:
        """A sealed memfd with the content; the descriptor belongs to the caller. Raises as `fetch_memory`."""
        fd = await self._handed_over(ref)
        return await self._fetch(ref, MemfdSink(ref)) if fd is None else fd

    async def fetch_aside(self, ref: BlobRef, directory: Path) -> int:
        """As `fetch_memfd`, but the content lies in a file without a name in this directory, for reading only."""
        return await self._fetch(ref, AsideSink(ref, directory), str(directory))

    async def _handed_over(self, ref: BlobRef) -> int | None:
        """A sealed memfd with the content, if the other side is on this machine and has one to give."""
        if self._closed or not is_near(self._link.peer):
            return None
        fd = await self._handing.ask(self._link.send, ref)
        if fd is not None:
            self._link.send(BlobFetched(ref.name))
        return fd

    async def fetch_file(self, ref: BlobRef, store: BlobStore) -> Path:
        """The file in the store, fetched unless it is there; fetches of one content into one store are shared.

        Raises:
            TransferError: as `fetch_memory`, or the store cannot keep it.
        """
        while True:
            path = await store.path_of(ref)
            if path is not None:
                if is_shareable(ref):
                    self._link.send(BlobFetched(ref.name))
                return path
            arriving = store.arriving.get(ref.name)
            if arriving is None:
                break
            # Whatever becomes of it, we look again: another link may fail where ours does not.
            await asyncio.wait([arriving])
        ended = store.arriving[ref.name] = self._loop.create_future()
        try:
            return await self._fetch(ref, await store.sink(ref), str(store.directory), store.fetching)
        finally:
            del store.arriving[ref.name]
            ended.set_result(None)

    async def fetch_into(self, sink: Sink[T], ref: BlobRef, place: str) -> T:
        """What a sink of the caller's makes of the content; `place` is what it is called in errors.

        Raises:
            TransferError: as `fetch_memory`, or it cannot be written.
        """
        return await self._fetch(ref, sink, place)

    def link_replaced(self, link: BlobLink) -> None:
        """Go on over another link to the same process: what was outstanding is asked for again."""
        self._link = link
        self._handing.reset()
        self._unwanted.clear()
        self._reads.clear()
        for fetch in self._fetches.values():
            fetch.restart(link)

    def close(self, cause: str) -> None:
        """End all fetches with TransferError(cause) and serve no more. May be called twice."""
        self._closed = self._closed or cause or "the link was closed"
        self._reads.clear()
        self._handing.reset()
        for fetch in self._fetches.values():
            fetch.fail(TransferError(self._closed))

    def _asked_by(self, name: bytes) -> Fetch[Any] | None:
        """The fetch that an answer is for. Answers come in the order of requests, those of an ended fetch first."""
        if name in self._unwanted:
            self._unwanted[name] -= 1
            if not self._unwanted[name]:
                del self._unwanted[name]
            return None
        return self._fetches.get(name)

    async def _fetch(
        self, ref: BlobRef, sink: Sink[T], place: str = "memory", shared: dict[bytes, Fetch[Any]] | None = None
    ) -> T:
        while (other := self._fetches.get(ref.name)) is not None:
            await asyncio.wait([other.released])
        if self._closed:
            raise TransferError(self._closed)
        fetch = Fetch(self._link, ref, sink, self._loop)
        self._fetches[ref.name] = fetch
        if shared is not None:
            shared[ref.name] = fetch
        try:
            fetch.pump()
            result = await _whole(fetch)
        except OSError as error:
            fetch.abandon()
            raise write_error(ref, error, place) from error
        except BaseException:
            fetch.abandon()
            raise
        finally:
            fetch.end()
            del self._fetches[ref.name]
            if shared is not None:
                del shared[ref.name]
            if fetch.answers_due:
                self._unwanted[ref.name] = fetch.answers_due
            fetch.released.set_result(None)
        self._link.send(BlobFetched(ref.name))
        if fetch.from_others:
            logger.info("%s is here; %s of it came from other nodes", blob_text(ref), size(fetch.from_others))
        return result

    # ---- serving ----

    def _serve(self, need: NeedChunk) -> None:
        if self._closed:
            return
        try:
            # A node may ask another node only for what it knows by its hash.
            source = self._sources.find(need.name, hashed_only=self._link.peer.role is Role.PEER)
            if not (0 < need.size <= LARGE_CHUNK and need.offset >= 0 and need.offset + need.size <= source.ref.size):
                raise SourceError("the request goes beyond its end or is too large")
            if self._on_shareable is not None and is_shareable(source.ref) and need.name not in self._told:
                self._told.add(need.name)
                self._on_shareable(source.ref)
            if isinstance(source, FileSource):
                if len(self._reads) >= READS_LIMIT:
                    raise SourceError("too much is asked for at once")
                self._reads.append((need, source))
                self._read_more()
                return
            content = source.read(need.offset, need.size)
        except SourceError as error:
            self._link.send(BlobGone(need.name, str(error), error.final))
        else:
            self._link.send(Chunk(need.name, need.offset), (content,))

    def _read_more(self) -> None:
        if self._reading or not self._reads:
            return
        self._reading = True
        link = self._link
        batch, self._reads = self._reads[:_READS_AT_ONCE], self._reads[_READS_AT_ONCE:]
        reading = self._loop.run_in_executor(None, self._read, batch)
        reading.add_done_callback(lambda done: self._read_done(link, done))

    def _read(self, batch: list[tuple[NeedChunk, FileSource]]) -> list[tuple[NeedChunk, memoryview | SourceError]]:
        """In a thread: the contents, or why there are none."""
        answers: list[tuple[NeedChunk, memoryview | SourceError]] = []
        descriptors: dict[bytes, int] = {}
        try:
            for need, source in batch:
                try:
                    if need.name not in descriptors:
                        descriptors[need.name] = source.open()
                    answers.append((need, source.read(descriptors[need.name], need.offset, need.size)))
                except SourceError as error:
                    answers.append((need, error))
        finally:
            for fd in descriptors.values():
                os.close(fd)
        return answers

    def _read_done(
        self, link: BlobLink, done: asyncio.Future[list[tuple[NeedChunk, memoryview | SourceError]]]
    ) -> None:
        self._reading = False
        if self._closed:
            return
        # Answers of a link that was replaced are not sent: the new one asks again.
        for need, answer in done.result() if link is self._link else ():
            if isinstance(answer, SourceError):
                link.send(BlobGone(need.name, str(answer), answer.final))
            else:
                link.send(Chunk(need.name, need.offset), (answer,))
        self._read_more()


def is_shareable(ref: BlobRef) -> bool:
    """Whether it is worth passing on between those that fetch it."""
    return ref.hashed and ref.size >= SHARED_SIZE


async def _whole(fetch: Fetch[T]) -> T:
    while True:
        await fetch.arrived_whole
        try:
            return await fetch.finish()
        except WrongContent:
            if not fetch.distrust():
                raise
