"""Which nodes of a large pool a cluster opens: some at once, others when it has jobs for them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pool import Pool

from dispy.model import ComputationId, JobOptions, NodeInfo, ProcessId
from dispy.scheduler import events
from dispy.scheduler.events import Steering
from dispy.scheduler.fairness import Policy
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages


def states(pool: Pool, cluster: ComputationId) -> dict[ProcessId, str]:
    """How the nodes stand for a cluster."""
    return {
        node.node: share.state
        for node in pool.core.snapshot().nodes
        for share in node.shares
        if share.cluster == cluster
    }


def opened(pool: Pool, cluster: ComputationId) -> int:
    return list(states(pool, cluster).values()).count("ready")


def crowd(nodes: int, clusters: int, park_above: int = 2, *, policy: Policy = Policy.FAIR) -> Pool:
    """Clusters of as many users, one after another, without jobs."""
    pool = Pool([1] * nodes, policy, park_above=park_above, check=False)
    for number in range(clusters):
        pool.open(f"user{number}")
        pool.run(pool.now + 0.1)
    pool.core.check()
    return pool


def submit_wish(pool: Pool, cluster: ComputationId, job: int, options: JobOptions) -> None:
    pool.jobs[job] = type(next(iter(pool.jobs.values())))(pool.users[cluster], cluster, 0.1, 1)
    pool.handle(events.JobsSubmitted([JobRecord(job, cluster, b"", options=options)]))


def test_a_cluster_that_is_alone_opens_every_node() -> None:
    pool = crowd(30, 1)
    assert opened(pool, next(iter(pool.users))) == 30


def test_in_a_small_pool_every_cluster_opens_every_node() -> None:
    pool = crowd(16, 20, park_above=16)
    assert {opened(pool, cluster) for cluster in pool.users} == {16}


def test_without_a_bound_every_cluster_opens_every_node() -> None:
    pool = crowd(30, 10, park_above=0)
    assert {opened(pool, cluster) for cluster in pool.users} == {30}


def test_in_a_large_pool_the_first_opens_all_and_others_few() -> None:
    pool = crowd(20, 12, park_above=2)
    assert [opened(pool, cluster) for cluster in pool.users] == [20, *[4] * 11]


def test_clusters_open_different_nodes() -> None:
    pool = crowd(20, 10, park_above=2)
    here = [
        sum(share.state == "ready" for share in node.shares if share.cluster in list(pool.users)[5:])
        for node in pool.core.snapshot().nodes
    ]
    assert max(here) - min(here) <= 2
    assert here.count(0) <= 2


def test_jobs_that_wait_have_idle_nodes_opened_and_no_more_of_them_than_there_are_jobs() -> None:
    pool = crowd(20, 10, park_above=2)
    last = list(pool.users)[-1]
    assert opened(pool, last) == 4
    pool.submit(last, 7, 1.0)
    pool.run(pool.now + 0.1)
    assert opened(pool, last) == 7
    pool.run_all()
    pool.submit(last, 20, 1.0)
    start = pool.now
    pool.run_all()
    assert opened(pool, last) == 20
    assert pool.now - start < 1.1


def test_more_are_opened_only_when_those_before_are_ready() -> None:
    pool = crowd(20, 10, park_above=2)
    last = list(pool.users)[-1]
    pool.submit(last, 1000, 5.0)
    assert list(states(pool, last).values()).count("opening") == 4
    pool.run(pool.now + 0.0011)
    assert list(states(pool, last).values()).count("opening") == 8


def test_who_comes_late_to_a_full_pool_gets_its_part_of_it() -> None:
    pool = crowd(20, 10, park_above=2)
    first, *_, last = pool.users
    pool.submit(first, 2000, 0.5)
    pool.run(pool.now + 5.0)
    start = pool.now
    pool.submit(last, 2000, 0.5)
    pool.run(start + 4.0)
    both = [pool.used(f"user{number}", start + 2.0, start + 4.0) for number in (0, 9)]
    assert abs(both[0] - both[1]) / sum(both) < 0.1


def test_a_job_opens_the_node_that_it_names() -> None:
    pool = crowd(20, 10, park_above=2)
    last = list(pool.users)[-1]
    pool.submit(last, 1, 0.1)
    parked = next(node for node, state in states(pool, last).items() if state == "parked")
    submit_wish(pool, last, 900, JobOptions(node=parked))
    assert states(pool, last)[parked] == "opening"
    pool.run_all()
    assert pool.ended[900].node == parked


def test_a_job_that_only_a_parked_node_fits_opens_that() -> None:
    pool = crowd(20, 10, park_above=2)
    last = list(pool.users)[-1]
    pool.submit(last, 1, 0.1)
    parked = next(node for node, state in states(pool, last).items() if state == "parked")
    info = NodeInfo(parked, "big", 1, "x", (), tags=("disk",))
    pool.handle(events.NodeSaid(parked, messages.NodeDescribed(info)))
    submit_wish(pool, last, 900, JobOptions(tags=("disk",)))
    assert states(pool, last)[parked] == "opening"
    pool.run_all()
    assert pool.ended[900].node == parked


def test_a_user_who_asks_for_a_node_has_it_opened() -> None:
    pool = crowd(20, 10, park_above=2)
    last = list(pool.users)[-1]
    used, renewed, closed = [node for node, state in states(pool, last).items() if state == "parked"][:3]
    pool.handle(events.NodeSteered(last, used, Steering.USE))
    pool.handle(events.NodeSteered(last, renewed, Steering.RENEW))
    pool.handle(events.NodeSteered(last, closed, Steering.CLOSE))
    pool.run(pool.now + 0.1)
    now = states(pool, last)
    assert (now[used], now[renewed]) == ("ready", "ready")
    assert closed not in now


def test_when_opened_nodes_are_lost_others_take_their_place() -> None:
    pool = crowd(20, 10, park_above=2)
    last = list(pool.users)[-1]
    for node, state in states(pool, last).items():
        if state == "ready":
            pool.handle(events.NodeLost(node, "it was switched off"))
    pool.run(pool.now + 0.1)
    assert opened(pool, last) == 4


def test_when_opened_nodes_refuse_others_take_their_place() -> None:
    pool = crowd(20, 10, park_above=2)
    last = list(pool.users)[-1]
    for node, state in states(pool, last).items():
        if state == "ready":
            pool.handle(events.NodeSaid(node, messages.ComputationRefused(last, "no disk", "", final=True)))
    pool.run(pool.now + 0.1)
    assert opened(pool, last) == 4


def test_a_cluster_closes_with_nodes_that_it_never_opened() -> None:
    pool = crowd(20, 10, park_above=2)
    for cluster in list(pool.users):
        pool.close(cluster)
    pool.run(pool.now + 0.1)
    assert {node.state for node in pool.core.snapshot().nodes} == {"free"}


def test_a_job_that_waits_tells_of_nodes_that_are_not_opened_in_one_clause() -> None:
    pool = crowd(20, 10, park_above=2)
    last = list(pool.users)[-1]
    jobs = pool.submit(last, 60, 5.0)
    said = pool.core.explain(jobs[-1])
    assert "; 5 others" not in said
    assert "nodes are not opened for this cluster yet, and opened when it is of use" in said
    assert said.count("node n") <= 5
    parked = next(each for each in pool.core.standings(last) if each.problem.startswith("is not opened"))
    assert parked.problem == "is not opened for this cluster yet: 4 other nodes do its work"


@hypothesis_settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(list(Policy)),
    st.integers(1, 5),
    st.lists(st.integers(1, 3), min_size=1, max_size=6),
    st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(1, 12), st.sampled_from([0.001, 0.1, 1.0]), st.sampled_from([1, 1, 2])
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_every_job_runs_whatever_is_parked(
    policy: Policy, park_above: int, cpus: list[int], work: list[tuple[int, int, float, int]]
) -> None:
    pool = Pool(cpus, policy, park_above=park_above)
    clusters = [pool.open(f"user{number % 2}") for number in range(3)]
    for index, number, seconds, each in work:
        pool.submit(clusters[index], number, seconds, cpus=min(each, max(cpus)))
        pool.run(pool.now + 0.05)
    pool.run_all()
    for cluster in clusters:
        pool.close(cluster)
    pool.run(pool.now + 1.0)
    assert not pool.core.snapshot().clusters
