"""Which files of the user's own code must travel: modules that the shipped code imports, found from their source.

Own is what lies neither in the standard library nor where packages are installed; nodes are expected to have those.
Knows nothing of pickles; see `dispy.pickling` for how the names of modules are found.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from dispy.errors import ShippingError

_NOT_SENT: Final = frozenset({"dispy", "cloudpickle", "__main__", "__mp_main__"})
_SKIPPED_FOLDERS: Final = frozenset({"__pycache__", ".git", ".hg", ".svn"})


class LocalFile(Struct, frozen=True):
    """A file of the client that a computation needs."""

    path: Path
    dest: str
    """Relative POSIX path below the computation's directory."""


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({os.path.realpath(folder) + os.sep for folder in folders})


def is_own(name: str) -> bool:
    """Whether a loaded module, by its full name, is the user's own source."""
    if name.partition(".")[0] in _NOT_SENT:
        return False
    path = getattr(sys.modules.get(name), "__file__", None)
    if not path or not path.endswith((".py", ".so")):
        return False
    return not _is_installed(path)


def _is_installed(path: str) -> bool:
    real = os.path.realpath(path) if path else ""
    return real.startswith(_installed_folders()) or f"{os.sep}site-packages{os.sep}" in real


def own_files(names: Iterable[str]) -> list[LocalFile]:
    """The files of the user's own modules among these, and of all own modules that they import in turn."""
    found: dict[str, LocalFile] = {}
    waiting = list(_loaded(names))
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent and is_own(parent):
            waiting.append(parent)
        file = module_file(sys.modules[name])
        found[file.dest] = file
        if file.path.suffix == ".py":
            waiting += [imported for imported in _imports(name, file.path) if imported not in seen]
    return sorted(found.values(), key=lambda file: file.dest)


def module_file(module: types.ModuleType) -> LocalFile:
    """The one file of a module, at its place below the folder that it is imported from.

    Raises:
        ShippingError: it has no file.
    """
    if not getattr(module, "__file__", None):
        raise ShippingError(f"module {module.__name__} has no file that could be sent; it must be on the nodes")
    path = Path(str(module.__file__))
    parts = module.__name__.split(".")
    folder = parts if hasattr(module, "__path__") else parts[:-1]
    return LocalFile(path, "/".join((*folder, path.name)))


def module_names(files: Iterable[LocalFile]) -> tuple[str, ...]:
    """What the Python files among these are imported as, from the folder that they are sent to."""
    paths = [file.dest.removesuffix(".py") for file in files if file.dest.endswith(".py")]
    return tuple(path.removesuffix("/__init__").replace("/", ".") for path in paths)


def package_files(package: types.ModuleType) -> list[LocalFile]:
    """Every file below a package, data too, without compiled leftovers; and what leads to it in packages above."""
    base = "/".join(package.__name__.split("."))
    files = _parents(package.__name__)
    for folder in package.__path__:
        files += tree_files(Path(folder), base)
    return files


def module_with_parents(module: types.ModuleType) -> list[LocalFile]:
    """A module's file and the `__init__.py` of the packages that it is in."""
    return [*_parents(module.__name__), module_file(module)]


def _parents(name: str) -> list[LocalFile]:
    files = []
    while name := name.rpartition(".")[0]:
        module = sys.modules.get(name)
        if module is not None and getattr(module, "__file__", None):
            files.append(module_file(module))
    return files


def tree_files(folder: Path, dest: str) -> list[LocalFile]:
    """The files below a folder, sorted."""
    files = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        below = Path(here).relative_to(folder).parts
        files += [
            LocalFile(Path(here, name), "/".join((*filter(None, (dest,)), *below, name))) for name in sorted(names)
        ]
    return files


def _imports(name: str, path: Path) -> Iterator[str]:
    """Own modules that a source file imports, wherever in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError) as error:
        raise ShippingError(f"module {name} ({path}) cannot be read: {error}") from error
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from _loaded(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join(filter(None, (*above, base)))
            yield from _loaded((base, *(f"{base}.{alias.name}" for alias in node.names)))


def _loaded(names: Iterable[str]) -> Iterator[str]:
    """Those names that are modules of the user's own; one that is not imported yet is looked for beside the others."""
    for name in names:
        if name not in sys.modules and not _find(name):
            continue
        if is_own(name):
            yield name


def _find(name: str) -> bool:
    """Import an own module that code would import later, so that its file is known."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in _NOT_SENT:
        return False
    try:
        # of the package first, without importing it: an installed one is none of ours, and may take long
        above = importlib.util.find_spec(top)
        if above is None or any(map(_is_installed, (above.origin or "", *(above.submodule_search_locations or ())))):
            return False
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return False
    origin = os.path.realpath(spec.origin) if spec is not None and spec.origin else ""
    if not origin.endswith(".py") or _is_installed(origin):
        return False
    try:
        importlib.import_module(name)
    except Exception:
        return False  # it would fail on the node too, and say so there
    return True
