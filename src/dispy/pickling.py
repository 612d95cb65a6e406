"""How computations, arguments and what jobs bring become bytes.

What lives in the client's `__main__` travels by value and meets again in the one `__main__` of the workers
(`dispy.namespace` reads what is written here). How code is written is in `dispy.codestream`.
"""

from __future__ import annotations

import itertools
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct, field

from dispy import buffers, namespace, pages
from dispy.codenames import CACHED, MAIN, is_code, is_defined_as, names_of
from dispy.codestream import Bounded, CodePickler, Stream, none_travels, written
from dispy.errors import ShippingError

INIT: Final = "init_depends"
"""A function of this name among the dependencies runs before anything else is loaded."""

_MAIN_BYTES: Final = MAIN.encode()

_LARGE: Final = 32 << 10


class Context(Struct):
    """What the nodes know of the client's `__main__`."""

    shipped: dict[str, object] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    """Modules that the shipped code refers to by name."""
    travelling: set[str] = field(default_factory=set)
    """Modules that the nodes get as files."""


class _UnknownError(Exception):
    """Something of `__main__` that was not shipped."""


def dumps_code(
    roots: Mapping[str, object], depends: Mapping[str, object], travels: Callable[[str], bool] = none_travels
) -> tuple[bytes, Context]:
    """Write a computation: its roots (compute, setup, cleanup), what it depends on by name, and what they name.

    Functions and classes of `__main__` that the computation does not name go along if they are small, so that
    arguments can refer to them: each apart, for whoever asks for it. `travels` says which modules will be sent as
    files if the code refers to them.

    Raises:
        ShippingError: a root or a dependency cannot be pickled; the message names the part.
    """
    main = vars(sys.modules[MAIN])
    depends = dict(depends)
    init, known, modules = _dumps_init(depends.pop(INIT, None), travels)
    required = names_of([*roots.values(), *depends.values()])
    extras = [name for name, value in main.items() if is_code(value) and is_defined_as(value, name)]

    def write(stream: Stream) -> None:
        stream.write_globals(required)
        for name, value in depends.items():
            _write_root(stream, name, value, name)
        _write_root(stream, None, dict(roots), "the computation")
        stream.write_globals(list(stream.pickler.names))
        stream.write_extras(extras)

    stream = written(known, travels, write)
    shipped = {name: value for name, value in depends.items() if is_defined_as(value, name)}
    return stream.finish(init), Context(known | stream.shipped | shipped, modules | stream.pickler.modules)


def _dumps_init(function: object, travels: Callable[[str], bool]) -> tuple[bytes, dict[str, object], set[str]]:
    """Write the function that runs before the rest is loaded: its bytes, what travels with it, modules it names."""
    if function is None:
        return b"", {}, set()

    def write(stream: Stream) -> None:
        stream.write_globals(names_of([function]))
        _write_root(stream, None, {INIT: function}, INIT)
        stream.write_globals(list(stream.pickler.names))

    stream = written({}, travels, write)
    return stream.finish(), stream.shipped, stream.pickler.modules


def _write_root(stream: Stream, name: str | None, value: object, called: str) -> None:
    try:
        stream.write(name, value)
    except Exception as error:
        parts = value if name is None and isinstance(value, dict) else {called: value}
        for part_name, part in parts.items():
            if not can_pickle(part):
                called = getattr(part, "__name__", part_name)
                raise ShippingError(namespace.find_culprit(part, str(called), dumps_nowhere)) from error
        raise ShippingError(f"{called} cannot be pickled: {error}") from error


def dumps_nowhere(value: object) -> None:
    """Pickle for the sake of the exception."""
    CodePickler(Bounded(sys.maxsize), {}).dump(value)


def can_pickle(value: object) -> bool:
    """Whether a value can be pickled, with code by value."""
    try:
        dumps_nowhere(value)
    except Exception:
        return False
    return True


class _CheckedPickler(pickle.Pickler):
    """Plain pickle, unless something of `__main__` is unknown over there."""

    def __init__(
        self,
        file: Any,
        shipped: Mapping[str, object],
        protocol: int = 5,
        buffer_callback: Callable[[pickle.PickleBuffer], object] | None = None,
    ) -> None:
        super().__init__(file, protocol=protocol, buffer_callback=buffer_callback)
        self._shipped = shipped

    def reducer_override(self, value: Any) -> Any:
        is_main_code = isinstance(value, type | types.FunctionType | CACHED) and value.__module__ == MAIN
        if is_main_code and self._shipped.get(value.__qualname__) is not value:
            raise _UnknownError
        return NotImplemented


class _ForJob:
    """Pickles as the call that loads what a job brings, then its arguments."""

    def __init__(self, code: bytes, modules: tuple[str, ...], arguments: bytes) -> None:
        self._parts = code, modules, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[bytes, tuple[str, ...], bytes]]:
        return namespace.load_for_job, self._parts


def dumps_for_job(
    shipped: Mapping[str, object],
    brings: Mapping[str, object],
    find_modules: Callable[[set[str]], tuple[str, ...]],
    travels: Callable[[str], bool],
    there: set[str],
    value: object,
) -> bytes:
    """Pickle the arguments of a job together with what it brings by name.

    Args:
        shipped: what the nodes know of the client's `__main__`.
        brings: names that are for this job alone.
        find_modules: given those that the code refers to, the names of the modules that are for this job alone.
        travels: which modules will be sent as files if the code refers to them.
        there: modules that were sent with the computation.
        value: the arguments.

    Raises:
        ShippingError: something that it brings cannot be pickled; the message names the part.
        Exception: what pickling the arguments raises.
    """

    def write(stream: Stream) -> None:
        stream.write_globals(names_of(list(brings.values())))
        _write_root(stream, None, {"names": dict(brings)}, "dispy_job_depends")
        stream.write_globals(list(stream.pickler.names))

    stream = written(shipped, travels, write)
    known = {**shipped, **stream.shipped, **{name: it for name, it in brings.items() if is_defined_as(it, name)}}
    modules = find_modules(stream.pickler.modules)
    arguments = dumps_value(known, value, travels=there.union(modules).__contains__)
    return pickle.dumps(_ForJob(stream.finish(), modules, arguments), 5)


class _Later:
    """Pickles as the call that loads code which comes after the computation."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Callable[[bytes], object], tuple[bytes]]:
        return namespace.load_later, (self._data,)


def dumps_value(shipped: Mapping[str, object], value: object, travels: Callable[[str], bool] = none_travels) -> bytes:
    """Pickle what a worker unpickles by `pickle.loads`; by value only what the nodes do not know.

    Args:
        shipped: what they know of the client's `__main__`.
        value: what to pickle.
        travels: which modules they have got as files.

    Raises:
        Exception: what pickling raises.
    """
    try:
        data = pickle.dumps(value, 5)
    except Exception:
        return _dumps_by_value(shipped, value, travels)
    if _MAIN_BYTES not in data:
        return data
    file = buffers.Pieces()
    try:
        _CheckedPickler(file, shipped).dump(value)
    except Exception:
        return _dumps_by_value(shipped, value, travels)
    return b"".join(file.pieces)


def dumps_body(
    shipped: Mapping[str, object],
    value: object,
    large: bool = False,
    travels: Callable[[str], bool] = none_travels,
    least: int = buffers.LARGE,
) -> bytes | list[buffers.Readable]:
    """As `dumps_value`, for what is read by `buffers.loads`: large buffers come in parts of their own.

    Args:
        shipped: what the nodes know of the client's `__main__`.
        value: what to pickle.
        large: it holds large buffers, so that copies and scans cost more than a slower pickler.
        travels: which modules they have got as files.
        least: bytes from which on a buffer is large.

    Returns:
        The parts are to be written one after another. They stay as they are, whatever becomes of the value.

    Raises:
        Exception: what pickling raises.
    """
    parts: list[buffers.Readable]
    if not large:
        apart = buffers.Apart(least)
        try:
            data = pickle.dumps(value, 5, buffer_callback=apart)
        except Exception:
            return _dumps_by_value(shipped, value, travels)
        if _MAIN_BYTES not in data:
            return _kept(buffers.parts([data], apart.views)) if apart.views else data
    try:
        parts = buffers.dumps(value, lambda file, **how: _CheckedPickler(file, shipped, **how), least)
    except Exception:
        return _dumps_by_value(shipped, value, travels)
    return _kept(parts) if sum(map(len, parts)) > buffers.LARGE else b"".join(parts)


def _kept(parts: list[buffers.Readable]) -> list[buffers.Readable]:
    """Parts that nobody can change: an array may be used again as soon as it was submitted. Small ones become one."""
    kept: list[buffers.Readable] = []
    for is_large, some in itertools.groupby(parts, lambda part: len(part) >= buffers.LARGE):
        if is_large:
            kept += [part if type(part) is bytes else pages.copy(memoryview(part)) for part in some]
        else:
            kept.append(b"".join(some))
    return kept


def _dumps_by_value(shipped: Mapping[str, object], value: object, travels: Callable[[str], bool]) -> bytes:
    def write(stream: Stream) -> None:
        stream.write(None, {"value": value})
        stream.write_globals(list(stream.pickler.names))

    return pickle.dumps(_Later(written(shipped, travels, write).finish()), 5)


def is_large(values: Iterator[object]) -> bool:
    """Whether one of these is a buffer too large to be copied for nothing."""
    for value in values:
        size = len(value) if isinstance(value, bytes | bytearray | str) else getattr(value, "nbytes", 0)
        if isinstance(size, int) and size > _LARGE:
            return True
    return False
