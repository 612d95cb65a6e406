"""What the entries of a recovery file add up to, by value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.errors import RecoveryError
from dispy.model import ComputationId, Ending, JobDone, ProcessId
from dispy.recovery.book import (
    MAGIC,
    AllReturned,
    Book,
    ClusterLeft,
    ClusterNoted,
    JobsHanded,
    JobsOver,
    JobsReturned,
    JobStored,
    NodeCleared,
    NodeNoted,
    ProgramBegun,
    ResultKept,
    decode,
    encode,
)

BEGUN = ProgramBegun(b"t" * 32, b"k" * 8, "", 9700, "me", "here", 1, "p.py", 1.0)
NODE = NodeNoted(ProcessId("n1"), "node", (("10.0.0.1", 9701),))


def done(job: int, ending: Ending = Ending.FINISHED, attempt: int = 1) -> JobDone:
    return JobDone(job, attempt, ending, 1.0, 2.0, 3, 0, 0, 0)


def kept(job: int, ending: Ending = Ending.FINISHED, attempt: int = 1) -> ResultKept:
    return ResultKept(done(job, ending, attempt), "10.0.0.1", b"abc")


ENTRIES = [BEGUN, ClusterNoted(ComputationId("c"), "f", "function"), NODE, kept(1), JobsReturned([1]), AllReturned()]


def test_entries_come_back_as_they_were_written() -> None:
    data = MAGIC + encode(ENTRIES)
    assert decode(data) == (ENTRIES, len(data), [])


@given(st.integers(min_value=len(MAGIC)))
def test_a_file_that_ends_anywhere_holds_the_entries_before(cut: int) -> None:
    data = MAGIC + encode(ENTRIES)
    cut = len(MAGIC) + cut % (len(data) - len(MAGIC))
    entries, size, gaps = decode(data[:cut])
    assert not gaps
    assert entries == ENTRIES[: len(entries)]
    assert MAGIC + encode(entries) == data[:size]


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_spoiled_byte_costs_one_entry(at: int, change: int) -> None:
    data = bytearray(MAGIC + encode(ENTRIES))
    at = len(MAGIC) + at % (len(data) - len(MAGIC))
    data[at] ^= change
    entries, end, gaps = decode(bytes(data))
    assert len(entries) == len(ENTRIES) - 1
    lost = next((number for number, entry in enumerate(entries) if entry != ENTRIES[number]), len(entries))
    assert entries == ENTRIES[:lost] + ENTRIES[lost + 1 :]
    assert gaps == [lost] or (lost == len(entries) and end < len(data)), "only at its end it can look torn"


def test_what_a_file_system_left_empty_is_torn_or_a_gap() -> None:
    data = MAGIC + encode(ENTRIES[:2])
    assert decode(data + bytes(4096)) == (ENTRIES[:2], len(data), [])
    again = data + bytes(4096) + encode(ENTRIES[2:])
    assert decode(again) == (ENTRIES, len(again), [2])


@pytest.mark.parametrize("data", [b"", b"dispy recov", b"\x89PNG", b"dispy recovery 2\n"])
def test_what_is_no_recovery_file_is_refused(data: bytes) -> None:
    with pytest.raises(RecoveryError, match="not a recovery file"):
        decode(data)


def test_a_file_without_its_first_entry_is_refused() -> None:
    with pytest.raises(RecoveryError, match="which program"):
        Book([NODE])
    with pytest.raises(RecoveryError, match="which program"):
        Book([])


def test_results_wait_until_they_are_returned() -> None:
    book = Book([BEGUN, NODE, kept(1), kept(2)])
    assert set(book.results) == {1, 2}
    book.add(JobsReturned([1]))
    assert set(book.results) == {2}
    book.add(kept(1))
    assert set(book.results) == {2}, "what was returned does not come again"
    assert book.has_result(1)
    assert not book.has_result(3)


def test_of_several_attempts_the_first_that_finished_counts() -> None:
    book = Book([BEGUN, kept(1, Ending.DIED), kept(1, Ending.RAISED, 2)])
    assert book.results[1].done.attempt == 2
    book.add(kept(1, Ending.FINISHED, 3))
    book.add(kept(1, Ending.FINISHED, 4))
    book.add(kept(1, Ending.DIED, 5))
    assert book.results[1].done.attempt == 3


def test_nodes_are_asked_until_they_are_cleared() -> None:
    book = Book([BEGUN, NODE])
    assert set(book.nodes) == {"n1"}
    book.add(NodeCleared(ProcessId("n1")))
    assert not book.nodes


def test_a_book_is_done_when_all_is_returned() -> None:
    book = Book([BEGUN])
    assert not book.is_done
    book.add(AllReturned())
    assert book.is_done


def test_jobs_of_durable_clusters_wait_until_they_are_over() -> None:
    cluster = ComputationId("c")
    book = Book([BEGUN, *(JobStored(job, cluster, b"", b"args") for job in (1, 2, 3))])
    book.add(JobsHanded(ProcessId("n1"), [1, 2]))
    book.add(JobsOver([1]))
    book.add(JobsReturned([3]))
    assert set(book.jobs) == {2}
    assert book.handed == {2: "n1"}


def test_output_is_bytes_where_only_programs_ran() -> None:
    program = ClusterNoted(ComputationId("p"), "prog", "program")
    function = ClusterNoted(ComputationId("f"), "func", "function")
    assert not Book([BEGUN, program]).is_text(1)
    both = Book([BEGUN, program, function])
    assert both.is_text(1)
    both.add(JobStored(2, program.id, b"", b""))
    assert not both.is_text(2)


def test_of_a_cluster_that_was_left_to_its_scheduler_only_what_the_program_lacked_is_wanted() -> None:
    killed, left, older = (ComputationId(name) for name in ("killed", "left", "older"))
    book = Book([BEGUN, JobsReturned([1]), ClusterLeft(left, (1, 5)), ClusterLeft(older)])
    wanted = {id: [job for job in (1, 4, 5) if book.is_wanted(id, job)] for id in (killed, left, older)}
    assert wanted == {killed: [4, 5], left: [5], older: [4, 5]}
