"""How many processes a crowd of clusters with short jobs has started, where all nodes share one machine."""

from __future__ import annotations

from collections.abc import Iterable

from pool import Node, Pool

from dispy.model import ComputationId, ProcessId
from dispy.wire import messages

TOGETHER = 2
"""Processes that start at a time on the machine."""
TAKES = 0.3
"""Seconds."""


class OneMachine(Pool):
    """A cluster's first job at a node waits for its process; few of them start at a time on the machine."""

    def __init__(self, cpus: Iterable[int], park_above: int) -> None:
        self.starts = 0
        self._warm: set[tuple[ProcessId, ComputationId]] = set()
        self._asked: list[tuple[Node, ComputationId]] = []
        self._starting: list[tuple[Node, ComputationId]] = []
        super().__init__(cpus, park_above=park_above, check=False)

    def _start(self, node: Node) -> None:
        cold = [(cluster, job) for cluster, job in node.queue if (node.id, cluster) not in self._warm]
        for cluster in dict.fromkeys(cluster for cluster, _ in cold):
            if (node, cluster) not in [*self._asked, *self._starting]:
                self._asked.append((node, cluster))
                self._say(node, messages.ComputationAdvanced(cluster, "its code is being loaded"))
                self._let_start()
        node.queue = [each for each in node.queue if each not in cold]
        super()._start(node)
        node.queue = cold + node.queue

    def _let_start(self) -> None:
        while self._asked and len(self._starting) < TOGETHER:
            self._starting.append(self._asked.pop(0))
            self.starts += 1
            self.later(TAKES, self._started)

    def _started(self) -> None:
        node, cluster = self._starting.pop(0)
        self._warm.add((node.id, cluster))
        self._say(node, messages.ComputationReady(cluster))
        self._start(node)
        self._let_start()


def crowd(nodes: int, clusters: int, jobs: int, seconds: float, interval: float) -> OneMachine:
    """Clusters of one user come one after another, each with jobs; all of them end."""
    pool = OneMachine([1] * nodes, park_above=4)
    for _ in range(clusters):
        pool.submit(pool.open("user"), jobs, seconds)
        pool.run(pool.now + interval)
    pool.run_all()
    pool.core.check()
    return pool


def test_clusters_of_short_jobs_that_come_together_have_few_processes_started() -> None:
    pool = crowd(40, 12, 50, 0.0001, 0.0)
    assert pool.starts <= 2 * 40, "mostly each node starts one"


def test_clusters_of_short_jobs_that_come_one_after_another_have_few_processes_started() -> None:
    pool = crowd(40, 12, 50, 0.0001, 0.1)
    assert pool.starts <= 3 * 40


def test_a_cluster_that_is_alone_starts_one_at_each_node() -> None:
    pool = crowd(40, 1, 400, 0.5, 0.0)
    assert pool.starts == 40


def test_long_jobs_of_two_clusters_come_to_all_nodes() -> None:
    pool = OneMachine([1] * 40, park_above=4)
    for _ in range(2):
        pool.submit(pool.open("user"), 20, 1000.0)
        pool.run(pool.now + 0.1)
    pool.run(pool.now + 30.0)
    assert pool.at_work("user") == 40
