"""The asyncio host of the scheduler core inside a user's process: one inbox, one task's worth of work, one timer.

All clusters of a process with the same secret, certificates, group and base port share one service, and so one lease
on every node. Effects are performed in their order: sends, then notices. Nothing here decides who runs what.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import secrets
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dispy import config
from dispy.errors import TransferError
from dispy.logs import logger
from dispy.model import ComputationId, ComputationSpec, FileSpec, Holder, ProcessId, Role
from dispy.nodes import NodeAllocate, NodeView
from dispy.portal import Portal
from dispy.recovery.book import NodeNoted, ProgramBegun
from dispy.recovery.recorder import Recorder
from dispy.scheduler.conversation import Conversation
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.durable import DurableMarks
from dispy.scheduler.effects import (
    AskAllocation,
    ClusterEnded,
    Effects,
    JobEnded,
    JobRequeued,
    JobsEnded,
    JobSpoke,
    JobsStarted,
    NodeClosed,
    NodeMeasured,
    NodeOffered,
    NodeOpened,
    NodeRefused,
)
from dispy.scheduler.events import (
    CancelAsked,
    ClusterClosing,
    ClusterNarrowed,
    ClusterOpened,
    Event,
    JobsSubmitted,
    NodeAllocated,
)
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.links import NodeLinks, Reached
from dispy.scheduler.owner import Allocation, ClusterOwner
from dispy.scheduler.search import NodeSearch
from dispy.secrets import Credentials
from dispy.settings import (
    GRACE_TIMEOUT,
    HEARTBEAT_INTERVAL,
    SUSPECT_TIMEOUT,
    USUAL_MULTICAST,
    Multicast,
    embedded_handle,
    flag,
)
from dispy.wire.link import LinkSettings

_Told = JobRequeued | NodeOpened | NodeClosed | NodeMeasured | NodeOffered | NodeRefused | ClusterEnded


@dataclass(slots=True, frozen=True)
class ServiceSettings:
    """What clusters must have in common to share a service."""

    credentials: Credentials
    group: str
    base_port: int
    client_port: int
    """Where nodes can join this program."""
    interfaces: tuple[str, ...]
    pulse_interval: float | None = field(default=None, compare=False)
    """That of the first cluster: with a service of its own, a second one would wait for the first one's nodes."""
    multicast: Multicast = USUAL_MULTICAST
    ext_host: str = ""
    """Where others reach this machine; nodes show it as the place of the program that holds them."""


class SchedulerService:
    """One scheduler in this process."""

    def __init__(
        self,
        portal: Portal,
        settings: ServiceSettings,
        *,
        going_on: ProgramBegun | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Make a scheduler; with `going_on` it continues what another program had begun, under its token."""
        self.portal = portal
        self.settings = settings
        self.process = ProcessId(secrets.token_hex(16))
        self.owners: dict[ComputationId, ClusterOwner] = {}
        link_settings = _link_settings(self.process, settings)
        holder, self._token = (
            _holder(settings.ext_host),
            secrets.token_bytes(32) if going_on is None else going_on.token,
        )
        self.core = SchedulerCore(holder=holder, token=self._token, grace=link_settings.grace_timeout)
        self._going_on = going_on
        self.recorder = recorder or Recorder(_begun(holder, self._token, settings))
        self.conversation = Conversation(
            lambda node: self.links.nodes.get(node),
            lambda node, job, attempt: self.core.runs(node, job, attempt),
            self._spawn,
        )
        self.links = NodeLinks(
            portal.loop,
            link_settings,
            base_port=settings.base_port,
            client_port=settings.client_port,
            interfaces=settings.interfaces,
            multicast=settings.multicast,
            on_event=self.handle,
            talk=self.conversation,
            on_known_elsewhere=self._ask_allocations_again,
            on_leased=self._note_leased,
        )
        self.durable = DurableMarks(self.links.sources, self._address_of)
        self.search = NodeSearch(
            portal.loop,
            self.links,
            lambda: self.owners.values(),
            lambda: self.core.why_waiting(),
            lambda cluster, cause: self.handle(ClusterNarrowed(cluster, cause)),
        )
        self._held: Counter[bytes] = Counter()
        """Contents offered for single jobs and nodes."""
        self._allocated: dict[tuple[ComputationId, ProcessId], int] = {}
        self._outbox: deque[JobRecord] = deque()
        self._flushing = False
        self._inbox: deque[Event] = deque()
        self._handling = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._allocating = asyncio.Lock()
        self._checks = flag("DISPY_CHECK")

    # From any thread.

    def submit(self, record: JobRecord) -> None:
        """Queue a job; the loop takes all that is queued at once."""
        self._outbox.append(record)
        if not self._flushing:
            self._flushing = True
            self.portal.loop.call_soon_threadsafe(self._flush)

    def cancel(self, job: int) -> None:
        """Cancel a job."""
        self.portal.post(self.handle, CancelAsked([job]))

    # In the loop.

    async def open_cluster(self, owner: ClusterOwner) -> None:
        """Take up a cluster: look for its nodes."""
        self.owners[owner.spec.id] = owner
        await self.search.look_for(owner)
        self.recorder.cluster_opened(owner.spec)
        named = len(list(owner.named_nodes())) + owner.wants_local
        self.handle(ClusterOpened(owner.spec, reentrant=owner.reentrant, open_ended=owner.open_ended, named=named))

    def close_cluster(self, cluster: ComputationId, terminate: bool) -> None:
        """Finish or end the jobs of a cluster and clean up on its nodes; the owner hears `ended`."""
        self.flush_now()
        self.handle(ClusterClosing(cluster, terminate))

    async def stop(self, reason: str = "the program is done") -> None:
        """End all links and the embedded node."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.links.close(reason)
        await self.search.stop()
        self.recorder.end()

    def abandon(self) -> None:
        """In a forked child: the embedded node is tied to the parent alone."""
        self.search.abandon()
        self.recorder.abandon()

    def nodes_matching(self, item: NodeAllocate) -> list[ProcessId]:
        """Nodes with a link that an item of `nodes` is about; its host name must have been resolved."""
        views = [self.links.view(node) for node in self.links.nodes]
        return [view.process for view in views if view and view.fits(item)]

    def note_cpus(self, cluster: ComputationId, node: ProcessId, cpus: int) -> None:
        """The user has said how many CPUs of a node a cluster uses."""
        self._allocated[cluster, node] = cpus

    def explain(self, job: int) -> str:
        """One sentence (or a few) that says why a job is where it is."""
        sentence = self.core.explain(job, self.portal.loop.time())
        return f"{sentence} {self.search.account()}".rstrip() if self.core.waits(job) else sentence

    def narrow(self, cluster: ComputationId) -> None:
        """Wait for no further nodes: jobs of the cluster that no known node can ever run end."""
        self.handle(ClusterNarrowed(cluster))

    def flush_now(self) -> None:
        """Hand queued jobs to the core before anything else happens."""
        if self._outbox:
            self._flush()

    def _flush(self) -> None:
        self._flushing = False
        outbox = self._outbox
        count = len(outbox)
        if count:
            records = [outbox.popleft() for _ in range(count)]
            if self.durable:
                self.durable.store(records)
            self.handle(JobsSubmitted(records))

    def handle(self, event: Event) -> None:
        """Give an event to the core and do what it wants done. Events that come meanwhile wait in line."""
        self._inbox.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            self._empty_inbox()
        finally:
            self._handling = False
        self._arm()

    def _empty_inbox(self) -> None:
        while self._inbox:
            self._perform(self.core.handle(self._inbox.popleft(), self.portal.loop.time()))

    def _arm(self) -> None:
        deadline = self.core.next_deadline()
        if deadline == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = None if deadline is None else self.portal.loop.call_at(deadline, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer, self._timer_at = None, None
        self._handling = True
        try:
            self._perform(self.core.handle_timeout(self.portal.loop.time()))
            self._empty_inbox()
        finally:
            self._handling = False
        for node in [
            node for node, reached in self.links.nodes.items() if reached.info and node not in self.core.nodes
        ]:
            self.links.forget_node(node)
        self._arm()

    def _perform(self, effects: Effects) -> None:
        if self._checks:
            self.core.check()
        if self.durable:
            self.durable.hand(effects)
        if effects.sends:
            self.links.send(effects.sends)
        for notice in effects.notices:
            match notice:
                case JobsEnded():
                    self._tell_ended(notice.jobs)
                case JobsStarted():
                    self._tell_started(notice)
                case JobSpoke():
                    owner = self.owners.get(notice.job.cluster)
                    if owner is not None:
                        owner.job_spoke(notice, self.links.view(notice.node))
                case AskAllocation():
                    self._spawn(self._allocate(notice))
                case _:
                    self._tell(notice)

    def _tell_ended(self, jobs: Iterable[JobEnded]) -> None:
        touched: dict[ComputationId, ClusterOwner] = {}
        views: dict[ProcessId, NodeView | None] = {}
        owner: ClusterOwner | None = None
        cluster: ComputationId | None = None
        for ended in jobs:
            if ended.job.cluster != cluster:
                cluster = ended.job.cluster
                owner = self.owners.get(cluster)
                if owner is not None:
                    touched[cluster] = owner
            node = ended.node
            if node is not None and node not in views:
                views[node] = self.links.view(node)
            if ended.job.blob is not None:
                self.links.sources.withdraw(ended.job.blob.name)
            options = ended.job.options
            if options is not None and options.depends is not None:
                self.release(options.depends.files)
            if owner is not None:
                owner.job_ended(ended, None if node is None else views[node])
        if self.durable:
            self.durable.end(jobs)
        for owner in touched.values():
            owner.batch_ended()

    def _tell_started(self, notice: JobsStarted) -> None:
        view = self.links.view(notice.node)
        by_cluster: dict[ComputationId, list[JobRecord]] = {}
        for record in notice.jobs:
            by_cluster.setdefault(record.cluster, []).append(record)
        for cluster, records in by_cluster.items():
            owner = self.owners.get(cluster)
            if owner is not None:
                owner.jobs_started(view, records)

    def _tell(self, notice: _Told) -> None:
        match notice:
            case JobRequeued():
                owner = self.owners.get(notice.job.cluster)
                if owner is not None:
                    owner.job_requeued(notice, self.links.view(notice.node))
            case NodeOpened():
                view = self.links.view(notice.node)
                owner = self.owners.get(notice.cluster)
                if owner is not None and view is not None:
                    owner.node_opened(view, self._allocated.get((notice.cluster, notice.node), view.info.cpus))
            case NodeClosed():
                owner = self.owners.get(notice.cluster)
                if owner is not None:
                    owner.node_closed(notice)
            case NodeMeasured():
                owner = self.owners.get(notice.cluster)
                if owner is not None:
                    owner.node_measured(notice.node, notice.avail)
            case NodeOffered():
                owner = self.owners.get(notice.cluster)
                if owner is not None:
                    owner.node_offered(notice.node, notice.cpus, notice.used)
            case NodeRefused():
                self._tell_refused(notice)
            case ClusterEnded():
                owner = self.owners.pop(notice.cluster, None)
                if owner is not None:
                    self._withdraw(owner.spec)
                    self.recorder.cluster_over(notice.cluster)
                    self.durable.forget(notice.cluster)
                    owner.ended()

    def _withdraw(self, spec: ComputationSpec) -> None:
        """Let go of what nodes can fetch for a cluster, unless another cluster offers the same content."""
        self._let_go(_blob_names(spec))

    def _let_go(self, names: Iterable[bytes]) -> None:
        needed = {name for owner in self.owners.values() for name in _blob_names(owner.spec)}
        for name in names:
            if name not in needed and name not in self._held:
                self.links.sources.withdraw(name)

    async def offer_for_job(self, files: Iterable[tuple[Path, str]]) -> tuple[FileSpec, ...]:
        """Make files fetchable until the job that gets them has ended. Raises as `offer_files`."""
        offered = await self.offer_files(files)
        self.hold(offered)
        return offered

    def hold(self, files: Iterable[FileSpec]) -> None:
        """Keep files fetchable that belong to no cluster, until `release`."""
        self._held.update(file.blob.name for file in files)

    def release(self, files: Iterable[FileSpec]) -> None:
        """Undo `hold`."""
        names = [file.blob.name for file in files]
        self._held -= Counter(names)
        self._let_go(names)

    async def send_file(self, node: ProcessId, cluster: ComputationId, path: Path, destination: str) -> str:
        """Place a file into a computation's directory on a node; returns why that failed, else nothing.

        Raises:
            TransferError: the file cannot be read.
        """
        files = await self.offer_files([(path, destination)])
        self.hold(files)
        try:
            return await self.conversation.place(node, cluster, files[0])
        finally:
            self.release(files)

    def _tell_refused(self, refused: NodeRefused) -> None:
        view = self.links.view(refused.node)
        if refused.cluster is not None:
            owner = self.owners.get(refused.cluster)
            if owner is not None:
                owner.node_refused(view, refused)
            return
        where = view.info.name if view is not None else refused.node
        if self._going_on is not None and refused.holder is not None and refused.holder.pid == self._going_on.pid:
            logger.debug("node %s is just letting go of what that program had there", where)
            return
        since = refused.holder.since if refused.holder is not None else 0.0
        text = f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}" if since else ""
        logger.warning("node %s cannot be used now: %s%s", where, refused.reason, text)

    def _ask_allocations_again(self, node: ProcessId) -> None:
        """The node turned out to be one that a cluster may have named in another way."""
        reached = self.links.nodes[node]
        assert reached.info is not None
        for cluster in self.owners:
            if self._allocated.get((cluster, node)) == 0:
                self._spawn(self._allocate(AskAllocation(cluster, node, reached.info, reached.address)))

    async def _allocate(self, asked: AskAllocation) -> None:
        owner = self.owners.get(asked.cluster)
        reached = self.links.nodes.get(asked.node)
        if owner is None or reached is None:
            return
        places = self.links.places.of(asked.node)
        view = NodeView(asked.node, asked.info, asked.address, reached.port, asked.avail, places)
        allocation = Allocation(0)
        files: tuple[FileSpec, ...] = ()
        try:
            if owner.allocates_slowly:
                # not in the callback thread: a callback may wait for a job that waits for this node
                async with self._allocating:
                    allocation = await self.portal.loop.run_in_executor(None, owner.allocate, view, reached.local)
            else:
                allocation = owner.allocate(view, reached.local)
            if allocation.cpus > 0:
                files = await self.offer_files([(Path(name), Path(name).name) for name in allocation.depends])
        except Exception:
            logger.exception("node %s is not used: its allocation failed", asked.info.name)
            allocation = Allocation(0)
        self._allocated[asked.cluster, asked.node] = allocation.cpus
        event = NodeAllocated(
            asked.cluster, asked.node, allocation.cpus, files, allocation.setup_args, allocation.oversubscribe
        )
        self.handle(event)

    async def offer_files(self, files: Iterable[tuple[Path, str]]) -> tuple[FileSpec, ...]:
        """Make files fetchable by nodes: local path and path below the computation's directory.

        Raises:
            TransferError: a file cannot be read.
        """
        offered = []
        most = config.MaxFileSize
        for path, destination in files:
            if most and path.exists() and path.stat().st_size > most:
                raise TransferError(
                    f"{path} has {path.stat().st_size:,} bytes; dispy.config.MaxFileSize allows {most:,}"
                )
            blob = await self.links.sources.offer_file(path)
            status = path.stat()
            offered.append(FileSpec(destination, blob, status.st_mode & 0o777, status.st_mtime))
        return tuple(offered)

    def _address_of(self, node: ProcessId) -> str:
        reached = self.links.nodes.get(node)
        return "" if reached is None else reached.address

    def _note_leased(self, reached: Reached) -> None:
        assert reached.info is not None
        places = self.links.places.of(reached.process) or ((reached.address, reached.port),)
        handle = embedded_handle(self._token) if reached.local else ""
        self.recorder.node_leased(NodeNoted(reached.process, reached.info.name, places, str(handle)))

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self.portal.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("an internal task failed", exc_info=task.exception())


def _blob_names(spec: ComputationSpec) -> set[bytes]:
    names = {file.blob.name for file in spec.files}
    return names if spec.code is None else names | {spec.code.name}


def _holder(ext_host: str) -> Holder:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return Holder(user, ext_host or socket.gethostname(), os.getpid(), program, time.time())


def _begun(holder: Holder, token: bytes, settings: ServiceSettings) -> ProgramBegun:
    return ProgramBegun(
        token=token,
        key_id=settings.credentials.key_id,
        group=settings.group,
        base_port=settings.base_port,
        user=holder.user,
        host=socket.gethostname(),
        pid=holder.pid,
        program=holder.program,
        started_at=time.time(),
    )


def _link_settings(process: ProcessId, settings: ServiceSettings) -> LinkSettings:
    pulse = settings.pulse_interval
    return LinkSettings(
        process=process,
        role=Role.SCHEDULER,
        name=socket.gethostname(),
        credentials=settings.credentials,
        group=settings.group,
        heartbeat_interval=HEARTBEAT_INTERVAL if pulse is None else pulse / 2,
        suspect_timeout=SUSPECT_TIMEOUT if pulse is None else 2.5 * pulse,
        grace_timeout=GRACE_TIMEOUT if pulse is None else 5 * pulse,
    )
