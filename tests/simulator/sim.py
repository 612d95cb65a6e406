"""A world in which a real scheduler core and real node cores live: a virtual clock, a seeded source of chance, trouble.

What is simulated is everything around the cores: time, links, processes, users. After every step the cores check
their tables; at the end every promise is checked. `python tests/simulator/sim.py SEED` replays one seed and prints
what happened.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, product
from random import Random

from dispy.model import (
    BlobRef,
    ComputationId,
    ComputationSpec,
    Ending,
    Holder,
    JobOptions,
    JobState,
    NodeInfo,
    ProcessId,
)
from dispy.node import effects as do
from dispy.node import events as node_events
from dispy.node.core import NodeCore
from dispy.scheduler import effects as notices
from dispy.scheduler import events
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages

WALL = 1_000_000.0
MEMORY = 1 << 30
TAGS = ("a", "b")
SCHEDULER = ProcessId("5" * 32)
RIVAL = ProcessId("9" * 32)
LONGEST = 3600.0
"""Virtual seconds after which a run that does not come to rest has failed."""


class Clock:
    """Actions in the order of their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, time: float, action: Callable[[], None]) -> None:
        heappush(self._heap, (max(time, self.now), next(self._numbers), action))

    def step(self) -> bool:
        """Do the next action; False when there is none."""
        if not self._heap:
            return False
        self.now, _, action = heappop(self._heap)
        action()
        return True


@dataclass
class Chances:
    """How often what happens."""

    latency: float = 0.003
    breaks: int = 3
    kills: int = 1
    exits: int = 1
    rivals: int = 1
    worker_death: float = 0.03
    stillborn: float = 0.02
    fork_server_deaths: int = 1
    setup_failure: float = 0.1
    stubborn: float = 0.2
    """Jobs that do not mind SIGINT."""
    cancels: int = 8
    suspects: int = 2
    reallocations: int = 3
    steerings: int = 3
    large: float = 0.05
    pinned: float = 0.1
    declined: float = 0.1
    wishes: float = 0.0
    """Jobs with options."""


def chances_of(random: Random) -> Chances:
    """Some runs see more of one thing than of another."""
    return Chances(
        latency=random.choice([0.0003, 0.003, 0.1]),
        breaks=random.choice([0, 3, 12]),
        kills=random.choice([0, 1, 2]),
        rivals=random.choice([0, 1, 4]),
        worker_death=random.choice([0.0, 0.03, 0.3]),
        stillborn=random.choice([0.0, 0.02, 0.3]),
        fork_server_deaths=random.choice([0, 1, 6]),
        setup_failure=random.choice([0.0, 0.1, 0.5]),
        cancels=random.choice([0, 8, 20]),
        reallocations=random.choice([0, 3, 10]),
        steerings=random.choice([0, 3, 15]),
        wishes=random.choice([0.0, 0.0, 0.1, 0.7]),
    )


CALM = Chances(
    breaks=0,
    kills=0,
    exits=0,
    rivals=0,
    worker_death=0.0,
    stillborn=0.0,
    fork_server_deaths=0,
    setup_failure=0.0,
    stubborn=0.0,
    cancels=0,
    suspects=0,
    reallocations=0,
    steerings=0,
    large=0.0,
    pinned=0.0,
    declined=0.0,
)


@dataclass
class Reply:
    """What a worker says of a job."""

    sequence: int
    ending: int
    started_at: float
    ended_at: float
    result_size: int = 0
    stdout_size: int = 0
    stderr_size: int = 0
    error_size: int = 0
    body: bytes = b""


class Wire:
    """One connection: each direction keeps its order; what is under way when it is cut may arrive or not."""

    def __init__(self, world: World, node: SimNode, peer: ProcessId) -> None:
        self.world, self.node, self.peer = world, node, peer
        self.cut = False
        self.node_hears = True
        self.peer_hears = True
        self._to_node = self._to_peer = 0.0

    def to_node(self, message: messages.AnyMessage, payload: bytes = b"") -> None:
        if self.cut:
            return
        self._to_node = max(self._to_node, self.world.soon())

        def arrive() -> None:
            if self.node_hears and self.node.alive:
                self.node.handle(node_events.SchedulerSaid(self.peer, message, payload))

        self.world.clock.at(self._to_node, arrive)

    def to_peer(self, deliver: Callable[[], None]) -> None:
        if self.cut:
            return
        self._to_peer = max(self._to_peer, self.world.soon())
        self.world.clock.at(self._to_peer, lambda: deliver() if self.peer_hears else None)


class SimWorker:
    """A worker process: runs jobs one after another; replies and what the fork server says travel separately."""

    def __init__(self, server: SimServer, number: int) -> None:
        self.server, self.number = server, number
        self.world, self.node = server.world, server.node
        self.queue: deque[tuple[int, int]] = deque()
        self.running = 0
        self.job = 0
        self.started = 0.0
        self.claimed = 0
        self.drop_before = 0
        self.cancel = 0
        self.version = 0
        self.alive = True
        self._told = 0.0

    def feed(self, jobs: list[tuple[int, do.Arguments]]) -> None:
        for sequence, arguments in jobs:
            number = self.node.files[arguments] if isinstance(arguments, int) else int(bytes(arguments))
            if sequence >= self.drop_before:
                self.queue.append((sequence, number))
        self._begin()

    def _begin(self) -> None:
        if self.running or not self.queue or not self.alive:
            return
        self.running, self.job = self.queue.popleft()
        self.claimed = self.running
        self.started = self.world.clock.now
        self.version += 1
        version = self.version
        self.world.job_started(self.job, self.node)
        duration = self.world.durations[self.job]
        if self.world.happens(self.world.chances.worker_death):
            at = self.started + duration * self.world.random.random()
            self.world.clock.at(at, lambda: self.die("killed by signal 9") if version == self.version else None)
        else:
            self.world.clock.at(
                self.started + duration, lambda: self._end(Ending.FINISHED) if version == self.version else None
            )
        if self.cancel == self.running:
            self.interrupt(self.cancel)

    def _end(self, ending: Ending) -> None:
        if not self.alive:
            return
        reply = Reply(self.running, int(ending), self.started + WALL, self.world.clock.now + WALL)
        self.running = 0
        self.version += 1
        self._told = max(self._told, self.world.clock.now + self.world.random.random() * 0.001)
        number = self.number
        self.world.clock.at(self._told, lambda: self.node.handle(node_events.WorkerAnswered(number, [reply])))
        self._begin()

    def interrupt(self, sequence: int) -> None:
        self.cancel = sequence
        if self.running == sequence and not self.world.happens(self.world.chances.stubborn):
            self._end(Ending.INTERRUPTED)

    def signal(self, sequence: int) -> None:
        if self.running == sequence and self.alive:
            self.die("killed by the node")

    def recall(self, before: int) -> None:
        if not self.alive:
            return
        first = self.claimed + 1
        self.drop_before = max(self.drop_before, before)
        self.queue = deque(item for item in self.queue if item[0] >= before)
        if first < before:
            self.claimed = before - 1
        number = self.number
        self.server.say(lambda: self.node.handle(node_events.WorkerRecalled(number, first, before)))

    def die(self, cause: str) -> None:
        if not self.alive:
            return
        self.alive = False
        self.version += 1
        event = node_events.WorkerDied(
            self.number,
            self.running,
            cause,
            started=self.started + WALL if self.running else 0.0,
            ended=self.world.clock.now + WALL,
        )
        self.server.workers.pop(self.number, None)
        self.server.say(lambda: self.node.handle(event), after=self._told)


class SimServer:
    """A fork server with its workers."""

    def __init__(self, node: SimNode, computation: ComputationId) -> None:
        self.node, self.world, self.computation = node, node.world, computation
        self.workers: dict[int, SimWorker] = {}
        self.alive = True
        self._told = 0.0

    def say(self, deliver: Callable[[], None], after: float = 0.0) -> None:
        at = self.world.clock.now + self.world.random.random() * 0.002
        self._told = max(self._told, at, after)
        self.world.clock.at(self._told, lambda: deliver() if self.alive else None)

    def fork(self, number: int) -> None:
        if not self.alive:
            return
        worker = self.workers[number] = SimWorker(self, number)
        if self.world.happens(self.world.chances.stillborn):
            worker.die("ended at once")
        else:
            self.say(lambda: self.node.handle(node_events.WorkerForked(number, 1000 + number)))

    def die(self) -> None:
        """Replies that were sent arrive; of the workers' deaths nothing is heard."""
        for worker in self.workers.values():
            worker.alive = False
            worker.version += 1
        self.alive = False
        at = self.world.clock.now + 0.002
        event = node_events.ForkServerDied(self.computation, "killed by signal 9")
        self.world.clock.at(
            at, lambda: self.node.handle(event) if self.node.servers.get(self.computation) is self else None
        )

    def kill(self) -> None:
        self.alive = False
        for worker in self.workers.values():
            worker.alive = False
            worker.version += 1
        self.workers.clear()


class SimNode:
    """A machine with a node daemon: the real core, and a host that plays its processes."""

    def __init__(self, world: World, name: str, cpus: int, *, reliable: bool = False) -> None:
        self.world = world
        self.process = ProcessId(f"{world.random.getrandbits(128):032x}")
        self.info = NodeInfo(
            self.process,
            name,
            cpus,
            "sim",
            ("cpython-3.11",),
            memory=4 * MEMORY,
            tags=TAGS if reliable else TAGS[: world.random.randint(0, 2)],
            gpus=2 if reliable else world.random.randint(0, 2),
        )
        self.core = NodeCore(self.info, wall_offset=WALL, zombie_interval=60.0)
        self.alive = True
        self.reliable = reliable
        self.wire: Wire | None = None
        self.rival: Wire | None = None
        self.servers: dict[ComputationId, SimServer] = {}
        self.files: dict[int, int] = {}
        """Descriptor → the job whose arguments it holds."""
        self._timer = 0
        self._descriptors = count(3)

    def handle(self, event: node_events.Event) -> None:
        if self.alive:
            self.world.log(f"{self.info.name} <- {event}")
            self._perform(self.core.handle(event, self.world.clock.now))

    def _perform(self, effects: do.Effects) -> None:
        self.core.check()
        for action in effects.actions:
            self.world.log(f"{self.info.name} does {action}")
            self._act(action)
        for send in effects.sends:
            self._send(send)
        self._arm()

    def _send(self, send: do.Send) -> None:
        self.world.log(f"{self.info.name} -> {send.message}")
        if send.peer == RIVAL:
            if self.rival is not None:
                self.rival.to_peer(lambda: self.world.rival_heard(self, send.message))
        elif self.wire is not None:
            wire, bodies = self.wire, [bytes(body) for body in send.payload]
            wire.to_peer(lambda: self.world.scheduler.node_said(wire, send.message, bodies))

    def _arm(self) -> None:
        self._timer += 1
        timer, deadline = self._timer, self.core.next_deadline()
        if deadline is not None and self.alive:

            def due() -> None:
                if timer == self._timer and self.alive:
                    self._perform(self.core.handle_timeout(self.world.clock.now))

            self.world.clock.at(deadline + 1e-6, due)

    def _act(self, action: do.Action) -> None:
        match action:
            case do.PrepareComputation(_, spec, _):
                self._prepare(spec.id)
            case do.RestartComputation(computation):
                self._prepare(computation)
            case do.CleanComputation(computation):
                server = self.servers.pop(computation, None)
                if server is not None:
                    server.kill()
                self.world.clock.at(self.world.soon(), lambda: self.handle(node_events.ComputationCleaned(computation)))
            case do.ForkWorker(computation, number):
                self._with(computation, lambda server: server.fork(number))
            case do.FeedWorker(computation, number, jobs):
                self._tell(computation, number, lambda worker: worker.feed(jobs))
            case do.RecallFromWorker(computation, number, before):
                self._tell(computation, number, lambda worker: worker.recall(before))
            case do.CancelInWorker(computation, number, sequence):
                self._tell(computation, number, lambda worker: worker.interrupt(sequence))
            case do.SignalWorker(computation, number, sequence):
                self._tell(computation, number, lambda worker: worker.signal(sequence))
            case do.RetireWorker(computation, number):
                self._tell(computation, number, lambda worker: worker.die("was told to end"))
            case do.FetchArguments(_, blob):
                self._fetch(blob)
            case do.HangUp(peer):
                self._hang_up(peer)
            case do.Exit():
                self.end(goodbye=True)
            case do.ForgetArguments() | do.WithdrawResults() | do.Announce():
                pass

    def _prepare(self, computation: ComputationId) -> None:
        server = self.servers[computation] = SimServer(self, computation)

        def done() -> None:
            if self.servers.get(computation) is not server:
                return
            if not self.reliable and self.world.happens(self.world.chances.setup_failure):
                final = self.world.random.random() < 0.5
                self.handle(node_events.ComputationFailed(computation, "setup failed", "trace", final))
            else:
                self.handle(node_events.ComputationPrepared(computation))

        self.world.clock.at(self.world.soon() + 0.05 * self.world.random.random(), done)

    def _with(self, computation: ComputationId, action: Callable[[SimServer], None]) -> None:
        server = self.servers.get(computation)
        if server is not None and server.alive:
            self.world.clock.at(self.world.clock.now + 0.0005, lambda: action(server) if server.alive else None)

    def _tell(self, computation: ComputationId, number: int, action: Callable[[SimWorker], None]) -> None:
        def tell(server: SimServer) -> None:
            worker = server.workers.get(number)
            if worker is not None and worker.alive:
                action(worker)

        self._with(computation, tell)

    def _fetch(self, blob: BlobRef) -> None:
        wire = self.wire

        def done() -> None:
            if wire is not self.wire or wire is None or wire.cut:
                return  # the core asks again over the next link
            if self.world.happens(0.1):
                self.handle(node_events.ArgumentsFailed(blob.name, "it is gone"))
            else:
                descriptor = next(self._descriptors)
                self.files[descriptor] = int(blob.name)
                self.handle(node_events.ArgumentsFetched(blob.name, descriptor))

        self.world.clock.at(self.world.soon() + 0.02, done)

    def _hang_up(self, peer: ProcessId) -> None:
        if peer == RIVAL:
            self.rival = None
        elif self.wire is not None:
            wire = self.wire
            wire.to_peer(lambda: self.world.scheduler.said_goodbye(wire, "it hung up"))
            wire.cut, wire.node_hears, self.wire = True, False, None

    def end(self, *, goodbye: bool) -> None:
        """The daemon's process ends, and all below it."""
        self.alive = False
        for server in self.servers.values():
            server.kill()
        self.servers.clear()
        wire = self.wire
        if wire is None or wire.cut:
            return
        if goodbye:
            wire.to_peer(lambda: self.world.scheduler.said_goodbye(wire, "it said goodbye"))
        else:
            wire.to_peer(lambda: self.world.scheduler.link_broke(wire))
        wire.cut = True


@dataclass
class Told:
    """What the user's side has heard of a job."""

    record: JobRecord
    endings: list[notices.JobEnded] = field(default_factory=list)


class SimScheduler:
    """The user's process: the real core, and a host that keeps its links."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.core = SchedulerCore(holder=Holder("anna", "host", 1, "prog.py"), token=b"A" * 32)
        self.wires: dict[ProcessId, Wire] = {}
        self.known: set[ProcessId] = set()
        self.acknowledged: dict[ProcessId, int] = {}
        self.jobs: dict[int, Told] = {}
        self.ended_clusters: set[ComputationId] = set()
        self._timer = 0

    def handle(self, event: events.Event) -> None:
        self.world.log(f"scheduler <- {event}")
        self._perform(self.core.handle(event, self.world.clock.now))

    def _perform(self, effects: notices.Effects) -> None:
        self.core.check()
        for send in effects.sends:
            self.world.log(f"scheduler -> {send.node[:4]} {send.message}")
            wire = self.wires.get(send.node)
            if wire is not None:
                wire.to_node(send.message, b"".join(send.payload))
        for notice in effects.notices:
            self._tell(notice)
        for node in [node for node in self.known if node not in self.core.nodes]:
            self.forget(node)
        self._arm()

    def _tell(self, notice: notices.Notice) -> None:
        world = self.world
        match notice:
            case notices.JobsEnded(jobs):
                for ended in jobs:
                    world.log(f"job {ended.job.job} ended {ended.state.name}: {ended.cause}")
                    self.jobs[ended.job.job].endings.append(ended)
            case notices.AskAllocation(cluster, node, info):
                cpus = info.cpus
                if cpus and not world.is_reliable(node):
                    if world.happens(world.chances.declined):
                        cpus = 0
                    elif world.happens(0.3):
                        cpus = world.random.randint(1, cpus)
                over = world.happens(0.1)
                allocated = events.NodeAllocated(cluster, node, 2 * cpus if over else cpus, oversubscribe=over)
                world.clock.at(world.soon(), lambda: self.handle(allocated))
            case notices.ClusterEnded(cluster):
                assert cluster not in self.ended_clusters, "a cluster ended twice"
                self.ended_clusters.add(cluster)
            case _:
                world.log(str(notice))

    def _arm(self) -> None:
        self._timer += 1
        timer, deadline = self._timer, self.core.next_deadline()
        if deadline is not None:

            def due() -> None:
                if timer == self._timer:
                    self._perform(self.core.handle_timeout(self.world.clock.now))

            self.world.clock.at(deadline, due)

    # Links.

    def link_opened(self, wire: Wire) -> None:
        node = wire.node.process
        self.wires[node] = wire
        if node in self.known:
            self.handle(events.LinkResumed(node))

    def node_said(self, wire: Wire, message: messages.AnyMessage, bodies: list[bytes]) -> None:
        node = wire.node.process
        if self.wires.get(node) is not wire:
            return
        if isinstance(message, messages.NodeDescribed) and node not in self.known:
            self.known.add(node)
            self.handle(events.NodeJoined(node, message.info, "10.0.0.1"))
        elif isinstance(message, messages.JobsDone):
            if message.sequence > self.acknowledged.get(node, 0):
                self.handle(events.NodeSaid(node, message, bodies))
                self.acknowledged[node] = message.sequence
            if self.wires.get(node) is wire:
                wire.to_node(messages.AckResults(self.acknowledged[node]))
        else:
            self.handle(events.NodeSaid(node, message))

    def said_goodbye(self, wire: Wire, cause: str) -> None:
        if self.wires.get(wire.node.process) is wire:
            self.lose(wire.node.process, cause)

    def link_broke(self, wire: Wire) -> None:
        """The connection is closed; the redial shows whether the process is there."""
        node = wire.node.process
        if self.wires.get(node) is not wire:
            return
        del self.wires[node]
        wire.peer_hears = False
        if node in self.known:
            self.handle(events.LinkBroken(node))
        if not wire.node.alive:
            self.world.clock.at(self.world.soon() + 0.1, lambda: self.lose(node, "its port refuses"))

    def lose(self, node: ProcessId, cause: str) -> None:
        if node in self.known:
            self.known.discard(node)
            self.handle(events.NodeLost(node, cause))
        self.forget(node)

    def forget(self, node: ProcessId) -> None:
        self.known.discard(node)
        self.acknowledged.pop(node, None)
        wire = self.wires.pop(node, None)
        if wire is not None:
            wire.cut = True


class World:
    """One run."""

    def __init__(self, seed: int, chances: Chances | None = None, *, verbose: bool = False) -> None:
        self.random = Random(seed)
        self.chances = chances or chances_of(self.random)
        self.verbose = verbose
        self.clock = Clock()
        self.trouble = True
        """Whether things may still go wrong."""
        self.scheduler = SimScheduler(self)
        self.nodes: list[SimNode] = []
        self.durations: dict[int, float] = {}
        self.starts: Counter[int] = Counter()
        self.started_at: dict[int, float] = {}
        self.clusters: dict[ComputationId, bool] = {}
        """Open clusters → whether their jobs are reentrant."""
        self.reentrant: dict[ComputationId, bool] = {}
        self.closing: set[ComputationId] = set()
        self._ids = count(1)

    def log(self, text: str) -> None:
        if self.verbose:
            print(f"{self.clock.now:10.5f} {text}")

    def soon(self) -> float:
        return self.clock.now + self.chances.latency * self.random.random()

    def happens(self, chance: float) -> bool:
        return self.trouble and self.random.random() < chance

    def is_reliable(self, process: ProcessId) -> bool:
        return any(node.reliable for node in self.nodes if node.process == process)

    def job_started(self, job: int, node: SimNode) -> None:
        self.starts[job] += 1
        self.started_at[job] = self.clock.now
        self.log(f"job {job} starts on {node.info.name}")
        reentrant = self.reentrant[self.scheduler.jobs[job].record.cluster]
        again = reentrant or self.retries(job) > 0
        assert again or self.starts[job] == 1, f"job {job} is not reentrant and started twice"
        options = self.scheduler.jobs[job].record.options
        if options is not None:
            assert set(options.tags) <= set(node.info.tags), f"job {job} is on a node without its tags"
            assert options.gpus <= node.info.gpus, f"job {job} is on a node without its GPUs"

    def retries(self, job: int) -> int:
        options = self.scheduler.jobs[job].record.options
        return 0 if options is None else options.retries

    def wishes(self) -> JobOptions:
        random = self.random
        return JobOptions(
            priority=random.choice([0, 0, 1, -1]),
            cpus=random.choice([1, 1, 1, 2, 3, 0]),
            memory=random.choice([0, 0, MEMORY, 3 * MEMORY]),
            gpus=random.choice([0, 0, 0, 1, 2]),
            tags=random.choice([(), (), TAGS[:1], TAGS]),
            timeout=random.choice([0.0, 0.0, 0.01, 2.0]),
            retries=random.choice([0, 0, 1, 3]),
        )

    # What users do.

    def open(self, *, reentrant: bool, open_ended: bool = True) -> ComputationId:
        cluster = ComputationId(f"{len(self.reentrant) + 1:032x}")
        self.reentrant[cluster] = reentrant
        spec = ComputationSpec(cluster, f"function {len(self.reentrant)}", "function")
        self.scheduler.handle(events.ClusterOpened(spec, reentrant, open_ended))
        return cluster

    def submit(self, cluster: ComputationId, durations: list[float]) -> None:
        records = []
        for duration in durations:
            job = next(self._ids)
            self.durations[job] = duration
            args, blob, options = b"%d" % job, None, None
            if self.happens(self.chances.large):
                args, blob = b"", BlobRef(b"%d" % job, 100_000, False)
            if self.nodes and self.happens(self.chances.pinned):
                options = JobOptions(self.random.choice(self.nodes).process)
            elif self.happens(self.chances.wishes):
                options = self.wishes()
            record = JobRecord(job, cluster, args, blob=blob, options=options)
            self.scheduler.jobs[job] = Told(record)
            records.append(record)
        self.scheduler.handle(events.JobsSubmitted(records))

    def close(self, cluster: ComputationId, *, terminate: bool) -> None:
        self.closing.add(cluster)
        if cluster not in self.scheduler.ended_clusters:
            self.scheduler.handle(events.ClusterClosing(cluster, terminate))

    # What happens to machines and links.

    def add_node(self, cpus: int, *, reliable: bool = False) -> SimNode:
        node = SimNode(self, f"n{len(self.nodes) + 1}", cpus, reliable=reliable)
        self.nodes.append(node)
        self.connect(node)
        return node

    def connect(self, node: SimNode) -> None:
        if not node.alive:
            return
        wire = Wire(self, node, SCHEDULER)
        old = node.wire
        if old is not None:
            old.cut = True
            old.node_hears = False
        node.wire = wire
        node.handle(node_events.LinkOpened(SCHEDULER))
        if node.wire is wire:
            self.scheduler.link_opened(wire)

    def break_link(self, node: SimNode) -> None:
        wire = node.wire
        if wire is None or wire.cut or not node.alive:
            return
        self.log(f"the link to {node.info.name} breaks")
        wire.cut = True
        noticed = self.clock.now + self.random.choice([0.001, 0.1, 3.0]) * self.random.random()

        def node_notices() -> None:
            wire.node_hears = False
            if node.wire is wire:
                node.wire = None
                node.handle(node_events.LinkLost(SCHEDULER, goodbye=False))

        def scheduler_notices() -> None:
            self.scheduler.link_broke(wire)
            away = self.random.choice([0.05, 1.0, 15.0]) * self.random.random()
            self.clock.at(self.clock.now + away, lambda: self.connect(node))

        self.clock.at(noticed, scheduler_notices)
        self.clock.at(self.clock.now + self.random.choice([0.001, 5.0]) * self.random.random(), node_notices)

    def kill(self, node: SimNode) -> None:
        if node.alive and not node.reliable:
            self.log(f"{node.info.name} is killed")
            node.end(goodbye=False)

    def suspect(self, node: SimNode) -> None:
        if node.wire is not None and not node.wire.cut and node.process in self.scheduler.known:
            wire = node.wire
            self.scheduler.handle(events.NodeSuspected(node.process))

            def recover() -> None:
                if self.scheduler.wires.get(node.process) is wire and node.process in self.scheduler.known:
                    self.scheduler.handle(events.NodeRecovered(node.process))

            self.clock.at(self.clock.now + 2 * self.random.random(), recover)

    def reallocate(self, node: SimNode) -> None:
        """The owner of a cluster changes its mind, in time or too late."""
        if self.reentrant and not node.reliable:
            cluster = self.random.choice(list(self.reentrant))
            cpus = self.random.randint(0, node.info.cpus)
            self.scheduler.handle(events.NodeAllocated(cluster, node.process, cpus))

    def steer(self, node: SimNode) -> None:
        """The user pauses, caps, closes, renews or uses a node for one of the clusters."""
        if self.reentrant and not node.reliable:
            cluster = self.random.choice(list(self.reentrant))
            how = self.random.choice(list(events.Steering))
            cpus, terminate = self.random.randint(0, node.info.cpus), self.random.random() < 0.5
            self.scheduler.handle(events.NodeSteered(cluster, node.process, how, cpus, terminate))

    def kill_fork_server(self, node: SimNode) -> None:
        alive = [server for server in node.servers.values() if server.alive]
        if node.alive and alive:
            self.random.choice(alive).die()

    def rival_asks(self, node: SimNode) -> None:
        if not node.alive or node.rival is not None:
            return
        node.rival = Wire(self, node, RIVAL)
        node.handle(node_events.LinkOpened(RIVAL))
        if node.rival is not None:
            node.rival.to_node(messages.AskLease(b"B" * 32, Holder("bert", "other", 2, "prog.py")))

    def rival_heard(self, node: SimNode, message: messages.AnyMessage) -> None:
        if isinstance(message, messages.LeaseGranted):

            def leave() -> None:
                if node.rival is not None:
                    node.rival.to_node(messages.ReleaseLease())

            self.clock.at(self.clock.now + 3 * self.random.random(), leave)

    def run(self, until: Callable[[], bool]) -> None:
        """Let time pass until the condition holds.

        Raises:
            AssertionError: it does not within LONGEST seconds, or nothing more happens before it does.
        """
        while not until():
            assert self.clock.step(), f"nothing happens any more; {self.account()}"
            assert self.clock.now < LONGEST, f"it does not come to rest; {self.account()}"

    def account(self) -> str:
        waiting = [job for job, told in self.scheduler.jobs.items() if not told.endings]
        return "; ".join(
            [
                f"open jobs: {[self.scheduler.core.explain(job) for job in waiting[:3]]}",
                f"closed: {self.closing - self.scheduler.ended_clusters}",
                *(str(view) for view in self.scheduler.core.snapshot().nodes),
            ]
        )


DURATIONS = (0.0, 0.00002, 0.0005, 0.004, 0.05, 0.5, 3.0, 20.0)


def run_seed(seed: int, *, verbose: bool = False) -> World:
    """A run with trouble of all kinds, which ends with all promises checked."""
    world = World(seed, verbose=verbose)
    random, chances = world.random, world.chances
    horizon = 6.0

    def sometime(times: int, action: Callable[[], None]) -> None:
        for _ in range(random.randint(0, times)):
            world.clock.at(horizon * random.random(), action)

    def on_node(action: Callable[[SimNode], None]) -> Callable[[], None]:
        return lambda: action(random.choice(world.nodes)) if world.nodes else None

    for _ in range(random.randint(1, 4)):
        at = horizon * 0.3 * random.random()
        world.clock.at(at, lambda: (world.add_node(random.randint(1, 3)), None)[1])
    for _ in range(random.randint(1, 3)):
        world.clock.at(horizon * 0.4 * random.random(), lambda: _use(world, horizon))
    sometime(chances.breaks, on_node(world.break_link))
    sometime(chances.kills, on_node(world.kill))
    sometime(chances.exits, on_node(lambda node: _exit(world, node)))
    sometime(chances.suspects, on_node(world.suspect))
    sometime(chances.fork_server_deaths, on_node(world.kill_fork_server))
    sometime(chances.reallocations, on_node(world.reallocate))
    sometime(chances.steerings, on_node(world.steer))
    sometime(chances.rivals, on_node(world.rival_asks))
    sometime(chances.cancels, lambda: _cancel(world))
    done = []
    world.clock.at(horizon, lambda: done.append(True))
    world.run(lambda: bool(done))
    finish(world)
    return world


def _use(world: World, horizon: float) -> None:
    random = world.random
    cluster = world.open(reentrant=random.random() < 0.5, open_ended=random.random() < 0.8)
    usual = random.choice(DURATIONS)
    for _ in range(random.randint(1, 4)):
        durations = [usual if random.random() < 0.8 else random.choice(DURATIONS) for _ in range(random.randint(1, 25))]

        def submit(durations: list[float] = durations) -> None:
            world.submit(cluster, durations)

        world.clock.at(world.clock.now + random.random() * 2.0, submit)
    if random.random() < 0.5:
        terminate = random.random() < 0.5
        world.clock.at(world.clock.now + horizon * random.random(), lambda: world.close(cluster, terminate=terminate))


def _exit(world: World, node: SimNode) -> None:
    if not node.reliable:
        node.handle(node_events.ExitAsked(at_once=world.random.random() < 0.5))


def _cancel(world: World) -> None:
    jobs = list(world.scheduler.jobs)
    if jobs:
        some = [world.random.choice(jobs) for _ in range(world.random.randint(1, 5))]
        world.scheduler.handle(events.CancelAsked(some))


def finish(world: World) -> None:
    """No more trouble, a node that works for all, all clusters closed: now everything must come to an end."""
    world.trouble = False
    world.add_node(3, reliable=True)
    for cluster, node in product(world.reentrant, world.nodes):
        # jobs that are pinned to a paused node wait until it is used again
        world.scheduler.handle(events.NodeSteered(cluster, node.process, events.Steering.USE))
    for cluster in world.reentrant:
        if cluster not in world.closing:
            world.close(cluster, terminate=False)
    world.run(lambda: world.scheduler.ended_clusters == world.reentrant.keys())
    rest = world.clock.now + 100.0
    for node in world.nodes:
        if node.rival is not None:
            node.rival.to_node(messages.ReleaseLease())
    resting: list[bool] = []
    world.clock.at(rest, lambda: resting.append(True))
    world.run(lambda: bool(resting))
    check_promises(world)


def check_promises(world: World) -> None:
    """What must be true when everything is over."""
    for job, told in world.scheduler.jobs.items():
        assert len(told.endings) == 1, f"job {job} ended {len(told.endings)} times"
        ended = told.endings[0]
        assert ended.state is told.record.state
        assert (ended.cause is None) == (ended.state is JobState.Finished), f"job {job} ended without a cause"
        reentrant = world.reentrant[told.record.cluster]
        if ended.state is JobState.Finished:
            assert world.starts[job] >= 1, f"job {job} finished and never started"
        if ended.state is JobState.Cancelled and not reentrant and not world.retries(job):
            assert world.starts[job] == 0, f"job {job} was cancelled before its start and had started"
    view = world.scheduler.core.snapshot()
    assert not view.clusters, "a cluster is left over"
    for shown in view.nodes:
        assert shown.state == "free", f"a lease was not given back: {shown}"
    for node in world.nodes:
        if node.alive:
            left = node.core.snapshot()
            assert left.holder is None, f"{node.info.name} is still held: {left}"
            assert not left.computations, f"{node.info.name} still has computations: {left}"
            assert left.workers == 0, f"{node.info.name} still has workers: {left}"
            assert not node.servers, f"{node.info.name} still has fork servers"


if __name__ == "__main__":
    for text in sys.argv[1:]:
        run_seed(int(text), verbose=True)
