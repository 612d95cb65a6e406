"""Files of a store that stand in a working directory without a copy: they are lent, and taken back.

A file that is lent has another name in the store and a second name where it stands. Who works there may change it, so
it counts as what it was only when nobody else has it any more and its hash is right. To be called in threads, for
one content one at a time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

LEAST_SIZE: Final = 1 << 20
"""Bytes; smaller files are copied sooner than they are looked after."""
_SUFFIX: Final = ".lent"
_BLOCK: Final = 1 << 20


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


def take_back(path: Path, digest: bytes) -> bool:
    """Have a file again that was lent, or a copy of one that still is; False if it is gone or was changed.

    Raises:
        OSError: the disk is full, or cannot be read.
    """
    aside = lent(path)
    try:
        with open(aside, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if status.st_nlink > 1:
                return _copy(file.fileno(), path, digest)
            right = hashlib.file_digest(file, "sha256").digest() == digest
            if right:
                os.fchmod(file.fileno(), 0o600)
                if status.st_uid != os.getuid():
                    os.fchown(file.fileno(), os.getuid(), os.getgid())
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


def _copy(source: int, path: Path, digest: bytes) -> bool:
    found = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.copy.part")
    try:
        with open(temporary, "wb", buffering=0) as target:
            os.fchmod(target.fileno(), 0o600)
            while block := os.read(source, _BLOCK):
                found.update(block)
                rest = memoryview(block)
                while rest:
                    rest = rest[target.write(rest) :]
        if found.digest() != digest:
            return False
        os.rename(temporary, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)
