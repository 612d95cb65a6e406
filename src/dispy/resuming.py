"""The run of durable jobs of a program that was killed, in this process; which of them run is decided before.

They run under the lease token and the job numbers of that program, and the recovery file stays its memory: what is
handed to nodes and what comes back is written there, so that this process can be killed as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from dispy import config, parameters
from dispy.errors import RecoveryError, TransferError
from dispy.logs import logger
from dispy.model import ComputationId, ComputationSpec, JobDone, JobState, ProcessId
from dispy.nodes import NodeAllocate, NodeView, fitting
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
from dispy.recovery.file import RecoveryFile
from dispy.recovery.journal import StorableJob, content
from dispy.recovery.recorder import Recorder
from dispy.recovery.sorting import stands_for
from dispy.reruns import Reruns
from dispy.scheduler.effects import JobEnded, JobRequeued, JobSpoke, NodeClosed, NodeRefused
from dispy.scheduler.events import JobsSubmitted
from dispy.scheduler.identity import ServiceSettings
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.owner import Allocation
from dispy.scheduler.service import SchedulerService
from dispy.secrets import Credentials
from dispy.settings import DISCOVERY_INTERVAL, INLINE_SIZE, multicast
from dispy.words import counted

SAY_AFTER: Final = 3.0
"""Seconds for which jobs wait for the one node that may run them before it is said."""


class ResumedMarks:
    """Writes what becomes of resumed jobs into the recovery file."""

    def __init__(self, file: RecoveryFile, book: Book) -> None:
        self._file = file
        self.book = book
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
                kept.append(ResultKept(ended.done, address(ended.node), bytes(ended.body)))
            else:
                self.ended[ended.job.job] = (ended.state, ended.cause or "")
        self._write(kept)

    def dropped(self, done: JobDone, body: bytes | memoryview, address: str) -> None:
        """Nobody has been told that the job was given up: its result is worth more than that."""
        if self.ended.get(done.job, (None, ""))[0] is JobState.Abandoned:
            self._write([ResultKept(done, address, bytes(body))])
            del self.ended[done.job]

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
            self.book.add(entry)


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

    user = ""
    exclusive = False
    allocates_slowly = True
    interval: float | None = DISCOVERY_INTERVAL

    def __init__(
        self, stored: ComputationStored, jobs: Iterable[int], folder: Path, on_node: Callable[[NodeView], None]
    ) -> None:
        self.spec = stored.spec
        self.reentrant = stored.reentrant
        self.may_embed = stored.may_embed
        self.wants_local = stored.local
        self.pending = set(jobs)
        self.is_closing = False
        self.over = asyncio.Event()
        self._reruns = Reruns()
        self._folder = folder
        self._on_node = on_node
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
        self._on_node(view)
        chosen = fitting([item for item, _ in self._items], view, local=local)
        for item, stored in self._items:
            if item in chosen:
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
        """It closes by itself after the last."""

    def job_spoke(self, spoke: JobSpoke, view: NodeView | None) -> None:
        """Interim results were for the program."""

    def job_requeued(self, requeued: JobRequeued, view: NodeView | None) -> None:
        """It waits again."""
        self._reruns.add(requeued.job.job, requeued.cause)

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


class PinnedJobs:
    """Jobs that one node alone may run: they wait until it is here, perhaps as another process.

    The scheduler knows processes, and ends at once what only one may run that it has not met.
    """

    def __init__(self, book: Book, submit: Callable[[list[JobRecord]], None]) -> None:
        self._book = book
        self._submit = submit
        self._waiting: dict[ProcessId, list[JobRecord]] = {}

    def hold(self, records: Iterable[JobRecord]) -> list[JobRecord]:
        """Keep those back whose node is known by its name; returns the others."""
        others = []
        for record in records:
            if record.pinned in self._book.noted:
                self._waiting.setdefault(ProcessId(record.pinned), []).append(record)
            else:
                others.append(record)
        return others

    def node_came(self, view: NodeView) -> None:
        """Submit what has waited for this node."""
        for wanted in list(self._waiting):
            if stands_for(self._book, self._book.noted[wanted], view.process, view.info.name):
                records = self._waiting.pop(wanted)
                for record in records:
                    assert record.options is not None
                    record.options = msgspec.structs.replace(record.options, node=view.process)
                self._submit(records)

    def holds(self, cluster: ComputationId) -> bool:
        """Whether jobs of this cluster are still to be submitted."""
        return any(record.cluster == cluster for records in self._waiting.values() for record in records)

    def say(self) -> None:
        """Name the nodes that are waited for."""
        for wanted, records in self._waiting.items():
            logger.warning(
                "%s can only run on node %s (submit_node), which has not come: start it, or give a timeout",
                counted(len(records), "job"),
                self._book.name_of(wanted),
            )


async def resume(
    portal: Portal, file: RecoveryFile, book: Book, credentials: Credentials, jobs: Sequence[JobStored], until: float
) -> dict[int, tuple[JobState, str]]:
    """Run jobs until all have ended or it is `until` (monotonic); returns those that ended without a result.

    Results are in the book and its file.

    Raises:
        RecoveryError: a content that nodes need is not beside the file.
        SettingsError: an interface of DISPY_INTERFACES is not there.
    """
    keeper = ResumedMarks(file, book)
    service = SchedulerService(
        portal, _settings(book, credentials), going_on=book.program, recorder=_FileRecorder(file, book)
    )
    owners: list[_ResumedCluster] = []

    def submit(records: list[JobRecord]) -> None:
        service.handle(JobsSubmitted(records))
        close_complete()

    def close_complete() -> None:
        """No more jobs come to a cluster that has all of its own: it keeps no nodes that can run none of them."""
        for owner in owners:
            if not owner.is_closing and not pinned.holds(owner.spec.id):
                owner.is_closing = True
                service.close_cluster(owner.spec.id, terminate=False)

    pinned = PinnedJobs(book, submit)
    by_cluster: dict[ComputationId, list[JobStored]] = {}
    for stored in jobs:
        by_cluster.setdefault(stored.cluster, []).append(stored)
    try:
        for cluster, mine in by_cluster.items():
            computation = book.computations[cluster]
            owner = _ResumedCluster(
                computation,
                (stored.job for stored in mine),
                file.store,
                lambda view: portal.post(pinned.node_came, view),
            )
            await _offer(service, computation, file.store)
            service.keep_marks(cluster, keeper)
            records = pinned.hold([await _record(service, stored, file.store) for stored in mine])
            await service.open_cluster(owner)
            service.handle(JobsSubmitted(records))
            owners.append(owner)
            close_complete()
            logger.info("%s: %s taken up again", owner.spec.name, counted(len(mine), "job"))
        saying = portal.loop.call_later(SAY_AFTER, pinned.say)
        try:
            async with asyncio.timeout_at(_loop_time(until)):
                for owner in owners:
                    await owner.over.wait()
        except TimeoutError:
            logger.info("the time is over, with %s left", counted(sum(len(owner.pending) for owner in owners), "job"))
        finally:
            saying.cancel()
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
        await _offer_contents(service, [blob.name for blob in options.depends.contents], folder)
        service.offers.hold(options.depends.contents)
    if len(args) > INLINE_SIZE:
        args, blob = b"", service.links.sources.offer_bytes(args)
    return JobRecord(stored.job, stored.cluster, args, None, blob, options)
