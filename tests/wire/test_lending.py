"""Files that stand in a directory without a copy: lent, changed there, taken back, copied for somebody else."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispy.model import BlobRef, FileSpec
from dispy.node.placing import place_file
from dispy.wire import lending, stamps
from dispy.wire.blobstore import BlobStore
from dispy.wire.lending import LEAST_SIZE, lent

DATA = os.urandom(LEAST_SIZE + 5)
REF = BlobRef(hashlib.sha256(DATA).digest(), len(DATA))
FILE = FileSpec("data", REF, 0o640, 1000.0)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "blobs")
    assert here(store) is None
    store.place(REF).write_bytes(DATA)
    return store


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "work").mkdir()
    fd = os.open(tmp_path / "work", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def here(store: BlobStore) -> Path | None:
    return asyncio.run(store.path_of(REF))


def test_a_file_is_lent_and_taken_back_when_it_is_not_needed(store: BlobStore, folder: int, tmp_path: Path) -> None:
    inode = store.place(REF).stat().st_ino
    assert place_file(folder, "data", FILE, store, None)
    placed = tmp_path / "work" / "data"
    assert placed.read_bytes() == DATA
    assert placed.stat().st_ino == inode
    assert (stat.S_IMODE(placed.stat().st_mode), placed.stat().st_mtime) == (0o640, 1000.0)
    assert not store.place(REF).exists()
    assert store.readable(REF) == lent(store.place(REF))
    placed.unlink()
    path = here(store)
    assert path is not None
    assert path.stat().st_ino == inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(store.directory) == [path.name]


def test_what_was_changed_where_it_stands_is_not_given_to_anybody(
    store: BlobStore, folder: int, tmp_path: Path
) -> None:
    assert place_file(folder, "data", FILE, store, None)
    placed = tmp_path / "work" / "data"
    with open(placed, "r+b") as file:
        file.write(b"changed")
    assert here(store) is None  # while it stands there
    placed.unlink()
    assert here(store) is None  # and afterwards
    assert os.listdir(store.directory) == []


def test_two_that_need_it_at_a_time_have_one_each(store: BlobStore, folder: int, tmp_path: Path) -> None:
    assert place_file(folder, "data", FILE, store, None)
    assert not place_file(folder, "other", FILE, store, None)  # it is lent: it has to be asked for again
    assert here(store) is not None
    assert place_file(folder, "other", FILE, store, None)
    first, second = (tmp_path / "work" / name for name in ("data", "other"))
    with open(first, "r+b") as file:
        file.write(b"changed")
    assert second.read_bytes() == DATA
    assert sorted(os.listdir(folder)) == ["data", "other"]
    second.unlink()
    assert here(store) is not None


def test_where_it_cannot_be_lent_it_is_copied(
    store: BlobStore, folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    assert place_file(folder, "secret", FileSpec("secret", REF, 0o000), store, None)  # we could not look at it
    monkeypatch.setattr(os, "link", refuse)
    assert place_file(folder, "data", FILE, store, None)
    assert (tmp_path / "work" / "data").read_bytes() == DATA
    assert store.place(REF).read_bytes() == DATA
    assert (tmp_path / "work" / "data").stat().st_nlink == 1


def test_small_files_are_copied(store: BlobStore, folder: int) -> None:
    small = BlobRef(hashlib.sha256(b"small").digest(), 5)
    store.place(small).write_bytes(b"small")
    assert place_file(folder, "small", FileSpec("small", small, 0o644), store, None)
    assert store.place(small).exists()


def test_a_failure_leaves_nothing_and_takes_nothing(store: BlobStore, folder: int, tmp_path: Path) -> None:
    (tmp_path / "work" / "data" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="data"):
        place_file(folder, "data", FILE, store, None)
    assert os.listdir(folder) == ["data"]
    assert here(store) is not None


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system of the tests' files, whichever it is, is believed."""
    monkeypatch.setattr(stamps, "are_true", lambda _: True)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is read of lent files to find out whether they are as they were."""
    monkeypatch.setattr(lending, "LEAST_UNREAD", LEAST_SIZE)
    found: list[int] = []
    real = lending._digest

    def digest(fd: int) -> bytes:
        found.append(os.fstat(fd).st_size)
        return real(fd)

    monkeypatch.setattr(lending, "_digest", digest)
    return found


@pytest.mark.usefixtures("believed")
def test_what_nobody_has_changed_is_not_read_again(
    store: BlobStore, folder: int, tmp_path: Path, reads: list[int]
) -> None:
    placed = tmp_path / "work" / "data"
    for _ in range(2):
        assert place_file(folder, "data", FILE, store, None)
        assert placed.read_bytes() == DATA
        with store.removing([REF.name]):
            placed.unlink()
        assert here(store) is not None
    assert reads == []


@pytest.mark.usefixtures("believed")
def test_a_second_one_gets_a_copy_of_what_nobody_has_changed(
    store: BlobStore, folder: int, tmp_path: Path, reads: list[int]
) -> None:
    assert place_file(folder, "data", FILE, store, None)
    path = here(store)
    assert path is not None
    assert path.read_bytes() == DATA
    assert path.stat().st_ino != (tmp_path / "work" / "data").stat().st_ino
    assert reads == []


@pytest.mark.parametrize("how", ["written", "mapped", "renamed away", "linked", "time set back", "removed by others"])
@pytest.mark.parametrize("owner", [None, (os.getuid(), os.getgid())])
def test_what_may_have_been_changed_is_read_again(
    store: BlobStore, folder: int, tmp_path: Path, reads: list[int], how: str, owner: tuple[int, int] | None
) -> None:
    assert place_file(folder, "data", FILE, store, owner)
    placed, other = tmp_path / "work" / "data", tmp_path / "work" / "other"
    status = placed.stat()
    if how == "renamed away":
        placed.rename(other)
    elif how == "linked":
        os.link(placed, other)
    elif how != "removed by others":
        with open(placed, "r+b") as file:
            if how == "mapped":
                with mmap.mmap(file.fileno(), 0) as view:
                    view[0:7] = b"changed"
            else:
                file.write(b"changed")
        if how == "time set back":
            os.utime(placed, ns=(status.st_atime_ns, status.st_mtime_ns))
    if how == "removed by others":
        placed.unlink()
    with store.removing([REF.name]):
        placed.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
    is_same = how in ("renamed away", "linked", "removed by others")
    assert (here(store) is not None) == is_same
    assert reads == [len(DATA)]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no file system in memory")
@pytest.mark.parametrize("ends_before", [True, False])
def test_what_was_changed_in_memory_through_a_mapping_is_seen(reads: list[int], ends_before: bool) -> None:
    """There the kernel does not stamp it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        store = BlobStore(Path(directory) / "blobs")
        assert here(store) is None
        store.place(REF).write_bytes(DATA)
        work = Path(directory) / "work"
        work.mkdir()
        folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert place_file(folder, "data", FILE, store, None)
        finally:
            os.close(folder)
        with open(work / "data", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[0:7] = b"changed"
        if ends_before:
            with store.removing([REF.name]):
                (work / "data").unlink()
        assert here(store) is None
        assert reads == [len(DATA)]


def test_a_change_while_it_is_copied_is_seen(
    store: BlobStore, folder: int, tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lending.copy_content

    def copy_content(source: int, target: int) -> None:
        real(source, target)
        with open(tmp_path / "work" / "data", "r+b") as file:
            file.write(b"changed")

    assert place_file(folder, "data", FILE, store, None)
    monkeypatch.setattr(lending, "copy_content", copy_content)
    assert here(store) is not None  # the copy was made before
    assert reads == [len(DATA)]


def test_copies_where_the_file_system_does_not_copy_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    (tmp_path / "source").write_bytes(DATA)
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "wb") as target:
        lending.copy_content(source.fileno(), target.fileno())
    assert (tmp_path / "target").read_bytes() == DATA
