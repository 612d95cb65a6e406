"""The arithmetic of nodes, shares and clusters: CPUs, loads, what is idle and what is too much. By value."""

from __future__ import annotations

import pytest

from dispy.model import BlobRef, ComputationId, ComputationSpec, FileSpec, JobOptions, NodeInfo, ProcessId
from dispy.scheduler.clusters import MOST_AHEAD, SHORTEST_JOB, ClusterRecord, ClusterState
from dispy.scheduler.jobs import JobRecord, Shape
from dispy.scheduler.nodes import Amount, NodeRecord, NodeState, Share, ShareState, traces_of

NODE = ProcessId("a" * 32)


def make_cluster(name: str = "1", *, depth: int = 1, open_ended: bool = True) -> ClusterRecord:
    made = ClusterRecord(ComputationSpec(ComputationId(name * 32), "f", "function"), False, open_ended, 0.01)
    made.depth = depth
    return made


def make_node(cpus: int = 4, *, oversubscribe: bool = False) -> NodeRecord:
    described = NodeInfo(NODE, "n1", cpus, "x", (), oversubscribe=oversubscribe)
    return NodeRecord(NODE, described, "10.0.0.1", 1, state=NodeState.LEASED)


def add_share(
    node: NodeRecord,
    cluster: ClusterRecord,
    cpus: int = 4,
    *,
    light: int = 0,
    heavy: int = 0,
    oversubscribe: bool = False,
) -> Share:
    """A share with so many light jobs, and (if not 0) one that has so many CPUs for itself."""
    made = Share(cluster, node, cpus, state=ShareState.READY, oversubscribe=oversubscribe)
    cluster.shares[node.id] = node.shares[cluster.id] = made
    first = 1000 * len(node.shares)
    for number in range(first, first + light):
        made.flight[number] = JobRecord(number, cluster.id, b"")
    if heavy:
        record = JobRecord(first + light, cluster.id, b"", options=JobOptions(cpus=heavy))
        made.flight[record.job] = record
        made.hold(record, heavy)
    if made.flight:
        node.busy[made] = None
    return made


# ---- CPUs ----


@pytest.mark.parametrize(
    ("allocated", "offered", "cluster_may", "node_may", "slots"),
    [
        (2, 4, False, False, 2),
        (4, 4, False, False, 4),
        (5, 4, False, False, 4),
        (5, 4, True, False, 5),
        (5, 4, False, True, 5),
        (2, 4, True, False, 2),
        (5, 0, True, True, 0),
    ],
)
def test_a_cluster_uses_what_it_was_allocated_and_no_more_than_is_offered_without_permission(
    allocated: int, offered: int, cluster_may: bool, node_may: bool, slots: int
) -> None:
    node = make_node(offered, oversubscribe=node_may)
    assert add_share(node, make_cluster(), allocated, oversubscribe=cluster_may).slots == slots


def test_another_cluster_that_may_use_more_than_is_offered_gives_this_one_no_more() -> None:
    node = make_node(2)
    plain = add_share(node, make_cluster("1"), 5)
    add_share(node, make_cluster("2"), 7, oversubscribe=True)
    assert (plain.slots, node.capacity) == (2, 7)


@pytest.mark.parametrize(("offered", "capacity"), [(2, 5), (6, 6), (0, 0)])
def test_the_largest_wish_that_is_allowed_is_what_jobs_may_use(offered: int, capacity: int) -> None:
    node = make_node(offered, oversubscribe=True)
    add_share(node, make_cluster("1"), 5)
    add_share(node, make_cluster("2"), 3)
    assert node.capacity == capacity


@pytest.mark.parametrize(("allocated", "told"), [(4, 0), (3, 3), (5, 5)])
def test_a_node_is_told_of_a_limit_unless_all_that_it_offers_is_used(allocated: int, told: int) -> None:
    assert add_share(make_node(4), make_cluster(), allocated).limit == told


@pytest.mark.parametrize(
    ("state", "broken_until", "suspect", "cpus", "is_usable", "can_hear"),
    [
        (NodeState.LEASED, None, False, 1, True, True),
        (NodeState.LEASED, None, True, 1, False, True),
        (NodeState.LEASED, None, False, 0, False, True),
        (NodeState.LEASED, 5.0, False, 1, False, False),
        (NodeState.ASKED, None, False, 1, False, False),
    ],
)
def test_which_nodes_can_be_given_work_and_which_hear(
    state: NodeState, broken_until: float | None, suspect: bool, cpus: int, is_usable: bool, can_hear: bool
) -> None:
    node = make_node(cpus)
    node.state, node.broken_until, node.is_suspect = state, broken_until, suspect
    assert (node.is_usable, node.can_hear) == (is_usable, can_hear)


def test_a_share_is_given_work_when_it_is_open_not_paused_and_its_node_usable() -> None:
    share = add_share(make_node(), make_cluster())
    assert share.is_usable
    share.is_paused = True
    assert not share.is_usable
    share.is_paused, share.state = False, ShareState.OPENING
    assert not share.is_usable
    share.state, share.node.is_suspect = ShareState.READY, True
    assert not share.is_usable


@pytest.mark.parametrize(
    ("state", "final", "light", "is_wanted"),
    [
        (ShareState.WANTED, False, 0, True),
        (ShareState.REFUSED, False, 0, True),
        (ShareState.REFUSED, True, 0, False),
        (ShareState.REFUSED, True, 1, True),
    ],
)
def test_a_node_is_wanted_unless_it_refused_for_good_and_has_no_job(
    state: ShareState, final: bool, light: int, is_wanted: bool
) -> None:
    node = make_node()
    assert not node.is_wanted
    share = add_share(node, make_cluster(), light=light)
    share.state, share.final = state, final
    assert node.is_wanted is is_wanted


# ---- loads ----


def test_light_jobs_weigh_a_part_of_the_depth_and_heavy_ones_their_cpus() -> None:
    share = add_share(make_node(8), make_cluster(depth=4), 8, light=6, heavy=3)
    assert (share.load, share.wanted, share.node.in_flight) == (4.5, 9, 7)


@pytest.mark.parametrize(
    ("light", "heavy", "idle", "excess"),
    [
        (0, 0, 4, 0),
        (3, 0, 1, 0),
        (4, 0, 0, 0),
        (5, 0, 0, 1),
        (9, 0, 0, 5),
        (0, 3, 1, 0),
        (1, 3, 0, 0),
        (2, 3, 0, 1),
        (0, 4, 0, 0),
    ],
)
def test_a_cluster_that_is_alone_on_a_node(light: int, heavy: int, idle: int, excess: int) -> None:
    share = add_share(make_node(4), make_cluster(), light=light, heavy=heavy)
    assert (share.balance(), share.idle, share.excess) == ((idle, excess), idle, excess)


@pytest.mark.parametrize(
    ("mine", "others", "idle", "excess"),
    [
        (1, 1, 2, 0),
        (1, 3, 0, 0),
        (1, 5, 0, 1),
        (3, 5, 0, 3),
        (3, 2, 0, 1),
        (0, 9, 0, 0),
    ],
)
def test_clusters_that_share_a_node_share_what_is_idle_and_what_is_too_much(
    mine: int, others: int, idle: int, excess: int
) -> None:
    node = make_node(4)
    share = add_share(node, make_cluster("1"), light=mine)
    add_share(node, make_cluster("2"), light=others)
    assert share.balance() == (idle, excess)


@pytest.mark.parametrize(
    ("allocated", "light", "idle", "excess"), [(2, 1, 1, 0), (2, 2, 0, 0), (2, 3, 0, 1), (3, 0, 3, 0)]
)
def test_a_cluster_that_may_use_a_part_of_a_node(allocated: int, light: int, idle: int, excess: int) -> None:
    share = add_share(make_node(4), make_cluster(), allocated, light=light)
    assert share.balance() == (idle, excess)


def test_what_is_kept_free_for_a_job_is_not_idle() -> None:
    share = add_share(make_node(4), make_cluster(), light=1)
    share.node.claimed.add(2, 0, 0)
    assert share.balance() == (1, 0)
    share.node.claimed.add(2, 0, 0)
    assert share.balance() == (0, 0), "more is claimed than is free"


def test_a_share_that_gets_no_work_has_nothing_idle_and_may_have_too_much() -> None:
    share = add_share(make_node(4), make_cluster(), light=1)
    share.is_paused = True
    assert share.balance() == (0, 0)
    share.flight.update({number: JobRecord(number, share.cluster.id, b"") for number in range(5)})
    assert share.balance() == (0, 2)


@pytest.mark.parametrize(
    ("depth", "light", "heavy", "room", "load"),
    [
        (1, 0, 0, 4, 0.0),
        (1, 4, 0, 0, 1.0),
        (3, 4, 0, 8, 1 / 3),
        (3, 4, 2, 2, 5 / 6),
        (1, 1, 3, 0, 1.0),
    ],
)
def test_how_many_more_jobs_a_share_takes(depth: int, light: int, heavy: int, room: int, load: float) -> None:
    share = add_share(make_node(4), make_cluster(depth=depth), light=light, heavy=heavy)
    assert share.standing() == (room, pytest.approx(load))


@pytest.mark.parametrize(("allocated", "room"), [(4, 1), (2, 1), (1, 0)])
def test_how_many_more_jobs_a_share_takes_beside_others(allocated: int, room: int) -> None:
    node = make_node(4)
    share = add_share(node, make_cluster("1"), allocated, light=1)
    add_share(node, make_cluster("2", depth=2), light=4)
    assert share.standing() == (room, 0.75)


def test_parts_of_cpus_that_are_free_are_filled() -> None:
    node = make_node(2)
    share = add_share(node, make_cluster("1"))
    add_share(node, make_cluster("2", depth=2), light=3)
    assert share.standing() == (1, 0.75)


def test_what_is_kept_free_for_a_job_is_no_room() -> None:
    share = add_share(make_node(4), make_cluster(), light=1)
    share.node.claimed.add(2, 0, 0)
    assert share.standing() == (1, 0.25)
    share.node.is_suspect = True
    assert share.standing() == (0, 0.0)


def test_what_a_heavy_job_holds_is_free_again_when_it_has_gone() -> None:
    share = add_share(make_node(4), make_cluster())
    record = JobRecord(1, share.cluster.id, b"", options=JobOptions(cpus=2, memory=100, gpus=1))
    share.hold(record, 2)
    assert (share.heavy, share.heavy_cpus, record.cpus, share.node.taken) == (1, 2, 2, Amount(2, 100, 1))
    share.release(record)
    assert (share.heavy, share.heavy_cpus, record.cpus, share.node.taken) == (0, 0, 0, Amount())


# ---- words ----


@pytest.mark.parametrize(
    ("name", "address", "label"),
    [
        ("n1", "10.0.0.1", "n1 (10.0.0.1)"),
        ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
        ("n1", "", "n1"),
        ("", "10.0.0.1", f"{NODE} (10.0.0.1)"),
        ("", "", NODE),
    ],
)
def test_a_node_is_called_by_its_name_and_its_address_once_each(name: str, address: str, label: str) -> None:
    assert NodeRecord(NODE, NodeInfo(NODE, name, 1, "x", ()), address, 1).label == label


def test_each_traceback_of_nodes_that_refuse_now_is_shown_once() -> None:
    shares = [add_share(make_node(), make_cluster(name)) for name in "12345"]
    for share, trace in zip(shares, ("one\n", "one", "two", "", "old"), strict=True):
        share.state, share.trace = ShareState.REFUSED, trace
    shares[-1].state = ShareState.READY
    assert traces_of(shares) == "\none\ntwo"


# ---- clusters ----


def test_a_depth_is_what_can_be_done_in_the_time_ahead_within_bounds() -> None:
    cluster = make_cluster()
    for seconds, depth in ((0.02, 1), (0.01, 2), (0.005, 3)):
        cluster.mean = None
        cluster.measure(seconds, 1)
        assert (cluster.depth, cluster.mean) == (depth, seconds)
    cluster.ahead = 1000.0
    cluster.measure(0.0, 10)
    assert cluster.depth == MOST_AHEAD


def test_the_mean_duration_moves_half_of_the_way_with_sixteen_jobs() -> None:
    cluster = make_cluster()
    cluster.measure(3.0, 3)
    cluster.measure(16 * 2.0, 16)
    assert cluster.mean == 1.5
    cluster.mean = None
    cluster.measure(0.0, 1)
    assert cluster.mean == SHORTEST_JOB


@pytest.mark.parametrize(
    ("state", "jobs", "wants"),
    [
        (ClusterState.OPEN, 0, True),
        (ClusterState.DRAINING, 1, True),
        (ClusterState.DRAINING, 0, False),
        (ClusterState.TERMINATING, 1, False),
    ],
)
def test_a_cluster_wants_nodes_while_jobs_of_it_may_have_to_run(state: ClusterState, jobs: int, wants: bool) -> None:
    cluster = make_cluster()
    cluster.state, cluster.jobs = state, jobs
    assert cluster.wants_nodes is wants


def test_a_cluster_is_hopeless_when_all_its_nodes_refused_for_good_and_no_other_can_come() -> None:
    cluster = make_cluster(open_ended=False)
    assert not cluster.is_hopeless, "it has no nodes"
    share = add_share(make_node(), cluster)
    assert not cluster.is_hopeless
    share.state = ShareState.REFUSED
    assert not cluster.is_hopeless
    share.final = True
    assert cluster.is_hopeless
    share.state = ShareState.WANTED
    assert not cluster.is_hopeless
    share.state = ShareState.REFUSED
    cluster.asked[ProcessId("b")] = None
    assert not cluster.is_hopeless, "its owner may want another"
    cluster.asked.clear()
    cluster.is_open_ended = True
    assert not cluster.is_hopeless


def test_jobs_that_ask_for_the_same_stand_in_one_queue() -> None:
    cluster = make_cluster()

    def queue_for(**options: object) -> object:
        return cluster.queue_for(JobRecord(1, cluster.id, b"", options=JobOptions(**options)))  # type: ignore[arg-type]

    assert cluster.queue_for(JobRecord(1, cluster.id, b"")) is cluster.plain
    assert queue_for(priority=3, retries=1) is cluster.plain, "what asks for nothing of a node"
    assert cluster.queues == [cluster.plain]
    pinned = queue_for(node=NODE)
    assert queue_for(node=NODE, priority=1) is pinned
    assert cluster.queues == [cluster.plain, pinned]
    assert cluster.special == {Shape(node=NODE): pinned}


def test_the_own_files_of_a_node_are_added_to_those_of_the_computation() -> None:
    first, second = FileSpec("a", BlobRef(b"a" * 32, 1)), FileSpec("b", BlobRef(b"b" * 32, 1))
    cluster = make_cluster()
    assert cluster.with_files(()) is cluster.computation
    cluster.computation = ComputationSpec(cluster.id, "f", "function", files=(first,))
    assert cluster.with_files((second,)).files == (first, second)
    assert cluster.with_files(()).files == (first,)
