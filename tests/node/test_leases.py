"""The node core by value: links, who holds the node, who stands in line, what a break of the link leaves."""

from __future__ import annotations

from typing import Any

import pytest
from corenode import ANNA, BERT, HOLDER, MAP, OTHER, REDUCE, Answer, Node, done, node, ready, recalled, spec

from dispy.model import BlobRef, Ending, HeldAttempt, Holder, JobSpec, ProcessId
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects, Send
from dispy.settings import GRACE_TIMEOUT
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


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


def test_a_scheduler_that_is_away_is_not_called_a_program() -> None:
    holder = Holder("root", "host", 1, "dispyscheduler", gone=True, results=2)
    assert holder.absence == "that scheduler is away or cut off, 2 results wait there for its next start"


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
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    effects = ready.lease(BERT, b"A")
    assert effects.sends == [Send(BERT, msg.LeaseGranted([HeldAttempt(1, 1)], [MAP]))]
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).sends[0].peer == BERT


@pytest.mark.parametrize("goodbye", [False, True])
def test_another_process_with_the_token_waits_for_the_end_of_the_link_before_it(ready: Node, goodbye: bool) -> None:
    """Whichever comes late is the one that is gone: if it took the lease at once, the other would wait in silence."""
    ready.run(1)
    effects = ready.lease(BERT, b"A")
    assert [type(send.message) for send in effects.sends] == [], "a refusal would mean that its jobs are gone"
    assert ready.run(2).sends == [], "the lease is where it was"
    effects = ready.handle(ev.LinkLost(ANNA, goodbye=goodbye))
    [granted] = effects.sends
    assert (granted.peer, type(granted.message)) == (BERT, msg.LeaseGranted)
    assert HeldAttempt(1, 1) in granted.message.held
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).sends[0].peer == BERT
    ready.wait(100.0)
    assert ready.core.lease is not None


def test_a_process_that_is_gone_takes_no_lease_by_what_it_said_last(ready: Node) -> None:
    ready.run(1)
    ready.lease(BERT, b"A")
    ready.handle(ev.LinkLost(BERT, goodbye=False))
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).sends[0].peer == ANNA


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


def test_stranger_gets_its_jobs_back(node: Node) -> None:
    node.handle(ev.LinkOpened(ANNA))
    assert node.run(1, 2).sends == [recalled(1, 2)]
    closed = [Send(ANNA, msg.ComputationClosed(MAP))]
    assert node.said(msg.CloseComputation(MAP)) == Effects([], closed)


def test_message_of_a_wrong_kind_ends_the_link(node: Node) -> None:
    node.lease()
    effects = node.said(msg.ComputationReady(MAP))
    assert effects.actions == [do.HangUp(ANNA, "a scheduler does not send ComputationReady to a node")]


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


def test_a_released_lease_takes_nothing_more(ready: Node) -> None:
    ready.run(1)
    ready.said(msg.ReleaseLease())
    assert ready.run(2).sends == [recalled(2)]
    refused: Any = ready.said(msg.OpenComputation(spec(REDUCE))).sends[0].message
    assert refused == msg.ComputationRefused(REDUCE, "the node is ending", final=False)
    # the same process asks anew: it stands in line until the first lease is cleared away
    asked: Any = ready.said(msg.AskLease(b"A", HOLDER)).sends[0].message
    assert isinstance(asked, msg.LeaseRefused)


def test_a_link_that_is_gone_says_nothing_more(node: Node) -> None:
    node.lease()
    node.lease(BERT, b"B", OTHER)
    node.handle(ev.LinkLost(BERT, goodbye=False))
    assert node.said(msg.RunJobs(MAP, [JobSpec(1, 1, 1)]), b"x", peer=BERT) == Effects()


def test_whoever_asks_for_the_node_claims_nothing_more(ready: Node) -> None:
    ready.handle(ev.LinkOpened(BERT))
    ready.said(msg.ClaimResults(b"?"), peer=BERT)
    ready.said(msg.AskLease(b"B", OTHER), peer=BERT)
    assert not ready.core.claims.claims
    ready.said(msg.ClaimResults(b"?"), peer=BERT)
    ready.said(msg.ReleaseLease(), peer=BERT)
    assert not ready.core.claims.claims


def test_results_of_a_lease_that_is_given_back_are_let_go(ready: Node) -> None:
    """Those that are here, and those of the jobs that end because of it."""
    large, later = BlobRef(b"n" * 32, 100_000), BlobRef(b"m" * 32, 100_000)
    ready.run(1, 2)
    ready.handle(ev.WorkerAnswered(1, [Answer(2)], {2: large}))
    assert do.WithdrawResults([large.name]) in ready.said(msg.ReleaseLease()).actions
    ready.handle(ev.WorkerAnswered(2, [Answer(2)], {2: later}))
    assert do.WithdrawResults([later.name]) in ready.handle(ev.ComputationCleaned(MAP)).actions
    assert not ready.core.keeper.orphans


def test_a_holder_that_was_sent_away_does_not_keep_the_node(ready: Node) -> None:
    """Although its time of grace ends while its computation is being cleaned away."""
    ready.run(1)
    ready.handle(ev.EndAsked("closing time"))
    ready.handle(ev.WorkerAnswered(1, [Answer(2, Ending.INTERRUPTED)]))
    ready.wait(ready.core.grace + 1)
    ready.handle(ev.ComputationCleaned(MAP))
    assert ready.core.lease is None


def test_the_successor_of_a_holder_that_was_sent_away_gets_a_lease_of_its_own(ready: Node) -> None:
    """He waits for the end of the other's link; what ends with that order is not for him to take up."""
    ready.lease(BERT, b"A", HOLDER)
    effects = ready.handle(ev.EndAsked("closing time"))
    assert effects.actions[0] == do.HangUp(ANNA, "closing time")
    assert not any(isinstance(send.message, msg.LeaseGranted) for send in effects.sends)
    granted = ready.handle(ev.ComputationCleaned(MAP)).sends
    assert Send(BERT, msg.LeaseGranted([], [])) in granted


def test_results_go_to_the_disk_at_once_when_their_claimer_is_gone(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.handle(ev.LinkOpened(BERT))
    ready.said(msg.ClaimResults(b"A"), peer=BERT)
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert ready.wait(0) == Effects(), "he hears of them"
    ready.handle(ev.LinkLost(BERT, goodbye=False))
    assert [type(action) for action in ready.wait(0).actions] == [do.SpoolBatch]


def test_of_two_processes_with_a_token_in_line_the_one_whose_link_ends_leaves_it(ready: Node) -> None:
    """What one said last may come after what its successor says first."""
    third = ProcessId("c" * 32)
    ready.lease(BERT, b"B", OTHER)
    ready.lease(third, b"B", OTHER)
    ready.lease(BERT, b"B", OTHER)
    assert [waiter.peer for waiter in ready.core.line] == [third, BERT]
    ready.handle(ev.LinkLost(BERT, goodbye=False))
    assert [waiter.peer for waiter in ready.core.line] == [third]
