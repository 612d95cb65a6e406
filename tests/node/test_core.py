"""The node core by value: each thing that happens and all that it causes."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from dispy.model import (
    BlobRef,
    ComputationId,
    ComputationSpec,
    Ending,
    FileSpec,
    HeldAttempt,
    Holder,
    JobDepends,
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
from dispy.settings import GRACE_TIMEOUT
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
        return self.handle(ev.ComputationPrepared(key))

    def run(self, *jobs: int, key: ComputationId = MAP) -> Effects:
        return self.said(msg.RunJobs(key, [JobSpec(job, 1, 1) for job in jobs]), b"x" * len(jobs))

    def forked(self, *workers: int) -> list[do.Action]:
        return [action for worker in workers for action in self.handle(ev.WorkerForked(worker, worker)).actions]


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


# ---- leases ----


def test_describes_itself_on_every_link(node: Node) -> None:
    assert node.handle(ev.LinkOpened(ANNA)) == Effects([], [Send(ANNA, msg.NodeDescribed(node.info))])


def test_describes_who_holds_it(node: Node) -> None:
    node.lease(holder=HOLDER)
    (send,) = node.handle(ev.LinkOpened(BERT)).sends
    assert isinstance(send.message, msg.NodeDescribed)
    holder = send.message.info.holder
    assert holder is not None
    assert holder.user == HOLDER.user


def test_describes_what_waits_for_a_holder_that_is_gone(ready: Node) -> None:
    ready.run(1, 2)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    known = ready.core.snapshot().holder
    assert known is not None
    assert not known.gone, "it may come back"
    ready.wait(GRACE_TIMEOUT)
    refused = ready.lease(BERT, b"B", OTHER).sends[-1].message
    assert isinstance(refused, msg.LeaseRefused)
    assert (refused.holder.gone, refused.holder.results, refused.holder.running) == (True, 1, 1)
    assert refused.holder.absence == (
        "that program is gone or cut off, 1 result waits for `dispy recover` there, 1 job still runs"
    )


def test_free_node_is_leased(node: Node) -> None:
    assert node.lease() == Effects([], [Send(ANNA, msg.LeaseGranted([], []))])


def test_second_scheduler_is_told_who_holds_the_node_and_called_when_it_is_free(node: Node) -> None:
    node.now = 7.0
    node.lease()
    holder = Holder("anna", "host", 1, "prog.py", since=1007.0)
    assert node.lease(BERT, b"B", OTHER) == Effects([], [Send(BERT, msg.LeaseRefused(holder))])
    assert node.said(msg.ReleaseLease()) == Effects([], [Send(BERT, msg.LeaseGranted([], []))])
    assert node.said(msg.ReleaseLease(), peer=BERT) == Effects([do.Announce()], [])


def test_whoever_leaves_the_line_is_not_called(node: Node) -> None:
    node.lease()
    node.lease(BERT, b"B", OTHER)
    node.said(msg.ReleaseLease(), peer=BERT)
    assert node.said(msg.ReleaseLease()) == Effects([do.Announce()], [])


def test_whoever_loses_the_link_leaves_the_line(node: Node) -> None:
    node.lease()
    node.lease(BERT, b"B", OTHER)
    node.handle(ev.LinkLost(BERT, goodbye=False))
    assert node.said(msg.ReleaseLease()) == Effects([do.Announce()], [])


def test_resume_reports_what_is_held_and_sends_results_again(ready: Node) -> None:
    ready.run(1, 2, 3)
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).sends == [done(3, 1)]
    assert ready.handle(ev.LinkLost(ANNA, goodbye=False)) == Effects()
    ready.now = 1.0
    ready.handle(ev.WorkerAnswered(2, [Answer(2)]))
    effects = ready.lease()
    held = [HeldAttempt(3, 1), HeldAttempt(1, 1), HeldAttempt(2, 1)]
    assert effects.sends == [Send(ANNA, msg.LeaseGranted(held, [MAP])), done(3, 1), done(4, 2)]


def test_another_process_with_the_token_continues_the_lease(ready: Node) -> None:
    ready.run(1)
    effects = ready.lease(BERT, b"A")
    assert effects.sends == [Send(BERT, msg.LeaseGranted([HeldAttempt(1, 1)], [MAP]))]
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).sends[0].peer == BERT


def test_within_grace_nothing_is_dropped_after_it_unstarted_jobs_are(ready: Node) -> None:
    ready.run(1, 2, 3)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.wait(4.9)
    assert ready.core.snapshot().queued == 1
    ready.wait(0.2)
    assert ready.core.snapshot().queued == 0
    assert ready.core.snapshot().given == 2


def test_after_grace_the_node_is_taken_once_nothing_runs(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.wait(6)
    assert isinstance(ready.lease(BERT, b"B", OTHER).sends[0].message, msg.LeaseRefused)
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])) == Effects([do.CleanComputation(MAP, True)], [])
    granted = [Send(BERT, msg.LeaseGranted([], []))]
    assert ready.handle(ev.ComputationCleaned(MAP)) == Effects([], granted)


def test_results_outlive_the_lease_and_wait_for_their_scheduler(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=True))
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert ready.handle(ev.ComputationCleaned(MAP)).actions == [do.Announce()]
    assert ready.lease().sends == [Send(ANNA, msg.LeaseGranted([HeldAttempt(1, 1)], [])), done(3, 1)]


def test_results_that_nobody_fetches_expire(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=True))
    large = BlobRef(b"n" * 32, 100_000, False)
    ready.handle(ev.WorkerAnswered(1, [Answer(2)], {2: large}))
    ready.handle(ev.ComputationCleaned(MAP))
    [spool, withdraw, unspool] = ready.wait(3601).actions
    assert isinstance(spool, do.SpoolBatch)
    assert withdraw == do.WithdrawResults([large.name])
    assert unspool == do.UnspoolBatches(spool.lease, [3])
    assert ready.core.keeper.orphans == {}


def test_an_abandoned_lease_ends_after_the_zombie_interval(ready: Node) -> None:
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.wait(3590).actions == []
    assert ready.wait(20).actions == [do.CleanComputation(MAP, True)]


def test_goodbye_gives_the_node_up_at_once(ready: Node) -> None:
    assert ready.handle(ev.LinkLost(ANNA, goodbye=True)).actions == [do.CleanComputation(MAP, True)]
    assert ready.handle(ev.ComputationCleaned(MAP)).actions == [do.Announce()]


def test_release_ends_what_runs(ready: Node) -> None:
    ready.run(1)
    assert ready.said(msg.ReleaseLease()).actions == [do.CancelInWorker(MAP, 1, 2)]


def test_numbers_of_results_go_on_from_lease_to_lease(ready: Node) -> None:
    ready.said(msg.ReleaseLease())
    ready.handle(ev.ComputationCleaned(MAP))
    ready.said(msg.AskLease(b"A", HOLDER))
    ready.open()
    ready.run(1)
    ready.forked(3)
    assert ready.handle(ev.WorkerAnswered(3, [Answer(1)])).sends == [done(3, 1)]


def test_close_of_a_refused_computation_is_answered(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    node.handle(ev.ComputationFailed(MAP, "setup failed"))
    assert node.said(msg.CloseComputation(MAP)) == Effects()
    assert node.handle(ev.ComputationCleaned(MAP)).sends == [Send(ANNA, msg.ComputationClosed(MAP))]


def test_stranger_gets_its_jobs_back(node: Node) -> None:
    node.handle(ev.LinkOpened(ANNA))
    assert node.run(1, 2).sends == [recalled(1, 2)]
    closed = [Send(ANNA, msg.ComputationClosed(MAP))]
    assert node.said(msg.CloseComputation(MAP)) == Effects([], closed)


def test_message_of_a_wrong_kind_ends_the_link(node: Node) -> None:
    node.lease()
    effects = node.said(msg.ComputationReady(MAP))
    assert effects.actions == [do.HangUp(ANNA, "a scheduler does not send ComputationReady to a node")]


# ---- computations ----


def test_computation_is_prepared_then_ready(node: Node) -> None:
    node.lease()
    effects = node.said(msg.OpenComputation(spec(), b"args"))
    assert effects == Effects([do.PrepareComputation(ANNA, spec(), b"args")], [])
    ready = [Send(ANNA, msg.ComputationReady(MAP))]
    assert node.handle(ev.ComputationPrepared(MAP)) == Effects([], ready)
    assert node.said(msg.OpenComputation(spec(), b"args")) == Effects([], ready)


def test_computation_that_fails_is_refused_and_its_jobs_go_back(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    node.run(1)
    effects = node.handle(ev.ComputationFailed(MAP, "setup failed", "trace"))
    assert effects.actions == [do.CleanComputation(MAP, False)]
    refused = msg.ComputationRefused(MAP, "setup failed", "trace", True)
    assert effects.sends == [Send(ANNA, refused), recalled(1)]
    assert node.handle(ev.ComputationCleaned(MAP)) == Effects()


def test_close_waits_for_jobs(ready: Node) -> None:
    ready.run(1)
    assert ready.said(msg.CloseComputation(MAP)) == Effects()
    assert ready.run(2).sends == [recalled(2)]
    effects = ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert effects == Effects([do.CleanComputation(MAP, True)], [done(3, 1)])
    closed = msg.ComputationClosed(MAP, "trace")
    assert ready.handle(ev.ComputationCleaned(MAP, "trace")).sends == [Send(ANNA, closed)]


def test_close_with_terminate_ends_jobs(ready: Node) -> None:
    ready.run(1, 2, 3)
    effects = ready.said(msg.CloseComputation(MAP, terminate=True))
    assert effects.actions == [do.CancelInWorker(MAP, 1, 2), do.CancelInWorker(MAP, 2, 2)]
    assert effects.sends == [gone(3, 3)]


def test_close_while_opening(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    assert node.said(msg.CloseComputation(MAP)).actions == [do.CleanComputation(MAP, False)]


def test_opened_again_while_it_closes(ready: Node) -> None:
    ready.said(msg.CloseComputation(MAP))
    assert ready.said(msg.OpenComputation(spec())) == Effects()
    effects = ready.handle(ev.ComputationCleaned(MAP))
    prepare = [do.PrepareComputation(ANNA, spec(), b"")]
    assert effects == Effects(prepare, [Send(ANNA, msg.ComputationClosed(MAP))])


def test_fork_server_is_started_again_twice_then_the_computation_refused(ready: Node) -> None:
    ready.run(1, 2, 3)
    effects = ready.handle(ev.ForkServerDied(MAP, "killed by SIGKILL"))
    assert effects.actions == [do.RestartComputation(MAP)]
    ended = [each.jobs[0] for each in (send.message for send in effects.sends) if isinstance(each, msg.JobsDone)]
    assert [(each.job, each.ending) for each in ended] == [(1, Ending.DIED), (2, Ending.DIED)]
    assert ready.handle(ev.ComputationPrepared(MAP)) == Effects([do.ForkWorker(MAP, 3)], [])
    assert ready.handle(ev.ForkServerDied(MAP, "x")).actions == [do.RestartComputation(MAP)]
    ready.handle(ev.ComputationPrepared(MAP))
    effects = ready.handle(ev.ForkServerDied(MAP, "x"))
    assert effects.actions == [do.CleanComputation(MAP, False)]
    reason = "its fork server died 3 times; last: x"
    assert effects.sends == [Send(ANNA, msg.ComputationRefused(MAP, reason, "", True)), recalled(3)]


# ---- workers and feeding ----


def test_workers_are_forked_on_demand_up_to_the_cpus(node: Node) -> None:
    node.lease()
    node.open()
    assert node.run(1).actions == [do.ForkWorker(MAP, 1)]
    assert node.run(2, 3).actions == [do.ForkWorker(MAP, 2)]
    assert node.forked(1, 2) == [fed(1, 1), fed(2, 1)]


def test_jobs_wait_until_the_computation_is_ready(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    assert node.run(1) == Effects()
    assert node.handle(ev.ComputationPrepared(MAP)).actions == [do.ForkWorker(MAP, 1)]


def test_long_jobs_are_given_one_at_a_time(ready: Node) -> None:
    assert ready.run(1, 2, 3).actions == [fed(1, 2), fed(2, 2)]
    effects = ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert effects == Effects([fed(1, 3)], [done(3, 1)])


def test_short_jobs_are_given_in_batches(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    assert ready.run(*range(1, 13)).actions == [fed(1, 2, 3, 4, 5), fed(2, 2, 3, 4, 5)]


def test_attempt_that_is_here_is_ignored(ready: Node) -> None:
    ready.run(1, 2, 3)
    assert ready.run(1, 3) == Effects()
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert ready.run(1) == Effects()


def test_newer_attempt_replaces_an_older_one(ready: Node) -> None:
    ready.run(1, 2, 3)
    newer = msg.RunJobs(MAP, [JobSpec(3, 2, 1), JobSpec(1, 2, 1)])
    assert ready.said(newer, b"yy").actions == [do.CancelInWorker(MAP, 1, 2)]
    effects = ready.handle(ev.WorkerAnswered(1, [Answer(2, Ending.INTERRUPTED)]))
    assert effects.sends == []
    assert effects.actions == [do.FeedWorker(MAP, 1, [(3, memoryview(b"y"))])]


def test_large_results_that_nobody_is_told_of_are_let_go(ready: Node) -> None:
    ready.run(1)
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 2, 1)]), b"y")
    large = BlobRef(b"n" * 32, 100_000)
    withdrawn = do.WithdrawResults([large.name])
    assert withdrawn in ready.handle(ev.WorkerAnswered(1, [Answer(2)], {2: large})).actions, "an old attempt"
    assert ready.handle(ev.WorkerAnswered(7, [Answer(2)], {2: large})).actions == [withdrawn], "an unknown worker"


def test_interim_results_that_nobody_hears_are_kept_in_bounds(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    said = [BlobRef(b"%032d" % number, 100_000) for number in range(1001)]
    for ref in said[:-1]:
        assert ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL), ref)).actions == []
    last = ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL), said[-1]))
    assert last.actions == [do.WithdrawResults([said[0].name])]


def test_only_an_offer_that_comes_back_is_announced(node: Node) -> None:
    assert node.handle(ev.OfferChanged(0, "stopped")).actions == []
    assert node.handle(ev.OfferChanged(0, "closed until 17:00")).actions == []
    assert node.handle(ev.OfferChanged(1)).actions == [do.Announce()]


def test_a_computation_that_was_to_be_opened_again_is_not_when_its_link_is_gone(ready: Node) -> None:
    ready.said(msg.CloseComputation(MAP))
    ready.said(msg.OpenComputation(spec(MAP)))
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.handle(ev.ComputationCleaned(MAP)).actions == []


def test_a_job_that_brings_files_has_its_other_wishes(ready: Node) -> None:
    options = JobOptions(gpus=0, cpus=2, depends=JobDepends((FileSpec("data", BlobRef(b"f" * 32, 3)),)))
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 1, None, options)]), b"x")
    (fed_alone,) = ready.handle(ev.FilesLent(1, 1)).actions
    assert isinstance(fed_alone, do.FeedWorker)
    assert fed_alone.extra == do.JobExtra(2, 0, ())


def test_nothing_starts_beside_a_heavy_job_that_has_all_cpus(ready: Node) -> None:
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 1, None, JobOptions(cpus=2))]), b"x")
    assert ready.run(2).actions == []
    assert [type(action) for action in ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions] == [do.FeedWorker]


def test_no_more_heavy_jobs_go_back_than_were_asked_for(ready: Node) -> None:
    heavy = [JobSpec(job, 1, 1, None, JobOptions(cpus=2)) for job in (1, 2, 3)]
    ready.said(msg.RunJobs(MAP, heavy), b"xxx")
    assert ready.said(msg.RecallJobs(1)).sends == [recalled(3)]
    assert ready.said(msg.RecallJobs(5)).sends == [recalled(2)]


def test_dead_worker_ends_its_job_and_is_replaced(ready: Node) -> None:
    ready.run(1, 2, 3)
    death = ev.WorkerDied(1, 2, "killed by SIGSEGV", b"out", b"a\nb\n", 60.0, 61.0)
    effects = ready.handle(death)
    assert effects.actions == [do.ForkWorker(MAP, 3)]
    text = b"its worker process ended: killed by SIGSEGV\nThe last lines of its stderr:\na\nb"
    expected = JobDone(1, 1, Ending.DIED, 60.0, 61.0, 0, 3, 4, len(text))
    assert effects.sends == [Send(ANNA, msg.JobsDone(3, [expected]), [b"outa\nb\n" + text])]


def test_dead_worker_gives_unstarted_jobs_back_to_the_front(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(*range(1, 13))
    ready.handle(ev.WorkerDied(1, 2, "exit code 1"))
    computation = ready.core.lease.computations[MAP]  # type: ignore[union-attr]
    assert [job.job for job in computation.queue][:4] == [2, 3, 4, 9]


def test_workers_that_are_born_dead_are_given_up(node: Node) -> None:
    node.lease()
    node.open()
    node.run(1)
    for worker in range(1, 5):
        node.handle(ev.WorkerDied(worker, 0, "exit code 1"))
        assert node.wait(1).actions == [do.ForkWorker(MAP, worker + 1)]
    effects = node.handle(ev.WorkerDied(5, 0, "exit code 1"))
    assert effects.actions == [do.CleanComputation(MAP, False)]
    reason = "5 workers in a row ended before they could run a job; last: exit code 1"
    assert effects.sends == [Send(ANNA, msg.ComputationRefused(MAP, reason, "", True)), recalled(1)]


def test_without_anything_left_for_workers_jobs_go_back_for_a_while(node: Node) -> None:
    """Unlike workers that die, this says nothing of the computation: the scheduler may ask again."""
    node.lease()
    node.open()
    node.run(1)
    cause = "no worker could be started: no memory is left"
    for worker in range(1, 3):
        assert node.handle(ev.WorkerDied(worker, 0, cause, exhausted=True)).actions == []
        assert node.wait(1).actions == [do.ForkWorker(MAP, worker + 1)]
    effects = node.handle(ev.WorkerDied(3, 0, cause, exhausted=True))
    assert effects.actions == [do.CleanComputation(MAP, False)]
    assert effects.sends == [Send(ANNA, msg.ComputationRefused(MAP, cause, "", False)), recalled(1)]


def test_without_anything_left_for_another_worker_those_that_are_here_go_on(ready: Node) -> None:
    computation = ready.core.lease.computations[MAP]  # type: ignore[union-attr]
    ready.run(1, 2, 3)
    ready.handle(ev.WorkerDied(1, 1, "killed by SIGKILL"))
    for worker in range(3, 8):
        effects = ready.handle(ev.WorkerDied(worker, 0, "nothing is left", exhausted=True))
        assert not effects.sends
        assert ready.wait(1).actions == [do.ForkWorker(MAP, worker + 1)]
    assert computation.exhausted == 5
    ready.handle(ev.WorkerForked(8, 800))
    ready.handle(ev.WorkerDied(8, 0, "exit code 1"))
    assert 2 in computation.workers


def test_stalled_worker_gives_back_for_an_idle_one(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3, 4, 5, 6)
    answers = [Answer(number, ended_at=50.001) for number in (2, 3, 4)]
    ready.handle(ev.WorkerAnswered(2, answers))
    assert ready.wait(0.01).actions == [do.RecallFromWorker(MAP, 1, 5)]
    assert ready.handle(ev.WorkerRecalled(1, 3, 5)).actions == [fed(2, 5, 6)]


def test_idle_workers_make_room_for_another_computation(ready: Node) -> None:
    ready.open(REDUCE)
    assert ready.run(1, key=REDUCE).actions == [do.RetireWorker(MAP, 1)]
    assert ready.handle(ev.WorkerDied(1, 0, "exit code 0")).actions == [do.ForkWorker(REDUCE, 3)]


def test_starved_computation_takes_a_cpu_after_its_job(ready: Node) -> None:
    ready.open(REDUCE)
    ready.run(1, 2, 3, 4)
    assert ready.run(5, key=REDUCE) == Effects()
    assert ready.wait(0.2).actions == [do.RecallFromWorker(MAP, 1, 3)]
    ready.handle(ev.WorkerRecalled(1, 3, 3))
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == [do.RetireWorker(MAP, 1)]


# ---- arguments in blobs ----

BLOB = BlobRef(b"h" * 32, 1 << 20)


def large(node: Node, *jobs: int) -> Effects:
    return node.said(msg.RunJobs(MAP, [JobSpec(job, 1, 0, BLOB) for job in jobs]))


def test_shared_arguments_are_fetched_once_and_forgotten_after_the_last_job(ready: Node) -> None:
    assert large(ready, 1, 2) == Effects([do.FetchArguments(ANNA, BLOB)], [])
    effects = ready.handle(ev.ArgumentsFetched(BLOB.name, 77))
    assert effects.actions == [do.FeedWorker(MAP, 1, [(2, 77)]), do.FeedWorker(MAP, 2, [(2, 77)])]
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == []
    forget = [do.ForgetArguments(BLOB.name)]
    assert ready.handle(ev.WorkerAnswered(2, [Answer(2)])).actions == forget


def test_arguments_that_cannot_be_fetched_end_the_job(ready: Node) -> None:
    large(ready, 1)
    effects = ready.handle(ev.ArgumentsFailed(BLOB.name, "gone"))
    text = b"its arguments did not reach the node: gone"
    assert effects == Effects([do.ForgetArguments(BLOB.name)], [gone(3, 1, Ending.DIED, text)])


def test_arguments_that_come_too_late_are_forgotten(ready: Node) -> None:
    large(ready, 1)
    effects = ready.said(msg.CancelJobs([1]))
    assert effects == Effects([do.ForgetArguments(BLOB.name)], [gone(3, 1)])
    effects = ready.handle(ev.ArgumentsFetched(BLOB.name, 77))
    assert effects == Effects([do.ForgetArguments(BLOB.name)], [])


def test_a_new_link_fetches_again(ready: Node) -> None:
    large(ready, 1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.lease().actions == [do.FetchArguments(ANNA, BLOB)]


def test_batch_with_a_wrong_length_ends_the_link(ready: Node) -> None:
    effects = ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 5)]), b"xxx")
    assert effects.actions == [do.HangUp(ANNA, "the arguments of a batch are not as long as it says")]


# ---- cancel ----


def test_cancel_of_a_queued_job(ready: Node) -> None:
    ready.run(1, 2, 3)
    assert ready.said(msg.CancelJobs([3, 99])) == Effects([], [gone(3, 3)])
    assert ready.said(msg.CancelJobs([3])) == Effects()


def test_cancel_of_a_running_job_escalates(ready: Node) -> None:
    ready.run(1)
    assert ready.said(msg.CancelJobs([1])).actions == [do.CancelInWorker(MAP, 1, 2)]
    interrupts = ready.wait(5.95).actions
    assert interrupts == [do.CancelInWorker(MAP, 1, 2)] * len(interrupts)
    assert 55 < len(interrupts) < 62
    assert ready.wait(0.1).actions[-1] == do.SignalWorker(MAP, 1, 2, signal.SIGTERM)
    assert ready.wait(1.8).actions == []
    assert ready.wait(0.2).actions[0] == do.SignalWorker(MAP, 1, 2, signal.SIGKILL)
    effects = ready.handle(ev.WorkerDied(1, 2, "killed by SIGKILL"))
    message = effects.sends[0].message
    assert isinstance(message, msg.JobsDone)
    assert message.jobs[0].ending == Ending.INTERRUPTED
    ready.said(msg.AckResults(3))
    assert ready.wait(2) == Effects()
    assert ready.core.next_deadline() is None


def test_cancel_that_comes_too_late_changes_nothing(ready: Node) -> None:
    ready.run(1)
    ready.said(msg.CancelJobs([1]))
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).sends == [done(3, 1)]
    ready.said(msg.AckResults(3))
    assert ready.wait(2) == Effects()
    assert ready.core.next_deadline() is None


def test_cancel_of_a_job_that_lies_ready_in_a_worker(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3, 4)
    assert ready.said(msg.CancelJobs([2])).actions == [do.RecallFromWorker(MAP, 1, 4)]
    effects = ready.handle(ev.WorkerRecalled(1, 3, 4))
    assert effects.sends == [gone(3, 2)]


def test_cancel_of_a_job_that_the_worker_began_meanwhile(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3, 4)
    ready.said(msg.CancelJobs([2]))
    assert ready.handle(ev.WorkerRecalled(1, 4, 4)) == Effects()
    actions = ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions
    assert do.CancelInWorker(MAP, 1, 3) in actions


# ---- recall ----


def test_recall_takes_the_last_of_the_queue(ready: Node) -> None:
    ready.run(1, 2, 3, 4, 5)
    assert ready.said(msg.RecallJobs(2)).sends == [recalled(5, 4)]
    assert ready.said(msg.RecallJobs(9)).sends == [recalled(3)]
    assert ready.said(msg.RecallJobs(9)).sends == [recalled()]


def test_recall_goes_on_to_the_workers(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(*range(1, 10))
    effects = ready.said(msg.RecallJobs(3))
    assert effects.actions == [do.RecallFromWorker(MAP, 1, 6), do.RecallFromWorker(MAP, 2, 6)]
    assert effects.sends == []
    assert ready.handle(ev.WorkerRecalled(1, 3, 6)).sends == []
    assert ready.handle(ev.WorkerRecalled(2, 3, 6)).sends == [recalled(9, 3, 4)]


def test_recall_is_answered_although_the_computation_is_cleaned_away(ready: Node) -> None:
    """The worker has run all that it had before it heard of the recall, and was ended with its computation."""
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3)
    assert ready.said(msg.RecallJobs(3)).actions == [do.RecallFromWorker(MAP, 1, 4)]
    ready.handle(ev.WorkerAnswered(1, [Answer(2), Answer(3)]))
    ready.handle(ev.WorkerAnswered(2, [Answer(2)]))
    ready.said(msg.CloseComputation(MAP))
    assert recalled() in ready.handle(ev.ComputationCleaned(MAP)).sends


def test_recall_is_answered_although_the_worker_dies(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3)
    ready.said(msg.RecallJobs(3))
    sends = ready.handle(ev.WorkerDied(1, 2, "exit code 1")).sends
    assert recalled() in sends


# ---- exit ----


def test_orderly_exit_of_a_free_node(node: Node) -> None:
    node.handle(ev.LinkOpened(ANNA))
    assert node.handle(ev.ExitAsked(at_once=False)).actions == [do.Exit("it was told to end")]
    assert node.run(1) == Effects()
    assert node.core.next_deadline() is None


def test_orderly_exit_finishes_what_is_here(ready: Node) -> None:
    ready.lease(BERT, b"B", OTHER)
    ready.run(1, 2, 3)
    effects = ready.handle(ev.ExitAsked(at_once=False))
    assert effects.actions == [do.HangUp(BERT, "the node is ending")]
    assert effects.sends[0].message.info.cpus == 0  # type: ignore[union-attr]
    assert ready.run(4).sends == [recalled(4)]
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == [fed(1, 3)]
    ready.handle(ev.WorkerAnswered(2, [Answer(2)]))
    assert ready.handle(ev.WorkerAnswered(1, [Answer(3)])).actions == [do.CleanComputation(MAP, True)]
    assert ready.handle(ev.ComputationCleaned(MAP)).actions == []
    effects = ready.said(msg.AckResults(9))
    assert effects.actions == [do.Exit("it was told to end and its jobs are done")]


def test_orderly_exit_does_not_wait_for_ever_for_acknowledgements(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.ExitAsked(at_once=False))
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    ready.handle(ev.ComputationCleaned(MAP))
    [spool, exit] = ready.wait(6).actions
    assert isinstance(spool, do.SpoolBatch)
    assert exit == do.Exit("it was told to end and its jobs are done")


def test_exit_now_gives_back_what_had_not_started(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(*range(1, 10))
    effects = ready.handle(ev.ExitAsked(at_once=True))
    assert effects.sends == [recalled(9)]
    assert ready.handle(ev.WorkerRecalled(1, 3, 6)).sends == [recalled(2, 3, 4)]
    effects = ready.handle(ev.WorkerRecalled(2, 3, 6))
    assert effects == Effects([do.Exit("it was told to end now")], [recalled(6, 7, 8)])


def test_exit_now_does_not_wait_for_silent_workers(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3)
    ready.handle(ev.ExitAsked(at_once=True))
    assert ready.wait(0.4).actions == [do.Exit("it was told to end now")]


# ---- what the owner of the node does ----


def described(node: Node, cpus: int, closed: str = "") -> Send:
    holder = Holder("anna", "host", 1, "prog.py", WALL)
    return Send(ANNA, msg.NodeDescribed(replace(node.info, holder=holder, cpus=cpus, closed=closed)))


def test_without_an_offer_what_has_not_started_goes_back_and_workers_end(ready: Node) -> None:
    ready.run(1, 2, 3)
    effects = ready.handle(ev.OfferChanged(0, "stopped"))
    assert effects.sends == [described(ready, 0, "stopped"), recalled(3)]
    assert ready.handle(ev.OfferChanged(0, "stopped")) == Effects()
    assert ready.run(4).sends == [recalled(4)]
    assert ready.handle(ev.WorkerRecalled(1, 3, 3)).actions == []
    effects = ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert effects == Effects([do.RetireWorker(MAP, 1)], [done(3, 1)])


def test_an_offer_that_comes_back_is_used_again(ready: Node) -> None:
    ready.handle(ev.OfferChanged(0, "stopped"))
    ready.handle(ev.WorkerDied(1, 0, "retired", expected=True))
    ready.handle(ev.WorkerDied(2, 0, "retired", expected=True))
    assert ready.handle(ev.OfferChanged(1)).sends == [described(ready, 1)]
    assert ready.run(1, 2).actions == [do.ForkWorker(MAP, 3)]


def test_a_heavy_job_keeps_its_cpus_when_fewer_are_offered(ready: Node) -> None:
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 1, None, JobOptions(cpus=2))]), b"x")
    ready.handle(ev.OfferChanged(1))
    ready.handle(ev.OfferChanged(0, "stopped"))


def test_fewer_cpus_end_the_workers_beyond(ready: Node) -> None:
    ready.run(1)
    assert ready.handle(ev.OfferChanged(1)).actions == [do.RetireWorker(MAP, 2)]
    ready.handle(ev.WorkerDied(2, 0, "retired", expected=True))
    assert ready.run(2).actions == []
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == [fed(1, 3)]


def forks(effects: Effects) -> list[ComputationId]:
    return [action.computation for action in effects.actions if isinstance(action, do.ForkWorker)]


def test_a_computation_may_oversubscribe_and_others_may_not(node: Node) -> None:
    node.lease()
    node.open()
    node.said(msg.OpenComputation(spec(REDUCE), b"", 4, oversubscribe=True))
    node.handle(ev.ComputationPrepared(REDUCE))
    assert forks(node.run(1, 2, 3)) == [MAP, MAP], "two CPUs are there"
    assert forks(node.run(11, 12, 13, 14, key=REDUCE)) == [REDUCE, REDUCE], "four in all"
    node.forked(1, 2, 3, 4)
    node.handle(ev.WorkerAnswered(1, [Answer(1)]))
    effects = node.handle(ev.WorkerAnswered(2, [Answer(1)]))
    assert effects.actions == [do.RetireWorker(MAP, 2)], "an idle one makes room"
    effects = node.handle(ev.WorkerDied(2, 0, "retired", expected=True))
    assert forks(effects) == [REDUCE]


def test_a_computation_that_oversubscribes_no_more_lets_workers_go(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 4, oversubscribe=True))
    node.handle(ev.ComputationPrepared(MAP))
    assert forks(node.run(1, 2, 3, 4, 5)) == [MAP] * 4
    node.forked(1, 2, 3, 4)
    for worker in (1, 2, 3):
        node.handle(ev.WorkerAnswered(worker, [Answer(1)]))
    effects = node.said(msg.OpenComputation(spec(), b"", 0))
    retired = [action.worker for action in effects.actions if isinstance(action, do.RetireWorker)]
    assert len(retired) == 2
    assert 4 not in retired, "it is busy"


def test_without_permission_a_computation_gets_what_the_node_offers(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 4))
    node.handle(ev.ComputationPrepared(MAP))
    assert forks(node.run(1, 2, 3)) == [MAP, MAP]


def test_a_free_node_is_announced_when_it_offers_something_again(node: Node) -> None:
    assert node.handle(ev.OfferChanged(0, "stopped")).actions == []
    assert node.handle(ev.OfferChanged(2)).actions == [do.Announce()]
    assert node.handle(ev.OfferChanged(1)).actions == []


def test_the_end_of_the_service_window_ends_the_lease_and_the_node_stays(ready: Node) -> None:
    ready.run(1, 2)
    ready.handle(ev.OfferChanged(0, "closed until 17:00"))
    effects = ready.handle(ev.EndAsked("its service window is over"))
    assert do.HangUp(ANNA, "its service window is over") in effects.actions
    assert do.CancelInWorker(MAP, 1, 2) in effects.actions
    ready.handle(ev.WorkerAnswered(1, [Answer(2, Ending.INTERRUPTED)]))
    ready.handle(ev.WorkerAnswered(2, [Answer(2, Ending.INTERRUPTED)]))
    assert ready.handle(ev.ComputationCleaned(MAP)) == Effects()
    assert ready.core.lease is None
    assert not ready.core.ended


def test_a_holder_that_is_gone_is_released_on_demand(ready: Node) -> None:
    assert ready.handle(ev.ReleaseAsked()) == Effects()
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.handle(ev.ReleaseAsked()) == Effects()
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions == [do.CleanComputation(MAP, True)]
    assert ready.handle(ev.ComputationCleaned(MAP)).actions == [do.Announce()]


def test_a_node_that_serves_two_programs_ends_after_the_second(node: Node) -> None:
    node.core.serve = 2
    node.lease()
    node.handle(ev.LinkOpened(BERT))
    node.said(msg.AskLease(b"B", OTHER), peer=BERT)
    node.said(msg.ReleaseLease())
    assert node.said(msg.ReleaseLease(), peer=BERT).actions == [do.Exit("it has served 2 programs")]


def test_cleanup_may_end_the_node(ready: Node) -> None:
    ready.said(msg.CloseComputation(MAP))
    effects = ready.handle(ev.ComputationCleaned(MAP, shutdown=True))
    assert effects.actions == [do.Exit("it was told to end and its jobs are done")]


# ---- a walk through everything ----


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
                self.todo.append(self.prepared(action.computation.id))
            case do.RestartComputation():
                self.todo.append(self.prepared(action.computation))
            case do.CleanComputation():
                self.todo.append(ev.ComputationCleaned(action.computation))
            case do.ForkWorker():
                self.workers[action.worker] = []
                self.claimed[action.worker] = 0
                self.todo.append(ev.WorkerForked(action.worker, action.worker))
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

    def prepared(self, key: ComputationId) -> ev.Event:
        if self.random.random() < 0.1:
            return ev.ComputationFailed(key, "no")
        return ev.ComputationPrepared(key)

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


def test_snapshot_tells_what_people_may_see(ready: Node) -> None:
    ready.run(1, 2, 3)
    shown: Any = ready.core.snapshot()
    assert (shown.queued, shown.given, shown.workers, shown.waiting) == (1, 2, 2, 0)
    assert shown.computations == [(MAP, "compute", "ready")]


# What running jobs say


def test_an_interim_result_waits_like_a_result_and_ends_nothing(ready: Node) -> None:
    ready.run(1)
    blob = BlobRef(b"b" * 32, 9, False)
    small = Answer(2, Ending.PROVISIONAL, 0.0, 60.0, 2, body=b"so")
    effects = ready.handle(ev.WorkerSpoke(1, small))
    done = JobDone(1, 1, Ending.PROVISIONAL, 0.0, 60.0, 2, 0, 0, 0)
    assert effects == Effects([], [Send(ANNA, msg.JobsDone(3, [done]), [b"so"])])
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    large = Answer(2, Ending.PROVISIONAL, 0.0, 61.0, 9, body=b"")
    assert ready.handle(ev.WorkerSpoke(1, large, blob)) == Effects()
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    sends = ready.lease().sends
    assert sends[0].message == msg.LeaseGranted([HeldAttempt(1, 1)], [MAP])
    batches: list[Any] = [send.message for send in sends[1:]]
    assert [(batch.sequence, batch.jobs[0].ending) for batch in batches] == [(3, 7), (4, 7), (5, 0)]
    assert ready.said(msg.AckResults(4)).actions == [do.WithdrawResults([blob.name])]
    # the end is not acknowledged: the same attempt is not run again
    assert not ready.run(1).actions


def test_what_an_unknown_job_says_is_dropped(ready: Node) -> None:
    blob = BlobRef(b"b" * 32, 9, False)
    late = ready.handle(ev.WorkerSpoke(1, Answer(7, Ending.PROVISIONAL, body=b""), blob))
    assert late == Effects([do.WithdrawResults([blob.name])], [])


def running(node: Node) -> None:
    """Job 1 runs at worker 1; jobs 2 and 3 are behind it or at worker 2."""
    node.run(1, 2, 3)


def test_the_jobs_that_run_and_their_output(ready: Node) -> None:
    running(ready)
    listed: Any = ready.said(msg.ListJobs(MAP)).sends[0].message
    assert {held.job for held in listed.jobs} == {1, 2}
    assert ready.said(msg.ListJobs(REDUCE)).sends == [Send(ANNA, msg.JobsListed(REDUCE, []))]
    assert ready.said(msg.TailJob(1)).actions == [do.ReadTail(ANNA, MAP, 1, 2, 1)]
    assert ready.handle(ev.TailRead(ANNA, 1, b"out", b"e")).sends == [Send(ANNA, msg.JobTail(1, 3, 1), [b"out", b"e"])]
    for job in (3, 77):
        assert ready.said(msg.TailJob(job)) == Effects([], [Send(ANNA, msg.JobTail(job))])


def test_a_file_for_a_computation(ready: Node) -> None:
    file = FileSpec("a/b", BlobRef(b"f" * 32, 3))
    assert ready.said(msg.PlaceFile(MAP, file)).actions == [do.StoreFile(MAP, file)]
    assert ready.handle(ev.FileStored(MAP, "a/b", "full")).sends == [Send(ANNA, msg.FilePlaced(MAP, "a/b", "full"))]
    refused: Any = ready.said(msg.PlaceFile(REDUCE, file)).sends[0].message
    assert "not set up" in refused.reason


def test_a_file_of_a_job_is_offered_until_it_is_taken(ready: Node) -> None:
    running(ready)
    file = FileSpec("out", BlobRef(b"f" * 32, 3))
    other = FileSpec("other", file.blob)
    offer = msg.FileOffered(1, 1, file)
    assert ready.handle(ev.FileSent(7, 1, 2, file)).sends == [Send(ANNA, offer)]
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.handle(ev.FileSent(8, 1, 2, other)) == Effects()
    again = ready.lease().sends
    assert [send.message for send in again if isinstance(send.message, msg.FileOffered)] == [
        offer,
        msg.FileOffered(1, 1, other),
    ]
    assert ready.said(msg.FileTaken(file.blob.name, "", 1, "out")).actions == [do.AnswerParcel(7, True)]
    assert ready.said(msg.FileTaken(file.blob.name, "", 1, "out")).actions == []
    assert ready.said(msg.FileTaken(file.blob.name, "full", 1, "other")).actions == [do.AnswerParcel(8, False)]
    ready.handle(ev.FileSent(9, 1, 2, file))
    ready.handle(ev.ParcelDropped(9))
    assert ready.said(msg.FileTaken(file.blob.name, "", 1, "out")).actions == []
    assert ready.handle(ev.FileSent(10, 1, 99, file)).actions == [do.AnswerParcel(10, False)]


def bringing(*jobs: int, blob: BlobRef | None = None) -> msg.RunJobs:
    """Jobs that bring a file each."""
    options = JobOptions(depends=JobDepends((FileSpec("data", BlobRef(b"f" * 32, 3)),)))
    return msg.RunJobs(MAP, [JobSpec(job, 1, 0 if blob else 1, blob, options) for job in jobs])


def lend(job: int) -> do.LendFiles:
    return do.LendFiles(MAP, job, 1, (FileSpec("data", BlobRef(b"f" * 32, 3)),))


def test_a_job_waits_for_the_files_that_it_brings(ready: Node) -> None:
    assert ready.said(bringing(1, 2), b"xx").actions == [lend(1), lend(2)]
    assert ready.handle(ev.FilesLent(1, 1)).actions == [fed(1, 2)]
    failed = ready.handle(ev.FilesLent(2, 1, "the disk is full"))
    assert failed.actions == [do.ReturnFiles(MAP, 2, 1)]
    done: Any = failed.sends[0]
    assert done.message.jobs[0].ending == Ending.DIED
    assert done.payload[0].endswith(b"the disk is full")
    assert do.ReturnFiles(MAP, 1, 1) in ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions
    assert ready.handle(ev.FilesLent(1, 1)) == Effects()


def test_files_and_large_arguments_come_in_any_order(ready: Node) -> None:
    blob = BlobRef(b"a" * 32, 70_000, False)
    assert ready.said(bringing(1, blob=blob)).actions == [lend(1), do.FetchArguments(ANNA, blob)]
    assert ready.handle(ev.ArgumentsFetched(blob.name, 9)).actions == []
    assert ready.said(bringing(2, blob=blob)).actions == [lend(2)]
    assert [type(action) for action in ready.handle(ev.FilesLent(2, 1)).actions] == [do.FeedWorker]
    assert [type(action) for action in ready.handle(ev.FilesLent(1, 1)).actions] == [do.FeedWorker]


def test_files_of_a_job_that_does_not_run_go_back(ready: Node) -> None:
    ready.said(bringing(1, 2), b"xx")
    assert ready.said(msg.CancelJobs([1])).actions == [do.ReturnFiles(MAP, 1, 1)]
    recalled = ready.said(msg.RecallJobs(1))
    assert recalled.actions == [do.ReturnFiles(MAP, 2, 1)]
    assert recalled.sends == [Send(ANNA, msg.JobsRecalled([HeldAttempt(2, 1)]))]
