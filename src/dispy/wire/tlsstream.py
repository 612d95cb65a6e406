"""TLS between the transport of a socket and a link, driven by hand.

asyncio has a layer for this, which reads again until OpenSSL raises that nothing is left, looks after limits of its own
on both sides and hides whether the socket is gone: some forty calls for each message. Links need none of that.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final, Protocol, cast

from dispy.settings import HANDSHAKE_TIMEOUT
from dispy.wire.crowding import patience_here
from dispy.wire.slabs import untouched

SHUTDOWN_TIMEOUT: Final = 5.0
"""Seconds that a closed link has for sending what is queued, and its other side for closing too."""
_RECEIVE_SIZE: Final = 256 << 10


class Upper(Protocol):
    """Who reads and writes in the clear: an `asyncio.BufferedProtocol`, but for its transport."""

    def connection_made(self, transport: TlsStream, /) -> None:
        """TLS is up."""

    def get_buffer(self, sizehint: int, /) -> memoryview:
        """Where to put what arrives; never empty."""

    def buffer_updated(self, nbytes: int, /) -> None:
        """So many bytes were put there."""

    def eof_received(self) -> object:
        """The other side will say no more."""

    def pause_writing(self) -> None:
        """The socket takes less than is written."""

    def resume_writing(self) -> None:
        """It has taken most of it."""

    def connection_lost(self, exc: Exception | None, /) -> None:
        """The connection is gone."""


class _State(Enum):
    HANDSHAKE = auto()
    OPEN = auto()
    CLOSING = auto()
    """This side has said that nothing follows; what still comes is not wanted."""
    GONE = auto()


class TlsStream(asyncio.BufferedProtocol):
    """A protocol below, a transport above: `upper` hears of it when TLS is up, as of any other transport."""

    def __init__(self, context: ssl.SSLContext, upper: Upper, *, server_side: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        """For what is to be known of the other side's certificate."""
        self._upper = upper
        self._buffer = untouched(_RECEIVE_SIZE)
        self._state = _State.HANDSHAKE
        self._raw: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when TLS is up; fails with the ssl.SSLError or OSError that kept it from that."""
        # Whoever set it up may have given up meanwhile.
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())

    # For the link.

    @property
    def is_within_machine(self) -> bool:
        """Whether both ends of the connection have the same address: nothing of it leaves this machine."""
        if self._raw is None:
            return False
        here, there = self._raw.get_extra_info("sockname"), self._raw.get_extra_info("peername")
        return bool(here and there and here[0] == there[0])

    @property
    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._state is not _State.OPEN or self._raw is None or self._raw.is_closing()

    def writelines(self, buffers: Iterable[memoryview]) -> None:
        """Write all of it; nothing is written any more when `is_closing`."""
        if self.is_closing:
            return
        write = self.tls.write
        try:
            for buffer in buffers:
                written = write(buffer)
                while written < len(buffer):
                    written += write(buffer[written:])
        except ssl.SSLError as error:
            self._fail(error)
        except Exception as error:
            self._break(error)
        else:
            self._send_out()

    def close(self) -> None:
        """Send what waits, say that nothing follows, and wait for the other side to do the same."""
        if self._state is _State.HANDSHAKE:
            self.abort()
        if self._state is not _State.OPEN or self._raw is None:
            return
        self._state = _State.CLOSING
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            self._timer = self._loop.call_later(SHUTDOWN_TIMEOUT, self._raw.abort)
            self._send_out()
        except ssl.SSLError as error:
            self._fail(error)
        else:  # the other side was first
            self._send_out()
            self._raw.close()

    def abort(self) -> None:
        """Break the connection."""
        if self._raw is not None:
            self._raw.abort()

    # For the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._raw = cast("asyncio.Transport", transport)
        self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the loop puts what arrives."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """The loop has put bytes there."""
        self._incoming.write(self._buffer[:nbytes])
        if self._state is _State.OPEN:
            self._read()
        elif self._state is _State.HANDSHAKE:
            self._shake_hands()
        elif self._state is _State.CLOSING:
            self._drain()

    def eof_received(self) -> bool:
        """The other side has closed its socket; this one is closed as well."""
        if self._state is _State.OPEN:
            self._upper.eof_received()
            self.close()
        return False

    def pause_writing(self) -> None:
        """The socket takes less than is written."""
        if self._state is _State.OPEN:
            self._upper.pause_writing()

    def resume_writing(self) -> None:
        """It has taken most of it."""
        if self._state is _State.OPEN:
            self._upper.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        state, self._state = self._state, _State.GONE
        if self._timer is not None:
            self._timer.cancel()
        error = self._error or exc
        if state is not _State.HANDSHAKE:
            self._upper.connection_lost(error)
        elif not self.ready.done():
            self.ready.set_exception(error or ConnectionResetError())

    # Inside.

    def _shake_hands(self) -> None:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_out()
        except ssl.SSLError as error:
            self._fail(error)
        else:
            self._state = _State.OPEN
            self._upper.connection_made(self)
            if not self.ready.done():
                self.ready.set_result(None)
            self._send_out()
            if self._incoming.pending and self._state is _State.OPEN:
                self._read()

    def _read(self) -> None:
        """Give the link all that is here, as much at once as it has room for."""
        upper, incoming, read = self._upper, self._incoming, self.tls.read
        ended, full = False, True
        while full and not ended and self._state is _State.OPEN:
            room = upper.get_buffer(-1)
            size, end, full = len(room), 0, False
            try:
                while not full:
                    # into a buffer it gives the number of bytes
                    count: int = read(size - end, room[end:] if end else room)  # type: ignore[assignment]
                    if not count:
                        ended = True
                        break
                    end += count
                    full = end == size
                    if not incoming.pending:  # to read again would cost more than to ask
                        break
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                ended = True
            except ssl.SSLError as error:
                self._fail(error)
                return
            if end:
                upper.buffer_updated(end)
        if ended and self._state is _State.OPEN:
            upper.eof_received()
            self.close()

    def _drain(self) -> None:
        assert self._raw is not None
        try:
            while self.tls.read(_RECEIVE_SIZE):
                pass
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._raw.close()

    def _send_out(self) -> None:
        assert self._raw is not None
        if data := self._outgoing.read():
            try:
                self._raw.write(data)
            except Exception as error:
                self._break(error)

    def _break(self, error: Exception) -> None:
        """Whoever sends is in the middle of something, and hears of any failure when the connection is gone."""
        assert self._raw is not None
        self._error = error
        self._raw.abort()

    def _fail(self, error: ssl.SSLError) -> None:
        """OpenSSL's last words, an alert that says why, go out before the connection ends."""
        assert self._raw is not None
        self._error = error
        if self._state is _State.HANDSHAKE and not self.ready.done():
            self.ready.set_exception(error)
        self._send_out()
        if self._raw.get_write_buffer_size():
            self._raw.abort()
        else:
            self._raw.close()


async def secure(sock: socket.socket, context: ssl.SSLContext, upper: Upper, *, server_side: bool) -> None:
    """Set up TLS on a connected socket; `upper` hears that it is made when that is done.

    Raises:
        ssl.SSLError: the other side speaks no TLS 1.3, or one certificate does not please the other side.
        OSError: the connection broke, or nothing came of it in time.
    """
    stream = TlsStream(context, upper, server_side=server_side)
    loop = asyncio.get_running_loop()
    began, most = loop.time(), HANDSHAKE_TIMEOUT
    try:
        await loop.create_connection(lambda: stream, sock=sock)
        while not (await asyncio.wait([stream.ready], timeout=began + most - loop.time()))[0]:
            most = HANDSHAKE_TIMEOUT * (patience_here() if stream.is_within_machine else 1.0)
            if loop.time() >= began + most:
                raise ConnectionAbortedError(f"TLS was not set up within {most:g} s")
        stream.ready.result()
    except BaseException:
        stream.abort()
        raise
