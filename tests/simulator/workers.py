"""The processes below a node daemon: fork servers and workers. They die with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispy.model import BlobRef, ComputationId, Ending, FileSpec
from dispy.node import effects as do
from dispy.node import events as node_events

if TYPE_CHECKING:
    from simulator.node import SimNode

WALL = 1_000_000.0
"""The wall clock when a world begins."""
LARGE = 100_000
"""Bytes of what travels as a blob."""


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
        self.extra = do.JobExtra()
        """What the job has that it runs."""
        self.objects: set[bytes] = set()
        """Scattered objects that it has been given."""
        self._told = 0.0

    def feed(
        self, jobs: list[tuple[int, do.Arguments]], extra: do.JobExtra | None, objects: Mapping[bytes, int] | None
    ) -> None:
        self.objects.update(objects or ())
        if extra is not None or not self.running:
            self.extra = extra or do.JobExtra()
        for sequence, arguments in jobs:
            number = self.node.files[arguments] if isinstance(arguments, int) else int(bytes(arguments))
            if sequence >= self.drop_before:
                self.queue.append((sequence, number))
        self._begin()

    def _begin(self) -> None:
        if self.running or not self.queue or not self.alive:
            return
        world = self.world
        self.running, self.job = self.queue.popleft()
        self.claimed = self.running
        self.started = world.clock.now
        self.version += 1
        version = self.version
        world.job_started(self.job, self.node)
        options = world.tasks[self.job].record.options
        if options is not None and options.depends is not None:
            assert {blob.name for blob in options.depends.objects} <= self.objects, "a job lacks its objects"
        self.node.job_begins()
        duration = world.tasks[self.job].duration
        if world.happens(world.chances.talkative):
            world.clock.at(
                self.started + duration * world.random.random(),
                lambda: self._talk() if version == self.version else None,
            )
        if world.happens(world.chances.worker_death):
            at = self.started + duration * world.random.random()
            world.clock.at(at, lambda: self.die("killed by signal 9") if version == self.version else None)
        else:
            world.clock.at(
                self.started + duration, lambda: self._end(Ending.FINISHED) if version == self.version else None
            )
        if self.cancel == self.running:
            self.interrupt(self.cancel)

    def _talk(self) -> None:
        """The job has an interim result, or sends a file."""
        world, node = self.world, self.node
        if world.random.random() < 0.5:
            parcel = node.parcel_number()
            blob = BlobRef(b"parcel %d" % parcel, LARGE, False)
            sent = node_events.FileSent(parcel, self.number, self.running, FileSpec("file", blob, 0o600, 0.0))
            version = self.version
            self._say(sent)
            patience = world.clock.now + 3.0 * world.random.random()
            dropped = node_events.ParcelDropped(parcel)
            world.clock.at(patience, lambda: self._say(dropped) if version == self.version else None)
        else:
            reply = Reply(self.running, Ending.PROVISIONAL, 0.0, world.clock.now + WALL, 1, body=b"p")
            self._say(node_events.WorkerSpoke(self.number, reply, self._blob(reply, b"p")))

    def _blob(self, reply: Reply, kind: bytes) -> BlobRef | None:
        """Where the body of a reply is, when it is a large one."""
        if not self.world.happens(self.world.chances.large):
            return None
        blob = BlobRef(b"%s %d of %d" % (kind, self.world.number(), self.job), LARGE, False)
        self.node.offered.add(blob.name)
        reply.result_size, reply.body = LARGE, b""
        return blob

    def _say(self, event: node_events.Event, ended: int = 0) -> None:
        self._told = max(self._told, self.world.clock.now + self.world.random.random() * 0.001)

        def arrive() -> None:
            self.node.handle(event)
            if ended and self.node.alive:
                self.node.answered.add(ended)

        self.world.clock.at(self._told, arrive)

    def _end(self, ending: Ending) -> None:
        if not self.alive:
            return
        reply = Reply(self.running, int(ending), self.started + WALL, self.world.clock.now + WALL)
        blob = self._blob(reply, b"r")
        answered = node_events.WorkerAnswered(self.number, [reply], {} if blob is None else {self.running: blob})
        # of a job that the node has ended, nothing more is promised than that its user is told how it ended
        self._say(answered, self.job if ending is Ending.FINISHED else 0)
        self.running = 0
        self.version += 1
        if self.server.is_isolated or self.world.happens(0.02):
            self.die("has run a job that left it unfit for another", expected=True)
        else:
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
        self.server.say(node_events.WorkerRecalled(number, first, before))

    def die(self, cause: str, *, expected: bool = False) -> None:
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
            expected=expected,
        )
        self.server.workers.pop(self.number, None)
        self.server.say(event, after=self._told)


class SimServer:
    """A fork server with its workers."""

    def __init__(self, node: SimNode, computation: ComputationId, *, is_isolated: bool) -> None:
        self.node, self.world, self.computation = node, node.world, computation
        self.is_isolated = is_isolated
        """Workers end after one job."""
        self.workers: dict[int, SimWorker] = {}
        self.alive = True
        self._told = 0.0

    def say(self, event: node_events.Event, after: float = 0.0) -> None:
        at = self.world.clock.now + self.world.random.random() * 0.002
        self._told = max(self._told, at, after)
        self.world.clock.at(self._told, lambda: self.node.handle(event) if self.alive else None)

    def fork(self, number: int) -> None:
        if not self.alive:
            return
        worker = self.workers[number] = SimWorker(self, number)
        if self.world.happens(self.world.chances.stillborn):
            worker.die("ended at once")
        else:
            self.say(node_events.WorkerForked(number))

    def do(self, number: int, action: Callable[[SimWorker], None]) -> None:
        """Something for one worker, if it lives."""
        worker = self.workers.get(number)
        if worker is not None and worker.alive:
            action(worker)

    def forget(self, name: bytes) -> None:
        """Its workers let go of an object when they read of it, which is after the jobs that came before."""
        for worker in self.workers.values():
            worker.objects.discard(name)

    def die(self) -> None:
        """Replies that were sent arrive; of the workers' deaths nothing is heard."""
        self._end_workers()
        self.alive = False
        event = node_events.ForkServerDied(self.computation, "killed by signal 9")
        self.world.clock.at(
            self.world.clock.now + 0.002,
            lambda: self.node.handle(event) if self.node.servers.get(self.computation) is self else None,
        )

    def kill(self) -> None:
        """The node ends it."""
        self.alive = False
        self._end_workers()
        self.workers.clear()

    def _end_workers(self) -> None:
        for worker in self.workers.values():
            worker.alive = False
            worker.version += 1
