"""The asyncio host of the scheduler core: one inbox, one task's worth of work, one timer.

All clusters of a process with the same secret, certificates, group and base port share one service, and so one lease
on every node. Effects are performed in their order: sends, then notices. Nothing here decides who runs what.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from time import monotonic  # the loop's clock, with a call less for each event

from dispy.buffers import Readable
from dispy.errors import TransferError
from dispy.logs import logger
from dispy.model import BlobRef, ComputationId, FileSpec, NodeInfo, ProcessId
from dispy.nodes import NodeAllocate
from dispy.recovery.book import NodeNoted, ProgramBegun
from dispy.recovery.recorder import Recorder
from dispy.scheduler.allocating import Allocating
from dispy.scheduler.conversation import Conversation
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.durable import DurableMarks, MarkKeeper
from dispy.scheduler.effects import Effects
from dispy.scheduler.events import (
    CancelAsked,
    ClusterClosing,
    ClusterNarrowed,
    ClusterOpened,
    ClusterWidened,
    Event,
    JobsSubmitted,
    NodeSteered,
    Steering,
)
from dispy.scheduler.handover import Handover
from dispy.scheduler.hosting import Hosting, LoopHost
from dispy.scheduler.identity import ServiceSettings, link_settings_of, program_begun, this_holder
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.links import NodeLinks, Reached
from dispy.scheduler.notices import NoticeBoard
from dispy.scheduler.offers import FileOffers
from dispy.scheduler.owner import ClusterOwner
from dispy.scheduler.places import Place
from dispy.scheduler.search import NodeSearch
from dispy.settings import embedded_handle, flag
from dispy.wire.blobsources import MemorySource
from dispy.wire.pool import NodeStanding


class SchedulerService:
    """One scheduler in this process."""

    silence = ""
    """It always answers."""

    def __init__(
        self,
        portal: LoopHost,
        settings: ServiceSettings,
        *,
        going_on: ProgramBegun | None = None,
        recorder: Recorder | None = None,
        hosting: Hosting | None = None,
    ) -> None:
        """Make a scheduler; with `going_on` it continues what another program had begun, under its token.

        With `hosting` it works for many programs.
        """
        self.portal = portal
        self.settings = settings
        self.process = ProcessId(secrets.token_hex(16))
        self.owners: dict[ComputationId, ClusterOwner] = {}
        link_settings = link_settings_of(self.process, settings)
        holder = this_holder(settings.ext_host)
        self._hosting = hosting
        if hosting is None:
            self._token = secrets.token_bytes(32) if going_on is None else going_on.token
            self.core = SchedulerCore(holder=holder, token=self._token, grace=link_settings.grace_timeout)
        else:
            self._token, self.core = hosting.token, hosting.core
        self.recorder = recorder or Recorder(program_begun(holder, self._token, settings))
        self.conversation = Conversation(
            lambda node: self.links.nodes.get(node),
            lambda node, job, attempt: self.core.runs(node, job, attempt),
            self._spawn,
            None if hosting is None else hosting.deliver,
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
            on_known_elsewhere=self._ask_again,
            on_leased=self._note_leased,
            after=None if hosting is None else hosting.after,
            room=None if hosting is None else hosting.room,
            on_relay=self._relay_is_there,
        )
        self.offers = FileOffers(self.links.sources, lambda: (owner.spec for owner in self.owners.values()))
        self.allocating = Allocating(portal.loop, self.links, self.owners, self.offers, self.handle)
        self.durable = DurableMarks(self.links.sources, self._address_of, portal.post)
        self.search = NodeSearch(
            portal.loop,
            self.links,
            lambda: self.owners.values(),
            lambda: self.core.why_waiting(),
            lambda cluster, cause: self.handle(ClusterNarrowed(cluster, cause)),
        )
        self._notices = NoticeBoard(
            self.owners,
            self.links,
            self.offers,
            self.allocating,
            self.durable,
            self.recorder,
            self._spawn,
            None if going_on is None else going_on.pid,
        )
        self._handover = Handover(portal.loop, portal.wake, self._take)
        self.submit = self._handover.submit
        self._inbox: deque[Event] = deque()
        self._handling = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._checks = flag("DISPY_CHECK")

    # From any thread.

    def cancel(self, record: JobRecord) -> None:
        """Cancel a job."""
        self.portal.post(self._cancel, record.job)

    def offer_arguments(self, parts: list[Readable]) -> BlobRef:
        """Let nodes fetch the arguments of a job."""
        return self.links.sources.offer_parts(parts)

    def arguments_of(self, record: JobRecord) -> bytes | memoryview | None:
        """The pickled arguments of a job; None when it has just ended."""
        if record.blob is None:
            return record.args
        try:
            source = self.links.sources.find(record.blob.name)
        except TransferError:
            return None
        return source.read(0, record.blob.size) if isinstance(source, MemorySource) else None

    def scatter(self, cluster: ComputationId, parts: list[Readable]) -> BlobRef:
        """Let nodes fetch a pickled object."""
        return self.offers.offer_object(parts)

    def hold_objects(self, blobs: Iterable[BlobRef]) -> None:
        """A job needs these until it is taken back."""
        self.offers.hold(blobs)

    # In the loop.

    def gather(self, cluster: ComputationId, blob: BlobRef) -> None:
        """Undo `scatter`."""
        self.offers.release([blob])

    def release_objects(self, blobs: Iterable[BlobRef]) -> None:
        """Undo `hold_objects`."""
        self.offers.release(blobs)

    async def offer_computation(
        self, code: bytes | None, files: Iterable[tuple[Path, str]]
    ) -> tuple[BlobRef | None, tuple[FileSpec, ...]]:
        """Let nodes fetch what a cluster needs.

        Raises:
            TransferError: a file cannot be read.
        """
        offered = await self.offers.offer(files)
        return None if code is None else self.links.sources.offer_bytes(code, hashed=True), offered

    async def offer_for_job(self, files: Iterable[tuple[Path, str]]) -> tuple[FileSpec, ...]:
        """Let nodes fetch the files of one job. Raises as `offer_computation`."""
        return await self.offers.offer_held(files)

    def keep_marks(self, cluster: ComputationId, keeper: MarkKeeper) -> Callable[[int], None]:
        """Let this keeper have the marks of a durable cluster; returns who hears that callbacks have returned."""
        self.durable.add(cluster, keeper)
        return self.durable.told

    async def open_cluster(self, owner: ClusterOwner) -> None:
        """Take up a cluster: look for its nodes."""
        await self.adopt_cluster(owner)
        self.begin_cluster(owner)

    async def adopt_cluster(self, owner: ClusterOwner) -> None:
        """Look for the nodes of a cluster that the core knows, or will know in a moment."""
        self.owners[owner.spec.id] = owner
        await self.search.look_for(owner)

    def begin_cluster(self, owner: ClusterOwner) -> None:
        """The core hears of a cluster that was adopted."""
        self.recorder.cluster_opened(owner.spec)
        named = len(list(owner.named_nodes())) + owner.wants_local
        open_ended = owner.open_ended or self._names(owner, self.links.relays.places)
        self.handle(
            ClusterOpened(
                owner.spec,
                reentrant=owner.reentrant,
                open_ended=open_ended,
                named=named,
                user=owner.user,
                exclusive=owner.exclusive,
            )
        )

    def close_cluster(self, cluster: ComputationId, terminate: bool) -> None:
        """Finish or end the jobs of a cluster and clean up on its nodes; the owner hears `ended`."""
        self.flush_now()
        self.handle(ClusterClosing(cluster, terminate))

    async def stop(self, reason: str = "the program is done", *, hurried: bool = False, returns: bool = False) -> None:
        """End all links and the embedded node; `hurried`: its jobs are killed; `returns`: nodes wait for our return."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.links.close(reason, returns=returns)
        await self.search.stop(hurried=hurried)
        self.recorder.end()

    def abandon(self) -> None:
        """In a forked child: the embedded node is tied to the parent alone."""
        self.search.abandon()
        self.recorder.abandon()

    def narrow(self, cluster: ComputationId) -> None:
        """Wait for no further nodes: jobs of the cluster that no known node can ever run end."""
        self.handle(ClusterNarrowed(cluster))

    async def look_for_nodes(self, cluster: ComputationId, items: Iterable[NodeAllocate], *, lasting: bool) -> None:
        """Look for further nodes; `lasting`: jobs of the cluster shall wait for them.

        Raises:
            SettingsError: an interface does not exist.
        """
        wanted = list(items)
        if lasting:
            self.handle(ClusterWidened(cluster))
        named = [(item.host, item.port or 0) for item in wanted if not item.is_pattern]
        await self.search.look(named, asks=len(named) < len(wanted))

    def take_back(self, record: JobRecord) -> None:
        """What nodes could have fetched for a job is not wanted any more."""
        self._notices.take_back(record)

    async def explain(self, record: JobRecord) -> str:
        """One sentence (or a few) that says why a job is where it is."""
        self.flush_now()
        sentence = self.core.explain(record.job, self.portal.loop.time())
        return f"{sentence} {self.search.account()}".rstrip() if self.core.lacks_nodes(record.job) else sentence

    async def standings(self, cluster: ComputationId) -> list[NodeStanding]:
        """Every node that a cluster wants to use, and what keeps it from being given work."""
        self.flush_now()
        return self.core.standings(cluster, self.portal.loop.time())

    async def nodes_matching(self, item: NodeAllocate) -> list[ProcessId]:
        """Nodes with a link that an item of `nodes` is about; its host name must have been resolved."""
        views = [self.links.view(node) for node in self.links.nodes]
        return [view.process for view in views if view and (view.fits(item) or view.is_behind(item))]

    async def uses(self, cluster: ComputationId, node: ProcessId) -> bool:
        """Whether a cluster has a share of a node, opened or not."""
        self.flush_now()
        return self.core.uses(cluster, node)

    def offered_by(self, node: ProcessId) -> NodeInfo | None:
        """What a node with a link says of itself."""
        reached = self.links.nodes.get(node)
        return None if reached is None else reached.info

    def steer(
        self, cluster: ComputationId, node: ProcessId, how: Steering, *, cpus: int = 0, terminate: bool = False
    ) -> None:
        """Change how a cluster uses a node."""
        if how is Steering.CAP:
            self.allocating.note(cluster, node, cpus)
        self.handle(NodeSteered(cluster, node, how, cpus, terminate))

    async def jobs_at(self, cluster: ComputationId, node: ProcessId, *, from_node: bool) -> list[JobRecord]:
        """The jobs of a cluster that a node has; `from_node`: those that run there by its own account."""
        records = self.core.jobs_at(node, cluster)
        if not from_node:
            return records
        running = {(each.job, each.attempt) for each in await self.conversation.running(node, cluster)}
        return [record for record in records if (record.job, record.attempt) in running]

    async def tail(self, record: JobRecord) -> tuple[bytes, bytes]:
        """The end of what a running job has printed."""
        return (b"", b"") if record.node is None else await self.conversation.tail(record.node, record.job)

    async def send_file(self, node: ProcessId, cluster: ComputationId, path: Path, destination: str) -> str:
        """Place a file into a computation's directory on a node; returns why that failed, else nothing.

        Raises:
            TransferError: the file cannot be read.
        """
        files = await self.offers.offer_held([(path, destination)])
        try:
            return await self.conversation.place(node, cluster, files[0])
        finally:
            self.offers.release(file.blob for file in files)

    def flush_now(self) -> None:
        """Hand all queued jobs to the core before anything else happens."""
        self._handover.flush_now()

    def _take(self, records: list[JobRecord]) -> None:
        if self.durable.keepers:
            self.durable.store(records)
        self.handle(JobsSubmitted(records))

    def _cancel(self, job: int) -> None:
        self.flush_now()
        self.handle(CancelAsked([job]))

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
        inbox = self._inbox
        while inbox:
            event = inbox.popleft()
            self._perform(event, self.core.handle(event, monotonic()))

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
            self._perform(None, self.core.handle_timeout(self.portal.loop.time()))
            self._empty_inbox()
        finally:
            self._handling = False
        for node in [
            node for node, reached in self.links.nodes.items() if reached.info and node not in self.core.nodes
        ]:
            self.links.forget_node(node)
        self._arm()

    def _perform(self, event: Event | None, effects: Effects) -> None:
        if self._checks:
            self.core.check()
        if self._hosting is not None:
            self._hosting.note(event, effects)
        if self.durable.keepers:
            self.durable.hand(effects)
        if effects.sends:
            self.links.send(effects.sends)
        if effects.notices:
            self._notices.tell(effects.notices)

    def _ask_again(self, node: ProcessId) -> None:
        """The node turned out to be one that a cluster may have named in another way."""
        for asked in self.allocating.declined(node):
            self._spawn(self.allocating.ask(asked))

    def _relay_is_there(self, place: Place) -> None:
        """Nodes that nobody knows yet may come to clusters that named this relay."""
        for cluster, owner in self.owners.items():
            if self._names(owner, {place}):
                self.handle(ClusterWidened(cluster))

    def _names(self, owner: ClusterOwner, places: set[Place]) -> bool:
        return any((host, port or self.links.node_port) in places for host, port in owner.named_nodes())

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
