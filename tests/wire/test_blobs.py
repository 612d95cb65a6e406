"""Blobs over a pair of links in memory: all kinds of sources and destinations, breaks, refusals, and full disks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import mmap
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dispy.errors import TransferError
from dispy.model import BlobRef, ProcessId, Role
from dispy.secrets import credentials_from_key
from dispy.wire import pagecache, stamps
from dispy.wire.blobs import BlobExchange, BlobSources, BlobStore
from dispy.wire.blobstore import ContentLost, FileSink
from dispy.wire.frames import RECEIVE_SIZE
from dispy.wire.link import Link, LinkSettings, Listener, dial
from dispy.wire.messages import AnyMessage, BlobFetched, BlobGone, Chunk, Heartbeat, NeedChunk
from dispy.wire.tlsstream import TlsStream
from dispy.wire.transfer import LARGE_CHUNK, SMALL_CHUNK, WINDOW_LIMIT

DATA = os.urandom(3 * LARGE_CHUNK + 12345)


@dataclass
class FakePeer:
    name: str
    role: Role
    address: str = "192.0.2.1"
    capabilities: frozenset[str] = frozenset()


@dataclass
class FakeLink:
    """Hands what is sent to the exchange at the other end, in a later turn of the loop."""

    peer: FakePeer
    is_open: bool = True
    target: BlobExchange | None = None
    sent: list[AnyMessage] = field(default_factory=list)
    drop_after: int = -1
    """Chunks that get through before the link breaks; -1: all."""
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    damage: bool = False

    def send(self, message: AnyMessage, payload: Sequence[bytes | memoryview] = ()) -> None:
        if not self.is_open:
            return
        self.sent.append(message)
        if isinstance(message, Chunk):
            if self.drop_after == 0:
                self.is_open = False
                self.broken.set()
                return
            self.drop_after -= 1
        content = b"".join(payload)
        if self.damage and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        asyncio.get_running_loop().call_soon(self._deliver, message, content)

    def _deliver(self, message: AnyMessage, content: bytes) -> None:
        if self.is_open and self.target is not None:
            assert self.target.message_arrived(message, content)


class Pair:
    """A side that offers and a side that fetches."""

    def __init__(self, role: Role = Role.SCHEDULER) -> None:
        self.sources = BlobSources()
        self.fetched: list[bytes] = []
        self.to_giver, self.to_taker = self._links(role)
        self.giver = BlobExchange(self.to_taker, self.sources, on_fetched=self.fetched.append)
        self.taker = BlobExchange(self.to_giver, BlobSources())
        self._connect()

    def replace_links(self) -> None:
        self.to_giver.is_open = self.to_taker.is_open = False
        self.to_giver, self.to_taker = self._links(Role.SCHEDULER)
        self._connect()
        self.giver.link_replaced(self.to_taker)
        self.taker.link_replaced(self.to_giver)

    @staticmethod
    def _links(role: Role) -> tuple[FakeLink, FakeLink]:
        return FakeLink(FakePeer("giver", Role.NODE)), FakeLink(FakePeer("taker", role))

    def _connect(self) -> None:
        self.to_giver.target = self.giver
        self.to_taker.target = self.taker


def run(test: Callable[[], Awaitable[None]], seconds: float = 30) -> None:
    async def main() -> None:
        async with asyncio.timeout(seconds):
            await test()

    asyncio.run(main())


def content(fd: int) -> bytes:
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, SMALL_CHUNK, SMALL_CHUNK + 1, len(DATA)])
@pytest.mark.parametrize("hashed", [True, False])
def test_bytes_to_bytes_and_memfd(size: int, hashed: bool) -> None:
    async def test() -> None:
        pair = Pair()
        ref = pair.sources.offer_bytes(DATA[:size], hashed=hashed)
        assert await pair.taker.fetch_bytes(ref) == DATA[:size]
        fd = await pair.taker.fetch_memfd(ref)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
        assert content(fd) == DATA[:size]
        await asyncio.sleep(0)
        assert pair.fetched == [ref.name, ref.name]

    run(test)


@pytest.mark.parametrize("cuts", [(), (0,), (1, 1), (10, SMALL_CHUNK, SMALL_CHUNK + 1), (len(DATA) - 1, len(DATA))])
def test_parts_are_one_content(cuts: tuple[int, ...]) -> None:
    async def test() -> None:
        pair = Pair()
        ends = (0, *cuts, len(DATA))
        parts = [DATA[begin:end] for begin, end in itertools.pairwise(ends)]
        ref = pair.sources.offer_parts([parts[0], *map(bytearray, parts[1:])])
        assert await pair.taker.fetch_memory(ref) == DATA

    run(test)


def test_what_was_fetched_into_memory_can_be_written_to() -> None:
    async def test() -> None:
        pair = Pair()
        memory = await pair.taker.fetch_memory(pair.sources.offer_bytes(DATA))
        memory[0] = 7
        assert memory[1:] == DATA[1:]

    run(test)


def test_a_content_for_which_there_is_no_memory_fails_alone() -> None:
    async def test() -> None:
        pair = Pair()
        ref = pair.sources.offer_bytes(DATA)
        for size in (1 << 62, 1 << 80):
            with pytest.raises(TransferError, match="cannot be written to memory: Cannot allocate memory"):
                await pair.taker.fetch_memory(BlobRef(ref.name, size, False))
            await asyncio.sleep(0.01)
        assert await pair.taker.fetch_memory(ref) == DATA

    run(test)


@pytest.mark.parametrize("size", [1, len(DATA)])
def test_what_has_no_room_in_memory_lies_in_a_file_that_nobody_finds(tmp_path: Path, size: int) -> None:
    async def test() -> None:
        pair = Pair()
        ref = pair.sources.offer_bytes(DATA[:size], hashed=True)
        fd = await pair.taker.fetch_aside(ref, tmp_path / "below")
        assert not list((tmp_path / "below").iterdir())
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        assert os.fstat(fd).st_mode & 0o777 == 0o400
        assert content(fd) == DATA[:size]
        with pytest.raises(TransferError, match="not offered here"):
            await pair.taker.fetch_aside(BlobRef(b"?" * 32, 5), tmp_path)

    run(test)


def test_memfd_to_bytes_and_withdrawal() -> None:
    async def test() -> None:
        pair = Pair()
        fd = os.memfd_create("test")
        os.write(fd, DATA)
        ref = pair.sources.offer_fd(fd, len(DATA))
        assert await pair.taker.fetch_bytes(ref) == DATA
        pair.sources.withdraw(ref.name)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        with pytest.raises(TransferError, match=r"giver cannot give blob .* not offered here"):
            await pair.taker.fetch_bytes(ref)

    run(test)


def test_file_to_store_once(tmp_path: Path) -> None:
    async def test() -> None:
        pair = Pair()
        source = tmp_path / "data"
        source.write_bytes(DATA)
        ref = await pair.sources.offer_file(source)
        assert ref == BlobRef(hashlib.sha256(DATA).digest(), len(DATA))
        store = BlobStore(tmp_path / "store")
        assert await store.path_of(ref) is None
        path = await pair.taker.fetch_file(ref, store)
        assert path == tmp_path / "store" / ref.name.hex()
        assert path.read_bytes() == DATA
        sent = len(pair.to_giver.sent)
        assert await pair.taker.fetch_file(ref, store) == await store.path_of(ref) == path
        assert len(pair.to_giver.sent) == sent
        assert os.listdir(store.directory) == [path.name]

    run(test)


def test_peers_get_only_what_has_a_hash() -> None:
    async def test() -> None:
        pair = Pair(Role.PEER)
        open_ref = pair.sources.offer_bytes(b"open", hashed=True)
        assert await pair.taker.fetch_bytes(open_ref) == b"open"
        with pytest.raises(TransferError, match="not offered"):
            await pair.taker.fetch_bytes(pair.sources.offer_bytes(b"private"))

    run(test)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The files that were read to hash them."""
    files: list[object] = []
    real = hashlib.file_digest

    def file_digest(file: io.FileIO, name: str) -> object:
        files.append(file)
        return real(file, name)

    monkeypatch.setattr("dispy.wire.blobsources.hashlib.file_digest", file_digest)
    return files


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose hash is worth to be remembered; its file system is believed."""
    monkeypatch.setattr(stamps, "are_true", lambda _: True)
    path = tmp_path / "large"
    path.write_bytes(bytes(1 << 20))
    os.utime(path, (1000, 1000))
    return path


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was changed just now may change again without another time; now it may not."""
    now = time.time_ns() + 10**11
    monkeypatch.setattr("dispy.wire.blobsources.time.time_ns", lambda: now)


def change(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"two")
    os.utime(path, (1000, 1000))


@pytest.mark.usefixtures("later")
def test_hash_of_a_file_is_remembered_until_it_changes(large: Path, hashed: list[object]) -> None:
    async def test() -> None:
        sources = BlobSources()
        first = await sources.offer_file(large)
        assert await sources.offer_file(large) == first
        assert len(hashed) == 1
        change(large)
        assert await sources.offer_file(large) != first
        assert len(hashed) == 2

    run(test)


def test_hash_of_a_file_that_was_changed_just_now_is_not_remembered(
    large: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[object]
) -> None:
    async def test() -> None:
        sources = BlobSources()
        monkeypatch.setattr("dispy.wire.blobsources.time.time_ns", lambda: large.stat().st_ctime_ns + 10**6)
        assert await sources.offer_file(large) == await sources.offer_file(large)
        assert len(hashed) == 2

    run(test)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("believed", [True, False])
def test_hash_of_a_file_that_somebody_has_mapped(large: Path, monkeypatch: pytest.MonkeyPatch, believed: bool) -> None:
    """A page that was written to takes further writes without a new time, until the disk has it."""
    if believed:
        monkeypatch.undo()  # the real file system, whichever it is
        now = time.time_ns() + 10**11
        monkeypatch.setattr("dispy.wire.blobsources.time.time_ns", lambda: now)
    else:
        monkeypatch.setattr(stamps, "are_true", lambda _: False)
    with open(large, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)

    async def test() -> None:
        sources = BlobSources()
        with mapped as view:
            view[:3] = b"one"
            await asyncio.sleep(stamps.TICK)  # what is written within a step of the clock has the same time
            first = await sources.offer_file(large)
            view[:3] = b"two"
            assert await sources.offer_file(large) != first

    run(test)


def test_file_that_changed_or_vanished_is_gone(tmp_path: Path) -> None:
    async def test() -> None:
        pair = Pair()
        path = tmp_path / "data"
        path.write_bytes(DATA)
        ref = await pair.sources.offer_file(path)
        path.write_bytes(b"shorter")
        with pytest.raises(TransferError, match="has changed since it was offered"):
            await pair.taker.fetch_bytes(ref)
        path.unlink()
        with pytest.raises(TransferError, match="cannot be read: No such file"):
            await pair.taker.fetch_bytes(ref)
        with pytest.raises(TransferError, match="cannot be read: No such file"):
            await pair.sources.offer_file(path)

    run(test)


def test_concurrent_fetches_into_one_store_share_the_transfer(tmp_path: Path) -> None:
    async def test() -> None:
        one, two = Pair(), Pair()
        store = BlobStore(tmp_path)
        ref = one.sources.offer_bytes(DATA, hashed=True)
        two.sources.offer_bytes(DATA, hashed=True)
        paths = await asyncio.gather(
            one.taker.fetch_file(ref, store),
            two.taker.fetch_file(ref, store),
            one.taker.fetch_file(ref, store),
        )
        assert len(set(paths)) == 1
        assert two.to_giver.sent == [] or one.to_giver.sent == []

    run(test)


def test_when_the_sharing_link_fails_another_one_takes_over(tmp_path: Path) -> None:
    async def test() -> None:
        one, two = Pair(), Pair()
        store = BlobStore(tmp_path)
        ref = one.sources.offer_bytes(DATA, hashed=True)
        two.sources.offer_bytes(DATA, hashed=True)
        one.to_taker.drop_after = 2
        first = asyncio.create_task(one.taker.fetch_file(ref, store))
        await one.to_taker.broken.wait()
        second = asyncio.create_task(two.taker.fetch_file(ref, store))
        one.taker.close("the node is gone")
        with pytest.raises(TransferError, match="the node is gone"):
            await first
        assert (await second).read_bytes() == DATA
        assert len(os.listdir(tmp_path)) == 1

    run(test)


def test_concurrent_fetches_of_one_blob_over_one_link() -> None:
    async def test() -> None:
        pair = Pair()
        ref = pair.sources.offer_bytes(DATA, hashed=True)
        one, two, fd = await asyncio.gather(
            pair.taker.fetch_bytes(ref), pair.taker.fetch_bytes(ref), pair.taker.fetch_memfd(ref)
        )
        assert one == two == DATA
        assert content(fd) == DATA

    run(test)


@pytest.mark.parametrize("chunks", [0, 1, 3, 5])
def test_a_broken_link_is_resumed_where_it_was(tmp_path: Path, chunks: int) -> None:
    async def test() -> None:
        pair = Pair()
        path = tmp_path / "data"
        path.write_bytes(DATA)
        ref = await pair.sources.offer_file(path)
        pair.to_taker.drop_after = chunks
        fetch = asyncio.create_task(pair.taker.fetch_file(ref, BlobStore(tmp_path / "store")))
        await pair.to_taker.broken.wait()
        pair.replace_links()
        assert (await fetch).read_bytes() == DATA
        asked = sum(message.size for message in pair.to_giver.sent if isinstance(message, NeedChunk))
        assert asked <= len(DATA)
        if chunks > 1:
            assert asked < len(DATA)

    run(test)


def test_damaged_content_is_refused_by_name(tmp_path: Path) -> None:
    async def test() -> None:
        pair = Pair()
        pair.to_taker.damage = True
        ref = pair.sources.offer_bytes(DATA, hashed=True)
        with pytest.raises(TransferError, match=f"{ref.name.hex()[:12]}.*another content"):
            await pair.taker.fetch_bytes(ref)
        with pytest.raises(TransferError, match="another content"):
            await pair.taker.fetch_memfd(ref)
        with pytest.raises(TransferError, match="another content"):
            await pair.taker.fetch_file(ref, BlobStore(tmp_path))
        assert os.listdir(tmp_path) == []

    run(test)


def test_chunks_out_of_order_are_put_together(tmp_path: Path) -> None:
    async def test() -> None:
        link = FakeLink(FakePeer("giver", Role.NODE))
        taker = BlobExchange(link, BlobSources())
        data = DATA[: 4 * SMALL_CHUNK]
        ref = BlobRef(hashlib.sha256(data).digest(), len(data))
        store = BlobStore(tmp_path)
        fetch = asyncio.create_task(taker.fetch_file(ref, store))
        while len(link.sent) < 4:  # noqa: ASYNC110 - the fake link has no events
            await asyncio.sleep(0)
        for need in reversed(link.sent[:4]):
            assert isinstance(need, NeedChunk)
            taker.message_arrived(Chunk(ref.name, need.offset), data[need.offset : need.offset + need.size])
        assert (await fetch).read_bytes() == data

    run(test)


def test_a_large_file_leaves_only_its_end_in_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, size, advice: advised.append((offset, size)))
    monkeypatch.setattr(pagecache, "STEP", 1000)
    monkeypatch.setattr(pagecache, "CACHED_SIZE", 2500)
    data = DATA[:6000]
    sink = FileSink(BlobRef(hashlib.sha256(data).digest(), len(data)), tmp_path / "file")
    for offset in (0, 500, 1000, 2000, 4000, 3000, 5000):  # one out of order
        size = 500 if offset < 1000 else 1000
        sink.write([(offset, data[offset : offset + size])])
    assert sink.finish().read_bytes() == data
    begun = [(0, 1000), (1000, 1000), (2000, 1000), (3000, 2000), (5000, 1000)]
    given_up = [(0, 500), (500, 2000), (2500, 1000)]  # the last 2500 bytes stay
    assert advised == [*begun[:3], given_up[0], begun[3], given_up[1], begun[4], given_up[2]]


def test_nobody_waits_for_a_disk_that_has_too_much_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    at = 0.0
    advised: list[int] = []

    def advise(fd: int, offset: int, size: int, advice: int) -> None:
        nonlocal at
        advised.append(offset)
        at += 10 * size / pagecache.LEAST_RATE

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(pagecache, "monotonic", lambda: at)
    trail = pagecache.Trail()
    for end in range(pagecache.STEP, 1 << 30, pagecache.STEP):
        trail.follow(0, end)
    assert advised == [0, pagecache.STEP]


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 11), (10, 1), (-1, 2), (0, LARGE_CHUNK + 1), (2**62, 1)])
def test_requests_out_of_bounds_are_refused(offset: int, size: int) -> None:
    async def test() -> None:
        pair = Pair()
        ref = pair.sources.offer_bytes(b"0123456789")
        pair.to_taker.target = None
        assert pair.giver.message_arrived(NeedChunk(ref.name, offset, size), b"")
        assert isinstance(pair.to_taker.sent[0], BlobGone)

    run(test)


@pytest.mark.parametrize("how", ["changed", "removed", "not offered"])
def test_content_that_is_lost_is_told_as_lost(tmp_path: Path, how: str) -> None:
    """What is only not offered now may be another time."""

    async def test() -> None:
        pair = Pair()
        path = tmp_path / "file"
        path.write_bytes(DATA)
        ref = await pair.sources.offer_file(path)
        if how == "changed":
            path.write_bytes(DATA + b"more")
        elif how == "removed":
            path.unlink()
        else:
            pair.sources.withdraw(ref.name)
        with pytest.raises(TransferError) as caught:
            await pair.taker.fetch_bytes(ref)
        assert isinstance(caught.value, ContentLost) == (how != "not offered")

    run(test)


def test_answers_to_a_fetch_that_has_ended_do_not_reach_the_next_one() -> None:
    async def test() -> None:
        pair = Pair()
        ref = pair.sources.offer_bytes(DATA, hashed=True)
        pair.sources.withdraw(ref.name)
        with pytest.raises(TransferError, match="not offered"):
            await pair.taker.fetch_bytes(ref)
        pair.sources.offer_bytes(DATA, hashed=True)
        for _ in range(3):
            fetch = asyncio.create_task(pair.taker.fetch_bytes(ref))
            await asyncio.sleep(0)
            fetch.cancel()
            assert await pair.taker.fetch_bytes(ref) == DATA

    run(test)


def test_other_messages_are_not_ours_and_late_ones_do_nothing() -> None:
    async def test() -> None:
        pair = Pair()
        assert not pair.taker.message_arrived(Heartbeat(), b"")
        assert pair.taker.message_arrived(Chunk(b"unknown", 0), b"late")
        assert pair.taker.message_arrived(BlobGone(b"unknown", "late"), b"")
        assert pair.taker.message_arrived(BlobFetched(b"unknown"), b"")

    run(test)


def test_reasons_from_elsewhere_are_fit_for_a_terminal() -> None:
    async def test() -> None:
        link = FakeLink(FakePeer("giver", Role.NODE))
        taker = BlobExchange(link, BlobSources())
        ref = BlobRef(b"n" * 32, 10, False)
        fetch = asyncio.create_task(taker.fetch_bytes(ref))
        await asyncio.sleep(0)
        taker.message_arrived(BlobGone(ref.name, "\x1b[2Jgone"), b"")
        with pytest.raises(TransferError) as caught:
            await fetch
        assert "\x1b" not in str(caught.value)

    run(test)


def test_a_closed_exchange_fetches_and_serves_nothing() -> None:
    async def test() -> None:
        pair = Pair()
        ref = pair.sources.offer_bytes(DATA)
        pair.taker.close("closing")
        with pytest.raises(TransferError, match="closing"):
            await pair.taker.fetch_bytes(ref)
        pair.giver.close("closing")
        pair.giver.message_arrived(NeedChunk(ref.name, 0, 1), b"")
        assert pair.to_taker.sent == []

    run(test)


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(_fd: int, _data: object, _offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def test() -> None:
        pair = Pair()
        store = BlobStore(tmp_path / "store")
        ref = pair.sources.offer_bytes(DATA, hashed=True)
        huge = BlobRef(ref.name, 1 << 60)
        with pytest.raises(TransferError, match=r"disk of .*store is full"):
            await pair.taker.fetch_file(huge, store)
        assert pair.to_giver.sent == []
        monkeypatch.setattr("dispy.wire.blobstore.os.pwrite", pwrite)
        with pytest.raises(TransferError, match=r"disk of .*store is full; make room there"):
            await pair.taker.fetch_file(ref, store)
        assert os.listdir(store.directory) == []
        monkeypatch.undo()
        assert (await pair.taker.fetch_file(ref, store)).read_bytes() == DATA

    run(test)


def test_a_cancelled_fetch_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    async def test() -> None:
        pair = Pair()
        store = BlobStore(tmp_path / "store")
        ref = pair.sources.offer_bytes(DATA, hashed=True)
        pair.to_taker.drop_after = 3
        fetch = asyncio.create_task(pair.taker.fetch_file(ref, store))
        await pair.to_taker.broken.wait()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        pair.replace_links()
        assert (await pair.taker.fetch_file(ref, store)).read_bytes() == DATA
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.sleep(0)
        assert len(os.listdir(store.directory)) == 1

    run(test)


def test_a_store_removes_what_was_left_unfinished_and_refuses_random_names(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / ".abc.1234.part").write_bytes(b"left")
        store = BlobStore(tmp_path)
        ref = BlobRef(b"n" * 32, 3)
        assert await store.path_of(ref) is None
        assert os.listdir(tmp_path) == []
        (tmp_path / ref.name.hex()).write_bytes(b"wrong size")
        assert await store.path_of(ref) is None
        for wrong in (BlobRef(b"n" * 32, 3, False), BlobRef(b"../../etc", 3)):
            with pytest.raises(TransferError, match="not named by its hash"):
                await store.path_of(wrong)
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(TransferError, match="files cannot be kept in"):
            await BlobStore(tmp_path / "file").path_of(ref)

    run(test)


class _Exchanging:
    """A link handler with an exchange on each of its links."""

    def __init__(self) -> None:
        self.sources = BlobSources()
        self.exchange: BlobExchange | None = None

    def link_opened(self, link: Link) -> None:
        self.exchange = BlobExchange(link, self.sources)

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        assert self.exchange is not None
        for message, payload in messages:
            assert self.exchange.message_arrived(message, payload)

    def link_suspected(self, link: Link) -> None: ...

    def link_recovered(self, link: Link) -> None: ...

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        assert self.exchange is not None
        self.exchange.close(cause)


@contextlib.asynccontextmanager
async def linked() -> AsyncIterator[tuple[_Exchanging, BlobExchange]]:
    """Who gives and who takes, with a link between them."""
    credentials = credentials_from_key(b"k" * 32)
    giver, taker = _Exchanging(), _Exchanging()
    settings = [
        LinkSettings(ProcessId(letter * 32), role, letter, credentials)
        for letter, role in (("a", Role.NODE), ("b", Role.SCHEDULER))
    ]
    listener = await Listener.start(
        ["127.0.0.1"],
        0,
        settings=settings[0],
        handler=giver,
        accept=frozenset({Role.SCHEDULER}),
        on_refused=lambda address, sentence: None,
    )
    link = await dial("127.0.0.1", listener.port, settings=settings[1], handler=taker)
    try:
        assert taker.exchange is not None
        yield giver, taker.exchange
    finally:
        link.close("done")
        await listener.close()


def test_over_a_real_link(tmp_path: Path) -> None:
    async def test() -> None:
        async with linked() as (giver, taker):
            path = tmp_path / "data"
            path.write_bytes(DATA)
            ref = await giver.sources.offer_file(path)
            fetched = await taker.fetch_file(ref, BlobStore(tmp_path / "store"))
            assert fetched.read_bytes() == DATA
            assert content(await taker.fetch_memfd(giver.sources.offer_bytes(DATA))) == DATA
            assert await taker.fetch_bytes(giver.sources.offer_bytes(DATA)) == DATA

    run(test)


def test_a_turn_of_the_loop_moves_little_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats wait for as long as a turn takes, and it takes as long as what it encrypts, decrypts and copies."""
    turns = [[0, 0]]
    write, arrive = TlsStream.writelines, TlsStream.buffer_updated
    once = asyncio.SelectorEventLoop._run_once  # type: ignore[attr-defined]

    def run_once(self: asyncio.SelectorEventLoop) -> None:
        turns.append([0, 0])
        once(self)

    def writelines(self: TlsStream, buffers: Sequence[memoryview]) -> None:
        turns[-1][0] += sum(map(len, buffers))
        write(self, buffers)

    def buffer_updated(self: TlsStream, nbytes: int) -> None:
        turns[-1][1] += nbytes
        arrive(self, nbytes)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "_run_once", run_once)
    monkeypatch.setattr(TlsStream, "writelines", writelines)
    monkeypatch.setattr(TlsStream, "buffer_updated", buffer_updated)
    path = tmp_path / "data"
    path.touch()
    os.truncate(path, 10 * WINDOW_LIMIT)

    async def test() -> None:
        async with linked() as (giver, taker):
            await taker.fetch_file(await giver.sources.offer_file(path), BlobStore(tmp_path / "store"))

    run(test, 120)
    sent, received = (max(column) for column in zip(*turns, strict=True))
    assert sum(sent for sent, _ in turns) > 10 * WINDOW_LIMIT
    assert sent <= WINDOW_LIMIT + SMALL_CHUNK  # what is under way, with its headers
    assert received <= 2 * RECEIVE_SIZE  # of the giver and of the taker, who share this loop
