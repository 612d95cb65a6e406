"""What the node core wants done. The service performs the actions first, then the sends, each in order.

Actions come first because workers that wait for jobs cost more than a message that leaves some microseconds
later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dispy.model import BlobRef, ComputationId, ComputationSpec, FileSpec, ProcessId
from dispy.wire.messages import AnyMessage, JobsDone

Arguments = bytes | memoryview | int
"""Arguments of a job: the bytes, or the descriptor of a memfd that holds them."""


@dataclass(slots=True, frozen=True)
class Send:
    """Send a message to a scheduler; `payload` are the raw parts behind its header."""

    peer: ProcessId
    message: AnyMessage
    payload: Sequence[bytes | memoryview] = ()


@dataclass(slots=True, frozen=True)
class PrepareComputation:
    """Fetch code and files from the peer, start the fork server, run setup.

    Answered by ComputationPrepared or ComputationFailed.
    """

    peer: ProcessId
    computation: ComputationSpec
    setup_args: bytes


@dataclass(slots=True, frozen=True)
class RestartComputation:
    """Start its fork server again, with setup. Answered like PrepareComputation."""

    computation: ComputationId


@dataclass(slots=True, frozen=True)
class CleanComputation:
    """Give up preparing, run cleanup if asked, end its processes, remove its files.

    Answered by ComputationCleaned.
    """

    computation: ComputationId
    run_cleanup: bool


@dataclass(slots=True, frozen=True)
class ForkWorker:
    """Answered by WorkerForked or WorkerDied."""

    computation: ComputationId
    worker: int


@dataclass(slots=True, frozen=True)
class JobExtra:
    """What a job gets beyond its arguments."""

    cpus: int = 1
    memory: int = 0
    gpus: tuple[int, ...] = ()
    """Which of the node's, counted from 0."""


@dataclass(slots=True, frozen=True)
class FeedWorker:
    """Hand jobs to a worker: (sequence, arguments) each, sequences without gaps."""

    computation: ComputationId
    worker: int
    jobs: list[tuple[int, Arguments]]
    extra: JobExtra | None = None
    """What the job (then there is one) gets beyond its arguments."""


@dataclass(slots=True, frozen=True)
class RecallFromWorker:
    """Take back what the worker has not started of the sequences below `before`.

    Answered by WorkerRecalled.
    """

    computation: ComputationId
    worker: int
    before: int


@dataclass(slots=True, frozen=True)
class CancelInWorker:
    """Interrupt this job if the worker runs it (or begins it)."""

    computation: ComputationId
    worker: int
    sequence: int


@dataclass(slots=True, frozen=True)
class SignalWorker:
    """Send this signal to the worker's group if it still runs this job."""

    computation: ComputationId
    worker: int
    sequence: int
    signal: int


@dataclass(slots=True, frozen=True)
class RetireWorker:
    """Let an idle worker end. Answered by WorkerDied."""

    computation: ComputationId
    worker: int


@dataclass(slots=True, frozen=True)
class FetchArguments:
    """Fetch arguments into a memfd. Answered by ArgumentsFetched or ArgumentsFailed."""

    peer: ProcessId
    blob: BlobRef


@dataclass(slots=True, frozen=True)
class ForgetArguments:
    """No job needs these arguments any more: close the memfd, or stop fetching."""

    name: bytes


@dataclass(slots=True, frozen=True)
class AnswerParcel:
    """Tell the job that sent a file whether it has arrived."""

    parcel: int
    taken: bool


@dataclass(slots=True, frozen=True)
class ReadTail:
    """Read what the job has printed last, if the worker still runs it. Answered by TailRead."""

    peer: ProcessId
    computation: ComputationId
    worker: int
    sequence: int
    job: int


@dataclass(slots=True, frozen=True)
class LendFiles:
    """Put the files that an attempt brings into the computation's directory. Answered by FilesLent."""

    computation: ComputationId
    job: int
    attempt: int
    files: tuple[FileSpec, ...]


@dataclass(slots=True, frozen=True)
class ReturnFiles:
    """An attempt needs its files no more: remove those that no other needs, or stop fetching."""

    computation: ComputationId
    job: int
    attempt: int


@dataclass(slots=True, frozen=True)
class StoreFile:
    """Fetch a file into a computation's directory. Answered by FileStored."""

    computation: ComputationId
    file: FileSpec


@dataclass(slots=True, frozen=True)
class WithdrawResults:
    """Nobody will fetch these bodies any more."""

    names: list[bytes]


@dataclass(slots=True, frozen=True)
class SpoolBatch:
    """Write this batch to the disk, below the name of its lease. Answered by BatchesSpooled or SpoolFailed."""

    lease: bytes
    message: JobsDone
    bodies: Sequence[bytes | memoryview]


@dataclass(slots=True, frozen=True)
class UnspoolBatches:
    """Nobody needs these batches any more: remove them from the disk."""

    lease: bytes
    sequences: list[int]


@dataclass(slots=True, frozen=True)
class TrustSpool:
    """Nothing waits for a disk that could not be written: take work again."""


@dataclass(slots=True, frozen=True)
class NoteLease:
    """The lease with this name has begun; asked only of a node whose address nobody else can know."""

    lease: bytes


@dataclass(slots=True, frozen=True)
class HangUp:
    """End the link to this scheduler with a goodbye."""

    peer: ProcessId
    reason: str


@dataclass(slots=True, frozen=True)
class Announce:
    """Nobody holds this node: tell the network."""


@dataclass(slots=True, frozen=True)
class Exit:
    """End the program: kill what runs, remove files, say goodbye. It is the last action."""

    reason: str


Action = (
    PrepareComputation
    | RestartComputation
    | CleanComputation
    | ForkWorker
    | FeedWorker
    | RecallFromWorker
    | CancelInWorker
    | SignalWorker
    | RetireWorker
    | FetchArguments
    | ForgetArguments
    | AnswerParcel
    | ReadTail
    | StoreFile
    | LendFiles
    | ReturnFiles
    | WithdrawResults
    | SpoolBatch
    | UnspoolBatches
    | TrustSpool
    | NoteLease
    | HangUp
    | Announce
    | Exit
)


@dataclass(slots=True)
class Effects:
    """Everything that one event causes."""

    actions: list[Action] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
