"""Cost of the scheduler's decisions: the real core, nodes that answer at once, no process and no socket.

Run it: python benchmarks/scheduler.py
"""

from __future__ import annotations

import gc
import time
from collections import deque

from dispy.model import ComputationId, ComputationSpec, Holder, JobDone, NodeInfo, ProcessId
from dispy.scheduler import events
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import Effects, JobsEnded
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages

CLUSTER = ComputationId("c" * 32)


def build(nodes: int, cpus: int) -> SchedulerCore:
    """A core with one cluster that is ready on all nodes."""
    core = SchedulerCore(holder=Holder("user", "host", 1, "benchmark"), token=b"t" * 32)
    core.handle(events.ClusterOpened(ComputationSpec(CLUSTER, "f", "function")), 0.0)
    for number in range(nodes):
        node = ProcessId(f"{number:032x}")
        core.handle(events.NodeJoined(node, NodeInfo(node, f"n{number}", cpus, "x", ()), "10.0.0.1"), 0.0)
        core.handle(events.NodeAllocated(CLUSTER, node, cpus), 0.0)
        core.handle(events.NodeSaid(node, messages.LeaseGranted([], [])), 0.0)
        core.handle(events.NodeSaid(node, messages.ComputationReady(CLUSTER)), 0.0)
    return core


def answers(effects: Effects, seconds: float, batch: int) -> list[events.Event]:
    """What nodes say that have run everything they were given, `batch` results in a message."""
    said: list[events.Event] = []
    for send in effects.sends:
        if not isinstance(send.message, messages.RunJobs):
            continue
        jobs = send.message.jobs
        for start in range(0, len(jobs), batch):
            done = [
                JobDone(job.job, job.attempt, 0, 1.0, 1.0 + seconds, 4, 0, 0, 0) for job in jobs[start : start + batch]
            ]
            said.append(events.NodeSaid(send.node, messages.JobsDone(0, done), [b"body"] * len(done)))
    return said


def measure(nodes: int, cpus: int, jobs: int, seconds: float, batch: int) -> None:
    """Send all jobs through and print what one costs."""
    core = build(nodes, cpus)
    records = [JobRecord(number, CLUSTER, b"x" * 40) for number in range(1, jobs + 1)]
    gc.collect()
    gc.freeze()
    todo: deque[events.Event] = deque([events.JobsSubmitted(records)])
    spent, ended, count = 0.0, 0, 0
    while todo:
        event = todo.popleft()
        start = time.perf_counter()
        effects = core.handle(event, 0.0)
        spent += time.perf_counter() - start
        count += 1
        todo.extend(answers(effects, seconds, batch))
        ended += sum(len(notice.jobs) for notice in effects.notices if isinstance(notice, JobsEnded))
    if ended != jobs:
        raise SystemExit(f"{jobs} jobs were submitted and {ended} ended")
    core.check()
    print(
        f"{nodes:5} nodes x {cpus} CPUs, {jobs:9,} jobs of {seconds:g} s, {batch:3} results a message: "
        f"{spent / jobs * 1e6:6.2f} us/job, {jobs / spent:11,.0f} decisions/s, {count:,} events"
    )


def main() -> None:
    """Small and large, short jobs and long ones."""
    for jobs in (1_000, 10_000, 100_000, 1_000_000):
        measure(1, 2, jobs, 0.00002, 128)
    measure(8, 4, 200_000, 0.00002, 128)
    measure(1, 2, 100_000, 1.0, 1)
    measure(1000, 4, 200_000, 1.0, 1)
    measure(1000, 4, 200_000, 1.0, 4)
    measure(1000, 4, 200_000, 0.00002, 64)


if __name__ == "__main__":
    main()
