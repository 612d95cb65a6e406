"""What nodes can fetch by its hash: files of a cluster until its end, files and objects for jobs until released."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dispy import config
from dispy.buffers import Readable
from dispy.errors import TransferError
from dispy.model import BlobRef, ComputationSpec, FileSpec
from dispy.settings import is_sendable
from dispy.wire.blobs import BlobSources


class FileOffers:
    """Offers contents of one scheduler. In the loop's thread, but for `offer_object` and `hold`."""

    def __init__(self, sources: BlobSources, specs: Callable[[], Iterable[ComputationSpec]]) -> None:
        """`specs` are the computations of all clusters that have not ended."""
        self._sources = sources
        self._specs = specs
        self.held: Counter[bytes] = Counter()
        """Contents that are no files of a cluster, and how many need each."""
        self._counting = threading.Lock()

    async def offer(self, files: Iterable[tuple[Path, str]]) -> tuple[FileSpec, ...]:
        """Make files fetchable by nodes: local path and path below the computation's directory.

        Raises:
            TransferError: a file cannot be read, or its name is not UTF-8.
        """
        offered = []
        most = config.MaxFileSize
        for path, destination in files:
            if not is_sendable(destination):
                raise TransferError(f"{destination!r} cannot be sent: the name of the file is not UTF-8; rename it")
            if most and path.exists() and path.stat().st_size > most:
                raise TransferError(
                    f"{path} has {path.stat().st_size:,} bytes; dispy.config.MaxFileSize allows {most:,}"
                )
            blob = await self._sources.offer_file(path)
            status = path.stat()
            offered.append(FileSpec(destination, blob, status.st_mode & 0o777, status.st_mtime))
        return tuple(offered)

    async def offer_held(self, files: Iterable[tuple[Path, str]]) -> tuple[FileSpec, ...]:
        """Make files fetchable until they are released. Raises as `offer`."""
        offered = await self.offer(files)
        self.hold(file.blob for file in offered)
        return offered

    def offer_object(self, parts: Sequence[Readable]) -> BlobRef:
        """Make a pickled object fetchable by its hash until it is released; from any thread."""
        hashed = hashlib.sha256()
        for part in parts:
            hashed.update(part)
        digest = hashed.digest()
        with self._counting:  # else the last user of the same content could withdraw it meanwhile
            self.held[digest] += 1
            return self._sources.offer_parts(parts, digest)

    def hold(self, blobs: Iterable[BlobRef]) -> None:
        """Keep what is offered fetchable until `release`; from any thread."""
        with self._counting:
            self.held.update(blob.name for blob in blobs)

    def release(self, blobs: Iterable[BlobRef]) -> None:
        """Undo `hold`, or `offer_object`."""
        names = [blob.name for blob in blobs]
        with self._counting:
            for name in names:
                self.held[name] -= 1
                if self.held[name] <= 0:
                    del self.held[name]
            self._let_go(names)

    def withdraw(self, spec: ComputationSpec) -> None:
        """Let go of what nodes can fetch for a cluster, unless another cluster offers the same content."""
        with self._counting:
            self._let_go(_blob_names(spec))

    def _let_go(self, names: Iterable[bytes]) -> None:
        needed = {name for spec in self._specs() for name in _blob_names(spec)}
        for name in names:
            if name not in needed and name not in self.held:
                self._sources.withdraw(name)


def _blob_names(spec: ComputationSpec) -> set[bytes]:
    names = {file.blob.name for file in spec.files}
    return names if spec.code is None else names | {spec.code.name}
