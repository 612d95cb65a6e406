"""Files that stand in a directory without a copy: lent, changed there, taken back, copied for somebody else."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispy.model import BlobRef, FileSpec
from dispy.node.placing import place_file
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
