"""Nodes that pass a blob on to each other: over real links, with a scheduler that is played by the test."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dispy.model import BlobPlace, BlobRef, ProcessId, Role
from dispy.secrets import credentials_from_key
from dispy.wire.blobs import BlobExchange, BlobSources, BlobStore
from dispy.wire.link import Link, LinkSettings, Listener, dial
from dispy.wire.messages import AnyMessage, AskPieces, BlobGone, BlobShared, Chunk, NeedChunk, PiecesHeld
from dispy.wire.peers import PeerLinks
from dispy.wire.transfer import PIECE

DATA = os.urandom(24 * PIECE + 321)
REF = BlobRef(hashlib.sha256(DATA).digest(), len(DATA))
TICKET = b"t" * 32


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


@dataclass
class Origin:
    """The scheduler's end of a node's link: gives what it is asked for, one chunk each `pause` seconds."""

    peer: object
    node: Node | None = None
    pause: float = 0.0
    given: list[int] = field(default_factory=list)
    """Offsets."""
    size: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, message: AnyMessage, payload: Sequence[bytes | memoryview] = ()) -> None:
        if isinstance(message, NeedChunk):
            asyncio.get_running_loop().create_task(self._give(message))

    async def _give(self, need: NeedChunk) -> None:
        assert self.node is not None
        await self.open.wait()
        await asyncio.sleep(self.pause)
        self.given.append(need.offset)
        self.size += need.size
        self.node.exchange.message_arrived(Chunk(need.name, need.offset), DATA[need.offset : need.offset + need.size])


@dataclass
class FakePeer:
    name: str = "scheduler"
    role: Role = Role.SCHEDULER


class Node:
    """What a node has of these things."""

    def __init__(self, number: int, directory: Path, key: bytes) -> None:
        self.process = ProcessId(f"{number:032x}")
        self.store = BlobStore(directory)
        self.origin = Origin(FakePeer())
        self.origin.node = self
        self.exchange = BlobExchange(self.origin, BlobSources())  # type: ignore[arg-type]
        self.settings = LinkSettings(self.process, Role.PEER, f"node{number}", credentials_from_key(key))
        self.peers = PeerLinks(self.settings, self.store)
        self.listener: Listener | None = None
        self.refused: list[str] = []

    async def listen(self) -> None:
        settings = LinkSettings(self.process, Role.NODE, self.settings.name, self.settings.credentials)
        self.listener = await Listener.start(
            ["127.0.0.1"],
            0,
            settings=settings,
            handler=self.peers,
            accept=frozenset({Role.PEER}),
            on_refused=lambda where, why: self.refused.append(why),
        )

    @property
    def place(self) -> BlobPlace:
        assert self.listener is not None
        return BlobPlace(self.process, (("127.0.0.1", self.listener.port),))

    def told(self, share: int, shares: int, others: Sequence[Node], ticket: bytes = TICKET) -> None:
        places = [other.place for other in others if other is not self]
        self.peers.told(ProcessId("s"), BlobShared(REF, ticket, share, shares, places))

    def fetch(self) -> asyncio.Task[Path]:
        return asyncio.get_running_loop().create_task(self.exchange.fetch_file(REF, self.store))


@asynccontextmanager
async def nodes(folder: Path, count: int, keys: Sequence[bytes] = ()) -> AsyncIterator[list[Node]]:
    made = [Node(each, folder / f"n{each}", keys[each] if keys else b"k" * 32) for each in range(count)]
    for node in made:
        await node.listen()
    try:
        yield made
    finally:
        for node in made:
            await node.peers.close()
            assert node.listener is not None
            await node.listener.close()


async def begun(made: Sequence[Node]) -> list[asyncio.Task[Path]]:
    """All fetch, are told of each other, and only then does the origin give."""
    tasks = [node.fetch() for node in made]
    await until(lambda: all(REF.name in node.store.fetching for node in made))
    for number, node in enumerate(made):
        node.told(number, len(made), made)
        node.origin.open.set()
    return tasks


async def have_it(tasks: Sequence[asyncio.Task[Path]]) -> None:
    for task in tasks:
        assert (await task).read_bytes() == DATA


def test_each_gets_its_share_from_the_scheduler_and_the_rest_from_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(tmp_path, 4) as made:
            await have_it(await begun(made))
            # Of the first piece all have asked for a part before they were told of each other.
            assert len(DATA) <= sum(node.origin.size for node in made) <= len(DATA) + 3 * PIECE
            for number, node in enumerate(made):
                assert {offset // PIECE % 4 for offset in node.origin.given if offset >= PIECE} == {number}

    run(test)


def test_a_latecomer_gets_all_from_those_who_have_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(tmp_path, 3) as made:
            first, second, late = made
            await have_it(await begun([first, second]))
            for node in (first, second):
                node.told(1, 1, [])
            [task] = await begun_late(late, made)
            await have_it([task])
            assert late.origin.size < len(DATA) / 2

    async def begun_late(late: Node, made: Sequence[Node]) -> list[asyncio.Task[Path]]:
        task = late.fetch()
        await until(lambda: REF.name in late.store.fetching)
        late.told(0, 1, made)
        await until(lambda: len(late.peers._links) == 2)
        late.origin.open.set()
        return [task]

    run(test)


def test_without_a_ticket_nothing_is_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stranger:
        """Has the secret and the name of the blob, and asks for it."""

        def __init__(self) -> None:
            self.heard: list[AnyMessage] = []

        def link_opened(self, link: Link) -> None: ...
        def link_suspected(self, link: Link) -> None: ...
        def link_recovered(self, link: Link) -> None: ...
        def link_lost(self, link: Link, cause: str, goodbye: bool) -> None: ...
        def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
            self.heard += [message for message, _ in messages]

    async def test() -> None:
        async with nodes(tmp_path, 2) as made:
            await have_it(await begun(made))
            stranger = Stranger()
            host, port = made[0].place.places[0]
            settings = LinkSettings(ProcessId("f" * 32), Role.PEER, "x", made[0].settings.credentials)
            link = await dial(host, port, settings=settings, handler=stranger)

            async def answer(message: AnyMessage, count: int = 1) -> list[AnyMessage]:
                stranger.heard.clear()
                link.send(message)
                await until(lambda: len(stranger.heard) >= count)
                return stranger.heard

            assert isinstance((await answer(NeedChunk(REF.name, 0, 10)))[0], BlobGone)
            assert isinstance((await answer(AskPieces(REF.name, b"x" * 32)))[0], BlobGone)
            assert isinstance((await answer(NeedChunk(REF.name, 0, 10)))[0], BlobGone)
            assert await answer(AskPieces(REF.name, TICKET)) == [PiecesHeld(REF.name, [(0, 25)])]
            assert await answer(NeedChunk(REF.name, 5, 10)) == [Chunk(REF.name, 5)]
            made[0].peers.forget(ProcessId("s"))  # the scheduler is gone, and with it what its ticket allowed
            assert isinstance((await answer(NeedChunk(REF.name, 0, 10)))[0], BlobGone)
            link.close("done")
            await link.wait_closed()

    run(test)


def test_who_cannot_be_reached_costs_nothing_but_time(tmp_path: Path) -> None:
    """One has another secret, one is not there: what would be theirs comes from the scheduler."""

    async def test() -> None:
        keys = [b"k" * 32, b"k" * 32, b"other" + b"k" * 27]
        async with nodes(tmp_path, 3, keys) as made:
            tasks = await begun(made)
            await have_it(tasks)
            assert {offset // PIECE % 3 for offset in made[2].origin.given} == {0, 1, 2}
            assert made[2].origin.size == len(DATA)
            assert not made[2].peers._links

    run(test)


def test_one_that_goes_in_the_middle_loses_nothing_for_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(tmp_path, 3) as made:
            for node in made:
                node.origin.pause = 0.01
            *staying, going = await begun(made)
            await until(lambda: bool(made[2].origin.given))
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)
            await made[2].peers.close()
            for number, node in enumerate(made[:2]):
                node.told(number, 2, made[:2])
            await have_it(staying)
            assert sum(node.origin.size for node in made[:2]) <= 1.5 * len(DATA)

    run(test)


def test_a_peer_that_sends_something_else_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came from it is fetched again from the scheduler, what came from the scheduler is not."""
    send = Link.send
    spoilt: Counter[str] = Counter()

    def spoiling(self: Link, message: AnyMessage, payload: Sequence[bytes | memoryview] = ()) -> None:
        if isinstance(message, Chunk) and self.settings.name == "node0":
            spoilt[self.peer.name] += 1
            payload = [bytes(len(part)) for part in payload]
        send(self, message, payload)

    async def test() -> None:
        async with nodes(tmp_path, 3) as made:
            await have_it(await begun(made))
            assert set(spoilt) == {"node1", "node2"}
            for node in made[1:]:
                assert node.origin.size < len(DATA) + PIECE  # nothing of what came from it is asked for twice

    monkeypatch.setattr(Link, "send", spoiling)
    run(test)


def test_links_that_nobody_needs_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispy.wire.peers.IDLE_TIMEOUT", 0.1)

    async def test() -> None:
        async with nodes(tmp_path, 3) as made:
            await have_it(await begun(made))
            await until(lambda: not any(node.peers._links for node in made))

    run(test)
