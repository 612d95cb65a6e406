"""The table that `print_status` prints."""

from __future__ import annotations

from collections.abc import Iterable

from dispy.nodes import DispyNode

_HEADINGS = ("Node", "CPUs", "Jobs", "Sec/Job", "Node Time Sec", "Sent", "Rcvd")


def cluster_report(nodes: Iterable[DispyNode], pending: int, cpu_time: float, wall_time: float) -> str:
    """What each node has done, as text.

    Args:
        nodes: the nodes, in any order.
        pending: jobs that have not ended.
        cpu_time: seconds that all jobs have run, summed.
        wall_time: seconds that the program has waited for that.
    """
    rows = [_HEADINGS]
    for node in sorted(nodes, key=lambda node: node.ip_addr):
        per_job = node.cpu_time / node.jobs_done if node.jobs_done else 0.0
        rows.append(
            (
                f"{node.ip_addr} ({node.name})",
                str(node.cpus),
                str(node.jobs_done),
                f"{per_job:.3f}",
                f"{node.cpu_time:.3f}",
                _size(node.tx),
                _size(node.rx),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    if pending:
        lines.append(f"Jobs pending: {pending}")
    speedup = cpu_time / wall_time if wall_time > 0 else 0.0
    lines.append(f"Total job time: {cpu_time:.3f} sec, wall time: {wall_time:.3f} sec, speedup: {speedup:.3f}")
    return "\n" + "\n".join(lines) + "\n"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "K", "M", "G"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} T"
