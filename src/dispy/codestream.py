"""Writes code of the client's `__main__`, by value and without its globals: those that it names are records beside it.

A global that cannot be pickled is left out, with the reason. `dispy.namespace` reads what is written here.
"""

from __future__ import annotations

import io
import linecache
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

from cloudpickle import cloudpickle

from dispy import namespace
from dispy.codenames import CACHED, MAIN, is_code, names_in

_EXTRA_SIZE: Final = 1 << 20
"""Bytes up to which a global travels that only functions name which the computation does not call."""

_FINDERS: Final = frozenset(("eval", "exec", "globals", "vars"))
"""Code that calls these may use globals that it does not name."""

_SOURCE_SIZE: Final = 1 << 20


def none_travels(_module: str) -> bool:
    """No module is sent as a file."""
    return False


class RefusedError(Exception):
    """A global cannot be pickled."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason


class _TooLargeError(Exception):
    pass


class Bounded:
    """A file that keeps nothing and refuses to grow past a bound."""

    def __init__(self, bound: int) -> None:
        self._left = bound

    def write(self, data: Any) -> int:
        """Count bytes."""
        size = len(data)
        self._left -= size
        if self._left < 0:
            raise _TooLargeError
        return size


class _Part(Bounded):
    """A file that refuses to grow past what an extra may have."""

    def __init__(self) -> None:
        super().__init__(_EXTRA_SIZE)
        self._pieces: list[bytes] = []

    def write(self, data: Any) -> int:
        """Keep bytes."""
        size = super().write(data)
        self._pieces.append(bytes(data))
        return size

    def getvalue(self) -> bytes:
        """All that was written."""
        return b"".join(self._pieces)


class CodePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes code of `__main__`, and of modules that travel as files, without its globals; notes what it names."""

    def __init__(self, file: Any, shipped: Mapping[str, object], travels: Callable[[str], bool] = none_travels) -> None:
        super().__init__(file, protocol=5)
        self._main = vars(sys.modules[MAIN])
        self._shipped = shipped
        self._travels = travels
        self.names: dict[str, None] = {}
        self.modules: set[str] = set()
        self.submodules: set[str] = set()
        self.files: set[str] = set()

    def reducer_override(self, value: Any) -> Any:
        """How one value is written; called by pickle."""
        if isinstance(value, types.ModuleType):
            self.modules.add(value.__name__)
        elif isinstance(value, type | types.FunctionType):
            if value.__module__ != MAIN:
                self.modules.add(str(value.__module__))
            elif self._shipped.get(value.__qualname__) is value:
                return value.__qualname__
        elif isinstance(value, CACHED) and value.__module__ == MAIN:
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
        names, modules = names_in(function.__code__)
        self.modules |= modules
        self.files.add(function.__code__.co_filename)
        if function.__globals__ is self._main:
            self.names.update(dict.fromkeys(sorted(names)))


class Stream:
    """One attempt to write roots and everything of `__main__` that they need."""

    def __init__(
        self,
        shipped: Mapping[str, object],
        omitted: dict[str, str],
        travels: Callable[[str], bool] = none_travels,
        file: io.BytesIO | _Part | None = None,
    ) -> None:
        self._main = vars(sys.modules[MAIN])
        self._file = file or io.BytesIO()
        self._travels = travels
        self._extras: dict[str, bytes] = {}
        self.pickler = CodePickler(self._file, shipped, travels)
        self._known = shipped
        self._omitted = omitted
        self._records = 0
        self._aliases: dict[str, str] = {}
        self.shipped: dict[str, object] = {}

    def write(self, name: str | None, value: object) -> None:
        """Write one record: the value of a global, or without a name several by name. Raises what pickling raises."""
        self.pickler.dump((name, value))
        self._records += 1

    def write_globals(self, names: list[str]) -> None:
        """Write globals, code first, and then those that they name, until there are no new ones.

        Raises:
            RefusedError: one cannot be pickled.
        """
        waiting = sorted(names, key=lambda name: not is_code(self._main.get(name)))
        while waiting:
            for name in waiting:
                self._write_global(name)
            waiting = [name for name in self.pickler.names if not self._is_done(name)]

    def write_extras(self, names: list[str]) -> None:
        """Write globals that the computation does not name, and those that they name: each apart, to be loaded when
        it is asked for. What fails then, or takes long, is no matter of those who do without it.
        """
        there = {**self._known, **self.shipped}
        waiting = list(names)
        for name in waiting:
            if self._is_done(name):
                continue
            extra = Stream(there, {}, self._travels, _Part())
            try:
                waiting += extra._write_extra(name)
            except _TooLargeError:
                self._omitted[name] = "it is large, and nothing that the computation calls names it"
            except RefusedError as refused:
                self._omitted[name] = refused.reason
            except Exception as error:
                self._omitted[name] = f"{error}" or type(error).__name__
            else:
                self.pickler.modules |= extra.pickler.modules
                self.pickler.files |= extra.pickler.files
                self._extras[name] = extra._finish({})
                self.shipped[name] = self._main[name]

    def _write_extra(self, name: str) -> list[str]:
        """Write one global; returns which others it names."""
        value = self._main[name]
        self._refuse_own(name, value)
        self.write(name, value)
        self.shipped[name] = value
        for each in list(self.pickler.names):
            if isinstance(self._main.get(each), types.ModuleType):
                self._write_global(each)
        return [each for each in self.pickler.names if not self._is_done(each)]

    def _is_done(self, name: str) -> bool:
        done = name in self.shipped or name in self._omitted or name in self._aliases or name in self._known
        return done or name not in self._main

    def _write_global(self, name: str) -> None:
        if self._is_done(name):
            return
        value = self._main[name]
        if isinstance(value, types.ModuleType):
            self._aliases[name] = value.__name__
            self.pickler.modules.add(value.__name__)
            return
        self._refuse_own(name, value)
        try:
            self.write(name, value)
        except Exception as error:
            raise RefusedError(name, f"{error}" or type(error).__name__) from error
        self.shipped[name] = value

    @staticmethod
    def _refuse_own(name: str, value: object) -> None:
        if type(value).__module__.partition(".")[0] == "dispy" and not isinstance(value, type):
            raise RefusedError(name, "it belongs to the client")

    def finish(self, init: bytes = b"") -> bytes:
        """All of it, behind a header."""
        return self._finish(_sources(self.pickler.files), init)

    def _finish(self, sources: dict[str, str], init: bytes = b"") -> bytes:
        names = self.pickler.names
        header = {
            "init": init,
            "omitted": self._omitted,
            "sources": sources,
            "modules": self._aliases | {f".{name}": name for name in self.pickler.submodules},
            "records": self._records,
            "extras": self._extras,
            # of these, what is an extra over there
            "needs": [name for name in names if name in self._main and name not in self.shipped],
            "needs_all": not _FINDERS.isdisjoint(names),
        }
        return pickle.dumps(header, 5) + self._file.getvalue()


def written(shipped: Mapping[str, object], travels: Callable[[str], bool], write: Callable[[Stream], None]) -> Stream:
    """The stream into which `write` has written; what it cannot take is left out of it, and it begins again.

    Args:
        shipped: what the nodes know of the client's `__main__`.
        travels: which modules will be sent as files if the code refers to them.
        write: called with a new stream, once more for each global that had to be left out.

    Raises:
        Exception: what pickling raises of what cannot be left out.
    """
    omitted: dict[str, str] = {}
    while True:
        stream = Stream(shipped, omitted, travels)
        try:
            write(stream)
        except RefusedError as refused:
            omitted[refused.name] = refused.reason
            continue
        return stream


def _sources(paths: set[str]) -> dict[str, str]:
    """Source text for tracebacks, where the client has it."""
    texts = {path: "".join(linecache.getlines(path)) for path in sorted(paths)}
    return {path: text for path, text in texts.items() if text and len(text) <= _SOURCE_SIZE}
