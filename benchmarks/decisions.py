"""Decisions of a scheduler that many users share: the real core, nodes that answer at once, no process and no socket.

Each user has a cluster on every node and more work than there are CPUs; nodes answer each job (or several) in a message
of their own, so that every decision is one about a CPU that has just become free.

    python benchmarks/decisions.py
    python benchmarks/decisions.py --nodes 1000 --cpus 4 --users 50 --policy fair
    python benchmarks/decisions.py --profile           # where the time goes
    python benchmarks/decisions.py --quick             # tiny amounts: whether it works
    python benchmarks/decisions.py --json              # figures for a program

Time is that of the processor, so that other programs on the machine disturb little.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import sys
import time
from collections import deque

from running import NO_FIGURES

from dispy.model import ComputationId, ComputationSpec, Holder, JobDone, NodeInfo, ProcessId
from dispy.scheduler import events
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import Effects, JobsEnded
from dispy.scheduler.fairness import Policy
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages

AT_ONCE = 200
"""Events that are timed together."""
QUICK = {"nodes": 10, "users": 5, "jobs": 200, "queued": 200}
"""Amounts that only show that it works."""


def build(nodes: int, cpus: int, users: int, policy: Policy) -> SchedulerCore:
    """A core with one cluster of each user that is ready on all nodes."""
    core = SchedulerCore(holder=Holder("user", "host", 1, "benchmark"), token=b"t" * 32, policy=policy)
    clusters = [ComputationId(f"{number:032x}") for number in range(users)]
    for number, cluster in enumerate(clusters):
        core.handle(events.ClusterOpened(ComputationSpec(cluster, "f", "function"), user=f"u{number}@host"), 0.0)
    for number in range(nodes):
        node = ProcessId(f"{number:032x}")
        core.handle(events.NodeJoined(node, NodeInfo(node, f"n{number}", cpus, "x", ()), "10.0.0.1"), 0.0)
        for cluster in clusters:
            core.handle(events.NodeAllocated(cluster, node, cpus), 0.0)
        core.handle(events.NodeSaid(node, messages.LeaseGranted([], [])), 0.0)
        for cluster in clusters:
            core.handle(events.NodeSaid(node, messages.ComputationReady(cluster)), 0.0)
    return core


def answers(effects: Effects, seconds: float, batch: int) -> list[events.Event]:
    """What nodes say that have run everything they were given."""
    said: list[events.Event] = []
    for send in effects.sends:
        if isinstance(send.message, messages.RunJobs):
            jobs = send.message.jobs
            for start in range(0, len(jobs), batch):
                part = jobs[start : start + batch]
                done = [JobDone(job.job, job.attempt, 0, 1.0, 1.0 + seconds, 4, 0, 0, 0) for job in part]
                said.append(events.NodeSaid(send.node, messages.JobsDone(0, done), [b"body"] * len(done)))
    return said


def measure(
    nodes: int, cpus: int, users: int, policy: Policy, seconds: float, jobs: int, queued: int, batch: int, profile: bool
) -> dict[str, float | int | str]:
    """Let `jobs` jobs through while `queued` wait, and say what one costs."""
    core = build(nodes, cpus, users, policy)
    records = [
        JobRecord(number, ComputationId(f"{number % users:032x}"), b"x" * 40) for number in range(1, jobs + queued + 1)
    ]
    todo: deque[events.Event] = deque([events.JobsSubmitted(records)])
    gc.collect()
    gc.freeze()
    # the first jobs of all CPUs are no decisions between users: nobody waits yet
    now, spent, ended, handled, skip = 0.0, 0.0, 0, 0, nodes * cpus
    profiler = cProfile.Profile() if profile else None
    while ended < jobs and todo:
        # reading the clock may cost as much as a decision: once for many
        events_now = [todo.popleft() for _ in range(min(AT_ONCE, len(todo)))]
        counts = ended >= skip
        if profiler is not None and counts:
            profiler.enable()
        caused = []
        start = time.process_time()
        for event in events_now:
            now += seconds / (nodes * cpus)
            caused.append(core.handle(event, now))
        took = time.process_time() - start
        if profiler is not None:
            profiler.disable()
        over = 0
        for effects in caused:
            todo.extend(answers(effects, seconds, batch))
            over += sum(len(notice.jobs) for notice in effects.notices if isinstance(notice, JobsEnded))
        ended += over
        if counts:
            spent, handled = spent + took, handled + over
    if profiler is not None:
        profiler.print_stats("tottime")
    return {
        "nodes": nodes,
        "cpus": cpus,
        "users": users,
        "policy": str(policy),
        "seconds": seconds,
        "queued": queued,
        "results_a_message": batch,
        "microseconds": spent / handled * 1e6,
        "decisions_a_second": handled / spent,
    }


def main() -> None:
    """One line for each policy, or for the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--cpus", type=int, default=4)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.04, help="what a job takes")
    parser.add_argument("--jobs", type=int, default=40_000, help="jobs that are let through")
    parser.add_argument("--queued", type=int, default=100_000, help="jobs that wait beside them")
    parser.add_argument("--batch", type=int, default=1, help="results in one message")
    parser.add_argument("--policy", action="append", choices=[str(policy) for policy in Policy])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny amounts, which only show that it works")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        vars(args).update(QUICK)
        print(NO_FIGURES, file=sys.stderr)
    figures = []
    for policy in [Policy(name) for name in args.policy or [str(policy) for policy in Policy]]:
        one = measure(
            args.nodes,
            args.cpus,
            args.users,
            policy,
            args.seconds,
            args.jobs,
            args.queued,
            args.batch,
            args.profile,
        )
        figures.append(one)
        if not args.json:
            print(
                "{nodes} nodes x {cpus} CPUs, {users} users, {queued:,} jobs of {seconds:g} s wait, "
                "{results_a_message} results a message, {policy:13}: {microseconds:6.2f} us/decision, "
                "{decisions_a_second:9,.0f} decisions/s".format(**one),
                flush=True,
            )
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
