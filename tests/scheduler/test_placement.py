"""Where jobs with wishes may run, what they need to be free, and which node is kept free for them. By value."""

from __future__ import annotations

import pytest
import test_records as records

from dispy.model import ComputationId, JobOptions, NodeInfo, ProcessId
from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.jobs import JobQueue, JobRecord, Shape
from dispy.scheduler.nodes import Amount, NodeRecord, NodeState, Share, ShareState
from dispy.scheduler.placement import candidates, claim, cpus_on, has_free, may_run, place, why_none_fits, why_unfit

GIB = 1 << 30


@pytest.fixture
def cluster() -> ClusterRecord:
    """It waits for no further nodes."""
    made: ClusterRecord = records.make_cluster(open_ended=False)
    return made


def add(cluster: ClusterRecord, name: str, cpus: int = 4, allocated: int = 0, light: int = 0, **has: object) -> Share:
    """A share of a node with these properties."""
    id = ProcessId(name * 32)
    described = NodeInfo(id, name, cpus, "x", (), **has)  # type: ignore[arg-type]
    node = NodeRecord(id, described, "", len(cluster.shares) + 1, state=NodeState.LEASED)
    made: Share = records.add_share(node, cluster, allocated or cpus, light=light)
    return made


def queue(cluster: ClusterRecord, **options: object) -> JobQueue:
    """A queue with one job."""
    record = JobRecord(1, cluster.id, b"", options=JobOptions(**options))  # type: ignore[arg-type]
    made = cluster.queue_for(record)
    made.append(record)
    return made


# ---- what is fit ----


def test_a_job_that_names_a_node_may_run_only_there(cluster: ClusterRecord) -> None:
    first, second = add(cluster, "a"), add(cluster, "b")
    assert list(candidates(cluster, Shape())) == [first, second]
    shape = Shape(node=second.node.id)
    assert list(candidates(cluster, shape)) == [second]
    assert list(candidates(cluster, Shape(node="unknown"))) == []
    assert (may_run(first, shape), may_run(second, shape), may_run(first, Shape())) == (False, True, True)
    assert not may_run(second, Shape(node=second.node.id, gpus=1))


@pytest.mark.parametrize(("wanted", "occupied"), [(0, 3), (1, 1), (4, 4)])
def test_a_job_occupies_the_cpus_that_it_asks_for_or_all_that_its_cluster_has(
    cluster: ClusterRecord, wanted: int, occupied: int
) -> None:
    assert cpus_on(add(cluster, "a", 4, allocated=3), Shape(cpus=wanted)) == occupied


@pytest.mark.parametrize(
    ("offered", "allocated", "shape", "reason"),
    [
        (4, 4, Shape(cpus=4, memory=GIB, gpus=2, tags=("a", "b")), ""),
        (4, 4, Shape(cpus=5), "has 4 CPUs, not 5"),
        (4, 3, Shape(cpus=4), "lets this cluster use 3 CPUs, not 4"),
        (4, 3, Shape(cpus=3), ""),
        (0, 4, Shape(cpus=5), ""),
        (4, 4, Shape(memory=2 * GIB), "has 1.0 GiB of memory, not 2.0 GiB"),
        (4, 4, Shape(gpus=3), "has 2 GPUs, not 3"),
        (4, 4, Shape(tags=("a", "c")), "does not have the tag c"),
        (4, 4, Shape(tags=("c", "d")), "does not have the tags c, d"),
    ],
)
def test_what_a_node_lacks(cluster: ClusterRecord, offered: int, allocated: int, shape: Shape, reason: str) -> None:
    share = add(cluster, "a", offered, allocated, memory=GIB, gpus=2, tags=("a", "b"))
    assert why_unfit(share, shape) == reason


# ---- what no node can ever run ----


def test_jobs_that_no_node_of_a_cluster_can_run_have_no_hope(cluster: ClusterRecord) -> None:
    add(cluster, "a", 2)
    add(cluster, "b", 3)
    wanted = queue(cluster, cpus=4)
    assert why_none_fits(cluster, wanted.shape) == "no node can run it: a has 2 CPUs, not 4; b has 3 CPUs, not 4"
    share = add(cluster, "c", 4)
    assert why_none_fits(cluster, wanted.shape) == ""
    share.state, share.reason = ShareState.REFUSED, "setup failed"
    assert why_none_fits(cluster, wanted.shape) == "", "it is asked again"
    share.final = True
    assert why_none_fits(cluster, wanted.shape).endswith("; c refused: setup failed")


@pytest.mark.parametrize(
    "change",
    [
        lambda cluster: setattr(cluster, "is_open_ended", True),
        lambda cluster: cluster.asked.update({ProcessId("b"): None}),
        lambda cluster: setattr(cluster, "named", 2),
        lambda cluster: cluster.shares.clear(),
    ],
    ids=["others may come", "one was not decided yet", "one that is named has not come", "none is here"],
)
def test_jobs_wait_while_a_node_for_them_may_come(cluster: ClusterRecord, change: object) -> None:
    add(cluster, "a", 2)
    wanted = queue(cluster, cpus=4)
    cluster.named = 1
    assert why_none_fits(cluster, wanted.shape)
    change(cluster)  # type: ignore[operator]
    assert why_none_fits(cluster, wanted.shape) == ""


def test_named_nodes_that_are_not_used_are_not_waited_for(cluster: ClusterRecord) -> None:
    add(cluster, "a", 2)
    cluster.named = 2
    cluster.declined[ProcessId("b")] = None
    assert why_none_fits(cluster, queue(cluster, cpus=4).shape)


def test_a_job_that_names_a_node_does_not_wait_for_others(cluster: ClusterRecord) -> None:
    share = add(cluster, "a", 2)
    cluster.is_open_ended = True
    assert (
        why_none_fits(cluster, queue(cluster, node=share.node.id, cpus=3).shape)
        == "no node can run it: a has 2 CPUs, not 3"
    )
    assert why_none_fits(cluster, queue(cluster, node=share.node.id).shape) == ""
    assert why_none_fits(cluster, queue(cluster, node="gone", cpus=3).shape) == "", "other words are found for that"


# ---- what is free ----


@pytest.mark.parametrize(
    ("light", "others", "wanted", "is_free"),
    [(0, 0, 4, True), (1, 0, 4, False), (1, 0, 3, True), (1, 1, 3, False), (1, 1, 2, True), (0, 1, 0, False)],
)
def test_a_heavy_job_starts_where_its_cpus_are_free_of_all_clusters(
    cluster: ClusterRecord, light: int, others: int, wanted: int, is_free: bool
) -> None:
    share = add(cluster, "a", light=light)
    if others:
        records.add_share(share.node, records.make_cluster("2"), light=others)
    assert has_free(share, Shape(cpus=wanted)) is is_free
    share.node.is_suspect = True
    assert not has_free(share, Shape(cpus=wanted))


def test_a_heavy_job_starts_within_the_cpus_of_its_cluster(cluster: ClusterRecord) -> None:
    share = add(cluster, "a", 4, allocated=2, light=1)
    assert has_free(share, Shape(cpus=1, gpus=0))
    assert not has_free(share, Shape(cpus=2))


def test_parts_of_cpus_that_make_up_a_whole_are_as_good_as_one() -> None:
    """Their sum is 3.0000000000000004."""
    share = add(records.make_cluster("1", depth=10), "a", 4, light=1)
    for name, light in (("2", 27), ("3", 2)):
        records.add_share(share.node, records.make_cluster(name, depth=10), light=light)
    assert has_free(share, Shape(memory=0))
    assert not has_free(share, Shape(cpus=2))


@pytest.mark.parametrize("what", ["cpus", "memory", "gpus"])
def test_what_jobs_have_and_what_is_claimed_is_not_free(cluster: ClusterRecord, what: str) -> None:
    share = add(cluster, "a", 4, memory=4, gpus=4)
    shape = Shape(**{what: 2})
    one = Amount(**{what: 1})
    node = share.node
    if what != "cpus":
        node.taken.add(0, one.memory, one.gpus)
    node.claimed.add(one.cpus, one.memory, one.gpus)
    assert has_free(share, shape)
    node.claimed.add(2 * one.cpus, 2 * one.memory, 2 * one.gpus)
    assert not has_free(share, shape)
    node.claimed = Amount()
    assert has_free(share, shape)
    if what != "cpus":
        node.taken.add(0, 2 * one.memory, 2 * one.gpus)
        assert not has_free(share, shape)


# ---- which node ----


def test_a_job_with_wishes_goes_to_the_least_loaded_node_that_has_room_and_is_fit(cluster: ClusterRecord) -> None:
    loaded = add(cluster, "a", light=2, tags=("x",))
    fitting = add(cluster, "b", light=1, tags=("x",))
    empty = add(cluster, "c")
    wanted = queue(cluster, tags=("x",))
    assert place(cluster, wanted) == (fitting, 3)
    fitting.is_paused = True
    assert place(cluster, wanted) == (loaded, 2)
    loaded.flight.update({number: JobRecord(number, cluster.id, b"") for number in (1, 2)})
    assert place(cluster, wanted) is None, "it is full"
    assert place(cluster, queue(cluster, node=empty.node.id)) == (empty, 4)


def test_nodes_of_equal_load_get_jobs_with_wishes_in_the_order_in_which_they_joined(cluster: ClusterRecord) -> None:
    first = add(cluster, "a")
    add(cluster, "b")
    assert place(cluster, queue(cluster, tags=())) is None, "a job without wishes: from the rooms"
    assert place(cluster, queue(cluster, cpus=2)) == (first, 1)
    first.node.order = 9
    found = place(cluster, queue(cluster, cpus=2))
    assert found is not None
    assert found[0].node.id == "b" * 32


def test_heavy_jobs_go_one_by_one_to_where_least_is_busy_of_all_clusters(cluster: ClusterRecord) -> None:
    first, second = add(cluster, "a"), add(cluster, "b", light=1)
    records.add_share(first.node, records.make_cluster("2"), light=2)
    assert place(cluster, queue(cluster, cpus=2)) == (second, 1)
    assert place(cluster, queue(cluster, cpus=4)) is None


# ---- what is kept free ----


def test_the_node_that_lacks_least_is_kept_free(cluster: ClusterRecord) -> None:
    add(cluster, "a", 4, light=4)
    near = add(cluster, "b", 4, light=3)
    far = add(cluster, "c", 2, light=2)
    assert claim(cluster, queue(cluster, cpus=2)) is near.node
    assert near.node.claimed == Amount(2, 0, 0)
    assert claim(cluster, queue(cluster, cpus=2)) is not near.node, "what is claimed there counts as busy"
    assert far.node.claimed.cpus == 0


def test_jobs_of_other_clusters_keep_a_node_from_being_near(cluster: ClusterRecord) -> None:
    crowded, near = add(cluster, "a", 4, light=1), add(cluster, "b", 4, light=2)
    records.add_share(crowded.node, records.make_cluster("2"), light=3)
    assert claim(cluster, queue(cluster, cpus=3)) is near.node


def test_of_nodes_that_are_as_near_the_first_is_kept_free(cluster: ClusterRecord) -> None:
    later, first = add(cluster, "a", 2, light=2), add(cluster, "b", 2, light=2)
    later.node.order, first.node.order = 2, 1
    assert claim(cluster, queue(cluster, cpus=2)) is first.node


@pytest.mark.parametrize("what", ["cpus", "memory", "gpus"])
def test_no_more_of_a_node_is_claimed_than_it_has(cluster: ClusterRecord, what: str) -> None:
    share = add(cluster, "a", 4, light=4, memory=4, gpus=4)
    wanted = queue(cluster, **{"cpus": 2, what: 2} if what == "cpus" else {"cpus": 1, what: 2})
    assert claim(cluster, wanted) is share.node
    assert claim(cluster, wanted) is share.node
    assert claim(cluster, wanted) is None
    assert getattr(share.node.claimed, what) == 4


def test_all_cpus_of_a_node_are_claimed_for_a_job_that_asks_for_all(cluster: ClusterRecord) -> None:
    share = add(cluster, "a", 4, allocated=3, light=1)
    assert claim(cluster, queue(cluster, cpus=0)) is share.node
    assert share.node.claimed.cpus == 3


def test_only_nodes_that_are_fit_and_can_be_given_work_are_kept_free(cluster: ClusterRecord) -> None:
    unfit, away = add(cluster, "a", 2), add(cluster, "b", 4)
    away.node.is_suspect = True
    assert claim(cluster, queue(cluster, cpus=3)) is None
    assert claim(cluster, queue(cluster, node=unfit.node.id, cpus=3)) is None
    away.node.is_suspect = False
    assert claim(cluster, queue(cluster, cpus=3)) is away.node
    assert unfit.node.claimed == Amount()


def test_a_node_that_lacks_a_tag_is_not_kept_free(cluster: ClusterRecord) -> None:
    add(cluster, "a", light=1)
    tagged = add(cluster, "b", light=4, tags=("x",))
    assert claim(cluster, queue(cluster, cpus=4, tags=("x",))) is tagged.node


def test_a_claim_of_another_cluster_keeps_its_cpus_from_this_one(cluster: ClusterRecord) -> None:
    share = add(cluster, "a", 4)
    other = records.make_cluster("2")
    records.add_share(share.node, other)
    assert claim(other, queue(other, cpus=3)) is share.node
    assert place(cluster, queue(cluster, cpus=2)) is None
    assert place(cluster, queue(cluster, cpus=1, memory=0, gpus=0)) is None, "a job without wishes: from the rooms"
    assert has_free(share, Shape())
    assert ComputationId("2" * 32) in share.node.shares
