"""The user's process: the real scheduler core and the real intake of results, and a host that keeps their links."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dispy.errors import TransferError
from dispy.model import BlobRef, ComputationId, Holder, NodeInfo, ProcessId
from dispy.nodes import NodeView
from dispy.recovery.book import ClusterOver
from dispy.resuming import PinnedJobs
from dispy.scheduler import effects as notices
from dispy.scheduler import events
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.fairness import Policy
from dispy.scheduler.intake import ResultIntake
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages
from simulator.network import TO_NODE, TO_PROGRAM, DiallingProcess, Link, Machine

if TYPE_CHECKING:
    from simulator.durable import SimFile, SimMarks
    from simulator.node import SimNode
    from simulator.world import World


@dataclass
class Told:
    """What the user's side has heard of a job."""

    record: JobRecord
    endings: list[notices.JobEnded] = field(default_factory=list)
    spoken: int = 0


class _Fetch:
    """A body that is being fetched: what `ResultIntake` awaits."""

    def __init__(self, reached: _Reached, blob: BlobRef) -> None:
        self.reached, self.blob = reached, blob
        self.is_here = False

    def __await__(self) -> Generator[_Fetch, None, bytes]:
        yield self
        if not self.is_here:
            raise TransferError("it is gone")
        return b"r"


class _Reached:
    """A node that the program has, or had a moment ago, a link to."""

    def __init__(self, program: SimProgram, node: SimNode, link: Link) -> None:
        self.program, self.node = program, node
        self.info: NodeInfo | None = None
        exchange: Any = self
        self.intake = ResultIntake(node.process, exchange, program.handle_now, self._spawn, self._later, program.after)
        self.relink(link)

    def relink(self, link: Link | None) -> None:
        self.link = link
        intake_link: Any = None if link is None else self
        self.intake.link = intake_link

    def send_now(self, parts: list[tuple[messages.AnyMessage, tuple[bytes, ...]]]) -> None:
        link, node, process = self.link, self.node, self.program.process
        if link is None:
            return
        for message, payload in parts:
            body = b"".join(payload)
            link.streams[TO_NODE].send(lambda message=message, body=body: node.said(link, process, message, body))

    def _later(self, seconds: float, action: Any) -> None:
        clock = self.program.world.clock
        clock.at(clock.now + seconds, lambda: self.program.hear(action))

    async def fetch_memory(self, blob: BlobRef) -> bytes:
        return await _Fetch(self, blob)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that waits for bodies only."""
        world = self.program.world

        def step() -> None:
            try:
                fetch = work.send(None)
            except StopIteration:
                return
            wait(fetch)

        def wait(fetch: _Fetch) -> None:
            world.clock.at(world.soon() + 0.02, lambda: self.program.hear(lambda: look(fetch)))

        def look(fetch: _Fetch) -> None:
            if self.program.reached.get(self.node.process) is not self:
                work.close()  # the node was lost
            elif self.link is None or self.link.streams[TO_PROGRAM].holds:
                world.clock.at(world.clock.now + 0.1, lambda: self.program.hear(lambda: look(fetch)))
            else:
                fetch.is_here = fetch.blob.name in self.node.offered
                step()

        step()


class SimProgram(DiallingProcess):
    """One process of a user."""

    def __init__(self, world: World, number: int, *, going_on: SimFile | None = None) -> None:
        """With `going_on` it is the successor of another one, whose token it has."""
        super().__init__(world, number)
        self.process = ProcessId(f"{number:032x}")
        self.token = bytes([number]) * 32 if going_on is None else going_on.token
        self.going_on = going_on
        self.file = going_on
        """Of durable clusters."""
        self.marks: SimMarks | None = None
        self.pinned: PinnedJobs | None = None
        """Of a successor: jobs that wait for their node."""
        sharing = world.sharing
        self.is_shared = sharing.random() < world.chances.sharing
        policy, quota = Policy.FIFO, 0
        if self.is_shared:
            policy, quota = sharing.choice(list(Policy)), sharing.choice([0, 0, 0, 3])
        self.core = SchedulerCore(
            holder=Holder("anna", "host", number, "prog.py"),
            token=self.token,
            policy=policy,
            max_cpus_per_user=quota,
        )
        self.reached: dict[ProcessId, _Reached] = {}
        self.machines: dict[str, ProcessId] = {}
        """Machine → the node that was last reached there."""
        self.jobs: dict[int, Told] = {}
        self.delivered: set[int] = set()
        """Jobs of which a node has told the end: they are no business of a successor."""
        self.clusters: dict[ComputationId, bool] = {}
        """Whether their jobs are reentrant."""
        self.closing: set[ComputationId] = set()
        self.ended_clusters: set[ComputationId] = set()
        self.opened: set[tuple[ComputationId, ProcessId]] = set()
        """Nodes that are set up for clusters, as far as the user has heard."""

    def handle(self, event: events.Event) -> None:
        """Something happens in the program."""
        self.hear(lambda: self.handle_now(event))

    def handle_now(self, event: events.Event) -> None:
        """Something happened in what the program does now."""
        if self.marks is not None and isinstance(event, events.JobsSubmitted):
            self.marks.store(event.jobs)
        if self.world.verbose:
            self.world.log(f"program {self.number} <- {event}")
        effects = self.core.handle(event, self.world.clock.now)
        self.noted(event, effects)
        self._perform(effects)

    def noted(self, event: events.Event | None, effects: notices.Effects) -> None:
        """The core took this in (None: time has passed) and decided that. A program keeps nothing of it."""

    def after(self, then: Callable[[], object]) -> None:
        """A program keeps nothing: there is nothing to wait for."""
        then()

    def open(self, opened: events.ClusterOpened) -> None:
        """The user makes a cluster."""
        self.handle(opened)

    def close(self, cluster: ComputationId, *, terminate: bool) -> None:
        """The user closes a cluster."""
        self.closing.add(cluster)
        if cluster not in self.ended_clusters:
            self.handle(events.ClusterClosing(cluster, terminate))

    def submit(self, records: list[JobRecord]) -> None:
        """The user submits jobs, in what the program does now."""
        self.handle_now(events.JobsSubmitted(records))

    def next_job(self) -> int:
        """A number for a job of this program."""
        return len(self.jobs) + 1

    def told(self, record: JobRecord) -> Told:
        """What the user's side has heard of a job."""
        return self.jobs[record.job]

    def _perform(self, effects: notices.Effects) -> None:
        if self.world.checks():
            self.core.check()
        if self.marks is not None:
            self.marks.hand(effects)
        for send in effects.sends:
            self._send(send)
        for notice in effects.notices:
            self.effect()
            self._tell(notice)
        self.wake_at(self.core.next_deadline(), self._time_is_up)

    def _send(self, send: notices.Send) -> None:
        self.effect()
        reached = self.reached.get(send.node)
        if self.world.verbose:
            lost = "" if reached is not None and reached.link is not None else " (no link)"
            self.world.log(f"program {self.number} -> {send.node[:4]}{lost} {send.message}")
        if reached is not None:
            reached.send_now(reached.intake.acknowledging([(send.message, tuple(send.payload))]))

    def _time_is_up(self) -> None:
        effects = self.core.handle_timeout(self.world.clock.now)
        self.noted(None, effects)
        self._perform(effects)
        for process in [
            process for process, each in self.reached.items() if each.info and process not in self.core.nodes
        ]:
            self._drop(process)

    def _tell(self, notice: notices.Notice) -> None:
        world = self.world
        match notice:
            case notices.JobsEnded(jobs):
                for ended in jobs:
                    if world.verbose:
                        world.log(f"job {ended.job.job} ended {ended.state.name}: {ended.cause}")
                    told = self.told(ended.job)
                    assert not told.endings, f"job {ended.job.job} ended twice"
                    told.endings.append(ended)
                if self.marks is not None:
                    self.effect()
                    self.marks.end_some(jobs)
            case notices.ResultDropped():
                if self.marks is not None:
                    self.effect()
                    self.marks.drop(notice)
            case notices.JobSpoke(record):
                assert not self.told(record).endings, f"job {record.job} spoke after its end"
                self.told(record).spoken += 1
            case notices.JobsStarted(node, jobs):
                assert all(not self.told(record).endings for record in jobs), "a job started after its end"
            case notices.AskAllocation(cluster, node, info):
                self._allocate(cluster, node, info.cpus)
            case notices.NodeOpened(cluster, node):
                self.opened.add((cluster, node))
            case notices.NodeClosed(cluster, node):
                self.opened.discard((cluster, node))
            case notices.NodeRefused(cluster, node) if cluster is not None:
                self.opened.discard((cluster, node))
            case notices.ClusterEnded(cluster):
                assert cluster not in self.ended_clusters, "a cluster ended twice"
                left = [
                    told.record.job
                    for told in self.jobs.values()
                    if told.record.cluster == cluster and not told.endings
                ]
                assert not left, f"a cluster ended before its jobs {left}"
                self.ended_clusters.add(cluster)
                if self.file is not None and self.going_on is None:
                    self.file.append([ClusterOver(cluster)])
            case _:
                if world.verbose:
                    world.log(str(notice))

    def _allocate(self, cluster: ComputationId, node: ProcessId, cpus: int) -> None:
        world = self.world
        if self.pinned is not None:
            self.pinned.node_came(_view_of(self.reached[node]))
        if cpus and not world.is_reliable(node):
            if world.happens(world.chances.declined):
                cpus = 0
            elif world.happens(0.3):
                cpus = world.random.randint(1, cpus)
        over = world.happens(0.1)
        allocated = events.NodeAllocated(cluster, node, 2 * cpus if over else cpus, oversubscribe=over)
        world.clock.at(world.soon(), lambda: self.handle(allocated))

    # Connections.

    def link_opened(self, link: Link) -> None:
        process, machine = link.node.process, link.node.machine.name
        before = self.machines.get(machine)
        if before not in (None, process) and before in self.reached:
            self._lose(before, "it was restarted")
        self.machines[machine] = process
        reached = self.reached.get(process)
        if reached is None:
            self.reached[process] = _Reached(self, link.node, link)
            return
        if reached.link is not None:
            reached.relink(None)
            self.handle_now(events.LinkBroken(process))
        reached.relink(link)
        if reached.info is not None:
            self.handle_now(events.LinkResumed(process))

    def heard(self, link: Link, message: messages.AnyMessage, bodies: list[bytes]) -> None:
        """A message of a node has arrived."""
        process = link.node.process
        reached = self.reached.get(process)
        if reached is None or reached.link is not link:
            return
        if isinstance(message, messages.JobsDone):
            self.delivered.update(done.job for done in message.jobs)
            reached.intake.arrived(message, b"".join(bodies))
        elif isinstance(message, messages.FileOffered):
            taken = messages.FileTaken(message.file.blob.name, "", message.job, message.file.path)
            if self.core.runs(process, message.job, message.attempt):
                self.world.clock.at(self.world.soon(), lambda: reached.send_now([(taken, ())]))
        elif isinstance(message, messages.NodeDescribed) and reached.info is None:
            reached.info = message.info
            self.handle_now(events.NodeJoined(process, message.info, "10.0.0.1"))
        else:
            if isinstance(message, messages.NodeDescribed):
                reached.info = message.info
            elif isinstance(message, messages.LeaseGranted) and self.marks is not None:
                self.marks.node_leased(link.node.info)
            self.handle_now(events.NodeSaid(process, message))
        reached.intake.acknowledge()

    def link_silent(self, link: Link) -> None:
        process = link.node.process
        if process in self.reached and self.reached[process].link is link:
            self.handle_now(events.NodeSuspected(process))

    def link_recovered(self, link: Link) -> None:
        process = link.node.process
        if process in self.reached and self.reached[process].link is link:
            self.handle_now(events.NodeRecovered(process))

    def link_lost(self, link: Link, *, goodbye: bool, silent: bool) -> None:
        process = link.node.process
        reached = self.reached.get(process)
        if reached is not None and reached.link is link:
            reached.relink(None)
            if goodbye or silent or reached.info is None:
                self._lose(process, "it said goodbye" if goodbye else "silence")
            else:
                self.handle_now(events.LinkBroken(process))
        self.diallers[link.node.machine.name].lost(link, goodbye=goodbye)

    def dial_refused(self, machine: Machine) -> None:
        process = self.machines.get(machine.name)
        if process in self.reached and self.reached[process].link is None:
            self._lose(process, "nothing answers at its port any more")

    def _lose(self, process: ProcessId, cause: str) -> None:
        known = self.reached[process].info is not None
        self._drop(process)
        if known:
            self.handle_now(events.NodeLost(process, cause))

    def _drop(self, process: ProcessId) -> None:
        """Keep nothing of a node."""
        reached = self.reached.pop(process)
        reached.intake.close()
        if reached.link is not None:
            link = reached.link
            link.leave(TO_PROGRAM, goodbye=False)
            self.diallers[link.node.machine.name].lost(link)

    def die(self) -> None:
        self.end(power=False)

    def end(self, *, power: bool, goodbye: bool = False) -> None:
        super().end(power=power, goodbye=goodbye)
        if self.file is not None and not goodbye:
            self.world.program_died(self)


def _view_of(reached: _Reached) -> NodeView:
    assert reached.info is not None
    return NodeView(reached.node.process, reached.info, "10.0.0.1", 1)
