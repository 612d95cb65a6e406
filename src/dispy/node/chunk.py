"""Many calls as one job: what `map` of a cluster sends. Standard library only.

What is pickled as the arguments of such a job is the pair `(columns, None)`: one list of values for each parameter. Its
result is the list of what the calls returned. When one of them fails, the job fails as if it had been that call alone,
and brings an outcome besides its error text: the pickled triple `(values of the calls before it as a pickle, the
exception as a pickle or None, its arguments as text)`.
"""

from __future__ import annotations

import pickle
import reprlib
from collections.abc import Callable, Sequence
from typing import Final

from dispy.buffers import Readable, joined

_TEXT_SIZE: Final = 80
"""Characters of an argument in the text about a failed call."""

Dumps = Callable[[object], bytes | list[Readable]]


class CallFailed(Exception):
    """One of several calls raised, or what it returned cannot travel."""

    def __init__(self, error: BaseException, outcome: bytes) -> None:
        super().__init__(error, outcome)
        self.error = error
        """Why."""
        self.outcome = outcome
        """What the job brings in spite of that."""


def call_each(
    compute: Callable[..., object],
    columns: Sequence[Sequence[object]],
    dumps: Dumps,
    is_cancelled: Callable[[], bool],
) -> bytes | list[Readable]:
    """Call the function with the first value of each column, then with the second ones, and so on.

    Args:
        compute: the function.
        columns: all of one length.
        dumps: pickles what a job gives back, or raises a sentence that names what cannot travel.
        is_cancelled: whether the job is to end.

    Returns:
        What the calls returned, pickled as one list (in parts when it is large).

    Raises:
        CallFailed: one of them failed; those behind it were not made.
        BaseException: what ended them when the job is cancelled.
    """
    values: list[object] = []
    failure: BaseException | None = None
    carried = None
    append = values.append
    try:
        if len(columns) == 1:
            for value in columns[0]:
                append(compute(value))
        else:
            for args in zip(*columns, strict=True):
                append(compute(*args))
    except BaseException as error:
        if is_cancelled():
            raise
        failure = _raisable(error)
        carried = _dumps_exception(failure, dumps)
    try:
        body = dumps(values)
    except Exception as error:
        values, failure = _up_to_culprit(values, error, dumps)
        body, carried = dumps(values), None
    if failure is None:
        return body
    called_with = _as_text([column[len(values)] for column in columns])
    raise CallFailed(failure, pickle.dumps((joined(body), carried, called_with), 5)) from None


def _raisable(error: BaseException) -> BaseException:
    """What can be raised in the iterator of the results without being taken for its end."""
    if not isinstance(error, StopIteration):
        return error
    return RuntimeError("the function raised StopIteration").with_traceback(error.__traceback__)


def _up_to_culprit(values: list[object], refusal: Exception, dumps: Dumps) -> tuple[list[object], Exception]:
    """The values before the first that cannot travel, and the sentence about that one."""
    for number, value in enumerate(values):
        try:
            dumps(value)
        except Exception as error:
            return values[:number], error
    return [], refusal


def _dumps_exception(error: BaseException, dumps: Dumps) -> bytes | None:
    """An exception that the program can raise again; none that would end it."""
    if not isinstance(error, Exception):
        return None
    try:
        return joined(dumps(error))
    except Exception:
        return None


def _as_text(arguments: list[object]) -> str:
    shown = reprlib.Repr()
    shown.maxother = shown.maxstring = shown.maxlong = _TEXT_SIZE
    return f"({', '.join(map(shown.repr, arguments))})"
