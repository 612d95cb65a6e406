"""A recovery file on disk: locked, appended to, never half replaced; and the recorder that writes it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dispy.errors import RecoveryError, SettingsError
from dispy.model import ComputationId, ComputationSpec, ProcessId
from dispy.recovery.book import MAGIC, Book, JobsReturned, NodeNoted, ProgramBegun, encode
from dispy.recovery.file import RecoveryFile, default_folder, new_path, prune, unfinished
from dispy.recovery.recorder import Recorder

BEGUN = ProgramBegun(b"t" * 32, b"k" * 8, "", 9700, "me", "here", 1, "p.py", 1.0)
NODE = NodeNoted(ProcessId("n1"), "node", (("10.0.0.1", 9701),))
SPEC = ComputationSpec(ComputationId("c"), "f", "function")


def read(path: Path) -> Book:
    file, book = RecoveryFile.open(path)
    file.close()
    return book


def test_a_file_is_private_and_in_use_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    file = RecoveryFile.create(path, [BEGUN])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(RecoveryError, match=r"in use: the program that writes it still runs \(p\.py, process 1"):
        RecoveryFile.open(path)
    file.append([NODE])
    file.sync()
    file.close()
    file.append([NODE])
    assert set(read(path).nodes) == {"n1"}
    assert os.listdir(tmp_path) == ["x"]


def test_a_torn_tail_is_cut_off_before_more_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x"
    RecoveryFile.create(path, [BEGUN, NODE]).close()
    with path.open("ab") as torn:
        torn.write(encode([NODE])[:-3])
    file, book = RecoveryFile.open(path)
    file.append([JobsReturned([7])])
    file.close()
    assert set(book.nodes) == {"n1"}
    assert read(path).returned == {7}


def test_damage_in_the_middle_is_said_and_nothing_is_destroyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x"
    RecoveryFile.create(path, [BEGUN, NODE, JobsReturned([7])]).close()
    spoiled = bytearray(path.read_bytes())
    spoiled[len(MAGIC) + len(encode([BEGUN])) + 14] ^= 1
    path.write_bytes(spoiled)
    file, book = RecoveryFile.open(path)
    assert (book.nodes, book.returned) == ({}, {7})
    with pytest.raises(RecoveryError, match="in use"):
        RecoveryFile.open(path)
    file.append([JobsReturned([8])])
    file.close()
    assert read(path).returned == {7, 8}
    (aside,) = tmp_path.glob("x.damaged-*")
    assert aside.read_bytes() == bytes(spoiled)
    assert capsys.readouterr().err.count(f"the recovery file {path} is damaged: 1 place in it") == 1


def test_what_cannot_be_written_leaves_no_half_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RecoveryFile.create(tmp_path / "x", [BEGUN])
    write = os.write

    def full(fd: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", fail)
        return write(fd, bytes(data[:5]))

    def fail(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        file.append([NODE])
    monkeypatch.setattr(os, "write", write)
    file.append([JobsReturned([1])])
    file.close()
    book = read(tmp_path / "x")
    assert not book.nodes
    assert book.returned == {1}


def test_a_file_that_is_not_recovered_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    RecoveryFile.create(path, [BEGUN]).close()
    with pytest.raises(RecoveryError, match=r"p\.py, which began at .*dispy recover"):
        RecoveryFile.create(path, [BEGUN])
    file, book = RecoveryFile.open(path)
    file.finish(book)
    assert read(path).is_done
    RecoveryFile.create(path, [BEGUN]).close()
    assert not read(path).is_done


@pytest.mark.parametrize("content", [b"", b"precious", MAGIC])
def test_a_foreign_file_is_neither_read_nor_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(RecoveryError, match=r"is not a recovery file|cannot be used: it"):
        RecoveryFile.open(path)
    with pytest.raises(RecoveryError, match="name another file"):
        RecoveryFile.create(path, [BEGUN])
    assert path.read_bytes() == content


def test_a_file_that_others_could_have_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    RecoveryFile.create(path, [BEGUN]).close()
    path.chmod(0o640)
    with pytest.raises(RecoveryError, match="chmod 600"):
        RecoveryFile.open(path)
    with pytest.raises(RecoveryError, match="not a regular file"):
        RecoveryFile.open(Path("/dev/null"))
    path.write_text("import dispy")
    with pytest.raises(RecoveryError, match="is not a recovery file"):
        RecoveryFile.open(path)
    with pytest.raises(RecoveryError, match="No such file"):
        RecoveryFile.open(tmp_path / "missing")


def test_the_newest_file_that_is_not_done_comes_first() -> None:
    paths = [new_path() for _ in range(4)]
    for began, path in enumerate(paths):
        begun = ProgramBegun(b"t" * 32, b"k" * 8, "", 9700, "me", "here", 1, "p.py", float(-began))
        file = RecoveryFile.create(path, [begun])
        file.close()
    in_use, _ = RecoveryFile.open(paths[0])
    done, book = RecoveryFile.open(paths[1])
    done.finish(book)
    assert [path for path, _ in unfinished()] == [paths[2], paths[3]]
    in_use.close()
    assert next(iter(unfinished()))[0] == paths[0]


def test_old_files_are_removed() -> None:
    old, done, young = (new_path() for _ in range(3))
    for path, days in ((old, 31), (done, 2), (young, 29)):
        file = RecoveryFile.create(path, [BEGUN])
        if path is done:
            file.finish(Book([BEGUN]))
        file.close()
        os.utime(path, (0, time.time() - days * 86400))
    foreign = default_folder() / "foreign.recover"
    foreign.write_bytes(b"")
    os.utime(foreign, (0, 0))
    prune()
    assert set(default_folder().iterdir()) == {young, foreign}


def test_the_recorder_writes_what_a_later_program_needs(tmp_path: Path) -> None:
    recorder = Recorder(BEGUN)
    recorder.use(tmp_path / "a")
    recorder.cluster_opened(SPEC)
    recorder.node_leased(NODE)
    recorder.node_leased(NODE)
    recorder.use(tmp_path / "b")
    recorder.use(tmp_path / "b")
    recorder.use(None)
    assert recorder.paths == [tmp_path / "a", tmp_path / "b"]
    recorder.end()
    assert read(tmp_path / "a").nodes == read(tmp_path / "b").nodes == {"n1": NODE}
    assert list(read(tmp_path / "b").clusters) == ["c"]


def test_the_file_is_removed_when_nothing_is_left_to_recover() -> None:
    recorder = Recorder(BEGUN)
    recorder.use(None)
    recorder.cluster_opened(SPEC)
    assert recorder.paths[0].parent == default_folder()
    recorder.cluster_over(SPEC.id)
    recorder.end()
    assert list(default_folder().iterdir()) == []


def test_a_path_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    recorder = Recorder(BEGUN)
    with pytest.raises(SettingsError, match=r"recover_file: .*cannot be written: No such file"):
        recorder.use(tmp_path / "missing" / "x")
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "mine").chmod(0o600)
    with pytest.raises(SettingsError, match=r"recover_file: .*not a recovery file") as refused:
        recorder.use(tmp_path / "mine")
    assert refused.value.__suppress_context__, "one traceback is enough"
    assert recorder.paths == []


def test_a_default_place_that_cannot_be_written_is_said_once(
    environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (environment / ".local").write_text("in the way")
    recorder = Recorder(BEGUN)
    recorder.use(None)
    recorder.use(None)
    assert capsys.readouterr().err.count("no recovery file can be written") == 1
    recorder.cluster_opened(SPEC)
    recorder.end()


def test_a_disk_that_fills_up_does_not_end_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(BEGUN)
    recorder.use(tmp_path / "x")

    def full(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RecoveryFile, "append", full)
        recorder.node_leased(NODE)
        recorder.node_leased(NodeNoted(ProcessId("n2"), "other", ()))
    assert capsys.readouterr().err.count("No space left") == 1
    assert read(tmp_path / "x").program == BEGUN


def test_a_forked_child_lets_go_of_the_lock(tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    recorder = Recorder(BEGUN)
    recorder.use(tmp_path / "x")
    go, stay = os.pipe()
    child = os.fork()
    if not child:
        os.close(stay)
        recorder.abandon()
        os.read(go, 1)
        os._exit(0)
    os.close(go)
    recorder.end()
    RecoveryFile.create(tmp_path / "y", [BEGUN]).close()
    os.close(stay)
    assert os.waitpid(child, 0)[1] == 0
