"""The files of results on the disk: their form, how they are written whole or not at all, read and checked."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from dispy import failpoints
from dispy.node.events import SpooledBatch
from dispy.wire.messages import JobsDone

_FORMAT: Final = b"dispy spool "
_MAGIC: Final = _FORMAT + b"1\n"
_DIGEST_SIZE: Final = 32
SUFFIX: Final = ".batch"
ASIDE: Final = ".unreadable"
UNFINISHED: Final = ".part"


class _Header(msgspec.Struct, array_like=True, frozen=True):
    """What stands in front of the bodies of a batch."""

    written_at: float
    message: JobsDone


class OtherVersionError(Exception):
    """A file of another version."""


def encode(written_at: float, message: JobsDone, bodies: Sequence[bytes | memoryview]) -> bytes:
    """A batch with its small bodies as it stands in a file; `written_at`: wall clock."""
    header = msgspec.msgpack.encode(_Header(written_at, message))
    content = b"".join((len(header).to_bytes(4, "big"), header, *bodies))
    return b"".join((_MAGIC, hashlib.sha256(content).digest(), content))


def read(path: Path) -> SpooledBatch:
    """Read a batch and check that it is whole.

    Raises:
        OtherVersionError: another version has written it.
        OSError, ValueError, MsgspecError: it cannot be read, or is not as it was written.
    """
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        if data.startswith(_FORMAT):
            raise OtherVersionError
        raise ValueError("it does not begin as it must")
    at = len(_MAGIC) + _DIGEST_SIZE
    content = memoryview(data)[at:]
    if hashlib.sha256(content).digest() != data[len(_MAGIC) : at]:
        raise ValueError("it is not as it was written")
    size = int.from_bytes(content[:4], "big")
    header = msgspec.msgpack.decode(content[4 : 4 + size], type=_Header)
    body = content[4 + size :]
    small = [done for done in header.message.jobs if done.blob is None]
    if sum(each.result_size + each.stdout_size + each.stderr_size + each.error_size for each in small) != len(body):
        raise ValueError("its bodies are not as long as it says")
    return SpooledBatch(header.message, [body], header.written_at)


def put(folder: Path, name: str, pieces: Iterable[bytes]) -> None:
    """Make a file that is on the disk as soon as it has its name."""
    temporary = folder / (name + UNFINISHED)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
        failpoints.hit("spool.before-rename")
        os.rename(temporary, folder / name)
        failpoints.hit("spool.after-rename")
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lease_of(text: str) -> bytes | None:
    """Name of the lease whose results stand in a folder of this name; None: no lease has it."""
    try:
        name = bytes.fromhex(text)
    except ValueError:
        return None
    return name if len(name) == _DIGEST_SIZE else None


def batch_name(number: int) -> str:
    """Name of the file with this batch."""
    return f"{number:020d}{SUFFIX}"


def number_of(path: Path) -> int:
    """Number of the batch in a file of this name; 0: it is no batch."""
    stem = path.name.removesuffix(SUFFIX)
    return int(stem) if stem != path.name and stem.isdigit() else 0
