"""What the scheduler service needs of a cluster object on the user's side: the seam between the two."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct

from dispy.model import AvailInfo, ComputationSpec, ProcessId
from dispy.nodes import NodeView
from dispy.scheduler.effects import JobEnded, JobRequeued, JobSpoke, NodeClosed, NodeRefused
from dispy.scheduler.jobs import JobRecord


class Allocation(Struct, frozen=True):
    """How much of a node a cluster wants."""

    cpus: int
    depends: tuple[str, ...] = ()
    setup_args: bytes = b""
    oversubscribe: bool = False
    """`cpus` may be more than the node offers."""


class ClusterOwner(Protocol):
    """What the service needs of a cluster object. All methods are called in the event loop's thread, but `allocate`."""

    spec: ComputationSpec
    user: str
    """Whose it is where a scheduler is shared: user@host."""
    exclusive: bool
    """It wants no other cluster to run beside it."""
    reentrant: bool
    open_ended: bool
    may_embed: bool
    """Whether a node may be started on this machine when no other is heard of."""
    wants_local: bool
    """Whether one is to be started in any case."""
    wants_discovery: bool
    interval: float | None
    """Seconds between questions for nodes, when the user named them."""

    @property
    def allocates_slowly(self) -> bool:
        """Whether `allocate` runs the user's code, or asks a name server."""

    def named_nodes(self) -> Iterable[tuple[str, int]]:
        """Host and port of the nodes that were named."""

    def allocate(self, view: NodeView, local: bool) -> Allocation | None:
        """How much of a node to use; in a thread for files if that is slow, one call after another.

        None: the answer comes later, by `Allocating.answer`.
        """

    def jobs_started(self, view: NodeView | None, jobs: Iterable[JobRecord]) -> None:
        """Jobs were handed to a node."""

    def job_ended(self, ended: JobEnded, view: NodeView | None) -> bool:
        """A job has ended; called for each, then `batch_ended` once.

        Returns:
            Whether the durable marks are to wait for callbacks of the user's.
        """

    def batch_ended(self) -> None:
        """All jobs that ended in this round have been told."""

    def job_spoke(self, spoke: JobSpoke, view: NodeView | None) -> None:
        """A running job has an interim result."""

    def job_requeued(self, requeued: JobRequeued, view: NodeView | None) -> None:
        """An attempt was lost; the job waits again."""

    def node_opened(self, view: NodeView, cpus: int) -> None:
        """A node is ready for this cluster."""

    def node_closed(self, closed: NodeClosed) -> None:
        """A node is gone for this cluster, or is being set up anew for it."""

    def node_measured(self, node: ProcessId, avail: AvailInfo) -> None:
        """A node says what is free on its machine."""

    def node_offered(self, node: ProcessId, cpus: int, used: int) -> None:
        """A node offers another number of CPUs now, or the cluster uses another number of them."""

    def node_refused(self, view: NodeView | None, refused: NodeRefused) -> None:
        """A node cannot run this cluster's jobs."""

    def ended(self) -> None:
        """Everything of the cluster is done."""
