"""The node core by value: results on the disk, results that are claimed, and an end that waits for them."""

from __future__ import annotations

from typing import Any

import pytest
from corenode import ANNA, BERT, HOLDER, MAP, OTHER, WALL, Answer, Node, done, fed, node, ready, recalled

from dispy.model import BlobRef, ComputationId, Ending, FileSpec, HeldAttempt, JobSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects, Send
from dispy.node.results import INTERIM_MOST, Kept
from dispy.node.serving import lease_name
from dispy.wire import messages as msg

__all__ = ["node", "ready"]
A = lease_name(b"A")
BLOB = BlobRef(b"n" * 32, 100_000, False)


def spool(sequence: int, job: int) -> do.SpoolBatch:
    sent = done(sequence, job)
    assert isinstance(sent.message, msg.JobsDone)
    return do.SpoolBatch(A, sent.message, sent.payload)


def to(peer: Any, send: Send) -> Send:
    return Send(peer, send.message, send.payload)


def answer(node: Node, worker: int = 1, sequence: int = 2) -> Effects:
    return node.handle(ev.WorkerAnswered(worker, [Answer(sequence)]))


@pytest.fixture
def gone(ready: Node) -> Node:
    """As `ready`; job 1 runs, Anna's process was killed and the time of grace is over."""
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.wait(6)
    return ready


def claim(node: Node, *, terminate: bool = False, token: bytes = b"A") -> Effects:
    node.handle(ev.LinkOpened(BERT))
    return node.said(msg.ClaimResults(token, terminate), peer=BERT)


# When results go to the disk


def test_what_is_acknowledged_within_a_second_never_touches_the_disk(ready: Node) -> None:
    ready.run(1)
    answer(ready)
    assert ready.wait(0.9).actions == []
    assert ready.said(msg.AckResults(3)).actions == []
    assert ready.wait(10).actions == []


def test_jobs_that_come_can_say_what_is_acknowledged(ready: Node) -> None:
    ready.run(1)
    answer(ready)
    assert ready.said(msg.RunJobs(MAP, [JobSpec(2, 1, 1)], 3), b"x").actions == [fed(1, 3)]
    assert ready.wait(10).actions == []
    answer(ready, sequence=3)
    # also when they themselves are for a computation that is not here
    assert ready.said(msg.RunJobs(ComputationId("none"), [JobSpec(3, 1, 0)], 4)).sends == [recalled(3)]
    assert ready.wait(10).actions == []


def test_what_is_not_acknowledged_goes_to_the_disk_and_leaves_it_later(ready: Node) -> None:
    ready.run(1, 2)
    answer(ready)
    ready.wait(0.5)
    answer(ready, worker=2)
    assert ready.wait(0.5).actions == [spool(3, 1)]
    ready.handle(ev.BatchesSpooled(A, [3]))
    assert ready.wait(0.5).actions == [spool(4, 2)]
    assert ready.wait(10).actions == []
    # also one of which nobody knows yet whether it has arrived there
    assert ready.said(msg.AckResults(4)).actions == [do.UnspoolBatches(A, [3, 4])]
    assert ready.handle(ev.BatchesSpooled(A, [4])) == Effects()


def test_without_a_link_results_go_to_the_disk_at_once(ready: Node) -> None:
    ready.run(1, 2)
    answer(ready)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.wait(0).actions == [spool(3, 1)]
    answer(ready, worker=2)
    assert ready.wait(0).actions == [spool(4, 2)]
    ready.handle(ev.BatchesSpooled(A, [3, 4]))
    assert ready.lease().sends[-2:] == [done(3, 1), done(4, 2)]
    assert ready.wait(10).actions == []


def test_a_timer_does_not_follow_every_job(ready: Node) -> None:
    deadlines = set()
    for number in range(1, 40):
        ready.run(number)
        answer(ready, sequence=number + 1)
        deadlines.add(ready.core.next_deadline())
        ready.said(msg.AckResults(number + 2))
        ready.wait(0.01)
    assert deadlines == {1.0}


def test_a_disk_that_is_full_is_tried_again_with_one_batch(ready: Node) -> None:
    ready.run(1, 2)
    answer(ready)
    answer(ready, worker=2)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.wait(0).actions == [spool(3, 1), spool(4, 2)]
    ready.handle(ev.SpoolFailed(A, [3, 4]))
    assert ready.wait(9.5).actions == []
    assert ready.wait(1).actions == [spool(3, 1)]
    ready.handle(ev.SpoolFailed(A, [3]))
    assert ready.wait(10).actions == [spool(3, 1)]
    ready.handle(ev.BatchesSpooled(A, [3]))
    assert ready.wait(0).actions == [spool(4, 2)]


def test_a_disk_is_trusted_again_when_nothing_waits_for_it(ready: Node) -> None:
    ready.run(1)
    answer(ready)
    assert ready.wait(1).actions == [spool(3, 1)]
    ready.handle(ev.SpoolFailed(A, [3]))
    assert ready.said(msg.AckResults(3)) == Effects()
    assert ready.wait(10).actions == [do.TrustSpool()]
    assert ready.wait(100).actions == []


def test_interim_results_stay_in_memory_and_are_bounded_without_a_link(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    effects = [
        ready.handle(
            ev.WorkerSpoke(
                1, Answer(2, Ending.PROVISIONAL, result_size=70_000, body=b""), BlobRef(b"%032d" % n, 70_000)
            )
        )
        for n in range(INTERIM_MOST + 3)
    ]
    withdrawn = [each.actions for each in effects if each.actions]
    assert len(withdrawn) > 3  # their bytes are bounded as well
    assert withdrawn[0] == [do.WithdrawResults([b"%032d" % 0])]
    assert ready.wait(2).actions == []
    assert len(ready.lease().sends) < INTERIM_MOST + 2


# After a restart


def found(ready: Node, *batches: tuple[int, int], written_at: float = WALL) -> None:
    leases = {A: [ev.SpooledBatch(spool(n, job).message, spool(n, job).bodies, written_at) for n, job in batches]}
    ready.handle(ev.SpoolFound(leases))


def test_results_of_an_earlier_daemon_go_to_the_lease_and_are_not_run_again(node: Node) -> None:
    found(node, (70, 1), (72, 2))
    assert node.lease().sends == [
        Send(ANNA, msg.LeaseGranted([HeldAttempt(1, 1), HeldAttempt(2, 1)], [])),
        done(70, 1),
        done(72, 2),
    ]
    node.open()
    node.forked(1)
    assert node.run(1).actions == []  # it has ended
    [fork] = node.run(3).actions
    assert isinstance(fork, do.ForkWorker)
    assert node.forked(fork.worker) == [fed(fork.worker, 1)]
    assert answer(node, fork.worker, 1).sends == [done(73, 3)]
    assert node.said(msg.AckResults(73)).actions == [do.UnspoolBatches(A, [70, 72])]


def test_numbers_go_on_after_a_restart_for_everybody(node: Node) -> None:
    found(node, (70, 1))
    node.lease(BERT, b"B", OTHER)
    assert node.core.lease is not None
    assert node.core.lease.results.sequence == 70


def test_results_on_the_disk_expire_by_the_wall_clock(node: Node) -> None:
    node.now = 100.0
    found(node, (70, 1), written_at=WALL - 3000.0)
    assert node.wait(499).actions == []
    assert node.wait(2).actions == [do.UnspoolBatches(A, [70])]


def test_a_clock_that_was_set_back_keeps_nothing_for_ever(node: Node) -> None:
    found(node, (70, 1), written_at=WALL + 1e9)
    assert node.wait(3601).actions == [do.UnspoolBatches(A, [70])]


# Claims


def test_a_claim_gets_what_lies_here_and_what_runs(gone: Node) -> None:
    effects = claim(gone)
    assert effects.sends[-1] == Send(BERT, msg.ResultsClaimed([], [HeldAttempt(1, 1)]))
    assert not any(isinstance(action, do.CancelInWorker) for action in effects.actions)
    effects = answer(gone)
    assert effects.sends == [to(BERT, done(3, 1))]
    assert effects.actions == [do.CleanComputation(MAP, True)]
    # the node is free before the results are fetched
    assert gone.handle(ev.ComputationCleaned(MAP)).actions == [do.Announce()]
    assert gone.said(msg.AckResults(3), peer=BERT).actions == []
    assert gone.core.keeper.orphans == {}
    gone.handle(ev.LinkLost(BERT, goodbye=True))
    assert claim(gone).sends[-1] == Send(BERT, msg.ResultsClaimed([], []))


def test_a_claim_hears_of_results_that_are_damaged(ready: Node) -> None:
    ready.handle(ev.SpoolFound({}, {lease_name(b"?"): 2}))
    assert claim(ready, token=b"?").sends[-1] == Send(BERT, msg.ResultsClaimed([], [], 2))


def test_what_a_claimer_has_not_acknowledged_waits_for_the_next(gone: Node) -> None:
    answer(gone)
    gone.wait(0)
    gone.handle(ev.BatchesSpooled(A, [3]))
    for _ in range(2):
        assert claim(gone).sends[-2:] == [Send(BERT, msg.ResultsClaimed([HeldAttempt(1, 1)], [])), to(BERT, done(3, 1))]
        gone.handle(ev.ComputationCleaned(MAP))
        gone.handle(ev.LinkLost(BERT, goodbye=True))
    claim(gone)
    assert gone.said(msg.AckResults(3), peer=BERT).actions == [do.UnspoolBatches(A, [3])]
    gone.handle(ev.LinkLost(BERT, goodbye=True))
    assert claim(gone).sends[-1] == Send(BERT, msg.ResultsClaimed([], []))


def test_release_by_a_claimer_leaves_the_rest(gone: Node) -> None:
    answer(gone)
    claim(gone)
    gone.said(msg.ReleaseLease(), peer=BERT)
    gone.handle(ev.ComputationCleaned(MAP))
    assert list(gone.core.keeper.orphans) == [A]
    # what he says later is about nothing of his
    gone.said(msg.AckResults(3), peer=BERT)
    assert list(gone.core.keeper.orphans) == [A]


def test_a_claim_can_end_what_runs(gone: Node) -> None:
    effects = claim(gone, terminate=True)
    assert effects.actions == [do.CancelInWorker(MAP, 1, 2)]
    assert effects.sends[-1] == Send(BERT, msg.ResultsClaimed([], [HeldAttempt(1, 1)]))


def test_a_claim_within_grace_drops_what_has_not_started(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3, 4, 5)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    effects = claim(ready)
    recalls = [action for action in effects.actions if isinstance(action, do.RecallFromWorker)]
    assert [each.worker for each in recalls] == [1, 2]
    # until the workers have said what they had not started nobody knows what runs
    assert not any(isinstance(send.message, msg.ResultsClaimed) for send in effects.sends)
    answer(ready)
    ready.handle(ev.WorkerRecalled(1, 4, recalls[0].before))
    effects = ready.handle(ev.WorkerRecalled(2, 3, recalls[1].before))
    [answered, batch] = effects.sends
    assert isinstance(answered.message, msg.ResultsClaimed)
    assert answered.message.ended == [HeldAttempt(1, 1)]
    assert len(answered.message.running) == 2
    assert batch == to(BERT, done(3, 1))


def test_a_claim_waits_as_long_as_the_holder_is_there(ready: Node) -> None:
    ready.run(1)
    assert [type(send.message) for send in claim(ready).sends] == []
    assert answer(ready).sends == [done(3, 1)]
    [answered, batch] = ready.handle(ev.LinkLost(ANNA, goodbye=False)).sends
    assert answered == Send(BERT, msg.ResultsClaimed([HeldAttempt(1, 1)], []))
    assert batch == to(BERT, done(3, 1))


def test_a_claim_beside_another_lease(node: Node) -> None:
    found(node, (70, 9))
    node.lease(ANNA, b"C", HOLDER)
    node.open()
    assert claim(node).sends[-2:] == [Send(BERT, msg.ResultsClaimed([HeldAttempt(9, 1)], [])), to(BERT, done(70, 9))]
    assert node.core.lease is not None
    assert node.core.lease.peer == ANNA
    assert node.run(1).actions
    assert node.said(msg.RunJobs(MAP, []), peer=BERT).sends == [Send(BERT, msg.JobsRecalled([]))]
    assert node.said(msg.AckResults(70), peer=BERT).actions == [do.UnspoolBatches(A, [70])]


def test_an_unknown_token_claims_nothing(ready: Node) -> None:
    assert claim(ready, token=b"?").sends == [Send(BERT, msg.ResultsClaimed([], []))]


def test_the_holder_who_comes_back_goes_before_the_claimer(gone: Node) -> None:
    claim(gone)
    effects = gone.lease()
    assert effects.actions == [do.HangUp(BERT, "the process that submitted these jobs is back")]
    assert answer(gone).sends == [done(3, 1)]


def test_the_second_claimer_goes_before_the_first(gone: Node) -> None:
    claim(gone)
    gone.handle(ev.LinkOpened(ANNA))
    effects = gone.said(msg.ClaimResults(b"A"), peer=ANNA)
    assert effects.actions == [do.HangUp(BERT, "another process claims the same results")]
    assert answer(gone).sends == [done(3, 1)]


def test_one_link_speaks_for_one_token(ready: Node) -> None:
    effects = ready.said(msg.ClaimResults(b"A"))
    assert effects.actions == [do.HangUp(ANNA, "one link cannot hold a lease and claim results")]


def test_a_file_that_a_job_sends_is_refused_when_nobody_is_left_to_take_it(ready: Node) -> None:
    ready.run(1)
    file = FileSpec("out", BLOB)
    ready.handle(ev.FileSent(5, 1, 2, file))
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert do.AnswerParcel(5, False) in ready.wait(6).actions
    assert ready.handle(ev.FileSent(6, 1, 2, file)).actions == [do.AnswerParcel(6, False)]


# The end of the node


def test_an_end_in_order_writes_what_nobody_has_fetched(gone: Node) -> None:
    answer(gone)
    assert gone.handle(ev.ExitAsked(at_once=False)).actions == [do.CleanComputation(MAP, True)]
    effects = gone.handle(ev.ComputationCleaned(MAP))
    assert effects.actions == [spool(3, 1), do.Exit("it was told to end and its jobs are done")]


def test_an_end_at_once_waits_a_moment_for_acknowledgements(ready: Node) -> None:
    ready.run(1)
    answer(ready)
    assert ready.handle(ev.ExitAsked(at_once=True)).actions == []
    assert ready.said(msg.AckResults(3)).actions == [do.Exit("it was told to end now")]


def test_an_end_at_once_writes_what_is_not_acknowledged(ready: Node) -> None:
    ready.run(1)
    answer(ready)
    ready.handle(ev.ExitAsked(at_once=True))
    assert ready.wait(0.3).actions == [spool(3, 1), do.Exit("it was told to end now")]


def test_the_node_of_a_program_that_is_gone_ends_at_once_when_nothing_waits(ready: Node) -> None:
    ready.handle(ev.ExitAsked(at_once=False, when_fetched=True))
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.handle(ev.ComputationCleaned(MAP)).actions == [do.Exit("it was told to end and its jobs are done")]


def test_the_node_of_a_program_that_is_gone_waits_until_all_is_fetched(ready: Node) -> None:
    ready.run(1, 2, 3)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.handle(ev.ExitAsked(at_once=False, when_fetched=True))
    answer(ready)
    answer(ready, worker=2)
    assert ready.handle(ev.ComputationCleaned(MAP)).actions == []
    [spooled, *_] = ready.wait(100).actions
    assert isinstance(spooled, do.SpoolBatch)
    [answered, *batches] = claim(ready).sends
    assert answered == Send(BERT, msg.ResultsClaimed([HeldAttempt(1, 1), HeldAttempt(2, 1)], []))
    assert len(batches) == 2
    assert ready.said(msg.AckResults(4), peer=BERT).actions[-1] == do.Exit("it was told to end")


def test_the_node_of_a_program_that_is_gone_does_not_wait_for_ever(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.ExitAsked(at_once=False, when_fetched=True))
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.wait(3500).actions == []
    assert ready.wait(200).actions == [do.Exit("nobody has come for its results")]


def test_the_node_of_a_program_that_is_gone_does_not_wait_for_its_silent_link(ready: Node) -> None:
    ready.run(1)
    answer(ready)
    ready.handle(ev.ExitAsked(at_once=False, when_fetched=True))
    ready.handle(ev.ComputationCleaned(MAP))
    actions = ready.wait(6).actions
    assert do.HangUp(ANNA, "the node is ending") in actions
    assert ready.core.lease is None
    assert list(ready.core.keeper.orphans) == [A]
    assert not ready.core.ended


def test_a_lease_is_noted_where_that_is_asked_for(node: Node) -> None:
    node.core.notes_leases = True
    assert node.lease().actions == [do.NoteLease(A)]


def test_acknowledged_results_on_the_disk_are_removed_once(ready: Node) -> None:
    ready.run(1, 2)
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    ready.handle(ev.WorkerAnswered(2, [Answer(2)]))
    assert len(ready.wait(1.0).actions) == 2
    ready.handle(ev.BatchesSpooled(lease_name(b"A"), [3]))
    assert ready.said(msg.AckResults(3)).actions == [do.UnspoolBatches(lease_name(b"A"), [3])]
    assert ready.said(msg.AckResults(3)) == Effects()
    assert ready.said(msg.AckResults(4)).actions == [do.UnspoolBatches(lease_name(b"A"), [4])]


def test_a_link_claims_one_lease(ready: Node) -> None:
    ready.handle(ev.LinkOpened(BERT))
    ready.said(msg.ClaimResults(b"A"), peer=BERT)
    assert ready.said(msg.ClaimResults(b"C"), peer=BERT).sends == [Send(BERT, msg.ResultsClaimed([], []))]
    assert set(ready.core.claims.claims) == {lease_name(b"C")}


def test_a_claimer_gives_way_to_the_scheduler_that_comes_back(node: Node) -> None:
    node.handle(ev.LinkOpened(BERT))
    node.said(msg.ClaimResults(b"A"), peer=BERT)
    assert node.lease().actions == [do.HangUp(BERT, "the process that submitted these jobs is back")]


def test_interim_results_end_with_their_lease(ready: Node) -> None:
    """Nobody can fetch them any more; what ended waits on."""
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=True))
    ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL, body=b""), BLOB))
    answer(ready)
    cleaned = ready.handle(ev.ComputationCleaned(MAP))
    assert cleaned.actions[0] == do.WithdrawResults([BLOB.name])
    assert [batch.message.sequence for batch in ready.core.keeper.orphans[A].results.batches] == [4]


def test_whoever_has_not_been_told_of_results_cannot_acknowledge_them(ready: Node) -> None:
    ready.run(1)
    answer(ready)
    claim(ready)
    ready.said(msg.AckResults(3), peer=BERT)
    assert ready.core.lease is not None
    assert len(ready.core.lease.results.batches) == 1


def test_there_is_nothing_to_acknowledge_behind_an_unknown_token(ready: Node) -> None:
    claim(ready, token=b"?")
    assert ready.said(msg.AckResults(3), peer=BERT) == Effects()


def test_results_that_come_while_the_disk_is_full_wait_until_it_is_tried_again(ready: Node) -> None:
    ready.run(1, 2)
    answer(ready)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert ready.wait(0).actions == [spool(3, 1)]
    ready.handle(ev.SpoolFailed(A, [3]))
    answer(ready, worker=2)
    assert ready.wait(9).actions == []
    assert ready.wait(1).actions == [spool(3, 1)]


@pytest.mark.parametrize("held", [False, True])
def test_the_disk_answers_for_the_results_of_a_lease_that_is_over(ready: Node, held: bool) -> None:
    """Also when somebody else holds the node, whose batch has the same number."""
    ready.run(1)
    answer(ready)
    ready.handle(ev.LinkLost(ANNA, goodbye=True))
    ready.handle(ev.ComputationCleaned(MAP))
    assert ready.wait(0).actions == [spool(3, 1)]
    if held:
        ready.lease(BERT, b"B", OTHER)
    ready.handle(ev.BatchesSpooled(A, [3]))
    (batch,) = ready.core.keeper.orphans[A].results.batches
    assert batch.kept is Kept.DISK
    assert ready.handle(ev.BatchesSpooled(lease_name(b"?"), [3])) == Effects(), "unknown"


def test_interim_results_are_not_for_whoever_claims_results(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.handle(ev.WorkerSpoke(1, Answer(2, Ending.PROVISIONAL, body=b""), BLOB))
    effects = claim(ready)
    assert effects.actions == [do.WithdrawResults([BLOB.name])]
    assert effects.sends == [Send(BERT, msg.ResultsClaimed([], [HeldAttempt(1, 1)]))]


def test_a_disk_that_fails_for_a_lease_that_is_gone_is_trusted_again(node: Node) -> None:
    assert node.handle(ev.SpoolFailed(A, [3])) == Effects()
    assert node.wait(10).actions == [do.TrustSpool()]


def test_a_claimer_acknowledges_one_batch_after_the_other(node: Node) -> None:
    found(node, (70, 1), (72, 2))
    claim(node)
    assert node.said(msg.AckResults(70), peer=BERT).actions == [do.UnspoolBatches(A, [70])]
    assert node.said(msg.AckResults(72), peer=BERT).actions == [do.UnspoolBatches(A, [72])]
    assert not node.core.keeper.orphans
