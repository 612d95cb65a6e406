"""Files that somebody else names, written beneath a directory: no name leads outside, no link is followed."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dispy import failpoints
from dispy.errors import TransferError
from dispy.model import FileSpec
from dispy.wire.blobstore import DescriptorSink


def checked_parts(name: str) -> tuple[str, ...]:
    """The components of a relative POSIX path that stays below where it begins.

    Raises:
        TransferError: it does not.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise TransferError(f"{name!r} is not a relative path that stays inside its directory")
    return path.parts


def descend(root: int, parts: Sequence[str], mode: int = 0o700, *, owner: tuple[int, int] | None = None) -> int:
    """Open (and make) a directory below `root` without following a link on the way.

    What is made belongs to `owner` (user and group), if that is given.
    """
    current = os.dup(root)
    for part in parts:
        with contextlib.suppress(FileExistsError):  # then it is opened below, if it is a directory
            os.mkdir(part, mode, dir_fd=current)
            if owner is not None:
                os.chown(part, *owner, dir_fd=current, follow_symlinks=False)
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
        finally:
            os.close(current)
        current = below
    return current


class BeneathSink(DescriptorSink):
    """Writes a blob as a file beneath a directory: to a temporary name, renamed when it is complete and right."""

    def __init__(self, directory: Path, file: FileSpec) -> None:
        """Raises TransferError when the name leads outside."""
        self._directory = directory
        self._file = file
        self._parts = checked_parts(file.path)
        self._folder = -1
        self._temporary = ""
        super().__init__(file.blob, self._create)

    def finish(self) -> Path:
        """See `Sink`."""
        self.open()
        self.check()
        os.fchmod(self.fd, stat.S_IMODE(self._file.mode) & 0o777)
        if self._file.mtime > 0:
            os.utime(self.fd, (self._file.mtime, self._file.mtime))
        failpoints.hit("file.before-rename")
        os.rename(self._temporary, self._parts[-1], src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._temporary = ""
        self.discard()
        return self._directory.joinpath(*self._parts)

    def discard(self) -> None:
        """See `Sink`."""
        super().discard()
        if self._temporary:
            os.unlink(self._temporary, dir_fd=self._folder)
            self._temporary = ""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _create(self) -> int:
        root = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._folder = descend(root, self._parts[:-1], 0o777)
        finally:
            os.close(root)
        temporary = f".dispy-{secrets.token_hex(8)}.part"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=self._folder)
        self._temporary = temporary
        return fd
