"""The directory of a daemon: which daemon it belongs to, and what may be removed there.

A daemon takes a directory that is missing or empty, and marks it with its name; afterwards it takes that one again and
no other. What is removed there goes by its name: what somebody else has put beside it stays.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from msgspec import Struct

LOCK: Final = "lock"
"""Locked as long as the daemon lives; may hold its pid."""
MARK: Final = "daemon"
"""Holds the name of the daemon's command."""
_LONGEST: Final = 32
_OTHERS_WRITE: Final = 0o022


class Kind(Struct, frozen=True):
    """What directories of one daemon are known by."""

    command: str
    names: frozenset[str]
    """All that it keeps at the top, beside its lock and the mark."""


NODE: Final = Kind(
    "dispynode",
    frozenset({"blobs", "environments", "identity", "init", "jobs", "left", "left.tmp", "named", "own", "spool"}),
)
SCHEDULER: Final = Kind(
    "dispyscheduler",
    frozenset(
        {"arguments", "blobs", "passing", "results"}
        | {f"jobs.sqlite{suffix}" for suffix in ("", "-journal", "-shm", "-wal")}
    ),
)
_COMMANDS: Final = frozenset({NODE.command, SCHEDULER.command})


def refusal(path: Path, kind: Kind) -> str:
    """Why a daemon does not use a directory, and what to do, as a sentence; empty when it may, or there is none.

    Raises:
        OSError: it cannot be read.
    """
    why = _why_not(path, kind) if path.exists() else ""
    alone = f"name one for the {kind.command} alone, as {path / kind.command}"
    return f"the directory {path} is not used: {why}; {alone}" if why else ""


def _why_not(path: Path, kind: Kind) -> str:
    found = {entry.name for entry in path.iterdir()}
    belongs_to = _short(path / MARK) if MARK in found else ""
    if belongs_to == kind.command:
        return ""
    if belongs_to in _COMMANDS:
        return f"it belongs to a {belongs_to}"
    if not found and path.stat().st_mode & _OTHERS_WRITE:
        return "others can write to it"
    # Without a mark: it was killed before it could write one, or the machine went down.
    own = {*kind.names, LOCK}
    if not belongs_to:
        own.add(MARK)
    lock = _short(path / LOCK) if LOCK in found else "" if not found else "none"
    if lock and not (lock.isascii() and lock.isdigit()):
        own = set()
    foreign = sorted(found - own)
    return f"it holds {foreign[0]}, which is not a {kind.command}'s" if foreign else ""


def _short(path: Path) -> str:
    """What stands in a mark or a lock; something else if this is neither."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "none"
        return os.read(fd, _LONGEST).decode("utf-8", "replace").strip()
    finally:
        os.close(fd)


def mark(path: Path, kind: Kind) -> None:
    """Note whose directory this is, which this daemon has locked. Raises OSError."""
    place = path / MARK
    if not place.exists() or _short(place) != kind.command:
        place.write_text(f"{kind.command}\n")


def empty(path: Path, kind: Kind, *, stay: frozenset[str] = frozenset()) -> None:
    """Remove what the daemon keeps there, by name, but not its lock, its mark and what is to `stay`. Raises OSError."""
    for name in sorted(kind.names - stay):
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry, ignore_errors=False)
        else:
            entry.unlink(missing_ok=True)


def remove(path: Path, kind: Kind) -> None:
    """Remove the directory, as far as nobody else has put anything there; what cannot be removed stays."""
    for name in sorted(kind.names):
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            _unlink(entry)
    _unlink(path / MARK)
    _unlink(path / LOCK)
    with contextlib.suppress(OSError):  # not empty
        path.rmdir()


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):  # never made, or out of reach
        path.unlink()


def remove_tree(path: Path, *, ignore_errors: bool = True) -> None:
    """Remove a directory with all that is in it; only for one that the daemon has made."""
    import shutil  # loads every compression there is: not for the start of a node

    shutil.rmtree(path, ignore_errors=ignore_errors)
