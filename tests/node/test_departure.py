"""The node core by value: how a node leaves that was told to end."""

from __future__ import annotations

from corenode import ANNA, BERT, MAP, OTHER, REDUCE, Answer, Node, ahead, fed, heavy, node, ready, recalled

from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.departure import EXIT_TIMEOUT
from dispy.node.effects import Effects
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


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


def test_an_order_to_end_now_overrules_an_orderly_one_and_not_the_reverse(ready: Node) -> None:
    ahead(ready, *range(1, 10))
    assert ready.handle(ev.ExitAsked(at_once=False)).sends != []
    assert ready.handle(ev.ExitAsked(at_once=False)) == Effects()
    now = ready.handle(ev.ExitAsked(at_once=True))
    assert now.sends == [recalled(9)]
    assert ready.handle(ev.ExitAsked(at_once=False)) == Effects()
    assert ready.handle(ev.ExitAsked(at_once=True)) == Effects()


def test_what_closes_or_ends_takes_no_jobs(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.said(msg.CloseComputation(MAP))
    assert ready.run(5).sends == [recalled(5)]
    assert ready.run(6, key=REDUCE).sends == [recalled(6)]
    ready.handle(ev.ExitAsked(at_once=True))
    assert ready.run(7).sends == [recalled(7)]


def test_a_node_that_ends_at_once_takes_no_jobs(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.handle(ev.ExitAsked(at_once=True))
    assert ready.run(7).sends == [recalled(7)]


def test_a_node_that_ends_is_leased_to_nobody_new(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.ExitAsked(at_once=False))
    assert ready.lease(BERT, b"B", OTHER).actions == [do.HangUp(BERT, "the node is ending")]
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    assert isinstance(ready.lease().sends[0].message, msg.LeaseGranted)


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


def test_a_node_that_ends_at_once_starts_nothing_and_does_not_spin(ready: Node) -> None:
    """REDUCE waits for a CPU; the time at which it would take one comes before the silent workers are given up."""
    ahead(ready, 1, 2, 3, 4)
    ready.open(REDUCE)
    assert ready.run(5, key=REDUCE) == Effects()
    ready.handle(ev.ExitAsked(at_once=True))
    assert ready.core.next_deadline() == EXIT_TIMEOUT
    assert ready.wait(EXIT_TIMEOUT - 0.01) == Effects()
    assert ready.wait(0.02).actions == [do.Exit("it was told to end now")]


def test_jobs_of_a_node_that_ends_in_order_still_get_their_cpus_in_time(ready: Node) -> None:
    ready.open(REDUCE)
    ready.run(1, 2, 3, 4)
    ready.run(5, key=REDUCE)
    ready.handle(ev.ExitAsked(at_once=False))
    assert ready.wait(0.2).actions == [do.RecallFromWorker(MAP, 1, 3)]


def test_a_free_node_that_waits_until_its_results_are_fetched_is_leased_to_nobody(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    ready.handle(ev.ExitAsked(at_once=False, when_fetched=True))
    ready.handle(ev.LinkLost(ANNA, goodbye=True))
    ready.handle(ev.ComputationCleaned(MAP))
    assert ready.core.lease is None
    assert ready.lease(BERT, b"B", OTHER).actions == [do.HangUp(BERT, "the node is ending")]
    assert ready.lease().actions == [do.HangUp(ANNA, "the node is ending")]


def test_an_end_at_once_does_not_wait_for_somebody_who_is_gone(ready: Node) -> None:
    ready.run(1)
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    actions = ready.handle(ev.ExitAsked(at_once=True)).actions
    assert [type(action) for action in actions] == [do.SpoolBatch, do.Exit]


def test_nothing_follows_the_end(ready: Node) -> None:
    """Not even the end of a job that is over its time at the same moment."""
    heavy(ready, 1, timeout=EXIT_TIMEOUT)
    ready.run(2)
    ready.handle(ev.WorkerAnswered(2, [Answer(2)]))
    ready.handle(ev.ExitAsked(at_once=True))
    assert ready.wait(1).actions[-1] == do.Exit("it was told to end now")
    assert ready.core.next_deadline() is None


def test_an_order_to_end_shortens_no_grace(ready: Node) -> None:
    """The program may come back for what has not started; then that is finished before the node ends."""
    ready.run(1, 2, 3)
    ready.handle(ev.LinkLost(ANNA, goodbye=False))
    ready.handle(ev.ExitAsked(at_once=False))
    lease = ready.core.lease
    assert lease is not None
    assert set(lease.jobs) == {1, 2, 3}


def test_a_second_order_to_end_now_postpones_nothing(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.handle(ev.ExitAsked(at_once=True))
    ready.wait(EXIT_TIMEOUT - 0.1)
    ready.handle(ev.ExitAsked(at_once=True))
    assert ready.wait(0.1).actions == [do.Exit("it was told to end now")]
