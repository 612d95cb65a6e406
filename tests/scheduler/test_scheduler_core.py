"""The scheduler core by value: each thing that happens and all that it causes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dispy.errors import InvalidTransition
from dispy.model import (
    UNSTARTED,
    AvailInfo,
    BlobRef,
    ComputationId,
    ComputationSpec,
    Ending,
    FileSpec,
    HeldAttempt,
    Holder,
    JobDone,
    JobOptions,
    JobSpec,
    JobState,
    NodeInfo,
    ProcessId,
)
from dispy.scheduler import events as ev
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import (
    AskAllocation,
    ClusterEnded,
    Effects,
    JobEnded,
    JobRequeued,
    JobsEnded,
    JobSpoke,
    JobsStarted,
    NodeClosed,
    NodeOpened,
    NodeRefused,
    NodeVanished,
    Notice,
    ResultDropped,
    Send,
)
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages as msg

MAP, REDUCE = ComputationId("1" * 32), ComputationId("2" * 32)
N1, N2, N3 = ProcessId("a" * 32), ProcessId("b" * 32), ProcessId("c" * 32)
NAMES = {N1: "n1", N2: "n2", N3: "n3"}
HOLDER = Holder("anna", "host", 1, "prog.py")
OTHER = Holder("bert", "other", 2, "his.py")
TOKEN = b"t" * 32
ASK = msg.AskLease(TOKEN, HOLDER)
HELD_BY = "used by bert@other (his.py, process 2)"


def spec(cluster: ComputationId = MAP) -> ComputationSpec:
    return ComputationSpec(cluster, "compute", "function")


def info(node: ProcessId, cpus: int = 1) -> NodeInfo:
    return NodeInfo(node, NAMES[node], cpus, "x", ())


class Scheduler:
    """A core that is checked after every step, and the jobs that were submitted."""

    def __init__(self) -> None:
        self.core = SchedulerCore(holder=HOLDER, token=TOKEN)
        self.now = 0.0
        self.jobs: dict[int, JobRecord] = {}

    def handle(self, event: ev.Event) -> Effects:
        effects = self.core.handle(event, self.now)
        self.core.check()
        return effects

    def timeout(self, now: float) -> Effects:
        self.now = now
        effects = self.core.handle_timeout(now)
        self.core.check()
        return effects

    def said(self, node: ProcessId, message: msg.AnyMessage) -> Effects:
        return self.handle(ev.NodeSaid(node, message))

    def open(self, cluster: ComputationId = MAP, *, reentrant: bool = False, open_ended: bool = True) -> Effects:
        return self.handle(ev.ClusterOpened(spec(cluster), reentrant, open_ended))

    def join(self, node: ProcessId = N1, cpus: int = 1) -> Effects:
        return self.handle(ev.NodeJoined(node, info(node, cpus), "10.0.0.1"))

    def ready(self, node: ProcessId = N1, cpus: int = 1, *clusters: ComputationId) -> Effects:
        """Bring a node up to the state in which it takes jobs of the clusters."""
        self.join(node, cpus)
        for cluster in clusters or (MAP,):
            self.handle(ev.NodeAllocated(cluster, node, cpus))
        effects = self.said(node, msg.LeaseGranted([], []))
        for cluster in clusters or (MAP,):
            effects = self.said(node, msg.ComputationReady(cluster))
        return effects

    def submit(self, *numbers: int, cluster: ComputationId = MAP, node: str = "") -> Effects:
        options = JobOptions(node) if node else None
        records = [JobRecord(number, cluster, b"%d" % number, options=options) for number in numbers]
        self.jobs.update((record.job, record) for record in records)
        return self.handle(ev.JobsSubmitted(records))

    def done(
        self, node: ProcessId, *numbers: int, ending: Ending = Ending.FINISHED, seconds: float = 1.0, text: bytes = b""
    ) -> Effects:
        jobs = [result(number, self.jobs[number].attempt, ending, seconds, text) for number in numbers]
        return self.handle(ev.NodeSaid(node, msg.JobsDone(1, jobs), [b"r" + text] * len(jobs)))

    def run(self, node: ProcessId, *numbers: int, cluster: ComputationId = MAP) -> Send:
        """The message that hands these over, as their records now are."""
        specs = [JobSpec(number, self.jobs[number].attempt, len(b"%d" % number)) for number in numbers]
        specs = [JobSpec(s.job, s.attempt, s.size, None, self.jobs[s.job].options) for s in specs]
        return Send(node, msg.RunJobs(cluster, specs), [b"%d" % number for number in numbers])

    def started(self, node: ProcessId, *numbers: int) -> JobsStarted:
        return JobsStarted(node, [self.jobs[number] for number in numbers])

    def ended(self, state: JobState, *numbers: int, node: ProcessId | None = None, cause: str) -> JobsEnded:
        return JobsEnded([JobEnded(self.jobs[number], state, node, cause=cause) for number in numbers])


def result(
    job: int, attempt: int = 1, ending: Ending = Ending.FINISHED, seconds: float = 1.0, text: bytes = b""
) -> JobDone:
    started = 0.0 if ending in UNSTARTED else 50.0
    return JobDone(job, attempt, int(ending), started, started and started + seconds, 1, 0, 0, len(text))


def sends_of(effects: Effects) -> list[tuple[ProcessId, list[int]]]:
    """Who is given which jobs."""
    return [
        (send.node, [job.job for job in send.message.jobs])
        for send in effects.sends
        if isinstance(send.message, msg.RunJobs)
    ]


def only(*notices: Notice) -> Effects:
    return Effects([], list(notices))


def said(node: ProcessId, *messages: msg.AnyMessage) -> list[Send]:
    return [Send(node, message) for message in messages]


@pytest.fixture
def scheduler() -> Scheduler:
    """MAP is open; no node."""
    scheduler = Scheduler()
    scheduler.open()
    return scheduler


@pytest.fixture
def busy() -> Scheduler:
    """MAP is open, job 1 runs on N1, jobs 2 and 3 wait; none is reentrant."""
    scheduler = Scheduler()
    scheduler.open()
    scheduler.ready()
    scheduler.submit(1, 2, 3)
    return scheduler


# ---- nodes and computations ----


def test_a_node_is_asked_for_by_every_open_cluster(scheduler: Scheduler) -> None:
    scheduler.open(REDUCE)
    asked = [AskAllocation(cluster, N1, info(N1), "10.0.0.1") for cluster in (MAP, REDUCE)]
    assert scheduler.join() == only(*asked)


def test_a_cluster_asks_for_every_known_node() -> None:
    scheduler = Scheduler()
    # it may hold a lease of ours from before
    assert scheduler.join(N1) == Effects(said(N1, msg.ReleaseLease()))
    assert scheduler.open() == only(AskAllocation(MAP, N1, info(N1), "10.0.0.1"))


def test_the_lease_is_asked_for_once(scheduler: Scheduler) -> None:
    scheduler.open(REDUCE)
    scheduler.join()
    assert scheduler.handle(ev.NodeAllocated(MAP, N1, 1)) == Effects(said(N1, ASK))
    assert scheduler.handle(ev.NodeAllocated(REDUCE, N1, 1)) == Effects()


def test_a_granted_lease_opens_the_computations_with_the_nodes_own_files(scheduler: Scheduler) -> None:
    own = FileSpec("own.txt", BlobRef(b"f" * 32, 3))
    scheduler.open(REDUCE)
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1, (own,), b"args"))
    scheduler.handle(ev.NodeAllocated(REDUCE, N1, 1))
    with_file = ComputationSpec(MAP, "compute", "function", files=(own,))
    assert scheduler.said(N1, msg.LeaseGranted([], [])) == Effects(
        said(N1, msg.OpenComputation(with_file, b"args"), msg.OpenComputation(spec(REDUCE)))
    )


def test_a_ready_computation_gets_jobs_at_once(scheduler: Scheduler) -> None:
    scheduler.submit(1)
    effects = scheduler.ready()
    assert effects == Effects([scheduler.run(N1, 1)], [NodeOpened(MAP, N1), scheduler.started(N1, 1)])
    assert scheduler.jobs[1].state is JobState.Running
    assert scheduler.jobs[1].attempt == 1


def test_a_node_that_nobody_wants_is_released(scheduler: Scheduler) -> None:
    scheduler.join()
    assert scheduler.handle(ev.NodeAllocated(MAP, N1, 0)) == Effects(said(N1, msg.ReleaseLease()))


def test_a_node_that_somebody_else_holds(scheduler: Scheduler) -> None:
    scheduler.submit(1)
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    refused = NodeRefused(None, N1, HELD_BY, holder=OTHER)
    assert scheduler.said(N1, msg.LeaseRefused(OTHER)) == only(refused)
    assert "bert@other" in scheduler.core.explain(1)
    assert scheduler.said(N1, msg.LeaseGranted([], [])) == Effects(said(N1, msg.OpenComputation(spec())))


def test_a_refused_computation_leaves_jobs_waiting_when_other_nodes_may_come(scheduler: Scheduler) -> None:
    scheduler.submit(1)
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    scheduler.said(N1, msg.LeaseGranted([], []))
    assert scheduler.said(N1, msg.ComputationRefused(MAP, "setup failed", "trace")) == Effects(
        said(N1, msg.ReleaseLease()), [NodeRefused(MAP, N1, "setup failed", "trace")]
    )
    assert scheduler.core.explain(1) == "Job 1 waits: node n1 (10.0.0.1) refused: setup failed.\ntrace"


def test_jobs_are_abandoned_when_every_node_refused_for_good_and_no_other_can_come() -> None:
    scheduler = Scheduler()
    scheduler.open(open_ended=False)
    scheduler.submit(1, 2)
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    scheduler.said(N1, msg.LeaseGranted([], []))
    cause = "every node refused it for good: n1 (10.0.0.1): setup failed"
    assert scheduler.said(N1, msg.ComputationRefused(MAP, "setup failed")) == Effects(
        said(N1, msg.ReleaseLease()),
        [NodeRefused(MAP, N1, "setup failed"), scheduler.ended(JobState.Abandoned, 1, 2, cause=cause)],
    )
    effects = scheduler.submit(3)
    assert effects == only(scheduler.ended(JobState.Abandoned, 3, cause=cause))


def test_a_refusal_for_now_is_tried_again(scheduler: Scheduler) -> None:
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    scheduler.said(N1, msg.LeaseGranted([], []))
    scheduler.said(N1, msg.ComputationRefused(MAP, "disk full", final=False))
    assert scheduler.core.next_deadline() == 10.0
    assert scheduler.timeout(10.0) == Effects(said(N1, msg.OpenComputation(spec())))
    assert scheduler.core.next_deadline() is None


def test_an_owner_that_gives_a_node_back(busy: Scheduler) -> None:
    closing = said(N1, msg.CloseComputation(MAP))
    assert busy.handle(ev.NodeAllocated(MAP, N1, 0)) == Effects(closing)
    busy.done(N1, 1)
    assert busy.said(N1, msg.ComputationClosed(MAP)) == Effects(
        said(N1, msg.ReleaseLease()), [NodeClosed(MAP, N1, "the cluster does not use it any more")]
    )


def test_a_closed_share_waits_for_results_whose_bodies_are_still_fetched(busy: Scheduler) -> None:
    busy.handle(ev.NodeAllocated(MAP, N1, 0))
    assert busy.said(N1, msg.ComputationClosed(MAP)).sends == []
    assert busy.done(N1, 1).sends == said(N1, msg.ReleaseLease())


# ---- closing ----


def test_closing_lets_jobs_finish_and_gives_the_node_back(busy: Scheduler) -> None:
    assert busy.handle(ev.ClusterClosing(MAP)) == Effects()
    busy.done(N1, 1)
    busy.done(N1, 2)
    effects = busy.done(N1, 3)
    assert effects.sends == said(N1, msg.CloseComputation(MAP))
    assert busy.said(N1, msg.ComputationClosed(MAP)) == Effects(
        said(N1, msg.ReleaseLease()), [NodeClosed(MAP, N1, "the cluster is closed"), ClusterEnded(MAP)]
    )
    assert busy.core.snapshot().clusters == ()


def test_terminating_cancels_all(busy: Scheduler) -> None:
    cause = "cancelled: its cluster was closed"
    assert busy.handle(ev.ClusterClosing(MAP, terminate=True)) == Effects(
        said(N1, msg.CancelJobs([1])), [busy.ended(JobState.Cancelled, 2, 3, cause=cause)]
    )
    effects = busy.done(N1, 1, ending=Ending.INTERRUPTED)
    assert effects.sends == said(N1, msg.CloseComputation(MAP, terminate=True))


def test_a_cluster_without_nodes_ends_at_once(scheduler: Scheduler) -> None:
    assert scheduler.handle(ev.ClusterClosing(MAP)) == only(ClusterEnded(MAP))


def test_a_closed_cluster_takes_no_jobs(busy: Scheduler) -> None:
    busy.handle(ev.ClusterClosing(MAP))
    assert busy.submit(4) == only(busy.ended(JobState.Cancelled, 4, cause="its cluster is closed"))


def test_a_lost_node_ends_a_closing_cluster(busy: Scheduler) -> None:
    busy.handle(ev.ClusterClosing(MAP, terminate=True))
    cause = "node n1 (10.0.0.1) was lost (it burns) and the job may have started"
    assert busy.handle(ev.NodeLost(N1, "it burns")) == only(
        busy.ended(JobState.Abandoned, 1, node=N1, cause=cause),
        NodeClosed(MAP, N1, "the node was lost (it burns)"),
        ClusterEnded(MAP),
    )


# ---- how jobs end ----


def test_a_finished_job_makes_room_for_the_next(busy: Scheduler) -> None:
    effects = busy.done(N1, 1)
    ended = JobEnded(busy.jobs[1], JobState.Finished, N1, result(1), b"r")
    assert effects == Effects([busy.run(N1, 2)], [JobsEnded([ended]), busy.started(N1, 2)])


@pytest.mark.parametrize(
    ("ending", "text", "cause"),
    [
        (Ending.RAISED, b"Traceback\n  ...\nValueError: no", "ValueError: no"),
        (Ending.DIED, b"killed by signal 9\nlast lines", "killed by signal 9"),
        (Ending.LIMITED, b"took 3 s, 2 s are allowed", "took 3 s, 2 s are allowed"),
        (Ending.UNSENDABLE, b"a lock", "a lock"),
        (Ending.INTERRUPTED, b"", "interrupted while it ran"),
    ],
)
def test_other_endings_terminate(busy: Scheduler, ending: Ending, text: bytes, cause: str) -> None:
    effects = busy.done(N1, 1, ending=ending, text=text)
    done = result(1, 1, ending, 1.0, text)
    ended = JobEnded(busy.jobs[1], JobState.Terminated, N1, done, b"r" + text, cause)
    assert effects.notices[0] == JobsEnded([ended])


def test_a_job_that_did_not_start_waits_again_with_a_new_attempt(busy: Scheduler) -> None:
    assert sends_of(busy.done(N1, 1, ending=Ending.NOT_STARTED)) == [(N1, [1])]
    assert busy.jobs[1].attempt == 2


def test_a_result_counts_only_from_the_node_that_has_the_job(busy: Scheduler) -> None:
    busy.join(N2)
    busy.handle(ev.NodeAllocated(MAP, N2, 0))
    assert busy.done(N2, 1) == Effects()
    assert busy.core.counters.dropped == 1
    assert busy.said(N2, msg.JobsRecalled([HeldAttempt(1, 1)])) == Effects()
    assert busy.core.jobs_at(N1, MAP) == [busy.jobs[1]]
    assert busy.core.jobs_at(N2, MAP) == busy.core.jobs_at(N1, REDUCE) == busy.core.jobs_at(N3, MAP) == []


def test_owners_are_not_asked_again_about_a_node_that_has_not_grown(busy: Scheduler) -> None:
    assert busy.said(N1, msg.NodeDescribed(info(N1))) == Effects()
    assert busy.said(N1, msg.NodeDescribed(info(N1, 2))).notices[0] == AskAllocation(MAP, N1, info(N1, 2), "10.0.0.1")


def test_results_of_ended_jobs_and_old_attempts_are_dropped(busy: Scheduler) -> None:
    busy.done(N1, 1)
    failed = result(99, 1, Ending.RAISED)
    again = ev.NodeSaid(N1, msg.JobsDone(2, [result(1), result(2, 7), failed]), [b"one", b"two", b""])
    assert busy.handle(again) == Effects(notices=[ResultDropped(N1, result(1), b"one")])
    assert busy.core.counters.dropped == 3


def test_cancel_of_waiting_and_running_jobs(busy: Scheduler) -> None:
    assert busy.handle(ev.CancelAsked([1, 2, 99])) == Effects(
        said(N1, msg.CancelJobs([1])),
        [busy.ended(JobState.Cancelled, 2, cause="cancelled before it started")],
    )
    assert busy.handle(ev.CancelAsked([1])) == Effects(), "it is asked for once"
    effects = busy.done(N1, 1, ending=Ending.NOT_STARTED)
    assert isinstance(effects.notices[0], JobsEnded)
    assert effects.notices[0].jobs[0].state is JobState.Cancelled
    assert sends_of(effects) == [(N1, [3])], "the cancelled one is not handed out"


def test_a_job_that_ended_before_its_cancel_is_finished(busy: Scheduler) -> None:
    busy.handle(ev.CancelAsked([1]))
    busy.done(N1, 1)
    assert busy.jobs[1].state is JobState.Finished


def test_submitting_twice_is_a_bug(busy: Scheduler) -> None:
    with pytest.raises(InvalidTransition, match="job 1 was submitted twice"):
        busy.handle(ev.JobsSubmitted([busy.jobs[1]]))


# ---- losses and breaks ----


def test_lost_node_abandons_what_may_have_started(busy: Scheduler) -> None:
    cause = "node n1 (10.0.0.1) was lost (it burns) and the job may have started"
    assert busy.handle(ev.NodeLost(N1, "it burns")) == only(
        NodeVanished(N1, "node n1 (10.0.0.1) was lost (it burns)", is_last=True, cause="it burns"),
        busy.ended(JobState.Abandoned, 1, node=N1, cause=cause),
        NodeClosed(MAP, N1, "the node was lost (it burns)"),
    )


def test_lost_node_requeues_reentrant_jobs_in_front() -> None:
    scheduler = Scheduler()
    scheduler.open(reentrant=True)
    scheduler.ready()
    scheduler.submit(1, 2)
    cause = "node n1 (10.0.0.1) was lost (it burns)"
    assert scheduler.handle(ev.NodeLost(N1, "it burns")) == only(
        NodeVanished(N1, cause, is_last=True, cause="it burns"),
        JobRequeued(scheduler.jobs[1], N1, cause),
        NodeClosed(MAP, N1, "the node was lost (it burns)"),
    )
    assert sends_of(scheduler.ready(N2)) == [(N2, [1])]
    assert scheduler.jobs[1].attempt == 2


def test_cancelled_reentrant_job_is_not_run_again() -> None:
    scheduler = Scheduler()
    scheduler.open(reentrant=True)
    scheduler.ready()
    scheduler.submit(1)
    scheduler.handle(ev.CancelAsked([1]))
    scheduler.handle(ev.NodeLost(N1, "it burns"))
    assert scheduler.jobs[1].state is JobState.Abandoned


def test_broken_link_means_no_new_work_until_grace_is_over(busy: Scheduler) -> None:
    assert busy.handle(ev.LinkBroken(N1)) == Effects()
    assert busy.submit(4) == Effects()
    assert busy.core.next_deadline() == 5.0
    effects = busy.timeout(5.0)
    assert busy.jobs[1].state is JobState.Abandoned
    assert effects.notices[-1] == NodeClosed(
        MAP, N1, "the node was lost (its link broke and did not come back within 5 s)"
    )
    assert N1 not in busy.core.nodes


def test_silence_before_the_link_was_given_up_counts(busy: Scheduler) -> None:
    busy.handle(ev.LinkBroken(N1, silent_for=2.5))
    assert busy.core.next_deadline() == 2.5


def test_where_a_machine_is_crowded_a_node_has_longer_to_come_back(busy: Scheduler) -> None:
    busy.handle(ev.LinkBroken(N1, silent_for=2.0, patience=4.0))
    assert busy.core.next_deadline() == 18.0
    assert N1 in busy.core.nodes
    notice = busy.timeout(18.0).notices[-1]
    assert isinstance(notice, NodeClosed)
    assert notice.cause == "the node was lost (nothing was heard of it for 20 s)"


def test_resumed_link_continues_where_it_was(busy: Scheduler) -> None:
    busy.handle(ev.LinkBroken(N1))
    assert busy.handle(ev.LinkResumed(N1)) == Effects(said(N1, ASK))
    assert busy.said(N1, msg.LeaseGranted([HeldAttempt(1, 1)], [MAP])) == Effects()
    assert sends_of(busy.done(N1, 1)) == [(N1, [2])]


def test_attempt_that_never_arrived_is_sent_again_with_its_number(busy: Scheduler) -> None:
    busy.handle(ev.LinkBroken(N1))
    busy.handle(ev.LinkResumed(N1))
    effects = busy.said(N1, msg.LeaseGranted([], [MAP]))
    assert sends_of(effects) == [(N1, [1])]
    assert busy.jobs[1].attempt == 1


def test_what_a_node_holds_and_nobody_expects_is_ended(busy: Scheduler) -> None:
    busy.handle(ev.LinkBroken(N1))
    busy.handle(ev.LinkResumed(N1))
    granted = msg.LeaseGranted([HeldAttempt(1, 1), HeldAttempt(77, 1)], [MAP, REDUCE])
    assert busy.said(N1, granted) == Effects(
        said(N1, msg.CancelJobs([77]), msg.CloseComputation(REDUCE, terminate=True))
    )


def test_old_attempt_of_a_job_that_is_there_again_is_not_cancelled_by_its_number() -> None:
    scheduler = Scheduler()
    scheduler.open(reentrant=True)
    scheduler.ready()
    scheduler.submit(1)
    scheduler.done(N1, 1, ending=Ending.NOT_STARTED)
    scheduler.handle(ev.LinkBroken(N1))
    scheduler.handle(ev.LinkResumed(N1))
    granted = msg.LeaseGranted([HeldAttempt(1, 1), HeldAttempt(1, 2)], [MAP])
    assert scheduler.said(N1, granted) == Effects()


def test_cancel_during_a_break_is_said_afterwards(busy: Scheduler) -> None:
    busy.handle(ev.LinkBroken(N1))
    assert busy.handle(ev.CancelAsked([1])) == Effects()
    busy.handle(ev.LinkResumed(N1))
    granted = msg.LeaseGranted([HeldAttempt(1, 1)], [MAP])
    assert busy.said(N1, granted) == Effects(said(N1, msg.CancelJobs([1])))


def test_computation_that_is_gone_after_a_break_is_opened_again(busy: Scheduler) -> None:
    busy.handle(ev.LinkBroken(N1))
    busy.handle(ev.LinkResumed(N1))
    granted = msg.LeaseGranted([HeldAttempt(1, 1)], [])
    assert busy.said(N1, granted) == Effects(said(N1, msg.OpenComputation(spec())))
    assert sends_of(busy.done(N1, 1)) == []
    assert sends_of(busy.said(N1, msg.ComputationReady(MAP))) == [(N1, [2])]


def test_lease_that_was_lost_in_a_break(busy: Scheduler) -> None:
    busy.handle(ev.LinkBroken(N1))
    busy.handle(ev.LinkResumed(N1))
    cause = f"node n1 (10.0.0.1) is {HELD_BY} and the job may have started"
    assert busy.said(N1, msg.LeaseRefused(OTHER)) == only(
        busy.ended(JobState.Abandoned, 1, node=N1, cause=cause),
        NodeClosed(MAP, N1, f"the node is {HELD_BY}"),
        NodeRefused(None, N1, HELD_BY, holder=OTHER),
    )
    assert busy.said(N1, msg.LeaseGranted([], [])) == Effects(said(N1, msg.OpenComputation(spec())))


def test_a_node_is_lost_with_jobs_that_waited_there(busy: Scheduler) -> None:
    busy.done(N1, 1, seconds=0.0001)
    busy.submit(4, 5, 6)
    assert busy.core.snapshot().nodes[0].in_flight == 5
    busy.handle(ev.NodeLost(N1, "silence"))
    busy.ready(N2)
    assert busy.core.snapshot().nodes[0].in_flight == 0


def test_lost_node_that_comes_back_is_new_and_its_old_attempts_end(busy: Scheduler) -> None:
    busy.handle(ev.NodeLost(N1, "silence"))
    assert busy.join().notices == [AskAllocation(MAP, N1, info(N1), "10.0.0.1")]
    assert busy.handle(ev.NodeAllocated(MAP, N1, 1)).sends == said(N1, ASK)
    granted = msg.LeaseGranted([HeldAttempt(1, 1)], [MAP])
    assert busy.said(N1, granted).sends == said(N1, msg.CancelJobs([1]), msg.OpenComputation(spec()))


@pytest.fixture
def lost() -> Scheduler:
    """The node with the first attempt of a reentrant job is lost; N2 is the same machine after a restart."""
    scheduler = Scheduler()
    scheduler.open(reentrant=True)
    scheduler.ready()
    scheduler.submit(1)
    scheduler.handle(ev.NodeLost(N1, "it was restarted"))
    return scheduler


def returned(attempt: int = 1, ending: Ending = Ending.FINISHED) -> msg.JobsDone:
    return msg.JobsDone(1, [result(1, attempt, ending)])


def test_a_result_that_a_restarted_node_brings_ends_the_job_that_waits_again(lost: Scheduler) -> None:
    lost.join(N2)
    lost.handle(ev.NodeAllocated(MAP, N2, 1))
    lost.said(N2, msg.LeaseGranted([HeldAttempt(1, 1)], []))
    effects = lost.handle(ev.NodeSaid(N2, returned(), [b"r"]))
    ended = JobEnded(lost.jobs[1], JobState.Finished, N2, result(1), b"r")
    assert effects == Effects([], [JobsEnded([ended])])
    assert lost.core.snapshot().clusters[0].waiting == 0
    assert (lost.core.counters.returned, lost.core.counters.dropped) == (1, 0)
    assert sends_of(lost.said(N2, msg.ComputationReady(MAP))) == []
    lost.handle(ev.NodeSaid(N2, returned(), [b"r"]))
    assert (lost.core.counters.returned, lost.core.counters.dropped) == (1, 1)


@pytest.mark.parametrize("again", [N2, N3], ids=["there", "elsewhere"])
def test_a_returned_result_ends_the_attempt_that_runs_meanwhile(lost: Scheduler, again: ProcessId) -> None:
    assert sends_of(lost.ready(again)) == [(again, [1])]
    if again is N3:
        lost.ready(N2)
    lost.submit(2, 3)
    assert lost.handle(ev.NodeSaid(N2, returned(), [b"r"])).sends[0] == Send(again, msg.CancelJobs([1]))
    assert lost.jobs[1].state is JobState.Finished
    assert lost.core.counters.ended == 1
    lost.handle(ev.NodeSaid(again, returned(2, Ending.INTERRUPTED), [b""]))
    assert (lost.jobs[1].state, lost.core.counters.dropped) == (JobState.Finished, 1)


def test_a_returned_result_lets_a_node_go_that_was_closed_meanwhile(lost: Scheduler) -> None:
    lost.ready(N3)
    lost.ready(N2)
    lost.handle(ev.ClusterClosing(MAP, terminate=False))
    lost.handle(ev.NodeAllocated(MAP, N3, 0))
    lost.said(N3, msg.ComputationClosed(MAP))
    assert msg.ReleaseLease() in [send.message for send in lost.handle(ev.NodeSaid(N2, returned(), [b"r"])).sends]
    assert lost.said(N2, msg.ComputationClosed(MAP)).notices[-1] == ClusterEnded(MAP)


def test_what_is_kept_for_a_job_is_free_when_an_earlier_result_returns() -> None:
    scheduler = Scheduler()
    scheduler.open(reentrant=True)
    scheduler.ready(N1, 2)
    heavy = JobRecord(1, MAP, b"1", options=JobOptions(cpus=2))
    scheduler.jobs[1] = heavy
    scheduler.handle(ev.JobsSubmitted([heavy]))
    scheduler.handle(ev.NodeLost(N1, "it was restarted"))
    scheduler.ready(N3, 2)
    scheduler.ready(N2, 1)
    scheduler.submit(2, 3, 4)
    effects = scheduler.handle(ev.NodeSaid(N2, returned(), [b"r"]))
    assert sends_of(effects) == [(N3, [3]), (N3, [4])] or sends_of(effects) == [(N3, [3, 4])]


def test_only_a_finished_attempt_returns(lost: Scheduler) -> None:
    lost.ready(N2)
    for ending in (Ending.RAISED, Ending.INTERRUPTED, Ending.DIED, Ending.NOT_STARTED, Ending.PROVISIONAL):
        assert lost.handle(ev.NodeSaid(N2, returned(1, ending), [b""])).notices == []
    assert lost.core.counters.dropped == 5
    assert lost.core.jobs_at(N2, MAP) == [lost.jobs[1]]


def test_a_lost_node_that_was_told_to_end_an_attempt_brings_no_result_of_it(lost: Scheduler) -> None:
    """The job may have caught the interrupt and returned what it had: that is not its result."""
    lost.join(N1)
    lost.handle(ev.NodeAllocated(MAP, N1, 1))
    granted = lost.said(N1, msg.LeaseGranted([HeldAttempt(1, 1)], []))
    assert granted.sends[0] == Send(N1, msg.CancelJobs([1]))
    lost.ready(N2)
    for node in (N1, N2):
        assert lost.handle(ev.NodeSaid(node, returned(), [b"half"])).notices == []
    assert lost.core.counters.dropped == 2


def test_node_that_joins_although_it_is_known_has_a_new_link(busy: Scheduler) -> None:
    assert busy.join() == Effects(said(N1, ASK))


def test_results_that_were_fetched_during_a_break_count(busy: Scheduler) -> None:
    busy.handle(ev.LinkBroken(N1))
    busy.done(N1, 1)
    assert busy.jobs[1].state is JobState.Finished


def test_silent_node_gets_no_new_work_until_it_speaks(busy: Scheduler) -> None:
    busy.handle(ev.NodeSuspected(N1))
    assert sends_of(busy.done(N1, 1)) == []
    assert sends_of(busy.handle(ev.NodeRecovered(N1))) == [(N1, [2])]


def test_node_that_ends_its_jobs_first_takes_no_more(busy: Scheduler) -> None:
    busy.said(N1, msg.NodeDescribed(info(N1, 0)))
    assert sends_of(busy.done(N1, 1)) == []


def test_unknown_nodes_and_clusters_are_ignored_and_counted(scheduler: Scheduler) -> None:
    strange: Sequence[ev.Event] = [
        ev.NodeLost(N3, ""),
        ev.LinkBroken(N3),
        ev.NodeSaid(N3, msg.ComputationReady(MAP)),
        ev.NodeAllocated(REDUCE, N3, 1),
        ev.ClusterClosing(REDUCE),
    ]
    for event in strange:
        assert scheduler.handle(event) == Effects()
    assert scheduler.core.counters.ignored == len(strange)


# ---- pinned jobs ----


def test_pinned_job_runs_on_its_node_only(scheduler: Scheduler) -> None:
    scheduler.ready(N1)
    scheduler.ready(N2)
    assert sends_of(scheduler.submit(1, 2, node=N2)) == [(N2, [1])]
    assert sends_of(scheduler.submit(3)) == [(N1, [3])]
    assert sends_of(scheduler.done(N1, 3)) == []
    assert sends_of(scheduler.done(N2, 1)) == [(N2, [2])]


def test_pinned_job_ends_with_its_node(scheduler: Scheduler) -> None:
    scheduler.ready(N1)
    scheduler.submit(1, 2, node=N1)
    scheduler.handle(ev.NodeLost(N1, "it burns"))
    assert scheduler.jobs[2].state is JobState.Abandoned
    cause = f"the node that it asks for ({N1}) is not known, or was lost"
    assert scheduler.submit(3, node=N1) == only(scheduler.ended(JobState.Abandoned, 3, cause=cause))


def test_pinned_job_ends_when_the_cluster_does_not_use_its_node(scheduler: Scheduler) -> None:
    scheduler.join()
    scheduler.submit(1, node=N1)
    effects = scheduler.handle(ev.NodeAllocated(MAP, N1, 0))
    cause = "the cluster does not use node n1 (10.0.0.1), which it asks for"
    assert effects.notices == [scheduler.ended(JobState.Abandoned, 1, cause=cause)]


# ---- choosing ----


def test_least_loaded_node_first(scheduler: Scheduler) -> None:
    scheduler.ready(N1, 4)
    scheduler.ready(N2, 2)
    # loads go 0/4 0/2, 1/4 0/2, 1/4 1/2, 2/4 1/2, 3/4 1/2
    assert sends_of(scheduler.submit(1)) == [(N1, [1])]
    assert sends_of(scheduler.submit(2)) == [(N2, [2])]
    assert sends_of(scheduler.submit(3)) == [(N1, [3])]
    assert sends_of(scheduler.submit(4)) == [(N1, [4])]
    assert sends_of(scheduler.submit(5)) == [(N2, [5])]


def test_order_of_submission_across_clusters(scheduler: Scheduler) -> None:
    scheduler.open(REDUCE)
    scheduler.ready(N1, 1, MAP, REDUCE)
    scheduler.submit(1)
    scheduler.submit(2, cluster=REDUCE)
    scheduler.submit(3)
    scheduler.submit(4, cluster=REDUCE)
    order = []
    for _ in range(3):
        job = next(job for job, record in scheduler.jobs.items() if record.state is JobState.Running)
        order += sends_of(scheduler.done(N1, job))
    assert order == [(N1, [2]), (N1, [3]), (N1, [4])]


def test_allocation_bounds_what_runs(scheduler: Scheduler) -> None:
    scheduler.join(N1, 4)
    scheduler.handle(ev.NodeAllocated(MAP, N1, 2))
    scheduler.said(N1, msg.LeaseGranted([], []))
    scheduler.said(N1, msg.ComputationReady(MAP))
    assert sends_of(scheduler.submit(*range(1, 10))) == [(N1, [1, 2])]
    # the node knows the bound and keeps to it with what is sent ahead
    assert sends_of(scheduler.done(N1, 1, seconds=0.001)) == [(N1, list(range(3, 10)))]


def test_clusters_share_the_cpus_of_a_node(scheduler: Scheduler) -> None:
    scheduler.open(REDUCE)
    scheduler.ready(N1, 2, MAP, REDUCE)
    assert sends_of(scheduler.submit(1)) == [(N1, [1])]
    assert sends_of(scheduler.submit(2, 3, cluster=REDUCE)) == [(N1, [2])]


@pytest.mark.parametrize(("seconds", "depth"), [(1.0, 1), (0.010, 2), (0.0023, 5), (0.0, 2000)])
def test_depth_follows_the_measured_duration(scheduler: Scheduler, seconds: float, depth: int) -> None:
    scheduler.ready()
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=seconds)
    given = sends_of(scheduler.submit(*range(2, 5002)))
    assert sum(len(jobs) for _, jobs in given) == depth
    assert all(len(jobs) <= 512 for _, jobs in given)


def test_nothing_is_sent_ahead_before_a_job_was_measured(scheduler: Scheduler) -> None:
    scheduler.ready(N1, 2)
    assert sends_of(scheduler.submit(1, 2, 3)) == [(N1, [1, 2])]


def test_idle_cpu_gets_back_what_waits_elsewhere(scheduler: Scheduler) -> None:
    scheduler.ready(N1)
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    scheduler.submit(2, 3, 4, 5, 6)
    # five are there, one runs: half of the four others are called back
    effects = scheduler.ready(N2)
    assert effects == Effects(said(N1, msg.RecallJobs(2)), [NodeOpened(MAP, N2)])
    effects = scheduler.said(N1, msg.JobsRecalled([HeldAttempt(5, 1), HeldAttempt(6, 1)]))
    assert sends_of(effects) == [(N2, [5, 6])]
    assert scheduler.jobs[5].attempt == 2, "it had been handed over once"


def test_one_recall_at_a_time_and_none_after_an_empty_one_until_a_job_ends(scheduler: Scheduler) -> None:
    scheduler.ready(N1)
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    scheduler.submit(2, 3, 4, 5, 6)
    scheduler.ready(N2)
    assert scheduler.ready(N3).sends == []
    assert scheduler.said(N1, msg.JobsRecalled([])).sends == []
    assert scheduler.done(N1, 2, seconds=0.0023).sends == said(N1, msg.RecallJobs(2))


def test_recalled_job_that_was_cancelled_ends(scheduler: Scheduler) -> None:
    scheduler.ready(N1)
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    scheduler.submit(2, 3, 4)
    scheduler.ready(N2)
    scheduler.handle(ev.CancelAsked([4]))
    assert scheduler.said(N1, msg.JobsRecalled([HeldAttempt(4, 1)])) == only(
        scheduler.ended(JobState.Cancelled, 4, node=N1, cause="cancelled before it started")
    )


def test_large_arguments_travel_by_name(scheduler: Scheduler) -> None:
    scheduler.ready()
    blob = BlobRef(b"b" * 32, 100_000, False)
    record = JobRecord(1, MAP, b"", blob=blob)
    effects = scheduler.handle(ev.JobsSubmitted([record]))
    assert effects.sends == [Send(N1, msg.RunJobs(MAP, [JobSpec(1, 1, 0, blob)]), [])]


# ---- what people ask ----


def test_explains_every_place_of_a_job(scheduler: Scheduler) -> None:
    explain = scheduler.core.explain
    assert explain(1) == "Job 1 has ended, or has not been submitted yet."
    scheduler.submit(1, 2)
    assert explain(1) == "Job 1 waits: no node has been found."
    scheduler.join()
    assert "has not said yet which of them it uses" in explain(1)
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    assert explain(1) == "Job 1 waits: node n1 (10.0.0.1) has not answered yet whether it is free."
    scheduler.said(N1, msg.LeaseGranted([], []))
    assert explain(1).endswith("is preparing the computation (files, code, setup).")
    assert scheduler.core.why_waiting() is not None
    scheduler.said(N1, msg.ComputationReady(MAP))
    assert explain(1) == "Job 1 was handed to node n1 (10.0.0.1) (attempt 1) and runs there or is about to."
    assert explain(2) == "Job 2 waits: the CPU of 1 node is busy."
    assert scheduler.core.why_waiting() is None
    scheduler.handle(ev.NodeSuspected(N1))
    assert explain(1).endswith("which has been silent for a while.")
    scheduler.handle(ev.LinkBroken(N1))
    assert "whose link is broken" in explain(1)
    assert "lost its link" in explain(2)
    assert scheduler.core.explain_cluster(MAP).startswith("1 job waits: ")
    assert scheduler.core.waiting == 1


def test_snapshot_shows_clusters_and_nodes(busy: Scheduler) -> None:
    busy.said(N1, msg.LoadMeasured(AvailInfo(50.0, 1, 2, 3.0)))
    view = busy.core.snapshot()
    assert [(cluster.name, cluster.state, cluster.waiting, cluster.in_flight) for cluster in view.clusters] == [
        ("compute", "open", 2, 1)
    ]
    assert [(node.state, node.in_flight, node.avail) for node in view.nodes] == [
        ("leased", 1, AvailInfo(50.0, 1, 2, 3.0))
    ]
    assert view.counters["submitted"] == 3
    busy.handle(ev.LinkBroken(N1))
    assert busy.core.snapshot().nodes[0].state == "broken"


# ---- what running jobs say ----


def test_an_interim_result_is_told_and_counts_as_nothing(busy: Scheduler) -> None:
    before = busy.core.snapshot()
    interim = JobDone(1, 1, Ending.PROVISIONAL, 0.0, 5.0, 2, 0, 0, 0)
    stale = JobDone(1, 9, Ending.PROVISIONAL, 0.0, 5.0, 2, 0, 0, 0)
    batch = msg.JobsDone(1, [interim, result(1), interim, stale])
    effects = busy.handle(ev.NodeSaid(N1, batch, [b"so", b"r", b"no", b"no"]))
    assert effects.notices[0] == JobSpoke(busy.jobs[1], N1, b"so")
    assert [type(notice) for notice in effects.notices[1:]] == [JobsEnded, JobsStarted]
    after = busy.core.snapshot()
    assert (after.counters["ended"], after.counters["dropped"]) == (before.counters["ended"] + 1, 2)
    assert after.clusters[0].mean == 1.0


def test_explains_who_holds_a_node_since_when_and_the_line_before_a_job(scheduler: Scheduler) -> None:
    scheduler.submit(1, 2, 3)
    assert scheduler.core.explain(3).endswith("It waits behind 2 others of its cluster.")
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    scheduler.said(N1, msg.LeaseRefused(Holder("bert", "other", 2, "his.py", 1_700_000_000.0)))
    assert "is used by bert@other (his.py, process 2) since 2023-11-1" in scheduler.core.explain(1)


def test_standings_show_every_node_of_a_cluster_and_its_problem(busy: Scheduler) -> None:
    busy.join(N2)
    busy.handle(ev.NodeAllocated(MAP, N2, 1))
    shown = [(each.name, each.cpus, each.in_flight, each.problem) for each in busy.core.standings(MAP)]
    assert shown == [("n1", 1, 1, ""), ("n2", 1, 0, "has not answered yet whether it is free")]
    assert busy.core.standings(REDUCE) == []


def test_a_shorter_measured_duration_makes_room_for_others_on_every_node(scheduler: Scheduler) -> None:
    """Jobs of MAP on N1 weigh less as soon as N2 has shown that they are short."""
    scheduler.open(REDUCE)
    scheduler.ready(N1, 1, MAP, REDUCE)
    scheduler.ready(N2, 1, MAP)
    assert sends_of(scheduler.submit(1, 2)) == [(N1, [1]), (N2, [2])]
    assert sends_of(scheduler.submit(3, cluster=REDUCE, node=N1)) == []
    assert sends_of(scheduler.done(N2, 2, seconds=0.001)) == [(N1, [3])]
