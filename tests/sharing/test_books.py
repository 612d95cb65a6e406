"""The books of one client's cluster, by value: batches that come twice or leave one out, ends and their windows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.errors import RemoteProtocolError
from dispy.model import JobState
from dispy.sharing import books
from dispy.sharing.books import BATCH_ENDS, BATCH_SIZE, END_SIZE, WAITING_LIMIT, WINDOW, BatchBook, End, EndsBook
from dispy.wire.pool import JobOver


def end(number: int, size: int = 0, *, is_held: bool = False) -> End:
    return End(number, JobOver(number, JobState.Finished), bytes(size), size, is_held=is_held)


def numbers(batch: tuple[int, list[End]] | None) -> list[int]:
    assert batch is not None
    return [each.number for each in batch[1]]


class Disk:
    """A book whose ends are on the disk at once, and its client."""

    def __init__(self, *, attached: bool = True) -> None:
        self.book = EndsBook()
        self.ends: dict[int, End] = {}
        if attached:
            self.book.attach()

    def add(self, end: End) -> None:
        self.ends[end.number] = end
        self.book.add(end)
        self.book.stored(1)

    def read(self, most: int = 1 << 30) -> bool:
        """Whether something was to be read."""
        asked = self.book.next_unread()
        if asked is not None:
            self.book.read(asked, [self.ends[number] for number in asked[:most]])
        return asked is not None

    def drained(self) -> list[tuple[int, list[int]]]:
        """All that may be sent now."""
        batches = []
        while True:
            while (batch := self.book.next_batch()) is not None:
                batches.append((batch[0], numbers(batch)))
            if not self.read():
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
    disk = Disk()
    for number in (3, 1, 2):
        disk.add(end(number))
    assert disk.drained() == [(1, [3, 1, 2])]
    assert len(disk.book) == 3
    disk.add(end(4))
    assert disk.drained() == [(2, [4])]
    assert [each.number for each in disk.book.acknowledge(1)] == [3, 1, 2]
    assert disk.book.acknowledge(1) == []
    assert [each.number for each in disk.book.acknowledge(9)] == [4]
    assert len(disk.book) == 0


def test_what_is_not_on_the_disk_is_not_told() -> None:
    book = EndsBook()
    book.attach()
    for number in (1, 2, 3):
        book.add(end(number))
    book.stored(2)
    assert numbers(book.next_batch()) == [1, 2]
    assert (book.next_batch(), book.fresh, len(book)) == (None, 1, 3)


def test_what_its_node_holds_is_told_before_it_is_on_the_disk() -> None:
    book = EndsBook()
    book.attach()
    for number in (1, 2):
        book.add(end(number, is_held=True))
    assert numbers(book.next_batch()) == [1, 2]
    assert [each.number for each in book.acknowledge(1)] == [1, 2]
    assert (book.fresh, len(book)) == (2, 0)
    book.add(end(3))
    book.add(end(4, is_held=True))
    assert book.next_batch() is None, "they are told in their order"
    book.stored(4)
    assert (numbers(book.next_batch()), book.fresh) == ([3, 4], 0)


def test_what_was_told_early_is_told_again_on_another_link_and_is_read_once_it_is_on_the_disk() -> None:
    book = EndsBook()
    book.attach()
    for number in (1, 2, 3):
        book.add(end(number, is_held=True))
        book.next_batch()
    book.acknowledge(1)
    book.detach()
    assert (len(book), book.kept, book.fresh) == (2, 0, 3)
    book.attach()
    assert (book.next_batch(), book.next_unread()) == (None, None)
    book.stored(3)
    assert numbers(book.next_batch()) == [2, 3]
    book.detach()
    book.attach()
    assert book.next_unread() == [2, 3]


def test_another_link_hears_all_again_counted_from_one() -> None:
    disk = Disk()
    for number in (1, 2, 3):
        disk.add(end(number))
        disk.drained()
    disk.book.acknowledge(1)
    disk.add(end(4))
    assert [each.number for each in disk.book.attach()] == [2, 3]
    assert disk.drained() == [(1, [2, 3, 4])]


def test_what_was_read_for_a_link_that_is_gone_is_read_again() -> None:
    disk = Disk(attached=False)
    for number in (1, 2, 3):
        disk.add(end(number))
    assert disk.book.next_unread() is None
    disk.book.attach()
    asked = disk.book.next_unread()
    assert asked == [1, 2, 3]
    assert disk.book.next_unread() is None
    disk.book.attach()
    disk.book.read(asked, [disk.ends[1]])
    assert disk.book.next_batch() is None
    assert disk.drained() == [(1, [1, 2, 3])]


def test_a_batch_has_bounds() -> None:
    disk = Disk()
    for number in range(BATCH_ENDS + 1):
        disk.add(end(number))
    assert [len(each) for _, each in disk.drained()] == [BATCH_ENDS, 1]
    for number in range(4):
        disk.add(end(number, BATCH_SIZE // 2))
    assert [each for _, each in disk.drained()] == [[0, 1], [2, 3]]


def test_a_client_that_acknowledges_nothing_is_told_no_more_than_a_window() -> None:
    disk = Disk()
    for number in range(10 * WINDOW // BATCH_SIZE):
        disk.add(end(number, BATCH_SIZE))
    sent = disk.drained()
    assert len(sent) * (BATCH_SIZE + END_SIZE) <= WINDOW + BATCH_SIZE + END_SIZE
    disk.book.acknowledge(sent[0][0])
    assert len(disk.drained()) == 1


@pytest.mark.parametrize("attached", [False, True])
def test_no_more_than_a_bound_is_kept_in_memory(attached: bool) -> None:
    """Ten times as much as may be kept for a client that does not acknowledge, or is away."""
    disk = Disk(attached=attached)
    size = BATCH_SIZE // 16
    count = 10 * WAITING_LIMIT // size
    for number in range(count):
        disk.add(end(number, size))
        assert disk.book.kept <= (WAITING_LIMIT + size + END_SIZE if attached else 0)
    disk.book.detach()
    assert (disk.book.kept, len(disk.book)) == (0, count)
    disk.book.attach()
    taken: list[int] = []
    while sent := disk.drained():
        taken += [each.number for each in disk.book.acknowledge(sent[-1][0])]
    assert taken == list(range(count))


@given(
    st.lists(
        st.one_of(st.sampled_from(["add", "hold", "store", "send", "read", "attach", "detach"]), st.integers(1, 8))
    ),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_whatever_happens_no_end_is_lost_or_doubled(steps: list[str | int], limit: int, most: int) -> None:
    made, taken, highest = 0, [], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(books, "WAITING_LIMIT", limit * END_SIZE)
        disk = Disk(attached=False)
        book = disk.book
        for step in steps:
            if step in ("add", "hold"):
                made += 1
                disk.ends[made] = end(made)
                book.add(end(made, is_held=step == "hold"))
            elif step == "store":
                book.stored((book.fresh + 1) // 2)
            elif step == "send":
                batch = book.next_batch()
                highest = highest if batch is None else batch[0]
            elif step == "read":
                disk.read(most)
            elif step in ("attach", "detach"):
                getattr(book, step)()
                highest = 0
            elif isinstance(step, int) and step <= highest:
                taken += [each.number for each in book.acknowledge(step)]
            assert taken == list(range(1, len(taken) + 1))
            assert len(book) == made - len(taken)
        book.stored(book.fresh)
        book.attach()
        while sent := disk.drained():
            taken += [each.number for each in book.acknowledge(sent[-1][0])]
    assert taken == list(range(1, made + 1))
