"""What a decision costs: as much with a thousand nodes, fifty clusters or many queued jobs as with few. By value.

A decision is the end of one job taken in and the next job handed out. It is counted in lines of Python that are
executed for it, which no other program on the machine can change.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import pytest

from dispy.model import ComputationId, ComputationSpec, Holder, JobDone, JobOptions, NodeInfo, ProcessId
from dispy.scheduler import events
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import Effects
from dispy.scheduler.fairness import Policy
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages

CPUS = 4
SECONDS = 0.04
"""What a job takes: nothing of it is sent ahead."""
COUNTED = 400
"""Decisions of which the lines are counted."""
MOST = 1.15


class Busy:
    """A core all of whose CPUs have jobs while others wait; nodes answer each job in a message of its own."""

    def __init__(self, nodes: int, clusters: int, queued: int, policy: Policy, options: JobOptions | None) -> None:
        self.core = SchedulerCore(holder=Holder("user", "host", 1, "test"), token=b"t" * 32, policy=policy)
        self.now = 0.0
        self.said: deque[events.Event] = deque()
        ids = [ComputationId(f"{number:032x}") for number in range(clusters)]
        for number, id in enumerate(ids):
            self.handle(events.ClusterOpened(ComputationSpec(id, "f", "function"), user=f"user{number}"))
        for number in range(nodes):
            node = ProcessId(f"{number:032x}")
            info = NodeInfo(node, f"n{number}", CPUS, "x", (), tags=("tag",))
            self.handle(events.NodeJoined(node, info, "10.0.0.1"))
            for id in ids:
                self.handle(events.NodeAllocated(id, node, CPUS))
            self.handle(events.NodeSaid(node, messages.LeaseGranted([], [])))
            for id in ids:
                self.handle(events.NodeSaid(node, messages.ComputationReady(id)))
        count = nodes * CPUS + 3 * COUNTED + queued
        jobs = [JobRecord(number, ids[number % clusters], b"x", options=options) for number in range(1, count + 1)]
        self.handle(events.JobsSubmitted(jobs))

    def handle(self, event: events.Event) -> None:
        """Something happens; what nodes answer to it comes later."""
        effects = self.core.handle(event, self.now)
        self.said.extend(answers(effects))

    def step(self) -> None:
        """A job ends, another begins."""
        self.now += 1e-6
        before = len(self.said)
        self.handle(self.said.popleft())
        assert len(self.said) == before, "no CPU stays without a job"


def answers(effects: Effects) -> Iterable[events.Event]:
    """What nodes say of jobs that they were given."""
    for send in effects.sends:
        if isinstance(send.message, messages.RunJobs):
            for job in send.message.jobs:
                done = JobDone(job.job, job.attempt, 0, 1.0, 1.0 + SECONDS, 4, 0, 0, 0)
                yield events.NodeSaid(send.node, messages.JobsDone(0, [done]), [b"body"])


def submission(nodes: int, options: JobOptions) -> float:
    """Lines for each job of a submission that goes to nodes that have nothing to do."""
    busy = Busy(nodes, 1, -3 * COUNTED - nodes * CPUS, Policy.FIFO, None)
    jobs = [JobRecord(number, ComputationId("0" * 32), b"x", options=options) for number in range(1, 2 * nodes + 1)]
    lines = lines_of(lambda: busy.handle(events.JobsSubmitted(jobs)))
    assert len(busy.said) == len(jobs), "all of them have a CPU"
    return lines / len(jobs)


def lines_of(action: Callable[[], None]) -> int:
    """Lines of Python that it executes; each turn of a loop counts."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def cost(
    policy: Policy, *, nodes: int = 10, clusters: int = 1, queued: int = 0, options: JobOptions | None = None
) -> float:
    """Lines for each decision."""
    busy = Busy(nodes, clusters, queued, policy, options)
    for _ in range(COUNTED):
        busy.step()
    return lines_of(lambda: [busy.step() for _ in range(COUNTED)] and None) / COUNTED


@pytest.mark.parametrize("policy", [Policy.FIFO, Policy.FAIR])
def test_a_decision_costs_as_much_with_a_thousand_nodes_as_with_ten(policy: Policy) -> None:
    assert cost(policy, nodes=1000) <= MOST * cost(policy, nodes=10)


@pytest.mark.parametrize("policy", list(Policy))
def test_a_decision_costs_as_much_with_fifty_clusters_as_with_two(policy: Policy) -> None:
    assert cost(policy, nodes=20, clusters=50) <= MOST * cost(policy, nodes=20, clusters=2)


def test_a_decision_costs_as_much_when_many_jobs_wait_as_when_few_do() -> None:
    assert cost(Policy.FIFO, queued=20_000) <= MOST * cost(Policy.FIFO)


@pytest.mark.parametrize(
    "options",
    [JobOptions(tags=("tag",)), JobOptions(priority=1), JobOptions(cpus=2)],
    ids=["tags", "priority", "CPUs"],
)
def test_a_job_with_a_wish_costs_as_much_with_two_hundred_nodes_as_with_ten(options: JobOptions) -> None:
    assert cost(Policy.FIFO, nodes=200, options=options) <= MOST * cost(Policy.FIFO, options=options)


@pytest.mark.parametrize("options", [JobOptions(tags=("tag",)), JobOptions(cpus=2)], ids=["tags", "CPUs"])
def test_a_submitted_job_with_a_wish_costs_as_much_with_two_hundred_idle_nodes_as_with_ten(options: JobOptions) -> None:
    assert submission(200, options) <= MOST * submission(10, options)


def cost_of_an_allocation(nodes: int) -> float:
    """Lines for each answer of an owner that it uses a node, where clusters open a part of the nodes only."""
    core = SchedulerCore(holder=Holder("user", "host", 1, "test"), token=b"t" * 32, park_above=16)
    ids = [ComputationId(f"{number:032x}") for number in range(10)]
    for number, id in enumerate(ids):
        core.handle(events.ClusterOpened(ComputationSpec(id, "f", "function"), user=f"user{number}"), 0.0)
    for number in range(nodes):
        node = ProcessId(f"{number:032x}")
        core.handle(events.NodeJoined(node, NodeInfo(node, f"n{number}", 1, "x", ()), "10.0.0.1"), 0.0)
        core.handle(events.NodeAllocated(ids[0], node, 1), 0.0)
        core.handle(events.NodeSaid(node, messages.LeaseGranted([], [])), 0.0)
    answers = [events.NodeAllocated(id, node, 1) for id in ids[1:] for node in list(core.nodes)]
    count = lines_of(lambda: [core.handle(answer, 0.0) for answer in answers] and None)
    return count / len(answers)


def test_a_crowd_of_clusters_and_nodes_costs_its_scheduler_as_much_for_each_of_them_as_few_do() -> None:
    assert cost_of_an_allocation(400) <= 1.5 * cost_of_an_allocation(100)
