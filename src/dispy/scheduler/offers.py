"""The files that nodes can fetch from this program: of a cluster until its end, others until they are released."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from dispy import config
from dispy.errors import TransferError
from dispy.model import ComputationSpec, FileSpec
from dispy.settings import is_sendable
from dispy.wire.blobs import BlobSources


class FileOffers:
    """Offers files of one scheduler. In the loop's thread."""

    def __init__(self, sources: BlobSources, specs: Callable[[], Iterable[ComputationSpec]]) -> None:
        """`specs` are the computations of all clusters that have not ended."""
        self._sources = sources
        self._specs = specs
        self.held: Counter[bytes] = Counter()
        """Contents offered for single jobs and nodes."""

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
        self.hold(offered)
        return offered

    def hold(self, files: Iterable[FileSpec]) -> None:
        """Keep files fetchable that belong to no cluster, until `release`."""
        self.held.update(file.blob.name for file in files)

    def release(self, files: Iterable[FileSpec]) -> None:
        """Undo `hold`."""
        names = [file.blob.name for file in files]
        self.held -= Counter(names)
        self._let_go(names)

    def withdraw(self, spec: ComputationSpec) -> None:
        """Let go of what nodes can fetch for a cluster, unless another cluster offers the same content."""
        self._let_go(_blob_names(spec))

    def _let_go(self, names: Iterable[bytes]) -> None:
        needed = {name for spec in self._specs() for name in _blob_names(spec)}
        for name in names:
            if name not in needed and name not in self.held:
                self._sources.withdraw(name)


def _blob_names(spec: ComputationSpec) -> set[bytes]:
    names = {file.blob.name for file in spec.files}
    return names if spec.code is None else names | {spec.code.name}
