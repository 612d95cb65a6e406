"""Jobs with wishes about their node, priorities, and further attempts. By value."""

from __future__ import annotations

import pytest
import test_scheduler_core as core

from dispy.model import ComputationId, Ending, JobOptions, JobState, NodeInfo, ProcessId
from dispy.scheduler import events as ev
from dispy.scheduler.effects import Effects, JobRequeued, JobsEnded, Send
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages as msg

MAP, REDUCE, N1, N2, N3, NAMES = core.MAP, core.REDUCE, core.N1, core.N2, core.N3, core.NAMES
sends_of, spec = core.sends_of, core.spec


class Wishes(core.Scheduler):  # type: ignore[misc,name-defined]
    """A scheduler to which jobs with options are submitted."""

    def wish(self, number: int, cluster: ComputationId = MAP, **options: object) -> Effects:
        record = JobRecord(number, cluster, b"%d" % number, options=JobOptions(**options))  # type: ignore[arg-type]
        self.jobs[number] = record
        return self.handle(ev.JobsSubmitted([record]))

    def node(self, node: ProcessId, cpus: int = 1, **has: object) -> None:
        """A node with these properties that is ready for MAP."""
        described = NodeInfo(node, NAMES[node], cpus, "x", (), **has)  # type: ignore[arg-type]
        self.handle(ev.NodeJoined(node, described, "10.0.0.1"))
        self.handle(ev.NodeAllocated(MAP, node, cpus))
        self.said(node, msg.LeaseGranted([], []))
        self.said(node, msg.ComputationReady(MAP))


@pytest.fixture
def wishes() -> Wishes:
    made = Wishes()
    made.open()
    return made


def test_tags_memory_and_gpus_choose_the_node(wishes: Wishes) -> None:
    wishes.node(N1, 4)
    wishes.node(N2, 4, tags=("ssd", "big"), memory=8 << 30)
    wishes.node(N3, 4, tags=("ssd",), gpus=2)
    assert sends_of(wishes.wish(1, tags=("ssd", "big"))) == [(N2, [1])]
    assert sends_of(wishes.wish(2, memory=5 << 30)) == [(N2, [2])]
    assert sends_of(wishes.wish(3, memory=5 << 30)) == [], "only one of them fits into the memory"
    assert sends_of(wishes.wish(4, gpus=2)) == [(N3, [4])]
    assert sends_of(wishes.wish(5, gpus=1)) == []
    assert sends_of(wishes.done(N3, 4)) == [(N3, [5])]
    assert sends_of(wishes.done(N2, 2)) == [(N2, [3])]


def test_higher_priority_goes_first_across_clusters(wishes: Wishes) -> None:
    wishes.open(REDUCE)
    wishes.node(N1, 1)
    wishes.handle(ev.NodeAllocated(REDUCE, N1, 1))
    wishes.said(N1, msg.ComputationReady(REDUCE))
    wishes.submit(1, 2, 3)
    wishes.wish(4, cluster=REDUCE, priority=3)
    wishes.wish(5, priority=3)
    wishes.wish(6, priority=-1)
    order = []
    running = 1
    for _ in range(5):
        ((_, given),) = sends_of(wishes.done(N1, running))
        order += given
        running = given[0]
    assert order == [4, 5, 2, 3, 6]


def test_a_job_of_several_cpus_waits_for_them_and_is_not_kept_out(wishes: Wishes) -> None:
    wishes.node(N1, 4)
    wishes.submit(1, 2, 3, 4)
    assert sends_of(wishes.wish(5, cpus=3)) == []
    wishes.submit(6, 7)
    assert sends_of(wishes.done(N1, 1)) == []
    assert "is being kept free" in wishes.core.explain(5)
    assert "kept free" in wishes.core.explain(7)
    assert sends_of(wishes.done(N1, 2)) == []
    assert sends_of(wishes.done(N1, 3)) == [(N1, [5])]
    assert sends_of(wishes.done(N1, 4)) == [(N1, [6])]
    assert sends_of(wishes.submit(8)) == []
    assert sends_of(wishes.done(N1, 5)) == [(N1, [7, 8])]


def test_a_cancelled_job_of_several_cpus_keeps_nothing_free(wishes: Wishes) -> None:
    wishes.node(N1, 2)
    wishes.submit(1, 2)
    wishes.wish(3, cpus=2)
    wishes.submit(4)
    assert sends_of(wishes.done(N1, 1)) == []
    assert sends_of(wishes.handle(ev.CancelAsked([3]))) == [(N1, [4])]


def test_all_cpus_of_a_node(wishes: Wishes) -> None:
    wishes.node(N1, 3)
    assert sends_of(wishes.wish(1, cpus=0)) == [(N1, [1])]
    assert sends_of(wishes.submit(2, 3)) == []
    assert sends_of(wishes.done(N1, 1)) == [(N1, [2, 3])]


def test_short_jobs_do_not_keep_out_one_that_needs_the_node(wishes: Wishes) -> None:
    wishes.node(N1, 2)
    wishes.submit(*range(1, 500))
    wishes.done(N1, 1, seconds=0.0001)
    wishes.wish(9000, cpus=2, priority=1)
    flying = [number for number, record in wishes.jobs.items() if record.state is JobState.Running]
    given = [sends_of(wishes.done(N1, number, seconds=0.0001)) for number in flying]
    assert given[-1] == [(N1, [9000])]
    assert not any(given[:-1])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tags": ("gpu", "x")}, "does not have the tags gpu, x"),
        ({"gpus": 1}, "has no GPU"),
        ({"memory": 4 << 30}, "has 2.0 GiB of memory, not 4.0 GiB"),
        ({"cpus": 3}, "has 2 CPUs, not 3"),
    ],
)
def test_jobs_that_no_known_node_can_run(wishes: Wishes, options: dict[str, object], reason: str) -> None:
    wishes.node(N1, 2, memory=2 << 30)
    assert wishes.wish(1, **options) == Effects()
    assert f"no node that is known can run it (node n1 (10.0.0.1) {reason})" in wishes.core.explain(1)
    assert wishes.core.why_waiting() is not None
    assert sends_of(wishes.submit(2)) == [(N1, [2])], "others run"


def test_jobs_that_no_node_can_ever_run_are_abandoned() -> None:
    wishes = Wishes()
    wishes.handle(ev.ClusterOpened(spec(), open_ended=False, named=2))
    wishes.node(N1, 2)
    wishes.wish(1, cpus=4)
    assert wishes.core.waiting == 1, "the second node may have them"
    wishes.join(N2, 3)
    effects = wishes.handle(ev.NodeAllocated(MAP, N2, 3))
    cause = "no node can run it: n1 (10.0.0.1) has 2 CPUs, not 4; n2 (10.0.0.1) has 3 CPUs, not 4"
    assert effects.notices == [wishes.ended(JobState.Abandoned, 1, cause=cause)]


def test_oversubscribed_nodes_run_more_jobs_than_they_have_cpus(wishes: Wishes) -> None:
    wishes.handle(ev.NodeJoined(N1, NodeInfo(N1, "n1", 2, "x", (), oversubscribe=True), "10.0.0.1"))
    wishes.handle(ev.NodeAllocated(MAP, N1, 5))
    opened = wishes.said(N1, msg.LeaseGranted([], []))
    assert opened.sends == [Send(N1, msg.OpenComputation(spec(), b"", 5))]
    wishes.said(N1, msg.ComputationReady(MAP))
    assert sends_of(wishes.submit(*range(1, 9))) == [(N1, [1, 2, 3, 4, 5])]


def test_a_cluster_may_oversubscribe_a_node_and_others_may_not(wishes: Wishes) -> None:
    wishes.open(REDUCE)
    wishes.handle(ev.NodeJoined(N1, NodeInfo(N1, "n1", 2, "x", ()), "10.0.0.1"))
    wishes.handle(ev.NodeAllocated(MAP, N1, 5, oversubscribe=True))
    wishes.handle(ev.NodeAllocated(REDUCE, N1, 2))
    opened = wishes.said(N1, msg.LeaseGranted([], []))
    assert opened.sends == [
        Send(N1, msg.OpenComputation(spec(), b"", 5, oversubscribe=True)),
        Send(N1, msg.OpenComputation(spec(REDUCE), b"", 0)),
    ]
    wishes.said(N1, msg.ComputationReady(MAP))
    wishes.said(N1, msg.ComputationReady(REDUCE))
    assert sends_of(wishes.submit(*range(1, 7), cluster=REDUCE)) == [(N1, [1, 2])]
    assert sends_of(wishes.submit(*range(11, 19))) == [(N1, [11, 12, 13])], "five CPUs for all"
    assert sends_of(wishes.wish(20, cluster=REDUCE, cpus=3)) == []
    assert "lets this cluster use 2 CPUs, not 3" in wishes.core.explain(20)


def test_without_permission_no_more_cpus_are_used_than_a_node_offers(wishes: Wishes) -> None:
    wishes.node(N1, 4)
    wishes.said(N1, msg.NodeDescribed(NodeInfo(N1, "n1", 2, "x", ())))
    assert sends_of(wishes.submit(*range(1, 9))) == [(N1, [1, 2])]


def test_oversubscribing_ends_with_what_the_node_offers(wishes: Wishes) -> None:
    wishes.handle(ev.NodeJoined(N1, NodeInfo(N1, "n1", 2, "x", ()), "10.0.0.1"))
    wishes.handle(ev.NodeAllocated(MAP, N1, 5, oversubscribe=True))
    wishes.said(N1, msg.LeaseGranted([], []))
    wishes.said(N1, msg.ComputationReady(MAP))
    wishes.said(N1, msg.NodeDescribed(NodeInfo(N1, "n1", 0, "x", (), closed="stopped")))
    assert sends_of(wishes.submit(1)) == []


def test_nodes_are_told_how_many_cpus_a_cluster_uses(wishes: Wishes) -> None:
    wishes.node(N1, 4)
    changed = wishes.handle(ev.NodeAllocated(MAP, N1, 2))
    assert changed.sends == [Send(N1, msg.OpenComputation(spec(), b"", 2))]
    assert wishes.said(N1, msg.ComputationReady(MAP)) == Effects()


# ---- further attempts ----


def test_failed_attempts_are_tried_again(wishes: Wishes) -> None:
    wishes.node(N1, 1)
    wishes.wish(1, retries=2)
    effects = wishes.done(N1, 1, ending=Ending.RAISED, text=b"Traceback\nValueError: no")
    assert sends_of(effects) == [(N1, [1])]
    text = "ValueError: no (on node n1 (10.0.0.1); 1 more retry after this)"
    assert effects.notices[0] == JobRequeued(wishes.jobs[1], N1, text)
    assert wishes.jobs[1].attempt == 2
    assert sends_of(wishes.done(N1, 1, ending=Ending.LIMITED, text=b"time")) == [(N1, [1])]
    (ended,) = wishes.done(N1, 1, ending=Ending.DIED, text=b"killed").notices
    assert isinstance(ended, JobsEnded)
    assert [(one.state, one.cause) for one in ended.jobs] == [(JobState.Terminated, "killed")]


def test_attempts_that_failed_are_counted(wishes: Wishes) -> None:
    wishes.node(N1, 1)
    wishes.wish(1, retries=1)
    wishes.done(N1, 1, ending=Ending.RAISED)
    assert (wishes.core.counters.requeued, wishes.core.counters.retried) == (0, 1)


@pytest.mark.parametrize("ending", [Ending.RAISED, Ending.INTERRUPTED])
def test_cancelled_jobs_are_not_tried_again(wishes: Wishes, ending: Ending) -> None:
    wishes.node(N1, 1)
    wishes.wish(1, retries=5)
    wishes.handle(ev.CancelAsked([1]))
    (ended,) = wishes.done(N1, 1, ending=ending).notices
    assert isinstance(ended, JobsEnded)
    assert ended.jobs[0].state is JobState.Terminated


def test_retries_make_a_job_reentrant(wishes: Wishes) -> None:
    wishes.node(N1, 1)
    wishes.wish(1, retries=1)
    wishes.node(N2, 1)
    assert sends_of(wishes.handle(ev.NodeLost(N1, "gone"))) == [(N2, [1])]
    assert (wishes.core.counters.requeued, wishes.core.counters.retried) == (1, 0)
    (_, ended, _) = wishes.handle(ev.NodeLost(N2, "gone")).notices[::-1]
    assert isinstance(ended, JobsEnded)
    assert ended.jobs[0].state is JobState.Abandoned, "the one retry was used"


def test_a_job_under_which_nodes_die_is_not_given_to_a_fourth() -> None:
    wishes = Wishes()
    wishes.open(reentrant=True)
    for node in (N1, N2, N3):
        wishes.node(node, 1)
    wishes.submit(1)
    wishes.handle(ev.NodeLost(N1, "gone"))
    wishes.handle(ev.NodeLost(N2, "gone"))
    effects = wishes.handle(ev.NodeLost(N3, "its port refuses"))
    (ended,) = [notice for notice in effects.notices if isinstance(notice, JobsEnded)]
    assert ended.jobs[0].state is JobState.Terminated
    cause = ended.jobs[0].cause or ""
    assert "the last of 3 nodes in a row that were lost while they ran it" in cause


def test_a_closing_cluster_gives_back_nodes_that_can_run_none_of_its_jobs(wishes: Wishes) -> None:
    wishes.node(N1, 1)
    wishes.node(N2, 1)
    wishes.wish(1, node=N2)
    wishes.wish(2, node=N2)
    closed = wishes.handle(ev.ClusterClosing(MAP))
    assert closed.sends == [Send(N1, msg.CloseComputation(MAP, False))]
    assert wishes.said(N1, msg.ComputationClosed(MAP)).sends == [Send(N1, msg.ReleaseLease())]


def test_a_closing_cluster_keeps_nodes_to_which_a_job_may_come_back(wishes: Wishes) -> None:
    for node in (N1, N2, N3):
        wishes.node(node, 1)
    wishes.submit(1)
    wishes.wish(2, node=N2)
    wishes.wish(3, node=N2)
    assert wishes.handle(ev.ClusterClosing(MAP)).sends == []
    assert wishes.done(N1, 1).sends == [
        Send(N1, msg.CloseComputation(MAP, False)),
        Send(N3, msg.CloseComputation(MAP, False)),
    ]


def test_an_open_cluster_keeps_nodes_that_can_run_none_of_its_jobs(wishes: Wishes) -> None:
    wishes.node(N1, 1)
    wishes.node(N2, 1)
    wishes.wish(1, node=N2)
    assert wishes.wish(2, node=N2).sends == []


def test_a_closing_cluster_gives_back_nodes_that_lack_what_its_jobs_ask_for(wishes: Wishes) -> None:
    wishes.node(N1, 1)
    wishes.node(N2, 1, tags=("a",))
    wishes.wish(1, tags=("a",))
    wishes.wish(2, tags=("a",))
    assert wishes.handle(ev.ClusterClosing(MAP)).sends == [Send(N1, msg.CloseComputation(MAP, False))]


@pytest.mark.parametrize("final", [False, True])
def test_jobs_with_wishes_wait_for_a_node_that_refused_and_is_asked_again(final: bool) -> None:
    wishes = Wishes()
    wishes.open(open_ended=False)
    wishes.node(N1, 1)
    wishes.said(N1, msg.ComputationRefused(MAP, "the disk is full", "", final))
    if final:
        wishes.handle(ev.NodeSteered(MAP, N1, ev.Steering.USE))
    assert wishes.wish(1, memory=0, tags=()).notices == []
    assert wishes.wish(2, cpus=0).notices == []
