"""The pull window by value and by random walk: every byte exactly once, in any order, over any number of breaks."""

from __future__ import annotations

import random
from itertools import chain

import pytest

from dispy.wire.transfer import (
    LARGE_CHUNK,
    ORIGIN,
    PEER_PATIENCE,
    PIECE,
    SMALL_CHUNK,
    STALL_TIMEOUT,
    WINDOW_CHUNKS,
    WINDOW_LIMIT,
    Download,
)


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


def bring(download: Download, now: float = 0.0, source: str = ORIGIN, limit: int = 1 << 30) -> list[int]:
    """Let a source bring and write what it is asked for now; the pieces that are whole."""
    pieces = []
    asked = download.next_requests(now, 0, source)
    while asked and limit > 0:
        for offset, size in asked:
            assert download.arrived(offset, size, now, source) == size
            limit -= size
            pieces.append(download.written(offset, size))
        asked = download.next_requests(now, 0, source) if limit > 0 else []
    return [piece for piece in pieces if piece is not None]


def test_no_request_crosses_a_piece() -> None:
    download = _simulate(1e9, round_trip=0.001)
    for offset, size in download.next_requests(1.0):
        assert offset // PIECE == (offset + size - 1) // PIECE


def test_the_origin_is_asked_for_our_share_only() -> None:
    download = Download(10 * PIECE)
    download.take_share(1, 3)
    assert bring(download) == [4, 7, 1]  # from a third of the way on
    assert download.held() == [(1, 1), (4, 1), (7, 1)]
    assert not download.is_complete
    download.take_share(1, 2)
    assert bring(download) == [3, 5, 9]
    download.take_share(0, 1)
    assert bring(download) == [6, 8, 0, 2]
    assert download.is_complete
    assert download.held() == [(0, 10)]


def test_what_others_have_is_asked_of_them() -> None:
    download = Download(6 * PIECE)
    download.take_share(0, 1)
    download.add_source("a")
    download.source_has("a", [(2, 2), (5, 100), (-7, 3)])
    assert bring(download) == [0, 1, 4]
    assert bring(download, source="a") == [2, 3, 5]
    assert download.is_complete
    assert download.has_shared


def test_those_who_get_all_from_others_begin_at_different_pieces() -> None:
    firsts = []
    for share in range(4):
        download = Download(8 * PIECE)
        download.take_share(share, 4)
        download.add_source("a")
        download.source_has("a", [(0, 8)])
        firsts.append(download.next_requests(0.0, 0, "a")[0][0] // PIECE)
    assert firsts == [0, 2, 4, 6]


def test_what_a_dropped_source_owes_is_asked_of_the_others() -> None:
    download = Download(4 * PIECE)
    download.take_share(0, 1)
    for source in ("a", "b"):
        download.add_source(source)
        download.source_has(source, [(1, 2)])
    asked = download.next_requests(0.0, 0, "a")
    assert download.arrived(*asked[0], 0.1, "a") == asked[0][1]
    download.drop_source("a")
    assert download.arrived(*asked[1], 0.1, "a") == 0
    download.written(*asked[0])
    assert bring(download, 0.2, "b") == [1, 2]
    assert bring(download, 0.2) == [0, 3]
    assert download.is_complete
    assert download.sources == [ORIGIN, "b"]


def test_a_silent_source_is_named_and_one_that_owes_nothing_is_not() -> None:
    download = Download(40 * PIECE)
    download.take_share(0, 1)
    for source in ("owes", "empty"):
        download.add_source(source)
    download.source_has("owes", [(1, 2)])
    download.next_requests(10.0, 0, "owes")
    download.next_requests(10.0, 0, "empty")
    assert download.look(10.0 + PEER_PATIENCE) == []
    assert download.look(10.1 + PEER_PATIENCE) == ["owes"]


def test_where_nothing_moves_the_origin_gives_more_and_more_of_others_shares() -> None:
    download = Download(64 * PIECE)
    download.take_share(1, 2)
    taken = bring(download)
    assert sorted(taken) == list(range(1, 64, 2))
    now, stalls = 0.0, []
    while not download.is_complete:
        now += STALL_TIMEOUT + 0.1
        download.look(now)
        stalls.append(bring(download, now))
    assert [len(each) for each in stalls] == [1, 2, 4, 8, 16, 1]
    assert stalls[0] == [32]  # everybody begins elsewhere
    assert sorted(chain(*stalls)) == list(range(0, 64, 2))


def test_who_can_reach_no_other_soon_takes_everything_from_the_origin() -> None:
    """Nodes behind an address that is not theirs, or whose links are refused: each is told of others in vain."""
    download = Download(64 * PIECE)
    download.take_share(0, 4)
    assert len(bring(download)) == 16
    for _ in range(3):
        download.expect_less()
    now, stalls = 0.0, 0
    while not download.is_complete:
        now, stalls = now + STALL_TIMEOUT + 0.1, stalls + 1
        assert download.look(now) == []
        bring(download, now)
    assert stalls == 1
    assert download.from_others == 0


@pytest.mark.parametrize(("rate", "is_given_up"), [(10e3, True), (30e3, False)])
def test_a_source_is_given_up_that_brings_less_than_a_small_chunk_in_its_patience(
    rate: float, is_given_up: bool
) -> None:
    download = Download(40 * PIECE)
    download.take_share(0, 2)
    download.add_source("slow")
    download.source_has("slow", [(1, 2)])
    now, given_up = 0.0, False
    pending: list[int] = []
    for _ in range(20):
        pending += [offset for offset, _ in download.next_requests(now, 0, "slow")]
        arrival = now + SMALL_CHUNK / rate
        while now + 0.5 < arrival:
            now += 0.5
            given_up = given_up or "slow" in download.look(now)
        now = arrival
        assert download.arrived(pending.pop(0), SMALL_CHUNK, now, "slow") == SMALL_CHUNK
    assert given_up == is_given_up


def test_where_all_are_slow_nothing_is_taken_for_a_stall() -> None:
    download = Download(64 * PIECE)
    download.take_share(0, 2)
    for second in range(4):  # one piece a second
        bring(download, float(second), limit=1)
        while download.next_requests(float(second)):
            pass
    for offset in range(0, 64 * PIECE, SMALL_CHUNK):
        download.arrived(offset, SMALL_CHUNK, 4.0)
    before = download.received
    download.look(4.0 + 2 * STALL_TIMEOUT)
    assert download.received == before


def test_what_came_of_others_is_fetched_again_when_it_is_wrong() -> None:
    download = Download(4 * PIECE - 5)
    download.take_share(0, 2)
    download.add_source("a")
    download.source_has("a", [(1, 1), (3, 1)])
    assert bring(download) == [0, 2]
    assert bring(download, source="a") == [1, 3]
    assert download.is_complete
    download.distrust()
    assert download.sources == [ORIGIN]
    assert not download.has_shared
    assert download.received == 2 * PIECE
    assert bring(download) == [1, 3]
    assert download.is_complete


@pytest.mark.parametrize("seed", range(60))
def test_random_walk_with_others(seed: int) -> None:
    """Sources come, have, bring, break and go; every byte is written once, by whoever it came from."""
    chance = random.Random(seed)
    size = chance.randrange(1, 12 * PIECE)
    count = -(-size // PIECE)
    download = Download(size)
    covered = bytearray(size)
    flying: dict[str, list[tuple[int, int]]] = {ORIGIN: []}
    now = 0.0
    while not download.is_complete:
        now += chance.random()
        for source in download.sources:
            flying[source] += download.next_requests(now, 0, source)
        action, source = chance.random(), chance.choice(download.sources)
        if action < 0.02:
            download.restart()
            flying[ORIGIN].clear()
        elif action < 0.08:
            name = chance.choice("abc")
            download.add_source(name)
            flying.setdefault(name, [])
            download.source_has(name, [(chance.randrange(count), chance.randrange(1, 5))])
        elif action < 0.11 and source != ORIGIN:
            download.drop_source(source)
            flying.pop(source)
        elif action < 0.14:
            shares = chance.randrange(1, 4)
            download.take_share(chance.randrange(shares), shares)
        elif action < 0.3:
            for silent in download.look(now):
                download.drop_source(silent)
                flying.pop(silent)
        elif flying[source]:
            offset, length = flying[source].pop(chance.randrange(len(flying[source])))
            length = chance.choice((length, length, chance.randint(1, length)))
            assert download.arrived(offset, length, now, source) == length
            download.written(offset, length)
            assert not any(covered[offset : offset + length])
            covered[offset : offset + length] = b"\1" * length
    assert all(covered)
    assert download.held() == [(0, count)]
