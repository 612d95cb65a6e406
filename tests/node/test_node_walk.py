"""The node core in a random walk through everything that can happen."""

from __future__ import annotations

import random

import pytest
from corenode import ANNA, BERT, HOLDER, MAP, REDUCE, Answer, Node, node, ready, spec

from dispy.model import BlobRef, ComputationId, JobSpec, ProcessId
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


class World:
    """Fake workers, fork servers and schedulers around a core, driven by one seeded source."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.node = Node(cpus=self.random.randint(1, 4))
        self.node.core.zombie_interval = 60.0
        self.todo: list[ev.Event] = []
        self.workers: dict[int, list[int]] = {}
        self.claimed: dict[int, int] = {}
        self.job = 0
        self.sent: set[tuple[int, int]] = set()
        self.ended: dict[tuple[int, int], int] = {}
        self.acked = 0
        self.exited = False
        self.disk: set[tuple[bytes, int]] = set()
        self.links: set[ProcessId] = set()

    def perform(self, effects: Effects) -> None:
        for action in effects.actions:
            self.act(action)
        for send in effects.sends:
            assert send.peer in self.links
            self.hear(send.message)

    def hear(self, message: msg.AnyMessage) -> None:
        if isinstance(message, msg.JobsDone):
            self.acked = max(self.acked, message.sequence)
            for each in message.jobs:
                key = (each.job, each.attempt)
                assert key in self.sent
                assert self.ended.setdefault(key, message.sequence) == message.sequence, "ended twice"
        elif isinstance(message, msg.JobsRecalled):
            for held in message.jobs:
                key = (held.job, held.attempt)
                assert key not in self.ended, "recalled after its end"
                self.ended[key] = -1

    def act(self, action: do.Action) -> None:
        match action:
            case do.PrepareComputation():
                self.todo.append(self.tried(ev.ComputationPrepared(action.computation.id)))
            case do.StartForkServer():
                self.todo.append(self.tried(ev.ForkServerStarted(action.computation)))
            case do.CleanComputation():
                self.todo.append(ev.ComputationCleaned(action.computation))
            case do.ForkWorker():
                self.workers[action.worker] = []
                self.claimed[action.worker] = 0
                self.todo.append(ev.WorkerForked(action.worker))
            case do.FeedWorker():
                assert [sequence for sequence, _ in action.jobs]
                self.workers[action.worker] += [sequence for sequence, _ in action.jobs]
            case do.RecallFromWorker():
                self.todo.append(self.recall(action))
            case do.RetireWorker():
                assert not self.workers.pop(action.worker)
                self.todo.append(ev.WorkerDied(action.worker, 0, "retired"))
            case do.FetchArguments():
                failed = self.random.random() < 0.2
                name = action.blob.name
                self.todo.append(ev.ArgumentsFailed(name, "x") if failed else ev.ArgumentsFetched(name, 9))
            case do.HangUp():
                self.links.discard(action.peer)
            case do.SpoolBatch():
                assert (action.lease, action.message.sequence) not in self.disk
                if self.random.random() < 0.2:
                    self.todo.append(ev.SpoolFailed(action.lease, [action.message.sequence]))
                else:
                    self.disk.add((action.lease, action.message.sequence))
                    self.todo.append(ev.BatchesSpooled(action.lease, [action.message.sequence]))
            case do.UnspoolBatches():
                self.disk -= {(action.lease, number) for number in action.sequences}
            case do.Exit():
                self.exited = True

    def tried(self, success: ev.ComputationPrepared | ev.ForkServerStarted) -> ev.Event:
        if self.random.random() < 0.1:
            return ev.ComputationFailed(success.computation, "no")
        return success

    def recall(self, action: do.RecallFromWorker) -> ev.Event:
        jobs = self.workers.get(action.worker, [])
        first = min(jobs[0] + 1, action.before) if jobs else action.before
        self.workers[action.worker] = [each for each in jobs if each < first or each >= action.before]
        return ev.WorkerRecalled(action.worker, first, action.before)

    def step(self) -> None:
        choice = self.random.random()
        if self.todo and choice < 0.4:
            event = self.todo.pop(self.random.randrange(len(self.todo)))
            self.perform(self.node.handle(event))
        elif choice < 0.65:
            self.work()
        elif choice < 0.92:
            self.speak()
        elif choice < 0.94:
            self.own()
        else:
            self.perform(self.node.wait(self.random.choice([0.001, 0.05, 1, 7, 90])))

    def work(self) -> None:
        busy = [worker for worker, jobs in self.workers.items() if jobs]
        if not busy:
            return
        worker = self.random.choice(busy)
        jobs = self.workers[worker]
        if self.random.random() < 0.1:
            del self.workers[worker]
            self.perform(self.node.handle(ev.WorkerDied(worker, self.random.choice([0, jobs[0]]), "died")))
            return
        count = self.random.randint(1, len(jobs))
        took = self.random.choice([0.00001, 0.001, 1])
        answers = [Answer(number, ended_at=50 + took) for number in jobs[:count]]
        del jobs[:count]
        self.perform(self.node.handle(ev.WorkerAnswered(worker, answers)))

    def own(self) -> None:
        """What the owner of the node may do at any time."""
        cpus = self.random.choice([0, 1, 2, 4])
        events = [ev.OfferChanged(cpus, "" if cpus else "x"), ev.EndAsked("x"), ev.ReleaseAsked()]
        self.perform(self.node.handle(self.random.choice(events)))

    def speak(self) -> None:
        peer, token = self.random.choice([(ANNA, b"A"), (BERT, b"B")])
        if peer not in self.links:
            self.links.add(peer)
            self.perform(self.node.handle(ev.LinkOpened(peer)))
            if self.random.random() < 0.2:
                token = self.random.choice([b"A", b"B"])
                claim = msg.ClaimResults(token, terminate=self.random.random() < 0.5)
                self.perform(self.node.said(claim, peer=peer))
            else:
                self.perform(self.node.said(msg.AskLease(token, HOLDER), peer=peer))
            return
        key = self.random.choice([MAP, REDUCE])
        choice = self.random.random()
        if choice < 0.04:
            self.links.discard(peer)
            self.perform(self.node.handle(ev.LinkLost(peer, goodbye=self.random.random() < 0.3)))
        elif choice < 0.06:
            self.perform(self.node.handle(ev.ForkServerDied(key, "x")))
        else:
            message, payload = self.message(key, choice)
            self.perform(self.node.said(message, payload, peer))

    def message(self, key: ComputationId, choice: float) -> tuple[msg.AnyMessage, bytes]:
        if choice < 0.2:
            cpus = self.random.choice([0, 0, 1, 3, 6])
            return msg.OpenComputation(spec(key), b"", cpus, oversubscribe=self.random.random() < 0.5), b""
        if choice < 0.24:
            return msg.CloseComputation(key, terminate=self.random.random() < 0.5), b""
        if choice < 0.35:
            return msg.CancelJobs([self.random.randint(max(1, self.job - 20), self.job + 1)]), b""
        if choice < 0.45:
            return msg.RecallJobs(self.random.randint(1, 9)), b""
        if choice < 0.47:
            return msg.ReleaseLease(), b""
        if choice < 0.5:
            return msg.AckResults(self.acked), b""
        jobs = []
        for _ in range(self.random.randint(1, 30)):
            self.job += 1
            self.sent.add((self.job, 1))
            large = self.random.random() < 0.1
            name = bytes([self.random.randrange(4)]) * 32
            jobs.append(JobSpec(self.job, 1, 0, BlobRef(name, 9)) if large else JobSpec(self.job, 1, 2))
        return msg.RunJobs(key, jobs), b"xx" * sum(job.blob is None for job in jobs)

    def finish(self) -> None:
        """After an order to end, the node ends by itself as soon as everybody does what is asked."""
        self.perform(self.node.handle(ev.ExitAsked(at_once=self.random.random() < 0.5)))
        for _ in range(2000):
            if self.exited:
                return
            while self.todo:
                self.perform(self.node.handle(self.todo.pop(0)))
            for worker, jobs in list(self.workers.items()):
                if jobs:
                    answers = [Answer(number) for number in jobs]
                    jobs.clear()
                    self.perform(self.node.handle(ev.WorkerAnswered(worker, answers)))
            self.perform(self.node.wait(0.1))
        raise AssertionError("the node does not end")


@pytest.mark.parametrize("seed", range(150))
def test_random_walk(seed: int) -> None:
    world = World(seed)
    for _ in range(250):
        world.step()
    world.finish()
