"""What cluster objects need of a scheduler: the seam behind which it runs in this process or in another one.

`SchedulerService` is the scheduler itself, `dispy.sharing.remote.RemoteScheduler` speaks with one that programs share.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from dispy.buffers import Readable
from dispy.model import BlobRef, ComputationId, FileSpec, NodeInfo, ProcessId
from dispy.nodes import NodeAllocate
from dispy.recovery.recorder import Recorder
from dispy.scheduler.events import Steering
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.owner import ClusterOwner
from dispy.wire.pool import NodeStanding


class SchedulerAccess(Protocol):
    """A scheduler as clusters use it."""

    recorder: Recorder
    """Notes what `recover_jobs` needs if this process is killed."""

    # From any thread.

    @property
    def silence(self) -> str:
        """That the scheduler does not answer, as a sentence without its full stop; empty where it does."""

    def submit(self, record: JobRecord) -> None:
        """Queue a job; its end is told to the cluster's owner."""

    def cancel(self, record: JobRecord) -> None:
        """End a job, wherever it is."""

    def offer_arguments(self, parts: list[Readable]) -> BlobRef:
        """Let nodes fetch the arguments of a job, given in parts, until it has ended."""

    def arguments_of(self, record: JobRecord) -> bytes | memoryview | None:
        """The pickled arguments of a job; None when it has just ended."""

    def scatter(self, cluster: ComputationId, parts: list[Readable]) -> BlobRef:
        """Let nodes fetch a pickled object of a cluster by its hash, until `gather`, and while jobs hold it."""

    def hold_objects(self, blobs: Iterable[BlobRef]) -> None:
        """A job needs these, which were scattered, until `take_back` or `release_objects`."""

    # In the loop.

    def gather(self, cluster: ComputationId, blob: BlobRef) -> None:
        """Undo `scatter`."""

    def release_objects(self, blobs: Iterable[BlobRef]) -> None:
        """Undo `hold_objects` for a job that is not submitted."""

    async def offer_computation(
        self, code: bytes | None, files: Iterable[tuple[Path, str]]
    ) -> tuple[BlobRef | None, tuple[FileSpec, ...]]:
        """Let nodes fetch what a cluster needs (files: path here, path below the computation's directory), until it
        has ended.

        Raises:
            TransferError: a file cannot be read.
        """

    async def open_cluster(self, owner: ClusterOwner) -> None:
        """Take up a cluster.

        Raises:
            SettingsError: an interface that was named does not exist, or the scheduler does not take it.
        """

    def close_cluster(self, cluster: ComputationId, terminate: bool) -> None:
        """Finish or end the jobs of a cluster and clean up on its nodes; the owner hears `ended`."""

    def narrow(self, cluster: ComputationId) -> None:
        """Wait for no further nodes: jobs of the cluster that no known node can ever run end."""

    async def look_for_nodes(self, cluster: ComputationId, items: Iterable[NodeAllocate], *, lasting: bool) -> None:
        """Dial the hosts, and ask the network if there is a pattern; `lasting`: its jobs shall wait for these nodes.

        Raises:
            SettingsError: an interface does not exist.
        """

    def take_back(self, record: JobRecord) -> None:
        """What nodes could have fetched for a job is not wanted any more."""

    async def offer_for_job(self, files: Iterable[tuple[Path, str]]) -> tuple[FileSpec, ...]:
        """Let nodes fetch the files of one job, until it has ended. Raises as `offer_computation`."""

    async def explain(self, record: JobRecord) -> str:
        """Why a job is where it is: a sentence (or a few) that begins with `Job` and the record's number."""

    async def standings(self, cluster: ComputationId) -> list[NodeStanding]:
        """Every node that a cluster wants to use, and what keeps it from being given work."""

    async def nodes_matching(self, item: NodeAllocate) -> list[ProcessId]:
        """Nodes that an item of `nodes` is about; its host name must have been resolved."""

    async def uses(self, cluster: ComputationId, node: ProcessId) -> bool:
        """Whether a cluster wants to use a node, opened or not."""

    def offered_by(self, node: ProcessId) -> NodeInfo | None:
        """What a node says of itself; None when it is not known."""

    def steer(
        self, cluster: ComputationId, node: ProcessId, how: Steering, *, cpus: int = 0, terminate: bool = False
    ) -> None:
        """Change how a cluster uses a node."""

    async def jobs_at(self, cluster: ComputationId, node: ProcessId, *, from_node: bool) -> list[JobRecord]:
        """The jobs of a cluster that a node has; `from_node`: those that run there by its own account."""

    async def tail(self, record: JobRecord) -> tuple[bytes, bytes]:
        """The end of what a running job has printed: stdout and stderr; nothing when its node does not answer."""

    async def send_file(self, node: ProcessId, cluster: ComputationId, path: Path, destination: str) -> str:
        """Place a file into a computation's directory on a node; returns why that failed, else nothing.

        Raises:
            TransferError: the file cannot be read.
        """

    async def stop(self, reason: str = "the program is done", *, hurried: bool = False) -> None:
        """End all links; `hurried`: without waiting for what runs."""

    def abandon(self) -> None:
        """In a forked child: all of it belongs to the parent alone."""
