"""A real scheduler core with nodes of virtual time that run what they get in its order: who had how much, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from dispy.model import (
    ComputationId,
    ComputationSpec,
    Ending,
    HeldAttempt,
    Holder,
    JobDone,
    JobOptions,
    JobSpec,
    NodeInfo,
    ProcessId,
)
from dispy.scheduler import events
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import AskAllocation, Effects, JobEnded, JobsEnded
from dispy.scheduler.fairness import Policy
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages


@dataclass
class Job:
    """A job as its submitter knows it."""

    user: str
    cluster: ComputationId
    seconds: float
    cpus: int
    started_at: float = -1.0
    ended_at: float = -1.0


@dataclass
class Node:
    """CPUs, and jobs that wait for one."""

    id: ProcessId
    cpus: int
    queue: list[tuple[ComputationId, JobSpec]] = field(default_factory=list)
    running: dict[int, tuple[ComputationId, JobSpec]] = field(default_factory=dict)
    closing: set[ComputationId] = field(default_factory=set)


class Pool:
    """Virtual time, nodes, users."""

    def __init__(
        self,
        cpus: Iterable[int],
        policy: Policy = Policy.FAIR,
        *,
        latency: float = 0.0005,
        check: bool = True,
        max_cpus_per_user: int = 0,
        park_above: int = 0,
    ) -> None:
        """Make a pool of nodes with so many CPUs each; every message takes `latency` seconds."""
        self.core = SchedulerCore(
            holder=Holder("daemon", "host", 1, "dispyscheduler"),
            token=b"t" * 32,
            policy=policy,
            max_cpus_per_user=max_cpus_per_user,
            park_above=park_above,
        )
        self.now = 0.0
        self.latency = latency
        self.check = check
        self.jobs: dict[int, Job] = {}
        self.ended: dict[int, JobEnded] = {}
        self.nodes: dict[ProcessId, Node] = {}
        self.users: dict[ComputationId, str] = {}
        self.on_ended: Callable[[Job], None] = lambda job: None
        self._clock: list[tuple[float, int, Callable[[], None]]] = []
        self._ties = count()
        self._numbers = count(1)
        for number, many in enumerate(cpus):
            self.add_node(number, many)

    def add_node(self, number: int, cpus: int) -> ProcessId:
        """A node joins."""
        node = Node(ProcessId(f"{number:032x}"), cpus)
        self.nodes[node.id] = node
        self.handle(events.NodeJoined(node.id, NodeInfo(node.id, f"n{number}", cpus, "x", ()), "10.0.0.1"))
        return node.id

    def open(self, user: str, *, exclusive: bool = False) -> ComputationId:
        """A user makes a cluster that uses every node."""
        cluster = ComputationId(f"{len(self.users) + 1:032x}")
        self.users[cluster] = user
        spec = ComputationSpec(cluster, f"of {user}", "function")
        self.handle(events.ClusterOpened(spec, user=user, exclusive=exclusive, reentrant=True))
        return cluster

    def close(self, cluster: ComputationId) -> None:
        """Its jobs end first."""
        self.handle(events.ClusterClosing(cluster))

    def submit(
        self, cluster: ComputationId, number: int, seconds: float, *, cpus: int = 1, priority: int = 0
    ) -> list[int]:
        """So many jobs of so many seconds; their numbers."""
        options = None if (cpus, priority) == (1, 0) else JobOptions(cpus=cpus, priority=priority)
        records = [JobRecord(next(self._numbers), cluster, b"", options=options) for _ in range(number)]
        for record in records:
            self.jobs[record.job] = Job(self.users[cluster], cluster, seconds, cpus)
        self.handle(events.JobsSubmitted(records))
        return [record.job for record in records]

    def run(self, until: float) -> None:
        """Let time pass."""
        while True:
            deadline = self.core.next_deadline()
            at = self._clock[0][0] if self._clock else until
            if deadline is not None and deadline <= min(at, until):
                self.now = max(self.now, deadline)
                self._perform(self.core.handle_timeout(self.now))
            elif self._clock and at <= until:
                self.now, _, action = heappop(self._clock)
                action()
            else:
                self.now = until
                return

    def run_all(self) -> None:
        """Let time pass until every job has ended.

        Raises:
            AssertionError: that does not come to be in an hour.
        """
        end = self.now + 3600.0
        while len(self.ended) < len(self.jobs):
            assert self.now < end, f"{len(self.jobs) - len(self.ended)} jobs wait: {self.core.why_waiting()}"
            self.run(self._clock[0][0] if self._clock else end)

    def used(self, user: str, start: float, end: float) -> float:
        """Slot-seconds that a user had in a span of time."""
        together = 0.0
        for job in self.jobs.values():
            if job.user == user and job.started_at >= 0:
                ended_at = job.ended_at if job.ended_at >= 0 else self.now
                together += max(0.0, min(end, ended_at) - max(start, job.started_at)) * job.cpus
        return together

    def at_work(self, user: str) -> int:
        """CPUs on which jobs of a user run now."""
        running = [job for node in self.nodes.values() for job in node.running]
        return sum(self.jobs[job].cpus for job in running if self.jobs[job].user == user)

    def handle(self, event: events.Event) -> None:
        """Something happens."""
        self._perform(self.core.handle(event, self.now))

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Something will happen."""
        heappush(self._clock, (self.now + seconds, next(self._ties), action))

    def _perform(self, effects: Effects) -> None:
        if self.check:
            self.core.check()
        for send in effects.sends:
            node, message = self.nodes[send.node], send.message
            self.later(self.latency, lambda node=node, message=message: self._hear(node, message))  # type: ignore[misc]
        for notice in effects.notices:
            match notice:
                case AskAllocation():
                    cpus = self.nodes[notice.node].cpus
                    event = events.NodeAllocated(notice.cluster, notice.node, cpus)
                    self.later(0.0, lambda event=event: self.handle(event))  # type: ignore[misc]
                case JobsEnded():
                    for ended in notice.jobs:
                        self.ended[ended.job.job] = ended
                        self.on_ended(self.jobs[ended.job.job])

    def _say(self, node: Node, message: messages.AnyMessage) -> None:
        bodies = [b""] * len(message.jobs) if isinstance(message, messages.JobsDone) else []
        event = events.NodeSaid(node.id, message, bodies)
        self.later(self.latency, lambda: self.handle(event))

    def _hear(self, node: Node, message: messages.AnyMessage) -> None:
        match message:
            case messages.AskLease():
                self._say(node, messages.LeaseGranted([], []))
            case messages.OpenComputation(spec):
                self._say(node, messages.ComputationReady(spec.id))
            case messages.CloseComputation(cluster):
                node.closing.add(cluster)
            case messages.RunJobs(cluster, jobs):
                node.queue += [(cluster, job) for job in jobs]
            case messages.RecallJobs(many):
                cut = max(0, len(node.queue) - many)
                back, node.queue = node.queue[cut:], node.queue[:cut]
                self._say(node, messages.JobsRecalled([HeldAttempt(job.job, job.attempt) for _, job in back]))
        self._start(node)

    def _start(self, node: Node) -> None:
        while node.queue:
            cluster, job = node.queue[0]
            busy = sum(self.jobs[number].cpus for number in node.running)
            if busy + self.jobs[job.job].cpus > node.cpus:
                break
            node.queue.pop(0)
            node.running[job.job] = cluster, job
            self.jobs[job.job].started_at = self.now
            self.later(self.jobs[job.job].seconds, lambda job=job: self._end(node, job))  # type: ignore[misc]
        here = {cluster for cluster, _ in [*node.queue, *node.running.values()]}
        for cluster in node.closing - here:
            node.closing.discard(cluster)
            self._say(node, messages.ComputationClosed(cluster))

    def _end(self, node: Node, job: JobSpec) -> None:
        del node.running[job.job]
        known = self.jobs[job.job]
        known.ended_at = self.now
        done = JobDone(job.job, job.attempt, int(Ending.FINISHED), known.started_at + 1, self.now + 1, 0, 0, 0, 0)
        self._say(node, messages.JobsDone(1, [done]))
        self._start(node)
