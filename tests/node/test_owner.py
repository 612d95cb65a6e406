"""The node core by value: what the owner of a node does to it while somebody holds it."""

from __future__ import annotations

from typing import Any

from corenode import ANNA, BERT, MAP, OTHER, WALL, Answer, Node, done, node, ready, recalled
from msgspec.structs import replace

from dispy.model import Ending, Holder
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects, Send
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


def test_only_an_offer_that_comes_back_is_announced(node: Node) -> None:
    assert node.handle(ev.OfferChanged(0, "stopped")).actions == []
    assert node.handle(ev.OfferChanged(0, "closed until 17:00")).actions == []
    assert node.handle(ev.OfferChanged(1)).actions == [do.Announce()]


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


def test_snapshot_tells_what_people_may_see(ready: Node) -> None:
    ready.run(1, 2, 3)
    shown: Any = ready.core.snapshot()
    assert (shown.queued, shown.given, shown.workers, shown.waiting) == (1, 2, 2, 0)
    assert shown.computations == [(MAP, "compute", "ready")]


def test_the_load_is_told_to_the_holder_only(node: Node) -> None:
    load: Any = ("load",)
    assert node.handle(ev.LoadSampled(load)) == Effects()
    node.lease()
    node.handle(ev.LinkOpened(BERT))
    assert node.handle(ev.LoadSampled(load)) == Effects([], [Send(ANNA, msg.LoadMeasured(load))])
    node.handle(ev.LinkLost(ANNA, goodbye=False))
    assert node.handle(ev.LoadSampled(load)) == Effects()


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


def test_a_scheduler_that_gave_its_node_back_keeps_its_link(ready: Node) -> None:
    ready.run(1)
    ready.said(msg.ReleaseLease())
    assert ready.handle(ev.EndAsked("closing time")) == Effects()
