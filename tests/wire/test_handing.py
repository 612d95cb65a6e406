"""Contents handed over as descriptors between processes of one machine, and what keeps them from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dispy import pages
from dispy.errors import TransferError
from dispy.model import Role
from dispy.wire import handing
from dispy.wire.messages import HANDS_OVER, BlobFetched, Chunk, DescriptorRefused, NeedChunk, NeedDescriptor

sys.path.insert(0, str(Path(__file__).parent))
from test_blobs import FakePeer, Pair, content, run

DATA = os.urandom(2 * handing.SMALLEST + 77)


def near(role: Role = Role.SCHEDULER) -> Pair:
    pair = Pair(role)
    for link in (pair.to_giver, pair.to_taker):
        link.peer = FakePeer(link.peer.name, link.peer.role, "127.0.0.1", frozenset({HANDS_OVER}))
    return pair


def kinds(pair: Pair) -> set[type]:
    return {type(message) for message in (*pair.to_giver.sent, *pair.to_taker.sent)}


async def nothing_left() -> None:
    """Wait until threads have let go of their files."""
    async with asyncio.timeout(10):
        while any(target.startswith(("/memfd:dispy", "/memfd:test")) for target in open_files()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(link))
    return found


async def asked(pair: Pair) -> NeedDescriptor:
    while True:
        for message in pair.to_giver.sent:
            if isinstance(message, NeedDescriptor):
                return message
        await asyncio.sleep(0)


@pytest.mark.parametrize("hashed", [True, False])
def test_no_piece_travels(hashed: bool) -> None:
    async def test() -> None:
        pair = near()
        ref = pair.sources.offer_bytes(DATA, hashed=hashed)
        memory = await pair.taker.fetch_memory(ref)
        assert memory == DATA
        memory[0] = DATA[0] ^ 1
        fd = await pair.taker.fetch_memfd(ref)
        assert pages.is_sealed(fd)
        assert content(fd) == DATA
        await asyncio.sleep(0)
        assert pair.fetched == [ref.name, ref.name]
        assert kinds(pair) == {NeedDescriptor, BlobFetched}
        await nothing_left()

    run(test)


def test_what_lies_in_memory_is_the_same_on_both_sides() -> None:
    async def test() -> None:
        pair = near()
        fd = pages.memory_file("test-result", [DATA[:100], DATA[100:]])
        inode = os.fstat(fd).st_ino
        ref = pair.sources.offer_fd(fd, len(DATA))
        taken = await pair.taker.fetch_memfd(ref)
        assert os.fstat(taken).st_ino == inode
        pair.sources.withdraw(ref.name)
        assert content(taken) == DATA
        await nothing_left()

    run(test)


def in_pieces(pair: Pair) -> bool:
    return kinds(pair) - {NeedDescriptor, DescriptorRefused, BlobFetched} == {NeedChunk, Chunk}


def test_small_contents_and_those_of_others_come_in_pieces() -> None:
    async def test() -> None:
        pair = near()
        small = pair.sources.offer_bytes(DATA[: handing.SMALLEST - 1])
        assert await pair.taker.fetch_memory(small) == DATA[: handing.SMALLEST - 1]
        pair.to_giver.peer.address = "192.0.2.1"
        assert await pair.taker.fetch_memory(pair.sources.offer_bytes(DATA)) == DATA
        pair.to_giver.peer.address = "::1"
        pair.to_giver.peer.capabilities = frozenset()
        assert await pair.taker.fetch_memory(pair.sources.offer_bytes(DATA)) == DATA
        assert NeedDescriptor not in kinds(pair)

    run(test)


def test_what_somebody_could_change_comes_in_pieces(tmp_path: Path) -> None:
    async def test() -> None:
        pair = near()
        fd = os.memfd_create("test-open")
        os.write(fd, DATA)
        assert await pair.taker.fetch_memory(pair.sources.offer_fd(fd, len(DATA))) == DATA
        assert DescriptorRefused in kinds(pair)
        (tmp_path / "file").write_bytes(DATA)
        ref = await pair.sources.offer_file(tmp_path / "file")
        assert content(await pair.taker.fetch_memfd(ref)) == DATA
        assert in_pieces(pair)
        pair.sources.close()
        await nothing_left()

    run(test)


def test_without_a_way_between_them_it_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        pair = near()
        ref = pair.sources.offer_bytes(DATA)
        monkeypatch.setattr(handing, "_hand_over", fail)
        assert await pair.taker.fetch_memory(ref) == DATA
        pair = near()
        monkeypatch.setattr(handing.Handing, "_listens", lambda _self: False)
        assert await pair.taker.fetch_memory(pair.sources.offer_bytes(DATA)) == DATA

    def fail(*_: Any) -> None:
        raise ConnectionRefusedError

    run(test)


def test_an_answer_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(handing, "ANSWER_TIMEOUT", 0.0)
        monkeypatch.setattr(handing, "_SLOWEST", 1 << 40)
        pair = near()
        pair.giver._handing.give = lambda *_, **__: None  # type: ignore[method-assign]
        assert await pair.taker.fetch_memory(pair.sources.offer_bytes(DATA)) == DATA
        assert in_pieces(pair)

    run(test)


@pytest.mark.parametrize("ends", [lambda pair: pair.replace_links(), lambda pair: pair.taker.close("it is over")])
def test_the_end_of_the_link_ends_the_wait(ends: Callable[[Pair], None]) -> None:
    async def test() -> None:
        pair = near()
        pair.giver._handing.give = lambda *_, **__: None  # type: ignore[method-assign]
        fetching = asyncio.create_task(pair.taker.fetch_memory(pair.sources.offer_bytes(DATA)))
        await asked(pair)
        ends(pair)
        if pair.taker._closed:
            with pytest.raises(TransferError, match="it is over"):
                await fetching
        else:
            assert await fetching == DATA

    run(test)


def test_only_what_the_link_has_announced_is_taken() -> None:
    async def test() -> None:
        pair = near()
        pair.giver._handing.give = lambda *_, **__: None  # type: ignore[method-assign]
        ref = pair.sources.offer_bytes(DATA)
        fetching = asyncio.create_task(pair.taker.fetch_memory(ref))
        need = await asked(pair)
        wrong = pages.memory_file("test-wrong", [b"x" * len(DATA)])
        short = pages.memory_file("test-short", [DATA[:-1]])
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.connect(f"\0{need.at}")
            for message in (b"", need.token, os.urandom(200)):
                other.send(message)
            socket.send_fds(other, [os.urandom(16)], [wrong])
            socket.send_fds(other, [need.token], [short, wrong])
            socket.send_fds(other, [need.token], [short])
        assert await fetching == DATA
        os.close(wrong)
        os.close(short)
        assert in_pieces(pair)
        await nothing_left()

    run(test)


def test_nodes_give_each_other_only_what_is_named_by_its_hash() -> None:
    async def test() -> None:
        pair = near(Role.PEER)
        assert await pair.taker.fetch_memory(pair.sources.offer_bytes(DATA, hashed=True)) == DATA
        with pytest.raises(TransferError, match="not offered here"):
            await pair.taker.fetch_memory(pair.sources.offer_bytes(DATA))
        for at in ("elsewhere", "dispy-" + "x" * 60):
            need = NeedDescriptor(pair.sources.offer_bytes(DATA, hashed=True).name, at, b"token")
            pair.to_taker.sent.clear()
            assert pair.giver.message_arrived(need, b"")
            assert pair.to_taker.sent == [DescriptorRefused(b"token")]

    run(test)


def test_a_content_that_is_not_what_its_name_promises_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        pair = near()
        ref = pair.sources.offer_bytes(DATA, hashed=True)
        before = handing._hand_over

        def damaged(_parts: Any, fd: int, need: NeedDescriptor) -> None:
            before((memoryview(bytes(len(DATA))),), fd, need)

        monkeypatch.setattr(handing, "_hand_over", damaged)
        assert await pair.taker.fetch_memory(ref) == DATA
        assert in_pieces(pair)
        await nothing_left()

    run(test)


def test_a_fetch_that_is_given_up_leaves_nothing() -> None:
    async def test() -> None:
        pair = near()
        for pause in (0, 0.001, 0.01, 0.05):
            fetching = asyncio.create_task(pair.taker.fetch_memory(pair.sources.offer_bytes(DATA, hashed=True)))
            await asyncio.sleep(pause)
            fetching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await fetching
        del fetching
        await nothing_left()

    run(test)
