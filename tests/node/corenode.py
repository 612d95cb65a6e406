"""A node's core with checks after every step, and what it says in short words, for tests by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from dispy.model import (
    BlobRef,
    ComputationId,
    ComputationSpec,
    Ending,
    FileSpec,
    HeldAttempt,
    Holder,
    JobDone,
    JobOptions,
    JobSpec,
    NodeInfo,
    ProcessId,
)
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.core import NodeCore
from dispy.node.effects import Effects, Send
from dispy.wire import messages as msg

ANNA, BERT = ProcessId("a" * 32), ProcessId("b" * 32)
MAP, REDUCE = ComputationId("1" * 32), ComputationId("2" * 32)
HOLDER = Holder("anna", "host", 1, "prog.py")
OTHER = Holder("bert", "host", 2, "prog.py")
WALL = 1000.0


@dataclass
class Answer:
    sequence: int
    ending: int = 0
    started_at: float = 50.0
    ended_at: float = 51.0
    result_size: int = 1
    stdout_size: int = 0
    stderr_size: int = 0
    error_size: int = 0
    body: bytes = b"r"


def spec(key: ComputationId = MAP) -> ComputationSpec:
    return ComputationSpec(key, "compute", "function", "cpython-3.11")


class Node:
    """A core with checks after every step."""

    def __init__(self, cpus: int = 2) -> None:
        self.info = NodeInfo(ProcessId("f" * 32), "n", cpus, "x", ("cpython-3.11",))
        self.core = NodeCore(self.info, wall_offset=WALL)
        self.now = 0.0

    def handle(self, event: ev.Event) -> Effects:
        effects = self.core.handle(event, self.now)
        self.core.check()
        return effects

    def said(self, message: msg.AnyMessage, payload: bytes = b"", peer: ProcessId = ANNA) -> Effects:
        return self.handle(ev.SchedulerSaid(peer, message, payload))

    def wait(self, seconds: float) -> Effects:
        """Let time pass; all timeouts on the way happen when they are due."""
        until = self.now + seconds
        total = Effects()
        stuck = 0
        while (due := self.core.next_deadline()) is not None and due <= until:
            stuck = stuck + 1 if due <= self.now else 0
            assert stuck < 10, "a deadline stays in the past"
            self.now = max(self.now, due)
            effects = self.core.handle_timeout(self.now)
            self.core.check()
            total.actions += effects.actions
            total.sends += effects.sends
        self.now = until
        return total

    def lease(self, peer: ProcessId = ANNA, token: bytes = b"A", holder: Holder = HOLDER) -> Effects:
        self.handle(ev.LinkOpened(peer))
        return self.said(msg.AskLease(token, holder), peer=peer)

    def open(self, key: ComputationId = MAP) -> Effects:
        self.said(msg.OpenComputation(spec(key)))
        return self.prepared(key)

    def prepared(self, key: ComputationId = MAP) -> Effects:
        """Files are here, and a fork server stands as after a first job."""
        effects = self.handle(ev.ComputationPrepared(key))
        started = self.handle(ev.ForkServerStarted(key))
        return Effects(effects.actions + started.actions, effects.sends)

    def run(self, *jobs: int, key: ComputationId = MAP) -> Effects:
        return self.said(msg.RunJobs(key, [JobSpec(job, 1, 1) for job in jobs]), b"x" * len(jobs))

    def forked(self, *workers: int) -> list[do.Action]:
        return [action for worker in workers for action in self.handle(ev.WorkerForked(worker)).actions]


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def ready() -> Node:
    """Leased to Anna, MAP is open, two workers are idle after jobs 101 and 102 of one second each."""
    node = Node()
    node.lease()
    node.open()
    node.run(101, 102)
    node.forked(1, 2)
    node.handle(ev.WorkerAnswered(1, [Answer(1)]))
    node.handle(ev.WorkerAnswered(2, [Answer(1)]))
    node.said(msg.AckResults(2))
    return node


def fed(worker: int, *sequences: int, key: ComputationId = MAP) -> do.FeedWorker:
    return do.FeedWorker(key, worker, [(sequence, memoryview(b"x")) for sequence in sequences])


def gone(sequence: int, job: int, ending: Ending = Ending.NOT_STARTED, text: bytes = b"") -> Send:
    done = JobDone(job, 1, ending, 0.0, 0.0, 0, 0, 0, len(text))
    return Send(ANNA, msg.JobsDone(sequence, [done]), [text])


def done(sequence: int, job: int) -> Send:
    return Send(ANNA, msg.JobsDone(sequence, [JobDone(job, 1, 0, 50.0, 51.0, 1, 0, 0, 0)]), [b"r"])


def recalled(*jobs: int, attempt: int = 1) -> Send:
    return Send(ANNA, msg.JobsRecalled([HeldAttempt(job, attempt) for job in jobs]))


def forks(effects: Effects) -> list[ComputationId]:
    return [action.computation for action in effects.actions if isinstance(action, do.ForkWorker)]


FILE = FileSpec("out", BlobRef(b"f" * 32, 3))


def heavy(node: Node, *jobs: int, key: Any = MAP, **wishes: Any) -> Effects:
    options = JobOptions(**wishes)
    return node.said(msg.RunJobs(key, [JobSpec(job, 1, 1, None, options) for job in jobs]), b"x" * len(jobs))


def ahead(node: Node, *jobs: int) -> Effects:
    """Jobs so short that workers are given some ahead."""
    node.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    return node.run(*jobs)
