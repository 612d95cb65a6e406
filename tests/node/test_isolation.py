"""What the core decides for computations that isolate their jobs, and for setups that fail in workers."""

from __future__ import annotations

from typing import Final

import msgspec

from dispy.model import ComputationId, ComputationSpec, Holder, JobSpec, NodeInfo, ProcessId
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.core import NodeCore
from dispy.node.replies import Reply
from dispy.wire import messages as msg

ANNA: Final = ProcessId("a" * 32)
MAP: Final = ComputationId("1" * 32)
SPEC: Final = ComputationSpec(MAP, "compute", "function", "cpython-3.11", isolate=True)


def opened(spec: ComputationSpec) -> NodeCore:
    core = NodeCore(NodeInfo(ProcessId("f" * 32), "n", 1, "x", ("cpython-3.11",)), wall_offset=1000.0)
    core.handle(ev.LinkOpened(ANNA), 0.0)
    core.handle(ev.SchedulerSaid(ANNA, msg.AskLease(b"A", Holder("anna", "pc", 1, "p")), b""), 0.0)
    core.handle(ev.SchedulerSaid(ANNA, msg.OpenComputation(spec), b""), 0.0)
    core.handle(ev.ComputationPrepared(MAP), 0.0)
    core.handle(ev.ForkServerStarted(MAP), 0.0)
    return core


def run(core: NodeCore, *jobs: int) -> list[do.Action]:
    specs = [JobSpec(job, 1, 1) for job in jobs]
    return core.handle(ev.SchedulerSaid(ANNA, msg.RunJobs(MAP, specs), b"x" * len(jobs)), 0.0).actions


def answer(core: NodeCore, worker: int) -> list[do.Action]:
    reply = Reply(1, 0, 1.0, 1.000001, 0, 0, 0, 0, b"")
    return core.handle(ev.WorkerAnswered(worker, [reply]), 0.0).actions


def test_every_isolated_job_gets_a_worker_of_its_own() -> None:
    core = opened(SPEC)
    assert run(core, 1, 2, 3) == [do.ForkWorker(MAP, 1)]
    for worker in (1, 2, 3):
        (feed,) = core.handle(ev.WorkerForked(worker), 0.0).actions
        assert isinstance(feed, do.FeedWorker)
        assert [sequence for sequence, _ in feed.jobs] == [1], "it was given more than one job"
        assert answer(core, worker) == [], "it was given another job, or replaced while it is still there"
        core.check()
        actions = core.handle(ev.WorkerDied(worker, 0, "exit code 0", expected=True), 0.0).actions
        assert actions == ([do.ForkWorker(MAP, worker + 1)] if worker < 3 else [])


def test_jobs_that_are_not_isolated_share_a_worker() -> None:
    core = opened(msgspec.structs.replace(SPEC, isolate=False))
    run(core, 1, 2)
    core.handle(ev.WorkerForked(1), 0.0)
    (feed,) = answer(core, 1)
    assert isinstance(feed, do.FeedWorker)


def test_a_setup_that_fails_in_a_worker_refuses_the_computation_before_its_jobs_go_back() -> None:
    core = opened(msgspec.structs.replace(SPEC, setup_in="worker"))
    run(core, 1)
    trace = b"Traceback (most recent call last):\nLookupError: none\n"
    effects = core.handle(ev.WorkerDied(1, 0, "exit code 120", stderr=trace, setup_failed=True), 0.0)
    refused, recalled = (send.message for send in effects.sends)
    reason = "setup failed in a worker: LookupError: none"
    assert refused == msg.ComputationRefused(MAP, reason, trace.decode(), True)
    assert isinstance(recalled, msg.JobsRecalled)
    core.check()
