"""Where fetched blobs go: memory, a sealed memfd, or a directory of files named by the hash of their content.

A sink takes pieces in any order and hashes those that come in order while it writes them. All of its methods that
touch more than a little are called in a thread, one at a time; `dispy.wire.blobs` sees to that.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from dispy import failpoints, pages
from dispy.errors import TransferError
from dispy.model import BlobRef
from dispy.wire import lending
from dispy.wire.pagecache import Trail
from dispy.words import size

if TYPE_CHECKING:
    from dispy.wire.fetch import Fetch

Piece = tuple[int, bytes | memoryview]
"""Offset and content."""
T_co = TypeVar("T_co", covariant=True)

INLINE_SIZE: Final = 256 << 10
"""Blobs in memory up to this size are written and hashed in the loop: a thread would take longer."""
_PART_SUFFIX: Final = ".part"
_HASH_BLOCK: Final = 1 << 20
_LOCKS: Final = 16


class WrongContent(TransferError):
    """What arrived is not what its name promises."""


class ContentLost(TransferError):
    """Whoever offered it does not have this content any more, and nothing brings it back."""


class NoRoom(TransferError):
    """A content cannot be stored on this machine, which another may store."""


class Sink(Protocol[T_co]):
    """Takes the pieces of one blob."""

    @property
    def writes_inline(self) -> bool:
        """Whether `write` is so quick that it needs no thread."""

    def write(self, pieces: Sequence[Piece]) -> None:
        """Take pieces; raises OSError."""

    def finish(self) -> T_co:
        """All pieces are here: check them and give what was asked for. Raises TransferError and OSError."""

    def discard(self) -> None:
        """It is not wanted any more, finished or not: leave nothing behind but what has its place in a store."""


class MemorySink:
    """Collects a blob in memory, each piece where it belongs. What it makes can be written to."""

    writes_inline = True

    def __init__(self, ref: BlobRef) -> None:
        self._ref = ref
        self._memory = memoryview(b"")

    def write(self, pieces: Sequence[Piece]) -> None:
        """See `Sink`."""
        if not self._memory:
            self._memory = pages.private(self._ref.size)
        for offset, content in pieces:
            self._memory[offset : offset + len(content)] = content

    def finish(self) -> memoryview:
        """See `Sink`."""
        if self._ref.hashed:
            check_digest(self._ref, hashlib.sha256(self._memory).digest())
        return self._memory

    def discard(self) -> None:
        """See `Sink`."""
        self._memory = memoryview(b"")


class DescriptorSink:
    """Writes a blob through a descriptor, which is opened by the first write (or, without any, by `finish`)."""

    def __init__(self, ref: BlobRef, open_file: Callable[[], int], *, writes_inline: bool = False) -> None:
        self.fd = -1
        self.writes_inline = writes_inline
        self._ref = ref
        self._open_file = open_file
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._ahead: dict[int, int] = {}
        """Written and not hashed because something before it is missing: offset → size."""
        self._trail = Trail()

    def write(self, pieces: Sequence[Piece]) -> None:
        """See `Sink`."""
        self.open()
        for offset, content in pieces:
            rest, at = memoryview(content), offset
            while rest:
                written = os.pwrite(self.fd, rest, at)
                rest, at = rest[written:], at + written
            if not self._ref.hashed:
                continue
            if offset == self._hashed:
                self._digest.update(content)
                self._hashed += len(content)
                while size := self._ahead.pop(self._hashed, 0):
                    self._hash_written(size)
            elif offset > self._hashed:
                self._ahead[offset] = len(content)
            self._trail.follow(self.fd, self._hashed)

    def open(self) -> None:
        """Open the file unless it is open."""
        if self.fd < 0:
            self.fd = self._open_file()

    def check(self) -> None:
        """Compare content and name; what came out of order is read again for that. Raises TransferError."""
        if not self._ref.hashed:
            return
        self._hash_written(self._ref.size - self._hashed)
        digest, self._digest, self._hashed = self._digest.digest(), hashlib.sha256(), 0
        self._ahead.clear()  # after WrongContent parts are written anew
        check_digest(self._ref, digest)

    def _hash_written(self, size: int) -> None:
        while size > 0:
            block = os.pread(self.fd, min(_HASH_BLOCK, size), self._hashed)
            if not block:
                raise TransferError(f"{blob_text(self._ref)} was cut while it was written")
            self._digest.update(block)
            self._hashed += len(block)
            size -= len(block)

    def discard(self) -> None:
        """See `Sink`."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


class MemfdSink(DescriptorSink):
    """Collects a blob in a memfd that nobody can change afterwards."""

    def __init__(self, ref: BlobRef) -> None:
        super().__init__(ref, _anonymous_file, writes_inline=ref.size <= INLINE_SIZE)

    def finish(self) -> int:
        """See `Sink`; the descriptor belongs to the caller."""
        self.open()
        self.check()
        if hasattr(fcntl, "F_ADD_SEALS"):
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        return self.fd


class AsideSink(DescriptorSink):
    """Collects a blob in a file without a name, for what has no room in memory; what it gives cannot be written to."""

    def __init__(self, ref: BlobRef, directory: Path) -> None:
        self._directory = directory
        super().__init__(ref, self._create)

    def finish(self) -> int:
        """See `Sink`; the descriptor belongs to the caller."""
        self.open()
        self.check()
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        super().discard()
        return fd

    def _create(self) -> int:
        import tempfile  # few receive such

        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=self._directory, prefix=".", suffix=_PART_SUFFIX)
        os.unlink(name)
        os.fchmod(fd, 0o400)
        return fd


class FileSink(DescriptorSink):
    """Writes a blob into a temporary file and renames it when it is complete and right."""

    def __init__(self, ref: BlobRef, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART_SUFFIX}")
        super().__init__(ref, self._create)

    def finish(self) -> Path:
        """See `Sink`."""
        self.open()
        self.check()
        failpoints.hit("blobstore.before-rename")
        os.replace(self._temporary, self._path)
        failpoints.hit("blobstore.after-rename")
        super().discard()
        return self._path

    def discard(self) -> None:
        """See `Sink`."""
        super().discard()
        self._temporary.unlink(missing_ok=True)

    def _create(self) -> int:
        return os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


class BlobStore:
    """A directory of blobs, each in a file named by the hexadecimal digits of its SHA-256.

    It belongs to one process; `arriving` lets several exchanges of that process share the fetch of one blob, and
    `fetching` has what is on its way.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.arriving: dict[bytes, asyncio.Future[None]] = {}
        self.fetching: dict[bytes, Fetch[Any]] = {}
        self.untouched = lending.Untouched()
        self._prepared = False
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        """One content is lent and taken back by one thread at a time."""

    async def path_of(self, ref: BlobRef) -> Path | None:
        """The file with this content, or None when it is not here.

        Raises:
            TransferError: the directory cannot be used.
        """
        return await asyncio.to_thread(self._existing, ref)

    async def sink(self, ref: BlobRef) -> FileSink:
        """A place for a blob that is to come.

        Raises:
            NoRoom: it does not fit on the disk.
            TransferError: it is not named by its hash.
        """
        await asyncio.to_thread(self._check_room, ref)
        return FileSink(ref, self.place(ref))

    def _check_room(self, ref: BlobRef) -> None:
        self._prepare()
        try:
            status = os.statvfs(self.directory)
            if status.f_bavail * status.f_frsize < ref.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise write_error(ref, error, str(self.directory)) from error

    def _existing(self, ref: BlobRef) -> Path | None:
        self._prepare()
        path = self.place(ref)
        try:
            with self._lock_of(ref):
                if not path.exists() and not lending.take_back(path, ref.name, self.untouched):
                    return None
                if path.stat().st_size != ref.size:
                    return None
                os.utime(path)  # what was not used for longest is removed first where room is wanted
                return path
        except OSError as error:
            raise TransferError(f"{path} cannot be read: {error.strerror}") from error

    def lend(self, ref: BlobRef, folder: int, name: str) -> bool:
        """Give a file that is here a second name in an open directory; False where it has to be copied. In a thread.

        Whoever uses it there may change it; the store looks at it before it gives it to somebody else.

        Raises:
            FileNotFoundError: it was lent to somebody else in the meantime: ask `path_of` again.
            OSError: the name is taken.
        """
        with self._lock_of(ref):
            return ref.size >= lending.LEAST_SIZE and lending.lend(self.place(ref), folder, name)

    def removing(self, names: Iterable[bytes]) -> AbstractContextManager[None]:
        """While files with these contents are removed from where they were lent to: who has not changed them before
        need not be suspected of it afterwards.
        """
        return self.untouched.removed({name: self.directory / name.hex() for name in names})

    def readable(self, ref: BlobRef) -> Path | None:
        """The file, also when it is lent and may have been changed; None when it is not here. Does not look inside."""
        path = self.place(ref)
        return next((each for each in (path, lending.lent(path)) if each.exists()), None)

    def _lock_of(self, ref: BlobRef) -> threading.Lock:
        return self._locks[ref.name[0] % len(self._locks)]

    def _prepare(self) -> None:
        """Make the directory; remove what an earlier process left unfinished."""
        if self._prepared:
            return
        self._prepared = True
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self.directory.glob(f".*{_PART_SUFFIX}"):
                left.unlink(missing_ok=True)
        except OSError as error:
            self._prepared = False
            raise NoRoom(f"files cannot be kept in {self.directory}: {error.strerror}") from error

    def place(self, ref: BlobRef) -> Path:
        """Where the file with this content is, when it is here."""
        if not ref.hashed or len(ref.name) != 32:
            raise TransferError(f"{blob_text(ref)} is not named by its hash, so it cannot be kept as a file")
        return self.directory / ref.name.hex()


def blob_text(ref: BlobRef) -> str:
    """A blob as people read it: the first digits of its name, and its size."""
    return f"blob {ref.name.hex()[:12]} ({size(ref.size)})"


def check_digest(ref: BlobRef, digest: bytes) -> None:
    """Raises WrongContent when a content is not what its name promises."""
    if digest != ref.name:
        raise WrongContent(
            f"{blob_text(ref)} arrived with another content (its SHA-256 begins with {digest.hex()[:12]})"
        )


def write_error(ref: BlobRef, error: OSError, place: str) -> NoRoom:
    """What to say when a blob cannot be written."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoRoom(f"{blob_text(ref)} does not fit: the disk of {place} is full; make room there")
    return NoRoom(f"{blob_text(ref)} cannot be written to {place}: {error.strerror}")


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("dispy-blob", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    import tempfile  # where there are no files in memory

    fd, name = tempfile.mkstemp()
    os.unlink(name)
    return fd
