"""Durable jobs of a program that was killed: which of them can still run, and their run in this process.

They run under the lease token and the job numbers of that program, and the recovery file stays its memory: what is
handed to nodes and what comes back is written there, so that this process can be killed as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dispy import config, parameters
from dispy.errors import RecoveryError, TransferError
from dispy.logs import logger
from dispy.model import ComputationId, ComputationSpec, JobState, ProcessId
from dispy.nodes import NodeAllocate, NodeView
from dispy.portal import Portal
from dispy.recovery.book import (
    AnyEntry,
    Book,
    ComputationStored,
    JobsHanded,
    JobStored,
    NodeNoted,
    ResultKept,
)
from dispy.recovery.fetching import Fetched
from dispy.recovery.file import RecoveryFile
from dispy.recovery.journal import StorableJob, content
from dispy.recovery.recorder import Recorder
from dispy.scheduler.effects import JobEnded, JobRequeued, JobSpoke, NodeClosed, NodeRefused
from dispy.scheduler.events import JobsSubmitted
from dispy.scheduler.identity import ServiceSettings
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.owner import Allocation
from dispy.scheduler.service import SchedulerService
from dispy.secrets import Credentials
from dispy.settings import INLINE_SIZE, multicast
from dispy.words import counted

FORGETS_AFTER: Final = 60.0
"""Seconds for which a node that answers certainly remembers what it had: `--zombie_interval` is longer."""


@dataclass(slots=True)
class Sorted:
    """What becomes of the durable jobs of which no result was found."""

    runnable: list[JobStored] = field(default_factory=list)
    ended: dict[int, tuple[JobState, str]] = field(default_factory=dict)
    """Those that end without having run, or perhaps in the midst of it, with the reason."""
    undecided: int = 0
    """Those that a node may have which has not answered."""


def sort_out(book: Book, fetched: Fetched, age: float, *, terminate: bool) -> Sorted:
    """Decide about the durable jobs; pure.

    Args:
        book: the file, with results fetched.
        fetched: what the nodes said.
        age: seconds since the program was killed, at most.
        terminate: no job shall run any more.
    """
    result = Sorted()
    for job, stored in sorted(book.jobs.items()):
        computation = book.computations.get(stored.cluster)
        if book.has_result(job) or computation is None:
            continue
        node = book.handed.get(job)
        again = computation.reentrant or (stored.options is not None and stored.options.retries > 0)
        free = job in fetched.not_started or (node in fetched.answered and age < FORGETS_AFTER)
        if node is not None and not free and node in book.nodes:
            result.undecided += 1
        elif terminate:
            cause = "cancelled: it waited when its program was killed, and what was pending was to be ended"
            result.ended[job] = (JobState.Cancelled, cause)
        elif node is None or free or again:
            result.runnable.append(stored)
        else:
            cause = (
                f"it had been handed to node {book.name_of(node)} when its program was killed, and no node knows of it "
                "any more: it may have started, and is not reentrant"
            )
            result.ended[job] = (JobState.Abandoned, cause)
    return result


class _Keeper:
    """Writes what becomes of resumed jobs into the recovery file."""

    def __init__(self, file: RecoveryFile, book: Book) -> None:
        self._file = file
        self._book = book
        self.ended: dict[int, tuple[JobState, str]] = {}
        """Jobs that ended without a result from a node."""
        self.problem: OSError | None = None

    def stored(self, jobs: Iterable[tuple[StorableJob, object, bytes]], now: float) -> None:
        """They are stored already."""

    def handed(self, node: ProcessId, jobs: list[int]) -> None:
        """Jobs are about to be sent."""
        self._write([JobsHanded(node, jobs)])

    def kept(self, jobs: Sequence[JobEnded], address: Callable[[ProcessId], str]) -> None:
        """There are no callbacks."""

    def over(self, jobs: Sequence[JobEnded], address: Callable[[ProcessId], str]) -> None:
        """Keep their results."""
        kept: list[AnyEntry] = []
        for ended in jobs:
            if ended.done is not None and ended.node is not None and ended.state is not JobState.Cancelled:
                kept.append(ResultKept(ended.done, address(ended.node), ended.body))
            else:
                self.ended[ended.job.job] = (ended.state, ended.cause or "")
        self._write(kept)

    def sync(self) -> None:
        """In a thread."""
        self._file.sync()

    def _write(self, entries: list[AnyEntry]) -> None:
        try:
            self._file.append(entries)
        except OSError as error:
            if self.problem is None:
                logger.error("%s cannot be written (%s): do not end this program now", self._file.path, error.strerror)
            self.problem = error
        for entry in entries:
            self._book.add(entry)


class _FileRecorder(Recorder):
    """Notes nodes in the file that is being recovered, which outlives this scheduler."""

    def __init__(self, file: RecoveryFile, book: Book) -> None:
        super().__init__(book.program)
        self._recovered = file
        self._book = book

    def cluster_opened(self, spec: ComputationSpec) -> None:
        """It is in the file."""

    def cluster_over(self, cluster: ComputationId) -> None:
        """Whoever recovers decides that."""

    def node_leased(self, node: NodeNoted) -> None:
        """From now on it may hold results."""
        if self._book.nodes.get(node.process) != node:
            self._recovered.append([node])
            self._book.add(node)


class _ResumedCluster:
    """A durable cluster for the scheduler service, without a user's object behind it."""

    allocates_slowly = True
    interval: float | None = None

    def __init__(self, stored: ComputationStored, jobs: Iterable[int], folder: Path) -> None:
        self.spec = stored.spec
        self.reentrant = stored.reentrant
        self.may_embed = stored.may_embed
        self.wants_local = stored.local
        self.pending = set(jobs)
        self.idle = asyncio.Event()
        self.over = asyncio.Event()
        self._folder = folder
        self._items = [
            (NodeAllocate(item.host, item.port or None, item.cpus, oversubscribe=item.oversubscribe), item)
            for item in stored.items
        ]
        self.wants_discovery = self.open_ended = any(item.is_pattern for item, _ in self._items)

    def named_nodes(self) -> list[tuple[str, int]]:
        """Hosts that the user named, with port or 0."""
        return [(item.host, item.port or 0) for item, _ in self._items if not item.is_pattern]

    def allocate(self, view: NodeView, local: bool) -> Allocation:
        """How much of a node to use, as the program would have said."""
        for item, stored in self._items:
            if view.fits(item) or (local and item.host == "*"):
                cpus = item.share_of(view.info.cpus)
                if cpus > 0:
                    files = tuple(self._file_named(*each) for each in stored.depends)
                    return Allocation(cpus, files, stored.setup_args, stored.oversubscribe)
        return Allocation(view.info.cpus if local and self.wants_local else 0)

    def _file_named(self, name: str, digest: str) -> str:
        """The copy of a file under its own name, as nodes are to have it."""
        path = self._folder / "named" / digest / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.hardlink_to(content(self._folder, bytes.fromhex(digest)))
        return str(path)

    def jobs_started(self, view: NodeView | None, jobs: Iterable[JobRecord]) -> None:
        """Nobody looks at jobs before they have ended."""

    def job_ended(self, ended: JobEnded, view: NodeView | None) -> bool:
        """One less; nobody has to be told."""
        self.pending.discard(ended.job.job)
        return False

    def batch_ended(self) -> None:
        """Perhaps that was all."""
        if not self.pending:
            self.idle.set()

    def job_spoke(self, spoke: JobSpoke, view: NodeView | None) -> None:
        """Interim results were for the program."""

    def job_requeued(self, requeued: JobRequeued, view: NodeView | None) -> None:
        """It waits again."""
        logger.info("job %d runs again: %s", requeued.job.job, requeued.cause)

    def node_opened(self, view: NodeView, cpus: int) -> None:
        """A node is ready."""
        logger.info("node %s (%s) goes on with %s", view.info.name, view.address, self.spec.name)

    def node_closed(self, closed: NodeClosed) -> None:
        """Others go on."""

    def node_offered(self, node: ProcessId, cpus: int, used: int) -> None:
        """Nobody asks."""

    def node_measured(self, node: ProcessId, avail: object) -> None:
        """Nobody asks."""

    def node_refused(self, view: NodeView | None, refused: NodeRefused) -> None:
        """Say why."""
        where = view.info.name if view is not None else refused.node
        logger.warning("node %s cannot run %s: %s\n%s", where, self.spec.name, refused.reason, refused.trace.rstrip())

    def ended(self) -> None:
        """Everything of the cluster is done."""
        self.over.set()


async def resume(
    portal: Portal, file: RecoveryFile, book: Book, credentials: Credentials, jobs: Sequence[JobStored], until: float
) -> dict[int, tuple[JobState, str]]:
    """Run jobs until all have ended or it is `until` (monotonic); returns those that ended without a result.

    Results are in the book and its file.

    Raises:
        RecoveryError: a content that nodes need is not beside the file.
        SettingsError: an interface of DISPY_INTERFACES is not there.
    """
    keeper = _Keeper(file, book)
    service = SchedulerService(
        portal, _settings(book, credentials), going_on=book.program, recorder=_FileRecorder(file, book)
    )
    by_cluster: dict[ComputationId, list[JobStored]] = {}
    for stored in jobs:
        by_cluster.setdefault(stored.cluster, []).append(stored)
    try:
        owners = []
        for cluster, mine in by_cluster.items():
            computation = book.computations[cluster]
            owner = _ResumedCluster(computation, (stored.job for stored in mine), file.store)
            await _offer(service, computation, file.store)
            service.keep_marks(cluster, keeper)
            await service.open_cluster(owner)
            service.handle(JobsSubmitted([await _record(service, stored, file.store) for stored in mine]))
            owners.append(owner)
            logger.info("%s: %s taken up again", owner.spec.name, counted(len(mine), "job"))
        try:
            async with asyncio.timeout_at(_loop_time(until)):
                for owner in owners:
                    await owner.idle.wait()
                    service.close_cluster(owner.spec.id, terminate=False)
                for owner in owners:
                    await owner.over.wait()
        except TimeoutError:
            logger.info("the time is over, with %s left", counted(sum(len(owner.pending) for owner in owners), "job"))
    finally:
        await service.stop("the recovery is over")
    return keeper.ended


def _loop_time(until: float) -> float | None:
    return None if until == float("inf") else asyncio.get_running_loop().time() + until - time.monotonic()


def _settings(book: Book, credentials: Credentials) -> ServiceSettings:
    return ServiceSettings(
        credentials=credentials,
        group=book.program.group,
        base_port=book.program.base_port,
        client_port=config.ClientPort,
        interfaces=parameters.interfaces(None),
        multicast=multicast(),
    )


async def _offer(service: SchedulerService, computation: ComputationStored, folder: Path) -> None:
    names = [file.blob.name for file in computation.spec.files]
    if computation.spec.code is not None:
        names.append(computation.spec.code.name)
    await _offer_contents(service, names, folder)


async def _offer_contents(service: SchedulerService, names: Iterable[bytes], folder: Path) -> None:
    for name in names:
        try:
            await service.links.sources.offer_file(content(folder, name))
        except TransferError as error:
            raise RecoveryError(f"what the jobs need on nodes is not there any more: {error}") from error


async def _record(service: SchedulerService, stored: JobStored, folder: Path) -> JobRecord:
    options, args, blob = stored.options, stored.args, None
    if options is not None and options.depends is not None:
        await _offer_contents(service, [file.blob.name for file in options.depends.files], folder)
        service.offers.hold(options.depends.files)
    if len(args) > INLINE_SIZE:
        args, blob = b"", service.links.sources.offer_bytes(args)
    return JobRecord(stored.job, stored.cluster, args, None, blob, options)


def as_free(jobs: Iterable[JobStored], book: Book) -> list[JobsHanded]:
    """What is to be written of jobs that can run, so that a later call knows it as well."""
    numbers = [stored.job for stored in jobs if stored.job in book.handed]
    return [JobsHanded(ProcessId(""), numbers)] if numbers else []
