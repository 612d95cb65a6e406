"""The pull window by value and by random walk: every byte exactly once, in any order, over any number of breaks."""

from __future__ import annotations

import random

import pytest

from dispy.wire.transfer import LARGE_CHUNK, SMALL_CHUNK, WINDOW_CHUNKS, WINDOW_LIMIT, Download


def test_first_requests_are_small_and_limited() -> None:
    download = Download(10 << 20)
    requests = download.next_requests(0.0)
    assert requests == [(number * SMALL_CHUNK, SMALL_CHUNK) for number in range(WINDOW_CHUNKS)]
    assert download.next_requests(0.0) == []
    assert download.outstanding == WINDOW_CHUNKS * SMALL_CHUNK


def test_nothing_is_asked_of_an_empty_blob() -> None:
    download = Download(0)
    assert download.is_complete
    assert download.next_requests(0.0) == []


def test_small_blob_is_one_request() -> None:
    download = Download(1000)
    assert download.next_requests(0.0) == [(0, 1000)]
    assert download.arrived(0, 1000, 0.1) == 1000
    assert download.is_complete


def test_fast_links_get_large_chunks_and_slow_ones_do_not() -> None:
    for rate, expected in ((2e6, SMALL_CHUNK), (1e9, LARGE_CHUNK)):
        assert _simulate(rate, round_trip=0.001).chunk_size == expected


def test_long_fast_links_get_a_large_window() -> None:
    download = _simulate(100e6, round_trip=0.1, size=200 << 20)
    assert 10_000_000 <= download.window <= WINDOW_LIMIT


def test_slow_links_keep_the_queue_short() -> None:
    download = _simulate(2e6, round_trip=0.001)
    assert download.window <= 5 * SMALL_CHUNK


def test_backlog_of_the_disk_stops_the_requests() -> None:
    download = Download(10 << 20)
    assert download.next_requests(0.0, backlog=WINDOW_CHUNKS * SMALL_CHUNK) == []
    assert len(download.next_requests(0.0, backlog=3 * SMALL_CHUNK)) == 1


def test_what_was_not_asked_for_is_not_kept() -> None:
    download = Download(1 << 20)
    assert download.arrived(0, 10, 0.0) == 0
    download.next_requests(0.0)
    assert download.arrived(5, 10, 0.0) == 0
    assert download.arrived(0, 0, 0.0) == 0
    assert download.arrived(0, SMALL_CHUNK + 99, 0.0) == SMALL_CHUNK
    assert download.arrived(0, SMALL_CHUNK, 0.0) == 0
    assert download.received == SMALL_CHUNK


def test_the_rest_of_a_short_chunk_is_asked_for_again() -> None:
    download = Download(100)
    download.next_requests(0.0)
    assert download.arrived(0, 60, 0.1) == 60
    assert download.next_requests(0.1) == [(60, 40)]


def test_a_break_asks_again_for_what_was_outstanding_only() -> None:
    download = Download(4 * SMALL_CHUNK)
    download.next_requests(0.0)
    download.arrived(SMALL_CHUNK, SMALL_CHUNK, 0.1)
    download.restart()
    assert download.next_requests(0.2) == [
        (0, SMALL_CHUNK),
        (2 * SMALL_CHUNK, SMALL_CHUNK),
        (3 * SMALL_CHUNK, SMALL_CHUNK),
    ]


@pytest.mark.parametrize("seed", range(100))
def test_random_walk_brings_every_byte_once(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.randrange(1, 40 * SMALL_CHUNK)
    download = Download(size)
    covered = bytearray(size)
    flying: list[tuple[int, int]] = []
    now = 0.0
    while not download.is_complete:
        now += chance.random() * 0.01
        requests = download.next_requests(now, chance.choice((0, 0, SMALL_CHUNK)))
        flying.extend(requests)
        assert sum(length for _, length in flying) == download.outstanding
        action = chance.random()
        if action < 0.05:
            download.restart()
            flying.clear()
        elif flying:
            offset, length = flying.pop(chance.randrange(len(flying)))
            length = chance.choice((length, length, chance.randint(1, length)))
            kept = download.arrived(offset, length, now)
            assert kept == length
            assert not any(covered[offset : offset + kept])
            covered[offset : offset + kept] = b"\1" * kept
    assert all(covered)
    assert not flying
    assert download.next_requests(now) == []


def _simulate(rate: float, round_trip: float, size: int = 30 << 20) -> Download:
    """Run most of a download over a link of one rate (bytes per second) and one round trip (seconds)."""
    download = Download(size)
    now, line_free = 0.0, 0.0
    flying: list[tuple[float, int, int]] = []
    while download.received < size // 2:
        for offset, length in download.next_requests(now):
            line_free = max(line_free, now + round_trip) + length / rate
            flying.append((line_free, offset, length))
        now, offset, length = flying.pop(0)
        download.arrived(offset, length, now)
    return download


@pytest.mark.parametrize(("seconds", "size"), [(0.003125, LARGE_CHUNK), (0.0032, SMALL_CHUNK)])
def test_the_first_chunk_shows_how_large_the_next_may_be(seconds: float, size: int) -> None:
    """20 MiB a second move a large chunk in the time in which that must be done."""
    download = Download(64 << 20)
    (first, *_) = download.next_requests(0.0)
    assert download.arrived(*first, seconds) == SMALL_CHUNK
    assert download.chunk_size == size


def test_the_rate_follows_what_comes_later_by_half() -> None:
    download = Download(64 << 20)
    first, second, *_ = download.next_requests(0.0)
    download.arrived(*first, 0.003125)
    download.arrived(*second, 0.01)
    assert download.chunk_size == SMALL_CHUNK
