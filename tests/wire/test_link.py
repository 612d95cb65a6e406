"""Links on real loopback sockets: what both sides hear when it works, when it is refused, and when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dispy.certificates import CertificateFiles, make_ca, make_certificate
from dispy.errors import AuthenticationRejected, ConnectFailed, LinkError, NodeError, PortInUse
from dispy.model import ComputationId, JobSpec, ProcessId, Role
from dispy.secrets import Credentials, credentials_from_key, find_credentials
from dispy.wire.link import Dialler, Link, LinkSettings, Listener, better_link, dial
from dispy.wire.messages import AckResults, AnyMessage, Chunk, RunJobs
from dispy.wire.strangers import Limits

SECRET = credentials_from_key(b"s" * 32)
OTHER_SECRET = credentials_from_key(b"o" * 32)
EVERYONE = frozenset(Role)


class Recorder:
    """A handler that keeps what it hears, and lets tests wait for it."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.said: list[str] = []
        self.messages: list[tuple[AnyMessage, bytes]] = []
        self.echo = False
        self._news = asyncio.Condition()

    def link_opened(self, link: Link) -> None:
        self.links.append(link)
        self._say(f"opened {link.peer.name}")

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        self.messages += [(message, bytes(payload)) for message, payload in messages]
        if self.echo:
            for message, payload in messages:
                link.send(message, [payload])
        self._say("")

    def link_suspected(self, link: Link) -> None:
        self._say("suspected")

    def link_recovered(self, link: Link) -> None:
        self._say("recovered")

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        self._say(f"{'goodbye' if goodbye else 'lost'}: {cause}")

    def failed(self, dialler: Dialler, error: LinkError) -> None:
        self._say(f"failed: {error}")

    def closed(self, dialler: Dialler) -> None:
        self._say("closed")

    def refused(self, address: str, sentence: str) -> None:
        self._say(f"refused {address}: {sentence}")

    def _say(self, what: str) -> None:
        if what:
            self.said.append(what)
        self._wake = asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def until(self, predicate: Callable[[], bool]) -> None:
        async with self._news:
            await self._news.wait_for(predicate)

    async def heard(self, text: str, times: int = 1) -> str:
        def found() -> list[str]:
            return [said for said in self.said if text in said]

        try:
            await self.until(lambda: len(found()) >= times)
        except asyncio.CancelledError:
            raise AssertionError(f"{text!r} was not heard {times} times: {self.said}") from None
        return found()[-1]


def settings(
    letter: str = "d",
    role: Role = Role.SCHEDULER,
    name: str = "lap",
    credentials: Credentials = SECRET,
) -> LinkSettings:
    return LinkSettings(ProcessId(letter * 32), role, name, credentials)


def node(credentials: Credentials = SECRET) -> LinkSettings:
    return settings("n", Role.NODE, "n1", credentials)


def impatient(one: LinkSettings, grace: float = 1.2) -> LinkSettings:
    return msgspec.structs.replace(one, heartbeat_interval=0.1, suspect_timeout=0.4, grace_timeout=grace)


def run(test: Callable[[], Awaitable[None]], timeout: float = 30.0) -> None:
    async def limited() -> None:
        async with asyncio.timeout(timeout):
            await test()

    asyncio.run(limited())


@contextlib.asynccontextmanager
async def listening(
    handler: Recorder,
    link_settings: LinkSettings | None = None,
    accept: frozenset[Role] = EVERYONE,
    limits: Limits | None = None,
) -> AsyncIterator[Listener]:
    listener = await Listener.start(
        ["127.0.0.1"],
        0,
        settings=link_settings or node(),
        handler=handler,
        accept=accept,
        on_refused=handler.refused,
        limits=limits,
    )
    try:
        yield listener
    finally:
        await listener.close()
        await gone(*handler.links)


async def gone(*links: Link) -> None:
    for link in links:
        link.close("test is over")
    for link in links:
        await link.wait_closed()


# ---- messages ----


def test_messages_go_both_ways_in_order_and_whole() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        there.echo = True
        async with listening(there) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            assert here.said == ["opened n1"]
            assert (link.peer.role, link.peer.address, link.peer.port) == (
                Role.NODE,
                "127.0.0.1",
                listener.port,
            )
            sent: list[tuple[AnyMessage, bytes]] = []
            for number in range(300):
                size = (0, 100, 40_000, 1 << 20)[number % 4] if number < 20 else number
                message = Chunk(b"name", number)
                link.send(message, [random.Random(number).randbytes(size)])
                sent.append((message, random.Random(number).randbytes(size)))
            jobs = [JobSpec(job, 1, 2) for job in range(2000)]
            link.send(RunJobs(ComputationId("c"), jobs), [b"ab"] * 2000)
            sent.append((RunJobs(ComputationId("c"), jobs), b"ab" * 2000))
            await here.until(lambda: len(here.messages) == len(sent))
            assert here.messages == there.messages == sent
            await gone(link)
        assert await there.heard("goodbye") == "goodbye: test is over"
        assert here.said == ["opened n1"]

    run(test)


def test_everything_sent_before_a_close_arrives_while_the_other_side_talks() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            await there.heard("opened")
            other = there.links[0]
            for number in range(200):
                link.send(Chunk(b"n", number), [b"x" * 100_000])
                other.send(Chunk(b"m", number), [b"y" * 100_000])
            link.close("enough")
            link.send(AckResults(1))
            await there.heard("goodbye: enough")
            assert len(there.messages) == 200
            await link.wait_closed()
            assert here.said == ["opened n1"]

    run(test)


def test_both_sides_may_close_at_once() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            await there.heard("opened")
            async with asyncio.timeout(2):
                await gone(link, there.links[0])
        assert (here.said, there.said) == (["opened n1"], ["opened lap"])

    run(test)


# ---- refusals ----


def test_another_secret_is_told_on_both_sides() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            with pytest.raises(AuthenticationRejected) as caught:
                await dial(
                    "127.0.0.1",
                    listener.port,
                    settings=settings(credentials=OTHER_SECRET),
                    handler=here,
                )
            assert str(caught.value) == (
                f"node n1 (127.0.0.1:{listener.port}) has another secret; "
                "start both, here on this machine, with the same one"
            )
            assert "a program on lap (127.0.0.1) has another secret" in await there.heard("refused 127.0.0.1")
            assert listener.refused == {"secret": 1}
            assert here.said == []

    run(test)


def test_only_accepted_roles_and_the_own_group_get_in() -> None:
    async def test() -> None:
        there = Recorder()
        async with listening(there, accept=frozenset({Role.NODE})) as listener:
            with pytest.raises(AuthenticationRejected, match="does not talk to a scheduler"):
                await dial("127.0.0.1", listener.port, settings=settings(), handler=Recorder())
            lab = msgspec.structs.replace(settings(role=Role.NODE), group="lab")
            with pytest.raises(AuthenticationRejected, match="another group"):
                await dial("127.0.0.1", listener.port, settings=lab, handler=Recorder())
            await there.heard("refused", 2)
            assert listener.refused == {"role": 1, "group": 1}

    run(test)


def test_a_node_at_the_port_for_programs_is_told_which_port_is_that_for_nodes() -> None:
    async def test() -> None:
        there = Recorder()
        async with listening(
            there, settings(role=Role.SCHEDULER), accept=frozenset({Role.CLIENT, Role.ADMIN})
        ) as listener:
            with pytest.raises(AuthenticationRejected, match="nodes join it two ports lower"):
                await dial("127.0.0.1", listener.port, settings=settings(role=Role.NODE), handler=Recorder())
            assert "this is the port for programs: nodes join this scheduler two ports lower" in await there.heard(
                "refused 127.0.0.1"
            )

    run(test)


def test_garbage_is_counted_and_a_good_link_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        there.echo = True
        async with listening(there) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            for number in range(200):
                await _garbage(listener.port, number)
                link.send(AckResults(number))
                await here.until(lambda n=number: len(here.messages) == n + 1)  # type: ignore[misc]
            await there.until(lambda: listener.refused.total() == 200)
            assert set(listener.refused) <= {"tls", "garbage", "eof"}
            assert listener.refused["garbage"] >= 40
            assert await there.heard("no TLS 1.3")
            assert await there.heard("something else than a handshake")
            assert link.is_open
            await gone(link)

    with caplog.at_level(logging.INFO, "asyncio"):
        run(test)
    assert caplog.records == []


async def _garbage(port: int, seed: int) -> None:
    """A connection that sends random bytes, or nothing, or random bytes within TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    data = random.Random(seed).randbytes(seed * 7 % 2000)
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context if seed % 4 == 0 else None)
        if seed % 4 == 0:
            data = b"\xff" * 8 + data
        writer.write(data)
        with contextlib.suppress(OSError):
            await writer.drain()
            if seed % 4 == 0:
                await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def test_strangers_get_few_connections() -> None:
    async def test() -> None:
        there = Recorder()
        async with listening(there, limits=Limits(own=2, own_waiting=3)) as listener:
            async with contextlib.AsyncExitStack() as open_ones:
                for _ in range(6):
                    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                    open_ones.push_async_callback(_shut, writer)
                await there.heard("too many connections that have not proved themselves")
                assert listener.refused == {"busy": 1}
                with pytest.raises(ConnectFailed, match="takes no more connections from this address for some sec"):
                    await dial("127.0.0.1", listener.port, settings=settings(), handler=Recorder())
                assert listener.refused == {"busy": 2}
            await there.until(lambda: listener.refused.total() == 7)
            link = await dial("127.0.0.1", listener.port, settings=settings(), handler=Recorder())
            await gone(link)

    run(test)


def test_many_that_dial_at_once_come_in_one_after_another() -> None:
    async def test() -> None:
        there = Recorder()
        async with listening(there, limits=Limits(own=2)) as listener:
            numbers = [f"{number:032x}" for number in range(40)]
            many = [LinkSettings(ProcessId(number), Role.SCHEDULER, "lap", SECRET) for number in numbers]
            links = await asyncio.gather(
                *(dial("127.0.0.1", listener.port, settings=each, handler=Recorder()) for each in many)
            )
            assert not listener.refused
            assert sorted(link.peer.process for link in there.links) == numbers
            await gone(*links)

    run(test)


def test_who_does_not_wait_for_a_place_is_not_served() -> None:
    async def test() -> None:
        there = Recorder()
        async with listening(there, limits=Limits(own=1)) as listener:
            async with contextlib.AsyncExitStack() as open_ones:
                _, silent = await asyncio.open_connection("127.0.0.1", listener.port)
                open_ones.push_async_callback(_shut, silent)
                dials = [
                    asyncio.create_task(dial("127.0.0.1", listener.port, settings=settings(), handler=Recorder()))
                    for _ in range(5)
                ]
                _, last = await asyncio.open_connection("127.0.0.1", listener.port)
                await _shut(last)
                for dialling in dials:
                    dialling.cancel()
                await asyncio.wait(dials)
            await there.until(lambda: listener.refused.total() >= 2)
            link = await dial("127.0.0.1", listener.port, settings=settings(), handler=Recorder())
            assert not there.links[:-1]
            assert set(listener.refused) == {"eof"}
            await gone(link)

    run(test)


async def _shut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def test_closing_the_listener_drops_strangers_and_keeps_links() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            there.echo = True
            await listener.close()
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            await _shut(writer)
            with pytest.raises(ConnectFailed) as caught:
                await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            assert caught.value.refused
            link.send(AckResults(1))
            await here.until(lambda: here.messages == [(AckResults(1), b"")])
            await gone(link)

    run(test)


def test_an_empty_secret_stays_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = msgspec.structs.replace(find_credentials(secret=""), insecure=False)

    async def test() -> None:
        there = Recorder()
        async with listening(there, node(empty)) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(credentials=empty), handler=Recorder())
            await gone(link)
            monkeypatch.setattr("dispy.wire.dialler.is_loopback", lambda address: False)
            with pytest.raises(AuthenticationRejected, match="empty secret is good for links on one machine"):
                await dial("127.0.0.1", listener.port, settings=settings(credentials=empty), handler=Recorder())
            monkeypatch.setattr("dispy.wire.listener.is_loopback", lambda address: False)
            insecure = settings(credentials=msgspec.structs.replace(empty, insecure=True))
            with pytest.raises(ConnectFailed):
                await dial("127.0.0.1", listener.port, settings=insecure, handler=Recorder())
            assert listener.refused == {"empty": 1}

    run(test)


# ---- dialling into nothing ----


def test_nobody_there(free_base_port: int) -> None:
    async def test() -> None:
        with pytest.raises(ConnectFailed, match=r"nothing listens at 127\.0\.0\.1:") as caught:
            await dial("127.0.0.1", free_base_port, settings=settings(), handler=Recorder())
        assert caught.value.refused
        with pytest.raises(ConnectFailed, match=r"'no\.such\.machine\.invalid' is no address") as caught:
            await dial("no.such.machine.invalid", 1, settings=settings(), handler=Recorder())
        assert not caught.value.refused
        with pytest.raises(ConnectFailed, match="is no address"):
            await dial("bad..name", 1, settings=settings(), handler=Recorder())

    run(test)


def test_something_else_there() -> None:
    async def test() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example.org ESMTP\r\n")
            await _shut(writer)

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectFailed, match="no process of dispy") as caught:
            await dial("127.0.0.1", port, settings=settings(), handler=Recorder())
        assert not caught.value.refused
        server.close()
        await server.wait_closed()

    run(test)


def test_a_port_in_use_is_named_with_its_owner() -> None:
    async def test() -> None:
        there = Recorder()
        async with listening(there) as listener:
            with pytest.raises(
                PortInUse, match=f"TCP port {listener.port} .* in use by process {os.getpid()} "
            ) as caught:
                await Listener.start(
                    ["127.0.0.1"],
                    listener.port,
                    settings=node(),
                    handler=there,
                    accept=EVERYONE,
                    on_refused=there.refused,
                )
            assert caught.value.port == listener.port
            with pytest.raises(PortInUse, match=f"TCP port {listener.port} of 127.0.0.1 is in use; choose another"):
                await Listener.start(
                    ["127.0.0.1"],
                    listener.port,
                    settings=node(),
                    handler=there,
                    accept=EVERYONE,
                    on_refused=there.refused,
                    names_owner=False,
                )

    run(test)


def test_only_addresses_of_this_machine_can_be_listened_at() -> None:
    async def test() -> None:
        there = Recorder()
        for host in ("192.0.2.1", "no.such.machine.invalid"):
            with pytest.raises(NodeError, match=host):
                await Listener.start(
                    [host], 0, settings=node(), handler=there, accept=EVERYONE, on_refused=there.refused
                )

    run(test)


def test_one_port_at_several_addresses() -> None:
    async def test() -> None:
        there = Recorder()
        listener = await Listener.start(
            ["127.0.0.1", "127.0.0.2"],
            0,
            settings=node(),
            handler=there,
            accept=EVERYONE,
            on_refused=there.refused,
        )
        assert listener.hosts == ("127.0.0.1", "127.0.0.2")
        link = await dial("127.0.0.2", listener.port, settings=settings(), handler=Recorder())
        assert link.peer.address == "127.0.0.2"
        await gone(link)
        await listener.close()
        await gone(*there.links)

    run(test)


# ---- silence and loss ----


class Wire:
    """A wire between a dialler and a listener that can be interrupted: then nothing passes, and nobody is told.

    A connection keeps the event `passing` that was there when it was made.
    """

    def __init__(self, port: int) -> None:
        self.to = port
        self.port = 0
        self.passing = asyncio.Event()
        self.passing.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.to)
        for source, target in ((reader, there_writer), (there_reader, writer)):
            self._tasks.add(asyncio.create_task(self._carry(source, target, self.passing)))

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, passing: asyncio.Event) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    await passing.wait()
                    target.write(data)
                    await target.drain()
        finally:
            target.close()
            with contextlib.suppress(OSError):
                await target.wait_closed()


def test_silence_is_suspected_then_lost() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there, impatient(node())) as listener, Wire(listener.port) as wire:
            link = await dial("127.0.0.1", wire.port, settings=impatient(settings()), handler=here)
            wire.passing.clear()
            await here.heard("lost: nothing was heard for")
            assert here.said[:2] == ["opened n1", "suspected"]
            assert len(here.said) == 3
            assert not link.is_open
            link.send(AckResults(1))
            link.close("late")
            await there.heard("lost")
            assert there.said[1] == "suspected"

    run(test)


def test_a_suspected_peer_recovers() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there, impatient(node(), 30)) as listener, Wire(listener.port) as wire:
            link = await dial("127.0.0.1", wire.port, settings=impatient(settings(), 30), handler=here)
            wire.passing.clear()
            await here.heard("suspected")
            wire.passing.set()
            await here.heard("recovered")
            assert link.is_open
            await gone(link)

    run(test)


def test_heartbeats_keep_an_idle_link() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there, impatient(node())) as listener:
            link = await dial("127.0.0.1", listener.port, settings=impatient(settings()), handler=here)
            # Longer than silence may last.
            await asyncio.sleep(1.5)
            assert link.is_open
            assert "lost" not in " ".join(here.said)
            assert here.messages == []
            await gone(link)

    run(test)


def test_abort_is_told_here_and_seen_there() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            await there.heard("opened")
            link.abort("given up")
            assert here.said == ["opened n1"]
            await here.heard("lost: given up")
            await there.heard("lost: ")
            assert await link.ended == "lost"
            await link.wait_closed()

    run(test)


def test_a_message_that_cannot_be_encoded_breaks_the_link_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            link.send_now([(RunJobs(ComputationId("\udcfe"), []), ())])
            await here.heard("lost: RunJobs cannot be encoded")
            await link.wait_closed()

    run(test)
    said = capsys.readouterr().err
    assert "what is to be sent there cannot be" in said
    assert "Fatal error" not in said


def test_nothing_is_written_to_a_broken_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            await there.heard("opened")
            transport = there.links[0]._transport
            assert transport is not None
            assert transport._raw is not None
            transport._raw.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            for number in range(50):  # in the same turn of the loop, which cannot notice meanwhile
                link.send_now([(Chunk(b"name", number), [b"x" * 1000])])
            await here.heard("lost: ")
            await link.wait_closed()

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(test)
    assert not [record.message for record in caplog.records if record.name == "asyncio"]


def test_a_second_link_of_the_same_process_replaces_the_first() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            first = await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            await there.heard("opened")
            second = await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            peer = settings("p", Role.PEER)
            third = await dial("127.0.0.1", listener.port, settings=peer, handler=Recorder())
            await there.heard("opened", 3)
            assert there.said == ["opened lap", "lost: the other side dialled again", "opened lap", "opened lap"]
            await first.ended
            assert (first.is_open, second.is_open, third.is_open) == (False, True, True)
            await gone(second, third)

    run(test)


def test_both_sides_choose_the_same_of_two_links() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        small, large = settings("a"), node()
        async with listening(here, small) as left, listening(there, large) as right:
            by_small = await dial("127.0.0.1", right.port, settings=small, handler=here)
            by_large = await dial("127.0.0.1", left.port, settings=large, handler=there)
            await there.heard("opened", 2)
            await here.heard("opened", 2)
            seen_by_large = next(link for link in there.links if not link.dialled)
            seen_by_small = next(link for link in here.links if not link.dialled)
            assert better_link(by_small, seen_by_small) is better_link(seen_by_small, by_small) is by_small
            assert better_link(by_large, seen_by_large) is seen_by_large
            assert better_link(by_small, by_small) is by_small
            await gone(by_small, by_large)

    run(test)


# ---- the dialler ----


def dialler_to(port: int, handler: Recorder, link_settings: LinkSettings | None = None) -> Dialler:
    return Dialler(
        "127.0.0.1",
        port,
        settings=link_settings or settings(),
        handler=handler,
        on_failure=handler.failed,
        on_closed=handler.closed,
    )


def test_the_dialler_dials_again_after_a_loss() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            dialler = dialler_to(listener.port, here)
            dialler.start()
            await here.heard("opened n1")
            assert dialler.link is here.links[0]
            await there.heard("opened lap")
            there.links[0].abort("test")
            await here.heard("opened n1", 2)
            assert [said.split(":")[0] for said in here.said] == ["opened n1", "lost", "opened n1"]
            assert dialler.link is here.links[1]
            dialler.stop("done")
            assert not here.links[1].is_open
            await there.heard("goodbye: done")
            await gone(*here.links)

    run(test)


def test_the_dialler_gives_a_silent_connection_up_for_a_new_one() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        patient = impatient(node(), 30)
        async with listening(there, patient) as listener, Wire(listener.port) as wire:
            dialler = dialler_to(wire.port, here, impatient(settings(), 30))
            dialler.start()
            await here.heard("opened n1")
            wire.passing.clear()  # for ever: this connection does not come back
            wire.passing = asyncio.Event()
            wire.passing.set()
            await here.heard("opened n1", 2)
            assert [said.split(":")[0] for said in here.said] == [
                "opened n1",
                "suspected",
                "lost",
                "opened n1",
            ]
            assert 0.4 <= here.links[0].silent_for < 30
            dialler.stop("done")
            await gone(*here.links)

    run(test)


def test_the_dialler_waits_for_a_listener(free_base_port: int) -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        dialler = dialler_to(free_base_port, here)
        dialler.start()
        await here.heard("failed: nothing listens", 2)
        listener = await Listener.start(
            ["127.0.0.1"],
            free_base_port,
            settings=node(),
            handler=there,
            accept=EVERYONE,
            on_refused=there.refused,
        )
        await here.heard("opened n1")
        dialler.stop()
        await listener.close()
        await gone(*here.links, *there.links)

    run(test)


def test_a_goodbye_ends_the_dialler() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            dialler = dialler_to(listener.port, here)
            dialler.start()
            await there.heard("opened")
            there.links[0].close("shutting down")
            await here.heard("closed")
            assert here.said == ["opened n1", "goodbye: shutting down", "closed"]
            await asyncio.sleep(0.3)
            assert len(there.links) == 1
            await gone(*here.links)

    run(test)


def test_another_secret_ends_the_dialler() -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there) as listener:
            dialler = dialler_to(listener.port, here, settings(credentials=OTHER_SECRET))
            dialler.start()
            assert "has another secret" in await here.heard("failed")
            await asyncio.sleep(0.3)
            assert listener.refused == {"secret": 1}

    run(test)


def test_a_dialler_is_stopped_in_the_middle_of_dialling() -> None:
    async def test() -> None:
        here = Recorder()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            dialler = dialler_to(silent.getsockname()[1], here)
            dialler.start()
            await asyncio.sleep(0.1)
            dialler.stop()
            await asyncio.sleep(0.05)
        assert here.said == []

    run(test)


# ---- certificates ----


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("authority")
    make_ca(directory)
    return directory


def certified(authority: Path, role: Role, name: str) -> Credentials:
    stem = authority / f"{role}-{name}.pem"
    files = (
        CertificateFiles(stem, stem.with_suffix(".key")) if stem.exists() else make_certificate(authority, role, name)
    )
    return find_credentials(certfile=str(files.certfile), keyfile=str(files.keyfile), cafile=str(authority / "ca.pem"))


def test_certificates_of_one_authority_authenticate(authority: Path) -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        client, daemon = certified(authority, Role.CLIENT, "lap"), certified(authority, Role.NODE, "n1")
        assert client.key is None
        async with listening(there, node(daemon)) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(credentials=client), handler=here)
            await there.heard("opened lap")
            await gone(link)
            with pytest.raises(AuthenticationRejected, match="certificate is not for one"):
                await dial("127.0.0.1", listener.port, settings=settings(credentials=daemon), handler=here)
            assert "certificate that is not for a scheduler" in await there.heard("refused")

    run(test)


@pytest.mark.parametrize("kind", [Role.CLIENT, Role.ADMIN, Role.SCHEDULER])
def test_no_certificate_of_a_user_makes_the_scheduler_of_others(authority: Path, kind: Role) -> None:
    async def test() -> None:
        here, there = Recorder(), Recorder()
        alice = settings("a", Role.CLIENT, credentials=certified(authority, Role.CLIENT, "alice"))
        shared = settings("b", credentials=certified(authority, kind, "bob"))
        async with listening(there, shared, accept=frozenset({Role.CLIENT})) as listener:
            if kind is Role.SCHEDULER:
                await gone(await dial("127.0.0.1", listener.port, settings=alice, handler=here))
                return
            with pytest.raises(AuthenticationRejected, match="not for a scheduler; it needs one that `dispy cert"):
                await dial("127.0.0.1", listener.port, settings=alice, handler=here)
            assert "this side's certificate is not for one" in await there.heard("refused")

    run(test)


def test_certificates_of_another_authority_are_refused(authority: Path, tmp_path: Path) -> None:
    make_ca(tmp_path, "another authority")

    async def test() -> None:
        here, there = Recorder(), Recorder()
        ours, foreign = certified(authority, Role.NODE, "n1"), certified(tmp_path, Role.CLIENT, "lap")
        async with listening(there, node(ours)) as listener:
            with pytest.raises(AuthenticationRejected, match="certificate that this side does not accept"):
                await dial("127.0.0.1", listener.port, settings=settings(credentials=foreign), handler=here)
            await there.heard("refused")
            # A dialler that accepts any certificate learns after its side of TLS is done that its own is not wanted.
            with pytest.raises(LinkError, match="certificate"):
                await dial("127.0.0.1", listener.port, settings=settings(), handler=here)
            assert "certificate" in await there.heard("refused", 2)
            assert listener.refused["certificate"] >= 1

    run(test)


def self_signed(directory: Path) -> Credentials:
    """One file for all, as people make it with `openssl req -x509`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shared")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path = directory / "shared.pem"
    path.touch(0o600)
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    return find_credentials(certfile=str(path))


def test_one_shared_certificate_is_its_own_authority(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shared, other = self_signed(tmp_path), self_signed(tmp_path / "other")

    async def test() -> None:
        here, there = Recorder(), Recorder()
        async with listening(there, node(shared)) as listener:
            link = await dial("127.0.0.1", listener.port, settings=settings(credentials=shared), handler=here)
            await gone(link)
            with pytest.raises(AuthenticationRejected, match="certificate"):
                await dial("127.0.0.1", listener.port, settings=settings(credentials=other), handler=here)

    run(test)


def test_a_bad_certificate_file_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    credentials = msgspec.structs.replace(SECRET, certfile=str(bad))

    async def test() -> None:
        with pytest.raises(AuthenticationRejected, match=r"bad\.pem cannot be used as certificate"):
            await dial("127.0.0.1", 1, settings=settings(credentials=credentials), handler=Recorder())

    run(test)


def test_a_listener_that_hangs_up_at_once_is_told_in_a_whole_sentence() -> None:
    async def work() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(
                ConnectFailed, match=r"broke the connection while TLS was set up: it ends, or takes no more"
            ):
                await dial("127.0.0.1", port, settings=settings(), handler=Recorder())

    asyncio.run(work())
