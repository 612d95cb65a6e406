"""A received file gets its place in a directory: lent by the store where that can be, else copied."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from dispy import failpoints
from dispy.model import FileSpec
from dispy.wire.blobstore import BlobStore
from dispy.wire.lending import copy_content


def place_file(folder: int, name: str, file: FileSpec, store: BlobStore, owner: tuple[int, int] | None) -> bool:
    """Put a file under a name into an open directory, complete or not at all; False: the store has lent it meanwhile.

    Args:
        owner: user and group to whom it shall belong, if not to this process's.

    Raises:
        OSError: it cannot be written.
    """
    temporary = f".dispy-{os.getpid()}-{file.blob.name.hex()[:16]}-{secrets.token_hex(4)}"
    try:
        target = _opened(folder, temporary, file, store)
        if target is None:
            return False
        try:
            if owner is not None:
                os.fchown(target, *owner)
            os.fchmod(target, stat.S_IMODE(file.mode) & 0o777)
            if file.mtime > 0:
                os.utime(target, (file.mtime, file.mtime))
            failpoints.hit("placed.before-rename")
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            if owner is None:  # else those to whom it is lent may want to deceive us
                store.untouched.note(file.blob.name, target)
        finally:
            os.close(target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    return True


def _opened(folder: int, name: str, file: FileSpec, store: BlobStore) -> int | None:
    is_readable = file.mode & stat.S_IRUSR  # else the store could not look at it afterwards
    try:
        if is_readable and store.lend(file.blob, folder, name):
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        return _copied(folder, name, store.place(file.blob))
    except FileNotFoundError:
        return None


def _copied(folder: int, name: str, source: Path) -> int:
    with open(source, "rb", buffering=0) as content:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            copy_content(content.fileno(), target)
        except BaseException:
            os.close(target)
            raise
    return target
