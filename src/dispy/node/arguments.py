"""Arguments that came as blobs: fetched once, kept in one memfd, shared by all jobs of the lease that need them.

Part of the node's core: tables and effects, no descriptors touched.
"""

from __future__ import annotations

from collections.abc import Set

from msgspec import Struct, field

from dispy.model import BlobRef
from dispy.node import events as ev
from dispy.node.effects import Effects, FetchArguments, ForgetArguments
from dispy.node.serving import HeldJob, Lease


class _Shared(Struct):
    """One blob, for as long as a job needs it."""

    descriptor: int | None
    """None while it is being fetched."""
    jobs: set[HeldJob] = field(default_factory=set)


class ArgumentTable:
    """Every blob of arguments that a job needs, by name."""

    __slots__ = ("_blobs",)

    def __init__(self) -> None:
        self._blobs: dict[bytes, _Shared] = {}

    def expect(self, lease: Lease, job: HeldJob, blob: BlobRef, effects: Effects) -> None:
        """Queue a job whose arguments are the blob, at once or when they are here."""
        assert lease.peer is not None
        job.blob = blob
        shared = self._blobs.get(blob.name)
        if shared is None:
            shared = self._blobs[blob.name] = _Shared(None)
            effects.actions.append(FetchArguments(lease.peer, blob))
        shared.jobs.add(job)
        job.arguments = shared.descriptor
        job.admit()

    def fetch_again(self, lease: Lease, effects: Effects) -> None:
        """Another link speaks for the lease: what was being fetched comes over it."""
        assert lease.peer is not None
        for shared in self._blobs.values():
            if shared.descriptor is None:
                blob = next(iter(shared.jobs)).blob
                assert blob is not None
                effects.actions.append(FetchArguments(lease.peer, blob))

    def fetched(self, event: ev.ArgumentsFetched, effects: Effects) -> None:
        """Queue the jobs that waited for them."""
        shared = self._blobs.get(event.name)
        if shared is None or shared.descriptor is not None:
            effects.actions.append(ForgetArguments(event.name))
            return
        shared.descriptor = event.descriptor
        for job in sorted(shared.jobs, key=lambda job: job.job):
            job.arguments = event.descriptor
            job.admit()

    def waiting(self, name: bytes) -> list[HeldJob]:
        """The jobs that wait for this blob, in their order."""
        shared = self._blobs.get(name)
        if shared is None or shared.descriptor is not None:
            return []
        return sorted(shared.jobs, key=lambda job: job.job)

    def release(self, job: HeldJob, effects: Effects) -> None:
        """A job needs its blob no more; the last one lets it go."""
        assert job.blob is not None
        shared = self._blobs[job.blob.name]
        shared.jobs.discard(job)
        if not shared.jobs:
            del self._blobs[job.blob.name]
            effects.actions.append(ForgetArguments(job.blob.name))

    def check(self, held: Set[HeldJob]) -> None:
        """Compare with all jobs that are held.

        Raises:
            AssertionError: they differ, which is a bug here.
        """
        for name, shared in self._blobs.items():
            assert shared.jobs, "arguments that nobody needs"
            assert shared.jobs <= held
            assert all(job.blob is not None and job.blob.name == name for job in shared.jobs)
        needing = {job for job in held if job.blob is not None}
        assert needing == {job for shared in self._blobs.values() for job in shared.jobs}, "arguments were let go"
