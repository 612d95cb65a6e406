"""A link: one authenticated connection to another process, on asyncio. Drives a `Session`; decides nothing itself.

How links come to be is in `dispy.wire.dialler` and `dispy.wire.listener`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic  # the loop's clock, with a call less for each message
from typing import Final, Protocol

from msgspec import Struct

from dispy import failpoints
from dispy.errors import ConnectFailed, LocalProtocolError
from dispy.logs import logger
from dispy.model import Role
from dispy.wire.crowding import patience_here
from dispy.wire.frames import Buffer
from dispy.wire.handshake import Channel, HandshakeRejected, ProvenPeer, Refusal
from dispy.wire.interfaces import is_loopback
from dispy.wire.messages import AnyMessage
from dispy.wire.parties import LinkSettings, Peer
from dispy.wire.session import (
    Ended,
    Established,
    Received,
    Recovered,
    Refused,
    Session,
    Suspected,
)
from dispy.wire.tls import certified_name, certified_roles, verifies
from dispy.wire.tlsstream import SHUTDOWN_TIMEOUT, TlsStream

WRITE_SIZE: Final = 256 << 10
"""Bytes that are given to the loop at once."""


_OWN_REASONS: Final = frozenset({"silence", "garbage"})
"""For which a session breaks off by itself."""


class LinkHandler(Protocol):
    """Who is told what happens to links. Called in the loop's thread; must not block."""

    def link_opened(self, link: Link) -> None:
        """Both sides have proved themselves."""

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """All that one read brought, in order. Message and payload may be kept."""

    def link_suspected(self, link: Link) -> None:
        """Nothing has been heard for the suspect timeout."""

    def link_recovered(self, link: Link) -> None:
        """A suspected peer was heard again."""

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """The link ended, once for each opened link; not after its own `close()`."""


class Approach(Struct, frozen=True):
    """What is known of a connection before its handshake."""

    dialled: bool
    address: str
    port: int
    certificate_hash: bytes = b""
    """Of this process if it listens; a dialler takes what it sees."""
    accept: frozenset[Role] = frozenset(Role)
    opening: Callable[[Link], None] | None = None
    """Called right before the handler hears that the link is open."""
    suspected: Callable[[Link], None] | None = None
    """Called right after the handler has heard that the link is suspected."""

    @property
    def where(self) -> str:
        """For sentences. The port of a dialler means nothing to people."""
        if not self.dialled:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Link:
    """A connection to another process. What `send` takes in one turn of the loop is written at once, at its end."""

    peer: Peer

    def __init__(self, settings: LinkSettings, handler: LinkHandler, approach: Approach) -> None:
        self.settings = settings
        self.dialled = approach.dialled
        self.is_open = False
        self.silent_for = 0.0
        """Seconds without a byte, of the grace time, when it was lost by silence; else 0."""
        self.returns = False
        """The other side has said goodbye, and that it means to come back."""
        self.certified_name = ""
        """What the other side's verified certificate calls it; empty: it showed none."""
        self._approach = approach
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._transport: TlsStream | None = None
        self._is_within_machine = False
        self._session: Session | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flush_asked = False
        self._was_open = False
        self._unwritten: deque[memoryview] = deque()
        self._writing_paused = False
        self.opened: asyncio.Future[None] = self._loop.create_future()
        """Done after `link_opened`, or fails with ConnectFailed or HandshakeRejected."""
        # Whoever made the link may have failed for another reason and not wait for this one.
        self.opened.add_done_callback(lambda opened: opened.cancelled() or opened.exception())
        self.ended: asyncio.Future[str] = self._loop.create_future()
        """`lost`, `goodbye` (of the other side) or `closed` (by this side), for a link that was open."""
        self._gone = asyncio.Event()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed" if self._was_open else "new"
        return f"<Link {'to' if self.dialled else 'from'} {self.where} {state}>"

    @property
    def where(self) -> str:
        """The other side's address, for sentences."""
        return self._approach.where

    @property
    def patience(self) -> float:
        """How many times longer than usual the other side may be silent now, or away once the link has ended."""
        return patience_here() if self._is_within_machine else 1.0

    @property
    def backlog(self) -> int:
        """Bytes that wait here to be sent."""
        return sum(len(buffer) for buffer in self._unwritten)

    # For users of links.

    def send(self, message: AnyMessage, payload: Sequence[Buffer] = ()) -> None:
        """Queue a message; after the end of the link it goes nowhere.

        Large parts of the payload are not copied: they must not change any more.
        """
        if not self.is_open:
            return
        assert self._session is not None
        if failpoints.ARMED:
            failpoints.hit(f"send.{type(message).__name__}")
        self._session.send(message, payload)
        if not self._flush_asked:
            self._flush_asked = True
            self._loop.call_soon(self.flush)

    def send_now(self, messages: Iterable[tuple[AnyMessage, Sequence[Buffer]]]) -> None:
        """Queue messages, and write at once unless something is to be written at the end of this turn anyway."""
        if not self.is_open:
            return
        assert self._session is not None
        if failpoints.ARMED:
            messages = list(messages)
            for message, _ in messages:
                failpoints.hit(f"send.{type(message).__name__}")
        for message, payload in messages:
            self._session.send(message, payload)
        if not self._flush_asked:
            self.flush()
        if failpoints.ARMED:
            for message, _ in messages:
                failpoints.hit(f"sent.{type(message).__name__}")

    def flush(self) -> None:
        """Write now what is queued. A message that cannot be encoded breaks the link, and the log says which."""
        self._flush_asked = False
        session, transport = self._session, self._transport
        if session is None or transport is None or not (session.outgoing or session.is_greeting):
            return
        try:
            buffers = session.data_to_send(monotonic())
        except LocalProtocolError as error:
            logger.exception("the link to %s is broken off: what is to be sent there cannot be", self.where)
            self.abort(str(error))
            return
        if len(buffers) == 1 and len(buffers[0]) <= WRITE_SIZE and not (self._unwritten or self._writing_paused):
            transport.writelines(buffers)
        elif buffers:
            self._unwritten.extend(buffers)
            self._write()

    def close(self, reason: str, *, returns: bool = False) -> None:
        """Say goodbye, send what is queued, close. The handler hears nothing of it.

        `returns` says that this side means to come back and go on.
        """
        if not self.is_open:
            return
        assert self._session is not None
        self._session.say_goodbye(reason, returns=returns)
        self.flush()
        self._finish("closed")
        # The other side closes when it has read everything up to the goodbye.
        self._timer = self._loop.call_later(SHUTDOWN_TIMEOUT, self._abort_transport)

    def abort(self, cause: str) -> None:
        """Break the connection; the handler hears `link_lost` with this cause in the next turn of the loop."""
        if self.is_open:
            self._stop_session()
            self._loop.call_soon(self._lose, cause, False)
        elif not self.opened.done():
            self.opened.cancel()
        self._abort_transport(cause)

    def abandon(self) -> None:
        """Break a connection that is suspected, so that another can be tried before the grace time is over."""
        self._note_silence()
        self.abort(f"nothing was heard for {self.silent_for:.1f} s")

    def replace(self, cause: str) -> None:
        """Like `abort`, but the handler hears of it before this returns."""
        if self.is_open:
            self._stop_session()
            self._abort_transport(cause)
            self._lose(cause, False)

    async def wait_closed(self) -> None:
        """Wait until the connection is gone and everything that could be sent was."""
        if self._transport is not None:
            await self._gone.wait()

    # For the loop.

    def connection_made(self, transport: TlsStream) -> None:
        """TLS is up; begin the handshake."""
        self._transport = transport
        self._is_within_machine = transport.is_within_machine
        tls = transport.tls
        approach, settings = self._approach, self.settings
        verified = verifies(settings.credentials)
        shown = tls.getpeercert(True) if approach.dialled else None
        channel = Channel(
            where=approach.where,
            certificate_hash=hashlib.sha256(shown).digest() if shown else approach.certificate_hash,
            verified=verified,
            certified=certified_roles(tls.getpeercert(), settings.role) if verified else None,
            accept=approach.accept,
            is_loopback=is_loopback(approach.address),
        )
        self.certified_name = certified_name(tls.getpeercert()) if verified else ""
        self._session = Session(
            settings.identity,
            channel,
            dialled=approach.dialled,
            nonce=os.urandom(32),
            now=self._loop.time(),
            intervals=settings.intervals,
        )
        self.flush()
        self._arm()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the loop puts what arrives."""
        assert self._session is not None
        return self._session.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """The loop has put bytes there."""
        assert self._session is not None
        self._session.buffer_updated(nbytes, monotonic())
        self._process()

    def eof_received(self) -> bool:
        """The other side closed."""
        assert self._session is not None
        self._session.receive_eof()
        self._process()
        return False

    def pause_writing(self) -> None:
        """The loop holds enough that is not written yet."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """It has been written."""
        self._writing_paused = False
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._gone.set()
        self._unwritten.clear()
        if self._session is not None:
            if isinstance(exc, ssl.SSLError) and not self._was_open and not self.opened.done():
                self._refused_by_tls(exc)
            self._session.receive_eof(_why(exc))
            self._process()
        if self._timer is not None:
            self._timer.cancel()
        if not self.opened.done():
            self.opened.set_exception(ConnectFailed(self._sentence("the connection broke"), reason="eof"))

    # Inside.

    def _write(self) -> None:
        """Hand over as much as the loop wants: what it holds is copied by its TLS layer, what waits here is not."""
        transport, unwritten = self._transport, self._unwritten
        assert transport is not None
        while unwritten and not self._writing_paused:
            if transport.is_closing:
                unwritten.clear()
                return
            batch: list[memoryview] = []
            room = WRITE_SIZE
            while unwritten and room:
                buffer = unwritten.popleft()
                if len(buffer) > room:
                    unwritten.appendleft(buffer[room:])
                    buffer = buffer[:room]
                batch.append(buffer)
                room -= len(buffer)
            transport.writelines(batch)

    def _process(self) -> None:
        try:
            self._take_events()
        except Exception:
            logger.exception("the link to %s is broken off: what has come cannot be dealt with", self.where)
            self.abort("what was sent could not be dealt with (its log says why)")
        if not self._flush_asked:
            self.flush()

    def _take_events(self) -> None:
        session = self._session
        assert session is not None
        for event in session.events_received():
            match event:
                case Received(frames):
                    # A handler that closes the link in the middle does not want the rest.
                    if self.is_open:
                        self._handler.messages_arrived(self, frames)
                case Established(peer):
                    self._open(peer)
                case Suspected():
                    if self.is_open:
                        self._handler.link_suspected(self)
                        if self._approach.suspected is not None:
                            self._approach.suspected(self)
                case Recovered():
                    if self.is_open:
                        self._handler.link_recovered(self)
                case Refused(reason, cause):
                    self.flush()
                    self._close_transport()
                    if not self.opened.done():
                        self.opened.set_exception(HandshakeRejected(reason, cause))
                case Ended():
                    self._end(event)

    def _open(self, peer: ProvenPeer) -> None:
        approach = self._approach
        self.peer = Peer(peer.process, peer.role, peer.name, approach.address, approach.port, peer.capabilities)
        self.is_open = self._was_open = True
        # What proves this side goes out before anything that the handler may do.
        self.flush()
        self._arm()
        if approach.opening is not None:
            approach.opening(self)
        self._handler.link_opened(self)
        if not self.opened.done():
            self.opened.set_result(None)

    def _end(self, event: Ended) -> None:
        goodbye = event.reason == "goodbye"
        self.returns = event.returns
        if goodbye:
            self._close_transport()
        else:
            self._abort_transport(event.cause if event.reason in _OWN_REASONS else "")
        if self.is_open:
            if event.reason == "silence":
                self._note_silence()
            self._lose(event.cause, goodbye)
        elif not self.opened.done():
            self.opened.set_exception(ConnectFailed(self._sentence(event.cause), reason=event.reason))

    def _note_silence(self) -> None:
        assert self._session is not None
        self.silent_for = self._session.silent_for(self._loop.time())

    def _lose(self, cause: str, goodbye: bool) -> None:
        self._finish("goodbye" if goodbye else "lost")
        self._handler.link_lost(self, cause, goodbye)

    def _finish(self, how: str) -> None:
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.ended.done():
            self.ended.set_result(how)

    def _stop_session(self) -> None:
        assert self._session is not None
        self.is_open = False
        self._session.ended = True

    def _refused_by_tls(self, error: ssl.SSLError) -> None:
        """TLS 1.3 tells a dialler after its handshake that its certificate is not wanted."""
        text = str(error).lower()
        if "certificate" in text or "unknown ca" in text:
            has_one = self.settings.credentials.certfile is not None
            why = (
                f"the other side does not accept this side's certificate: {_why(error)} "
                "(--certfile, --keyfile and --cafile)"
                if has_one
                else "it wants a certificate, and this side has none: give it one of the same authority with "
                "--certfile, --keyfile and --cafile"
            )
            self.opened.set_exception(HandshakeRejected(Refusal.CERTIFICATE.value, self._sentence(why)))

    def _sentence(self, cause: str) -> str:
        return f"{self.where}: {cause}"

    def _arm(self) -> None:
        assert self._session is not None
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._session.next_deadline()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._time_is_up)

    def _time_is_up(self) -> None:
        session, now = self._session, self._loop.time()
        assert session is not None
        # as long as one silence lasts, the most that was good at any time of it: a crowd comes and goes in moments
        session.patience = max(session.patience, self.patience) if session.is_overdue(now) else 1.0
        session.handle_timeout(now)
        self._process()
        self._arm()

    def _close_transport(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _abort_transport(self, cause: str = "") -> None:
        """A cause that is this side's own is told to the other side, if it still reads."""
        if self._transport is not None:
            if cause and self._session is not None:
                self._session.say_why(cause)
                self.flush()
            self._transport.abort()


def _why(error: Exception | None) -> str:
    if error is None:
        return ""
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
