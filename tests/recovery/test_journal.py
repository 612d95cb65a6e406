"""What durable clusters leave beside a recovery file: jobs in segments, contents by name."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dispy.model import ComputationId, Ending, JobDone, JobOptions, ProcessId
from dispy.recovery.book import Book, JobsHanded, JobsReturned, ProgramBegun
from dispy.recovery.journal import UNKNOWN_NODE, Journal, content, load_id, load_jobs, remove_store

BEGUN = ProgramBegun(b"t" * 32, b"k" * 8, "", 9700, "me", "here", 1, "p.py", 1.0)
CLUSTER = ComputationId("c")
NODE = ProcessId("n1")


@dataclass
class Job:
    job: int
    cluster: ComputationId = CLUSTER
    args: bytes = b""
    options: JobOptions | None = None


@dataclass
class Ended:
    job: Job
    node: ProcessId | None = NODE
    done: JobDone | None = None
    body: bytes = b""


def store(journal: Journal, *numbers: int, args: bytes = b"args") -> None:
    journal.stored([(Job(number), f"id{number}", args) for number in numbers], 5.0)


def over(journal: Journal, *numbers: int) -> None:
    journal.over([Ended(Job(number)) for number in numbers])


def load(folder: Path, *entries: object) -> Book:
    book = Book([BEGUN, *entries])  # type: ignore[list-item]
    load_jobs(book, folder)
    return book


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("jobs-*"))


def test_what_somebody_else_has_in_the_folder_stays(tmp_path: Path) -> None:
    folder, mine = tmp_path / "s.d", {"jobs-to-do", "thesis.txt", "contents/jobs-000001", "contents/notes"}
    journal = Journal(folder)
    journal.keep_bytes(b"n" * 32, b"a content")
    store(journal, 1)
    journal.close()
    for name in mine:
        (folder / name).write_text("years of work")
    remove_store(folder)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == mine
    for name in mine:
        (folder / name).unlink()
    remove_store(folder)
    assert not folder.exists()


def test_jobs_are_there_until_they_have_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s")
    store(journal, 1, 2, 3)
    journal.handed(NODE, [1, 2])
    over(journal, 1)
    journal.sync()
    journal.close()
    journal.sync()
    book = load(tmp_path / "s")
    assert set(book.jobs) == {2, 3}
    assert book.handed == {2: NODE}
    assert book.returned == {1}, "the program knew its end: a result that a node still has is not wanted"
    assert (load_id(book.jobs[2]), book.jobs[2].args, book.jobs[2].submitted_at) == ("id2", b"args", 5.0)


def test_results_are_kept_until_the_program_was_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s")
    store(journal, 1, 2, 3)
    journal.handed(NODE, [1, 2, 3])
    ended = [
        Ended(Job(number), NODE, JobDone(number, 1, int(Ending.FINISHED), 1.0, 2.0, 4, 0, 0, 0, None), b"body")
        for number in (1, 2)
    ]
    journal.kept([*ended, Ended(Job(3), None)], lambda node: "10.0.0.1")
    journal.over(ended[:1])
    journal.close()
    book = load(tmp_path / "s")
    assert {job: (kept.body, kept.address) for job, kept in book.results.items()} == {2: (b"body", "10.0.0.1")}
    assert (book.returned, set(book.jobs)) == ({1}, {2, 3})
    assert not load(tmp_path / "s", JobsReturned([2])).results


def test_what_a_recovery_has_written_counts_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s")
    store(journal, 1, 2, 3)
    journal.handed(NODE, [1, 2, 3])
    journal.close()
    other = ProcessId("n2")
    book = load(tmp_path / "s", JobsReturned([1]), JobsHanded(ProcessId(""), [2, 3]), JobsHanded(other, [3]))
    assert set(book.jobs) == {2, 3}
    assert book.handed == {3: other}


def test_old_segments_go_when_all_their_jobs_have_ended(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    journal = Journal(folder, segment_size=1000)
    for number in range(1, 5):
        store(journal, number, args=bytes(600))
    assert segments(folder) == ["jobs-000001", "jobs-000002", "jobs-000003"]
    over(journal, 3, 4)
    assert segments(folder)[0] == "jobs-000001", "what follows holds marks about older jobs only behind them"
    assert set(load(folder).jobs) == {1, 2}
    over(journal, 1, 2)
    assert segments(folder) == ["jobs-000003"]
    journal.close()
    assert load(folder).jobs == {}


def test_ids_that_cannot_be_pickled_are_numbers(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s")
    journal.stored([(Job(1), lambda: 0, b""), (Job(2), 2, b""), (Job(3), (1, "a"), b"")], 0.0)
    journal.close()
    assert [load_id(stored) for stored in load(tmp_path / "s").jobs.values()] == [1, 2, (1, "a")]


class Odd:
    """An id of which nothing can be asked."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    def __repr__(self) -> str:
        raise ValueError("no name")

    def __reduce__(self) -> str:
        raise SystemExit(3)


class Leaving:
    def __reduce__(self) -> tuple[object, ...]:
        return sys.exit, (3,)


def test_no_id_hurts_its_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "s")
    journal.stored([(Job(1), Odd(), b""), (Job(2), "two", b""), (Job(3), Odd(), b""), (Job(4), Leaving(), b"")], 0.0)
    journal.close()
    assert [load_id(stored) for stored in load(tmp_path / "s").jobs.values()] == [1, "two", 3, 4]
    said = capsys.readouterr().err
    assert said.count("the id of job 1, an object of class Odd, cannot be kept") == said.count("cannot be kept") == 1


def test_a_torn_segment_ends_what_is_believed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s")
    store(journal, 1)
    store(journal, 2)
    journal.close()
    path = tmp_path / "s" / "jobs-000001"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "s" / "jobs-000002").write_bytes(b"disp")
    assert set(load(tmp_path / "s").jobs) == {1}


def test_jobs_before_a_damaged_mark_may_have_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "s")
    store(journal, 1, 2)
    journal.handed(NODE, [1])
    path = tmp_path / "s" / "jobs-000001"
    at = path.stat().st_size
    over(journal, 2)
    store(journal, 3)
    journal.close()
    spoiled = bytearray(path.read_bytes())
    spoiled[at + 12] ^= 1
    path.write_bytes(spoiled)
    book = load(tmp_path / "s")
    assert set(book.jobs) == {1, 2, 3}
    assert book.handed == {1: NODE, 2: UNKNOWN_NODE}
    assert "jobs-000001 is damaged: 1 place in it" in capsys.readouterr().err
    assert path.read_bytes() == bytes(spoiled)


def test_a_full_disk_is_said_once_and_what_is_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path / "s")
    store(journal, 1)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        store(journal, 2)
        over(journal, 1)
    store(journal, 3)
    journal.close()
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert set(load(tmp_path / "s").jobs) == {1}


def test_contents_are_kept_by_name(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s")
    (tmp_path / "data").write_bytes(b"abc")
    journal.keep_bytes(b"\x01", b"code")
    journal.keep_file(b"\x02", tmp_path / "data")
    digest = journal.keep_hashed(tmp_path / "data")
    journal.close()
    names = (b"\x01", b"\x02", bytes.fromhex(digest))
    assert [content(tmp_path / "s", name).read_bytes() for name in names] == [b"code", b"abc", b"abc"]
    assert len(os.listdir(tmp_path / "s" / "contents")) == 3
    with pytest.raises(OSError, match="No such file"):
        journal.keep_file(b"\x03", tmp_path / "missing")
