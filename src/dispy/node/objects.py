"""Scattered objects: fetched once for the lease, kept in one file, shared by all jobs that need them.

An object outlives the jobs that need it for a while, since the next ones may; the workers that have it are told when
it goes. Part of the node's core: tables and effects, no descriptors touched.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from msgspec import Struct, field

from dispy.model import BlobRef
from dispy.node import events as ev
from dispy.node.effects import Effects, FetchObject, ForgetObject
from dispy.node.serving import HeldJob, Lease, Loan

IDLE_SECONDS: Final = 60.0
"""For so long an object stays that no job needs."""


class _Object(Struct):
    """One content, by whatever computations of the lease it is used."""

    blob: BlobRef
    descriptor: int | None = None
    """None while it is being fetched."""
    jobs: set[HeldJob] = field(default_factory=set)
    idle_at: float | None = None
    """Since when no job needs it; None: one does."""


class ObjectTable:
    """Every object that a job needs, or has needed a moment ago, by name."""

    __slots__ = ("_objects",)

    def __init__(self) -> None:
        self._objects: dict[bytes, _Object] = {}

    def expect(self, lease: Lease, job: HeldJob, loan: Loan, effects: Effects) -> None:
        """A job needs these objects; what is not here is fetched."""
        assert lease.peer is not None
        for blob in loan.objects:
            found = self._objects.get(blob.name)
            if found is None:
                found = self._objects[blob.name] = _Object(blob)
                effects.actions.append(FetchObject(lease.peer, blob))
            found.jobs.add(job)
            found.idle_at = None
            if found.descriptor is not None:
                loan.here[blob.name] = found.descriptor

    def fetch_again(self, lease: Lease, effects: Effects) -> None:
        """Another link speaks for the lease: what was being fetched comes over it."""
        assert lease.peer is not None
        for found in self._objects.values():
            if found.descriptor is None:
                effects.actions.append(FetchObject(lease.peer, found.blob))

    def fetched(self, event: ev.ObjectFetched, effects: Effects) -> None:
        """Queue the jobs that waited for it and for nothing else."""
        found = self._objects.get(event.name)
        if found is None or found.descriptor is not None:
            effects.actions.append(ForgetObject(event.name))
            return
        found.descriptor = event.descriptor
        for job in sorted(found.jobs, key=lambda job: job.job):
            assert job.loan is not None
            job.loan.here[event.name] = event.descriptor
            job.admit()

    def waiting(self, name: bytes) -> list[HeldJob]:
        """The jobs that wait for this object, in their order."""
        found = self._objects.get(name)
        if found is None or found.descriptor is not None:
            return []
        return sorted(found.jobs, key=lambda job: job.job)

    def release(self, job: HeldJob, loan: Loan, now: float, effects: Effects) -> None:
        """A job needs its objects no more."""
        for blob in loan.objects:
            found = self._objects[blob.name]
            found.jobs.discard(job)
            if found.jobs:
                continue
            if found.descriptor is None:
                self._forget(blob.name, effects)
            else:
                found.idle_at = now

    def deadline(self) -> float | None:
        """When the next object has been idle for too long."""
        idle = [found.idle_at for found in self._objects.values() if found.idle_at is not None]
        return min(idle) + IDLE_SECONDS if idle else None

    def forget_idle(self, now: float, effects: Effects, *, all_of_them: bool = False) -> None:
        """Let go of what no job has needed for a while, or needs now."""
        for name, found in list(self._objects.items()):
            if found.idle_at is not None and (all_of_them or now >= found.idle_at + IDLE_SECONDS):
                self._forget(name, effects)

    def _forget(self, name: bytes, effects: Effects) -> None:
        del self._objects[name]
        effects.actions.append(ForgetObject(name))

    def __bool__(self) -> bool:
        return bool(self._objects)

    def check(self, held: Set[HeldJob]) -> None:
        """Compare with all jobs that are held.

        Raises:
            AssertionError: they differ, which is a bug here.
        """
        needing: dict[bytes, set[HeldJob]] = {}
        for job in held:
            if job.loan is not None:
                here = job.loan.here
                for blob in job.loan.objects:
                    needing.setdefault(blob.name, set()).add(job)
                    assert here.get(blob.name) == self._objects[blob.name].descriptor, "a job waits for what is here"
        for name, found in self._objects.items():
            assert found.jobs == needing.pop(name, set()), "an object was let go, or is kept for jobs that are gone"
            assert (found.idle_at is None) == bool(found.jobs), "an object is kept for ever"
            assert found.jobs or found.descriptor is not None, "an object comes that nobody needs"
        assert not needing, "an object was let go"
