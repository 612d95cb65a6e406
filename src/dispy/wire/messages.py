"""Every message that two dispy processes exchange after the handshake: reading this is reading the protocol.
What clients and shared schedulers say to each other is in `dispy.wire.sharing`.

A message is one tagged struct (the header of a frame). What is said of *payload* travels raw behind it.
Requests are imperative, answers past tense. Both sides may send what stands under "both"; the rest says who does.
`docs/design/protocol.md` explains the same list in words, and a test keeps the two together.
"""

# No `from __future__ import annotations`: msgspec would compile each of these strings when it makes a decoder.
from dispy.model import (
    AvailInfo,
    BlobPlace,
    BlobRef,
    ComputationId,
    ComputationSpec,
    FileSpec,
    HeldAttempt,
    Holder,
    JobDone,
    JobSpec,
    NodeHeard,
    NodeInfo,
    NodeOrder,
    NodeStatus,
)
from dispy.wire.message import Message
from dispy.wire.sharing import SharingMessage

PROTOCOL = 1
"""Number of this protocol; processes with another one refuse each other in words."""
PASSES_ON = "peers"
"""The capability of nodes that pass blobs on to each other."""
HANDS_OVER = "descriptors"
"""The capability of processes that hand contents over as descriptors to others of their machine."""
CAPABILITIES: tuple[str, ...] = ("jobs", "blobs", "recall", PASSES_ON, HANDS_OVER)
"""What this side can do beyond the number; an unknown capability of the other side is ignored."""


# ---- both ----


class Heartbeat(Message, frozen=True):
    """I am alive. Any byte is a sign of life; this is sent when there is nothing else to say."""

    every: float = 0.0
    """Seconds after which I want to hear something from you at the latest; 0: as you like."""


class Goodbye(Message, frozen=True):
    """I end this link on purpose; do not redial."""

    reason: str
    returns: bool = False
    """What I have begun goes on: I shall be started again, and ask for what there is."""


class BrokenOff(Message, frozen=True):
    """I break this link off, and say why; dial again. The last message, if it comes through at all."""

    cause: str


class NeedChunk(Message, frozen=True):
    """Send me `size` bytes of a blob that you named, from `offset` on. What is outstanding is the credit."""

    name: bytes
    offset: int
    size: int


class Chunk(Message, frozen=True):
    """A piece of a blob; payload: the bytes."""

    name: bytes
    offset: int


class BlobGone(Message, frozen=True):
    """What you asked for is not here or cannot be read."""

    name: bytes
    reason: str
    final: bool = False
    """The content is lost: asking again is of no use."""


class BlobFetched(Message, frozen=True):
    """I have all of it; a blob that is not kept by its hash can be forgotten."""

    name: bytes


class NeedDescriptor(Message, frozen=True):
    """Send me a descriptor of a blob that you named, to the socket of this name on this machine, with this token."""

    name: bytes
    at: str
    token: bytes


class DescriptorRefused(Message, frozen=True):
    """There will be no descriptor with this token: ask for chunks."""

    token: bytes


# ---- node to node, about a blob of which a scheduler has told both ----


class AskPieces(Message, frozen=True):
    """Tell me which pieces (of 1 MiB) of this blob you have and get. The ticket proves that I may have it."""

    name: bytes
    ticket: bytes


class PiecesHeld(Message, frozen=True):
    """You can ask me for these pieces: first and number of each range."""

    name: bytes
    ranges: list[tuple[int, int]]


# ---- scheduler to node ----


class BlobShared(Message, frozen=True):
    """Others fetch this blob or have it: these can be asked for pieces. Whoever shows you the ticket may have yours."""

    blob: BlobRef
    ticket: bytes
    share: int
    """Which of `shares` parts you should ask me for: pieces whose number has this remainder."""
    shares: int
    places: list[BlobPlace]


class AskLease(Message, frozen=True):
    """Let this scheduler use you. The token proves the lease again after a break or a restart."""

    token: bytes
    holder: Holder


class ReleaseLease(Message, frozen=True):
    """I do not need you any more (or I leave the line)."""


class OpenComputation(Message, frozen=True):
    """Prepare this computation: fetch its files and code, load, run its setup."""

    computation: ComputationSpec
    setup_args: bytes = b""
    """Pickled tuple for the setup and cleanup functions; opaque to the daemon."""
    cpus: int = 0
    """CPUs that it may use at once; 0: all that the node offers."""
    oversubscribe: bool = False
    """`cpus` may be more than the node offers."""


class CloseComputation(Message, frozen=True):
    """No more jobs of it will come; clean up. With `terminate` its jobs are ended first, else they finish."""

    computation: ComputationId
    terminate: bool = False


class RunJobs(Message, frozen=True, gc=False):
    """Run these; payload: their arguments one after another (`JobSpec.size` bytes each)."""

    computation: ComputationId
    jobs: list[JobSpec]
    acknowledged: int = 0
    """As in `AckResults`, which it saves; 0: nothing new."""


class CancelJobs(Message, frozen=True):
    """End these jobs, wherever they are."""

    jobs: list[int]


class RecallJobs(Message, frozen=True):
    """Give back up to `count` jobs that have not started (any computation), the last ones first."""

    count: int


class AckResults(Message, frozen=True):
    """All `JobsDone` up to this sequence number are safe with me."""

    sequence: int


class FileTaken(Message, frozen=True):
    """The file that a job sent is with the user, or why it is not."""

    name: bytes
    reason: str = ""
    job: int = 0
    path: str = ""


class PlaceFile(Message, frozen=True):
    """Fetch this file and put it into the computation's directory."""

    computation: ComputationId
    file: FileSpec


class TailJob(Message, frozen=True):
    """Tell the end of what a running job has printed."""

    job: int


class ListJobs(Message, frozen=True):
    """Tell which jobs of this computation run."""

    computation: ComputationId


class ClaimResults(Message, frozen=True):
    """The process that held a lease with this token is gone; give its successor, me, the results.

    It needs no lease and stands in no line; whoever holds the node is not disturbed.
    """

    token: bytes
    terminate: bool = False
    """End what still runs of it; else it runs to its end."""


# ---- node to scheduler ----


class NodeDescribed(Message, frozen=True):
    """Who I am; the first message on a link to a scheduler, and again whenever it changes."""

    info: NodeInfo


class LeaseGranted(Message, frozen=True):
    """You may use me. `held` lists every attempt of yours that is here: queued, running or unacknowledged."""

    held: list[HeldAttempt]
    computations: list[ComputationId]
    """Computations of yours that are open here."""


class LeaseRefused(Message, frozen=True):
    """Somebody else holds me; you stand in line and get LeaseGranted when I am free."""

    holder: Holder


class ComputationAdvanced(Message, frozen=True):
    """What I do to prepare it, for people: the end of a sentence before "since 5 s"."""

    computation: ComputationId
    step: str


class ComputationReady(Message, frozen=True):
    """Its setup has run; send jobs."""

    computation: ComputationId


class ComputationRefused(Message, frozen=True):
    """I cannot run it. `final`: asking again cannot help as long as neither of us changes."""

    computation: ComputationId
    reason: str
    trace: str = ""
    final: bool = True
    lost: bool = False
    """The program does not have something of it any more: no other node can get it."""


class ComputationClosed(Message, frozen=True):
    """It is gone from here, its files cleaned up."""

    computation: ComputationId
    trace: str = ""
    """Traceback of a cleanup function that failed."""


class JobsDone(Message, frozen=True, gc=False):
    """These attempts ended; payload: their bodies one after another (none for a body in a blob)."""

    sequence: int
    jobs: list[JobDone]


class ResultsClaimed(Message, frozen=True):
    """What is here under the token of a claim; `JobsDone` of both follow. Nothing for a token that is not known."""

    ended: list[HeldAttempt]
    """Attempts whose results lie here."""
    running: list[HeldAttempt]
    """Attempts that have not ended; their results come when they have."""
    unreadable: int = 0
    """Files with further results that were damaged on the node's disk, and set aside."""


class JobsRecalled(Message, frozen=True):
    """These had not started and are no longer here."""

    jobs: list[HeldAttempt]


class FileOffered(Message, frozen=True):
    """A running job sends a file to the user; fetch it and answer FileTaken."""

    job: int
    attempt: int
    file: FileSpec


class FilePlaced(Message, frozen=True):
    """The file is in the computation's directory, or why it is not."""

    computation: ComputationId
    path: str
    reason: str = ""


class JobTail(Message, frozen=True):
    """What a job has printed last; payload: stdout, then stderr. Nothing for a job that does not run here."""

    job: int
    stdout_size: int = 0
    stderr_size: int = 0


class JobsListed(Message, frozen=True):
    """The jobs of a computation that run now."""

    computation: ComputationId
    jobs: list[HeldAttempt]


class LoadMeasured(Message, frozen=True):
    """What is free on my machine."""

    avail: AvailInfo


# ---- relay to scheduler ----


class NodesHeard(Message, frozen=True):
    """These nodes have just answered or announced themselves on my network."""

    nodes: list[NodeHeard]


# ---- admin to node ----


class AskStatus(Message, frozen=True):
    """Tell how you are."""


class SteerNode(Message, frozen=True):
    """Do what your owner orders."""

    order: NodeOrder
    cpus: int = 0
    """For the order `cpus`: how many to offer; 0 all, -N all but N."""
    hours: str = ""
    """For the order `hours`: start, stop and perhaps end as HH:MM, or `always`."""


# ---- node to admin ----


class StatusTold(Message, frozen=True):
    """How I am."""

    status: NodeStatus


class NodeSteered(Message, frozen=True):
    """What became of an order, in words."""

    done: bool
    sentence: str


AnyMessage = (
    Heartbeat
    | Goodbye
    | BrokenOff
    | NeedChunk
    | Chunk
    | BlobGone
    | BlobFetched
    | NeedDescriptor
    | DescriptorRefused
    | AskLease
    | ReleaseLease
    | OpenComputation
    | CloseComputation
    | RunJobs
    | CancelJobs
    | RecallJobs
    | AckResults
    | NodeDescribed
    | LeaseGranted
    | LeaseRefused
    | ComputationReady
    | ComputationRefused
    | ComputationClosed
    | JobsDone
    | JobsRecalled
    | LoadMeasured
    | NodesHeard
    | FileTaken
    | PlaceFile
    | TailJob
    | ListJobs
    | FileOffered
    | FilePlaced
    | JobTail
    | JobsListed
    | ComputationAdvanced
    | ClaimResults
    | ResultsClaimed
    | AskStatus
    | SteerNode
    | StatusTold
    | NodeSteered
    | AskPieces
    | PiecesHeld
    | BlobShared
    | SharingMessage
)
