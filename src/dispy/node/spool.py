"""Results on the disk: one file per batch, and one for each large body, until they are acknowledged or too old.

Below `spool/` stands a directory for each lease, named by the SHA-256 of its token. A file has its name only once it
is whole and on the disk; what cannot be read again is set aside with a line in the log, never a crash. Files are
written and removed in a thread, one after another, several batches at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from dispy import failpoints, words
from dispy.errors import NodeError, TransferError
from dispy.model import BlobRef
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.spoolfiles import (
    ASIDE,
    SUFFIX,
    UNFINISHED,
    OtherVersionError,
    batch_name,
    encode,
    lease_of,
    number_of,
    put,
    read,
    sync_folder,
)
from dispy.wire.blobsources import BlobSources
from dispy.wire.messages import JobsDone
from dispy.words import counted

logger = logging.getLogger("dispy.node")

_COPY_SIZE: Final = 8 << 20
CLOSE_TIMEOUT: Final = 5.0
"""Seconds that the last writes may take when the node ends."""


class _Body(Struct, frozen=True):
    """A large body, to be copied from a descriptor of ours."""

    ref: BlobRef
    fd: int


class _Write(Struct, frozen=True):
    action: do.SpoolBatch
    bodies: list[_Body]


class _Written(Struct, frozen=True):
    """A batch on the disk."""

    jobs: int
    size: int
    blobs: tuple[BlobRef, ...]


_Key = tuple[bytes, int]
"""Name of the lease, number of the batch."""


class Spool:
    """The directory `spool` of a node. `load`, then `write` and `remove`, then `close`."""

    def __init__(
        self, directory: Path, sources: BlobSources, post: Callable[[ev.Event], None], *, most: int | None
    ) -> None:
        """`most`: bytes that it may take; None: as the disk has. `post` takes BatchesSpooled and SpoolFailed."""
        self.directory = directory
        self._sources = sources
        self._post = post
        self._most = most
        self._size = 0
        self._index: dict[_Key, _Written] = {}
        self._work: deque[_Write | do.UnspoolBatches] = deque()
        self._working: asyncio.Task[None] | None = None
        self.unreadable: Counter[bytes] = Counter()
        """Damaged files that `load` found, by the name of their lease."""
        self.trouble = ""
        """Why results cannot be written, for people; empty if they can, as far as is known."""

    def load(self, keep_seconds: float) -> dict[bytes, list[ev.SpooledBatch]]:
        """In a thread: read what an earlier daemon has left, and remove what was written too long ago.

        Raises:
            OSError: the directory cannot be made or read.
        """
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.directory.chmod(0o700)
        now = time.time()
        leases: dict[bytes, list[ev.SpooledBatch]] = {}
        for folder in sorted(self.directory.iterdir()):
            name = lease_of(folder.name)
            if name is None or not folder.is_dir() or folder.is_symlink():
                logger.warning("%s is no results of jobs; it is left alone", folder)
                continue
            found = list(self._load_lease(name, folder, now, keep_seconds))
            self._remove_strays(name, folder, now, keep_seconds)
            if aside := len(list(folder.glob(f"*{ASIDE}"))):
                self.unreadable[name] = aside
            if found:
                leases[name] = found
        if leases:
            count = sum(len(each.message.jobs) for found in leases.values() for each in found)
            logger.info("to be fetched of programs that are gone: %s", counted(count, "result"))
        return leases

    def offer(self) -> None:
        """Offer the large bodies that were found; on the loop's thread."""
        for (lease, _), written in self._index.items():
            for ref in written.blobs:
                self._sources.offer_path(self._body_path(lease, ref), ref)

    def _load_lease(self, name: bytes, folder: Path, now: float, keep_seconds: float) -> Iterator[ev.SpooledBatch]:
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                batch = read(path)
                if int(path.name.removesuffix(SUFFIX)) != batch.message.sequence:
                    raise ValueError("its name is not its number")
                blobs = tuple(done.blob for done in batch.message.jobs if done.blob is not None)
                for ref in blobs:
                    if (folder / ref.name.hex()).stat().st_size != ref.size:
                        raise ValueError("a large result beside it is not whole")
            except OtherVersionError:
                logger.warning(
                    "%s holds results that another version of dispy has written; it is left alone. Start that "
                    "version with this directory to have them fetched, or dispynode --clean to remove them",
                    path,
                )
                continue
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                logger.warning("%s holds results that cannot be read (%s); it is set aside as %s", path, error, ASIDE)
                with contextlib.suppress(OSError):  # then it is met again at the next start
                    path.rename(path.with_name(path.name + ASIDE))
                continue
            if batch.written_at + keep_seconds < now:
                path.unlink()
                continue
            self._note(name, batch.message, path.stat().st_size + sum(ref.size for ref in blobs), blobs)
            yield batch

    def _remove_strays(self, name: bytes, folder: Path, now: float, keep_seconds: float) -> None:
        """What belongs to no batch that can be read: unfinished files at once, the rest when it is too old."""
        wanted = {ref.name.hex() for (lease, _), each in self._index.items() if lease == name for ref in each.blobs}
        for path in folder.iterdir():
            is_known = path.name in wanted or (name, number_of(path)) in self._index
            if not is_known:
                with contextlib.suppress(OSError):  # it is met again at the next start
                    if path.name.endswith(UNFINISHED) or path.lstat().st_mtime + keep_seconds < now:
                        path.unlink()
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()

    def write(self, action: do.SpoolBatch) -> None:
        """Write a batch; BatchesSpooled or SpoolFailed is posted when that is done."""
        work = _Write(action, [])
        try:
            for done in action.message.jobs:
                if done.blob is not None:
                    fd = self._sources.open(done.blob.name)
                    assert fd is not None  # the body of a result is in a memfd until it is acknowledged
                    work.bodies.append(_Body(done.blob, fd))
        except (OSError, TransferError) as error:  # no descriptor is left
            _close(work)
            self._say(_why(error))
            asyncio.get_running_loop().call_soon(self._tell, [], [work])
            return
        self._work.append(work)
        self._begin()

    def trust(self, _action: do.TrustSpool) -> None:
        """Whatever the trouble was, nothing suffers from it any more."""
        self.trouble = ""

    def remove(self, action: do.UnspoolBatches) -> None:
        """Remove batches, after all that was asked before."""
        self._work.append(action)
        self._begin()

    async def close(self, *, keep: bool) -> None:
        """Wait until all is written, and say what waits here if the directory is to be kept."""
        if self._working is not None:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await asyncio.shield(self._working)
            except TimeoutError:
                logger.warning(
                    "results cannot be written to %s within %g s and are lost", self.directory, CLOSE_TIMEOUT
                )
        if self._index and keep:
            count = sum(written.jobs for written in self._index.values())
            logger.info(
                "not fetched yet of programs that are gone: %s in %s; fetching needs a dispynode with this directory",
                *(counted(count, "result"), self.directory),
            )

    def _begin(self) -> None:
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._do_all(), name="spool")

    async def _do_all(self) -> None:
        try:
            while self._work:
                group: list[_Write | do.UnspoolBatches] = list(self._work)
                self._work.clear()
                try:
                    done, failed = await asyncio.to_thread(self._do, group)
                except RuntimeError as error:  # no thread can be started
                    failed = [work for work in group if isinstance(work, _Write)]
                    for work in failed:
                        _close(work)
                    self._say(str(error))
                    self._work.extendleft(work for work in reversed(group) if isinstance(work, do.UnspoolBatches))
                    self._tell([], failed)
                    return  # what is to be removed is tried again with the next work
                self._tell(done, failed)
        finally:
            self._working = None

    def _tell(self, done: list[_Write], failed: list[_Write]) -> None:
        for each in done:
            for body in each.bodies:
                # The copy in memory is not needed any more; the file is gone if all was acknowledged meanwhile.
                with contextlib.suppress(OSError):
                    self._sources.offer_path(self._body_path(each.action.lease, body.ref), body.ref)
        spooled: defaultdict[bytes, list[int]] = defaultdict(list)
        for each in done:
            spooled[each.action.lease].append(each.action.message.sequence)
        for lease, numbers in spooled.items():
            self._post(ev.BatchesSpooled(lease, numbers))
        unwritten: defaultdict[bytes, list[int]] = defaultdict(list)
        for each in failed:
            unwritten[each.action.lease].append(each.action.message.sequence)
        for lease, numbers in unwritten.items():
            self._post(ev.SpoolFailed(lease, numbers))

    def _do(self, group: Sequence[_Write | do.UnspoolBatches]) -> tuple[list[_Write], list[_Write]]:
        """What could be written of it, and what could not."""
        done: list[_Write] = []
        failed: list[_Write] = []
        touched: set[Path] = set()
        for work in group:
            if isinstance(work, do.UnspoolBatches):
                self._remove(work)
                continue
            try:
                if failed:
                    raise NodeError(self.trouble)
                self._write(work)
                touched.add(self._folder(work.action.lease))
                done.append(work)
            except (OSError, NodeError) as error:
                self._say(_why(error))
                failed.append(work)
            finally:
                _close(work)
        try:
            for folder in touched:
                if folder.is_dir():  # else all of it has been removed again
                    sync_folder(folder)
        except OSError as error:
            self._say(_why(error))
            for each in done:
                self._remove(do.UnspoolBatches(each.action.lease, [each.action.message.sequence]))
            return [], [*done, *failed]
        if done and not failed and self.trouble:
            self.trouble = ""
            logger.info("results can be written to %s again", self.directory)
        return done, failed

    def _say(self, trouble: str) -> None:
        """Once, as long as it lasts."""
        if not self.trouble:
            logger.warning(
                "results are not kept in %s: %s. They stay in memory, and no new work is taken until that has changed",
                *(self.directory, trouble),
            )
        self.trouble = trouble

    def _write(self, work: _Write) -> None:
        message, lease = work.action.message, work.action.lease
        data = encode(time.time(), message, work.action.bodies)
        size = len(data) + sum(body.ref.size for body in work.bodies)
        if self._most is not None and self._size + size > self._most:
            raise NodeError(
                f"{words.size(self._size)} wait there already (--spool_size), which the programs that are gone may "
                "still fetch"
            )
        folder = self._folder(lease)
        if not folder.is_dir():
            if not self.directory.exists():  # somebody has removed it
                self.directory.mkdir(mode=0o700, parents=True)
            folder.mkdir(mode=0o700)
            sync_folder(self.directory)
        for body in work.bodies:
            put(folder, body.ref.name.hex(), _pieces(body))
        put(folder, batch_name(message.sequence), [data])
        self._note(lease, message, size, tuple(body.ref for body in work.bodies))

    def _remove(self, action: do.UnspoolBatches) -> None:
        folder = self._folder(action.lease)
        for number in action.sequences:
            written = self._index.pop((action.lease, number), None)
            if written is None:
                continue  # it could not be written
            self._size -= written.size
            # What cannot be removed now goes when the next daemon starts and it is too old.
            with contextlib.suppress(OSError):
                failpoints.hit("spool.before-unlink")
                (folder / batch_name(number)).unlink(missing_ok=True)
                failpoints.hit("spool.after-unlink")
                for ref in written.blobs:
                    self._body_path(action.lease, ref).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()

    def _note(self, lease: bytes, message: JobsDone, size: int, blobs: tuple[BlobRef, ...]) -> None:
        self._index[lease, message.sequence] = _Written(len(message.jobs), size, blobs)
        self._size += size

    def _folder(self, lease: bytes) -> Path:
        return self.directory / lease.hex()

    def _body_path(self, lease: bytes, ref: BlobRef) -> Path:
        return self._folder(lease) / ref.name.hex()


def _close(work: _Write) -> None:
    for body in work.bodies:
        os.close(body.fd)


def _pieces(body: _Body) -> Iterator[bytes]:
    for at in range(0, body.ref.size, _COPY_SIZE):
        piece = os.pread(body.fd, min(_COPY_SIZE, body.ref.size - at), at)
        if not piece:
            raise NodeError("a large result has become shorter")
        yield piece


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full"
        return error.strerror or type(error).__name__
    return str(error)
