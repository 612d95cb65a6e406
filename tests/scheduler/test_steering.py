"""The user steers nodes: pause, cap, close, renew, use. By value."""

from __future__ import annotations

from typing import Any

import pytest
import test_scheduler_core as core

from dispy.model import AvailInfo, Ending, JobState
from dispy.scheduler import events as ev
from dispy.scheduler.effects import AskAllocation, Effects, NodeClosed, NodeMeasured, NodeOffered, NodeOpened
from dispy.scheduler.events import Steering
from dispy.wire import messages as msg

MAP, N1, N2 = core.MAP, core.N1, core.N2
Scheduler, only, said, info = core.Scheduler, core.only, core.said, core.info


@pytest.fixture
def busy() -> Any:
    """MAP is open, job 1 runs on N1 (one CPU), jobs 2 and 3 wait."""
    scheduler = Scheduler()
    scheduler.open()
    scheduler.ready()
    scheduler.submit(1, 2, 3)
    return scheduler


def steer(scheduler: Any, how: Steering, cpus: int = 0, *, terminate: bool = False, node: Any = N1) -> Effects:
    effects: Effects = scheduler.handle(ev.NodeSteered(MAP, node, how, cpus, terminate))
    return effects


def test_paused_node_keeps_what_it_has_and_gets_no_more(busy: Any) -> None:
    assert steer(busy, Steering.PAUSE) == Effects()
    assert core.sends_of(busy.done(N1, 1)) == []
    assert "is deallocated for this cluster" in busy.core.explain(2)
    assert busy.core.snapshot().nodes[0].state == "leased"
    assert core.sends_of(steer(busy, Steering.USE)) == [(N1, [2])]


def test_pinned_jobs_wait_for_a_paused_node(busy: Any) -> None:
    steer(busy, Steering.PAUSE)
    assert busy.submit(4, node=N1) == Effects()
    assert "allocate_node uses it again" in busy.core.explain(4)


def test_cap_bounds_what_runs(busy: Any) -> None:
    scheduler = Scheduler()
    scheduler.open()
    scheduler.ready(N1, 4)
    assert steer(scheduler, Steering.CAP, 2) == Effects(said(N1, msg.OpenComputation(core.spec(), b"", 2)))
    assert core.sends_of(scheduler.submit(1, 2, 3)) == [(N1, [1, 2])]
    assert core.sends_of(steer(scheduler, Steering.CAP, 3)) == [(N1, [3])]
    steer(scheduler, Steering.CAP, 0)
    scheduler.submit(4)
    assert core.sends_of(scheduler.done(N1, 1)) == []
    assert core.sends_of(steer(scheduler, Steering.CAP, 3)) == [(N1, [4])]


def test_closed_node_finishes_its_jobs_and_is_released(busy: Any) -> None:
    assert steer(busy, Steering.CLOSE) == Effects(said(N1, msg.CloseComputation(MAP)))
    assert steer(busy, Steering.CLOSE) == Effects(), "it is asked for once"
    assert core.sends_of(busy.done(N1, 1)) == []
    assert busy.said(N1, msg.ComputationClosed(MAP)) == Effects(
        said(N1, msg.ReleaseLease()), [NodeClosed(MAP, N1, "the user closed it for this cluster")]
    )
    assert steer(busy, Steering.USE) == only(AskAllocation(MAP, N1, info(N1), "10.0.0.1"))


def test_closing_a_node_can_end_its_jobs_also_later(busy: Any) -> None:
    steer(busy, Steering.CLOSE)
    closing = said(N1, msg.CloseComputation(MAP, terminate=True))
    assert steer(busy, Steering.CLOSE, terminate=True) == Effects(closing)
    effects = busy.done(N1, 1, ending=Ending.INTERRUPTED)
    assert effects.notices[0].jobs[0].state is JobState.Terminated


def test_jobs_that_ask_for_a_closed_node_are_abandoned(busy: Any) -> None:
    busy.submit(4, node=N1)
    steer(busy, Steering.CLOSE)
    assert busy.jobs[4].state is JobState.Abandoned
    assert busy.jobs[2].state is JobState.Created


def test_closing_a_node_that_is_not_used_declines_it() -> None:
    scheduler = Scheduler()
    scheduler.open()
    scheduler.join()
    scheduler.submit(1, node=N1)
    steer(scheduler, Steering.CLOSE)
    assert scheduler.jobs[1].state is JobState.Abandoned


def test_renewed_node_is_closed_asked_for_and_opened_without_a_release(busy: Any) -> None:
    assert steer(busy, Steering.RENEW) == Effects(said(N1, msg.CloseComputation(MAP)))
    assert "set up anew" in busy.core.explain(2)
    busy.done(N1, 1)
    assert busy.said(N1, msg.ComputationClosed(MAP)) == only(
        NodeClosed(MAP, N1, "it is set up anew", renewing=True), AskAllocation(MAP, N1, info(N1), "10.0.0.1")
    )
    assert "set up anew" in busy.core.explain(2)
    assert busy.handle(ev.NodeAllocated(MAP, N1, 1, (), b"new")) == Effects(
        said(N1, msg.OpenComputation(core.spec(), b"new", *OPENED))
    )
    effects = busy.said(N1, msg.ComputationReady(MAP))
    assert effects.notices[0] == NodeOpened(MAP, N1)
    assert core.sends_of(effects) == [(N1, [2])]


OPENED: tuple[int, ...] = ()
"""What stands behind the arguments of setup in the message that opens a computation."""


def test_renewed_node_whose_owner_declines_is_released(busy: Any) -> None:
    steer(busy, Steering.RENEW)
    busy.done(N1, 1)
    busy.said(N1, msg.ComputationClosed(MAP))
    assert busy.handle(ev.NodeAllocated(MAP, N1, 0)) == Effects(
        said(N1, msg.ReleaseLease()), [NodeClosed(MAP, N1, "the cluster does not use it any more")]
    )


def test_renewal_that_is_overtaken_is_an_end(busy: Any) -> None:
    steer(busy, Steering.RENEW)
    busy.handle(ev.NodeAllocated(MAP, N1, 0))
    busy.done(N1, 1)
    (closed,) = busy.said(N1, msg.ComputationClosed(MAP)).notices
    assert isinstance(closed, NodeClosed)
    assert not closed.renewing, "its owner does not want it any more"


def test_renewal_at_the_end_of_a_cluster_is_an_end(busy: Any) -> None:
    steer(busy, Steering.RENEW)
    busy.handle(ev.ClusterClosing(MAP, terminate=True))
    busy.done(N1, 1)
    closed = busy.said(N1, msg.ComputationClosed(MAP)).notices[0]
    assert isinstance(closed, NodeClosed)
    assert not closed.renewing


def test_node_that_is_being_closed_can_be_used_again(busy: Any) -> None:
    steer(busy, Steering.CLOSE)
    assert steer(busy, Steering.USE) == Effects()
    busy.done(N1, 1)
    effects = busy.said(N1, msg.ComputationClosed(MAP))
    assert effects.sends == []
    assert effects.notices[-1] == AskAllocation(MAP, N1, info(N1), "10.0.0.1")


def test_refused_node_is_asked_again_when_it_is_used(busy: Any) -> None:
    busy.ready(N2)
    busy.said(N2, msg.ComputationRefused(MAP, "disk full", final=False))
    effects = steer(busy, Steering.USE, node=N2)
    assert [type(send.message) for send in effects.sends] == [msg.OpenComputation]
    assert busy.core.next_deadline() is None


def test_more_cpus_ask_every_owner_anew(busy: Any) -> None:
    assert busy.said(N1, msg.NodeDescribed(info(N1, 3))).notices[0] == AskAllocation(MAP, N1, info(N1, 3), "10.0.0.1")
    assert busy.said(N1, msg.NodeDescribed(info(N1, 2))).notices == [NodeOffered(MAP, N1, 2, 1)]


def test_another_offer_is_told_to_clusters_that_use_the_node(busy: Any) -> None:
    assert busy.said(N1, msg.NodeDescribed(info(N1, 3))).notices[1:] == [NodeOffered(MAP, N1, 3, 1)]
    assert busy.handle(ev.NodeAllocated(MAP, N1, 3)).notices[0] == NodeOffered(MAP, N1, 3, 3)
    assert busy.said(N1, msg.NodeDescribed(info(N1, 2))).notices == [NodeOffered(MAP, N1, 2, 2)]
    steer(busy, Steering.PAUSE)
    assert busy.said(N1, msg.NodeDescribed(info(N1, 0))).notices == [NodeOffered(MAP, N1, 0, 0)]
    effects = busy.handle(ev.NodeJoined(N1, info(N1, 1), "10.0.0.1"))
    assert effects.notices == [NodeOffered(MAP, N1, 1, 0)]


def test_load_is_told_to_clusters_that_use_the_node(busy: Any) -> None:
    avail = AvailInfo(50.0, 1, 2, 3.0)
    assert busy.said(N1, msg.LoadMeasured(avail)) == only(NodeMeasured(MAP, N1, avail))
    assert busy.open(core.REDUCE) == only(AskAllocation(core.REDUCE, N1, info(N1), "10.0.0.1", avail))


def test_steering_what_is_not_known_is_ignored(busy: Any) -> None:
    assert steer(busy, Steering.PAUSE, node=N2) == Effects()
    assert busy.core.counters.ignored == 1


def test_jobs_of_a_widened_cluster_wait_although_every_node_refused() -> None:
    scheduler = Scheduler()
    scheduler.open(open_ended=False)
    scheduler.ready()
    assert scheduler.handle(ev.ClusterWidened(MAP)) == Effects()
    scheduler.said(N1, msg.ComputationRefused(MAP, "setup failed"))
    assert scheduler.submit(1) == Effects()
    scheduler.handle(ev.ClusterWidened(core.REDUCE))
    assert scheduler.core.counters.ignored == 1


def test_a_closed_node_that_refused_and_still_runs_a_job_is_used_again_with_what_its_owner_says(busy: Any) -> None:
    busy.said(N1, msg.ComputationRefused(MAP, "setup failed"))
    steer(busy, Steering.CLOSE)
    effects = steer(busy, Steering.USE)
    opened = said(N1, msg.OpenComputation(core.spec()))
    assert effects == Effects(opened, [AskAllocation(MAP, N1, info(N1), "10.0.0.1")])
    busy.done(N1, 1)
    busy.core.check()


def test_a_node_that_refused_for_good_is_given_back_whatever_its_owner_says() -> None:
    """Its owner is asked anew because the node offers more CPUs, and answers when the node has refused."""
    scheduler = Scheduler()
    scheduler.open()
    scheduler.ready(N1, 2)
    described = scheduler.said(N1, msg.NodeDescribed(info(N1, 3)))
    assert AskAllocation(MAP, N1, info(N1, 3), "10.0.0.1") in described.notices
    assert scheduler.said(N1, msg.ComputationRefused(MAP, "setup failed")).sends == []
    allocated = scheduler.handle(ev.NodeAllocated(MAP, N1, 3))
    assert [send.message for send in allocated.sends] == [msg.ReleaseLease()]
