"""A scheduler that several programs share, as the clusters of this program use it: over a link, by messages.

It offers what `SchedulerService` offers to clusters. One for each scheduler and credentials; what concerns a single
cluster is in `attachment`.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dispy import config
from dispy.errors import AuthenticationRejected, LinkError, SettingsError, TransferError
from dispy.logs import logger
from dispy.model import BlobRef, ComputationId, FileSpec, JobState, NodeInfo, ProcessId, Role
from dispy.nodes import NodeAllocate
from dispy.portal import Portal
from dispy.recovery.book import ClusterShared
from dispy.recovery.recorder import Recorder
from dispy.scheduler.events import Steering
from dispy.scheduler.handover import Handover
from dispy.scheduler.identity import ServiceSettings, program_begun, this_holder
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.offers import FileOffers
from dispy.scheduler.owner import Allocation, ClusterOwner
from dispy.secrets import Credentials
from dispy.settings import EXPLAIN_AFTER, GRACE_TIMEOUT
from dispy.sharing.asking import Questions
from dispy.sharing.attachment import Attachment, Doings
from dispy.sharing.sightings import view_of
from dispy.wire.blobs import BlobExchange
from dispy.wire.blobsources import BlobSources, MemorySource
from dispy.wire.link import Dialler, Link, LinkSettings
from dispy.wire.messages import AnyMessage
from dispy.wire.sharing import (
    AllocationAsked,
    AnswerAllocation,
    AskJobsAt,
    AskStandings,
    AskTail,
    ExplainSubmitted,
    NodeSeen,
    NodeStanding,
    OpenCluster,
    PlaceFileAt,
    SteerShare,
    WidenCluster,
)
from dispy.words import counted

NODES_AFTER: Final = 5.0
"""Seconds on a new link after which a node of which the scheduler has not spoken again is taken for gone."""
REFUSED_AGAIN: Final = 10.0
"""Seconds between dials of a scheduler that refuses us."""
CLOSED_AGAIN: Final = 0.2
"""Seconds after which a scheduler that said goodbye is dialled again: it may be restarting."""


@dataclass(slots=True, frozen=True)
class SharedSettings:
    """What clusters must have in common to share a link to a scheduler."""

    credentials: Credentials
    group: str
    host: str
    port: int
    ext_host: str = ""

    @property
    def where(self) -> str:
        """For sentences."""
        return f"{self.host}:{self.port}"


class RemoteScheduler:
    """The scheduler at the other end of a link."""

    def __init__(self, portal: Portal, settings: SharedSettings) -> None:
        self.portal = portal
        self.settings = settings
        self._loop = portal.loop
        holder = this_holder(settings.ext_host)
        self._holder = holder
        self._link_settings = LinkSettings(
            process=ProcessId(secrets.token_hex(16)),
            role=Role.CLIENT,
            name=socket.gethostname(),
            credentials=settings.credentials,
            group=settings.group,
        )
        begun = ServiceSettings(settings.credentials, settings.group, settings.port, 0, ())
        self.recorder = Recorder(program_begun(holder, secrets.token_bytes(32), begun))
        self.attachments: dict[ComputationId, Attachment] = {}
        self._sources = BlobSources()
        self._offers = FileOffers(self._sources, lambda: (each.owner.spec for each in self.attachments.values()))
        self._handover = Handover(portal.loop, self._take)
        self._questions = Questions()
        self._dialler: Dialler | None = None
        self._link: Link | None = None
        self._exchange: BlobExchange | None = None
        self._trouble = ""
        """Why there is no link, as the last dial has shown."""
        self._is_said = False
        self._alone_since = 0.0
        """When the link was lost, or first dialled; by the loop's clock."""
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking = asyncio.Lock()

    # From any thread.

    def submit(self, record: JobRecord) -> None:
        """Queue a job; the loop takes what is queued by large portions."""
        self._handover.submit(record)

    def cancel(self, record: JobRecord) -> None:
        """End a job, wherever it is."""
        self.portal.post(self._cancel, record)

    def offer_arguments(self, data: bytes) -> BlobRef:
        """Let the scheduler fetch the arguments of a job."""
        return self._sources.offer_bytes(data)

    def arguments_of(self, record: JobRecord) -> bytes | memoryview | None:
        """The pickled arguments of a job; None when it has just ended."""
        if record.blob is None:
            return record.args
        try:
            source = self._sources.find(record.blob.name)
        except TransferError:
            return None
        return source.read(0, record.blob.size) if isinstance(source, MemorySource) else None

    def told(self, cluster: ComputationId, job: int) -> None:
        """Callbacks about the end of a job have returned: the scheduler may forget it."""
        self.portal.post(self._told, cluster, job)

    # In the loop: clusters.

    async def offer_computation(
        self, code: bytes | None, files: Iterable[tuple[Path, str]]
    ) -> tuple[BlobRef | None, tuple[FileSpec, ...]]:
        """Let the scheduler fetch what a cluster needs.

        Raises:
            TransferError: a file cannot be read.
        """
        offered = await self._offers.offer(files)
        return None if code is None else self._sources.offer_bytes(code, hashed=True), offered

    async def offer_for_job(self, files: Iterable[tuple[Path, str]]) -> tuple[FileSpec, ...]:
        """Let the scheduler fetch the files of one job. Raises as `offer_computation`."""
        return await self._offers.offer_held(files)

    async def open_cluster(self, owner: ClusterOwner, *, exclusive: bool = False) -> None:
        """Open a cluster, and wait a moment for the scheduler's word; it is dialled for as long as that takes.

        Raises:
            SettingsError: the scheduler refuses this program or this cluster.
        """
        opening = OpenCluster(
            computation=owner.spec,
            token=secrets.token_bytes(32),
            holder=self._holder,
            reentrant=owner.reentrant,
            open_ended=owner.open_ended,
            named=tuple(owner.named_nodes()),
            discovers=owner.wants_discovery,
            interval=owner.interval,
            exclusive=exclusive,
        )
        doings = Doings(self._send, self._fetch, self._spawn, self.take_back, self._accepted, self._over)
        attachment = self.attachments[owner.spec.id] = Attachment(owner, opening, doings)
        self.recorder.cluster_opened(owner.spec)
        if self._dialler is None:
            self._begin()
        elif self._link is not None:
            attachment.open()
        await asyncio.wait([attachment.decided], timeout=EXPLAIN_AFTER)
        if attachment.decided.done() and (error := attachment.decided.exception()) is not None:
            self._over(attachment)
            raise error

    def close_cluster(self, cluster: ComputationId, terminate: bool) -> None:
        """Finish or end the jobs of a cluster; the owner hears `ended`."""
        self._handover.flush_now()
        attachment = self.attachments.get(cluster)
        if attachment is not None:
            attachment.close(terminate)
            if terminate:
                self._loop.call_later(GRACE_TIMEOUT, self._give_up_if_alone)

    def narrow(self, cluster: ComputationId) -> None:
        """Wait for no further nodes."""
        if cluster in self.attachments:
            self.attachments[cluster].narrow()

    async def look_for_nodes(self, cluster: ComputationId, items: Iterable[NodeAllocate], *, lasting: bool) -> None:
        """Let the scheduler look for further nodes."""
        wanted = list(items)
        named = tuple((item.host, item.port or 0) for item in wanted if not item.is_pattern)
        asks = len(named) < len(wanted)
        if cluster in self.attachments:
            self.attachments[cluster].say(WidenCluster(cluster, named, asks, lasting), lasting=lasting)

    def take_back(self, record: JobRecord) -> None:
        """What could have been fetched for a job is not wanted any more."""
        if record.blob is not None:
            self._sources.withdraw(record.blob.name)
        if record.options is not None and record.options.depends is not None:
            self._offers.release(record.options.depends.files)

    def steer(
        self, cluster: ComputationId, node: ProcessId, how: Steering, *, cpus: int = 0, terminate: bool = False
    ) -> None:
        """Change how a cluster uses a node."""
        if cluster in self.attachments:
            self.attachments[cluster].say(SteerShare(cluster, node, how.name.lower(), cpus, terminate))

    # In the loop: questions.

    async def explain(self, record: JobRecord) -> str:
        """Why a job is where it is."""
        self._handover.flush_now()
        attachment = self.attachments.get(record.cluster)
        if attachment is None or record.job not in attachment.jobs:
            return f"Job {record.job} has ended."
        if self._link is None:
            return f"Job {record.job} {_where_it_is(record)}: {self.why_alone()}."
        if not attachment.accepted:
            return f"Job {record.job} waits: the scheduler at {self.settings.where} is taking up its cluster."
        if record.state is JobState.Created:
            return (
                f"Job {record.job} waits here until the scheduler at {self.settings.where} has stored what was "
                "submitted before it."
            )
        try:
            answer, _ = await self._ask(lambda number: ExplainSubmitted(number, record.cluster, record.job))
        except TimeoutError:
            return f"Job {record.job} {_where_it_is(record)}: {self.why_alone()}."
        return str(answer.sentence)

    async def standings(self, cluster: ComputationId) -> list[NodeStanding]:
        """Every node that a cluster wants to use; none when the scheduler does not answer."""
        self._handover.flush_now()
        try:
            answer, _ = await self._ask(lambda number: AskStandings(number, cluster))
        except TimeoutError:
            return []
        return list(answer.standings)

    async def nodes_matching(self, item: NodeAllocate) -> list[ProcessId]:
        """Nodes of which the scheduler has told, and that an item of `nodes` is about."""
        views = {view.process: view for each in self.attachments.values() for view in each.nodes.views.values()}
        return [process for process, view in views.items() if view.fits(item)]

    async def uses(self, cluster: ComputationId, node: ProcessId) -> bool:
        """Whether a cluster wants to use a node, opened or not."""
        return any(standing.node == node for standing in await self.standings(cluster))

    def offered_by(self, node: ProcessId) -> NodeInfo | None:
        """What a node says of itself, as far as the scheduler has told."""
        for each in self.attachments.values():
            if node in each.nodes.views:
                return each.nodes.views[node].info
        return None

    async def jobs_at(self, cluster: ComputationId, node: ProcessId, *, from_node: bool) -> list[JobRecord]:
        """The jobs of a cluster that a node has."""
        attachment = self.attachments.get(cluster)
        if attachment is None:
            return []
        if not from_node:
            return [record for record in attachment.jobs.values() if record.node == node]
        try:
            answer, _ = await self._ask(lambda number: AskJobsAt(number, cluster, node, from_node=True))
        except TimeoutError:
            return []
        return [attachment.jobs[job] for job in answer.jobs if job in attachment.jobs]

    async def tail(self, record: JobRecord) -> tuple[bytes, bytes]:
        """The end of what a running job has printed."""
        try:
            answer, payload = await self._ask(lambda number: AskTail(number, record.cluster, record.job))
        except TimeoutError:
            return b"", b""
        both = bytes(payload)
        return both[: answer.stdout_size], both[answer.stdout_size :]

    async def send_file(self, node: ProcessId, cluster: ComputationId, path: Path, destination: str) -> str:
        """Place a file into a computation's directory on a node; returns why that failed, else nothing.

        Raises:
            TransferError: the file cannot be read.
        """
        files = await self._offers.offer_held([(path, destination)])
        try:
            answer, _ = await self._ask(lambda number: PlaceFileAt(number, cluster, node, files[0]), None)
        except TimeoutError:
            return self.why_alone()
        finally:
            self._offers.release(files)
        return str(answer.reason)

    async def _ask(
        self, question: Callable[[int], AnyMessage], limit: float | None = -1.0
    ) -> tuple[Any, bytes | memoryview]:
        def send(number: int) -> bool:
            self._send(question(number), ())
            return self._link is not None

        return await self._questions.ask(send, config.MsgTimeout if limit == -1.0 else limit)

    def why_alone(self) -> str:
        """Why nothing is heard of the scheduler, in words."""
        if self._link is not None:
            return f"the scheduler at {self.settings.where} does not answer"
        trouble = f" ({self._trouble})" if self._trouble else ""
        return f"there is no link to the scheduler at {self.settings.where}{trouble}; it is dialled again and again"

    # The end.

    async def stop(self, reason: str = "the program is done", *, hurried: bool = False) -> None:
        """End the link. Clusters that are open stay open at the scheduler."""
        self._stopped = True
        if self._exchange is not None:
            self._exchange.close(reason)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._dialler is not None:
            self._dialler.stop(reason)
        self._link = None
        self.recorder.end()

    def abandon(self) -> None:
        """In a forked child: all of it belongs to the parent alone."""
        self.recorder.abandon()

    # Inside: what clusters say.

    def _take(self, records: list[JobRecord]) -> None:
        by_cluster: dict[ComputationId, list[JobRecord]] = {}
        for record in records:
            by_cluster.setdefault(record.cluster, []).append(record)
        for cluster, mine in by_cluster.items():
            self.attachments[cluster].submit(mine)

    def _cancel(self, record: JobRecord) -> None:
        self._handover.flush_now()
        attachment = self.attachments.get(record.cluster)
        if attachment is not None:
            attachment.cancel(record)

    def _told(self, cluster: ComputationId, job: int) -> None:
        attachment = self.attachments.get(cluster)
        if attachment is not None:
            attachment.told(job)

    def _send(self, message: AnyMessage, payload: Sequence[bytes]) -> None:
        if self._link is not None:
            self._link.send(message, payload)

    async def _fetch(self, ref: BlobRef) -> bytes:
        if self._exchange is None:
            raise TransferError("there is no link to the scheduler")
        return await self._exchange.fetch_bytes(ref)

    def _accepted(self, attachment: Attachment) -> None:
        opening = attachment.opening
        self.recorder.cluster_shared(
            ClusterShared(attachment.id, self.settings.host, self.settings.port, opening.token)
        )

    def _over(self, attachment: Attachment) -> None:
        if self.attachments.pop(attachment.id, None) is not None:
            self._offers.withdraw(attachment.owner.spec)
            self.recorder.cluster_over(attachment.id)

    def _give_up_if_alone(self) -> None:
        """Nobody answers, and somebody waits for the end of jobs that were to be ended."""
        if self._link is not None or self._loop.time() < self._alone_since + GRACE_TIMEOUT:
            return
        for attachment in list(self.attachments.values()):
            if attachment.closing:
                self.attachments.pop(attachment.id, None)
                attachment.give_up(f"{self.why_alone()}; it may go on there (`dispy recover` fetches what comes of it)")

    # Inside: the link.

    def _begin(self) -> None:
        self._alone_since = self._loop.time()
        self._dialler = Dialler(
            self.settings.host,
            self.settings.port,
            settings=self._link_settings,
            handler=self,
            on_failure=self._not_reached,
            on_closed=lambda dialler: self._dial_again(CLOSED_AGAIN),
        )
        self._dialler.start()
        self._loop.call_later(EXPLAIN_AFTER, self._say_if_alone)

    def _dial_again(self, seconds: float) -> None:
        def dial() -> None:
            if self._dialler is not None and not self._stopped:
                self._dialler.start()

        self._loop.call_later(seconds, dial)

    def _not_reached(self, dialler: Dialler, error: LinkError) -> None:
        self._trouble = str(error)
        if not isinstance(error, AuthenticationRejected):
            return
        refusal = f"the scheduler at {self.settings.where} refuses this program: {error}"
        undecided = [each for each in self.attachments.values() if not each.decided.done()]
        for attachment in undecided:
            attachment.decided.set_exception(SettingsError(refusal))
        if not undecided:
            logger.error("%s; it is tried again every %g s", refusal, REFUSED_AGAIN)
        self._dial_again(REFUSED_AGAIN)

    def _say_if_alone(self) -> None:
        if self._link is not None or self._stopped or self._is_said or not self.attachments:
            return
        if self._loop.time() < self._alone_since + EXPLAIN_AFTER:
            return  # it was there meanwhile, and another call follows
        self._is_said = True
        pending = sum(len(each.jobs) for each in self.attachments.values())
        waiting = f"; {counted(pending, 'job')} pending here" if pending else ""
        logger.warning("%s%s", self.why_alone(), waiting)

    def link_opened(self, link: Link) -> None:
        """The scheduler is there."""
        self._link = link
        if self._exchange is None:
            self._exchange = BlobExchange(link, self._sources)
        else:
            self._exchange.link_replaced(link)
        if self._is_said:
            self._is_said = False
            logger.info("the scheduler at %s answers", self.settings.where)
        for attachment in list(self.attachments.values()):
            attachment.open()
        self._loop.call_later(NODES_AFTER, self._close_untold, link)

    def _close_untold(self, link: Link) -> None:
        if self._link is link:
            for attachment in self.attachments.values():
                attachment.nodes.close_untold()

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """Everything that one read brought."""
        if link is not self._link or self._exchange is None:
            return
        touched: dict[ComputationId, Attachment] = {}
        for message, payload in messages:
            if self._exchange.message_arrived(message, payload):
                continue
            question = getattr(message, "question", None)
            if question is not None:
                self._questions.answered(question, message, payload)
                continue
            attachment = self.attachments.get(getattr(message, "cluster", ComputationId("")))
            if attachment is None:
                continue
            if isinstance(message, AllocationAsked):
                self._spawn(self._allocate(attachment, message.node))
                continue
            touched[attachment.id] = attachment
            try:
                attachment.heard(message, payload)
            except BaseException:  # what follows is for others
                logger.exception("%s was not told of %s; dispy goes on", attachment.id, type(message).__name__)
        for attachment in touched.values():
            attachment.acknowledge()

    def link_suspected(self, link: Link) -> None:
        """The dialler makes another."""

    def link_recovered(self, link: Link) -> None:
        """It spoke again."""

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """The link ended; it is dialled again."""
        if link is not self._link:
            return
        self._link = None
        self._trouble = cause
        self._alone_since = self._loop.time()
        self._questions.link_gone()
        for attachment in self.attachments.values():
            attachment.link_gone()
        if not self._stopped:
            self._loop.call_later(EXPLAIN_AFTER, self._say_if_alone)
            self._loop.call_later(GRACE_TIMEOUT, self._give_up_if_alone)

    async def _allocate(self, attachment: Attachment, seen: NodeSeen) -> None:
        owner, view = attachment.owner, view_of(seen)
        attachment.nodes.views[view.process] = view
        allocation: Allocation | None = None
        files: tuple[FileSpec, ...] = ()
        try:
            if owner.allocates_slowly:
                # not in the callback thread: a callback may wait for a job that waits for this node
                async with self._asking:
                    allocation = await self._loop.run_in_executor(None, owner.allocate, view, False)
            else:
                allocation = owner.allocate(view, False)
            if allocation is not None and allocation.cpus > 0:
                files = await self._offers.offer([(Path(name), Path(name).name) for name in allocation.depends])
        except Exception:
            logger.exception("node %s is not used: its allocation failed", view.info.name)
            allocation = None
        wanted = allocation or Allocation(0)
        attachment.say(
            AnswerAllocation(attachment.id, view.process, wanted.cpus, files, wanted.setup_args, wanted.oversubscribe)
        )

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("an internal task failed", exc_info=task.exception())


def _where_it_is(record: JobRecord) -> str:
    return "waits" if record.node is None else "was with a node when that was heard last"
