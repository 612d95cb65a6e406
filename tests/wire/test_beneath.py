"""Files beneath a directory: names, links on the way, what is left behind."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dispy.errors import TransferError
from dispy.model import BlobRef, FileSpec
from dispy.wire.beneath import BeneathSink, checked_parts

CONTENT = b"some content"


def spec(path: str, content: bytes = CONTENT) -> FileSpec:
    return FileSpec(path, BlobRef(hashlib.sha256(content).digest(), len(content)), 0o4755, 1000.0)


@pytest.mark.parametrize("name", ["", ".", "/etc/passwd", "../up", "a/../../b", "a/..", "a\0b"])
def test_names_that_lead_outside(name: str, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="stays inside"):
        BeneathSink(tmp_path, spec(name))


def test_a_file_has_its_place_mode_and_time(tmp_path: Path) -> None:
    assert checked_parts("a/./b") == ("a", "b")
    sink = BeneathSink(tmp_path, spec("a/b/file"))
    sink.write([(0, CONTENT[:4]), (4, CONTENT[4:])])
    assert not (tmp_path / "a/b/file").exists()
    path = sink.finish()
    sink.discard()
    assert path == tmp_path / "a/b/file"
    assert path.read_bytes() == CONTENT
    assert (path.stat().st_mode & 0o7777, path.stat().st_mtime) == (0o755, 1000.0)
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_nothing_is_left_of_what_is_wrong_or_not_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    sink = BeneathSink(tmp_path, spec("file"))
    sink.write([(0, b"some c0ntent")])
    with pytest.raises(TransferError):
        sink.finish()
    sink.discard()
    BeneathSink(tmp_path, spec("file")).discard()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "old")]


def test_no_link_is_followed(tmp_path: Path) -> None:
    here, outside = tmp_path / "here", tmp_path / "outside"
    here.mkdir()
    outside.mkdir()
    (outside / "file").write_text("theirs")
    (here / "folder").symlink_to(outside)
    (here / "file").symlink_to(outside / "file")
    sink = BeneathSink(here, spec("folder/new"))
    with pytest.raises(OSError, match="folder"):
        sink.write([(0, CONTENT)])
    sink.discard()
    sink = BeneathSink(here, spec("file"))
    sink.write([(0, CONTENT)])
    sink.finish()
    assert (here / "file").read_bytes() == CONTENT
    assert not (here / "file").is_symlink()
    assert [(each.name, each.read_text()) for each in outside.iterdir()] == [("file", "theirs")]
