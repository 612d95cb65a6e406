"""Links between nodes: each gets the pieces that others have of a blob that it fetches, and gives those that it has.

The scheduler that gives a blob to several nodes tells each where the others are, with a ticket that it drew for this
blob. Whoever shows the ticket may have the blob, and nothing else, from a node that was told the same ticket. What a
peer sends is believed only when the whole has the right hash (`Fetch.distrust`). A peer that cannot be reached, is
silent or has nothing costs nothing: the scheduler has everything.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from msgspec import Struct

from dispy.errors import LinkError
from dispy.logs import logger
from dispy.model import BlobPlace, BlobRef, ProcessId
from dispy.wire.blobs import BlobExchange
from dispy.wire.blobsources import FileIdentity, FileSource, MemorySource, SourceError
from dispy.wire.blobstore import BlobStore
from dispy.wire.dialler import dial
from dispy.wire.fetch import Fetch
from dispy.wire.link import Link, LinkSettings, better_link
from dispy.wire.messages import AnyMessage, AskPieces, BlobFetched, BlobGone, BlobShared, Chunk, NeedChunk, PiecesHeld
from dispy.wire.transfer import PIECE, Range

LARGER_WAITS: Final = 0.3
"""Seconds that the larger process id waits before it dials too: the smaller may be behind something."""
IDLE_TIMEOUT: Final = 10.0
"""Seconds after which a link that nobody needs is closed."""
WAITING_LIMIT: Final = 64
"""Questions of one peer about blobs of which we have not been told yet."""
LINKS_LIMIT: Final = 64
"""Links to other nodes at a time."""


class _PeerLink(Struct, eq=False):
    """A link to another node."""

    link: Link
    exchange: BlobExchange
    used_at: float
    opened: dict[bytes, BlobRef] = {}
    """What it may have, by its ticket."""
    asked: set[bytes] = set()
    """What we have asked it for."""
    waiting: dict[bytes, bytes] = {}
    """Tickets that it has shown for blobs of which we have not been told."""


class PeerLinks:
    """All links of this node to others. In the loop's thread."""

    def __init__(self, settings: LinkSettings, store: BlobStore) -> None:
        """`settings` are of the role peer; `store` has what is given."""
        self._settings = settings
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._links: dict[ProcessId, _PeerLink] = {}
        self._tickets: dict[bytes, dict[ProcessId, bytes]] = {}
        """Blob → scheduler → ticket."""
        self._refs: dict[bytes, BlobRef] = {}
        self._places: dict[bytes, dict[ProcessId, BlobPlace]] = {}
        self._dialling: dict[ProcessId, asyncio.Task[None]] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    # What schedulers say.

    def told(self, scheduler: ProcessId, message: BlobShared) -> None:
        """Others fetch or have what we fetch or have."""
        name = message.blob.name
        self._tickets.setdefault(name, {})[scheduler] = message.ticket
        self._refs[name] = message.blob
        for linked in self._links.values():
            ticket = linked.waiting.pop(name, None)
            if ticket is not None:
                self._open(linked, name, ticket)
        fetch = self._store.fetching.get(name)
        if fetch is None or not 0 <= message.share < message.shares:
            return
        fetch.take_share(message.share, message.shares)
        fetch.on_pieces = partial(self._tell, name)
        self._places[name] = {place.process: place for place in message.places}
        for place in message.places:
            peer = self._links.get(place.process)
            if peer is not None:
                self._ask(peer, name)
            else:
                self._dial(place)

    def forget(self, scheduler: ProcessId) -> None:
        """A scheduler is gone: its tickets are worth nothing any more."""
        for name, tickets in list(self._tickets.items()):
            tickets.pop(scheduler, None)
            if not tickets:
                del self._tickets[name], self._refs[name]
                self._places.pop(name, None)
                for peer in self._links.values():
                    peer.opened.pop(name, None)

    async def close(self) -> None:
        """End all links."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in self._dialling.values():
            task.cancel()
        await asyncio.gather(*self._dialling.values(), return_exceptions=True)
        links = [peer.link for peer in self._links.values()]
        for process in list(self._links):
            self._drop(process, "the node is ending")
        await asyncio.gather(*(link.wait_closed() for link in links))

    # Links.

    def _dial(self, place: BlobPlace) -> None:
        process = place.process
        if self._closed or process == self._settings.process or process in self._dialling:
            return
        if len(self._links) + len(self._dialling) >= LINKS_LIMIT:
            return
        task = self._loop.create_task(self._reach(place), name="reach another node")
        self._dialling[process] = task
        task.add_done_callback(lambda _: self._dialling.pop(process, None))

    async def _reach(self, place: BlobPlace) -> None:
        if self._settings.process > place.process:
            await asyncio.sleep(LARGER_WAITS)
        for host, port in place.places:
            if place.process in self._links:
                return
            try:
                link = await dial(host, port, settings=self._settings, handler=self)
            except LinkError as error:
                logger.debug("no pieces of blobs are had from the node at %s: %s", host, error)
                continue
            if link.peer.process == place.process:
                return
        for name, places in self._places.items():
            fetch = self._store.fetching.get(name)
            if fetch is not None and place.process in places and place.process not in self._links:
                fetch.expect_less()

    def link_opened(self, link: Link) -> None:
        """Another node is there, whoever dialled."""
        process = link.peer.process
        known = self._links.get(process)
        if self._closed or (known is None and len(self._links) >= LINKS_LIMIT):
            link.close("enough other nodes are connected")
            return
        if known is not None:
            if better_link(known.link, link) is not link:
                link.close("there is another link between us")
                return
            self._drop(process, "there is another link between us")
        peer = self._links[process] = _PeerLink(link, _exchange(link, self), self._loop.time())
        for name, places in self._places.items():
            if process in places:
                self._ask(peer, name)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(IDLE_TIMEOUT, self._sweep)

    def link_suspected(self, link: Link) -> None:
        """It is silent: what it owes is asked of others."""
        peer = self._of(link)
        if peer is not None:
            self._unsource(peer)

    def link_recovered(self, link: Link) -> None:
        """It is heard again."""
        peer = self._of(link)
        if peer is not None:
            for name, places in self._places.items():
                if link.peer.process in places:
                    self._ask(peer, name)

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """The link ended."""
        if self._of(link) is not None:
            self._drop(link.peer.process, cause)

    def _of(self, link: Link) -> _PeerLink | None:
        peer = self._links.get(link.peer.process)
        return peer if peer is not None and peer.link is link else None

    def _drop(self, process: ProcessId, cause: str) -> None:
        peer = self._links.pop(process, None)
        if peer is not None:
            self._unsource(peer)
            peer.exchange.close(cause)
            peer.link.close(cause)

    def _unsource(self, peer: _PeerLink) -> None:
        for name in peer.asked:
            self._no_more(peer, name)
        peer.asked.clear()

    def _no_more(self, peer: _PeerLink, name: bytes) -> None:
        fetch = self._store.fetching.get(name)
        if fetch is not None:
            fetch.drop_source(peer.link.peer.process)

    def _sweep(self) -> None:
        self._sweeping = None
        fetching = self._store.fetching
        self._places = {name: places for name, places in self._places.items() if name in fetching}
        for process, peer in list(self._links.items()):
            needed = fetching.keys() & (peer.asked | peer.opened.keys())
            if not needed and self._loop.time() - peer.used_at > IDLE_TIMEOUT:
                self._drop(process, "nothing is to be passed on")
        if self._links:
            self._sweeping = self._loop.call_later(IDLE_TIMEOUT, self._sweep)

    # What peers say.

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """What one read brought."""
        peer = self._of(link)
        if peer is None:
            return
        peer.used_at = self._loop.time()
        process = link.peer.process
        for message, payload in messages:
            match message:
                case Chunk(name, offset):
                    if fetch := self._asked(peer, name):
                        fetch.arrived(offset, payload, process)
                case NeedChunk():
                    peer.exchange.message_arrived(message, payload)
                case PiecesHeld(name, ranges):
                    if fetch := self._asked(peer, name):
                        fetch.source_has(process, ranges)
                case AskPieces(name, ticket):
                    self._open(peer, name, ticket)
                case BlobGone(name):
                    self._no_more(peer, name)
                    peer.asked.discard(name)
                case BlobFetched(name):
                    peer.opened.pop(name, None)
                case _:
                    self._drop(process, f"a node does not send {type(message).__name__} to another")
                    return

    def _asked(self, peer: _PeerLink, name: bytes) -> Fetch[Any] | None:
        return self._store.fetching.get(name) if name in peer.asked else None

    def _ask(self, peer: _PeerLink, name: bytes) -> None:
        """Ask for its pieces of what we fetch, unless we have asked."""
        fetch, tickets = self._store.fetching.get(name), self._tickets.get(name)
        if fetch is None or not tickets or name in peer.asked:
            return
        peer.asked.add(name)
        fetch.add_source(peer.link.peer.process, peer.link)
        peer.link.send(AskPieces(name, next(reversed(tickets.values()))))

    def _open(self, peer: _PeerLink, name: bytes, ticket: bytes) -> None:
        tickets = self._tickets.get(name)
        if tickets is None:
            # It was told before us.
            if len(peer.waiting) < WAITING_LIMIT:
                peer.waiting[name] = ticket
            return
        if not any(hmac.compare_digest(ticket, each) for each in tickets.values()):
            peer.link.send(BlobGone(name, "the ticket is not that of a scheduler of ours"))
            return
        peer.opened[name] = self._refs[name]
        fetch = self._store.fetching.get(name)
        held = fetch.held() if fetch is not None else self._held_whole(name)
        if held:
            peer.link.send(PiecesHeld(name, held))
        if fetch is not None:
            self._ask(peer, name)

    def _held_whole(self, name: bytes) -> list[Range]:
        ref = self._refs[name]
        return [(0, -(-ref.size // PIECE))] if self._store.readable(ref) is not None else []

    def _tell(self, name: bytes, ranges: list[Range]) -> None:
        """We have more pieces."""
        for peer in self._links.values():
            if name in peer.opened:
                peer.link.send(PiecesHeld(name, ranges))

    def source(self, ref: BlobRef) -> FileSource:
        """Where a peer's request is read: the file in the store, or what is there of it.

        Raises:
            SourceError: nothing is.
        """
        fetch = self._store.fetching.get(ref.name)
        try:
            if fetch is not None and (file := fetch.opened) is not None:
                return FileSource(ref, self._store.directory, FileIdentity.of(os.fstat(file.fd)), file, True)
            path = self._store.readable(ref) or self._store.place(ref)
            return FileSource(ref, path, FileIdentity.of(path.stat()))
        except OSError as error:
            raise SourceError(f"it is not here any more: {error.strerror}") from error


class _Opened:
    """What one peer may have."""

    def __init__(self, links: PeerLinks, find: Callable[[], _PeerLink | None]) -> None:
        self._links = links
        self._find = find

    def find(self, name: bytes, *, hashed_only: bool = False) -> MemorySource | FileSource:
        """See `Offered`."""
        peer = self._find()
        ref = None if peer is None else peer.opened.get(name)
        if ref is None:
            raise SourceError("no ticket was shown for it")
        return self._links.source(ref)


def _exchange(link: Link, links: PeerLinks) -> BlobExchange:
    return BlobExchange(link, _Opened(links, lambda: links._of(link)))
