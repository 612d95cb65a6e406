"""The books of one cluster: its jobs' fields, its nodes, who waits, and the user's callbacks.

It is what the scheduler service knows of a cluster (`ClusterOwner`). All methods run in the event loop's thread unless
they say otherwise; the order for each job is: fields set, waiters wake, `job_status`, `cluster_status`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

from dispy.errors import ClosedError, SettingsError
from dispy.job import DispyJob
from dispy.logs import logger
from dispy.model import AvailInfo, ComputationSpec, JobState, NodeInfo, ProcessId
from dispy.nodes import DispyNode, NodeAllocate, NodeView, available, by_specificity, capped, fitting
from dispy.portal import Calling, Portal
from dispy.reruns import Reruns
from dispy.scheduler.effects import JobEnded, JobRequeued, JobSpoke, NodeClosed, NodeRefused
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.owner import Allocation
from dispy.shipping import Shipment, dumps_setup_args
from dispy.words import counted

CONSTRUCTION_MARGIN = 0.020
"""Seconds after the constructor's return before the first callback runs: callbacks use the `cluster` variable."""

JobStatus = Callable[[DispyJob], Any]
ClusterStatusCallback = Callable[[int, DispyNode | None, DispyJob | None], Any]


class ClusterLedger:
    """Keeps the books of one cluster."""

    def __init__(
        self,
        portal: Portal,
        spec: ComputationSpec,
        shipment: Shipment,
        items: Sequence[NodeAllocate],
        *,
        local: bool,
        may_embed: bool,
        reentrant: bool,
        interval: float | None,
    ) -> None:
        self.spec = spec
        self.user = ""
        self.exclusive = False
        self.reentrant = reentrant
        self.may_embed = may_embed
        self.wants_local = local
        self.wants_discovery = any(item.is_pattern for item in items)
        self.open_ended = self.wants_discovery
        self.interval = interval
        self.cluster: Any = None
        self.job_status: JobStatus | None = None
        self.cluster_status: ClusterStatusCallback | None = None
        self.when_told: Callable[[int], None] | None = None
        """Called with the number of a job when callbacks about its end have returned."""
        self.constructed_at = 0.0
        self.nodes: dict[ProcessId, DispyNode] = {}
        self.gone: dict[ProcessId, DispyNode] = {}
        self.why_gone: dict[ProcessId, str] = {}
        """Why nodes are gone that went before the cluster was closed."""
        self.views: dict[ProcessId, NodeView] = {}
        self.abandoned = ""
        """Why the last job was abandoned."""
        self.cpu_time = 0.0
        self.closing = False
        self.is_sealed = False
        """No more jobs are taken: all that were accepted were handed over before."""
        self.over = threading.Event()
        self._portal = portal
        self._items = list(items)
        self._caps: dict[ProcessId, int] = {}
        self._oversubscribed: set[ProcessId] = set()
        """Nodes of which more CPUs may be used than they offer."""
        self._shipment = shipment
        self._local = local
        self._text = spec.kind == "function"
        self._submitted = 0
        self._ended = 0
        self._count_lock = threading.Lock()
        self._idle: list[threading.Event] = []
        self._refusals: dict[ProcessId, str] = {}
        self._reruns = Reruns()

    # From any thread.

    def accept(self, record: JobRecord, hand_over: Callable[[JobRecord], None]) -> None:
        """Take one more job: count it, tell of it and hand it over, all of it before `seal` or nothing.

        Raises:
            ClosedError: the cluster takes no more jobs.
        """
        with self._count_lock:
            if self.is_sealed:
                raise ClosedError(
                    f"cluster {self.spec.name} is being closed; make another {type(self.cluster).__name__}"
                )
            self._submitted += 1
            if self.cluster_status is not None:
                self._call_status(JobState.Created, None, cast("DispyJob", record.handle))
            hand_over(record)

    def seal(self, *, if_idle: bool = False) -> bool:
        """Take no more jobs; with `if_idle` only when none is pending. Returns whether it is so now."""
        with self._count_lock:
            if not (if_idle and self.pending):
                self.is_sealed = True
            return self.is_sealed

    @property
    def pending(self) -> int:
        """Jobs that have not ended."""
        return self._submitted - self._ended

    def wait(self, timeout: float | None) -> bool:
        """Wait until no job is pending; False when the time was over first."""
        event = threading.Event()
        self._idle.append(event)
        try:
            return not self.pending or event.wait(timeout)
        finally:
            self._idle.remove(event)

    def find_node(self, node: object) -> DispyNode | None:
        """The node of this cluster that a DispyNode, an address or a name means."""
        if isinstance(node, DispyNode):
            return self.nodes.get(node.process)
        wanted = NodeAllocate(node) if isinstance(node, str) else node
        if not isinstance(wanted, NodeAllocate):
            raise SettingsError(f"a node is a DispyNode, an address or a name, not {node!r}")
        for known in list(self.nodes.values()):
            if self.views[known.process].fits(wanted):
                return known
        return None

    def add_items(self, items: Sequence[NodeAllocate]) -> None:
        """Further items of `nodes`, before older ones that are no more specific."""
        self._items = by_specificity([*items, *self._items])

    # In the loop's thread.

    def cap(self, process: ProcessId, cpus: int, offered: NodeInfo | None) -> int:
        """The user wants at most so many CPUs of a node (n < 0: all but n); returns how many that is."""
        self._caps[process] = cpus
        known = self.nodes.get(process)
        effective = cpus
        if offered is not None:
            effective = capped(cpus, offered, oversubscribe=process in self._oversubscribed)
        if known is not None:
            known.cpus = effective
        return effective

    def named_nodes(self) -> Iterable[tuple[str, int]]:
        """Hosts that the user named, with port or 0."""
        return [(item.host, item.port or 0) for item in self._items if not item.is_pattern]

    def _ask(self, item: NodeAllocate, view: NodeView) -> tuple[Any, list[str], tuple[Any, ...]]:
        """CPUs, files and arguments of setup that an item says for one node; what it sets is not for the next one."""
        avail = None if view.avail is None else available(view.avail)
        before = list(item.depends), item.setup_args
        try:
            cpus = item.allocate(self.cluster, view.address, view.info.name, view.info.cpus, avail, view.info.platform)
            return cpus, list(item.depends), item.setup_args
        finally:
            item.depends, item.setup_args = before

    @property
    def allocates_slowly(self) -> bool:
        """Whether `allocate` runs the user's code, or asks a name server."""
        return any(type(item).allocate is not NodeAllocate.allocate or item.needs_lookup for item in self._items)

    def allocate(self, view: NodeView, local: bool) -> Allocation:
        """How much of a node to use: the first item that matches and wants CPUs decides."""
        for item in fitting(self._items, view, local=local):
            cpus, depends, setup_args = self._ask(item, view)
            if not isinstance(cpus, int):
                raise SettingsError(
                    f"{type(item).__name__}.allocate returned {cpus!r}; it must return a number of CPUs"
                )
            if cpus > 0:
                over = item.oversubscribe
                (self._oversubscribed.add if over else self._oversubscribed.discard)(view.process)
                most = cpus if view.info.oversubscribe or over else min(cpus, view.info.cpus)
                if cap := self._caps.get(view.process):
                    most = min(most, max(1, capped(cap, view.info, oversubscribe=over)))
                return Allocation(most, tuple(depends), dumps_setup_args(self._shipment, setup_args), over)
        return Allocation(view.info.cpus if local and self._local else 0)

    def jobs_started(self, view: NodeView | None, jobs: Iterable[JobRecord]) -> None:
        """Set the state of jobs that a node has now."""
        now = time.time()
        address = view.address if view is not None else None
        running = JobState.Running
        for record in jobs:
            job: Any = record.handle
            job._status = running
            job.start_time = now
            job.ip_addr = address
            if self.cluster_status is not None:
                self._call_status(running, self._node_of(view), job)

    def job_ended(self, ended: JobEnded, view: NodeView | None) -> bool:
        """Set the fields of a job that has ended and wake who waits for it.

        Returns:
            Whether `when_told` will be called when callbacks have returned.
        """
        job: Any = ended.job.handle
        done = ended.done
        job._settle(ended.state, done, ended.body, ended.cause, self._text, None if view is None else view.address)
        self._ended += 1
        if ended.state is JobState.Abandoned:
            self.abandoned = ended.cause or ""
        node = self.nodes.get(ended.node) if ended.node is not None else None
        if node is not None and done is not None and done.started_at:
            seconds = done.ended_at - done.started_at
            node.jobs_done += 1
            node.cpu_time += seconds
            node.rx += len(ended.body)
            node.tx += len(ended.job.args) if ended.job.blob is None else ended.job.blob.size
            self.cpu_time += seconds
        tells = self.job_status is not None and ended.state is not JobState.Abandoned
        if tells:
            self._call_job_status(job)
        if self.cluster_status is not None:
            self._call_status(ended.state, node, job)
            tells = True
        when_told = self.when_told
        if when_told is None or not tells:
            return False
        number = ended.job.job
        self._portal.callback(lambda: when_told(number))
        return True

    def batch_ended(self) -> None:
        """Wake those who wait for all jobs."""
        if self._idle and not self.pending:
            for event in list(self._idle):
                event.set()

    def job_spoke(self, spoke: JobSpoke, view: NodeView | None) -> None:
        """A running job has an interim result."""
        job: Any = spoke.job.handle
        job._take_provisional(spoke.result)
        node = self._node_of(view)
        if node is not None:
            node.rx += len(spoke.result)
        if self.job_status is not None:
            self._call_job_status(job)
        if self.cluster_status is not None:
            self._call_status(JobState.ProvisionalResult, node, job)

    def job_requeued(self, requeued: JobRequeued, view: NodeView | None) -> None:
        """An attempt was lost: the job waits again."""
        job: Any = requeued.job.handle
        job._status = JobState.Created
        self._reruns.add(job.id, requeued.cause)
        if self.cluster_status is not None:
            self._call_status(JobState.Abandoned, self._node_of(view), job)

    def node_opened(self, view: NodeView, cpus: int) -> None:
        """A node is ready."""
        node = self.gone.pop(view.process, None) or self.nodes.get(view.process)
        self.why_gone.pop(view.process, None)
        if node is None:
            node = DispyNode(view.address, view.info.name, cpus, view.info.cpus, process=view.process)
        node.cpus, node.avail_cpus, node.update_time, node.reason = cpus, view.info.cpus, time.time(), ""
        self.nodes[view.process] = node
        self.views[view.process] = view
        logger.debug(
            "node %s (%s) is ready for %s with %s", node.name, node.ip_addr, self.spec.name, counted(cpus, "CPU")
        )
        if self.cluster_status is not None:
            self._call_status(DispyNode.Initialized, node, None)

    def node_measured(self, node: ProcessId, avail: AvailInfo) -> None:
        """A node says what is free on its machine."""
        known = self.nodes.get(node)
        if known is None:
            return
        known.avail_info, known.update_time = available(avail), time.time()
        if self.cluster_status is not None:
            self._call_status(DispyNode.AvailInfo, known, None)

    def node_offered(self, node: ProcessId, cpus: int, used: int) -> None:
        """A node offers another number of CPUs now, or this cluster uses another number of them."""
        known = self.nodes.get(node)
        if known is None:
            return
        known.avail_cpus, known.cpus, known.update_time = cpus, used, time.time()
        if self.cluster_status is not None and known.avail_info is not None:
            self._call_status(DispyNode.AvailInfo, known, None)

    def node_closed(self, closed: NodeClosed) -> None:
        """A node is gone, unless it is only being set up anew."""
        if closed.trace:
            known = self.nodes.get(closed.node) or self.gone.get(closed.node)
            where = f"node {known.name} ({known.ip_addr})" if known is not None else f"node {closed.node}"
            logger.warning("the cleanup of %s failed on %s:\n%s", self.spec.name, where, closed.trace.rstrip())
        if not closed.renewing:
            self._node_gone(closed.node, closed.cause)

    def _node_gone(self, node: ProcessId, cause: str) -> None:
        known = self.nodes.pop(node, None)
        if known is None:
            return
        known.reason = cause
        self.gone[node] = known
        if not self.closing:
            self.why_gone[node] = f"is gone: {cause}"
        logger.debug("node %s is gone for %s: %s", known.name, self.spec.name, cause)
        if self.cluster_status is not None:
            self._call_status(DispyNode.Closed, known, None)

    def node_refused(self, view: NodeView | None, refused: NodeRefused) -> None:
        """A node cannot run the jobs of this cluster."""
        where = f"{view.info.name} ({view.address})" if view is not None else refused.node
        trace = f"\n{refused.trace.rstrip()}" if refused.trace else ""
        again = self._refusals.get(refused.node) == refused.reason
        if not again and refused.holder is None:
            self._tell_unused(view, f"{refused.reason}{trace}")
        self._refusals[refused.node] = refused.reason
        level = logger.DEBUG if again else logger.WARNING
        logger.log(level, "node %s cannot run %s: %s%s", where, self.spec.name, refused.reason, trace)
        if refused.holder is None:
            self._node_gone(refused.node, refused.reason)

    def _tell_unused(self, view: NodeView | None, reason: str) -> None:
        """Tell the user's callback of a node that was never, or is no more, ready."""
        if view is None:
            return
        node = self.nodes.pop(view.process, None) or self.gone.get(view.process)
        if node is None:
            node = DispyNode(view.address, view.info.name, 0, view.info.cpus, process=view.process)
        else:
            self.gone[view.process] = node
        node.reason = reason
        self._call_status(DispyNode.Closed, node, None)

    def ended(self) -> None:
        """Everything of this cluster is done."""
        self.over.set()
        self.batch_ended()

    def _node_of(self, view: NodeView | None) -> DispyNode | None:
        return None if view is None else self.nodes.get(view.process) or self.gone.get(view.process)

    # Callbacks of the user.

    def _call_job_status(self, job: DispyJob) -> None:
        function, snapshot = self.job_status, job._snapshot()
        if function is not None:
            self._portal.callback(partial(self._when_constructed, function, snapshot))

    def _call_status(self, status: int, node: DispyNode | None, job: DispyJob | None) -> None:
        function = self.cluster_status
        snapshot = None if job is None else job._snapshot()
        if function is not None:
            self._portal.callback(partial(self._when_constructed, function, status, node, snapshot))

    def _when_constructed(self, function: Callable[..., Any], *args: Any) -> None:
        while (early := self.constructed_at + CONSTRUCTION_MARGIN - time.monotonic()) > 0 or not self.constructed_at:
            time.sleep(early if self.constructed_at else CONSTRUCTION_MARGIN)
        self._portal.calling = Calling(function, time.monotonic())
        function(*args)
