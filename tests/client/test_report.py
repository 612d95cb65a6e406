"""The table of `print_status`, as people see it."""

from __future__ import annotations

from dispy.nodes import DispyNode
from dispy.report import cluster_report


def node(address: str, name: str, jobs: int, seconds: float, sent: int, received: int) -> DispyNode:
    return DispyNode(address, name, 4, 4, jobs_done=jobs, cpu_time=seconds, tx=sent, rx=received)


def test_columns_are_aligned_and_nodes_in_the_order_of_their_addresses() -> None:
    rows = [
        (node("10.0.0.10", "ten", 2, 3.5, 2_500_000, 999), ""),
        (node("10.0.0.9", "nine", 12000, 0.6, 1_500, 0), ""),
    ]
    assert (
        cluster_report(rows, 0, 4.1, 2.0)
        == """
Node            | CPUs |  Jobs |  Sec/Job | Node Time Sec |   Sent |  Rcvd
--------------------------------------------------------------------------
10.0.0.9 (nine) |    4 | 12000 | 0.000050 |         0.600 | 1.5 kB |   0 B
10.0.0.10 (ten) |    4 |     2 |    1.750 |         3.500 | 2.5 MB | 999 B
Total job time: 4.100 sec, wall time: 2.000 sec, speedup: 2.050
"""
    )


def test_nodes_that_do_not_work_are_marked_and_say_why() -> None:
    rows = [
        (node("10.0.0.2", "two", 0, 0.0, 0, 0), "refused: setup failed"),
        (node("10.0.0.1", "10.0.0.1", 1, 1.0, 1, 1), ""),
    ]
    assert (
        cluster_report(rows, 7, 1.0, 0.0)
        == """
  Node           | CPUs | Jobs | Sec/Job | Node Time Sec | Sent | Rcvd
----------------------------------------------------------------------
  10.0.0.1       |    4 |    1 |   1.000 |         1.000 |  1 B |  1 B
! 10.0.0.2 (two) |    4 |    0 |       - |         0.000 |  0 B |  0 B
! 10.0.0.2 (two) refused: setup failed
Jobs pending: 7
Total job time: 1.000 sec, wall time: 0.000 sec, speedup: 0.000
"""
    )
