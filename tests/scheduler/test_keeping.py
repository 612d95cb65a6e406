"""What must survive the process of a shared scheduler, step by step."""

from __future__ import annotations

import pytest

from dispy.model import ComputationId, ComputationSpec, Ending, Holder, JobDone, JobState, NodeInfo, ProcessId
from dispy.scheduler import events as ev
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import JobEnded
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.keeping import Changes, ClusterMark
from dispy.wire import messages as msg

A, B = ComputationId("a" * 32), ComputationId("b" * 32)
ONE, TWO = ProcessId("1" * 32), ProcessId("2" * 32)
INFO = NodeInfo(ONE, "one", 2, "x", ())
NODE = ev.RestoredNode(ONE, INFO, "10.0.0.1")
SHARE = ev.RestoredShare(A, ONE, 2, (), b"setup")
OPEN = ClusterMark(A, "open", is_open_ended=True, forsaken="")


class Kept:
    """A core, and what is to be kept of what it is told."""

    def __init__(self) -> None:
        self.core = SchedulerCore(holder=Holder("daemon", "host", 1, "dispyscheduler"), token=b"t" * 32)

    def handle(self, event: ev.Event) -> Changes:
        return self.core.changes(event, self.core.handle(event, 0.0))

    def timeout(self, now: float) -> Changes:
        return self.core.changes(None, self.core.handle_timeout(now))

    def said(self, message: msg.AnyMessage, *bodies: bytes) -> Changes:
        return self.handle(ev.NodeSaid(ONE, message, bodies))

    def ready(self) -> None:
        """One cluster with one node."""
        self.handle(ev.ClusterOpened(ComputationSpec(A, "f", "function")))
        self.handle(ev.NodeJoined(ONE, INFO, "10.0.0.1"))
        self.handle(ev.NodeAllocated(A, ONE, 2, (), b"setup"))
        self.said(msg.LeaseGranted([], []))
        self.said(msg.ComputationReady(A))


@pytest.fixture
def kept() -> Kept:
    made = Kept()
    made.ready()
    return made


@pytest.mark.parametrize(
    "changes",
    [
        Changes(submitted=[JobRecord(1, A, b"")]),
        Changes(marked=[JobRecord(1, A, b"")]),
        Changes(ended=[JobEnded(JobRecord(1, A, b""), JobState.Cancelled)]),
        Changes(clusters=[OPEN]),
        Changes(nodes=[NODE]),
        Changes(known=frozenset()),
        Changes(shares=[SHARE]),
    ],
)
def test_each_kind_of_change_is_one(changes: Changes) -> None:
    assert changes
    assert not Changes()


def test_clusters_and_how_they_stand(kept: Kept) -> None:
    opened = ev.ClusterOpened(ComputationSpec(B, "f", "function"), open_ended=False)
    assert kept.handle(opened) == Changes(clusters=[ClusterMark(B, "open", is_open_ended=False, forsaken="")])
    assert kept.handle(ev.ClusterWidened(B)).clusters == [ClusterMark(B, "open", is_open_ended=True, forsaken="")]
    assert kept.handle(ev.ClusterNarrowed(B, "none comes")).clusters == [
        ClusterMark(B, "open", is_open_ended=False, forsaken="none comes")
    ]
    kept.handle(ev.JobsSubmitted([JobRecord(1, A, b"")]))
    assert kept.handle(ev.ClusterClosing(A)).clusters == [ClusterMark(A, "draining", is_open_ended=True, forsaken="")]
    assert kept.handle(ev.ClusterClosing(A, terminate=True)).clusters == [
        ClusterMark(A, "terminating", is_open_ended=True, forsaken="")
    ]
    assert kept.handle(ev.ClusterClosing(B)).clusters == [ClusterMark(B, "ended", is_open_ended=False, forsaken="")]
    assert not kept.handle(ev.ClusterClosing(B)), "it is not known any more"


def test_nodes_that_come_change_and_go(kept: Kept) -> None:
    two = NodeInfo(TWO, "two", 1, "x", ())
    assert kept.handle(ev.NodeJoined(TWO, two, "10.0.0.2")) == Changes(nodes=[ev.RestoredNode(TWO, two, "10.0.0.2")])
    more = NodeInfo(ONE, "one", 4, "x", ())
    assert kept.said(msg.NodeDescribed(more)) == Changes(nodes=[ev.RestoredNode(ONE, more, "10.0.0.1")])
    assert kept.handle(ev.NodeLost(TWO, "gone")).known == {ONE}
    assert not kept.handle(ev.NodeSaid(TWO, msg.NodeDescribed(two), ()))
    kept.handle(ev.LinkBroken(ONE))
    assert kept.timeout(1e3).known == frozenset()
    assert Kept().handle(ev.Restored([], [], [NODE], [])).known == {ONE}


def test_shares_as_owners_and_users_want_them(kept: Kept) -> None:
    assert kept.handle(ev.NodeAllocated(A, ONE, 2, (), b"setup")) == Changes(shares=[SHARE])
    paused = ev.RestoredShare(A, ONE, 2, (), b"setup", is_paused=True)
    assert kept.handle(ev.NodeSteered(A, ONE, ev.Steering.PAUSE)) == Changes(shares=[paused])
    assert kept.handle(ev.NodeSteered(A, ONE, ev.Steering.USE)).shares == [SHARE]
    once = ev.NodeAllocated(A, ONE, 1, oversubscribe=True)
    assert kept.handle(once).shares == [ev.RestoredShare(A, ONE, 1, oversubscribe=True)]
    assert kept.handle(ev.NodeAllocated(A, ONE, 0)) == Changes(shares=[ev.RestoredShare(A, ONE, 0)])
    assert not kept.handle(ev.NodeAllocated(B, ONE, 1))
    assert not kept.handle(ev.NodeAllocated(A, TWO, 1))
    assert not kept.handle(ev.NodeSteered(B, ONE, ev.Steering.PAUSE))


def test_an_owner_that_has_not_answered_has_no_share() -> None:
    kept = Kept()
    kept.handle(ev.ClusterOpened(ComputationSpec(A, "f", "function")))
    kept.handle(ev.NodeJoined(ONE, INFO, "10.0.0.1"))
    assert not kept.handle(ev.NodeSteered(A, ONE, ev.Steering.PAUSE))


def test_jobs_from_their_submission_to_their_end(kept: Kept) -> None:
    jobs = [JobRecord(number, A, b"") for number in (1, 2, 3)]
    changes = kept.handle(ev.JobsSubmitted(jobs))
    assert (changes.submitted, changes.marked, changes.ended) == (jobs, jobs[:2], [])
    done = JobDone(1, 1, int(Ending.FINISHED), 1.0, 2.0, 1, 0, 0, 0)
    changes = kept.said(msg.JobsDone(1, [done]), b"r")
    assert [ended.job.job for ended in changes.ended] == [1]
    assert changes.marked == [jobs[2]], "it is handed out"
    assert not changes.submitted
    assert kept.handle(ev.CancelAsked([2])).marked == [jobs[1]], "it is to be ended"
    back = JobDone(3, 1, int(Ending.NOT_STARTED), 0.0, 0.0, 0, 0, 0, 0)
    assert jobs[2] in kept.said(msg.JobsDone(2, [back]), b"").marked


def test_what_changes_nothing_that_must_survive(kept: Kept) -> None:
    assert not kept.said(msg.ComputationReady(A))
    assert not kept.said(msg.LeaseGranted([], [A]))
    assert not kept.handle(ev.NodeSuspected(ONE))
