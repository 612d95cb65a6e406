"""Every reason for which a job waits, in the words that people get, by value."""

from __future__ import annotations

from typing import Any

import pytest
import test_scheduler_core as core

from dispy.model import Holder, JobOptions, JobState, NodeInfo
from dispy.scheduler import events as ev
from dispy.scheduler.effects import Effects, JobsEnded, NodeVanished
from dispy.scheduler.events import Steering
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages as msg

MAP, N1, N2 = core.MAP, core.N1, core.N2
Scheduler, info = core.Scheduler, core.info


@pytest.fixture
def scheduler() -> Any:
    """A core with one cluster open."""
    made = Scheduler()
    made.open()
    return made


def submit(scheduler: Any, number: int, options: JobOptions) -> None:
    scheduler.handle(ev.JobsSubmitted([JobRecord(number, MAP, b"", options=options)]))


def endings(effects: Effects) -> list[tuple[JobState, str | None]]:
    return [
        (each.state, each.cause) for notice in effects.notices if isinstance(notice, JobsEnded) for each in notice.jobs
    ]


def test_setup_that_still_runs_says_which_step_since_when(scheduler: Any) -> None:
    scheduler.submit(1)
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    scheduler.said(N1, msg.LeaseGranted([], []))
    scheduler.now = 10.0
    scheduler.said(N1, msg.ComputationAdvanced(MAP, "setup still running"))
    said = scheduler.core.explain(1, 14.0)
    assert said == "Job 1 waits: node n1 (10.0.0.1) is preparing the computation: setup still running since 4 s."
    scheduler.now = 15.0
    scheduler.handle(ev.CancelAsked([]))
    assert "since 5 s" in scheduler.core.explain(1), "the time of the last event"


def test_what_is_prepared_for_less_than_a_second_has_no_time(scheduler: Any) -> None:
    scheduler.submit(1)
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    scheduler.said(N1, msg.LeaseGranted([], []))
    scheduler.said(N1, msg.ComputationAdvanced(MAP, "its code is being loaded"))
    said = scheduler.core.explain(1, scheduler.now + 0.9)
    assert said == "Job 1 waits: node n1 (10.0.0.1) is preparing the computation: its code is being loaded."


def test_the_only_node_that_was_lost_is_waited_for_by_name(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.submit(1)
    effects = scheduler.handle(ev.NodeLost(N1, "nothing answers at its port"))
    sentence = "node n1 (10.0.0.1) was lost (nothing answers at its port)"
    assert [(told.sentence, told.is_last) for told in effects.notices if isinstance(told, NodeVanished)] == [
        (sentence, True)
    ]
    scheduler.submit(2)
    assert scheduler.core.explain(2).startswith(f"Job 2 waits: {sentence}; waiting for it or another.")
    scheduler.join(N2)
    assert "was lost" not in scheduler.core.explain(2)


def test_a_setup_that_failed_is_told_with_its_cause(scheduler: Any) -> None:
    scheduler.submit(1)
    scheduler.ready()
    scheduler.join(N2)
    scheduler.handle(ev.NodeAllocated(MAP, N2, 1))
    scheduler.submit(2)
    scheduler.said(N2, msg.LeaseGranted([], []))
    scheduler.said(N2, msg.ComputationRefused(MAP, "setup failed: OSError: no licence", "Traceback: no licence", True))
    said = scheduler.core.explain(2)
    assert "node n2 (10.0.0.1) refused: setup failed: OSError: no licence" in said
    assert said.endswith("\nTraceback: no licence")


def test_a_refusal_for_now_is_told_as_such(scheduler: Any) -> None:
    scheduler.submit(1)
    scheduler.ready()
    scheduler.said(N1, msg.ComputationRefused(MAP, "no space left on device", "", False))
    scheduler.submit(2)
    assert "refused for now: no space left on device" in scheduler.core.explain(2)


def test_a_node_outside_its_hours_says_so(scheduler: Any) -> None:
    closed = NodeInfo(N1, "n1", 0, "x", (), closed="its service window begins at 18:00")
    scheduler.handle(ev.NodeJoined(N1, closed, "10.0.0.1"))
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    scheduler.submit(1)
    assert "offers no CPU now: its service window begins at 18:00" in scheduler.core.explain(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (JobOptions(cpus=4), "has 2 CPUs, not 4"),
        (JobOptions(memory=2 << 30), "has 1.0 GiB of memory, not 2.0 GiB"),
        (JobOptions(gpus=2), "has no GPU"),
        (JobOptions(tags=("big", "fast")), "does not have the tag fast"),
    ],
)
def test_too_little_of_something(scheduler: Any, options: JobOptions, words: str) -> None:
    small = NodeInfo(N1, "n1", 2, "x", (), 1 << 30, tags=("big",))
    scheduler.handle(ev.NodeJoined(N1, small, "10.0.0.1"))
    scheduler.handle(ev.NodeAllocated(MAP, N1, 2))
    submit(scheduler, 1, options)
    said = scheduler.core.explain(1)
    assert f"no node that is known can run it (node n1 (10.0.0.1) {words})" in said
    assert words in (scheduler.core.why_waiting() or "")


def test_a_job_that_no_node_can_run_waits_behind_nobody(scheduler: Any) -> None:
    scheduler.handle(ev.NodeJoined(N1, NodeInfo(N1, "n1", 2, "x", ()), "10.0.0.1"))
    scheduler.handle(ev.NodeAllocated(MAP, N1, 2))
    submit(scheduler, 1, JobOptions(cpus=8))
    submit(scheduler, 2, JobOptions(cpus=99))
    said = scheduler.core.explain(2)
    assert "no node that is known can run it" in said
    assert "behind" not in said


def test_a_job_waits_behind_others_of_any_wish(scheduler: Any) -> None:
    scheduler.submit(1, 2)
    submit(scheduler, 3, JobOptions(priority=1))
    submit(scheduler, 4, JobOptions(tags=("big",)))
    assert scheduler.core.explain(4).endswith("It waits behind 3 others of its cluster.")
    assert scheduler.core.explain(1).endswith("It waits behind 1 other of its cluster.")
    assert "behind" not in scheduler.core.explain(3)


def test_what_no_known_node_can_run_is_told_while_others_run(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.submit(1)
    submit(scheduler, 2, JobOptions(gpus=1))
    assert scheduler.core.why_waiting() == (
        "1 job waits for 1 CPU and 1 GPU: no node that is known can run it (node n1 (10.0.0.1) has no GPU)."
    )
    scheduler.handle(ev.CancelAsked([2]))
    assert scheduler.core.why_waiting() is None


def test_clusters_without_jobs_are_not_spoken_of(scheduler: Any) -> None:
    scheduler.open(core.REDUCE)
    assert scheduler.core.why_waiting() is None
    scheduler.submit(1, cluster=core.REDUCE)
    assert scheduler.core.why_waiting() == "1 job waits: no node has been found."


def test_a_pinned_job_whose_node_is_paused_or_gone(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.handle(ev.NodeSteered(MAP, N1, Steering.PAUSE))
    scheduler.submit(1, node=N1)
    assert scheduler.core.explain(1) == (
        "Job 1 may only run on node n1 (10.0.0.1), which is deallocated for this cluster (allocate_node uses it again)."
    )
    effects = scheduler.handle(ev.NodeLost(N1, "it was switched off"))
    [(state, cause)] = endings(effects)
    assert state is JobState.Abandoned
    assert cause == "node n1 (10.0.0.1), which it asks for, was lost (it was switched off)"


def test_when_every_node_has_refused_for_good_jobs_end_with_all_causes() -> None:
    scheduler = Scheduler()
    scheduler.open(open_ended=False)
    scheduler.submit(1)
    for node in (N1, N2):
        scheduler.join(node)
        scheduler.handle(ev.NodeAllocated(MAP, node, 1))
        scheduler.said(node, msg.LeaseGranted([], []))
    scheduler.said(N1, msg.ComputationRefused(MAP, "needs CPython 3.13; this node has CPython 3.11.7", "", True))
    effects = scheduler.said(N2, msg.ComputationRefused(MAP, "setup failed", "", True))
    [(state, cause)] = endings(effects)
    assert state is JobState.Abandoned
    assert "n1 (10.0.0.1): needs CPython 3.13; this node has CPython 3.11.7" in str(cause)
    assert "n2 (10.0.0.1): setup failed" in str(cause)


def test_a_job_waits_at_its_node_behind_others(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    scheduler.submit(2, 3, 4)
    said = [scheduler.core.explain(number).partition("(attempt 1) and ")[2] for number in (2, 3, 4)]
    assert said == [
        "runs there or is about to.",
        "waits there behind 1 other of its cluster.",
        "waits there behind 2 others of its cluster.",
    ]


def test_a_job_for_which_cpus_are_kept_runs_whatever_else_is_there(scheduler: Any) -> None:
    scheduler.ready(N1, 4)
    scheduler.submit(1)
    scheduler.done(N1, 1, seconds=0.0023)
    scheduler.submit(*range(2, 8))
    submit(scheduler, 8, JobOptions(cpus=2))
    assert scheduler.core.explain(8).endswith("and runs there or is about to.")


def test_a_pinned_job_whose_node_is_not_fit_or_busy(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.join(N2)
    submit(scheduler, 1, JobOptions(node=N1, gpus=1))
    where = "may only run on node n1 (10.0.0.1), which"
    assert scheduler.core.explain(1) == f"Job 1 {where} has no GPU."
    scheduler.submit(2)
    submit(scheduler, 3, JobOptions(node=N1))
    assert scheduler.core.explain(3) == f"Job 3 {where} has all its CPUs busy."
    scheduler.submit(4, node=N2)
    assert scheduler.core.explain(4).endswith("and the cluster's program has not said yet how much it uses of it.")


def test_which_nodes_refuse_matters_only_where_it_is_for_want_of_nodes_that_a_job_waits(scheduler: Any) -> None:
    scheduler.submit(1, 2)
    assert scheduler.core.lacks_nodes(1)
    scheduler.ready()
    assert not scheduler.core.lacks_nodes(1), "it runs"
    scheduler.submit(*range(3, 9))
    assert "CPU of 1 node is busy" in scheduler.core.explain(8)
    assert not scheduler.core.lacks_nodes(8), "a CPU becomes free"
    submit(scheduler, 9, JobOptions(gpus=1))
    assert scheduler.core.lacks_nodes(9)


def test_nodes_that_are_known_from_before_and_do_not_answer() -> None:
    restored = Scheduler()
    opened = ev.RestoredCluster(ev.ClusterOpened(core.spec(MAP), reentrant=False))
    restored.handle(ev.Restored([opened], [], [ev.RestoredNode(N1, info(N1, 1), "10.0.0.1")], []))
    restored.submit(1)
    assert (
        restored.core.explain(1) == "Job 1 waits: no node is there: n1 (10.0.0.1) was there before and does not answer."
    )


def test_only_what_no_node_can_run_is_told_while_others_run(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.join(N2)
    scheduler.submit(1)
    submit(scheduler, 2, JobOptions(node=N1))
    submit(scheduler, 3, JobOptions(node=N2))
    assert scheduler.core.why_waiting() is None, "one waits for its turn, the other for the word of its owner"


def test_a_job_of_several_cpus_says_of_each_node_why_not(scheduler: Any) -> None:
    submit(scheduler, 1, JobOptions(cpus=2))
    assert scheduler.core.explain(1) == "Job 1 waits for 2 CPUs: no node has been found."
    scheduler.handle(ev.CancelAsked([1]))
    scheduler.ready(N1, 2)
    scheduler.ready(N2, 3)
    scheduler.ready(core.N3, 1)
    scheduler.submit(*range(2, 8))
    scheduler.handle(ev.NodeSuspected(N1))
    submit(scheduler, 8, JobOptions(cpus=3))
    submit(scheduler, 9, JobOptions(cpus=2))
    silent, kept = "node n1 (10.0.0.1) has been silent for a while", "is being kept free, for this job or one before it"
    assert scheduler.core.explain(9) == (
        f"Job 9 waits for 2 CPUs: node n3 (10.0.0.1) has 1 CPU, not 2; {silent}; node n2 (10.0.0.1) {kept}. "
        "It waits behind 1 other of its cluster."
    )
    scheduler.handle(ev.CancelAsked([8]))
    scheduler.handle(ev.NodeSteered(MAP, N2, Steering.PAUSE))
    assert "n2 (10.0.0.1) is deallocated for this cluster" in scheduler.core.explain(9)


def test_one_of_the_nodes_on_which_not_enough_is_free_is_kept_free(scheduler: Any) -> None:
    for node in (N1, N2):
        scheduler.ready(node, 2)
    scheduler.submit(1, 2, 3, 4)
    submit(scheduler, 5, JobOptions(cpus=2))
    assert scheduler.core.explain(5) == (
        "Job 5 waits for 2 CPUs: node n1 (10.0.0.1) is being kept free, for this job or one before it; "
        "on node n2 (10.0.0.1) not enough is free."
    )


def test_a_cluster_that_uses_none_of_the_nodes_says_why(scheduler: Any) -> None:
    scheduler.submit(1)
    closed = NodeInfo(N1, "n1", 0, "x", (), closed="its window begins at 18:00")
    scheduler.handle(ev.NodeJoined(N1, closed, "10.0.0.1"))
    scheduler.handle(ev.NodeAllocated(MAP, N1, 0))
    waits = "Job 1 waits:"
    assert scheduler.core.explain(1) == f"{waits} node n1 (10.0.0.1) offers no CPU now: its window begins at 18:00."
    scheduler.join(N2)
    scheduler.handle(ev.NodeAllocated(MAP, N2, 0))
    assert scheduler.core.explain(1) == f"{waits} 2 nodes found, and the cluster uses none of them."


def test_a_node_that_is_being_closed_says_so(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.submit(1, 2)
    scheduler.handle(ev.NodeAllocated(MAP, N1, 0))
    gone = "no node that is known can run it (node n1 (10.0.0.1) is not used by this cluster any more)"
    for _ in range(2):
        assert [each.problem for each in scheduler.core.standings(MAP)] == ["is clearing up"]
        assert scheduler.core.explain(2) == f"Job 2 waits: {gone}."
        scheduler.said(N1, msg.ComputationClosed(MAP))


def test_nothing_is_said_of_a_cluster_that_is_not_known_or_has_no_jobs(scheduler: Any) -> None:
    assert scheduler.core.explain_cluster(core.REDUCE) == scheduler.core.explain_cluster(MAP) == ""
    scheduler.ready()
    scheduler.submit(1)
    assert scheduler.core.explain_cluster(MAP) == ""


# ---- nobody waits for further nodes ----


def test_at_the_end_of_a_program_jobs_end_that_no_known_node_can_run(scheduler: Any) -> None:
    scheduler.ready()
    scheduler.said(N1, msg.ComputationRefused(MAP, "setup failed", "", True))
    scheduler.submit(1)
    assert "refused: setup failed" in scheduler.core.explain(1)
    [(state, cause)] = endings(scheduler.handle(ev.ClusterNarrowed(MAP)))
    assert (state, cause) == (JobState.Abandoned, "every node refused it for good: n1 (10.0.0.1): setup failed")


def test_at_the_end_of_a_program_jobs_go_on_waiting_for_what_may_come(scheduler: Any) -> None:
    scheduler.submit(1)
    assert endings(scheduler.handle(ev.ClusterNarrowed(MAP))) == []
    scheduler.join()
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    scheduler.said(N1, msg.LeaseRefused(Holder("bert", "other", 2, "his.py")))
    assert endings(scheduler.handle(ev.ClusterNarrowed(MAP))) == []
    assert scheduler.core.lacks_nodes(1)


@pytest.mark.parametrize(("program", "is_shared"), [("his.py", False), ("dispyscheduler", True)])
def test_who_waits_for_a_node_of_a_shared_scheduler_hears_how_not_to(
    scheduler: Any, program: str, is_shared: bool
) -> None:
    scheduler.join()
    scheduler.submit(1)
    scheduler.handle(ev.NodeAllocated(MAP, N1, 1))
    scheduler.said(N1, msg.LeaseRefused(Holder("bert", "other", 2, program)))
    explained = scheduler.core.explain(1)
    assert "this program stands in line" in explained
    assert ("a SharedJobCluster need not wait for it" in explained) is is_shared


def test_without_its_only_node_a_cluster_is_forsaken_until_it_may_have_others() -> None:
    scheduler = Scheduler()
    scheduler.open(open_ended=False)
    scheduler.submit(1)
    effects = scheduler.handle(ev.ClusterNarrowed(MAP, "no node could be started on this machine: disk full"))
    assert endings(effects) == [(JobState.Abandoned, "no node could be started on this machine: disk full")]
    assert endings(scheduler.submit(2)) == [(JobState.Abandoned, "no node could be started on this machine: disk full")]
    scheduler.handle(ev.ClusterWidened(MAP))
    assert endings(scheduler.submit(3)) == []
    assert endings(scheduler.handle(ev.ClusterNarrowed(core.REDUCE, "unknown"))) == []


def test_nodes_that_clear_up_are_named_with_their_time(scheduler: Any) -> None:
    scheduler.ready(N1)
    scheduler.ready(N2)
    scheduler.now = 10.0
    scheduler.handle(ev.ClusterClosing(MAP, False))
    scheduler.handle(ev.LinkBroken(N2))

    def problems(now: float) -> list[tuple[str, str]]:
        return [(each.name, each.problem) for each in scheduler.core.standings(MAP, now)]

    broken = ("n2", "lost its link and is given some time to come back")
    assert problems(10.5) == [("n1", "is clearing up"), broken]
    assert problems(13.5) == [("n1", "has been clearing up for 3 s"), broken]
    scheduler.said(N1, msg.ComputationClosed(MAP))
    assert problems(14.0) == [broken]


# ---- many clusters ----


def test_clusters_that_wait_for_the_same_are_told_together(scheduler: Any) -> None:
    scheduler.open(core.REDUCE)
    scheduler.submit(1, 2)
    scheduler.submit(3, cluster=core.REDUCE)
    assert scheduler.core.why_waiting() == "3 jobs of 2 clusters wait: no node has been found."
    assert scheduler.core.why_cluster_waits(MAP) == "2 jobs wait: no node has been found."
    assert scheduler.core.why_cluster_waits(core.REDUCE) == "1 job waits: no node has been found."


def test_of_very_many_clusters_only_the_first_are_looked_at(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispy.scheduler.explain.LOOKED_AT", 0)
    scheduler.open(core.REDUCE)
    scheduler.submit(1)
    scheduler.submit(3, cluster=core.REDUCE)
    said = "1 job waits: no node has been found. Jobs of further clusters wait, too."
    assert scheduler.core.why_waiting() == said


def test_jobs_before_another_are_counted_by_priority_and_order(scheduler: Any) -> None:
    scheduler.submit(1, 2, 3)
    submit(scheduler, 4, JobOptions(priority=1))
    submit(scheduler, 5, JobOptions(tags=("big",)))
    scheduler.handle(ev.CancelAsked([2]))
    assert "behind" not in scheduler.core.explain(4)
    assert scheduler.core.explain(3).endswith("It waits behind 2 others of its cluster.")
    assert scheduler.core.explain(5).endswith("It waits behind 3 others of its cluster.")
