"""The methods of a cluster that show how it stands: its nodes, and what they have done."""

from __future__ import annotations

import time
from typing import NamedTuple

from dispy.clusterbase import ClusterBase
from dispy.nodes import DispyNode
from dispy.report import cluster_report
from dispy.wire.pool import NodeStanding


class ClusterStatus(NamedTuple):
    """What `status()` returns: the nodes in use and the number of jobs that have not ended."""

    nodes: list[DispyNode]
    jobs_pending: int


class ClusterStanding(ClusterBase):
    """What a cluster shows of itself."""

    start_time: float
    end_time: float | None

    def status(self) -> ClusterStatus:
        """The nodes in use and the number of jobs that have not ended."""
        self._check_open()
        self._standings()
        return ClusterStatus(list(self._ledger.nodes.values()), self.pending)

    def _standings(self) -> list[NodeStanding]:
        """How each node stands now; notes on the way how many jobs it has."""
        standings = [] if self.is_closed else self._portal.call(self.service.standings(self._id))
        for standing in standings:
            if standing.node in self._ledger.nodes:
                self._ledger.nodes[standing.node].busy = standing.in_flight
        return standings

    def print_status(self, wall_time: float | None = None) -> None:
        """Print a table of what each node has done, and how much faster that was than one CPU.

        Args:
            wall_time: seconds to compare with; default: since the cluster was made.
        """
        self._check_process()
        wall = wall_time if wall_time is not None else (self.end_time or time.time()) - self.start_time
        problems = {standing.node: (standing, standing.problem) for standing in self._standings() if standing.problem}
        shown = {**self._ledger.gone, **self._ledger.nodes}
        rows = [
            (node, problems[process][1] if process in problems else self._ledger.why_gone.get(process, ""))
            for process, node in shown.items()
        ]
        rows += [
            (DispyNode(standing.address, standing.name, 0, process=process), problem)
            for process, (standing, problem) in problems.items()
            if process not in shown
        ]
        print(cluster_report(rows, self.pending, self.cpu_time, wall))  # noqa: T201 - printing is its purpose

    def stats(self, wall_time: float | None = None) -> None:
        """Old name of `print_status`."""
        self.print_status(wall_time)
