"""TLS by hand over a pair of sockets: order, small rooms, goodbyes, and what a message costs."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dispy.secrets import Credentials
from dispy.wire import tlsstream
from dispy.wire.tls import ListenerTls, dialler_context
from dispy.wire.tlsstream import TlsStream, secure

SECRET = Credentials(key=b"k" * 32, key_id=b"12345678", source="the test")


class Reader:
    """Keeps what it reads, through rooms of a given size."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = memoryview(bytearray(room))
        self.read = bytearray()
        self.portions: list[int] = []
        self.said: list[object] = []
        self.stream: TlsStream | None = None
        self.news = asyncio.Event()

    def connection_made(self, transport: TlsStream, /) -> None:
        self.stream = transport

    def get_buffer(self, sizehint: int, /) -> memoryview:
        return self.room

    def buffer_updated(self, nbytes: int, /) -> None:
        self.read += self.room[:nbytes]
        self.portions.append(nbytes)
        self.news.set()

    def eof_received(self) -> object:
        self.said.append("eof")
        return False

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")

    def connection_lost(self, exc: Exception | None, /) -> None:
        self.said.append(exc)
        self.news.set()

    def write(self, *parts: bytes) -> None:
        assert self.stream is not None
        self.stream.writelines(map(memoryview, parts))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def pair(left: Reader, right: Reader) -> AsyncIterator[None]:
    sockets = socket.socketpair()
    for sock in sockets:
        sock.setblocking(False)
    tls = ListenerTls(SECRET)
    assert tls.certificate_hash()
    await asyncio.gather(
        secure(sockets[0], dialler_context(SECRET), left, server_side=False),
        secure(sockets[1], tls.context, right, server_side=True),
    )
    yield
    for side in (left, right):
        assert side.stream is not None
        side.stream.abort()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


@pytest.mark.parametrize("room", [1 << 20, 20_000, 1000, 1])
def test_everything_arrives_in_order_whatever_room_there_is(room: int) -> None:
    """Ten times what one read of the socket brings (but for rooms of a byte), in records that no room fits."""

    async def test() -> None:
        data = os.urandom(10 * (256 << 10) if room > 1 else 5000)
        left, right = Reader(), Reader(room)
        async with pair(left, right):
            left.write(data[:1], data[1:7], data[7:])
            right.write(b"back")
            await right.until(lambda: len(right.read) >= len(data))
            assert right.read == data
            assert max(right.portions) <= room
            await left.until(lambda: left.read == b"back")

    run(test)


def test_a_small_message_costs_one_write_and_one_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        left, right = Reader(), Reader()
        async with pair(left, right):
            assert left.stream is not None
            assert left.stream._raw is not None
            writes: list[int] = []
            write = left.stream._raw.write
            monkeypatch.setattr(left.stream._raw, "write", lambda data: (writes.append(len(data)), write(data)))
            for number in range(1, 11):
                left.write(b"a", b"b", b"c")
                await right.until(lambda number=number: len(right.read) == 3 * number)
            assert len(writes) == 10
            assert right.portions == [3] * 10

    run(test)


def test_both_sides_hear_of_an_end_in_order_and_lose_nothing() -> None:
    async def test() -> None:
        left, right = Reader(), Reader()
        async with pair(left, right):
            assert left.stream is not None
            assert right.stream is not None
            right.write(b"on its way, and not wanted any more")
            left.write(b"x" * 1_000_000)
            left.stream.close()
            assert left.stream.is_closing
            left.write(b"too late")
            await right.until(lambda: None in right.said)
            await left.until(lambda: None in left.said)
            assert len(right.read) == 1_000_000
            assert [word for word in right.said if word not in ("pause", "resume")] == ["eof", None]
            assert [word for word in left.said if word not in ("pause", "resume")] == [None]

    run(test)


def test_what_is_no_tls_any_more_is_told() -> None:
    async def test() -> None:
        left, right = Reader(), Reader()
        async with pair(left, right):
            assert left.stream is not None
            assert left.stream._raw is not None
            left.stream._raw.write(b"garbage in the middle of a connection")
            await right.until(lambda: right.said)
            assert isinstance(right.said[0], ssl.SSLError)

    run(test)


def test_whoever_is_slow_with_tls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tlsstream, "HANDSHAKE_TIMEOUT", 0.05)

    async def test() -> None:
        mine, silent = socket.socketpair()
        mine.setblocking(False)
        with silent, pytest.raises(ConnectionAbortedError, match=r"not set up within 0\.05 s"):
            await secure(mine, dialler_context(SECRET), Reader(), server_side=False)

    run(test)


def test_a_write_that_raises_ends_the_connection_and_not_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        left, right = Reader(), Reader()
        async with pair(left, right):
            assert left.stream is not None
            assert left.stream._raw is not None
            error = RuntimeError("Cannot call write() after write_eof()")

            def write(data: bytes) -> None:
                raise error

            monkeypatch.setattr(left.stream._raw, "write", write)
            left.write(b"first")
            left.write(b"second")
            assert left.said == [], "not before the sender has done what it was about"
            await left.until(lambda: left.said == [error])
            await right.until(lambda: right.said)
            assert left.stream.is_closing

    run(test)


def test_what_cannot_be_encrypted_ends_the_connection_and_not_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        left, right = Reader(), Reader()
        async with pair(left, right):
            assert left.stream is not None
            left.stream.writelines([None])  # type: ignore[list-item]
            await left.until(lambda: left.said)
            assert isinstance(left.said[0], TypeError)

    run(test)
