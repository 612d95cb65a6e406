"""Scattered objects in a worker: mapped from the node's file, unpickled when a job first asks, kept within bounds.

Large buffers of an object are read where they are mapped, in memory that all workers of the node share. The rest is
this worker's own and does not count as memory of its jobs, neither of the one during which it was made nor of those
that come after. Standard library and cloudpickle only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import resource
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dispy import buffers, pages
from dispy.node import linux, tripwires
from dispy.node.channel import MEMORY_AT_FORK

_DEFAULT_MOST: Final = 1 << 30
_UNCOUNTED: Final = 1 << 62
"""What a worker is said to have had at its fork while nothing that it takes shall count."""


class _Kept(NamedTuple):
    value: object
    grown: int
    """Bytes by which this process grew when it was unpickled."""


class Shelf:
    """The objects of which the daemon has told this worker."""

    def __init__(self, cell: memoryview, most: int) -> None:
        """`most`: bytes that unpickled objects may take, beside the one that was asked for last; 0: the default."""
        self.is_limited = False
        """The running job may use only so much memory."""
        self._cell = cell
        self._most = most or _DEFAULT_MOST
        self._bodies: dict[bytes, mmap.mmap] = {}
        self._unmapped: dict[bytes, str] = {}
        """Why objects could not be mapped."""
        self._kept: dict[bytes, _Kept] = {}
        """The one that was asked for last is the last."""

    def tell(self, info: Mapping[str, Any], fd: int) -> None:
        """Take what the daemon says: an object, with its file (whose descriptor is ours), or which to forget."""
        if fd >= 0:
            name = bytes.fromhex(info["object"])
            try:
                self._bodies[name] = pages.mapped(fd, shared=True)
            except OSError as error:  # a job has lowered a limit for good, for example: those that ask are told
                self._unmapped[name] = error.strerror or str(error)
            os.close(fd)
        for text in info.get("forget", ()):
            name = bytes.fromhex(text)
            self._bodies.pop(name, None)
            self._unmapped.pop(name, None)
            self._drop(name)

    def find(self, name: bytes) -> object:
        """The object with this name.

        Raises:
            LookupError: it is not here.
            MemoryError: it could not be mapped.
            Exception: what unpickling it raises.
        """
        kept = self._kept.pop(name, None)
        if kept is None:
            kept = self._load(name)
        self._kept[name] = kept
        while len(self._kept) > 1 and sum([each.grown for each in self._kept.values()]) > self._most:
            self._drop(next(iter(self._kept)))
        return kept.value

    def _load(self, name: bytes) -> _Kept:
        body = self._bodies.get(name)
        if name in self._unmapped:
            raise MemoryError(f"a scattered object could not be mapped by this worker: {self._unmapped[name]}")
        if body is None:
            raise LookupError(f"the scattered object {name.hex()[:12]} is not on this node")
        at_fork, before = self._cell[MEMORY_AT_FORK], linux.private_memory()
        reservable = resource.getrlimit(resource.RLIMIT_DATA)
        if self.is_limited:
            self._cell[MEMORY_AT_FORK] = _UNCOUNTED
            _set_reservable(reservable[1], reservable[1])
        grown = 0
        try:
            value = _unpickled(body)
            grown = max(0, linux.private_memory() - before)
        except Exception as error:
            error.add_note("This happened on the node, while a scattered object was unpickled.")
            raise
        finally:
            self._cell[MEMORY_AT_FORK] = at_fork + grown
            if self.is_limited:
                _set_reservable(reservable[0] + grown, reservable[1])
        return _Kept(value, grown)

    def _drop(self, name: bytes) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            self._cell[MEMORY_AT_FORK] -= min(kept.grown, self._cell[MEMORY_AT_FORK] - 1)


def _set_reservable(soft: int, hard: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # the job has lowered it for good
        tripwires.set_limit(resource.RLIMIT_DATA, (soft if hard < 0 else min(soft, hard), hard))


def _unpickled(body: mmap.mmap) -> object:
    """The value of a body; the buffers that lie apart in it are read-only, as the body is."""
    pickled, views = buffers.split(body)
    try:
        return pickle.loads(pickled, buffers=views)
    finally:
        del pickled, views  # Python 3.11 can crash when it collects garbage in which a frame refers to such views
