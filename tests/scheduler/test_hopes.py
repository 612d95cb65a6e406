"""When jobs have no hope: in which words they end, and when they go on waiting. By value."""

from __future__ import annotations

import pytest
import test_records as records

from dispy.model import ComputationId, Holder, JobOptions, ProcessId
from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.fairness import Policy, Turns
from dispy.scheduler.flow import why_hopeless
from dispy.scheduler.jobs import JobQueue, JobRecord
from dispy.scheduler.nodes import ShareState
from dispy.scheduler.tables import Tables

MAP, NODE, OTHER = ComputationId("1" * 32), records.NODE, ProcessId("b" * 32)


@pytest.fixture
def tables() -> Tables:
    """One cluster, which has one node and waits for no other."""
    made = Tables(Holder("anna", "host", 1, "prog.py"), b"t", 5.0, 0.01, Turns(Policy.FIFO))
    cluster, node = records.make_cluster(open_ended=False), records.make_node()
    made.clusters[MAP], made.nodes[NODE] = cluster, node
    records.add_share(node, cluster)
    return made


def queue(cluster: ClusterRecord, **options: object) -> JobQueue:
    return cluster.queue_for(JobRecord(1, MAP, b"", options=JobOptions(**options)))  # type: ignore[arg-type]


def why(tables: Tables, **options: object) -> str:
    """Why a job that asks for this has no hope."""
    cluster = tables.clusters[MAP]
    return why_hopeless(tables, cluster, queue(cluster, **options).shape)


def refuse(tables: Tables, *, final: bool = True) -> None:
    share = tables.clusters[MAP].shares[NODE]
    share.state, share.final, share.reason, share.trace = ShareState.REFUSED, final, "setup failed", "a trace"


def test_a_job_that_a_node_can_run_has_hope(tables: Tables) -> None:
    assert why(tables) == why(tables, node=NODE) == why(tables, cpus=4) == ""


def test_what_the_program_itself_has_lost_no_other_node_can_run(tables: Tables) -> None:
    cluster = tables.clusters[MAP]
    cluster.is_open_ended = True
    refuse(tables)
    assert why(tables) == "", "another node may come"
    cluster.shares[NODE].is_lost = True
    assert why(tables) == why(tables, cpus=2) == "every node refused it for good: n1 (10.0.0.1): setup failed\na trace"
    cluster.asked[NODE] = None
    assert why(tables) == ""


def test_a_cluster_for_which_no_node_can_come_has_hope_while_it_has_one_or_may_get_one(tables: Tables) -> None:
    cluster = tables.clusters[MAP]
    cluster.forsaken = "the disk is full"
    assert why(tables) == ""
    share = cluster.shares.pop(NODE)
    assert why(tables) == "the disk is full"
    cluster.asked[NODE] = None
    assert why(tables) == "", "its owner may want that one"
    cluster.asked.clear()
    cluster.shares[NODE] = share
    assert why(tables) == ""
    cluster.shares.clear()
    cluster.forsaken = ""
    assert why(tables) == ""


def test_when_every_node_refused_for_good_all_jobs_end_with_the_reasons(tables: Tables) -> None:
    refuse(tables)
    cause = "every node refused it for good: n1 (10.0.0.1): setup failed\na trace"
    assert why(tables) == why(tables, node=NODE) == why(tables, gpus=1) == cause


def test_a_job_that_names_a_node_ends_with_it(tables: Tables) -> None:
    assert why(tables, node=OTHER) == f"the node that it asks for ({OTHER}) is not known, or was lost"


def test_a_job_that_names_a_node_ends_when_its_cluster_does_not_use_that(tables: Tables) -> None:
    tables.clusters[MAP].declined[NODE] = None
    assert why(tables, node=NODE) == "the cluster does not use node n1 (10.0.0.1), which it asks for"
    assert why(tables) == ""


def test_a_job_that_names_a_node_ends_when_that_refused_for_good(tables: Tables) -> None:
    cluster = tables.clusters[MAP]
    cluster.is_open_ended = True
    refuse(tables, final=False)
    assert why(tables, node=NODE) == "", "it is asked again"
    refuse(tables)
    assert why(tables) == "", "another may come"
    assert why(tables, node=NODE) == "node n1 (10.0.0.1), which it asks for, refused: setup failed\na trace"
    cluster.shares[NODE].state = ShareState.WANTED
    assert why(tables, node=NODE) == "", "the user wants it to be used again"


def test_a_job_waits_for_the_word_of_its_owner_about_the_node_that_it_names(tables: Tables) -> None:
    cluster = tables.clusters[MAP]
    del cluster.shares[NODE]
    assert why(tables, node=NODE) == ""
    assert why(tables, node=NODE, cpus=9) == ""


def test_a_job_with_wishes_ends_when_no_node_fits_even_if_it_names_one(tables: Tables) -> None:
    assert why(tables, cpus=5) == "no node can run it: n1 (10.0.0.1) has 4 CPUs, not 5"
    tables.clusters[MAP].is_open_ended = True
    assert why(tables, cpus=5) == ""
    assert why(tables, cpus=5, node=NODE) == "no node can run it: n1 (10.0.0.1) has 4 CPUs, not 5"
