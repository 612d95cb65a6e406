"""Questions of clients and commands to a shared scheduler, and its answers: each repeats the number of its question."""

# No `from __future__ import annotations`: msgspec would compile each of these strings when it makes a decoder.
from dispy.model import ComputationId, FileSpec, ProcessId
from dispy.wire.message import Message
from dispy.wire.pool import JobStatus, NodeStanding, PoolStatus

# ---- client to scheduler ----


class ExplainSubmitted(Message, frozen=True):
    """Say why this job is where it is; job 0: why jobs of the cluster wait."""

    question: int
    cluster: ComputationId
    job: int


class AskStandings(Message, frozen=True):
    """Say how each node stands for this cluster."""

    question: int
    cluster: ComputationId


class AskJobsAt(Message, frozen=True):
    """Tell which jobs of a cluster a node has; `from_node`: which run there by its own account."""

    question: int
    cluster: ComputationId
    node: ProcessId
    from_node: bool = False


class AskTail(Message, frozen=True):
    """Tell the end of what a running job has printed."""

    question: int
    cluster: ComputationId
    job: int


class PlaceFileAt(Message, frozen=True):
    """Let a node fetch this file, which I offer, into the computation's directory."""

    question: int
    cluster: ComputationId
    node: ProcessId
    file: FileSpec


class AskPool(Message, frozen=True):
    """Tell how everything stands. The tokens say which clusters are mine."""

    question: int
    tokens: tuple[bytes, ...] = ()


class AskJobs(Message, frozen=True):
    """Tell the jobs of clusters, at most so many of each. The tokens say which clusters are mine."""

    question: int
    tokens: tuple[bytes, ...] = ()
    cluster: ComputationId = ComputationId("")
    """Only this one; empty: all that I may read."""
    most: int = 1000


class CancelFor(Message, frozen=True):
    """Cancel jobs (none named: all) of a cluster, which is mine by one of these tokens, or I may steer all."""

    question: int
    tokens: tuple[bytes, ...]
    cluster: ComputationId
    jobs: tuple[int, ...] = ()


# ---- scheduler to client ----


class Explained(Message, frozen=True):
    """Why it is so."""

    question: int
    sentence: str


class StandingsTold(Message, frozen=True):
    """How each node stands for a cluster."""

    question: int
    standings: list[NodeStanding]


class JobsAtTold(Message, frozen=True):
    """The jobs that a node has."""

    question: int
    jobs: list[int]


class TailTold(Message, frozen=True):
    """What a job has printed last; payload: stdout, then stderr."""

    question: int
    stdout_size: int = 0
    stderr_size: int = 0


class FilePlacedAt(Message, frozen=True):
    """The file is on the node, or why it is not."""

    question: int
    reason: str = ""


class PoolTold(Message, frozen=True):
    """How everything stands."""

    question: int
    status: PoolStatus


class JobsTold(Message, frozen=True):
    """Jobs of clusters; `more` were left out."""

    question: int
    jobs: list[JobStatus]
    more: int = 0


class CancelTold(Message, frozen=True):
    """How many jobs are being ended, or why none is."""

    question: int
    count: int
    sentence: str = ""


InquiryMessage = (
    ExplainSubmitted
    | AskStandings
    | AskJobsAt
    | AskTail
    | PlaceFileAt
    | AskPool
    | AskJobs
    | CancelFor
    | Explained
    | StandingsTold
    | JobsAtTold
    | TailTold
    | FilePlacedAt
    | PoolTold
    | JobsTold
    | CancelTold
)
"""All of these."""
