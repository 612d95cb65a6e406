"""The worker's side of shipping: one real `__main__` module into which everything by value from the client's is put.

A computation is a pickle stream of records (see `dispy.shipping`, which writes it). Whatever comes later, with the
arguments of a job, adds names and overwrites none, so that what setup made stays.
Runs in any interpreter beside user code: standard library and cloudpickle only.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import io
import linecache
import os
import pickle
import sys
import time
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cloudpickle import cloudpickle

MAIN: Final = "__main__"
HOME: Final = "__dispy_home__"
"""Stands among the globals of a function by value whose own are those of its module, which is here as a file."""
_filled: Final[weakref.WeakSet[type]] = weakref.WeakSet()
"""Classes by value that have their attributes; setup or a job may have changed them since."""
_DEPTH: Final = 12
"""How far `find_culprit` descends."""


_extras: Final[dict[str, bytes]] = {}
"""Streams of globals that the computation does not name, each loaded when something asks for it."""
_missing: Final[dict[str, str]] = {}
"""Globals of the client that are not here, with the reason."""


class _Main(types.ModuleType):
    """Has what pickled arguments find in it by name, also what nothing has asked for before."""

    def __getattr__(self, name: str) -> Any:
        if name not in _extras:
            raise AttributeError(f"module {MAIN!r} has no attribute {name!r}")
        try:
            _load_extra(name)
        except Exception as error:
            raise pickle.UnpicklingError(
                f"{name!r} of the program's {MAIN}, which this needs, cannot be loaded on this node: {_told(error)}"
            ) from error
        return vars(self)[name]


@dataclass(slots=True)
class Computation:
    """What a fork server needs of a computation of functions."""

    compute: Callable[..., object]
    setup: Callable[..., object] | None = None
    cleanup: Callable[..., object] | None = None
    omitted: dict[str, str] = field(default_factory=dict)
    """Globals of the client that are not here, with the reason. It grows with what is loaded later."""


def make_main() -> types.ModuleType:
    """Put a fresh `__main__` in place of the program's, and what users of the original take for granted in reach."""
    module = _Main(MAIN)
    _extras.clear()
    _missing.clear()
    module.__dict__["__builtins__"] = builtins
    sys.modules[MAIN] = module
    for name, value in (("os", os), ("sys", sys), ("time", time)):
        vars(builtins).setdefault(name, value)
    return module


def inject(names: Mapping[str, object]) -> None:
    """Make names visible to functions, in the namespace and in the user's other modules."""
    vars(sys.modules[MAIN]).update(names)
    vars(builtins).update(names)


class _Loader(pickle.Unpickler):
    """Unpickles into `__main__`; with `keep` it never overwrites what is there."""

    def __init__(self, file: io.BytesIO, *, keep: bool) -> None:
        super().__init__(file)
        self._keep = keep
        self._names = vars(sys.modules[MAIN])

    def find_class(self, module: str, name: str) -> Any:
        if module == "cloudpickle.cloudpickle":
            own = getattr(self, "_own" + name, None)
            if own is not None:
                return own
        return super().find_class(module, name)

    def _own_make_function(
        self, code: types.CodeType, names: dict[str, Any], name: str | None, defaults: Any, closure: Any
    ) -> types.FunctionType:
        if names.get("__name__") == MAIN:
            names = self._names
        elif HOME in names:
            names = vars(importlib.import_module(names["__name__"]))
        else:
            names.setdefault("__builtins__", builtins)
        return types.FunctionType(code, names, name, defaults, closure)

    def _own_make_skeleton_class(self, *parts: Any) -> type:
        made: type = cloudpickle._make_skeleton_class(*parts)
        self._register(made)
        return made

    def _own_make_skeleton_enum(self, *parts: Any) -> type:
        made: type = cloudpickle._make_skeleton_enum(*parts)
        self._register(made)
        return made

    def _own_class_setstate(self, made: type, state: Any) -> type:
        if made in _filled:
            return made
        cloudpickle._class_setstate(made, state)
        _filled.add(made)
        if "." not in made.__qualname__ and made.__module__ == MAIN:
            self._names.setdefault(made.__name__, made)
        return made

    def _register(self, made: type) -> None:
        if made.__module__ == MAIN and made.__name__ not in self._names and "." not in made.__qualname__:
            self._names[made.__name__] = made


def load_computation(data: bytes) -> Computation:
    """Load what `dispy.shipping.pack` made into the present `__main__`."""
    roots = _load_records(data, keep=False)
    return Computation(roots["compute"], roots["setup"], roots["cleanup"], _missing)


def load_later(data: bytes) -> object:
    """Load something that refers to functions or classes that were not shipped with the computation."""
    return _load_records(data, keep=True)["value"]


def load_names(data: bytes) -> None:
    """Make the names of a pickled dict visible to all that is loaded afterwards, which may overwrite them."""
    names: dict[str, object] = _Loader(io.BytesIO(data), keep=True).load()
    inject(names)


find_scattered: Callable[[bytes], object] | None = None
"""Set in workers: gives the object that has this name."""


def scattered(name: bytes) -> object:
    """What stands in pickled arguments for an object that was scattered (see `dispy.scattered`).

    Raises:
        LookupError: this process is no worker, or the object is not here.
        Exception: what unpickling it raises.
    """
    if find_scattered is None:
        raise LookupError("a scattered object is there in jobs only, where it stands among their arguments")
    return find_scattered(name)


brought_by_job: Final[list[Callable[[], object]]] = []
"""What takes away again what the running job alone has brought."""


def load_for_job(code: bytes, modules: tuple[str, ...], arguments: bytes) -> object:
    """Unpickle the arguments of a job that brings names and modules of its own; `forget_job` removes these.

    A name that it brings stands in place of one that is here; what it only needs overwrites nothing.
    """
    names = vars(sys.modules[MAIN])
    before = set(names)
    importlib.invalidate_caches()  # its files have come since the folder was last looked at
    brought_by_job.extend(functools.partial(sys.modules.pop, name, None) for name in modules if name not in sys.modules)
    brought: dict[str, Any] = {}
    try:
        brought = _load_records(code, keep=True)["names"]
    finally:
        brought_by_job.extend(functools.partial(names.pop, name, None) for name in names.keys() - before)
    for name, value in brought.items():
        if name in before:
            brought_by_job.append(functools.partial(names.__setitem__, name, names[name]))
        elif name not in names:
            brought_by_job.append(functools.partial(names.pop, name, None))
        names[name] = value
    return pickle.loads(arguments)


def forget_job() -> None:
    """Remove what the job has brought; nothing to do for most."""
    while brought_by_job:
        brought_by_job.pop()()


def _load_records(data: bytes, *, keep: bool) -> dict[str, Any]:
    """A stream is: one header, then records, written by one pickler so that they share objects."""
    file = io.BytesIO(data)
    names = vars(sys.modules[MAIN])
    header = pickle.load(file)
    _extras.update(header["extras"])
    _missing.update(header["omitted"])
    if header["init"]:
        _load_records(header["init"], keep=False)["init_depends"]()
    for path, text in header["sources"].items():
        linecache.cache.setdefault(path, (len(text), None, text.splitlines(keepends=True), path))
    for name, module in header["modules"].items():
        reason = _import_global(names, name, module)
        if reason:
            _missing.setdefault(name, reason)
    loader = _Loader(file, keep=keep)
    roots: dict[str, Any] = {}
    for _ in range(header["records"]):
        name, value = loader.load()
        if name is None:
            roots.update(value)
        elif not keep or name not in names:
            names[name] = value
    for name in tuple(_extras) if header["needs_all"] else header["needs"]:
        if name in _extras and name not in names:
            try:
                _load_extra(name)
            except Exception as error:  # said when code uses it
                _missing[name] = f"loading it on this node failed: {_told(error)}"
    return roots


def _load_extra(name: str) -> None:
    """Load a global that nothing has asked for before, and those that it names. What fails leaves nothing behind."""
    names = vars(sys.modules[MAIN])
    before = set(names)
    try:
        _load_records(_extras[name], keep=True)
    except Exception:
        for half_made in names.keys() - before:
            del names[half_made]
        raise


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _import_global(names: dict[str, Any], name: str, module: str) -> str:
    """Import a module that the client had as a global; returns why it is missing, else nothing."""
    if name.startswith("."):  # a submodule that code reaches through its package
        name = ""
    elif name in names:
        return ""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return f"module {module} cannot be imported on this node: {error}"
    if name:
        names[name] = found
    return ""


class MethodCall:
    """A bound method as computation: jobs need not pass the instance, but may, as programs for the original do."""

    def __init__(self, method: types.MethodType) -> None:
        self._method = method
        self.__name__ = method.__name__

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call the method; on the instance that travelled unless the arguments only fit with another before them."""
        method = self._method
        if args and isinstance(args[0], type(method.__self__)) and not _takes(method, args, kwargs):
            return method.__func__(*args, **kwargs)
        return method(*args, **kwargs)


def _takes(function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def cached(function: Callable[..., object], maxsize: int | None, typed: bool) -> Callable[..., object]:
    """Rebuild what `functools.lru_cache` made, with an empty cache."""
    return functools.lru_cache(maxsize, typed)(function)


class _ResultPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """For results that plain pickle cannot write: what came from the client goes back by name."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | types.FunctionType) and value.__module__ == MAIN:
            name = value.__qualname__
            if sys.modules[MAIN].__dict__.get(name) is value:
                return name
        return super().reducer_override(value)


def dumps_result(value: object) -> bytes:
    """Pickle what plain pickle could not.

    Raises:
        Exception: whatever pickling raises; `find_culprit` tells where.
    """
    file = io.BytesIO()
    _ResultPickler(file, protocol=5).dump(value)
    return file.getvalue()


def find_culprit(value: object, path: str, dumps: Callable[[Any], object]) -> str:
    """One sentence naming the innermost part of a value that cannot be pickled.

    Args:
        value: what could not be pickled.
        path: what the value is called in the sentence, as `argument 1`.
        dumps: the pickling that failed.
    """
    reason = _refusal(value, dumps)
    for _ in range(_DEPTH):
        for step, part in _parts(value):
            refusal = _refusal(part, dumps)
            if refusal:
                value, path, reason = part, path + step, refusal
                break
        else:
            break
    kind = type(value).__qualname__
    module = type(value).__module__
    return f"{path} (a {kind if module == 'builtins' else f'{module}.{kind}'}) cannot be pickled: {reason}"


def _refusal(value: object, dumps: Callable[[Any], object]) -> str:
    try:
        dumps(value)
    except Exception as error:
        return f"{error}" or type(error).__name__
    return ""


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    """What a value is made of, each part with how to write it behind the value's own name."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
        yield from ((f" key {key!r}", key) for key in value)
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((f" element {part!r}", part) for part in value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            try:
                yield f"'s variable {name!r}", cell.cell_contents
            except ValueError:  # not yet assigned
                continue
        yield "'s default values", value.__defaults__
        yield "'s default values", value.__kwdefaults__
        yield "'s attributes", value.__dict__
    elif isinstance(value, type):
        own = (item for item in vars(value).items() if item[0] not in ("__dict__", "__weakref__"))
        yield from ((f".{name}", part) for name, part in own)
    else:
        yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, object]]:
    if hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    yield from ((f".{name}", part) for name, part in list(getattr(value, "__dict__", {}).items()))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)
