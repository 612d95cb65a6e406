"""What users of the original know and no other test is about, row by row, on one node of this machine."""

from __future__ import annotations

import multiprocessing.sharedctypes
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dispy

SOON = 20.0


@pytest.fixture
def local() -> Iterator[Callable[..., dispy.JobCluster]]:
    """`local(computation, …)`: a cluster on a node that is started for the test."""
    clusters: list[dispy.JobCluster] = []

    def make(computation: Any, **settings: Any) -> dispy.JobCluster:
        clusters.append(dispy.JobCluster(computation, **{"nodes": "local"} | settings))
        return clusters[-1]

    yield make
    for cluster in clusters:
        if not cluster.is_closed:
            cluster.close(terminate=True)
    for cluster in clusters:
        cluster.shutdown()


def here(*arguments: Any) -> dispy.NodeAllocate:
    return dispy.NodeAllocate("*", setup_args=arguments)


def ended(job: dispy.DispyJob) -> dispy.DispyJob:
    assert job.finish.wait(SOON), f"the job is still {job.status!r}"
    return job


def echo(value: Any = None, seconds: float = 0.0) -> Any:
    time.sleep(seconds)
    return value


NEVER = [
    ({"dispy_gpus": 99}, "GPU"),
    ({"dispy_cpus": 4096}, "not 4096"),
    ({"dispy_memory": "4096TB"}, "of memory"),
    ({"dispy_tags": ["lake"]}, "does not have the tag lake"),
]


def test_jobs_that_this_machine_can_never_run(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(echo)
    jobs = [(cluster.submit(1, **options), cause) for options, cause in NEVER]
    for job, cause in jobs:
        assert ended(job).status == dispy.DispyJob.Abandoned
        assert "no node can run it" in (job.exception or "")
        assert cause in (job.exception or "")
    assert cluster.submit(2)() == 2, "others run"


def test_attributes_of_a_cluster(local: Callable[..., dispy.JobCluster]) -> None:
    before = time.time()
    cluster = local(echo, ping_interval=30, pulse_interval=1, poll_interval=5)
    assert (cluster.ping_interval, cluster.pulse_interval, cluster.poll_interval) == (30, 1, 5)
    assert (cluster.name, cluster.pending, cluster.cpu_time, cluster.end_time) == ("echo", 0, 0.0, None)
    assert before <= cluster.start_time <= time.time()
    cluster.submit(1, 0.05)()
    assert cluster.cpu_time >= 0.05
    assert cluster.close() is True
    assert cluster.start_time <= (cluster.end_time or 0) <= time.time()


def test_the_ways_to_submit_and_to_wait(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(echo)
    plain = cluster.submit(1)
    assert plain() == 1
    (node,) = cluster.status().nodes
    for where in (node, node.ip_addr, node.name):
        job = cluster.submit_job_id_node(("mine", 7), where, "there")
        assert job is not None
        assert (job(), job.id) == ("there", ("mine", 7))
    assert cluster.submit_job_id_node("x", "192.0.2.7", 1) is None
    assert cluster.submit_node("192.0.2.7", 1) is None
    slow = cluster.submit("slow", 0.3)
    assert cluster.wait(timeout=0.01) is False
    assert cluster() is None  # type: ignore[func-returns-value]
    assert slow.finish.is_set()
    assert cluster.wait() is True


def test_a_node_says_how_it_stands(local: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any]) -> None:
    heard: list[int] = []
    cluster = local(echo, cluster_status=lambda status, node, job: heard.append(status))
    job = cluster.submit(1, 30)
    wait_until(lambda: job.status == dispy.DispyJob.Running)
    status = cluster.status()
    assert isinstance(status, dispy.ClusterStatus)
    assert status.jobs_pending == 1
    (node,) = status.nodes
    assert node.busy == 1
    assert 0 < node.cpus <= node.avail_cpus
    wait_until(lambda: dispy.DispyNode.AvailInfo in heard)
    info = node.avail_info
    assert info is not None
    assert 0 <= info.cpu <= 100
    assert 0 <= info.swap <= 100
    assert info.memory > 0
    assert info.disk > 0
    assert abs(time.time() - node.update_time) < 60
    assert cluster.cancel(job) == 0
    assert ended(job).status == dispy.DispyJob.Terminated
    assert cluster.status().nodes[0].busy == 0
    assert dispy.DispyJob.Created in heard
    assert dispy.DispyNode.Initialized in heard


# ---- setup ----


def counting() -> None:
    global total
    total = multiprocessing.sharedctypes.Value("i", 0)


def add(number: int) -> int:
    with total.get_lock():  # type: ignore[attr-defined]
        total.value += number
        return total.value


def test_jobs_of_a_node_share_values(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(add, setup=counting)
    assert max(job() for job in [cluster.submit(1) for _ in range(20)]) == 20


def answering(answer: Any) -> Any:
    global given
    given = answer
    return answer


def what_was_given() -> Any:
    return given


def test_what_setup_returns(local: Callable[..., dispy.JobCluster]) -> None:
    for answer in (None, 0, 1, 2):
        cluster = local(what_was_given, nodes=["local", here(answer)], setup=answering)
        assert cluster.submit()() == answer
    for answer in (3, "no"):
        cluster = local(what_was_given, nodes=["local", here(answer)], setup=answering)
        job = cluster.submit()
        deadline = time.monotonic() + SOON
        while "setup returned" not in (text := cluster.explain(job)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert f"setup returned {answer!r}" in text
        assert cluster.cancel(job) == 0
