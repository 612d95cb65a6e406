"""What clients give to the scheduler for nodes, on its disk: fetched once, offered as long as somebody needs it.

Files and code are named by the hash of their content and shared by all clusters. Arguments of single jobs get a name
of the scheduler's own: one that a client draws could be that of another's.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dispy.errors import TransferError
from dispy.model import BlobRef, FileSpec
from dispy.wire.blobs import BlobExchange, BlobSources
from dispy.wire.blobstore import FileSink

_NAME_SIZE: Final = 32
_TEMPORARY: Final = ".tmp"
_NAME: Final = re.compile(r"\.?[0-9a-f]{32,64}(\.tmp)?(\.[0-9a-f]{8}\.part)?")
AGAIN_AFTER: Final = 2.0
"""Seconds until something is fetched again that could not be kept here."""


def may_pass(error: Exception) -> bool:
    """Whether this machine, not the client, is why something could not be fetched: that may be over in a moment."""
    return isinstance(error, OSError) or isinstance(error.__cause__, OSError)


class Staging:
    """The directory; in the loop's thread, files are touched in others."""

    def __init__(self, directory: Path, sources: BlobSources, held: Counter[bytes], max_file_size: int = 0) -> None:
        """Make the directories. What was being passed on when the scheduler ended is passed on anew.

        Args:
            directory: the scheduler's.
            sources: what nodes can fetch.
            held: contents that are offered, and how many clusters and jobs need each (see `FileOffers`).
            max_file_size: larger files (bytes; 0: no limit) are refused.

        Raises:
            OSError: they cannot be made.
        """
        self.blobs = directory / "blobs"
        self.arguments = directory / "arguments"
        self.passing = directory / "passing"
        self._sources = sources
        self._max_file_size = max_file_size
        self._held = held
        self._here: set[bytes] = set()
        """Contents whose files are complete."""
        self._arguments: list[bytes] = []
        """Those of jobs that the process before this one had, until `sweep`."""
        for directory in (self.blobs, self.arguments, self.passing):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in (*_ours(self.passing), *(path for path in _ours(self.blobs) if path.suffix == _TEMPORARY)):
            left.unlink()

    async def fetch(self, exchange: BlobExchange, refs: Iterable[BlobRef]) -> list[BlobRef]:
        """Fetch contents that are named by their hash, hold them, and offer them.

        Raises:
            TransferError: one of them cannot be had, or is too large.
        """
        fetched: list[BlobRef] = []
        try:
            for ref in refs:
                _check(ref)
                if not ref.hashed or len(ref.name) != _NAME_SIZE:
                    raise TransferError("a file must be named by its hash")
                if self._max_file_size and ref.size > self._max_file_size:
                    raise TransferError(
                        f"it has {ref.size:,} bytes; the scheduler's --max_file_size allows {self._max_file_size:,}"
                    )
                self._held[ref.name] += 1
                fetched.append(ref)
                if ref.name not in self._here:
                    await self._fetch(exchange, ref)
                self._offer(self._file(ref), ref)
        except BaseException:
            await self.drop(fetched)
            raise
        return fetched

    async def _fetch(self, exchange: BlobExchange, ref: BlobRef) -> None:
        """Each client's own content is taken, if two have the same one: one of them may never send it."""
        path = self.blobs / f"{secrets.token_hex(16)}{_TEMPORARY}"
        try:
            await exchange.fetch_into(FileSink(ref, path), ref, str(self.blobs))
            await asyncio.to_thread(_sync, path)
            if ref.name not in self._here:
                path.rename(self._file(ref))
                self._here.add(ref.name)
                await asyncio.to_thread(_sync, self._file(ref))
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def fetch_arguments(self, exchange: BlobExchange, ref: BlobRef) -> BlobRef:
        """Fetch the arguments of a job, and offer them under another name. Raises as `fetch`."""
        _check(ref)
        ours = BlobRef(os.urandom(_NAME_SIZE), ref.size, False)
        path = self.arguments_file(ours)
        await exchange.fetch_into(FileSink(ref, path), ref, str(self.arguments))
        await asyncio.to_thread(_sync, path)
        self._offer(path, ours)
        return ours

    def offer_again(self, ref: BlobRef) -> None:
        """After a restart: something needs this content, which lies here.

        Raises:
            TransferError: it does not.
        """
        if ref.hashed:
            self._held[ref.name] += 1
            self._here.add(ref.name)
            self._offer(self._file(ref), ref)
        else:
            self._arguments.append(ref.name)
            self._offer(self.arguments_file(ref), ref)

    def arguments_file(self, ref: BlobRef) -> Path:
        """Where the arguments of a job lie."""
        return self.arguments / ref.name.hex()

    async def drop(self, refs: Iterable[BlobRef]) -> None:
        """Undo `fetch`."""
        dropped = list(refs)
        for ref in dropped:
            self._held[ref.name] -= 1
            if self._held[ref.name] <= 0:
                del self._held[ref.name]
                self._sources.withdraw(ref.name)
        await self.remove(dropped)

    async def remove(self, refs: Iterable[BlobRef]) -> None:
        """These were withdrawn: remove the files of those that nothing else needs."""
        unneeded = []
        for ref in refs:
            if not ref.hashed:
                unneeded.append(self.arguments_file(ref))
            elif ref.name not in self._held and ref.name in self._here:
                self._here.discard(ref.name)
                aside = self.blobs / f"{secrets.token_hex(16)}{_TEMPORARY}"  # it may come again while it is removed
                self._file(ref).rename(aside)
                unneeded.append(aside)
        if unneeded:
            await asyncio.to_thread(_remove, unneeded)

    def _file(self, ref: BlobRef) -> Path:
        return self.blobs / ref.name.hex()

    async def sweep(self) -> None:
        """After a restart: remove contents that nothing needs."""
        needed = {name.hex() for name in self._held}
        await asyncio.to_thread(_remove_others, self.blobs, needed)
        offered = {name.hex() for name in self._arguments}
        self._arguments.clear()
        await asyncio.to_thread(_remove_others, self.arguments, offered)

    def _offer(self, path: Path, ref: BlobRef) -> None:
        try:
            self._sources.offer_path(path, ref)
        except OSError as error:
            raise TransferError(f"{path} cannot be read: {error.strerror}") from error


def _check(ref: BlobRef) -> None:
    if ref.size < 0:
        raise TransferError(f"it is said to have {ref.size} bytes")


def refs_of(files: Iterable[FileSpec]) -> list[BlobRef]:
    """The contents of files."""
    return [file.blob for file in files]


def _sync(path: Path) -> None:
    """Let a file and its name survive the death of the machine."""
    for each, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        fd = os.open(each, flags | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _remove_others(directory: Path, needed: set[str]) -> None:
    for path in _ours(directory):
        if path.name not in needed:
            path.unlink(missing_ok=True)


def _ours(directory: Path) -> list[Path]:
    """The files that a scheduler has made: their names are drawn or hashes, also while they are written."""
    return [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
