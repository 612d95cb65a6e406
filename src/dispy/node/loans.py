"""Files that jobs bring: each stands in a directory as long as a job there needs it, once for all that bring the same.

Two jobs that bring different files of one name wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

from msgspec import Struct, field

from dispy.errors import NodeError
from dispy.model import FileSpec
from dispy.node.workdir import Workdir
from dispy.wire import beneath
from dispy.wire.blobstore import BlobStore


class _Loan(Struct):
    blob: bytes
    users: int = 1
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """It stands there, or has failed to come and is forgotten."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Loans:
    """The files of jobs in one directory."""

    def __init__(self, workdir: Workdir, store: BlobStore, place: Callable[[FileSpec], Awaitable[None]]) -> None:
        """`place` fetches a file into the store and puts it into the directory."""
        self._workdir = workdir
        self._store = store
        self._place = place
        self._loans: dict[str, _Loan] = {}

    async def lend(self, files: tuple[FileSpec, ...], held: list[str]) -> None:
        """Put files there; the names of those that are to be returned are appended to `held` one by one.

        Raises:
            NodeError, TransferError: one cannot be had.
        """
        for file in sorted(files, key=lambda file: file.path):  # always in one order, so that nobody waits in a circle
            while not await self._lend_one(file, held):
                pass

    async def _lend_one(self, file: FileSpec, held: list[str]) -> bool:
        """False: look again."""
        path = file.path
        loan = self._loans.get(path)
        if loan is None:
            if path not in self._workdir.placed:
                await self._bring(file)
                held.append(path)
            elif self._workdir.placed[path] != file.blob.name:
                raise NodeError(f"the computation has another file {path}")
            return True
        if loan.blob != file.blob.name:
            await loan.gone.wait()
            return False
        await loan.settled.wait()
        if self._loans.get(path) is not loan:
            return False
        loan.users += 1
        held.append(path)
        return True

    async def _bring(self, file: FileSpec) -> None:
        loan = self._loans[file.path] = _Loan(file.blob.name)
        try:
            await self._place(file)
        except BaseException:
            self._end(file.path)
            raise
        finally:
            loan.settled.set()

    def give_back(self, held: list[str]) -> None:
        """A job needs these no more; what nobody else needs is removed."""
        for path in held:
            loan = self._loans[path]
            loan.users -= 1
            if not loan.users:
                self._end(path)

    def _end(self, path: str) -> None:
        self._loans.pop(path).gone.set()
        blob = self._workdir.placed.pop(path, None)
        if blob is not None:
            with self._store.removing([blob]):
                self._remove(path)

    def _remove(self, path: str) -> None:
        parts = beneath.checked_parts(path)
        with contextlib.suppress(OSError):  # a job has removed or moved it
            root = os.open(self._workdir.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                folder = beneath.descend(root, parts[:-1])
            finally:
                os.close(root)
            try:
                os.unlink(parts[-1], dir_fd=folder)
            finally:
                os.close(folder)
