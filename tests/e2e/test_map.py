"""`cluster.map` on a real node: order, back-pressure, failures in their place, and how it ends."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dispy
from dispy.chunking import AHEAD
from dispy.errors import ClosedError, JobFailed, SettingsError, ShippingError

LocalCluster = Callable[..., dispy.JobCluster]


def square(number: int) -> int:
    return number * number


def test_results_come_in_order_however_calls_are_divided(local: LocalCluster) -> None:
    cluster = local(square)
    expected = [number * number for number in range(20_000)]
    assert list(cluster.map(range(20_000))) == expected
    assert list(cluster.map(iter(range(20_000)))) == expected
    assert list(cluster.map(range(100), chunk_size=7)) == expected[:100]
    assert sorted(cluster.map(range(20_000), ordered=False)) == expected
    assert list(cluster.map([])) == []
    assert cluster.pending == 0


def test_several_iterables_end_with_the_shortest(local: LocalCluster) -> None:
    cluster = local(lambda a, b, c=0: (a, b, c))
    assert list(cluster.map("ab", [1, 2, 3])) == [("a", 1, 0), ("b", 2, 0)]
    assert list(cluster.map(itertools.count(), "xy", itertools.repeat(5))) == [(0, "x", 5), (1, "y", 5)]


def test_short_calls_share_jobs_and_long_ones_do_not(local: LocalCluster) -> None:
    counts = {}
    for seconds in (0.0, 0.06):

        def nap(_: int, seconds: float = seconds) -> int:
            time.sleep(seconds)
            return os.getpid()

        ended: list[Any] = []
        cluster = local(nap, job_status=ended.append)
        calls = 20 if seconds else 5000
        assert len(list(cluster.map(range(calls)))) == calls
        cluster.close()
        counts[seconds] = len(ended)
    assert counts[0.06] == 20
    assert counts[0.0] < 2500


def test_an_endless_iterable_is_read_some_chunks_ahead(local: LocalCluster, wait_until: Callable[..., Any]) -> None:
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    cluster = local(square)
    results = cluster.map(numbers(), chunk_size=10)
    assert list(itertools.islice(results, 1000)) == [number * number for number in range(1, 1001)]
    slots = sum(node.cpus for node in cluster.status().nodes)
    assert read <= 1000 + 10 * AHEAD * slots
    results.close()
    wait_until(lambda: cluster.pending == 0)
    assert list(results) == []


def test_an_exception_is_raised_in_its_place_and_ends_the_rest(
    local: LocalCluster, wait_until: Callable[..., Any]
) -> None:
    class Odd(Exception):
        pass

    def picky(number: int) -> int:
        if number == 137:
            raise Odd(f"{number} is odd")
        return number

    cluster = local(picky, depends=[Odd])
    for size in (1, 50, None):
        got: list[int] = []
        with pytest.raises(Exception, match="137 is odd") as caught:
            got.extend(cluster.map(range(100_000), chunk_size=size))
        assert got == list(range(137))
        [note] = caught.value.__notes__
        assert "call 137 of map" in note
        assert re.search(r"\(137\), on node .+ \(127\.0\.0\.1\)", note)
        assert "picky" in note
        wait_until(lambda: cluster.pending == 0)


def test_what_cannot_be_raised_again_is_a_job_that_failed(local: LocalCluster) -> None:
    class Wanting(Exception):
        def __init__(self, number: int, more: str) -> None:
            super().__init__(number)

    def dying(number: int) -> Any:
        if number == 305:
            raise Wanting(number, "more")
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 105:
            sys.exit("no more")
        return threading.Lock() if number == 205 else number

    cluster = local(dying)
    with pytest.raises(JobFailed, match=r"(?s)one of the calls 3 to 5 of map .*SIGKILL") as caught:
        list(cluster.map(range(12), chunk_size=3))
    assert isinstance(caught.value.job, dispy.DispyJob)
    assert caught.value.job.status == dispy.DispyJob.Terminated
    with pytest.raises(JobFailed, match=r"(?s)call 5 of map .*no more"):
        list(cluster.map(range(100, 112), chunk_size=3))
    with pytest.raises(JobFailed, match=r"(?s)call 5 of map .*made here again, TypeError: .*'more'.*There:.*dying"):
        list(cluster.map(range(300, 312), chunk_size=3))
    with pytest.raises(JobFailed, match=r"(?s)call 5 of map .*cannot be pickled"):
        list(cluster.map(range(200, 212), chunk_size=3))


def test_what_goes_wrong_on_this_side_is_raised_behind_the_results_before_it(local: LocalCluster) -> None:
    cluster = local(lambda value: value)

    def broken() -> Iterator[int]:
        yield from range(10)
        raise ValueError("no more numbers")

    for arguments, error, text in (
        (broken(), ValueError, "no more numbers"),
        ([*range(10), threading.Lock(), 11], ShippingError, "cannot be pickled"),
    ):
        got: list[int] = []
        with pytest.raises(error, match=text):
            got.extend(cluster.map(arguments, chunk_size=4))
        assert got == list(range(10))


def test_what_calls_print_is_printed_when_their_results_are_taken(
    local: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk(number: int) -> int:
        print("out", number)
        print("err", number, file=sys.stderr)
        return number

    assert list(local(talk).map(range(100), chunk_size=9)) == list(range(100))
    captured = capsys.readouterr()
    assert captured.out == "".join(f"out {number}\n" for number in range(100))
    assert "".join(f"err {number}\n" for number in range(90, 99)) in captured.err


def test_a_forgotten_iterator_cancels_its_calls(local: LocalCluster, wait_until: Callable[..., Any]) -> None:
    cluster = local(time.sleep)
    for _ in cluster.map(itertools.chain([0.0], itertools.repeat(600.0))):
        break
    wait_until(lambda: cluster.pending == 0)
    untouched = cluster.map(itertools.repeat(600.0))
    assert cluster.pending
    del untouched
    wait_until(lambda: cluster.pending == 0)


def test_what_map_does_not_take_is_said(local: LocalCluster) -> None:
    cluster = local(square)
    for options, text in (
        ({"chunk_size": 0}, "chunk_size"),
        ({"chunk_size": True}, "chunk_size"),
        ({"timeout": 3}, "timeout is no option"),
        ({"dispy_timeout": 3, "chunk_size": 5}, "each call is a job"),
        ({"dispy_speed": 3}, "dispy_speed"),
    ):
        with pytest.raises(SettingsError, match=text):
            cluster.map([1], **options)
    with pytest.raises(SettingsError, match="not iterable"):
        cluster.map(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^map\(\) missing 1 required"):
        cluster.map()  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match="runs the program true"):
        local("/bin/true").map([1])
    results = cluster.map(itertools.count(), chunk_size=1)
    assert next(results) == 0
    cluster.close()
    with pytest.raises(ClosedError) as caught:
        list(results)
    assert "before the cluster is closed" in caught.value.__notes__[0]
    with pytest.raises(ClosedError):
        cluster.map([1])


def test_options_that_are_about_one_call_make_each_a_job(local: LocalCluster) -> None:
    def slow(number: int) -> int:
        time.sleep(600 if number == 2 else 0)
        return number

    cluster = local(slow)
    with pytest.raises(JobFailed, match=r"call 2 of map .*0\.2 s") as caught:
        list(cluster.map(range(5), dispy_timeout=0.2))
    assert caught.value.job.status == dispy.DispyJob.Terminated
    assert sorted(set(local(lambda _: os.getpid(), isolate=True).map(range(3)))) != []


def test_a_shared_scheduler_maps_as_well(
    dispyscheduler: Callable[..., Any], dispynode: Callable[..., Any], free_base_port: int
) -> None:
    dispynode("--cpus", "2")
    dispyscheduler("--node", "127.0.0.1")
    cluster = dispy.SharedJobCluster(square, dispy_port=free_base_port)
    try:
        assert list(cluster.map(range(3000))) == [number * number for number in range(3000)]
    finally:
        cluster.shutdown()


def test_large_values_of_many_calls(local: LocalCluster) -> None:
    def both(array: Any, text: bytes) -> Any:
        array[0] = len(text) % 256
        return array

    arrays = [np.full(200_000, number, np.uint8) for number in range(6)]
    made = list(local(both).map(arrays, [b"x" * number * 50_000 for number in range(6)], chunk_size=3))
    for number, array in enumerate(made):
        assert array[0] == number * 50_000 % 256
        assert int(array.sum()) == number * 199_999 + int(array[0])
        array[1] = 3
    assert [int(array[0]) for array in arrays] == list(range(6))
