"""The books of one client's cluster, by value: batches that come twice or leave one out, ends and their windows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.errors import RemoteProtocolError
from dispy.model import JobState
from dispy.sharing.books import BATCH_ENDS, BATCH_SIZE, END_SIZE, WINDOW, BatchBook, End, EndsBook
from dispy.wire.sharing import JobOver


def end(number: int, size: int = 0) -> End:
    return End(number, JobOver(number, JobState.Finished), bytes(size), size)


def numbers(batch: tuple[int, list[End]] | None) -> list[int]:
    assert batch is not None
    return [each.number for each in batch[1]]


def drained(book: EndsBook) -> list[tuple[int, list[int]]]:
    """All that may be sent now."""
    batches = []
    while (batch := book.next_batch()) is not None:
        batches.append((batch[0], numbers(batch)))
    return batches


def test_a_batch_is_taken_once_and_none_is_left_out() -> None:
    book = BatchBook()
    assert [book.take(1), book.take(1), book.take(2), book.take(1)] == [True, False, True, False]
    with pytest.raises(RemoteProtocolError, match="batch 4 of jobs came after batch 2"):
        book.take(4)
    assert book.take(3)


def test_after_a_restart_what_was_stored_is_not_taken_again() -> None:
    book = BatchBook(stored=5, highest=70)
    assert not book.take(5)
    assert book.take(6)
    assert [book.use(70), book.use(71), book.use(71), book.use(75), book.use(72)] == [False, True, False, True, False]


def test_ends_come_in_their_order_and_stay_until_they_are_acknowledged() -> None:
    book = EndsBook()
    for number in (3, 1, 2):
        book.add(end(number))
    assert drained(book) == [(1, [3, 1, 2])]
    assert len(book) == 3
    book.add(end(4))
    assert drained(book) == [(2, [4])]
    assert [each.number for each in book.acknowledge(1)] == [3, 1, 2]
    assert book.acknowledge(1) == []
    assert [each.number for each in book.acknowledge(9)] == [4]
    assert len(book) == 0


def test_another_link_hears_all_again_counted_from_one() -> None:
    book = EndsBook()
    for number in (1, 2, 3):
        book.add(end(number))
        drained(book)
    book.acknowledge(1)
    book.add(end(4))
    assert [each.number for each in book.attach()] == [2, 3]
    assert drained(book) == [(1, [2, 3, 4])]


def test_a_batch_has_bounds() -> None:
    book = EndsBook()
    for number in range(BATCH_ENDS + 1):
        book.add(end(number))
    assert [len(each) for _, each in drained(book)] == [BATCH_ENDS, 1]
    for number in range(4):
        book.add(end(number, BATCH_SIZE // 2))
    assert [each for _, each in drained(book)] == [[0, 1], [2, 3]]


def test_a_client_that_acknowledges_nothing_is_told_no_more_than_a_window() -> None:
    book = EndsBook()
    for number in range(10 * WINDOW // BATCH_SIZE):
        book.add(end(number, BATCH_SIZE))
    sent = drained(book)
    assert len(sent) * (BATCH_SIZE + END_SIZE) <= WINDOW + BATCH_SIZE + END_SIZE
    book.acknowledge(sent[0][0])
    assert len(drained(book)) == 1


@given(st.lists(st.one_of(st.just("add"), st.just("send"), st.just("attach"), st.integers(1, 8))))
def test_whatever_happens_no_end_is_lost_or_doubled(steps: list[str | int]) -> None:
    book, made, taken, highest = EndsBook(), 0, [], 0
    for step in steps:
        if step == "add":
            made += 1
            book.add(end(made))
        elif step == "send":
            batch = book.next_batch()
            highest = highest if batch is None else batch[0]
        elif step == "attach":
            book.attach()
            highest = 0
        elif isinstance(step, int) and step <= highest:
            taken += [each.number for each in book.acknowledge(step)]
        assert taken == list(range(1, len(taken) + 1))
        assert len(book) == made - len(taken)
        assert [each.number for each in book.unacknowledged()] == list(range(len(taken) + 1, made + 1))
