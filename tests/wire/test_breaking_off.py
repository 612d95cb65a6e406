"""Whoever breaks a link off says why: in its log and, as long as it is read, to the other side. Who is slow is waited
for where everybody is.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from dispy.errors import ConnectFailed, LinkError
from dispy.model import ProcessId, Role
from dispy.secrets import credentials_from_key
from dispy.wire import connection, tlsstream
from dispy.wire.crowding import LONGEST, patience_among
from dispy.wire.link import Link, LinkSettings, Listener, dial
from dispy.wire.messages import AckResults, AnyMessage

SECRET = credentials_from_key(b"s" * 32)


class Handler:
    """Keeps what it hears; raises what it is told to."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.lost: asyncio.Queue[str] = asyncio.Queue()
        self.suspicions = 0
        self.error: Exception | None = None

    def link_opened(self, link: Link) -> None:
        self.links.append(link)

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        if self.error is not None:
            raise self.error

    def link_suspected(self, link: Link) -> None:
        self.suspicions += 1

    def link_recovered(self, link: Link) -> None:
        pass

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        self.lost.put_nowait(cause)


def settings(letter: str, role: Role, *, grace: float = 5.0) -> LinkSettings:
    one = LinkSettings(ProcessId(letter * 32), role, letter, SECRET)
    return msgspec.structs.replace(one, heartbeat_interval=0.05, suspect_timeout=grace / 2, grace_timeout=grace)


@contextlib.asynccontextmanager
async def linked(grace: float = 5.0) -> AsyncIterator[tuple[Handler, Handler]]:
    """The handlers of a dialler, whose grace time that is, and of its listener."""
    here, there = Handler(), Handler()
    listener = await Listener.start(
        ["127.0.0.1"],
        0,
        settings=settings("n", Role.NODE, grace=60),
        handler=there,
        accept=frozenset(Role),
        on_refused=lambda address, sentence: None,
    )
    try:
        await dial("127.0.0.1", listener.port, settings=settings("d", Role.CLIENT, grace=grace), handler=here)
        yield here, there
    finally:
        await listener.close()
        for link in [*here.links, *there.links]:
            link.close("the test is over")
            await link.wait_closed()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(limited())


def test_the_other_side_hears_why() -> None:
    async def test() -> None:
        async with linked() as (here, there):
            here.links[0].abort("it was given up")
            assert await here.lost.get() == "it was given up"
            assert await there.lost.get() == "the other side broke it off: it was given up"

    run(test)


def stop_talking(link: Link) -> None:
    """Neither reads nor sends any more, as a process that is stopped."""
    assert link._transport is not None
    assert link._transport._raw is not None
    link._transport._raw.pause_reading()
    assert link._timer is not None
    link._timer.cancel()


def test_a_silent_process_reads_later_why_it_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "patience_here", lambda: 1.0)

    async def test() -> None:
        async with linked(grace=0.4) as (here, there):
            silent = there.links[0]
            stop_talking(silent)
            assert (await here.lost.get()).startswith("nothing was heard for ")
            assert silent._transport is not None
            assert silent._transport._raw is not None
            silent._transport._raw.resume_reading()
            assert (await there.lost.get()).startswith("the other side broke it off: nothing was heard for ")

    run(test)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a bug")])
def test_an_error_of_a_handler_is_logged_and_ends_the_link_in_words(
    error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop would tell of no OSError at all."""
    monkeypatch.setattr(connection, "logger", logging.getLogger("test"))

    async def test() -> None:
        async with linked() as (here, there):
            there.error = error
            here.links[0].send(AckResults(1))
            assert (
                await here.lost.get()
                == "the other side broke it off: what was sent could not be dealt with (its log says why)"
            )
            await there.lost.get()

    with caplog.at_level(logging.ERROR):
        run(test)
    (record,) = caplog.records
    assert "is broken off: what has come cannot be dealt with" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_on_a_crowded_machine_a_silent_process_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def patience() -> float:
        """A crowd that is there for a moment."""
        nonlocal asked
        asked += 1
        return 10.0 if asked == 1 else 1.0

    monkeypatch.setattr(connection, "patience_here", patience)

    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with linked(grace=0.1) as (here, there):
            began = loop.time()
            stop_talking(there.links[0])
            assert (await here.lost.get()).startswith("nothing was heard for ")
            assert loop.time() - began >= 0.9  # ten times what it has without a crowd
            assert asked > 1
            assert there.links[0]._transport is not None
            there.links[0]._transport.abort()

    run(test)


def test_the_set_up_of_tls_takes_longer_on_a_crowded_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tlsstream, "HANDSHAKE_TIMEOUT", 0.05)
    patience = iter([3.0, 20.0, 1.0])
    asked: list[float] = []

    def next_patience() -> float:
        asked.append(next(patience))
        return asked[-1]

    monkeypatch.setattr(tlsstream, "patience_here", next_patience)

    async def test() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as mute,
            pytest.raises(LinkError, match=r"TLS was not set up within 0\.05 s"),
        ):
            await dial("127.0.0.1", mute.getsockname()[1], settings=settings("d", Role.CLIENT), handler=Handler())

    run(test)
    assert asked == [3.0, 20.0, 1.0]


def test_what_nobody_waits_for_any_more_is_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    """A dialler that is stopped while TLS is set up, and a link that fails when its set-up has failed already."""

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            port = mute.getsockname()[1]
            attempt = asyncio.create_task(
                dial("127.0.0.1", port, settings=settings("d", Role.CLIENT), handler=Handler())
            )
            accepted, _ = await asyncio.to_thread(mute.accept)
            attempt.cancel()
            accepted.close()
            await asyncio.wait([attempt])
        approach = connection.Approach(dialled=True, address="127.0.0.1", port=1)
        link = Link(settings("d", Role.CLIENT), Handler(), approach)
        link.opened.set_exception(ConnectFailed("nobody waits for this"))
        stream = tlsstream.TlsStream(ssl.create_default_context(), link, server_side=False)
        stream.ready.set_exception(ConnectionResetError())

    with caplog.at_level(logging.ERROR, "asyncio"):
        run(test)
        gc.collect()
    assert not caplog.records


@pytest.mark.parametrize(
    ("waiting", "cpus", "patience"),
    [(0, 2, 1), (8, 2, 1), (16, 2, 2), (80, 2, 10), (480, 2, LONGEST), (100, 64, 1), (0.5, 1, 1)],
)
def test_patience_grows_with_what_each_cpu_has_to_do(waiting: float, cpus: int, patience: float) -> None:
    assert patience_among(waiting, cpus) == patience
