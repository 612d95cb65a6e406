"""The node core by value: what it does not do, and what it does at the edges."""

from __future__ import annotations

from typing import Any

import pytest
from test_core import ANNA, BERT, HOLDER, MAP, OTHER, REDUCE, Answer, Node, done, fed, forks, gone, node, ready, spec
from test_core import recalled as given_back

from dispy.model import BlobRef, ComputationSpec, Ending, FileSpec, HeldAttempt, JobDepends, JobOptions, JobSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects, Send
from dispy.node.results import INTERIM_MOST
from dispy.node.serving import lease_name
from dispy.node.verdicts import over_time
from dispy.wire import messages as msg

__all__ = ["node", "ready"]
FILE = FileSpec("out", BlobRef(b"f" * 32, 3))


def heavy(node: Node, *jobs: int, key: Any = MAP, **wishes: Any) -> Effects:
    options = JobOptions(**wishes)
    return node.said(msg.RunJobs(key, [JobSpec(job, 1, 1, None, options) for job in jobs]), b"x" * len(jobs))


def ahead(node: Node, *jobs: int) -> Effects:
    """Jobs so short that workers are given some ahead."""
    node.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    return node.run(*jobs)


# The holder's link


def test_a_step_of_a_preparation_is_told_to_the_holder(node: Node) -> None:
    step = ev.ComputationAdvanced(MAP, "environment")
    assert node.handle(step) == Effects(), "free"
    node.lease()
    assert node.handle(step) == Effects(), "unknown"
    node.said(msg.OpenComputation(spec()))
    assert node.handle(step) == Effects([], [Send(ANNA, msg.ComputationAdvanced(MAP, "environment"))])
    node.handle(ev.LinkLost(ANNA, goodbye=False))
    assert node.handle(step) == Effects(), "nobody hears"


def test_nothing_is_told_of_a_computation_that_is_cleaned_away(ready: Node) -> None:
    assert ready.said(msg.CloseComputation(MAP)).actions == [do.CleanComputation(MAP, True)]
    for event in (
        ev.ComputationAdvanced(MAP, "x"),
        ev.ComputationPrepared(MAP),
        ev.ComputationFailed(MAP, "x"),
        ev.ForkServerDied(MAP, "x"),
        ev.WorkerDied(1, 0, "x", setup_failed=True),
    ):
        assert ready.handle(event) == Effects(), event
    assert ready.handle(ev.ComputationCleaned(MAP, "trace")).sends == [Send(ANNA, msg.ComputationClosed(MAP, "trace"))]
    assert ready.handle(ev.ComputationCleaned(MAP)) == Effects(), "twice"


def test_the_load_is_told_to_the_holder_only(node: Node) -> None:
    load: Any = ("load",)
    assert node.handle(ev.LoadSampled(load)) == Effects()
    node.lease()
    node.handle(ev.LinkOpened(BERT))
    assert node.handle(ev.LoadSampled(load)) == Effects([], [Send(ANNA, msg.LoadMeasured(load))])
    node.handle(ev.LinkLost(ANNA, goodbye=False))
    assert node.handle(ev.LoadSampled(load)) == Effects()


def test_interim_results_that_somebody_hears_are_all_kept(ready: Node) -> None:
    ready.run(1)
    for _ in range(INTERIM_MOST + 1):
        effects = ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL), BlobRef(b"n" * 32, 100_000)))
        assert effects.actions == []


def test_what_a_worker_says_on_a_free_node_is_dropped(node: Node) -> None:
    blob = BlobRef(b"n" * 32, 100_000)
    withdrawn = Effects([do.WithdrawResults([blob.name])], [])
    assert node.handle(ev.WorkerSpoke(1, Answer(1, Ending.PROVISIONAL))) == Effects()
    assert node.handle(ev.WorkerSpoke(1, Answer(1, Ending.PROVISIONAL), blob)) == withdrawn
    assert node.handle(ev.WorkerAnswered(1, [Answer(1)])) == Effects()
    assert node.handle(ev.WorkerDied(1, 1, "x")) == Effects()
    assert node.handle(ev.WorkerRecalled(1, 1, 2)) == Effects()


def test_what_an_older_attempt_says_is_dropped(ready: Node) -> None:
    ready.run(1)
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 2, 1)]), b"y")
    assert ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL))) == Effects()
    assert ready.handle(ev.FileSent(7, 1, 2, FILE)) == Effects([do.AnswerParcel(7, False)], [])


def test_a_link_that_opens_again_has_lost_its_lease(ready: Node) -> None:
    ready.lease(BERT, b"B", OTHER)
    ready.handle(ev.LinkOpened(BERT))
    ready.said(msg.ReleaseLease())
    assert ready.handle(ev.ComputationCleaned(MAP)).actions == [do.Announce()], "nobody is in line"


def test_an_unknown_link_that_is_lost_changes_nothing(ready: Node) -> None:
    assert ready.handle(ev.LinkLost(BERT, goodbye=True)) == Effects()
    assert ready.core.lease is not None
    assert ready.core.lease.peer == ANNA


def test_the_line_keeps_its_order_and_nobody_stands_in_it_twice(ready: Node) -> None:
    third = BERT.__class__("c" * 32)
    ready.lease(BERT, b"B", OTHER)
    ready.lease(third, b"C", OTHER)
    assert [waiter.token for waiter in ready.core.line] == [b"B", b"C"]
    ready.said(msg.AskLease(b"B", OTHER), peer=BERT)
    assert [waiter.token for waiter in ready.core.line] == [b"C", b"B"]
    ready.said(msg.AskLease(b"D", OTHER), peer=third)
    assert [waiter.token for waiter in ready.core.line] == [b"B", b"D"]
    ready.said(msg.ReleaseLease(), peer=BERT)
    assert [waiter.token for waiter in ready.core.line] == [b"D"]
    assert ready.core.lease is not None
    assert not ready.core.lease.ended


def test_grace_ends_at_its_end_and_not_before(ready: Node) -> None:
    ready.run(1, 2, 3)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    lease: Any = ready.core.lease
    ready.wait(ready.core.grace - 0.01)
    assert not lease.expired
    assert set(lease.jobs) == {1, 2, 3}
    ready.wait(0.01)
    assert lease.expired
    assert set(lease.jobs) == {1, 2}


def test_a_holder_with_a_link_is_not_released_on_demand(ready: Node) -> None:
    assert ready.handle(ev.ReleaseAsked()) == Effects()
    assert ready.core.lease is not None
    assert not ready.core.lease.expired


def test_an_end_is_asked_once(ready: Node) -> None:
    ready.run(1)
    first = ready.handle(ev.EndAsked("closing time"))
    assert first.actions[0] == do.HangUp(ANNA, "closing time")
    assert do.CancelInWorker(MAP, 1, 2) in first.actions
    assert ready.handle(ev.EndAsked("closing time")) == Effects()
    assert ready.handle(ev.ReleaseAsked()) == Effects()


def test_a_released_lease_takes_nothing_more(ready: Node) -> None:
    ready.run(1)
    ready.said(msg.ReleaseLease())
    assert ready.run(2).sends == [given_back(2)]
    refused: Any = ready.said(msg.OpenComputation(spec(REDUCE))).sends[0].message
    assert refused == msg.ComputationRefused(REDUCE, "the node is ending", final=False)
    # the same process asks anew: it stands in line until the first lease is cleared away
    asked: Any = ready.said(msg.AskLease(b"A", HOLDER)).sends[0].message
    assert isinstance(asked, msg.LeaseRefused)


# The offer


def test_the_same_offer_is_not_told_again(ready: Node) -> None:
    assert ready.handle(ev.OfferChanged(2)) == Effects()
    assert ready.handle(ev.OfferChanged(2, "x")).sends != []
    assert ready.handle(ev.OfferChanged(2, "x")) == Effects()


def test_everybody_is_told_of_an_offer_and_who_holds_the_node(ready: Node) -> None:
    ready.handle(ev.LinkOpened(BERT))
    sends: Any = ready.handle(ev.OfferChanged(1, "x")).sends
    assert [(send.peer, send.message.info.cpus, send.message.info.closed) for send in sends] == [
        (ANNA, 1, "x"),
        (BERT, 1, "x"),
    ]
    assert all(send.message.info.holder.user == "anna" for send in sends)


def test_an_offer_means_nothing_to_a_node_that_ends(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.ExitAsked(at_once=False))
    assert ready.handle(ev.OfferChanged(1)) == Effects()


def test_a_node_that_offers_nothing_is_not_announced_when_it_is_free(ready: Node) -> None:
    ready.handle(ev.OfferChanged(0, "x"))
    ready.said(msg.ReleaseLease())
    assert ready.handle(ev.ComputationCleaned(MAP)).actions == []


def test_an_order_to_end_now_overrules_an_orderly_one_and_not_the_reverse(ready: Node) -> None:
    ahead(ready, *range(1, 10))
    assert ready.handle(ev.ExitAsked(at_once=False)).sends != []
    assert ready.handle(ev.ExitAsked(at_once=False)) == Effects()
    now = ready.handle(ev.ExitAsked(at_once=True))
    assert now.sends == [given_back(9)]
    assert ready.handle(ev.ExitAsked(at_once=False)) == Effects()
    assert ready.handle(ev.ExitAsked(at_once=True)) == Effects()


# Computations


def test_bounds_of_a_computation_can_change_while_it_is_opened(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 4, oversubscribe=True))
    assert node.said(msg.OpenComputation(spec(), b"", 1)) == Effects()
    node.handle(ev.ComputationPrepared(MAP))
    assert forks(node.run(1, 2, 3)) == [MAP]
    assert node.said(msg.OpenComputation(spec(), b"", 0)) == Effects(
        [do.ForkWorker(MAP, 2)], [Send(ANNA, msg.ComputationReady(MAP))]
    )


def test_a_close_takes_back_that_it_is_to_be_opened_again(ready: Node) -> None:
    ready.said(msg.CloseComputation(MAP))
    ready.said(msg.OpenComputation(spec()))
    ready.said(msg.CloseComputation(MAP))
    assert ready.handle(ev.ComputationCleaned(MAP)) == Effects([], [Send(ANNA, msg.ComputationClosed(MAP))])


def test_a_computation_that_fails_while_it_closes_is_not_refused(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    node.run(1)
    node.said(msg.CloseComputation(MAP))
    effects = node.handle(ev.ComputationFailed(MAP, "no"))
    assert effects.sends == [given_back(1)]
    assert effects.actions == [do.CleanComputation(MAP, False)]
    assert node.handle(ev.ComputationCleaned(MAP)).sends == [Send(ANNA, msg.ComputationClosed(MAP))]


def test_what_opens_is_not_finished_for_nobody(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    assert node.handle(ev.LinkLost(ANNA, goodbye=True)).actions == [do.CleanComputation(MAP, False)]


def test_jobs_of_other_computations_go_on_when_one_is_closed(ready: Node) -> None:
    ready.open(REDUCE)
    ready.run(1, 2)
    ready.run(3, key=REDUCE)
    assert ready.said(msg.CloseComputation(REDUCE, terminate=True)) == Effects(
        [do.CleanComputation(REDUCE, True)], [gone(3, 3)]
    )


def test_a_worker_that_cannot_set_up_refuses_its_computation_once(ready: Node) -> None:
    ready.run(1, 2, 3)
    failed = ev.WorkerDied(1, 0, "x", stderr=b"Traceback\nValueError: no\n", setup_failed=True)
    effects = ready.handle(failed)
    refused = msg.ComputationRefused(
        MAP, "setup failed in a worker: ValueError: no", "Traceback\nValueError: no\n", True
    )
    assert effects.sends[0] == Send(ANNA, refused)
    again = ready.handle(ev.WorkerDied(2, 0, "x", setup_failed=True))
    assert not [send for send in again.sends if isinstance(send.message, msg.ComputationRefused)]


# Time limits


def test_a_time_limit_counts_while_the_job_runs(ready: Node) -> None:
    heavy(ready, 1, 2, timeout=5.0)
    ready.run(3)
    heavy(ready, 4, timeout=5.0)
    assert ready.wait(4.9) == Effects()
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert ready.wait(0.2).actions[0] == do.CancelInWorker(MAP, 2, 2), "job 2"
    ready.handle(ev.WorkerAnswered(2, [Answer(2, Ending.INTERRUPTED, 50.0, 55.0)]))
    interrupts = [action for action in ready.wait(5.2).actions if isinstance(action, do.CancelInWorker)]
    assert {(action.worker, action.sequence) for action in interrupts} == {(2, 3)}, "job 4, after job 3 of worker 1"


def test_a_job_over_its_time_is_told_as_limited(ready: Node) -> None:
    heavy(ready, 1, timeout=2.0)
    ready.wait(2.05)
    answer = Answer(2, Ending.INTERRUPTED, 50.0, 52.0, 0, 1, 1, 2, b"oeER")
    sent: Any = ready.handle(ev.WorkerAnswered(1, [answer])).sends[0]
    told = sent.message.jobs[0]
    assert told.ending == Ending.LIMITED
    assert sent.payload == [b"oe%b\nER" % over_time(2.0, 2.0).encode()]
    assert told.error_size == len(sent.payload[0]) - 2
    ready.said(msg.AckResults(99))
    ready.wait(2)
    assert ready.core.next_deadline() is None


def test_a_job_that_ends_although_its_time_was_over_has_ended(ready: Node) -> None:
    heavy(ready, 1, timeout=2.0)
    ready.wait(2.05)
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).sends == [done(3, 1)]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_job_that_dies_over_its_time(ready: Node, cancelled: bool) -> None:
    heavy(ready, 1, timeout=2.0)
    ready.wait(2.05)
    if cancelled:
        assert ready.said(msg.CancelJobs([1])) == Effects(), "it is being ended"
    sent: Any = ready.handle(ev.WorkerDied(1, 2, "killed", started=50.0, ended=53.0)).sends[0]
    text = b"its worker process ended: killed" if cancelled else b"%b (killed)" % over_time(3.0, 2.0).encode()
    assert sent.payload == [text]
    assert sent.message.jobs[0].ending == (Ending.INTERRUPTED if cancelled else Ending.LIMITED)


def test_a_job_that_a_limit_ended_has_the_words_of_the_limit(ready: Node) -> None:
    heavy(ready, 1, memory=1 << 20)
    sent: Any = ready.handle(ev.WorkerDied(1, 2, "memory: 2 MB", limited=True, ended=53.0)).sends[0]
    assert sent.payload == [b"memory: 2 MB"]
    assert sent.message.jobs[0].ending == Ending.LIMITED
    assert sent.message.jobs[0].started_at == 53.0


# Heavy jobs


def test_heavy_jobs_share_cpus_and_gpus() -> None:
    node = Node(cpus=4)
    node.core.desk.feeder.gpus = 2
    node.lease()
    node.open()
    assert forks(node.run(101, 102, 103, 104)) == [MAP] * 4
    node.forked(1, 2, 3, 4)
    for worker in (1, 2, 3, 4):
        node.handle(ev.WorkerAnswered(worker, [Answer(1)]))
    given: Any = heavy(node, 1, 2, 3, cpus=1, gpus=1).actions
    assert [(each.worker, each.extra) for each in given] == [
        (1, do.JobExtra(1, 0, (0,))),
        (2, do.JobExtra(1, 0, (1,))),
    ]
    assert [each.worker for each in node.run(4, 5).actions] == [3], "one CPU is kept for job 3"  # type: ignore[union-attr]
    third: Any = node.handle(ev.WorkerAnswered(1, [Answer(2)])).actions[0]
    assert third.extra == do.JobExtra(1, 0, (0,))


def test_a_job_for_all_cpus_waits_for_them_and_has_what_there_is(ready: Node) -> None:
    ready.run(1)
    assert heavy(ready, 2, cpus=0).actions == []
    assert ready.run(3).actions == [], "the CPUs are kept for job 2"
    given: Any = ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions[0]
    assert given.extra == do.JobExtra(2, 0, ())
    assert ready.handle(ev.WorkerAnswered(given.worker, [Answer(3 if given.worker == 1 else 2)])).actions != []


def test_a_heavy_job_makes_room_for_a_worker_of_its_computation(ready: Node) -> None:
    ready.open(REDUCE)
    assert heavy(ready, 1, key=REDUCE, cpus=2).actions == [do.RetireWorker(MAP, 1)]
    assert ready.handle(ev.WorkerDied(1, 0, "retired", expected=True)).actions == [do.ForkWorker(REDUCE, 3)]
    given: Any = ready.handle(ev.WorkerForked(3, 3)).actions[0]
    assert (given.computation, given.extra) == (REDUCE, do.JobExtra(2, 0, ()))


# Feeding


def test_a_stalled_worker_keeps_its_jobs_when_no_cpu_is_free(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4, 5, 6)
    assert ready.wait(1.0) == Effects()
    assert ready.core.next_deadline() is None


def test_a_worker_is_asked_once_for_what_it_has_not_started(ready: Node) -> None:
    ahead(ready, *range(1, 9))
    first = ready.said(msg.RecallJobs(1)).actions
    assert first == [do.RecallFromWorker(MAP, 1, 6), do.RecallFromWorker(MAP, 2, 6)]
    assert ready.said(msg.RecallJobs(1)) == Effects()


def test_a_worker_without_jobs_behind_is_not_asked(ready: Node) -> None:
    ready.run(1)
    assert ready.said(msg.RecallJobs(1)) == Effects([], [given_back()])
    assert ready.handle(ev.OfferChanged(0, "x")).actions == [do.RetireWorker(MAP, 2), do.RecallFromWorker(MAP, 1, 3)]


def test_a_worker_is_told_once_to_end(ready: Node) -> None:
    assert ready.handle(ev.OfferChanged(1)).actions == [do.RetireWorker(MAP, 1)]
    assert ready.handle(ev.WorkerAnswered(1, [])).actions == []
    assert ready.handle(ev.WorkerAnswered(2, [])).actions == [], "nobody wants it to end"


def test_fewer_cpus_end_idle_workers_first(ready: Node) -> None:
    ready.run(1)
    assert ready.handle(ev.OfferChanged(1)).actions == [do.RetireWorker(MAP, 2)]
    assert ready.handle(ev.OfferChanged(1, "x")).actions == []


def test_the_owner_of_a_node_can_let_everybody_oversubscribe(node: Node) -> None:
    node.core.desk.feeder.oversubscribe = True
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 3))
    node.handle(ev.ComputationPrepared(MAP))
    assert forks(node.run(1, 2, 3, 4)) == [MAP] * 3


def test_a_limit_beneath_the_cpus_is_kept(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec(), b"", 1, oversubscribe=True))
    node.handle(ev.ComputationPrepared(MAP))
    assert forks(node.run(1, 2, 3)) == [MAP]
    assert node.forked(1) == [fed(1, 1)]


def test_the_largest_limit_counts(node: Node) -> None:
    node.lease()
    for key, limit in ((MAP, 5), (REDUCE, 3)):
        node.said(msg.OpenComputation(spec(key), b"", limit, oversubscribe=True))
        node.handle(ev.ComputationPrepared(key))
    assert len(forks(node.run(*range(1, 9)))) == 5
    node.handle(ev.OfferChanged(0, "x"))
    assert node.core.desk.feeder.capacity == 0


# Parcels, results


def test_files_of_jobs_are_refused_when_the_holder_is_given_up(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.FileSent(7, 1, 2, FILE))
    assert do.AnswerParcel(7, False) in ready.handle(ev.LinkLost(ANNA, goodbye=True)).actions
    assert ready.handle(ev.FileSent(8, 1, 2, FILE)) == Effects([do.AnswerParcel(8, False)], [])


def test_an_answer_for_a_link_that_is_gone_is_dropped(ready: Node) -> None:
    ready.run(1)
    assert ready.handle(ev.TailRead(BERT, 1, b"", b"")) == Effects()
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.handle(ev.TailRead(ANNA, 1, b"", b"")) == Effects()
    assert ready.handle(ev.FileStored(MAP, "a", "")) == Effects()


def test_a_file_is_taken_of_its_own_job_and_name(ready: Node) -> None:
    ready.run(1, 2)
    ready.handle(ev.FileSent(7, 1, 2, FILE))
    for taken in (
        msg.FileTaken(FILE.blob.name, "", 2, "out"),
        msg.FileTaken(b"g" * 32, "", 1, "out"),
        msg.FileTaken(FILE.blob.name, "", 1, "other"),
    ):
        assert ready.said(taken) == Effects()
    assert ready.said(msg.FileTaken(FILE.blob.name, "", 1, "out")).actions == [do.AnswerParcel(7, True)]


def test_acknowledged_results_on_the_disk_are_removed_once(ready: Node) -> None:
    ready.run(1, 2)
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    ready.handle(ev.WorkerAnswered(2, [Answer(2)]))
    assert len(ready.wait(1.0).actions) == 2
    ready.handle(ev.BatchesSpooled(lease_name(b"A"), [3]))
    assert ready.said(msg.AckResults(3)).actions == [do.UnspoolBatches(lease_name(b"A"), [3])]
    assert ready.said(msg.AckResults(3)) == Effects()
    assert ready.said(msg.AckResults(4)).actions == [do.UnspoolBatches(lease_name(b"A"), [4])]


def test_answers_without_jobs_change_no_table(ready: Node) -> None:
    ready.run(1)
    assert ready.handle(ev.WorkerAnswered(1, [Answer(77)])) == Effects()
    assert ready.handle(ev.WorkerRecalled(1, 3, 3)) == Effects()
    assert ready.said(msg.ListJobs(MAP)).sends == [Send(ANNA, msg.JobsListed(MAP, [HeldAttempt(1, 1)]))]


def test_a_process_of_an_isolated_computation_runs_one_job(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(ComputationSpec(MAP, "compute", "function", "cpython-3.11", isolate=True)))
    node.handle(ev.ComputationPrepared(MAP))
    node.run(1, 2, 3, 4)
    assert node.forked(1, 2) == [fed(1, 1), fed(2, 1)]
    assert node.handle(ev.WorkerAnswered(1, [Answer(1, ended_at=50.0001)])).actions == []
    assert node.handle(ev.WorkerDied(1, 0, "done", expected=True)).actions == [do.ForkWorker(MAP, 3)]


def test_who_gives_back_gets_nothing_meanwhile(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.said(msg.RecallJobs(1))
    assert ready.run(5) == Effects()
    assert ready.handle(ev.WorkerRecalled(1, 4, 4)).actions == [fed(1, 4)]


def test_a_stalled_worker_gets_nothing_ahead(ready: Node) -> None:
    ahead(ready, 1, 2)
    ready.wait(0.01)
    assert ready.run(3) == Effects()


def test_nothing_waits_behind_a_heavy_job(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    heavy(ready, 1, memory=1)
    fed_now: Any = ready.run(2, 3, 4).actions
    assert {action.worker for action in fed_now} == {2}


def test_a_worker_that_starts_finds_a_job(node: Node) -> None:
    node.lease()
    node.open()
    node.run(1, 2)
    assert node.forked(1) == [fed(1, 1)]
    assert node.handle(ev.WorkerAnswered(1, [Answer(1, ended_at=50.001)])).actions == [fed(1, 2)]
    assert node.run(3, 4, 5).actions == [fed(1, 3, 4)]
    assert node.forked(2) == [fed(2, 1)]


def test_a_link_claims_one_lease(ready: Node) -> None:
    ready.handle(ev.LinkOpened(BERT))
    ready.said(msg.ClaimResults(b"A"), peer=BERT)
    assert ready.said(msg.ClaimResults(b"C"), peer=BERT).sends == [Send(BERT, msg.ResultsClaimed([], []))]
    assert set(ready.core.claims.claims) == {lease_name(b"C")}


def test_what_closes_or_ends_takes_no_jobs(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.said(msg.CloseComputation(MAP))
    assert ready.run(5).sends == [given_back(5)]
    assert ready.run(6, key=REDUCE).sends == [given_back(6)]
    ready.handle(ev.ExitAsked(at_once=True))
    assert ready.run(7).sends == [given_back(7)]


def test_a_node_that_ends_at_once_takes_no_jobs(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.handle(ev.ExitAsked(at_once=True))
    assert ready.run(7).sends == [given_back(7)]


def test_a_cancelled_job_is_not_given_back(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.said(msg.CancelJobs([2]))
    assert ready.said(msg.RecallJobs(2)).actions == [do.RecallFromWorker(MAP, 2, 4)]
    assert ready.handle(ev.WorkerRecalled(1, 3, 4)).sends == [gone(3, 2)]
    assert ready.handle(ev.WorkerRecalled(2, 3, 4)).sends == [given_back(4)]


def test_after_grace_what_comes_back_from_workers_is_dropped(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.handle(ev.LinkLost(ANNA, goodbye=True))
    assert ready.handle(ev.WorkerRecalled(1, 3, 4)) == Effects()
    lease: Any = ready.core.lease
    assert set(lease.jobs) == {1, 3, 4}


# What comes too late


def test_a_link_that_is_gone_says_nothing_more(node: Node) -> None:
    node.lease()
    node.lease(BERT, b"B", OTHER)
    node.handle(ev.LinkLost(BERT, goodbye=False))
    assert node.said(msg.RunJobs(MAP, [JobSpec(1, 1, 1)]), b"x", peer=BERT) == Effects()


def test_a_request_for_jobs_ends_with_its_link(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.said(msg.RecallJobs(2))
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.lease()
    assert ready.handle(ev.WorkerRecalled(1, 3, 4)).sends == []
    ready.handle(ev.WorkerRecalled(2, 3, 4))
    lease: Any = ready.core.lease
    assert set(lease.jobs) == {1, 2, 3, 4}


def test_a_node_that_ends_is_leased_to_nobody_new(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.ExitAsked(at_once=False))
    assert ready.lease(BERT, b"B", OTHER).actions == [do.HangUp(BERT, "the node is ending")]
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert isinstance(ready.lease().sends[0].message, msg.LeaseGranted)


def test_files_that_nobody_waits_for_change_nothing(ready: Node) -> None:
    options = JobOptions(depends=JobDepends((FILE,)))
    ready.run(1)
    ready.said(msg.RunJobs(MAP, [JobSpec(2, 2, 1, None, options)]), b"x")
    for late in (ev.FilesLent(1, 1), ev.FilesLent(2, 1), ev.FilesLent(2, 1, "no"), ev.FilesLent(77, 1)):
        assert ready.handle(late) == Effects(), late
    assert ready.handle(ev.FilesLent(2, 2)).actions == [fed(2, 2)]
    assert ready.handle(ev.FilesLent(2, 2)) == Effects(), "twice"


def test_arguments_that_nobody_waits_for_cannot_fail(ready: Node) -> None:
    blob = BlobRef(b"h" * 32, 1 << 20)
    assert ready.handle(ev.ArgumentsFailed(blob.name, "x")) == Effects(), "unknown"
    ready.said(msg.RunJobs(MAP, [JobSpec(1, 1, 0, blob)]))
    ready.handle(ev.ArgumentsFetched(blob.name, 7))
    assert ready.handle(ev.ArgumentsFailed(blob.name, "x")) == Effects(), "they are here"
    again = ready.handle(ev.ArgumentsFetched(blob.name, 8))
    assert again == Effects([do.ForgetArguments(blob.name)], []), "twice"


def test_only_what_is_being_cleaned_is_gone_afterwards(ready: Node) -> None:
    assert ready.handle(ev.ComputationCleaned(MAP)) == Effects()
    assert ready.run(1).actions == [fed(1, 2)]


def test_results_that_wait_do_not_keep_a_node_that_is_to_end(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=True))
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    ready.wait(ready.core.zombie_interval - 1)
    ready.handle(ev.ReleaseAsked())
    ready.handle(ev.ComputationCleaned(MAP))
    assert ready.core.lease is None
    assert ready.core.keeper.orphans
    assert ready.handle(ev.ExitAsked(at_once=False)).actions[-1] == do.Exit("it was told to end")


def test_a_claimer_gives_way_to_the_scheduler_that_comes_back(node: Node) -> None:
    node.handle(ev.LinkOpened(BERT))
    node.said(msg.ClaimResults(b"A"), peer=BERT)
    assert node.lease().actions == [do.HangUp(BERT, "the process that submitted these jobs is back")]


def test_nothing_is_prepared_on_a_free_node(node: Node) -> None:
    for event in (ev.ComputationPrepared(MAP), ev.ComputationFailed(MAP, "x"), ev.ForkServerDied(MAP, "x")):
        assert node.handle(event) == Effects(), event


def test_a_worker_that_ends_as_it_should_is_not_stillborn(node: Node) -> None:
    node.lease()
    node.open()
    node.run(1)
    assert node.handle(ev.WorkerDied(1, 0, "x", expected=True)).actions == [do.ForkWorker(MAP, 2)]
    assert node.handle(ev.WorkerDied(2, 0, "x")).actions == [], "a stillborn one: later"
    assert node.wait(0.1).actions == [do.ForkWorker(MAP, 3)]


def test_the_cpus_of_a_heavy_job_that_went_back_with_its_worker_are_free(ready: Node) -> None:
    heavy(ready, 1, cpus=2)
    ready.handle(ev.OfferChanged(0, "x"))
    assert ready.handle(ev.WorkerDied(1, 0, "x")).sends == [given_back(1)]
    ready.handle(ev.WorkerDied(2, 0, "x", expected=True))
    ready.handle(ev.OfferChanged(2))
    assert forks(ready.run(2, 3)) == [MAP, MAP]
