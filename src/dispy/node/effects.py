"""What the node core wants done. The service performs the actions first, then the sends, each in order.

Actions come first because workers that wait for jobs cost more than a message that leaves some microseconds
later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from dispy.model import BlobRef, ComputationId, ComputationSpec, FileSpec, ProcessId
from dispy.wire.messages import AnyMessage, JobsDone

Arguments = bytes | memoryview | int
"""Arguments of a job: the bytes, or the descriptor of a memfd that holds them."""


class Send(Struct, frozen=True):
    """Send a message to a scheduler; `payload` are the raw parts behind its header."""

    peer: ProcessId
    message: AnyMessage
    payload: Sequence[bytes | memoryview] = ()


class PrepareComputation(Struct, frozen=True):
    """Find the interpreter, fetch code and files from the peer, build the environment.

    Answered by ComputationPrepared or ComputationFailed.
    """

    peer: ProcessId
    computation: ComputationSpec
    setup_args: bytes


class StartForkServer(Struct, frozen=True):
    """Start its fork server, which loads the code and runs setup.

    Answered by ForkServerStarted, ForkServerDied or ComputationFailed.
    """

    computation: ComputationId


class CleanComputation(Struct, frozen=True):
    """Give up preparing, run cleanup if asked, end its processes, remove its files.

    Answered by ComputationCleaned.
    """

    computation: ComputationId
    run_cleanup: bool


class ForkWorker(Struct, frozen=True):
    """Answered by WorkerForked or WorkerDied."""

    computation: ComputationId
    worker: int


class JobExtra(Struct, frozen=True):
    """What a job gets beyond its arguments."""

    cpus: int = 1
    memory: int = 0
    gpus: tuple[int, ...] = ()
    """Which of the node's, counted from 0."""


class FeedWorker(Struct, frozen=True):
    """Hand jobs to a worker: (sequence, arguments) each, sequences without gaps."""

    computation: ComputationId
    worker: int
    jobs: list[tuple[int, Arguments]]
    extra: JobExtra | None = None
    """What the job (then there is one) gets beyond its arguments."""
    objects: Mapping[bytes, int] | None = None
    """Scattered objects that they need (name → descriptor); the worker may have some already."""


class RecallFromWorker(Struct, frozen=True):
    """Take back what the worker has not started of the sequences below `before`.

    Answered by WorkerRecalled.
    """

    computation: ComputationId
    worker: int
    before: int


class CancelInWorker(Struct, frozen=True):
    """Interrupt this job if the worker runs it (or begins it)."""

    computation: ComputationId
    worker: int
    sequence: int


class SignalWorker(Struct, frozen=True):
    """Send this signal to the worker's group if it still runs this job."""

    computation: ComputationId
    worker: int
    sequence: int
    signal: int


class RetireWorker(Struct, frozen=True):
    """Let an idle worker end. Answered by WorkerDied."""

    computation: ComputationId
    worker: int


class FetchArguments(Struct, frozen=True):
    """Fetch arguments into a memfd. Answered by ArgumentsFetched or ArgumentsFailed."""

    peer: ProcessId
    blob: BlobRef


class ForgetArguments(Struct, frozen=True):
    """No job needs these arguments any more: close the memfd, or stop fetching."""

    name: bytes


class FetchObject(Struct, frozen=True):
    """Fetch a scattered object into the node's store. Answered by ObjectFetched or ObjectFailed."""

    peer: ProcessId
    blob: BlobRef


class ForgetObject(Struct, frozen=True):
    """No job needs this object: close its file and let workers forget it, or stop fetching."""

    name: bytes


class AnswerParcel(Struct, frozen=True):
    """Tell the job that sent a file whether it has arrived."""

    parcel: int
    taken: bool


class ReadTail(Struct, frozen=True):
    """Read what the job has printed last, if the worker still runs it. Answered by TailRead."""

    peer: ProcessId
    computation: ComputationId
    worker: int
    sequence: int
    job: int


class LendFiles(Struct, frozen=True):
    """Put the files that an attempt brings into the computation's directory. Answered by FilesLent."""

    computation: ComputationId
    job: int
    attempt: int
    files: tuple[FileSpec, ...]


class ReturnFiles(Struct, frozen=True):
    """An attempt needs its files no more: remove those that no other needs, or stop fetching."""

    computation: ComputationId
    job: int
    attempt: int


class StoreFile(Struct, frozen=True):
    """Fetch a file into a computation's directory. Answered by FileStored."""

    computation: ComputationId
    file: FileSpec


class WithdrawResults(Struct, frozen=True):
    """Nobody will fetch these bodies any more."""

    names: list[bytes]


class SpoolBatch(Struct, frozen=True):
    """Write this batch to the disk, below the name of its lease. Answered by BatchesSpooled or SpoolFailed."""

    lease: bytes
    message: JobsDone
    bodies: Sequence[bytes | memoryview]


class UnspoolBatches(Struct, frozen=True):
    """Nobody needs these batches any more: remove them from the disk."""

    lease: bytes
    sequences: list[int]


class TrustSpool(Struct, frozen=True):
    """Nothing waits for a disk that could not be written: take work again."""


class NoteLease(Struct, frozen=True):
    """The lease with this name has begun; asked only of a node whose address nobody else can know."""

    lease: bytes


class HangUp(Struct, frozen=True):
    """End the link to this scheduler with a goodbye."""

    peer: ProcessId
    reason: str


class Announce(Struct, frozen=True):
    """Nobody holds this node: tell the network."""


class Exit(Struct, frozen=True):
    """End the program: kill what runs, remove files, say goodbye. It is the last action."""

    reason: str


Action = (
    PrepareComputation
    | StartForkServer
    | CleanComputation
    | ForkWorker
    | FeedWorker
    | RecallFromWorker
    | CancelInWorker
    | SignalWorker
    | RetireWorker
    | FetchArguments
    | ForgetArguments
    | FetchObject
    | ForgetObject
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


class Effects(Struct):
    """Everything that one event causes."""

    actions: list[Action] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
