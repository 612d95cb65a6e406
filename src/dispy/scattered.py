"""`Scattered`: what `cluster.scatter` returns. Wherever it stands in the arguments of a job, the job gets the object.

In pickled arguments there is only its name (`dispy.namespace.scattered` is called with it in the worker). Whoever
pickles arguments learns from `naming` which objects they name, so that the job's node can fetch them first.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

from dispy import namespace
from dispy.errors import ClosedError, ShippingError
from dispy.model import BlobRef, ComputationId
from dispy.words import size

_open: weakref.WeakValueDictionary[bytes, Scattered] = weakref.WeakValueDictionary()
"""By the names of the objects; one each is enough for those who read arguments again."""


class _Pickling(threading.local):
    """What arguments are being pickled for in this thread."""

    cluster: ComputationId | None = None
    named: dict[bytes, Scattered] = {}  # noqa: RUF012 - never written to: whoever pickles puts his own here


_pickling = _Pickling()


class Scattered:
    """An object that lies on every node whose jobs need it, once, for all jobs of one cluster.

    It is freed when this is closed or forgotten, or the cluster closes; jobs that were submitted before still get it.
    """

    __slots__ = ("__weakref__", "_finalizer", "blob", "cluster", "of")

    def __init__(self, cluster: ComputationId, of: str, blob: BlobRef, release: Callable[[], object]) -> None:
        """`of` is what people call the cluster; `release` is called once, when nobody can name the object any more."""
        self.cluster = cluster
        self.of = of
        self.blob = blob
        self._finalizer = weakref.finalize(self, release)
        self._finalizer.atexit = False  # the end of the program frees everything
        _open[blob.name] = self

    @property
    def size(self) -> int:
        """Bytes that each node keeps of it."""
        return self.blob.size

    @property
    def is_closed(self) -> bool:
        """Whether jobs can be given it no more."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Free it as soon as the jobs that have been given it have ended; may be called twice."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[bytes], object], tuple[bytes]]:
        if _pickling.cluster is None:
            raise ShippingError(
                f"{self!r} can only stand in arguments of jobs, of submit and map: elsewhere (in an object that is "
                "scattered, in arguments of setup, in a file) put the object itself"
            )
        if _pickling.cluster != self.cluster:
            raise ShippingError(
                f"{self!r} can only be given to jobs of its cluster, as an argument or in one; scatter the object in "
                "the other cluster too (nodes that have it are not sent it again), or pass it itself"
            )
        if self.is_closed:
            raise ClosedError(f"{self!r} cannot be given to a job: scatter the object again")
        _pickling.named[self.blob.name] = self
        return namespace.scattered, (self.blob.name,)

    def __repr__(self) -> str:
        return f"<Scattered of {self.of}: {size(self.blob.size)}{', closed' if self.is_closed else ''}>"


def named_by(name: bytes) -> Scattered:
    """What stood in arguments that were pickled in this program; a closed one if it is forgotten."""
    known = _open.get(name)
    if known is None:
        known = Scattered(ComputationId(""), "a cluster", BlobRef(name, 0), int)
        known.close()
    return known


class naming:  # noqa: N801 - it is used as a function is, in front of every submit
    """While arguments of a job of this cluster are pickled in this thread: which scattered objects they name."""

    __slots__ = ("_before", "_cluster")

    def __init__(self, cluster: ComputationId) -> None:
        self._cluster = cluster

    def __enter__(self) -> dict[bytes, Scattered]:
        self._before = _pickling.cluster, _pickling.named
        _pickling.cluster = self._cluster
        named: dict[bytes, Scattered] = {}
        _pickling.named = named
        return named

    def __exit__(self, *error: object) -> None:
        _pickling.cluster, _pickling.named = self._before
