"""The method of a cluster by which an object is given to its nodes once, for all jobs that need it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from dispy.clusterbase import ClusterBase
from dispy.errors import ClosedError, ShippingError
from dispy.model import BlobRef, ComputationId, JobDepends, JobOptions
from dispy.portal import Portal
from dispy.recovery.journal import Journal
from dispy.scattered import Scattered
from dispy.shipping import Shipment, dumps_object


class ObjectScattering(ClusterBase):
    """What a cluster does with objects that many jobs need."""

    _shipment: Shipment
    _journal: Journal | None
    _scattered: weakref.WeakSet[Scattered] | None = None
    """What was scattered and may still be named; None: nothing ever was."""
    _plain_needs: tuple[tuple[BlobRef, ...], JobOptions] | None = None
    """The options of the last job that needed objects and nothing else: the next one is often the same."""

    def scatter(self, obj: Any) -> Scattered:
        """Let nodes have an object once each; jobs that are given what is returned get the object in its place.

        It is pickled now: what is changed in it afterwards, jobs do not see. A node fetches it when its first job needs
        it; each worker unpickles it once. Buffers (arrays of numpy) are read-only there, and the workers of a node
        share their memory.

        Raises:
            ShippingError: it cannot be pickled (the message names the part), the cluster runs a program, or it cannot
                be kept for a durable cluster.
            ClosedError: the cluster is closed, or belongs to the parent of this process.
        """
        self._check_open()
        if self._ledger.is_sealed:
            raise ClosedError(f"cluster {self.name} is being closed; make another {type(self).__name__}")
        if self._shipment.kind == "program":
            raise ShippingError(
                f"{self.name} is a program, whose arguments are texts: write the object to a file and name that in "
                "depends"
            )
        parts = dumps_object(self._shipment, obj)
        blob = self.service.scatter(self._id, parts)
        scattered = Scattered(self._id, self.name, blob, _releasing(self._portal, self.service.gather, self._id, blob))
        if self._journal is not None:
            try:
                self._journal.keep_bytes(blob.name, *parts)
            except OSError as error:
                scattered.close()
                raise ShippingError(f"the object cannot be kept for a durable cluster: {error}") from error
        if self._scattered is None:
            self._scattered = weakref.WeakSet()
        self._scattered.add(scattered)
        return scattered

    def _needing(self, named: Iterable[Scattered], options: JobOptions | None) -> JobOptions:
        """The options of a job whose arguments name these; its node can fetch them until it has ended.

        Raises:
            ClosedError: another thread has just closed one.
        """
        needed = tuple(named)
        blobs = tuple(scattered.blob for scattered in needed)
        self.service.hold_objects(blobs)
        for scattered in needed:
            if scattered.is_closed:
                self._portal.post(self.service.release_objects, blobs)
                raise ClosedError(f"{scattered!r} cannot be given to a job: scatter the object again")
        if options is None and self._plain_needs is not None and self._plain_needs[0] == blobs:
            return self._plain_needs[1]
        depends = msgspec.structs.replace((options and options.depends) or JobDepends(), objects=blobs)
        needing = msgspec.structs.replace(options or JobOptions(), depends=depends)
        if options is None:
            self._plain_needs = blobs, needing
        return needing

    def _close_scattered(self) -> None:
        """The cluster is closed: nobody needs its objects any more."""
        for scattered in list(self._scattered or ()):
            scattered.close()


def _releasing(
    portal: Portal, gather: Callable[[ComputationId, BlobRef], object], cluster: ComputationId, blob: BlobRef
) -> Callable[[], object]:
    """What a `Scattered` calls at its end, in whatever thread collects it; it must not hold the cluster."""
    pid = os.getpid()

    def release() -> None:
        if os.getpid() == pid:  # in a fork everything belongs to the parent
            portal.post(gather, cluster, blob)

    return release
