"""The asyncio host of the scheduler core inside a user's process: one inbox, one task's worth of work, one timer.

All clusters of a process with the same secret, certificates, group and base port share one service, and so one lease
on every node. Effects are performed in their order: sends, then notices. Nothing here decides who runs what.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Final

from dispy.logs import logger
from dispy.model import ComputationId, ProcessId
from dispy.nodes import NodeAllocate, NodeView
from dispy.portal import Portal
from dispy.recovery.book import NodeNoted, ProgramBegun
from dispy.recovery.recorder import Recorder
from dispy.scheduler.allocating import Allocating
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
    NodeVanished,
)
from dispy.scheduler.events import (
    CancelAsked,
    ClusterClosing,
    ClusterNarrowed,
    ClusterOpened,
    Event,
    JobsSubmitted,
)
from dispy.scheduler.identity import ServiceSettings, link_settings_of, program_begun, this_holder
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.links import NodeLinks, Reached
from dispy.scheduler.offers import FileOffers
from dispy.scheduler.owner import ClusterOwner
from dispy.scheduler.search import KILLED, NodeSearch
from dispy.settings import embedded_handle, flag

FLUSH_MOST: Final = 4096
"""Jobs that the core gets in one turn of the loop: between two turns links are heard, and heartbeats leave in time."""

_Told = JobRequeued | NodeOpened | NodeClosed | NodeVanished | NodeMeasured | NodeOffered | NodeRefused | ClusterEnded


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
        link_settings = link_settings_of(self.process, settings)
        holder = this_holder(settings.ext_host)
        self._token = secrets.token_bytes(32) if going_on is None else going_on.token
        self.core = SchedulerCore(holder=holder, token=self._token, grace=link_settings.grace_timeout)
        self._going_on = going_on
        self.recorder = recorder or Recorder(program_begun(holder, self._token, settings))
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
            on_known_elsewhere=self._ask_again,
            on_leased=self._note_leased,
        )
        self.offers = FileOffers(self.links.sources, lambda: (owner.spec for owner in self.owners.values()))
        self.allocating = Allocating(portal, self.links, self.owners, self.offers, self.handle)
        self.durable = DurableMarks(self.links.sources, self._address_of, portal.post)
        self.search = NodeSearch(
            portal.loop,
            self.links,
            lambda: self.owners.values(),
            lambda: self.core.why_waiting(),
            lambda cluster, cause: self.handle(ClusterNarrowed(cluster, cause)),
        )
        self._outbox: deque[JobRecord] = deque()
        self._flushing = False
        self._inbox: deque[Event] = deque()
        self._handling = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._checks = flag("DISPY_CHECK")

    # From any thread.

    def submit(self, record: JobRecord) -> None:
        """Queue a job; the loop takes what is queued by large portions."""
        self._outbox.append(record)
        if not self._flushing:
            self._flushing = True
            self.portal.loop.call_soon_threadsafe(self._flush)

    def cancel(self, job: int) -> None:
        """Cancel a job."""
        self.portal.post(self._cancel, job)

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

    async def stop(self, reason: str = "the program is done", *, hurried: bool = False) -> None:
        """End all links and the embedded node; `hurried`: its jobs are killed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.links.close(reason)
        await self.search.stop(hurried=hurried)
        self.recorder.end()

    def abandon(self) -> None:
        """In a forked child: the embedded node is tied to the parent alone."""
        self.search.abandon()
        self.recorder.abandon()

    def nodes_matching(self, item: NodeAllocate) -> list[ProcessId]:
        """Nodes with a link that an item of `nodes` is about; its host name must have been resolved."""
        views = [self.links.view(node) for node in self.links.nodes]
        return [view.process for view in views if view and view.fits(item)]

    def explain(self, job: int) -> str:
        """One sentence (or a few) that says why a job is where it is."""
        sentence = self.core.explain(job, self.portal.loop.time())
        return f"{sentence} {self.search.account()}".rstrip() if self.core.waits(job) else sentence

    def narrow(self, cluster: ComputationId) -> None:
        """Wait for no further nodes: jobs of the cluster that no known node can ever run end."""
        self.handle(ClusterNarrowed(cluster))

    def take_back(self, record: JobRecord) -> None:
        """What nodes could have fetched for a job is not wanted any more."""
        if record.blob is not None:
            self.links.sources.withdraw(record.blob.name)
        if record.options is not None and record.options.depends is not None:
            self.offers.release(record.options.depends.files)

    def flush_now(self) -> None:
        """Hand all queued jobs to the core before anything else happens."""
        self._hand_over(len(self._outbox))

    def _flush(self) -> None:
        self._flushing = False
        count = len(self._outbox)
        if count > FLUSH_MOST:
            count = FLUSH_MOST
            self._flushing = True
            self.portal.loop.call_soon(self._flush)
        self._hand_over(count)

    def _hand_over(self, count: int) -> None:
        if count:
            outbox = self._outbox
            records = [outbox.popleft() for _ in range(count)]
            if self.durable:
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
            try:
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
                        self._spawn(self.allocating.ask(notice))
                    case _:
                        self._tell(notice)
            except BaseException:  # the other notices are for others
                logger.exception("a cluster could not be told of %s; dispy goes on", type(notice).__name__)

    def _tell_ended(self, jobs: Iterable[JobEnded]) -> None:
        touched: dict[ComputationId, ClusterOwner] = {}
        views: dict[ProcessId, NodeView | None] = {}
        untold: set[int] = set()
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
            if ended.job.blob is not None or ended.job.options is not None:
                self.take_back(ended.job)
            if owner is not None:
                try:
                    if owner.job_ended(ended, None if node is None else views[node]):
                        untold.add(ended.job.job)
                except BaseException:  # other jobs have ended as well
                    logger.exception("the end of job %s could not be told; dispy goes on", ended.job.job)
        if self.durable:
            self.durable.end(jobs, untold)
        for owner in touched.values():
            try:
                owner.batch_ended()
            except BaseException:
                logger.exception("the end of jobs of %s could not be told; dispy goes on", owner.spec.name)

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
                    owner.node_opened(view, self.allocating.cpus(notice.cluster, view))
            case NodeClosed():
                owner = self.owners.get(notice.cluster)
                if owner is not None:
                    owner.node_closed(notice)
            case NodeVanished():
                if notice.cause != KILLED:  # of the node on this machine more has been said
                    logger.warning("%s%s", notice.sentence, "; waiting for it or another" if notice.is_last else "")
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
                    self.offers.withdraw(owner.spec)
                    self.recorder.cluster_over(notice.cluster)
                    self.durable.forget(notice.cluster)
                    owner.ended()

    async def send_file(self, node: ProcessId, cluster: ComputationId, path: Path, destination: str) -> str:
        """Place a file into a computation's directory on a node; returns why that failed, else nothing.

        Raises:
            TransferError: the file cannot be read.
        """
        files = await self.offers.offer_held([(path, destination)])
        try:
            return await self.conversation.place(node, cluster, files[0])
        finally:
            self.offers.release(files)

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

    def _ask_again(self, node: ProcessId) -> None:
        """The node turned out to be one that a cluster may have named in another way."""
        for asked in self.allocating.declined(node):
            self._spawn(self.allocating.ask(asked))

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
