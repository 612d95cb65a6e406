"""One blob on its way in: asks its sources for what is missing, and hands what arrives to a sink, one thread at a time.

The origin is whoever has named the blob. Others that have or fetch the same can be added while it comes (`peers`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from dispy.errors import TransferError
from dispy.model import BlobRef, Role
from dispy.wire.blobsources import OpenFile
from dispy.wire.blobstore import INLINE_SIZE, DescriptorSink, Piece, Sink
from dispy.wire.messages import AnyMessage, NeedChunk
from dispy.wire.transfer import ORIGIN, Download, Range

T_co = TypeVar("T_co", covariant=True)

LOOK_INTERVAL: Final = 0.5
"""Seconds between looks whether a source is silent, while there are several."""


class BlobPeer(Protocol):
    """What must be known of the other side of a link."""

    @property
    def name(self) -> str:
        """What people read."""

    @property
    def role(self) -> Role:
        """What it is on this link."""

    @property
    def address(self) -> str:
        """Where it is."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do."""


class BlobLink(Protocol):
    """What is needed of a link."""

    @property
    def peer(self) -> BlobPeer:
        """The other side."""

    def send(self, message: AnyMessage, payload: Sequence[bytes | memoryview] = ()) -> None:
        """Queue a message; after a loss it does nothing."""


class Fetch(Generic[T_co]):
    """Fetches one blob; whoever made it awaits `arrived_whole`, then `finish`, or calls `abandon`."""

    def __init__(self, link: BlobLink, ref: BlobRef, sink: Sink[T_co], loop: asyncio.AbstractEventLoop) -> None:
        self.ref = ref
        self.arrived_whole: asyncio.Future[None] = loop.create_future()
        """Done when all is in the sink."""
        self.released: asyncio.Future[None] = loop.create_future()
        """Done when another fetch of the same blob may begin."""
        self.on_pieces: Callable[[list[Range]], None] | None = None
        """Hears which pieces can be given to others now."""
        self.opened: OpenFile | None = None
        """Where these pieces can be read, as long as it comes."""
        self._sink = sink
        self._links = {ORIGIN: link}
        self._loop = loop
        self._download = Download(ref.size)
        self._pieces: list[Piece] = []
        self._backlog = 0
        self._refused = 0
        self._in_thread = False
        self._abandoned = False
        self._looking: asyncio.TimerHandle | None = None

    def pump(self) -> None:
        """Ask for what the windows allow; notice the end."""
        if self.arrived_whole.done():
            return
        if self._download.is_complete and not self._backlog:
            self.arrived_whole.set_result(None)
            return
        now = self._loop.time()
        for source, link in self._links.items():
            for offset, size in self._download.next_requests(now, self._backlog, source):
                link.send(NeedChunk(self.ref.name, offset, size))

    def arrived(self, offset: int, payload: bytes | memoryview, source: str = ORIGIN) -> None:
        """Take a chunk."""
        kept = self._download.arrived(offset, len(payload), self._loop.time(), source)
        if not kept or self.arrived_whole.done():
            return
        piece = (offset, payload if kept == len(payload) else payload[:kept])
        if self._sink.writes_inline:
            try:
                self._sink.write([piece])
            except OSError as error:
                self.fail(error)
        else:
            self._pieces.append(piece)
            self._backlog += kept
            self._write_more()
        self.pump()

    def gone(self, cause: TransferError) -> None:
        """Take the origin's refusal of one request."""
        self._refused += 1
        self.fail(cause)

    @property
    def answers_due(self) -> int:
        """How many requests the origin has neither answered nor refused."""
        return self._download.requests - self._refused

    def restart(self, link: BlobLink) -> None:
        """Ask the origin again, over another link."""
        self._links[ORIGIN] = link
        self._refused = 0
        self._download.restart()
        self.pump()

    def fail(self, error: Exception) -> None:
        """Nothing more is waited for."""
        if not self.arrived_whole.done():
            self.arrived_whole.set_exception(error)

    # Others that have it too.

    def take_share(self, share: int, shares: int) -> None:
        """So many fetch it now, and this is our number among them (from 0)."""
        self._download.take_share(share, shares)
        self._look_later()
        self.pump()

    def add_source(self, source: str, link: BlobLink) -> None:
        """Somebody else may be asked for what it says that it has."""
        self._links[source] = link
        self._download.add_source(source)
        self._look_later()

    def source_has(self, source: str, ranges: Sequence[Range]) -> None:
        """It has these pieces now."""
        self._download.source_has(source, ranges)
        self.pump()

    def drop_source(self, source: str) -> None:
        """It is not asked any more."""
        if source != ORIGIN and self._links.pop(source, None) is not None:
            self._download.drop_source(source)
            self.pump()

    def expect_less(self) -> None:
        """Somebody who fetches it too cannot be asked."""
        self._download.expect_less()

    def held(self) -> list[Range]:
        """The pieces that can be given to others."""
        return [] if self.opened is None else self._download.held()

    @property
    def from_others(self) -> int:
        """Bytes that came from somebody else than the origin."""
        return self._download.from_others

    def distrust(self) -> bool:
        """What came is not what it should be: fetch it again from the origin; False if all of it came from there."""
        if not self._download.has_shared:
            return False
        for source in self._download.sources[1:]:
            del self._links[source]
        self._download.distrust()
        self.on_pieces = self.opened = None
        self.arrived_whole = self._loop.create_future()
        self.pump()
        return True

    def _look_later(self) -> None:
        if self._looking is None and not self.arrived_whole.done():
            self._looking = self._loop.call_later(LOOK_INTERVAL, self._look)

    def _look(self) -> None:
        self._looking = None
        for source in self._download.look(self._loop.time()):
            self.drop_source(source)
        self.pump()
        self._look_later()

    # The sink.

    async def finish(self) -> T_co:
        """What the sink makes of it."""
        if self._sink.writes_inline and self.ref.size <= INLINE_SIZE:
            return self._sink.finish()
        self._in_thread = True
        finishing = self._loop.run_in_executor(None, self._sink.finish)
        finishing.add_done_callback(self._thread_done)
        # The thread cannot be stopped: when we are cancelled, the sink is discarded after it.
        return await asyncio.shield(finishing)

    def end(self) -> None:
        """No more looks."""
        self.on_pieces = self.opened = None
        if self._looking is not None:
            self._looking.cancel()

    def abandon(self) -> None:
        """Leave nothing behind, as soon as no thread works on it."""
        self._abandoned = True
        if self.arrived_whole.done() and not self.arrived_whole.cancelled():
            self.arrived_whole.exception()  # else asyncio complains that nobody has looked at it
        if not self._in_thread:
            self._sink.discard()

    def _write_more(self) -> None:
        if self._in_thread or not self._pieces:
            return
        self._in_thread = True
        pieces, self._pieces = self._pieces, []
        writing = self._loop.run_in_executor(None, self._sink.write, pieces)
        writing.add_done_callback(self._thread_done)
        writing.add_done_callback(lambda done: self._written(pieces, done))

    def _written(self, pieces: list[Piece], done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if self._abandoned or done.cancelled():
            return
        if isinstance(error, Exception):
            self.fail(error)
            return
        whole: list[Range] = []
        for offset, content in pieces:
            self._backlog -= len(content)
            piece = self._download.written(offset, len(content))
            if piece is not None:
                whole.append((piece, 1))
        if self.on_pieces is not None:
            if self.opened is None and isinstance(self._sink, DescriptorSink):  # now, while no thread can close it
                self.opened = OpenFile(os.dup(self._sink.fd))
            if whole:
                self.on_pieces(whole)
        self._write_more()
        self.pump()

    def _thread_done(self, _done: object) -> None:
        self._in_thread = False
        if self._abandoned:
            self._sink.discard()
