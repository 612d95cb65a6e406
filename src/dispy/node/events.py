"""What the node core is told. Past tense: these things have happened.

Events that carry jobs carry lists of them; the replies of a worker go in as the worker's host received them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct, field

from dispy.model import AvailInfo, BlobRef, ComputationId, FileSpec, ProcessId
from dispy.wire.messages import AnyMessage, JobsDone


class Reply(Protocol):
    """What the core reads of a worker's reply; `dispy.node.workers.Reply` is one."""

    sequence: int
    ending: int
    started_at: float
    ended_at: float
    result_size: int
    stdout_size: int
    stderr_size: int
    error_size: int
    body: bytes


class LinkOpened(Struct, frozen=True):
    """An authenticated link to a scheduler is up (it replaces an earlier one of the same process)."""

    peer: ProcessId


class LinkLost(Struct, frozen=True):
    """The link to a scheduler ended."""

    peer: ProcessId
    goodbye: bool
    """The other side said that it will not come back."""


class SchedulerSaid(Struct, frozen=True):
    """A message from a scheduler with the raw bytes behind it."""

    peer: ProcessId
    message: AnyMessage
    payload: bytes | memoryview = b""


class ComputationAdvanced(Struct, frozen=True):
    """A step of its preparation begins that may take long."""

    computation: ComputationId
    step: str


class ComputationPrepared(Struct, frozen=True):
    """Files, code and environment are here."""

    computation: ComputationId


class ForkServerStarted(Struct, frozen=True):
    """Its fork server stands: the code is loaded and setup has run."""

    computation: ComputationId


class ComputationFailed(Struct, frozen=True):
    """It cannot be prepared, or its fork server not started: Python differs, disk full, load or setup failed."""

    computation: ComputationId
    reason: str
    trace: str = ""
    final: bool = True
    lost: bool = False
    """The program does not have something of it any more."""


class ComputationCleaned(Struct, frozen=True):
    """Its processes and files are gone."""

    computation: ComputationId
    trace: str = ""
    shutdown: bool = False
    """Its cleanup function asked the node to end (`dispynode_shutdown`)."""


class ForkServerDied(Struct, frozen=True):
    """The process that holds setup's data ended, and all its workers with it; or it was killed while it started."""

    computation: ComputationId
    cause: str


class WorkerForked(Struct, frozen=True):
    """The worker exists and takes jobs."""

    worker: int


class WorkerAnswered(Struct, frozen=True):
    """Replies of one worker, in its order. `blobs`: for those with a large body, where it can be fetched."""

    worker: int
    replies: Sequence[Reply]
    blobs: Mapping[int, BlobRef] = field(default_factory=dict)


class WorkerSpoke(Struct, frozen=True):
    """The running job of a worker has an interim result; with `blob`, that is where it can be fetched."""

    worker: int
    reply: Reply
    blob: BlobRef | None = None


class FileSent(Struct, frozen=True):
    """The running job of a worker sends a file and waits; AnswerParcel tells it how that went."""

    parcel: int
    worker: int
    sequence: int
    file: FileSpec


class FilesLent(Struct, frozen=True):
    """The files that an attempt brings are in the computation's directory, or why they are not."""

    job: int
    attempt: int
    reason: str = ""
    no_room: bool = False
    """This node cannot store them, which another may."""


class ParcelDropped(Struct, frozen=True):
    """The job waits no longer for its file to arrive: it gave up, ended or died."""

    parcel: int


class TailRead(Struct, frozen=True):
    """What a running job has printed last."""

    peer: ProcessId
    job: int
    stdout: bytes
    stderr: bytes


class FileStored(Struct, frozen=True):
    """A file is in a computation's directory, or why it is not."""

    computation: ComputationId
    path: str
    reason: str = ""


class WorkerDied(Struct, frozen=True):
    """The worker's process ended; all replies that it had sent came before this."""

    worker: int
    running: int
    """Sequence of the job that it ran, 0 for none."""
    cause: str
    stdout: bytes = b""
    stderr: bytes = b""
    started: float = 0.0
    """Wall clock at which the running job had started."""
    ended: float = 0.0
    limited: bool = False
    """A limit ended it; the cause has the figures."""
    expected: bool = False
    """It ended as it should: asked to, or because a job had left it unfit for another."""
    setup_failed: bool = False
    """It was to run setup by itself, and that failed; stderr has the traceback."""
    exhausted: bool = False
    """It never was: the machine has no descriptors, processes or memory left; the cause says which."""


class WorkerRecalled(Struct, frozen=True):
    """The worker will not start the jobs with first <= sequence < before."""

    worker: int
    first: int
    before: int


class ArgumentsFetched(Struct, frozen=True):
    """The arguments that a blob names are here, in a memfd with this descriptor."""

    name: bytes
    descriptor: int


class ArgumentsFailed(Struct, frozen=True):
    """The arguments that a blob names cannot be had."""

    name: bytes
    reason: str
    no_room: bool = False
    """This node cannot store them, which another may."""


class ObjectFetched(Struct, frozen=True):
    """A scattered object lies in the node's store; the descriptor reads it."""

    name: bytes
    descriptor: int


class ObjectFailed(Struct, frozen=True):
    """A scattered object cannot be had."""

    name: bytes
    reason: str
    no_room: bool = False
    """This node cannot store it, which another may."""


class BatchesSpooled(Struct, frozen=True):
    """These batches of a lease are on the disk."""

    lease: bytes
    """Its name."""
    sequences: Sequence[int]


class SpoolFailed(Struct, frozen=True):
    """These batches of a lease could not be written; whoever wrote has said why."""

    lease: bytes
    sequences: Sequence[int]


class SpooledBatch(Struct, frozen=True):
    """A batch as it was found on the disk."""

    message: JobsDone
    bodies: Sequence[bytes | memoryview]
    written_at: float
    """Seconds since the epoch."""


class SpoolFound(Struct, frozen=True):
    """What an earlier daemon has left on the disk, by the names of leases, in the order of its numbers."""

    leases: Mapping[bytes, Sequence[SpooledBatch]]
    unreadable: Mapping[bytes, int] = field(default_factory=dict)
    """How many further files are damaged, where there are any."""


class LoadSampled(Struct, frozen=True):
    """The machine was looked at."""

    avail: AvailInfo


class OfferChanged(Struct, frozen=True):
    """The node offers so many CPUs from now on; 0 for a reason that people are told."""

    cpus: int
    reason: str = ""


class EndAsked(Struct, frozen=True):
    """Whoever holds the node must go, with everything that runs; the node stays."""

    reason: str


class ReleaseAsked(Struct, frozen=True):
    """Wait no longer for a holder that is gone."""


class ExitAsked(Struct, frozen=True):
    """The node shall end: after the jobs that are here, or at once."""

    at_once: bool
    when_fetched: bool = False
    """Not before the results are fetched, or too old."""


Event = (
    LinkOpened
    | LinkLost
    | SchedulerSaid
    | ComputationAdvanced
    | ComputationPrepared
    | ForkServerStarted
    | ComputationFailed
    | ComputationCleaned
    | ForkServerDied
    | WorkerForked
    | WorkerAnswered
    | WorkerSpoke
    | FileSent
    | FilesLent
    | ParcelDropped
    | TailRead
    | FileStored
    | WorkerDied
    | WorkerRecalled
    | ArgumentsFetched
    | ArgumentsFailed
    | ObjectFetched
    | ObjectFailed
    | BatchesSpooled
    | SpoolFailed
    | SpoolFound
    | LoadSampled
    | OfferChanged
    | EndAsked
    | ReleaseAsked
    | ExitAsked
)
