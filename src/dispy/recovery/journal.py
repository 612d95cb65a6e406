"""What durable clusters leave beside a recovery file: the contents that their nodes need, and every job until it has
ended.

Jobs stand in segments of bounded size, together with their results while callbacks are still to tell of them. Segments
are removed from the oldest on when all their jobs have ended: a mark never stands before the job that it is about. What
is written survives the death of this process at once, and that of the machine as soon as the thread that follows has
made the disk keep it, for all that came meanwhile together.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from dispy.logs import logger
from dispy.model import ComputationId, JobDone, JobOptions, ProcessId
from dispy.recovery.book import (
    MAGIC,
    AnyEntry,
    Book,
    Contents,
    JobsHanded,
    JobsOver,
    JobStored,
    ResultKept,
    decode,
    encode,
)
from dispy.words import counted

SEGMENT_SIZE: Final = 64 << 20
"""Bytes after which a new segment is begun."""
UNKNOWN_NODE: Final = ProcessId("(unknown: the file that says it is damaged)")
"""The node of jobs of which nobody knows whether they have started."""
_PATTERN: Final = "jobs-*"
_SEGMENT: Final = re.compile(r"jobs-\d{6,}")
_CONTENT: Final = re.compile(r"[0-9a-f]{32,}(\.\d+)?")


class StorableJob(Protocol):
    """What is stored of a job."""

    job: int
    cluster: ComputationId
    args: bytes
    options: JobOptions | None


class EndedJob(Protocol):
    """What is told of a job that has ended."""

    @property
    def job(self) -> StorableJob:
        """The job."""

    @property
    def node(self) -> ProcessId | None:
        """Where it ended."""

    @property
    def done(self) -> JobDone | None:
        """What the node said."""

    @property
    def body(self) -> bytes | memoryview:
        """With these bytes."""


class Journal:
    """The store beside one recovery file. Contents may be kept from any thread; the rest belongs to the loop's."""

    def __init__(self, folder: Path, *, segment_size: int = SEGMENT_SIZE) -> None:
        """Make the folder.

        Raises:
            OSError: it cannot be made.
        """
        self._folder = folder
        self._segment_size = segment_size
        self._contents = folder / "contents"
        self._contents.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._number = 0
        self._fd = -1
        self._size = 0
        self._segment_of: dict[int, int] = {}
        """Where jobs stand that have not ended."""
        self._alive: Counter[int] = Counter()
        self._oldest = 1
        self._broken = False
        self._told_of_ids = False
        self._closing = threading.Lock()
        self._begin_segment()

    # ---- contents ----

    def keep_bytes(self, name: bytes, *parts: bytes | bytearray | memoryview) -> None:
        """Keep a content, in one or more parts, by its name. Raises OSError."""
        path = self._contents / name.hex()
        if not path.exists():
            _write_durably(path, lambda fresh: _write_parts(fresh, parts))

    def keep_file(self, name: bytes, source: Path) -> None:
        """Keep a copy of a file. Raises OSError."""
        import shutil  # few clusters are durable

        path = self._contents / name.hex()
        if not path.exists():
            _write_durably(path, lambda fresh: shutil.copyfile(source, fresh))

    def keep_hashed(self, source: Path) -> str:
        """Keep a copy of a file by its SHA-256; returns that in hexadecimal. Raises OSError."""
        with open(source, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        self.keep_file(digest.digest(), source)
        return digest.hexdigest()

    # ---- jobs ----

    def stored(self, jobs: Iterable[tuple[StorableJob, object, bytes]], now: float) -> None:
        """Jobs were submitted: each with its id and its arguments."""
        entries: list[AnyEntry] = []
        segment, where = self._number, self._segment_of
        for record, id, args in jobs:
            name = self._dump_id(id, record.job)
            entries.append(JobStored(record.job, record.cluster, name, args, record.options, now))
            where[record.job] = segment
        self._alive[segment] += len(entries)
        self._append(entries)

    def handed(self, node: ProcessId, jobs: list[int]) -> None:
        """Jobs are about to be sent to a node."""
        self._append([JobsHanded(node, jobs)])

    def kept(self, jobs: Sequence[EndedJob], address: Callable[[ProcessId], str]) -> None:
        """Jobs have ended and the program is still to be told: keep what their nodes said."""
        self._append(
            [
                ResultKept(ended.done, address(ended.node), bytes(ended.body))
                for ended in jobs
                if ended.done is not None and ended.node is not None
            ]
        )

    def over(self, jobs: Sequence[EndedJob], address: object = None) -> None:
        """Jobs have ended and the program knows; what became of them, and where, is its affair."""
        numbers = [ended.job.job for ended in jobs]
        self._append([JobsOver(numbers)])
        for job in numbers:
            segment = self._segment_of.pop(job, None)
            if segment is not None:
                self._alive[segment] -= 1
        self._remove_empty()

    def dropped(self, done: object, body: object, address: object) -> None:
        """The program knows that the job has ended otherwise."""

    def sync(self) -> None:
        """In a thread: let what was written survive the death of the machine. Raises OSError."""
        with self._closing:
            fd = -1 if self._fd < 0 else os.dup(self._fd)
        if fd >= 0:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Let go of it; may be called twice."""
        with self._closing:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _dump_id(self, id: object, job: int) -> bytes:
        """Pickle an id that is not just the job's number; its own code is never asked whether it is equal."""
        if type(id) is int and id == job:
            return b""
        try:
            return pickle.dumps(id, 5)
        except BaseException as error:  # also SystemExit, of the user's class: the job is worth more than its name
            if not self._told_of_ids:
                self._told_of_ids = True
                logger.warning(
                    "the id of job %d, an object of class %s, cannot be kept (pickling it raises %s): should this "
                    "program be killed, recover_jobs gives the job's number in its place (said once)",
                    job,
                    type(id).__name__,
                    type(error).__name__,
                )
            return b""

    def _append(self, entries: list[AnyEntry]) -> None:
        if self._fd < 0 or self._broken:
            return
        data = encode(entries)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._size += len(data)
            if self._size > self._segment_size:
                self._begin_segment()
        except OSError as error:
            # A gap would make a later run repeat what has ended, so nothing more is written at all.
            self._broken = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            logger.error(
                "durable jobs cannot be stored any more in %s (%s): what is submitted from now on is lost if this "
                "program is killed",
                self._folder,
                error.strerror,
            )

    def _begin_segment(self) -> None:
        path = self._folder / f"jobs-{self._number + 1:06}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(fd, MAGIC)
        self.close()
        self._fd, self._size = fd, len(MAGIC)
        self._number += 1
        self._remove_empty()

    def _remove_empty(self) -> None:
        while self._oldest < self._number and not self._alive[self._oldest]:
            del self._alive[self._oldest]
            (self._folder / f"jobs-{self._oldest:06}").unlink(missing_ok=True)
            self._oldest += 1


def load_jobs(book: Book, folder: Path) -> float:
    """Add the jobs beside a recovery file to its book; returns when the last was written (0: there are none).

    Raises:
        RecoveryError: a segment is none of ours.
        OSError: it cannot be read.
    """
    jobs = Book([book.program])
    written = 0.0
    for path in sorted(folder.glob(_PATTERN)):
        written = max(written, path.stat().st_mtime)
        data = path.read_bytes()
        if len(data) >= len(MAGIC):
            _add_segment(jobs, decode(data), path)
    book.take_in(jobs)
    return written


def _add_segment(jobs: Book, contents: Contents, path: Path) -> None:
    for number, entry in enumerate(contents.entries):
        if number in contents.gaps:
            _doubt(jobs)
        jobs.add(entry)
    if contents.gaps:
        if contents.gaps[-1] == len(contents.entries):
            _doubt(jobs)
        logger.warning(
            "%s is damaged: %s in it cannot be read. Jobs may be missing, and of those before it is not known "
            "whether they have started: they run again only if they may run twice",
            path,
            counted(len(contents.gaps), "place"),
        )


def _doubt(jobs: Book) -> None:
    """What cannot be read may have said of any job before that a node has it, or that it has ended."""
    for job in jobs.jobs:
        jobs.handed.setdefault(job, UNKNOWN_NODE)


def content(folder: Path, name: bytes) -> Path:
    """Where a content was kept."""
    return folder / "contents" / name.hex()


def remove_store(folder: Path) -> None:
    """Remove what a journal has left, by its names, and the folder when nothing else is in it: a folder with the name
    of the recovery file and `.d` may be somebody else's.
    """
    contents = folder / "contents"
    ours = [path for path in folder.glob(_PATTERN) if _SEGMENT.fullmatch(path.name)]
    ours += [path for path in contents.glob("*") if _CONTENT.fullmatch(path.name)]
    for path in ours:
        with contextlib.suppress(OSError):  # somebody else has removed it, or it is out of reach
            path.unlink()
    for place in (contents, folder):
        with contextlib.suppress(OSError):  # not empty, or gone
            place.rmdir()


def load_id(stored: JobStored) -> object:
    """The id that the program gave to a job, or the job's number. Not in the main thread: it would eat a Ctrl-C."""
    if not stored.id:
        return stored.job
    try:
        return pickle.loads(stored.id)
    except BaseException:  # a class of the user's can raise anything while it is rebuilt, KeyboardInterrupt as well
        return stored.job


def _write_parts(path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    with open(path, "wb") as file:
        file.writelines(parts)


def _write_durably(path: Path, write: Callable[[Path], object]) -> None:
    fresh = path.with_suffix(f".{os.getpid()}")
    try:
        write(fresh)
        fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
