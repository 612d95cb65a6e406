"""The node's own directory: it is never one that holds anything else."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from dispy import owndirectory
from dispy.errors import NodeError
from dispy.model import ComputationSpec
from dispy.node.workdir import DirectoryGone, Prefix, Workdir, Workdirs
from dispy.wire.blobstore import BlobStore


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("clean", [False, True])
def test_a_directory_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path, clean: bool) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(NodeError, match=r"thesis\.tex, which is not a dispynode's; name one for the dispynode alone"):
        Prefix.claim(tmp_path, clean=clean)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert mode(tmp_path) == 0o755
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_directory_to_which_all_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(NodeError, match="others can write to it"):
        Prefix.claim(tmp_path)
    assert mode(tmp_path) == 0o1777


def test_a_missing_or_empty_one_is_taken_and_made_private(tmp_path: Path) -> None:
    for path in (tmp_path / "a" / "b", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        prefix = Prefix.claim(path)
        assert mode(path) == 0o700
        kept = path / "named" / "kept"
        kept.mkdir()  # as a cluster with dest_path='kept' leaves it
        (path / "notes").mkdir()
        (path / "thesis.tex").write_text("put there later")
        prefix.release()
        Prefix.claim(path, clean=True).release()
        assert not kept.exists()
        assert (path / "notes").is_dir()
        Prefix.claim(path).release(remove=True)
        assert sorted(entry.name for entry in path.iterdir()) == ["notes", "thesis.tex"]


def test_a_directory_of_a_scheduler_is_refused(tmp_path: Path) -> None:
    owndirectory.mark(tmp_path, owndirectory.SCHEDULER)
    for name in ("jobs.sqlite", "lock"):
        (tmp_path / name).touch()
    with pytest.raises(NodeError, match="is not used: it belongs to a dispyscheduler; name one for the dispynode"):
        Prefix.claim(tmp_path, clean=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"daemon", "jobs.sqlite", "lock"}


def test_a_named_directory_goes_without_what_others_keep_or_use_inside(tmp_path: Path) -> None:
    prefix = Prefix.claim(tmp_path / "node")
    workdirs, store = Workdirs(prefix), BlobStore(prefix.path / "blobs")

    def opened(dest_path: str) -> Workdir:
        return workdirs.open(ComputationSpec(dest_path, dest_path, "function", dest_path=dest_path))

    outer, kept = opened("a"), opened("a/kept")
    workdirs.close(kept, store, keep=True)
    workdirs.close(outer, store, keep=False)
    assert kept.path.is_dir()
    outer, used = opened("b"), opened("b/used")
    workdirs.close(outer, store, keep=False)
    assert used.path.is_dir()
    workdirs.close(used, store, keep=False)
    assert [entry.name for entry in (prefix.path / "named").iterdir()] == ["a"]
    prefix.release()


def test_a_directory_that_somebody_has_removed_is_made_and_locked_again(tmp_path: Path) -> None:
    path = tmp_path / "node"
    prefix = Prefix.claim(path)
    workdirs = Workdirs(prefix)
    before = workdirs.open(ComputationSpec("a", "before", "function"))
    shutil.rmtree(path)
    assert workdirs.make_again(before)
    assert mode(path) == 0o700
    with pytest.raises(NodeError, match="belongs to a dispynode that runs"):
        Prefix.claim(path)
    assert workdirs.open(ComputationSpec("b", "after", "function")).path.is_dir()
    prefix.release()
    Prefix.claim(path).release()


def test_a_removed_directory_that_another_node_has_by_now_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "node"
    prefix = Prefix.claim(path)
    shutil.rmtree(path)
    other = Prefix.claim(path)
    with pytest.raises(DirectoryGone, match=r"was removed; the directory .* belongs to a dispynode that runs"):
        Workdirs(prefix).open(ComputationSpec("a", "late", "function"))
    prefix.release(remove=True)
    assert path.is_dir()
    other.release(remove=True)
    assert not path.exists()


def test_a_removed_directory_that_cannot_be_made_again_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "above" / "node"
    prefix = Prefix.claim(path)
    shutil.rmtree(tmp_path / "above")
    (tmp_path / "above").write_text("in the way")
    workdirs = Workdirs(prefix)
    with pytest.raises(DirectoryGone, match="was removed and cannot be made again: Not a directory"):
        workdirs.open(ComputationSpec("a", "early", "function"))
    (tmp_path / "above").unlink()
    assert workdirs.open(ComputationSpec("a", "early", "function")).path.is_dir()
    prefix.release()
