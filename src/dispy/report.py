"""The table that `print_status` prints."""

from __future__ import annotations

from collections.abc import Iterable

from dispy.nodes import DispyNode
from dispy.words import size

_HEADINGS = ("Node", "CPUs", "Jobs", "Sec/Job", "Node Time Sec", "Sent", "Rcvd")


def cluster_report(rows: Iterable[tuple[DispyNode, str]], pending: int, cpu_time: float, wall_time: float) -> str:
    """What each node has done, as text.

    Args:
        rows: the nodes, in any order, each with what keeps it from working (empty: nothing).
        pending: jobs that have not ended.
        cpu_time: seconds that all jobs have run, summed.
        wall_time: seconds that the program has waited for that.
    """
    ordered = sorted(rows, key=lambda row: (_number(row[0].ip_addr), row[0].name))
    marks = any(problem for _, problem in ordered)
    table = [_HEADINGS, *(_cells(node) for node, _ in ordered)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(_HEADINGS))]
    lines = [
        " | ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(cells, widths, strict=True)) for cells in table)
    ]
    if marks:
        lines = [f"{'! ' if problem else '  '}{line}" for line, problem in zip(lines, _problems(ordered), strict=True)]
    lines.insert(1, "-" * len(lines[0]))
    lines += [f"! {_name(node)} {problem}" for node, problem in ordered if problem]
    if pending:
        lines.append(f"Jobs pending: {pending}")
    speedup = cpu_time / wall_time if wall_time > 0 else 0.0
    lines.append(f"Total job time: {cpu_time:.3f} sec, wall time: {wall_time:.3f} sec, speedup: {speedup:.3f}")
    return "\n" + "\n".join(lines) + "\n"


def _problems(rows: list[tuple[DispyNode, str]]) -> list[str]:
    return ["", *(problem for _, problem in rows)]


def _cells(node: DispyNode) -> tuple[str, ...]:
    per_job = node.cpu_time / node.jobs_done if node.jobs_done else 0.0
    return (
        _name(node),
        str(node.cpus),
        str(node.jobs_done),
        _seconds(per_job) if node.jobs_done else "-",
        f"{node.cpu_time:.3f}",
        size(node.tx),
        size(node.rx),
    )


def _name(node: DispyNode) -> str:
    return f"{node.ip_addr} ({node.name})" if node.name != node.ip_addr else node.ip_addr


def _number(address: str) -> tuple[tuple[int, str], ...]:
    """So that 10.0.0.9 comes before 10.0.0.10."""
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in address.split("."))


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value >= 0.01 or not value else f"{value:.6f}"
