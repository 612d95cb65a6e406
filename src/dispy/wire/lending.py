"""Files of a store that stand in a working directory without a copy: they are lent, and taken back.

A file that is lent has another name in the store and a second name where it stands. Who works there may change it, so
it counts as what it was only when it is known to be untouched, or nobody else has it any more and its hash is right.
To be called in threads, for one content one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from dispy.wire import stamps
from dispy.wire.pagecache import STEP, Trail

LEAST_SIZE: Final = 1 << 20
"""Bytes; smaller files are copied sooner than they are looked after."""
_SUFFIX: Final = ".lent"
_BLOCK: Final = 1 << 20
_CANNOT_COPY: Final = {errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}
"""Why a file system does not copy by itself."""
LEAST_UNREAD: Final = 16 << 20
"""Bytes; smaller files are read again sooner than one waits for a tick."""


def lent(path: Path) -> Path:
    """The name in the store of a file that is lent."""
    return path.with_name(path.name + _SUFFIX)


def is_lent(path: Path) -> bool:
    """Whether this is such a name. Its modification time is the user's; its status changed when it was used last."""
    return path.suffix == _SUFFIX


def lend(path: Path, folder: int, name: str) -> bool:
    """Give a file a second name in an open directory; False where the file system cannot.

    Raises:
        OSError: it is not there, or the name is taken.
    """
    aside = lent(path)
    os.rename(path, aside)  # what was lent before stays where it stands
    try:
        os.link(aside, name, dst_dir_fd=folder)
    except OSError:
        os.rename(aside, path)
        return False
    return True


class Untouched:
    """How lent files stood when they were lent: what stands so still need not be read. For any thread.

    Where the file system stamps every change of a file, of its names and of its rights, nobody can set that time.
    """

    def __init__(self) -> None:
        self._stamps: dict[bytes, _Stamp] = {}

    def note(self, name: bytes, fd: int) -> None:
        """This open file is lent now, if it has a second name, and nobody knows of it yet."""
        status = os.fstat(fd)
        if status.st_nlink < 2 or status.st_size < LEAST_UNREAD or stamps.is_coarse(status.st_ctime_ns):
            return
        if not stamps.are_true(fd):
            return
        time.sleep(stamps.TICK)  # a change at once could have the same stamp
        self._stamps[name] = _Stamp.of(status)

    def forget(self, name: bytes) -> None:
        """It is lent no more."""
        self._stamps.pop(name, None)

    def is_it(self, name: bytes, status: os.stat_result) -> bool:
        """Whether a file with this status is the one that was lent, and nobody has changed it."""
        return self._stamps.get(name) == _Stamp.of(status)

    @contextlib.contextmanager
    def removed(self, places: Mapping[bytes, Path]) -> Iterator[None]:
        """What removes names of lent files inside changes nothing else. `places`: by content, where the store has it
        when it is not lent.
        """
        same = [name for name, place in places.items() if self._is_at(name, place)]
        for name in same:
            self.forget(name)
        yield
        for name in same:
            with contextlib.suppress(OSError):  # taken back meanwhile, or out of reach: then it is read
                self._stamps.setdefault(name, _Stamp.of(os.stat(lent(places[name]))))

    def _is_at(self, name: bytes, place: Path) -> bool:
        try:
            return name in self._stamps and self.is_it(name, os.stat(lent(place)))
        except OSError:
            return False


class _Stamp(Struct, frozen=True):
    device: int
    inode: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_dev, status.st_ino, status.st_ctime_ns)


def take_back(path: Path, digest: bytes, untouched: Untouched) -> bool:
    """Have a file again that was lent, or a copy of one that still is; False if it is gone or was changed.

    Raises:
        OSError: the disk is full, or cannot be read.
    """
    aside = lent(path)
    try:
        with open(aside, "rb", buffering=0) as file:
            fd = file.fileno()
            status = os.fstat(fd)
            if status.st_nlink > 1:
                return _copy(fd, path, digest, untouched)
            right = untouched.is_it(digest, status) or _digest(fd) == digest
            untouched.forget(digest)
            if right:
                os.fchmod(fd, 0o600)
                if status.st_uid != os.getuid():
                    os.fchown(fd, os.getuid(), os.getgid())
    except FileNotFoundError:
        return False
    except PermissionError:  # who has it has taken our right to read it
        os.unlink(aside)
        return False
    if right:
        os.rename(aside, path)
    else:
        os.unlink(aside)
    return right


def _copy(source: int, path: Path, digest: bytes, untouched: Untouched) -> bool:
    temporary = path.with_name(f".{path.name}.copy.part")
    try:
        with open(temporary, "w+b", buffering=0) as target:
            os.fchmod(target.fileno(), 0o600)
            fd = target.fileno()
            copy_content(source, fd)
            status = os.fstat(source)
            is_same = untouched.is_it(digest, status) and os.fstat(fd).st_size == status.st_size
            right = is_same or _digest(fd) == digest
        if right:
            os.rename(temporary, path)
        return right
    finally:
        temporary.unlink(missing_ok=True)


def copy_content(source: int, target: int) -> None:
    """Copy an open file into an empty one; file systems that can let both have the same blocks do so.

    Raises:
        OSError: the disk is full, or cannot be read.
    """
    trails = (Trail(), source), (Trail(), target)
    at = 0
    while count := _copied(source, target, at):
        at += count
        for trail, fd in trails:
            trail.follow(fd, at)


def _copied(source: int, target: int, at: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, STEP, at, at)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
    block = os.pread(source, _BLOCK, at)
    rest, end = memoryview(block), at
    while rest:
        written = os.pwrite(target, rest, end)
        rest, end = rest[written:], end + written
    return len(block)


def _digest(fd: int) -> bytes:
    """The SHA-256 of an open file."""
    found, trail, at = hashlib.sha256(), Trail(), 0
    block = memoryview(bytearray(_BLOCK))
    while count := os.preadv(fd, [block], at):
        found.update(block[:count])
        at += count
        trail.follow(fd, at)
    return found.digest()
