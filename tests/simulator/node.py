"""A node daemon: the real core, and a host that plays its processes, its files and its connections."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from dispy.model import BlobRef, ComputationId, ComputationSpec, NodeInfo, ProcessId
from dispy.node import effects as do
from dispy.node import events as node_events
from dispy.node.core import NodeCore
from dispy.wire import messages
from simulator.clock import Process
from simulator.disk import Writer
from simulator.network import TO_NODE, TO_PROGRAM, Link, Machine
from simulator.workers import WALL, SimServer

if TYPE_CHECKING:
    from simulator.world import World

MEMORY = 1 << 30
TAGS = ("a", "b")


class SimNode(Process):
    """One process; when it is started again it is another one."""

    def __init__(self, world: World, machine: Machine) -> None:
        super().__init__(world)
        self.machine = machine
        self.process = ProcessId(f"{world.random.getrandbits(128):032x}")
        reliable = machine.reliable
        self.info = NodeInfo(
            self.process,
            machine.name,
            machine.cpus,
            "sim",
            ("cpython-3.11",),
            memory=4 * MEMORY,
            tags=TAGS if reliable else TAGS[: world.random.randint(0, 2)],
            gpus=2 if reliable else world.random.randint(0, 2),
        )
        self.core = NodeCore(self.info, wall_offset=WALL, zombie_interval=60.0)
        self.links: dict[ProcessId, Link] = {}
        self.hosted: dict[ComputationId, ComputationSpec] = {}
        """What is open here."""
        self.servers: dict[ComputationId, SimServer] = {}
        self.files: dict[int, int] = {}
        """Descriptor → the task whose arguments it holds."""
        self.descriptors: dict[bytes, int | None] = {}
        """Arguments that are here, or (None) being fetched."""
        self.objects: dict[bytes, int | None] = {}
        """Scattered objects, likewise."""
        self.writer = Writer(self)
        self.offered = machine.disk.blobs()
        """Results that can be fetched."""
        self.answered: set[int] = set()
        """Tasks of whose result the daemon has heard."""
        self.lent: set[tuple[ComputationId, int, int]] = set()
        """Attempts whose files are here, or being fetched."""
        self.parcels: set[int] = set()
        """Files that jobs send and of which they have not heard."""
        self.most = 0
        """CPUs that jobs could ever use at once."""
        self._numbers = count(3)
        if machine.disk.leases:
            self.handle(machine.disk.found())

    def parcel_number(self) -> int:
        number = next(self._numbers)
        self.parcels.add(number)
        return number

    def handle(self, event: node_events.Event) -> None:
        self.hear(lambda: self._handle(event))

    def _handle(self, event: node_events.Event) -> None:
        world = self.world
        if world.verbose:
            world.log(f"{self.info.name} <- {event}")
        self._perform(self.core.handle(event, world.clock.now))

    def _perform(self, effects: do.Effects) -> None:
        world = self.world
        self.most = max(self.most, self.core.desk.feeder.capacity)
        if world.checks():
            self.core.check()
        for action in effects.actions:
            self.effect()
            if world.verbose:
                world.log(f"{self.info.name} does {action}")
            self._act(action)
        for send in effects.sends:
            self.effect()
            link = self.links.get(send.peer)
            if world.verbose:
                world.log(f"{self.info.name} -> {send.peer[:4]}{'' if link else ' (no link)'} {send.message}")
            if link is not None:
                program, message, bodies = link.program, send.message, [bytes(body) for body in send.payload]
                link.streams[TO_PROGRAM].send(
                    lambda program=program, link=link, message=message, bodies=bodies: program.heard(
                        link, message, bodies
                    )
                )
        self.wake_at(self.core.next_deadline(), self._time_is_up)

    def _time_is_up(self) -> None:
        self._perform(self.core.handle_timeout(self.world.clock.now))

    # Connections.

    def link_opened(self, link: Link) -> None:
        peer = link.peer
        old = self.links.get(peer)
        self.links[peer] = link
        if old is not None:
            old.leave(TO_NODE, goodbye=True)
        self._handle(node_events.LinkOpened(peer))

    def link_silent(self, link: Link) -> None:
        """The core does not look at it."""

    def link_recovered(self, link: Link) -> None:
        """Nor at that."""

    def link_lost(self, link: Link, *, goodbye: bool, silent: bool) -> None:
        peer = link.peer
        if self.links.get(peer) is link:
            del self.links[peer]
            self._handle(node_events.LinkLost(peer, goodbye))

    def said(self, link: Link, peer: ProcessId, message: messages.AnyMessage, payload: bytes) -> None:
        """A message of a program has arrived."""
        if self.links.get(peer) is link:
            self._handle(node_events.SchedulerSaid(peer, message, payload))

    def _hang_up(self, peer: ProcessId) -> None:
        link = self.links.pop(peer, None)
        if link is not None:
            link.leave(TO_NODE, goodbye=True)

    def job_begins(self) -> None:
        """A worker begins a job: all that run share the CPUs and the GPUs."""
        alive = [server for server in self.servers.values() if server.alive]
        running = [each for server in alive for each in server.workers.values() if each.running]
        assert sum(each.extra.cpus for each in running) <= self.most, "jobs use more CPUs than there are"
        gpus = [number for each in running for number in each.extra.gpus]
        assert len(set(gpus)) == len(gpus), "two jobs use one GPU"

    # What the core wants done.

    def _act(self, action: do.Action) -> None:
        match action:
            case do.PrepareComputation(_, spec, _):
                self.hosted[spec.id] = spec
                self._prepare(spec, node_events.ComputationPrepared(spec.id))
            case do.StartForkServer(computation):
                spec = self.hosted[computation]
                self.servers[computation] = SimServer(self, computation, is_isolated=spec.isolate)
                self._prepare(spec, node_events.ForkServerStarted(computation))
            case do.CleanComputation(computation):
                del self.hosted[computation]
                server = self.servers.pop(computation, None)
                if server is not None:
                    server.kill()
                self._later(node_events.ComputationCleaned(computation))
            case do.ForkWorker(computation, number):
                self._tell(computation, lambda server: server.fork(number))
            case do.FeedWorker(computation, number, jobs, extra, objects):
                assert (objects or {}).items() <= self.objects.items(), "an object is not here"
                self._tell(
                    computation, lambda server: server.do(number, lambda worker: worker.feed(jobs, extra, objects))
                )
            case do.FetchObject(peer, blob):
                self._fetch_object(peer, blob)
            case do.ForgetObject(name):
                self.objects.pop(name, None)
                for each in self.servers:
                    self._tell(each, lambda server: server.forget(name))
            case do.RecallFromWorker(computation, number, before):
                self._tell(computation, lambda server: server.do(number, lambda worker: worker.recall(before)))
            case do.CancelInWorker(computation, number, sequence):
                self._tell(computation, lambda server: server.do(number, lambda worker: worker.interrupt(sequence)))
            case do.SignalWorker(computation, number, sequence):
                self._tell(computation, lambda server: server.do(number, lambda worker: worker.signal(sequence)))
            case do.RetireWorker(computation, number):
                told = "was told to end"
                self._tell(
                    computation, lambda server: server.do(number, lambda worker: worker.die(told, expected=True))
                )
            case do.FetchArguments(peer, blob):
                self._fetch(peer, blob)
            case do.ForgetArguments(name):
                descriptor = self.descriptors.pop(name, None)
                if descriptor is not None:
                    # a worker that was fed has it mapped: what it holds lives on
                    self.world.clock.at(self.world.clock.now + 1.0, lambda: self.files.pop(descriptor, None))
            case do.LendFiles(computation, job, attempt):
                self.lent.add((computation, job, attempt))
                reason = "it has changed" if self.world.happens(0.1) else ""
                no_room = not reason and self._has_no_room()
                self._later(node_events.FilesLent(job, attempt, "no room" if no_room else reason, no_room))
            case do.ReturnFiles(computation, job, attempt):
                self.lent.remove((computation, job, attempt))
            case do.AnswerParcel(parcel):
                self.parcels.discard(parcel)
            case do.WithdrawResults(names):
                self.offered.difference_update(names)
            case do.SpoolBatch() | do.UnspoolBatches():
                self.writer.ask(action)
            case do.HangUp(peer):
                self._hang_up(peer)
            case do.Exit():
                self.end(goodbye=True)
            case _:
                pass

    def _later(self, event: node_events.Event) -> None:
        self.world.clock.at(self.world.soon(), lambda: self.handle(event))

    def _prepare(self, spec: ComputationSpec, success: node_events.Event) -> None:
        """Take a step on the way to its workers, which succeeds or fails."""
        world = self.world
        server = self.servers.get(spec.id)

        def done() -> None:
            if self.hosted.get(spec.id) is not spec or self.servers.get(spec.id) is not server:
                return
            if not self.machine.reliable and world.happens(world.chances.setup_failure):
                final = world.random.random() < 0.5
                self.handle(node_events.ComputationFailed(spec.id, "setup failed", "trace", final))
            else:
                self.handle(success)

        world.clock.at(world.soon() + 0.05 * world.random.random(), done)

    def _tell(self, computation: ComputationId, action: Callable[[SimServer], None]) -> None:
        server = self.servers.get(computation)
        if server is not None and server.alive:
            self.world.clock.at(self.world.clock.now + 0.0005, lambda: action(server) if server.alive else None)

    def _fetch(self, peer: ProcessId, blob: BlobRef) -> None:
        link = self.links.get(peer)
        self.descriptors.setdefault(blob.name)

        def done() -> None:
            if blob.name not in self.descriptors:
                return  # nobody needs it any more
            if link is None or self.links.get(peer) is not link:
                return  # the core asks again over the next link
            if link.streams[TO_NODE].holds:
                self.world.clock.at(self.world.clock.now + 0.1, done)
                return
            if self.world.happens(0.1):
                del self.descriptors[blob.name]
                self.handle(node_events.ArgumentsFailed(blob.name, "it is gone"))
            elif self.descriptors[blob.name] is None and self._has_no_room():
                del self.descriptors[blob.name]
                self.handle(node_events.ArgumentsFailed(blob.name, "no room", no_room=True))
            elif self.descriptors[blob.name] is None:
                descriptor = self.descriptors[blob.name] = next(self._numbers)
                self.files[descriptor] = int(blob.name)
                self.handle(node_events.ArgumentsFetched(blob.name, descriptor))

        self.world.clock.at(self.world.soon() + 0.02, done)

    def _has_no_room(self) -> bool:
        machine = self.machine
        return machine.disk.is_full or (machine.narrow > 0 and self.world.rooms.random() < machine.narrow)

    def _fetch_object(self, peer: ProcessId, blob: BlobRef) -> None:
        world, link = self.world, self.links.get(peer)
        random = world.scattering
        self.objects.setdefault(blob.name)

        def done() -> None:
            if self.objects.get(blob.name, 0) is not None or link is None or self.links.get(peer) is not link:
                return
            if link.streams[TO_NODE].holds:
                world.clock.at(world.clock.now + 0.1, done)
            elif random.random() < 0.1:
                del self.objects[blob.name]
                self.handle(node_events.ObjectFailed(blob.name, "it is gone"))
            elif self._has_no_room():
                del self.objects[blob.name]
                self.handle(node_events.ObjectFailed(blob.name, "no room", no_room=True))
            else:
                descriptor = self.objects[blob.name] = next(self._numbers)
                self.handle(node_events.ObjectFetched(blob.name, descriptor))

        world.clock.at(world.clock.now + 0.05 * random.random(), done)

    # Its life.

    def stop(self) -> None:
        super().stop()
        for link in self.links.values():
            link.streams[TO_PROGRAM].hold("stopped")

    def go_on(self) -> None:
        for link in self.links.values():
            link.streams[TO_PROGRAM].let("stopped")
        super().go_on()

    def die(self) -> None:
        self.end(goodbye=False)

    def end(self, *, goodbye: bool, power: bool = False) -> None:
        """The daemon's process ends, and all below it."""
        if goodbye:
            self.writer.close()
        super().die()
        self.hosted.clear()
        for server in self.servers.values():
            server.kill()
        self.servers.clear()
        for link in self.links.values():
            if power:
                link.vanish(TO_NODE)
            else:
                link.leave(TO_NODE, goodbye=goodbye, lose=not goodbye)
        self.links.clear()
