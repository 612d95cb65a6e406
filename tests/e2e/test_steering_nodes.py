"""Nodes that a program steers while it runs: real nodes, real jobs."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy.nodes import resolve

SECRET = "a secret for these tests alone"


class Events:
    """What `cluster_status` heard of nodes."""

    def __init__(self) -> None:
        self.heard: queue.Queue[tuple[int, Any]] = queue.Queue()

    def __call__(self, status: int, node: Any, job: Any) -> None:
        if job is None:
            self.heard.put((status, node))

    def wait_for(self, status: int) -> Any:
        while True:
            found, node = self.heard.get(timeout=20)
            if found == status:
                return node


@pytest.fixture
def cluster_on(
    dispynode: Callable[..., Any], free_base_port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """`cluster_on(computation, …)`: a cluster on the two-CPU node `one` that listens on loopback, and its events."""
    monkeypatch.setenv("DISPY_SECRET", SECRET)
    dispynode("--cpus", "2", name="one")
    clusters: list[dispy.JobCluster] = []

    def make(computation: Any, nodes: Any = "127.0.0.1", **settings: Any) -> tuple[dispy.JobCluster, Events]:
        events = Events()
        cluster = dispy.JobCluster(
            computation, nodes=nodes, dispy_port=free_base_port, cluster_status=events, **settings
        )
        clusters.append(cluster)
        return cluster, events

    yield make
    for cluster in clusters:
        cluster.close(terminate=True)
        cluster.shutdown()


class Data(dispy.NodeAllocate):
    """Gives each setup of a node the next number."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.calls: list[tuple[Any, ...]] = []

    def allocate(
        self, cluster: Any, ip_addr: str, name: str, cpus: int, avail_info: Any = None, platform: str = ""
    ) -> int:
        self.calls.append((cluster.name, ip_addr, name, cpus, bool(platform)))
        self.setup_args = (len(self.calls),)
        return cpus


def remember(number: int) -> int:
    global DATA
    DATA = number
    return 0


def forget(number: int) -> None:
    global DATA
    del DATA


def known() -> int:
    return DATA  # type: ignore[name-defined, no-any-return]


def test_deallocated_node_waits_and_allocated_goes_on(cluster_on: Callable[..., Any]) -> None:
    cluster, events = cluster_on(lambda n: n + 1)
    node = events.wait_for(dispy.DispyNode.Initialized)
    assert cluster.submit(1)() == 2
    assert cluster.deallocate_node(node) == 0
    job = cluster.submit(2)
    assert not job.finish.wait(0.2)
    assert "deallocated" in cluster.explain(job)
    assert cluster.allocate_node("127.0.0.1") == 0
    assert job() == 3
    assert cluster.deallocate_node("192.0.2.7") == -1
    assert cluster.set_node_cpus("nobody", 1) == -1


def test_cpus_of_a_node_are_capped(cluster_on: Callable[..., Any]) -> None:
    cluster, events = cluster_on(lambda n: n)
    node = events.wait_for(dispy.DispyNode.Initialized)
    assert node.cpus == node.avail_cpus == 2
    assert cluster.set_node_cpus("one", 1) == 1
    assert cluster.status().nodes[0].cpus == 1
    assert cluster.set_node_cpus("one", -1) == 1
    assert cluster.set_node_cpus("one", 99) == 2
    assert cluster.set_node_cpus(node, 0) == 0
    job = cluster.submit(5)
    assert not job.finish.wait(0.2)
    assert cluster.set_node_cpus(node, 2) == 2
    assert job() == 5


def meet(place: str, number: int, count: int) -> int:
    """Wait until so many jobs run at once."""
    from pathlib import Path

    Path(place, str(number)).touch()
    deadline = time.time() + 20
    while len(list(Path(place).iterdir())) < count and time.time() < deadline:
        time.sleep(0.01)
    return len(list(Path(place).iterdir()))


def test_a_cluster_may_use_more_than_a_node_offers(cluster_on: Callable[..., Any], tmp_path: Path) -> None:
    cluster, events = cluster_on(meet, nodes=[{"host": "127.0.0.1", "cpus": 5, "oversubscribe": True}])
    node = events.wait_for(dispy.DispyNode.Initialized)
    assert (node.cpus, node.avail_cpus) == (5, 2)
    place = tmp_path / "place"
    place.mkdir()
    jobs = [cluster.submit(str(place), number, 5) for number in range(5)]
    assert [job() for job in jobs] == [5] * 5
    assert cluster.set_node_cpus(node, 99) == 99
    assert cluster.set_node_cpus(node, 3) == 3


def test_node_is_set_up_anew_with_other_data(cluster_on: Callable[..., Any]) -> None:
    item = Data("127.0.0.1")
    cluster, events = cluster_on(known, nodes=[item], setup=remember, cleanup=forget)
    node = events.wait_for(dispy.DispyNode.Initialized)
    assert cluster.submit()() == 1
    assert item.calls == [("known", "127.0.0.1", "one", 2, True)]
    assert cluster.resetup_node(node) == 0
    assert cluster.submit_node(node)() == 2
    assert events.wait_for(dispy.DispyNode.Initialized) is node
    assert len(item.calls) == 2


def test_closed_node_can_be_allocated_again(cluster_on: Callable[..., Any]) -> None:
    cluster, events = cluster_on(lambda n: n)
    events.wait_for(dispy.DispyNode.Initialized)
    assert cluster.submit(1)() == 1
    assert cluster.close_node("one") == 0
    events.wait_for(dispy.DispyNode.Closed)
    assert cluster.close_node("one") == -1
    assert cluster.status().nodes == []
    assert cluster.submit_node("one", 1) is None
    assert cluster.submit_node(None, 1) is None
    job = cluster.submit(2)
    assert cluster.allocate_node("one") == 0
    assert job() == 2


def test_closing_a_node_can_end_its_jobs(
    cluster_on: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    def sleeping(began: str) -> None:
        import pathlib
        import time

        pathlib.Path(began).touch()
        time.sleep(60)

    cluster, events = cluster_on(sleeping)
    node = events.wait_for(dispy.DispyNode.Initialized)
    job = cluster.submit(str(tmp_path / "began"))
    wait_until((tmp_path / "began").exists)
    cluster.close_node(node, terminate_pending=True)
    assert job.finish.wait(20)
    assert job.status is dispy.DispyJob.Terminated


def test_nodes_can_be_allocated_later(cluster_on: Callable[..., Any]) -> None:
    cluster, _ = cluster_on(lambda n: n, nodes="192.0.2.77")
    job = cluster.submit(3)
    assert cluster.discover_nodes("127.0.0.1") == 0
    assert not job.finish.wait(0.3), "a node that was only discovered is not used"
    assert cluster.allocate_node(("127.0.0.1", None, 1)) == 0
    assert job() == 3
    assert cluster.status().nodes[0].cpus == 1


def test_names_of_nodes_are_looked_up_beside_the_event_loop(
    cluster_on: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that does not answer would stop its heartbeats, and so lose the nodes of all clusters."""
    looked_up = []

    def look(host: str, flags: int = 0) -> frozenset[str]:
        if not flags:
            looked_up.append((host, threading.current_thread().name))
        return resolve(host, flags)

    monkeypatch.setattr("dispy.nodes.resolve", look)
    cluster, _ = cluster_on(abs, nodes="localhost")
    assert cluster.submit(-1)() == 1
    assert [host for host, _ in looked_up] == ["localhost"]
    assert looked_up[0][1] != "dispy-loop"


def test_a_callback_may_wait_for_a_job_before_any_node_was_allocated(cluster_on: Callable[..., Any]) -> None:
    item = Data("127.0.0.1")
    results: queue.Queue[Any] = queue.Queue()

    def waits(status: int, node: Any, job: Any) -> None:
        if status == dispy.DispyJob.Created:
            results.put(job())

    cluster, _ = cluster_on(known, nodes=[item], setup=remember, cleanup=forget)
    cluster.cluster_status = waits
    cluster.submit()
    assert results.get(timeout=20) == 1


def test_jobs_of_two_clusters_in_an_event_loop(cluster_on: Callable[..., Any]) -> None:
    one, _ = cluster_on(lambda n: n + 1)
    two, _ = cluster_on(lambda n: -n)

    async def main() -> list[int]:
        jobs = [cluster.submit(n) for n in range(10) for cluster in (one, two)]
        results = [job.result async for job in dispy.as_completed(jobs, timeout=20)]
        return [*sorted(results), await one.submit(99)]

    assert asyncio.run(main()) == [*range(-9, 1), *range(1, 11), 100]
