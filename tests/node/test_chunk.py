"""Many calls as one job, as a worker makes them."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dispy.node import calls, chunk


def dumps(value: object) -> bytes:
    return pickle.dumps(value, 5)


def outcome(compute: Callable[..., Any], *columns: list[Any]) -> tuple[BaseException, list[Any], Any, str]:
    with pytest.raises(chunk.CallFailed) as caught:
        chunk.call_each(compute, columns, dumps, lambda: False)
    body, carried, called_with = pickle.loads(caught.value.outcome)
    exception = None if carried is None else pickle.loads(carried)
    return caught.value.error, pickle.loads(body), exception, called_with


def test_calls_take_one_value_of_each_column() -> None:
    assert pickle.loads(chunk.call_each(pow, ([2, 3], [5, 2]), dumps, lambda: False)) == [32, 9]


def test_a_call_that_raises_ends_them_and_those_before_it_keep_their_results() -> None:
    error, values, exception, called_with = outcome(lambda a, b: a // b, [8, 9, 1, 7], [2, 3, 0, 7])
    assert isinstance(error, ZeroDivisionError)
    assert isinstance(exception, ZeroDivisionError)
    assert values == [4, 3]
    assert called_with == "(1, 0)"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_would_end_the_program_is_not_carried_to_it(kind: type[BaseException]) -> None:
    def ending(_: int) -> None:
        raise kind

    error, values, exception, _ = outcome(ending, [1])
    assert isinstance(error, kind)
    assert values == []
    assert exception is None


def test_an_exception_that_cannot_travel_is_told_in_words_only() -> None:
    def locked(_: int) -> None:
        raise ValueError(threading.Lock())

    error, _, exception, _ = outcome(locked, [1])
    assert isinstance(error, ValueError)
    assert exception is None


def test_a_result_that_cannot_travel_fails_its_own_call() -> None:
    error, values, exception, called_with = outcome(lambda n: threading.Lock() if n == 3 else n, [1, 2, 3, 4])
    assert isinstance(error, TypeError)
    assert values == [1, 2]
    assert exception is None
    assert called_with == "(3)"


def test_of_a_result_that_cannot_travel_and_a_later_call_that_raises_the_first_counts() -> None:
    def mixed(number: int) -> object:
        return 1 // number if number < 1 else threading.Lock() if number == 5 else number

    error, values, exception, called_with = outcome(mixed, [4, 5, 6, 0])
    assert isinstance(error, TypeError)
    assert (values, exception, called_with) == ([4], None, "(5)")


def test_stop_iteration_is_a_failure_and_not_the_end() -> None:
    def ending(number: int, more: int = 0) -> int:
        return number if number < 3 else next(iter(()))

    for columns in ([1, 2, 3, 4],), ([1, 2, 3, 4], [0] * 4):
        error, values, exception, _ = outcome(ending, *columns)
        assert "StopIteration" in str(error)
        assert "in ending\n" in calls.user_trace(error, chunk.__file__)
        assert values == [1, 2]
        assert isinstance(exception, RuntimeError)


def test_a_cancelled_job_ends_with_what_interrupted_it() -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chunk.call_each(interrupted, ([1, 2],), dumps, lambda: True)


def test_arguments_are_shown_whatever_they_are() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError

    *_, called_with = outcome(lambda *_: 1 // 0, ["x" * 1000], [Rude()])
    assert len(called_with) < 250
    assert "xxx" in called_with
    assert "Rude" in called_with
