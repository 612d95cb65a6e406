"""A core that goes on where a process before it was killed: what it was told, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dispy.errors import InvalidTransition
from dispy.model import (
    ComputationId,
    ComputationSpec,
    Ending,
    HeldAttempt,
    Holder,
    JobDone,
    JobOptions,
    JobState,
    NodeInfo,
    ProcessId,
)
from dispy.scheduler import events as ev
from dispy.scheduler.clusters import ClusterState
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import AskAllocation, ClusterEnded, Effects, JobEnded, JobsEnded, NodeClosed
from dispy.scheduler.fairness import Policy
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages as msg

A, B = ComputationId("a" * 32), ComputationId("b" * 32)
ONE, TWO = ProcessId("1" * 32), ProcessId("2" * 32)


def info(node: ProcessId, cpus: int = 1) -> NodeInfo:
    return NodeInfo(node, f"n{node[0]}", cpus, "x", ())


def cluster(
    id: ComputationId = A,
    state: ClusterState = ClusterState.OPEN,
    *,
    forsaken: str = "",
    exclusive: bool = False,
    user: str = "",
) -> ev.RestoredCluster:
    opened = ev.ClusterOpened(ComputationSpec(id, "f", "function"), exclusive=exclusive, user=user)
    return ev.RestoredCluster(opened, state, forsaken)


def node(id: ProcessId = ONE, cpus: int = 1) -> ev.RestoredNode:
    return ev.RestoredNode(id, info(id, cpus), "10.0.0.1")


def share(id: ComputationId = A, at: ProcessId = ONE, cpus: int = 1, *, is_paused: bool = False) -> ev.RestoredShare:
    return ev.RestoredShare(id, at, cpus, is_paused=is_paused)


def job(
    number: int, of: ComputationId = A, at: ProcessId | None = None, options: JobOptions | None = None
) -> JobRecord:
    record = JobRecord(number, of, b"x", options=options)
    if at is not None:
        record.node, record.attempt = at, 1
    return record


class Again:
    """The core after its restart, checked after every step."""

    def __init__(
        self,
        clusters: Sequence[ev.RestoredCluster] = (),
        jobs: Sequence[JobRecord] = (),
        nodes: Sequence[ev.RestoredNode] = (),
        shares: Sequence[ev.RestoredShare] = (),
        *,
        policy: Policy = Policy.FIFO,
    ) -> None:
        self.core = SchedulerCore(holder=Holder("daemon", "host", 1, "dispyscheduler"), token=b"t" * 32, policy=policy)
        self.ended: dict[int, JobEnded] = {}
        self.first = self.handle(ev.Restored(clusters, jobs, nodes, shares, grace=30.0))

    def handle(self, event: ev.Event) -> Effects:
        return self._checked(self.core.handle(event, 0.0))

    def timeout(self, now: float) -> Effects:
        return self._checked(self.core.handle_timeout(now))

    def _checked(self, effects: Effects) -> Effects:
        self.core.check()
        for notice in effects.notices:
            if isinstance(notice, JobsEnded):
                self.ended.update((each.job.job, each) for each in notice.jobs)
        return effects

    def said(self, node: ProcessId, message: msg.AnyMessage, *bodies: bytes) -> Effects:
        return self.handle(ev.NodeSaid(node, message, bodies))

    def back(
        self, id: ProcessId = ONE, cpus: int = 1, *, held: Sequence[int] = (), ready: Sequence[ComputationId] = ()
    ) -> tuple[Effects, Effects]:
        """The node has a link again and grants its lease; returns the effects of both."""
        joined = self.handle(ev.NodeJoined(id, info(id, cpus), "10.0.0.1"))
        granted = self.said(id, msg.LeaseGranted([HeldAttempt(number, 1) for number in held], list(ready)))
        return joined, granted

    def opened(self, id: ComputationId = A, at: ProcessId = ONE) -> Effects:
        return self.said(at, msg.ComputationReady(id))

    def done(self, *numbers: int, at: ProcessId = ONE) -> Effects:
        ended = [JobDone(number, 1, int(Ending.FINISHED), 50.0, 51.0, 1, 0, 0, 0) for number in numbers]
        return self.said(at, msg.JobsDone(1, ended), *[b"r"] * len(ended))


def runs(effects: Effects) -> list[int]:
    """The jobs that are handed to a node."""
    messages = [send.message for send in effects.sends]
    return [spec.job for message in messages if isinstance(message, msg.RunJobs) for spec in message.jobs]


def kinds(effects: Effects) -> list[str]:
    return [type(send.message).__name__ for send in effects.sends]


@pytest.mark.parametrize(
    "before", [ev.ClusterOpened(ComputationSpec(A, "f", "function")), ev.NodeJoined(ONE, info(ONE), "x")]
)
def test_nothing_may_have_happened_before(before: ev.Event) -> None:
    again = Again()
    again.handle(before)
    with pytest.raises(InvalidTransition, match="before anything else happens"):
        again.handle(ev.Restored([], [], [], []))


def test_a_job_that_waited_runs_when_its_node_is_back() -> None:
    again = Again([cluster()], [job(1), job(2)], [node()], [share()])
    assert again.first == Effects()
    assert again.core.snapshot().counters["submitted"] == 2
    joined, granted = again.back()
    assert kinds(joined) == ["AskLease"]
    assert joined.notices == [], "its owner had said how much it wants"
    assert kinds(granted) == ["OpenComputation"]
    assert runs(again.opened()) == [1]
    assert runs(again.done(1)) == [2]
    again.done(2)
    assert {number: each.state for number, each in again.ended.items()} == dict.fromkeys([1, 2], JobState.Finished)


def test_a_job_that_was_at_a_node_goes_on_there() -> None:
    again = Again([cluster()], [job(1, at=ONE), job(2)], [node()], [share()])
    assert again.core.jobs_at(ONE, A)[0].state is JobState.Running
    _, granted = again.back(held=[1], ready=[A])
    assert kinds(granted) == ["OpenComputation"], "it is said again, as the answer may have been lost"
    again.opened()
    assert runs(again.done(1)) == [2]
    assert again.ended[1].state is JobState.Finished


def test_a_result_counts_that_comes_before_the_computation_is_open_again() -> None:
    again = Again([cluster()], [job(1, at=ONE)], [node()], [share()])
    again.back(held=[1])
    again.done(1)
    assert again.ended[1].state is JobState.Finished


def test_a_job_that_its_node_never_received_waits_again() -> None:
    record = job(1, at=ONE)
    again = Again([cluster()], [record], [node()], [share()])
    again.back()
    assert (record.state, record.attempt) == (JobState.Created, 0)
    assert runs(again.opened()) == [1]


def test_jobs_of_a_node_that_does_not_come_back_in_time_are_lost() -> None:
    again = Again([cluster()], [job(1, at=ONE), job(2)], [node(), node(TWO)], [share(), share(at=TWO)])
    assert again.core.next_deadline() == 30.0
    again.timeout(29.9)
    assert not again.ended
    again.timeout(30.0)
    assert again.ended[1].state is JobState.Abandoned
    assert again.core.snapshot().nodes == ()
    assert 2 not in again.ended


def test_a_share_that_was_being_closed_lets_its_job_finish() -> None:
    again = Again([cluster()], [job(1, at=ONE), job(2)], [node()], [ev.RestoredShare(A, ONE, 0)])
    joined, granted = again.back(held=[1], ready=[A])
    assert joined.notices == []
    assert [send.message for send in granted.sends] == [msg.CloseComputation(A, terminate=False)]
    assert runs(again.done(1)) == []
    assert again.ended[1].state is JobState.Finished


@pytest.mark.parametrize("state", [ClusterState.DRAINING, ClusterState.TERMINATING])
def test_a_cluster_that_was_closing_ends(state: ClusterState) -> None:
    record = job(1, at=ONE)
    again = Again([cluster(state=state), cluster(B, state)], [record], [node()], [share()])
    assert again.first.notices == [ClusterEnded(B)], "it had no jobs"
    assert record.cancelled == (state is ClusterState.TERMINATING)
    _, granted = again.back(held=[1], ready=[A])
    assert ("CancelJobs" in kinds(granted)) == record.cancelled
    effects = again.done(1)
    assert "CloseComputation" in kinds(effects)
    assert again.said(ONE, msg.ComputationClosed(A)).notices[-1] == ClusterEnded(A)


def test_a_job_that_was_to_be_ended_is_so_still() -> None:
    record = job(1, at=ONE)
    record.cancelled = True
    again = Again([cluster()], [record], [node()], [share()])
    _, granted = again.back(held=[1], ready=[A])
    assert msg.CancelJobs([1]) in [send.message for send in granted.sends]


def test_owners_are_asked_about_nodes_of_which_they_had_not_said_anything() -> None:
    again = Again(
        [cluster(), cluster(B)], [job(1), job(2, B)], [node(), node(TWO)], [share(), ev.RestoredShare(A, TWO, 0)]
    )
    joined, _ = again.back()
    assert [(asked.cluster, asked.node) for asked in joined.notices if isinstance(asked, AskAllocation)] == [(B, ONE)]
    joined, _ = again.back(TWO)
    assert [(asked.cluster, asked.node) for asked in joined.notices if isinstance(asked, AskAllocation)] == [(B, TWO)]


def test_a_node_that_the_user_paused_stays_so() -> None:
    again = Again([cluster()], [job(1)], [node()], [share(is_paused=True)])
    again.back()
    assert runs(again.opened()) == []
    assert runs(again.handle(ev.NodeSteered(A, ONE, ev.Steering.USE))) == [1]


def test_shares_of_what_is_gone_mean_nothing() -> None:
    again = Again([cluster()], [job(1)], [node()], [share(B), share(at=TWO), share()])
    again.back()
    assert runs(again.opened()) == [1]


def test_of_equal_nodes_the_one_that_came_first_is_used_first() -> None:
    again = Again([cluster()], [], [node(TWO), node(ONE)], [share(at=TWO), share()])
    again.back(ONE)
    again.back(TWO)
    again.opened(at=ONE)
    again.opened(at=TWO)
    assert [send.node for send in again.handle(ev.JobsSubmitted([job(1)])).sends] == [TWO]


def test_a_node_that_somebody_else_has_now_is_closed_for_clusters_that_had_jobs_there() -> None:
    again = Again([cluster(), cluster(B)], [job(1, at=ONE)], [node()], [share(), share(B)])
    again.handle(ev.NodeJoined(ONE, info(ONE), "10.0.0.1"))
    effects = again.said(ONE, msg.LeaseRefused(Holder("anna", "host", 2, "other.py")))
    assert again.ended[1].state is JobState.Abandoned
    assert [notice.cluster for notice in effects.notices if isinstance(notice, NodeClosed)] == [A]


def test_an_exclusive_cluster_that_ran_alone_still_does() -> None:
    clusters = [cluster(), cluster(B, exclusive=True)]
    again = Again(clusters, [job(1), job(2, B, ONE), job(3, B)], [node(cpus=2)], [share(cpus=2), share(B, cpus=2)])
    again.back(cpus=2, held=[2], ready=[A, B])
    assert runs(again.opened(A)) == []
    assert runs(again.opened(B)) == [3]


def test_cpus_that_a_job_has_are_taken() -> None:
    heavy = job(1, at=ONE, options=JobOptions(cpus=2))
    heavy.cpus = 2
    again = Again([cluster()], [heavy, job(2)], [node(cpus=2)], [share(cpus=2)])
    again.back(cpus=2, held=[1], ready=[A])
    assert runs(again.opened()) == []
    assert runs(again.done(1)) == [2]


def test_users_are_charged_for_what_is_at_nodes() -> None:
    clusters = [cluster(user="anna"), cluster(B, user="bert")]
    jobs = [job(1, at=ONE), job(2), job(3, B)]
    again = Again(clusters, jobs, [node(cpus=2)], [share(cpus=2), share(B, cpus=2)], policy=Policy.FAIR)
    assert [user.cpus for user in again.core.snapshot().users] == [1, 0]
    again.back(cpus=2, held=[1], ready=[A, B])
    assert runs(again.opened(B)) == [3]


def test_jobs_of_a_cluster_for_which_no_node_can_come_end() -> None:
    again = Again([cluster(forsaken="no node is named so")], [job(1)])
    assert again.ended[1].state is JobState.Abandoned
    assert "no node is named so" in str(again.ended[1].cause)
