"""How many calls of `map` share a job."""

from __future__ import annotations

import pytest

from dispy.chunking import AHEAD, AHEAD_BYTES, AT_LEAST, BYTES, GROWTH, PARTS, SECONDS, Chunking


def learned(seconds: float, *, total: int | None = None, sent: int = 8, received: int = 8) -> Chunking:
    """After a while of calls that all take so long and are so large."""
    chunking = Chunking(total, None)
    for _ in range(50):
        calls = chunking.next_size(2)
        chunking.learn(calls, calls * seconds, calls * sent, calls * received)
    return chunking


def test_it_begins_with_single_calls_and_grows_by_what_it_has_seen() -> None:
    chunking = Chunking(None, None)
    assert chunking.next_size(2) == 1
    chunking.learn(1, 1e-6, 5, 5)
    assert chunking.next_size(2) == GROWTH
    chunking.learn(GROWTH, GROWTH * 1e-6, 5 * GROWTH, 5 * GROWTH)
    assert chunking.next_size(2) == GROWTH * GROWTH


@pytest.mark.parametrize(
    ("seconds", "expected"), [(1.0, 1), (SECONDS, 1), (SECONDS / 10, 10), (1e-9, BYTES // 8), (0.0, BYTES // 8)]
)
def test_a_chunk_holds_what_its_time_and_its_bytes_allow(seconds: float, expected: int) -> None:
    assert abs(learned(seconds).next_size(2) - expected) <= 1


def test_large_arguments_and_large_results_travel_alone() -> None:
    assert learned(1e-6, sent=1 << 20).next_size(2) == 1
    assert learned(1e-6, received=1 << 20).next_size(2) == 1


def test_chunks_shrink_towards_a_known_end_but_not_below_a_millisecond() -> None:
    chunking = learned(0.001, total=400)
    sizes = []
    left = 400
    while left:
        size = min(chunking.next_size(4), left)
        sizes.append(size)
        chunking.submitted(size)
        left -= size
    assert sum(sizes) == 400
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == -(-400 // (4 * PARTS))
    assert sizes[-1] == 1
    quick = learned(1e-5, total=150)
    assert quick.next_size(4) == pytest.approx(100, abs=1)


def test_a_given_size_is_obeyed() -> None:
    chunking = Chunking(10, 7)
    chunking.learn(7, 100.0, 1 << 30, 1 << 30)
    assert chunking.next_size(1000) == 7


def test_chunks_are_longer_where_there_are_many_cpus() -> None:
    chunking = learned(0.01)
    assert chunking.next_size(4000) > chunking.next_size(2)


def test_room_is_bounded_by_chunks_and_by_bytes() -> None:
    assert Chunking.has_room(2, 2 * AHEAD - 1, 0)
    assert not Chunking.has_room(2, 2 * AHEAD, 0)
    assert Chunking.has_room(2, 2 * AT_LEAST - 1, AHEAD_BYTES)
    assert not Chunking.has_room(2, 2 * AT_LEAST, AHEAD_BYTES)
    assert Chunking.has_room(0, 0, 0)


def test_a_chunk_weighs_its_arguments_and_the_results_to_come() -> None:
    chunking = Chunking(None, None)
    assert chunking.weight(10, 100) == 100
    chunking.learn(10, 1.0, 100, 1000)
    assert chunking.weight(10, 100) == 1100
