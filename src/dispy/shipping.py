"""The client's side of shipping: a function or program and what it depends on become bytes and a list of files.

How code is pickled is in `dispy.pickling`, which of the user's modules travel in `dispy.sources`, how it is loaded in
`dispy.namespace`. Nothing is sent or copied here.
"""

from __future__ import annotations

import functools
import os
import pickle
import shlex
import stat
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from dispy import buffers, namespace, pickling
from dispy.codenames import MAIN
from dispy.errors import DispyError, ShippingError
from dispy.scattered import Scattered
from dispy.settings import is_sendable
from dispy.sources import (
    LocalFile,
    is_own,
    module_names,
    module_with_parents,
    own_files,
    package_files,
    tree_files,
)

__all__ = [
    "LocalFile",
    "Shipment",
    "destination",
    "dumps_arguments",
    "dumps_calls",
    "dumps_for_job",
    "dumps_object",
    "dumps_setup_args",
    "loads_result",
    "pack",
]

_PLAIN: Final = frozenset({int, float, bool, str, type(None)})
"""Types whose values always can be pickled and refer to nothing; looking no further saves half the time."""
_FEW: Final = 16
"""Calls that travel together when what they are given may be large."""
_INTERPRETED: Final = (".py", ".java")
"""Nodes run these with an interpreter."""
_SYSTEM_FOLDERS: Final = ("/bin/", "/sbin/", "/usr/", "/lib/", "/lib64/", "/nix/", "/snap/")
"""Programs from there are expected on the nodes, built for their machines; others are sent."""


class Shipment(Struct):
    """What a cluster's nodes need before they can run its jobs."""

    kind: str
    """`function` or `program`."""
    name: str
    python: str
    """Implementation and minor version that functions need, as `cpython-3.11`; empty for programs."""
    code: bytes | None = None
    program: str = ""
    """Relative to the computation's directory, or absolute when the nodes have it."""
    files: list[LocalFile] = field(default_factory=list)
    context: pickling.Context = field(default_factory=pickling.Context)


def pack(
    computation: Callable[..., object] | str | os.PathLike[str],
    depends: Sequence[object] = (),
    *,
    setup: Callable[..., object] | None = None,
    cleanup: Callable[..., object] | None = None,
) -> Shipment:
    """Collect what a computation needs.

    Args:
        computation: anything callable, or the path of a program (looked for on `$PATH` too). A program is sent as a
            file, except from the system's folders, where the nodes have their own.
        depends: paths of files and folders, functions, classes, modules, packages, instances (their class).
        setup: run on each node before its first job.
        cleanup: run on each node after the last one.

    Raises:
        ShippingError: something does not exist, cannot be read or cannot be pickled; the message names it.
    """
    files: dict[str, LocalFile] = {}
    names: dict[str, object] = {}
    if isinstance(depends, str | bytes | os.PathLike) or not isinstance(depends, Iterable):
        raise ShippingError(f"depends must be a list of files, functions, classes or modules, not {depends!r}")
    for item in depends:
        _add_dependency(item, files, names)
    if isinstance(computation, str | os.PathLike):
        return _pack_program(Path(computation), files, names)
    if not callable(computation):
        raise ShippingError(f"a computation is a function or the path of a program, not {computation!r}")
    name = _name(computation)
    compute = namespace.MethodCall(computation) if isinstance(computation, types.MethodType) else computation
    roots = {"compute": compute, "setup": setup, "cleanup": cleanup}
    code, context = pickling.dumps_code(roots, names, is_own)
    for file in own_files(sorted(context.modules | _modules_of_main())):
        files.setdefault(file.dest, file)
    context.travelling.update(module_names(files.values()))
    _check(files.values())
    python = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"
    return Shipment("function", name, python, code, files=list(files.values()), context=context)


def _name(computation: object) -> str:
    while isinstance(computation, functools.partial):
        computation = computation.func
    name = str(getattr(computation, "__name__", type(computation).__name__))
    return name.encode(errors="backslashreplace").decode()


def _modules_of_main() -> set[str]:
    """Own modules that the client's program has imported from: arguments may be made of them."""
    found = set()
    for value in list(vars(sys.modules[MAIN]).values()):
        if isinstance(value, types.ModuleType):
            found.add(value.__name__)
        else:
            kind = value if isinstance(value, type | types.FunctionType) else type(value)
            found.add(str(getattr(kind, "__module__", "")))
    return {name for name in found if is_own(name)}


def _pack_program(path: Path, files: dict[str, LocalFile], names: dict[str, object]) -> Shipment:
    if names:
        what = ", ".join(sorted(names))
        raise ShippingError(f"{what}: a program cannot use functions or classes; its depends are files")
    found = path if path.is_file() else None
    if found is None:
        import shutil  # few run programs by their name

        on_path = shutil.which(os.fspath(path))
        if on_path is None:
            raise ShippingError(f"program {str(path)!r} is neither a file here nor a command on $PATH")
        found = Path(on_path)
    found = found.absolute()
    if not is_sendable(str(found)):
        raise ShippingError(f"program {str(found)!r} cannot be used: its name is not UTF-8; rename it")
    if found.suffix not in _INTERPRETED and not found.stat().st_mode & 0o111:
        raise ShippingError(f"program {found} is not executable: chmod +x {shlex.quote(str(path))}")
    if str(found).startswith(_SYSTEM_FOLDERS):
        program = str(found)
    else:
        file = LocalFile(found, destination(found))
        files[file.dest] = file
        program = file.dest
    _check(files.values())
    return Shipment("program", found.name, "", program=program, files=list(files.values()))


def _add_dependency(item: object, files: dict[str, LocalFile], names: dict[str, object]) -> None:
    added: Iterable[LocalFile] = ()
    if isinstance(item, str | os.PathLike):
        path = Path(item).absolute()
        added = tree_files(path, destination(path)) if path.is_dir() else [LocalFile(path, destination(path))]
    elif isinstance(item, types.ModuleType):
        added = package_files(item) if hasattr(item, "__path__") else module_with_parents(item)
    elif isinstance(item, functools.partial):
        _add_dependency(item.func, files, names)
    elif isinstance(item, types.MethodType):
        names[type(item.__self__).__name__] = type(item.__self__)
    elif isinstance(item, type) or hasattr(item, "__name__"):
        names[str(getattr(item, "__name__", ""))] = item
    elif type(item).__module__ == "builtins":
        raise ShippingError(
            f"depends: {item!r} is neither a file, function, class, module, package nor an instance of a class"
        )
    else:
        names[type(item).__name__] = type(item)
    for file in added:
        files[file.dest] = file


def destination(path: Path) -> str:
    """Below the working directory a file keeps its place, else only its name."""
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except ValueError:
        return path.name


def _check(files: Iterable[LocalFile]) -> None:
    for file in files:
        if not is_sendable(file.dest):
            raise ShippingError(
                f"{file.dest!r} cannot be sent to the nodes: the name of the file is not UTF-8; rename it"
            )
        try:
            if not stat.S_ISREG(os.stat(file.path).st_mode):  # a pipe would make `open` wait for ever
                raise ShippingError(f"{file.path} cannot be sent to the nodes: it is not a regular file")
            with open(file.path, "rb"):
                pass
        except OSError as error:
            raise ShippingError(f"{file.path} cannot be sent to the nodes: {error.strerror}") from error


def dumps_arguments(
    shipment: Shipment, args: tuple[object, ...], kwargs: dict[str, object]
) -> bytes | list[buffers.Readable]:
    """Pickle the arguments of a job; in parts when they are large (see `pickling.dumps_body`).

    Raises:
        ShippingError: one of them cannot be pickled; the message names the part.
    """
    if shipment.kind == "program":
        return _dumps_words(args)
    if not kwargs and _PLAIN.issuperset(map(type, args)):
        return pickle.dumps((args, kwargs), 5)
    large = pickling.is_large(chain(args, kwargs.values()))
    context = shipment.context
    try:
        return pickling.dumps_body(context.shipped, (args, kwargs), large, context.travelling.__contains__)
    except DispyError:  # of a scattered object
        raise
    except Exception as error:
        raise _refusal(args, kwargs) from error


def _text(argument: object) -> str:
    """An argument of a program."""
    if isinstance(argument, Scattered):
        raise ShippingError(f"{argument!r} cannot be given to a program, whose arguments are texts")
    return str(argument)


def dumps_calls(shipment: Shipment, columns: list[list[object]]) -> bytes | list[buffers.Readable]:
    """Pickle the arguments of several calls, a list for each parameter, for one job (see `dispy.node.chunk`).

    In parts when they are large, as those of one call.

    Raises:
        Exception: what pickling raises; `dumps_arguments` for each call tells of which it is.
    """
    context = shipment.context
    large = len(columns[0]) <= _FEW and pickling.is_large(chain.from_iterable(columns))
    return pickling.dumps_body(context.shipped, (columns, None), large, context.travelling.__contains__)


def _dumps_words(args: tuple[object, ...]) -> bytes:
    """The arguments of a program."""
    return pickle.dumps((tuple(map(_text, args)), {}), 5)


def dumps_for_job(
    shipment: Shipment, depends: Sequence[object], args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[bytes, list[LocalFile]]:
    """Pickle the arguments of a job with the code that is for it alone; also the files that are.

    Raises:
        ShippingError: something cannot travel; the message names it.
    """
    files: dict[str, LocalFile] = {}
    names: dict[str, object] = {}
    for item in depends:
        _add_dependency(item, files, names)
    if shipment.kind == "program":
        if names:
            what = ", ".join(sorted(names))
            raise ShippingError(f"{what}: a program cannot use functions or classes; dispy_job_depends are files")
        _check(files.values())
        return _dumps_words(args), list(files.values())
    there = {file.dest for file in shipment.files}
    context = shipment.context

    def find_modules(referred: set[str]) -> tuple[str, ...]:
        for file in own_files(sorted(referred)):
            if file.dest not in there:
                files.setdefault(file.dest, file)
        return module_names(files.values())

    try:
        data = pickling.dumps_for_job(context.shipped, names, find_modules, is_own, context.travelling, (args, kwargs))
    except DispyError:
        raise
    except Exception as error:
        raise _refusal(args, kwargs) from error
    _check(files.values())
    return data, list(files.values())


def dumps_object(shipment: Shipment, value: object) -> list[buffers.Readable]:
    """Pickle an object for jobs that get it beside their arguments; the parts stay as they are.

    Every buffer lies apart, however small: jobs find them read-only, whatever their size.

    Raises:
        ShippingError: it cannot be pickled; the message names the part.
    """
    context = shipment.context
    try:
        large = pickling.is_large(iter([value]))
        data = pickling.dumps_body(context.shipped, value, large, context.travelling.__contains__, buffers.ANY)
        return [data] if isinstance(data, bytes) else data
    except DispyError:
        raise
    except Exception as error:
        raise ShippingError(namespace.find_culprit(value, "the object", pickling.dumps_nowhere)) from error


def dumps_setup_args(shipment: Shipment, args: tuple[object, ...]) -> bytes:
    """Pickle the arguments of setup and cleanup.

    Raises:
        ShippingError: one of them cannot be pickled; the message names the part.
    """
    if not args:
        return b""
    context = shipment.context
    try:
        return pickling.dumps_value(context.shipped, tuple(args), context.travelling.__contains__)
    except DispyError:
        raise
    except Exception as error:
        raise _refusal(args, {}) from error


def _refusal(args: tuple[object, ...], kwargs: dict[str, object]) -> ShippingError:
    named = {f"argument {number}": value for number, value in enumerate(args, 1)}
    named |= {f"argument {name!r}": value for name, value in kwargs.items()}
    for called, value in named.items():
        if not pickling.can_pickle(value):
            return ShippingError(namespace.find_culprit(value, called, pickling.dumps_nowhere))
    return ShippingError("the arguments cannot be pickled together")


def loads_result(data: bytes | memoryview) -> object:
    """Unpickle the result of a job; large arrays are views of `data`.

    Raises:
        Exception: what unpickling raises, for instance when a class of the result is not known here.
    """
    return buffers.loads(data)
