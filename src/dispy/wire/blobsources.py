"""What this process offers to others by name: bytes in memory, memfds, and files.

Nothing is sent from here; `dispy.wire.blobs` does that. A file is offered as it is now: when it has changed by the
time it is asked for, it is gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from dispy.errors import TransferError
from dispy.model import BlobRef
from dispy.wire import stamps
from dispy.wire.slabs import slabs

_NAME_SIZE: Final = 32
_LEAST_REMEMBERED: Final = 1 << 20
"""Bytes; smaller files are read again sooner than one finds out whether they have changed."""


class SourceError(TransferError):
    """What was asked for cannot be given; the text says why, to the other side."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final
        """Whether the content is lost: asking again is of no use."""


class FileIdentity(Struct, frozen=True):
    """By what a file is recognized as unchanged."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """The identity of the file with this status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


_digests: Final[dict[tuple[FileIdentity, int], bytes]] = {}
"""By what a file was when it was read, and when anything of it was last changed (which nobody can set). Of the process:
its clusters come and go."""
_DIGESTS_LIMIT: Final = 4096


class MemorySource(Struct, frozen=True):
    """An offered content that is in memory, as bytes or as a memfd (read without waiting)."""

    ref: BlobRef
    parts: tuple[memoryview, ...] = ()
    """One after another they are the content."""
    fd: int = -1

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """The bytes asked for; never fewer. What lies in several parts is copied."""
        if self.fd >= 0:
            return _pread(self.fd, offset, size)
        pieces: list[memoryview] = []
        for part in self.parts:
            if offset < len(part):
                pieces.append(part[offset : offset + size])
                size -= len(pieces[-1])
                if not size:
                    break
            offset = max(offset - len(part), 0)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class OpenFile:
    """A descriptor that is closed when nobody has it any more, be it a thread that reads."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class FileSource(Struct, frozen=True):
    """An offered content that is in a file; to be read in a thread."""

    ref: BlobRef
    path: Path
    identity: FileIdentity
    opened: OpenFile | None = None
    """Where it is to be read, whatever has become of its path."""
    is_growing: bool = False
    """It is still being written, and who asks knows which parts are there."""

    def open(self) -> int:
        """A descriptor for reading.

        Raises:
            SourceError: it cannot be read, or is not the file that was offered.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC) if self.opened is None else os.dup(self.opened.fd)
        except OSError as error:
            is_removed = isinstance(error, FileNotFoundError)
            raise SourceError(f"{self.path} cannot be read: {error.strerror}", final=is_removed) from error
        if not self.is_growing and FileIdentity.of(os.fstat(fd)) != self.identity:
            os.close(fd)
            raise SourceError(f"{self.path} has changed since it was offered", final=True)
        return fd

    def read(self, fd: int, offset: int, size: int) -> memoryview:
        """The bytes asked for, from a descriptor of `open`."""
        return _pread(fd, offset, size)


class Offered(Protocol):
    """Where an exchange looks for what the other side asks for."""

    def find(self, name: bytes, *, hashed_only: bool = False) -> MemorySource | FileSource:
        """The source with this name. Raises SourceError."""


class BlobSources:
    """The contents that this process offers; one table for all its links.

    `offer_bytes` and `offer_parts` may be called from any thread; all else belongs to the thread of the loop.
    """

    def __init__(self) -> None:
        self._sources: dict[bytes, MemorySource | FileSource] = {}

    def offer_bytes(self, data: bytes, *, hashed: bool = False) -> BlobRef:
        """Offer bytes; they are kept until they are withdrawn.

        With `hashed` the name is the SHA-256, which takes some 1 ms per MB here and now; else it is random.
        """
        name = hashlib.sha256(data).digest() if hashed else os.urandom(_NAME_SIZE)
        ref = BlobRef(name, len(data), hashed)
        self._sources[name] = MemorySource(ref, (memoryview(data),))
        return ref

    def offer_parts(self, parts: Sequence[bytes | bytearray | memoryview], digest: bytes = b"") -> BlobRef:
        """Offer what these are one after another; nothing is copied, so they must not change.

        The name is the SHA-256 of all of it, if that is given, else random.
        """
        views = tuple(memoryview(part) for part in parts)
        ref = BlobRef(digest or os.urandom(_NAME_SIZE), sum(map(len, views)), bool(digest))
        self._sources[ref.name] = MemorySource(ref, views)
        return ref

    def offer_fd(self, fd: int, size: int) -> BlobRef:
        """Offer the first `size` bytes of a memfd. The descriptor is ours now: `withdraw` closes it."""
        ref = BlobRef(os.urandom(_NAME_SIZE), size, False)
        self._sources[ref.name] = MemorySource(ref, fd=fd)
        return ref

    async def offer_file(self, path: Path) -> BlobRef:
        """Offer a file by its SHA-256, which is remembered where any change of the file would be seen, until one is.

        Raises:
            TransferError: it cannot be read, or changes while it is read.
        """
        ref, identity = await asyncio.to_thread(self._describe, path)
        self._sources[ref.name] = FileSource(ref, path, identity)
        return ref

    def offer_open(self, fd: int, ref: BlobRef) -> None:
        """Offer an open file that is said to have this content (whoever fetches it checks). The descriptor is ours."""
        self._sources[ref.name] = FileSource(ref, Path("a job's file"), FileIdentity.of(os.fstat(fd)), OpenFile(fd))

    def offer_path(self, path: Path, ref: BlobRef) -> None:
        """Offer a file that has this content, under this name, instead of where it was offered from before.

        Raises:
            OSError: it is not there.
        """
        source = FileSource(ref, path, FileIdentity.of(path.stat()))
        self.withdraw(ref.name)
        self._sources[ref.name] = source

    def open(self, name: bytes) -> int | None:
        """A descriptor of an offered content, which is the caller's; None where it is not offered from one."""
        source = self._sources.get(name)
        if isinstance(source, FileSource):
            return source.open()
        return None if source is None or source.fd < 0 else os.dup(source.fd)

    def withdraw(self, name: bytes) -> None:
        """Offer it no more and let go of its memory; what is not offered is ignored."""
        source = self._sources.pop(name, None)
        if isinstance(source, MemorySource) and source.fd >= 0:
            os.close(source.fd)

    def offers(self, name: bytes) -> bool:
        """Whether something of this name is offered."""
        return name in self._sources

    def find(self, name: bytes, *, hashed_only: bool = False) -> MemorySource | FileSource:
        """The source with this name.

        Raises:
            SourceError: there is none (or, with `hashed_only`, none that is named by its hash).
        """
        source = self._sources.get(name)
        if source is None or (hashed_only and not source.ref.hashed):
            raise SourceError("it is not offered here")
        return source

    def close(self) -> None:
        """Withdraw everything."""
        for name in list(self._sources):
            self.withdraw(name)

    def _describe(self, path: Path) -> tuple[BlobRef, FileIdentity]:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # a device may have no end, a pipe may wait for ever
                raise TransferError(f"{path} is not a regular file")
            with open(path, "rb", buffering=0) as file:
                status, now = os.fstat(file.fileno()), time.time_ns()
                identity = FileIdentity.of(status)
                key = identity, status.st_ctime_ns
                digest = _digests.get(key)
                if digest is None:
                    is_worth = status.st_size >= _LEAST_REMEMBERED
                    will_tell = is_worth and stamps.will_tell(file.fileno(), status, now)
                    digest = hashlib.file_digest(file, "sha256").digest()
                    if FileIdentity.of(os.fstat(file.fileno())) != identity:
                        raise TransferError(f"{path} changed while it was read; submit again when it is complete")
                    if will_tell:
                        if len(_digests) >= _DIGESTS_LIMIT:
                            _digests.clear()
                        _digests[key] = digest
        except OSError as error:
            raise TransferError(f"{path} cannot be read: {error.strerror}") from error
        return BlobRef(digest, identity.size), identity


def _pread(fd: int, offset: int, size: int) -> memoryview:
    data = slabs.take(size)
    got = 0
    try:
        while got < size:
            count = os.preadv(fd, [data[got:]], offset + got)
            if not count:
                raise SourceError("it has become shorter", final=True)
            got += count
    except OSError as error:
        raise SourceError(f"it cannot be read: {error.strerror}") from error
    return data
