"""One recovery file on disk: made, locked, appended to, read, removed. What stands in it is in `book`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from dispy import failpoints, settings
from dispy.errors import RecoveryError
from dispy.logs import logger
from dispy.recovery.book import KIND, MAGIC, AllReturned, AnyEntry, Book, Contents, decode, encode
from dispy.words import counted

SUFFIX: Final = ".recover"
DAMAGED: Final = ".damaged-"
"""In the name of a file as it was, beside what could be read of it."""
KEEP_DAYS: Final = 30
"""Days after which a file in the default place is removed that nobody has recovered."""
_DAY: Final = 86400.0


class RecoveryFile:
    """An open recovery file that is ours: no other process uses it until it is closed. Methods may be called from any
    thread, but only one at a time changes what `book` says.
    """

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path = path
        self._fd = fd
        self._size = size
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, entries: Iterable[AnyEntry]) -> RecoveryFile:
        """Make a file with its first entries, in one step; one that is done with is replaced.

        Raises:
            RecoveryError: something else lies there: a file that is in use, not recovered yet, or of another kind.
            OSError: it cannot be written.
        """
        if os.path.lexists(path):
            _check_replaceable(path)
        return cls._write_whole(path, MAGIC + encode(entries))

    @classmethod
    def _write_whole(cls, path: Path, data: bytes) -> RecoveryFile:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_all(fd, data)
            os.fsync(fd)
            failpoints.hit("recovery.before-rename")
            os.replace(temporary, path)
            failpoints.hit("recovery.after-rename")
        except BaseException:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        return cls(path, fd, len(data))

    @classmethod
    def open(cls, path: Path) -> tuple[RecoveryFile, Book]:
        """Take over the file of a program that is gone, and cut off its torn tail.

        A file that is damaged before its tail is replaced by what can be read of it; as it was it stays beside.

        Raises:
            RecoveryError: it cannot be read, is in use, can be changed by others, or is no recovery file.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise RecoveryError(f"the recovery file {path} cannot be opened: {error.strerror}") from None
        try:
            _check_kind(path, fd)
            _check_private(path, os.fstat(fd))
            if not _try_lock(fd):
                raise RecoveryError(f"{path} is in use: {_by_whom(fd)}")
            contents, book = _read_book(fd, path)
            if contents.gaps:
                repaired = cls._repair(path, contents)
                os.close(fd)
                return repaired, book
            os.ftruncate(fd, contents.end)
        except OSError as error:
            os.close(fd)
            raise RecoveryError(f"the recovery file {path} cannot be read: {error.strerror}") from None
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, contents.end), book

    @classmethod
    def _repair(cls, path: Path, contents: Contents) -> RecoveryFile:
        """Put what can be read of a damaged file in its place; the file as it was stays beside. Raises OSError."""
        aside = path.with_name(f"{path.name}{DAMAGED}{secrets.token_hex(3)}")
        aside.hardlink_to(path)
        repaired = cls._write_whole(path, MAGIC + encode(contents.entries))
        logger.warning(
            "the recovery file %s is damaged: %s in it cannot be read, and what was said there of nodes, jobs and "
            "results is missing; all else in it is used. The file as it was lies in %s",
            path,
            counted(len(contents.gaps), "place"),
            aside,
        )
        return repaired

    def append(self, entries: Iterable[AnyEntry]) -> None:
        """Write entries behind what is there; they survive the death of this process at once.

        Raises:
            OSError: they cannot be written; nothing of them is in the file.
        """
        data = encode(entries)
        with self._lock:
            if self._fd < 0:
                return
            failpoints.hit("recovery.before-append")
            try:
                _write_all(self._fd, data)
            except OSError:
                os.ftruncate(self._fd, self._size)
                raise
            self._size += len(data)
        failpoints.hit("recovery.after-append")

    def sync(self) -> None:
        """Let what was appended survive the death of the machine as well. Raises OSError."""
        with self._lock:
            if self._fd >= 0:
                failpoints.hit("recovery.before-sync")
                os.fsync(self._fd)
                failpoints.hit("recovery.after-sync")

    @property
    def size(self) -> int:
        """Bytes of whole entries in it."""
        return self._size

    @property
    def store(self) -> Path:
        """The directory beside it with what durable clusters need."""
        return store_of(self.path)

    def finish(self, book: Book) -> None:
        """Nothing is left to recover: only the mark that says so stays. Raises OSError."""
        done = self._write_whole(self.path, MAGIC + encode([book.program, AllReturned()]))
        self.close()
        done.close()
        self._remove_store()

    def remove(self) -> None:
        """Remove it and let go of it: the program has ended in order."""
        with contextlib.suppress(OSError):  # somebody else has removed it, or its folder
            self.path.unlink()
        self._remove_store()
        self.close()

    def _remove_store(self) -> None:
        if os.path.exists(self.store):  # Path.exists raises where it must not look
            from dispy.recovery.journal import remove_store  # few clusters are durable

            remove_store(self.store)

    def close(self) -> None:
        """Let go of it; may be called twice. Also in a forked child, where its lock would outlive the parent's."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def store_of(path: Path) -> Path:
    """The directory beside a recovery file."""
    return path.with_name(f"{path.name}.d")


def default_folder() -> Path:
    """Where recovery files are unless a path is given."""
    return settings.state_dir() / "recover"


def new_path() -> Path:
    """A path for a new file in the default place, whose folder is made.

    Raises:
        OSError: the folder cannot be made.
        RecoveryError: this user has no home directory.
    """
    folder = default_folder()
    if not folder.is_absolute():
        raise RecoveryError("this user has no home directory")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return folder / f"{stamp}-{os.getpid()}-{secrets.token_hex(3)}{SUFFIX}"


def unfinished() -> Iterator[tuple[Path, Book]]:
    """Files in the default place that no program uses and that are not done with, the newest first."""
    found: list[tuple[float, Path, Book]] = []
    for path in default_folder().glob(f"*{SUFFIX}"):
        with contextlib.suppress(RecoveryError):  # in use, or none of ours
            file, book = RecoveryFile.open(path)
            file.close()
            if not book.is_done:
                found.append((book.program.started_at, path, book))
    for _, path, book in sorted(found, key=lambda each: each[0], reverse=True):
        yield path, book


def prune() -> None:
    """Remove files from the default place that are done with for a day, or were left there long ago."""
    now = time.time()
    for path in default_folder().glob(f"*{SUFFIX}"):
        with contextlib.suppress(RecoveryError, OSError):  # in use, none of ours, or gone meanwhile
            age = now - path.stat().st_mtime
            if age < _DAY:
                continue
            file, book = RecoveryFile.open(path)
            if book.is_done or age > KEEP_DAYS * _DAY:
                file.remove()
            file.close()
    for aside in default_folder().glob(f"*{SUFFIX}{DAMAGED}*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if now - aside.stat().st_mtime > KEEP_DAYS * _DAY:
                aside.unlink()


def _check_replaceable(path: Path) -> None:
    try:
        file, book = RecoveryFile.open(path)
    except RecoveryError as error:
        raise RecoveryError(f"{error}; name another file, or remove this one") from None
    file.close()
    if not book.is_done:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(book.program.started_at))
        raise RecoveryError(
            f"{path} belongs to {book.program.program}, which began at {began} and did not end in order: fetch its "
            f"results first with dispy.recover_jobs({str(path)!r}) or `dispy recover {path}`, or remove the file"
        )


def _read_book(fd: int, path: Path) -> tuple[Contents, Book]:
    with open(os.dup(fd), "rb") as file:
        file.seek(0)
        data = file.read()
    try:
        contents = decode(data)
        return contents, Book(contents.entries)
    except RecoveryError as error:
        raise RecoveryError(f"{path} cannot be used: {error}") from None


def _by_whom(fd: int) -> str:
    """Who has the file, for people; the entry that says so was written whole before the file had its name."""
    try:
        with open(os.dup(fd), "rb") as file:
            file.seek(0)
            program = Book(decode(file.read()).entries).program
    except RecoveryError:
        return "another program has it open"
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(program.started_at))
    return (
        f"the program that writes it still runs ({program.program}, process {program.pid} on {program.host}, since "
        f"{began}), or it is being recovered by another"
    )


def _check_kind(path: Path, fd: int) -> None:
    """Refuse what was never one of ours, before any word about who may read it."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise RecoveryError(f"{path} is no recovery file: it is not a regular file")
    if not os.pread(fd, len(KIND), 0).startswith(KIND):
        raise RecoveryError(f"{path} is not a recovery file of dispy")


def _check_private(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise RecoveryError(
            f"the recovery file {path} belongs to another user (uid {status.st_uid}), and what it names is opened as "
            "Python objects: copy it if you trust him"
        )
    if status.st_mode & 0o077:
        raise RecoveryError(f"others can read or change the recovery file {path}: run `chmod 600 {path}`")


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
