"""What a node leaves lying about, kept within bounds: fetched files, environments, directories that were kept.

Each file of `blobs` and each directory of `environments`, `jobs` and `named` is one entry; those that were not used
for longest go first. What is in use, or was a moment ago, stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from dispy.owndirectory import remove_tree
from dispy.wire.lending import is_lent

STAMP: Final = ".used"
"""File in an environment whose time says when it was last used."""
LEAST_AGE: Final = 7200.0
"""Seconds for which an entry stays in any case: it may be about to be used, and what nodes use they stamp hourly."""
_TIDIED: Final = ".tidied"
_SHARED_INTERVAL: Final = 86400.0
_ENVIRONMENT_SUFFIXES: Final = ("", ".txt", ".log")


class Entry(Struct, frozen=True):
    """Something that may be removed as a whole."""

    path: Path
    size: int
    used_at: float
    """Seconds since the epoch."""


def surplus(entries: Iterable[Entry], now: float, *, keep_size: int | None, keep_seconds: float | None) -> list[Entry]:
    """Those that are to go: too old, and then those not used for longest until the others fit. Pure."""
    oldest_first = sorted(entries, key=lambda entry: entry.used_at)
    total = sum(entry.size for entry in oldest_first)
    gone = []
    for entry in oldest_first:
        age = now - entry.used_at
        too_old = keep_seconds is not None and age > keep_seconds
        too_much = keep_size is not None and total > keep_size
        if age >= LEAST_AGE and (too_old or too_much):
            gone.append(entry)
            total -= entry.size
    return gone


def tidy(
    prefix: Path, in_use: Collection[Path], now: float, *, keep_size: int | None, keep_seconds: float | None
) -> list[Entry]:
    """Remove what is surplus below a node's directory; returns what was removed. `in_use` are entries that stay."""
    return _remove_surplus(_entries(prefix), in_use, now, keep_size, keep_seconds)


def tidy_environments(
    environments: Path, in_use: Collection[Path], now: float, *, keep_size: int | None, keep_seconds: float | None
) -> list[Entry]:
    """The same for a directory of environments that nodes share; those that other nodes use have a fresh stamp."""
    entries = (_measure(path) for path in _inside(environments) if path.is_dir() and not path.is_symlink())
    return _remove_surplus(entries, in_use, now, keep_size, keep_seconds)


def is_due(environments: Path, now: float) -> bool:
    """Whether a day has passed since nodes that share it looked through this directory; notes that one does now."""
    mark = environments / _TIDIED
    if not environments.is_dir() or (mark.exists() and 0 <= now - mark.stat().st_mtime < _SHARED_INTERVAL):
        return False
    with contextlib.suppress(OSError):  # a full disk: then it is looked through once more
        touch(mark)
    return True


def _remove_surplus(
    found: Iterable[Entry], in_use: Collection[Path], now: float, keep_size: int | None, keep_seconds: float | None
) -> list[Entry]:
    entries = [entry for entry in found if not _is_used(entry.path, in_use)]
    gone = surplus(entries, now, keep_size=keep_size, keep_seconds=keep_seconds)
    for entry in gone:
        for suffix in _ENVIRONMENT_SUFFIXES if entry.path.parent.name == "environments" else ("",):
            _remove(entry.path.with_name(entry.path.name + suffix))
    return gone


def stamp(environments: Path, python: str) -> None:
    """Note that an interpreter is used, if it is one of the environments."""
    if environments in Path(python).parents:
        # The stamp decides only when it is removed; an interpreter that is there works without it.
        with contextlib.suppress(OSError):
            touch(environments / Path(python).relative_to(environments).parts[0] / STAMP)


def touch(path: Path) -> None:
    """Make an empty file, or set its time, without following a link that somebody else put there.

    Raises:
        OSError: it cannot be made.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.utime(file)
    finally:
        os.close(file)


def _is_used(path: Path, in_use: Collection[Path]) -> bool:
    return any(path == used or path in used.parents for used in in_use)


def _entries(prefix: Path) -> Iterator[Entry]:
    for path in _inside(prefix / "blobs"):
        with contextlib.suppress(OSError):  # it has just gone
            status = path.lstat()
            if status.st_nlink == 1:  # else it stands in a computation's directory, and does not go before that
                yield Entry(path, status.st_size, status.st_ctime if is_lent(path) else status.st_mtime)
    for path in (path for name in ("environments", "jobs", "named") for path in _inside(prefix / name)):
        if path.is_dir() and not path.is_symlink():
            yield _measure(path)


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # it is not there (yet)
        return []


def _measure(folder: Path) -> Entry:
    """A directory with all that is in it; used when it was stamped, else when something in it was last changed."""
    size, newest = 0, 0.0
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names, "."):
            with contextlib.suppress(OSError):  # it has just gone
                status = os.lstat(os.path.join(place, name))
                size += status.st_blocks * 512 if name != "." else 0
                newest = max(newest, status.st_mtime)
    with contextlib.suppress(OSError):
        newest = (folder / STAMP).stat().st_mtime  # without a stamp its changes count
    return Entry(folder, size, newest)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        # What cannot be removed is met again an hour later.
        with contextlib.suppress(OSError):
            path.unlink()
