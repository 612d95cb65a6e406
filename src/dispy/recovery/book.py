"""What stands in a recovery file: entries that are only ever appended, and the account that they add up to. Pure.

A file is a line of magic and then entries: CRC-32 and size of the body, then the body, one tagged msgpack array. A
process can die at any byte: what follows the last whole entry is a torn tail and means nothing. Where a disk has
spoiled what lies before, the entries behind it are looked for and count as well.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec

from dispy.errors import RecoveryError
from dispy.model import ComputationId, ComputationSpec, JobDone, JobOptions, JobState, ProcessId

KIND: Final = b"dispy recovery "
"""How a recovery file of any version begins."""
MAGIC: Final = KIND + b"1\n"
_HEAD: Final = struct.Struct(">IQ")
_SIZE_AT: Final = 4


class Entry(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Base of all entries."""


class ProgramBegun(Entry, frozen=True):
    """The first entry: whose file this is, and by what nodes know its leases."""

    token: bytes
    key_id: bytes
    """Names the secret without telling it."""
    group: str
    base_port: int
    user: str
    host: str
    pid: int
    program: str
    started_at: float


class ClusterNoted(Entry, frozen=True):
    """A cluster was opened."""

    id: ComputationId
    name: str
    kind: str
    """`function` or `program`."""


class ClusterShared(Entry, frozen=True):
    """A cluster was taken up by a scheduler that programs share."""

    id: ComputationId
    host: str
    """Of the scheduler, as this program dialled it."""
    port: int
    token: bytes
    """Proves whose it is."""


class ClusterLeft(Entry, frozen=True):
    """Jobs of a cluster were to be ended, and its shared scheduler could not be told."""

    id: ComputationId
    pending: tuple[int, ...] | None = None
    """Those that had not ended for the program: of all others it had the result. None: it is not known."""


class EndKept(Entry, frozen=True):
    """A job that a shared scheduler ended without a word of a node, and that is not in the program's hands yet."""

    job: int
    state: JobState
    cause: str


class ClusterOver(Entry, frozen=True):
    """All jobs of a cluster have ended and were told to the program."""

    id: ComputationId


class NodeNoted(Entry, frozen=True):
    """A node granted its lease: it may hold results."""

    process: ProcessId
    name: str
    places: tuple[tuple[str, int], ...]
    handle: str = ""
    """For a node that the program started for itself: the file that says how to reach it."""


class ResultKept(Entry, frozen=True):
    """A result that was fetched from a node and is not in the program's hands yet."""

    done: JobDone
    address: str
    body: bytes


class JobsReturned(Entry, frozen=True):
    """These jobs are in the user's hands; whatever comes of them later is dropped."""

    jobs: list[int]


class NodeCleared(Entry, frozen=True):
    """A node has nothing more for us."""

    process: ProcessId


class AllReturned(Entry, frozen=True):
    """Nothing is left to recover."""


class ItemStored(msgspec.Struct, array_like=True, frozen=True):
    """One item of a cluster's `nodes`."""

    host: str
    port: int
    """0: that of nodes."""
    cpus: int
    oversubscribe: bool
    depends: tuple[tuple[str, str], ...]
    """Name of the file for the nodes, and where its copy lies."""
    setup_args: bytes
    """Pickled, as nodes get them."""


class ComputationStored(Entry, frozen=True):
    """All that is needed to go on with a durable cluster; contents lie beside the file, by their names."""

    spec: ComputationSpec
    items: list[ItemStored]
    reentrant: bool
    local: bool
    """It asked for a node on its own machine."""
    may_embed: bool


class JobStored(Entry, frozen=True, gc=False):
    """A job of a durable cluster."""

    job: int
    cluster: ComputationId
    id: bytes
    """Pickled, unless it is the number of the job: then empty."""
    args: bytes
    options: JobOptions | None = None
    submitted_at: float = 0.0


class JobsHanded(Entry, frozen=True):
    """Jobs of a durable cluster are about to be handed to a node; to none: they are known not to have started.

    Of other clusters: jobs that ran on the node when it was asked for results.
    """

    node: ProcessId
    jobs: list[int]


class JobsOver(Entry, frozen=True):
    """Jobs of a durable cluster have ended and the program knows."""

    jobs: list[int]


AnyEntry = (
    ProgramBegun
    | ClusterNoted
    | ClusterShared
    | ClusterLeft
    | EndKept
    | ClusterOver
    | NodeNoted
    | ResultKept
    | JobsReturned
    | NodeCleared
    | AllReturned
    | ComputationStored
    | JobStored
    | JobsHanded
    | JobsOver
)

_encoder: Final = msgspec.msgpack.Encoder()


@cache
def _decoder() -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(AnyEntry)  # takes a millisecond, and few recover anything


def encode(entries: Iterable[AnyEntry]) -> bytes:
    """The bytes that are appended for some entries."""
    parts: list[bytes] = []
    for entry in entries:
        body = _encoder.encode(entry)
        parts += (_HEAD.pack(zlib.crc32(body), len(body)), body)
    return b"".join(parts)


class Contents(NamedTuple):
    """What can be read of a file."""

    entries: list[AnyEntry]
    end: int
    """Where the torn tail begins; the size if there is none."""
    gaps: list[int]
    """Damaged places: before each stand so many of the entries."""


def decode(data: bytes) -> Contents:
    """The whole entries of a file's content.

    Raises:
        RecoveryError: it does not begin like a recovery file, or a whole entry is of a later version.
    """
    if not data.startswith(MAGIC):
        raise RecoveryError("it is not a recovery file of this version of dispy")
    entries: list[AnyEntry] = []
    gaps: list[int] = []
    view, at = memoryview(data), len(MAGIC)
    while at < len(data):
        body = _body_at(view, at)
        if body is None:
            found = _next_entry(data, at + 1)
            if found is None:
                if _is_torn(data, at):
                    return Contents(entries, at, gaps)
                found = len(data)
            gaps.append(len(entries))
            at = found
            continue
        try:
            entries.append(_decoder().decode(body))
        except msgspec.MsgspecError as error:
            raise RecoveryError(f"an entry in it is not known to this version of dispy ({error})") from None
        at += _HEAD.size + len(body)
    return Contents(entries, at, gaps)


def _body_at(view: memoryview, at: int) -> memoryview | None:
    """The body of the entry that begins here, if it is whole."""
    if at + _HEAD.size > len(view):
        return None
    checksum, size = _HEAD.unpack_from(view, at)
    body = view[at + _HEAD.size : at + _HEAD.size + size]
    return body if size and len(body) == size and zlib.crc32(body) == checksum else None


def _next_entry(data: bytes, at: int) -> int | None:
    """Where the next whole entry begins: no size has its three highest bytes set."""
    view = memoryview(data)
    while (zeros := data.find(b"\0\0\0", at + _SIZE_AT)) >= 0:
        at = zeros - _SIZE_AT
        if _body_at(view, at) is not None:
            return at
        at += 1
    return None


def _is_torn(data: bytes, at: int) -> bool:
    """Whether what lies here is an entry whose writing was not finished, or what a file system puts in its place."""
    if at + _HEAD.size > len(data) or not data[at:].strip(b"\0"):
        return True
    return int(_HEAD.unpack_from(data, at)[1]) > len(data) - at - _HEAD.size


class Book:
    """What the entries of a file add up to."""

    def __init__(self, entries: Iterable[AnyEntry]) -> None:
        """Add up entries.

        Raises:
            RecoveryError: the first entry is missing.
        """
        listed = iter(entries)
        first = next(listed, None)
        if not isinstance(first, ProgramBegun):
            raise RecoveryError("it does not say which program wrote it")
        self.program = first
        self.clusters: dict[ComputationId, ClusterNoted] = {}
        self.nodes: dict[ProcessId, NodeNoted] = {}
        """Those that may still hold something."""
        self.noted: dict[ProcessId, NodeNoted] = {}
        """All that were ever leased."""
        self.results: dict[int, ResultKept] = {}
        """By job; fetched and not returned."""
        self.ends: dict[int, EndKept] = {}
        """By job; as `results`, of jobs without a result."""
        self.shared: dict[ComputationId, ClusterShared] = {}
        """Clusters at shared schedulers that are not over."""
        self.left: dict[ComputationId, frozenset[int] | None] = {}
        """Those whose jobs are to be ended, which their scheduler does not know yet; and the jobs that the program
        lacks, where that was noted."""
        self.returned: set[int] = set()
        self.over: set[int] = set()
        """Jobs of durable clusters of which the program knew the end."""
        self.computations: dict[ComputationId, ComputationStored] = {}
        """Of durable clusters that are not over."""
        self.jobs: dict[int, JobStored] = {}
        """Of durable clusters, those that have not ended."""
        self.handed: dict[int, ProcessId] = {}
        """Which node had a job last: one of a durable cluster, or one that ran there when whoever recovers asked."""
        self.freed: set[int] = set()
        """Those of which it became known that they had not started where they had been handed."""
        self.is_done = False
        self._closed: set[ComputationId] = set()
        for entry in listed:
            self.add(entry)

    def add(self, entry: AnyEntry) -> None:
        """Take one more entry into account."""
        match entry:
            case ClusterNoted():
                self.clusters[entry.id] = entry
            case ClusterOver(id):
                self.computations.pop(id, None)
                self.shared.pop(id, None)
                self._closed.add(id)
            case ClusterShared():
                self.shared[entry.id] = entry
            case ClusterLeft(id, pending):
                self.left[id] = None if pending is None else frozenset(pending)
            case EndKept(job):
                if not self.has_result(job):
                    self.ends[job] = entry
            case NodeNoted():
                self.nodes[entry.process] = self.noted[entry.process] = entry
            case ResultKept():
                self._keep(entry)
            case JobsReturned(jobs) | JobsOver(jobs):
                (self.returned if isinstance(entry, JobsReturned) else self.over).update(jobs)
                for job in jobs:
                    self.results.pop(job, None)
                    self.ends.pop(job, None)
                    self.jobs.pop(job, None)
                    self.handed.pop(job, None)
            case NodeCleared(process):
                self.nodes.pop(process, None)
            case AllReturned():
                self.is_done = True
            case ComputationStored():
                self.computations[entry.spec.id] = entry
            case JobStored():
                self.jobs[entry.job] = entry
            case JobsHanded(node, jobs):
                for job in jobs:
                    if node:
                        self.handed[job] = node
                        self.freed.discard(job)
                    else:
                        self.handed.pop(job, None)
                        self.freed.add(job)
            case ProgramBegun():
                raise RecoveryError("two programs have written into it")

    def take_in(self, jobs: Book) -> None:
        """Add what stands in the segments beside the file; what the file itself says was written later."""
        self.returned |= jobs.over
        for kept in jobs.results.values():
            self.add(kept)
        for job, stored in jobs.jobs.items():
            if job not in self.returned:
                self.jobs[job] = stored
                if job in jobs.handed and job not in self.freed:
                    self.handed.setdefault(job, jobs.handed[job])

    def _keep(self, kept: ResultKept) -> None:
        """Of several attempts at one job the first that finished counts, else the last."""
        job = kept.done.job
        before = self.results.get(job)
        if job not in self.returned and (before is None or before.done.ending):
            self.results[job] = kept

    @property
    def keeps_all_jobs(self) -> bool:
        """Whether every cluster that is not over is durable: then no job is lost without a word."""
        return all(
            cluster in self.computations or cluster in self.shared for cluster in self.clusters.keys() - self._closed
        )

    def lost(self) -> dict[int, ProcessId]:
        """Jobs of clusters that were not durable which a node had and has no more, nor their result."""
        return {
            job: node
            for job, node in self.handed.items()
            if job not in self.jobs and not self.has_result(job) and node not in self.nodes
        }

    def name_of(self, node: ProcessId) -> str:
        """The name of a node, for people."""
        return self.noted[node].name if node in self.noted else node

    def is_wanted(self, cluster: ComputationId, job: int) -> bool:
        """Whether what a shared scheduler tells of a job is not in the user's hands."""
        lacking = self.left.get(cluster)
        return job not in self.returned and (lacking is None or job in lacking)

    def has_result(self, job: int) -> bool:
        """Whether a job needs no further attempt."""
        return job in self.results or job in self.returned

    def is_text(self, job: int) -> bool:
        """Whether what a job printed is shown as text; where functions and programs were mixed it is."""
        stored = self.jobs.get(job)
        if stored is not None and stored.cluster in self.clusters:
            return self.clusters[stored.cluster].kind == "function"
        return not self.clusters or any(cluster.kind == "function" for cluster in self.clusters.values())
