"""How functions, classes and arguments of the client's program become bytes.

What lives in the client's `__main__` travels by value and meets again in the one `__main__` of the workers
(`dispy.namespace` reads what is written here); its functions carry no globals of their own: the globals that they
name are records beside them. A global that cannot be pickled is left out, with the reason.
"""

from __future__ import annotations

import dis
import functools
import io
import linecache
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cloudpickle import cloudpickle

from dispy import namespace
from dispy.errors import ShippingError

MAIN: Final = "__main__"
INIT: Final = "init_depends"
"""A function of this name among the dependencies runs before anything else is loaded."""
_MAIN_BYTES: Final = MAIN.encode()
_EXTRA_SIZE: Final = 1 << 20
"""Bytes up to which a global travels that only functions name which the computation does not call."""
_LARGE: Final = 32 << 10
_SOURCE_SIZE: Final = 1 << 20
_CACHED: Final = type(functools.lru_cache(lambda: None))


@dataclass(slots=True)
class Context:
    """What the nodes know of the client's `__main__`."""

    shipped: dict[str, object] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    """Modules that the shipped code refers to by name."""
    travelling: set[str] = field(default_factory=set)
    """Modules that the nodes get as files."""


def _nothing(_module: str) -> bool:
    return False


class _RefusedError(Exception):
    """A global cannot be pickled."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason


class _UnknownError(Exception):
    """Something of `__main__` that was not shipped."""


class _TooLargeError(Exception):
    pass


class _Pieces:
    """A file that keeps what is written as it is: a large buffer is copied once, when the pieces are joined."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []

    def write(self, data: Any) -> None:
        self.pieces.append(data)


class _Bounded:
    """A file that keeps nothing and refuses to grow past a bound."""

    def __init__(self, bound: int) -> None:
        self._left = bound

    def write(self, data: Any) -> int:
        size = len(data)
        self._left -= size
        if self._left < 0:
            raise _TooLargeError
        return size


@functools.lru_cache(maxsize=4096)
def _names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """(globals, modules imported) that a code object and those inside it name."""
    names: set[str] = set()
    modules: set[str] = set()
    imported = ""
    for instruction in dis.get_instructions(code):
        if "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME":
            names.add(str(instruction.argval))
        elif instruction.opname == "IMPORT_NAME":
            imported = str(instruction.argval)
            modules.add(imported)
        elif instruction.opname == "IMPORT_FROM":
            modules.add(f"{imported}.{instruction.argval}")  # perhaps a module
        elif isinstance(instruction.argval, types.CodeType):
            inner_names, inner_modules = _names_in(instruction.argval)
            names |= inner_names
            modules |= inner_modules
    return frozenset(names), frozenset(modules)


class _CodePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes code of `__main__`, and of modules that travel as files, without its globals; notes what it names."""

    def __init__(self, file: Any, shipped: Mapping[str, object], travels: Callable[[str], bool] = _nothing) -> None:
        super().__init__(file, protocol=5)
        self._main = vars(sys.modules[MAIN])
        self._shipped = shipped
        self._travels = travels
        self.names: dict[str, None] = {}
        self.modules: set[str] = set()
        self.submodules: set[str] = set()
        self.files: set[str] = set()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            self.modules.add(value.__name__)
        elif isinstance(value, type | types.FunctionType):
            if value.__module__ != MAIN:
                self.modules.add(str(value.__module__))
            elif self._shipped.get(value.__qualname__) is value:
                return value.__qualname__
        elif isinstance(value, _CACHED) and value.__module__ == MAIN:
            options = value.cache_parameters()
            return namespace.cached, (value.__wrapped__, options["maxsize"], options["typed"])
        reduced = super().reducer_override(value)
        if isinstance(value, types.FunctionType) and isinstance(reduced, tuple):
            self._note(value)
            if value.__globals__ is self._main:
                slots = reduced[2][1]
                submodules = {module.__name__ for module in slots["_cloudpickle_submodules"]}
                self.submodules |= submodules
                self.modules |= submodules
                slots["_cloudpickle_submodules"] = []
                slots["__globals__"] = {}
            elif self._needs_home(reduced[2][1]["__globals__"]) and self._has_home(value.__globals__):
                # A dictionary of its own: what functions of one module share may have been written already.
                code, shared, *rest = reduced[1]
                reduced = (reduced[0], (code, {**shared, namespace.HOME: True}, *rest), *reduced[2:])
                reduced[2][1]["__globals__"] = {}
        return reduced

    @staticmethod
    def _needs_home(named: dict[str, Any]) -> bool:
        """Whether code uses more of its module than other modules: only then the nodes have to be able to import it."""
        return not all(isinstance(value, types.ModuleType) for value in named.values())

    def _has_home(self, names: dict[str, Any]) -> bool:
        """Whether these globals are those of a module that is imported over there."""
        name = str(names.get("__name__"))
        home = sys.modules.get(name)
        if home is None or vars(home) is not names or not self._travels(name):
            return False
        self.modules.add(name)
        return True

    def _note(self, function: types.FunctionType) -> None:
        names, modules = _names_in(function.__code__)
        self.modules |= modules
        self.files.add(function.__code__.co_filename)
        if function.__globals__ is self._main:
            self.names.update(dict.fromkeys(sorted(names)))


class _Stream:
    """One attempt to write roots and everything of `__main__` that they need."""

    def __init__(
        self, shipped: Mapping[str, object], omitted: dict[str, str], travels: Callable[[str], bool] = _nothing
    ) -> None:
        self._main = vars(sys.modules[MAIN])
        self._file = io.BytesIO()
        self.pickler = _CodePickler(self._file, shipped, travels)
        self._known = shipped
        self._omitted = omitted
        self._records = 0
        self._aliases: dict[str, str] = {}
        self.shipped: dict[str, object] = {}

    def write(self, name: str | None, value: object) -> None:
        self.pickler.dump((name, value))
        self._records += 1

    def write_globals(self, names: list[str], *, extra: bool = False) -> None:
        """Write globals, code first, and then those that they name, until there are no new ones.

        Raises:
            _RefusedError: one cannot be pickled.
        """
        waiting = sorted(names, key=lambda name: not _is_code(self._main.get(name)))
        while waiting:
            for name in waiting:
                self._write_global(name, extra)
            waiting = [name for name in self.pickler.names if not self._is_done(name)]

    def _is_done(self, name: str) -> bool:
        done = name in self.shipped or name in self._omitted or name in self._aliases or name in self._known
        return done or name not in self._main

    def _write_global(self, name: str, extra: bool) -> None:
        if self._is_done(name):
            return
        value = self._main[name]
        if isinstance(value, types.ModuleType):
            self._aliases[name] = value.__name__
            self.pickler.modules.add(value.__name__)
            return
        if type(value).__module__.partition(".")[0] == "dispy" and not isinstance(value, type):
            raise _RefusedError(name, "it belongs to the client")
        if extra:
            self._try(name, value)
        try:
            self.write(name, value)
        except Exception as error:
            raise _RefusedError(name, f"{error}" or type(error).__name__) from error
        self.shipped[name] = value

    def _try(self, name: str, value: object) -> None:
        try:
            _CodePickler(_Bounded(_EXTRA_SIZE), self._known).dump(value)
        except _TooLargeError:
            reason = "it is large, and nothing that the computation calls names it"
            raise _RefusedError(name, reason) from None
        except Exception as error:
            raise _RefusedError(name, f"{error}" or type(error).__name__) from error

    def finish(self, init: bytes = b"") -> bytes:
        header = {
            "init": init,
            "omitted": self._omitted,
            "sources": _sources(self.pickler.files),
            "modules": self._aliases | {f".{name}": name for name in self.pickler.submodules},
            "records": self._records,
        }
        return pickle.dumps(header, 5) + self._file.getvalue()


def _sources(paths: set[str]) -> dict[str, str]:
    """Source text for tracebacks, where the client has it."""
    texts = {path: "".join(linecache.getlines(path)) for path in sorted(paths)}
    return {path: text for path, text in texts.items() if text and len(text) <= _SOURCE_SIZE}


def _is_code(value: object) -> bool:
    return isinstance(value, type | types.FunctionType | _CACHED)


def _own_code(value: object) -> Iterator[types.FunctionType]:
    """The functions that a computation or a dependency is made of, as far as one sees without pickling it."""
    if isinstance(value, functools.partial):
        yield from _own_code(value.func)
    elif isinstance(value, types.MethodType):
        yield from _own_code(value.__func__)
        yield from _own_code(type(value.__self__))
    elif isinstance(value, _CACHED):
        yield from _own_code(value.__wrapped__)
    elif isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, type):
        for part in vars(value).values():
            function = getattr(part, "__func__", part)
            if isinstance(function, types.FunctionType):
                yield function


def _names_of(values: list[object]) -> list[str]:
    """Globals of `__main__` that values name, directly or through functions and classes there."""
    main = vars(sys.modules[MAIN])
    found: dict[str, None] = {}
    waiting = list(values)
    while waiting:
        for function in _own_code(waiting.pop()):
            if function.__globals__ is not main:
                continue
            for name in sorted(_names_in(function.__code__)[0]):
                if name in main and name not in found:
                    found[name] = None
                    waiting.append(main[name])
    return list(found)


def dumps_code(
    roots: Mapping[str, object], depends: Mapping[str, object], travels: Callable[[str], bool] = _nothing
) -> tuple[bytes, Context]:
    """Write a computation: its roots (compute, setup, cleanup), what it depends on by name, and what they name.

    Functions and classes of `__main__` that the computation does not name go along if they are small, so that
    arguments can refer to them. `travels` says which modules will be sent as files if the code refers to them.

    Raises:
        ShippingError: a root or a dependency cannot be pickled; the message names the part.
    """
    main = vars(sys.modules[MAIN])
    depends = dict(depends)
    init, known, modules = _dumps_init(depends.pop(INIT, None), travels)
    required = _names_of([*roots.values(), *depends.values()])
    extras = [name for name, value in main.items() if _is_code(value) and _is_defined_as(value, name)]
    omitted: dict[str, str] = {}
    while True:
        stream = _Stream(known, omitted, travels)
        try:
            stream.write_globals(required)
            for name, value in depends.items():
                _write_root(stream, name, value, name)
            _write_root(stream, None, dict(roots), "the computation")
            stream.write_globals(list(stream.pickler.names))
            stream.write_globals(extras, extra=True)
        except _RefusedError as refused:
            omitted[refused.name] = refused.reason
            continue
        shipped = {name: value for name, value in depends.items() if _is_defined_as(value, name)}
        return stream.finish(init), Context(known | stream.shipped | shipped, modules | stream.pickler.modules)


def _dumps_init(function: object, travels: Callable[[str], bool]) -> tuple[bytes, dict[str, object], set[str]]:
    """Write the function that runs before the rest is loaded: its bytes, what travels with it, modules it names."""
    if function is None:
        return b"", {}, set()
    omitted: dict[str, str] = {}
    while True:
        stream = _Stream({}, omitted, travels)
        try:
            stream.write_globals(_names_of([function]))
            _write_root(stream, None, {INIT: function}, INIT)
            stream.write_globals(list(stream.pickler.names))
        except _RefusedError as refused:
            omitted[refused.name] = refused.reason
            continue
        return stream.finish(), stream.shipped, stream.pickler.modules


def _is_defined_as(value: Any, name: str) -> bool:
    return getattr(value, "__module__", None) == MAIN and getattr(value, "__qualname__", None) == name


def _write_root(stream: _Stream, name: str | None, value: object, called: str) -> None:
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
    _CodePickler(_Bounded(sys.maxsize), {}).dump(value)


def can_pickle(value: object) -> bool:
    """Whether a value can be pickled, with code by value."""
    try:
        dumps_nowhere(value)
    except Exception:
        return False
    return True


class _CheckedPickler(pickle.Pickler):
    """Plain pickle, unless something of `__main__` is unknown over there."""

    def __init__(self, file: Any, shipped: Mapping[str, object]) -> None:
        super().__init__(file, protocol=5)
        self._shipped = shipped

    def reducer_override(self, value: Any) -> Any:
        is_main_code = isinstance(value, type | types.FunctionType | _CACHED) and value.__module__ == MAIN
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
    omitted: dict[str, str] = {}
    while True:
        stream = _Stream(shipped, omitted, travels)
        try:
            stream.write_globals(_names_of(list(brings.values())))
            _write_root(stream, None, {"names": dict(brings)}, "dispy_job_depends")
            stream.write_globals(list(stream.pickler.names))
        except _RefusedError as refused:
            omitted[refused.name] = refused.reason
            continue
        known = {**shipped, **stream.shipped, **{name: it for name, it in brings.items() if _is_defined_as(it, name)}}
        modules = find_modules(stream.pickler.modules)
        arguments = dumps_value(known, value, travels=there.union(modules).__contains__)
        return pickle.dumps(_ForJob(stream.finish(), modules, arguments), 5)


class _Later:
    """Pickles as the call that loads code which comes after the computation."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Callable[[bytes], object], tuple[bytes]]:
        return namespace.load_later, (self._data,)


def dumps_value(
    shipped: Mapping[str, object], value: object, large: bool = False, travels: Callable[[str], bool] = _nothing
) -> bytes:
    """Pickle what a worker unpickles by `pickle.loads`; by value only what the nodes do not know.

    Args:
        shipped: what they know of the client's `__main__`.
        value: what to pickle.
        large: it holds large buffers, so that copies and scans cost more than a slower pickler.
        travels: which modules they have got as files.

    Raises:
        Exception: what pickling raises.
    """
    if not large:
        try:
            data = pickle.dumps(value, 5)
        except Exception:
            return _dumps_by_value(shipped, value, travels)
        if _MAIN_BYTES not in data:
            return data
    file = _Pieces()
    try:
        _CheckedPickler(file, shipped).dump(value)
    except Exception:
        return _dumps_by_value(shipped, value, travels)
    return b"".join(file.pieces)


def _dumps_by_value(shipped: Mapping[str, object], value: object, travels: Callable[[str], bool]) -> bytes:
    omitted: dict[str, str] = {}
    while True:
        stream = _Stream(shipped, omitted, travels)
        stream.write(None, {"value": value})
        try:
            stream.write_globals(list(stream.pickler.names))
        except _RefusedError as refused:
            omitted[refused.name] = refused.reason
            continue
        return pickle.dumps(_Later(stream.finish()), 5)


def is_large(values: Iterator[object]) -> bool:
    """Whether one of these is a buffer too large to be copied for nothing."""
    for value in values:
        size = len(value) if isinstance(value, bytes | bytearray | str) else getattr(value, "nbytes", 0)
        if isinstance(size, int) and size > _LARGE:
            return True
    return False
