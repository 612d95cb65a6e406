"""What a running job uses of its machine, and what people read when that was too much.

Memory is that of the worker beyond what it had at its fork, and of every process below it. Files that are mapped and
memory that is shared on purpose are not counted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from dispy.node.cgroups import Group
from dispy.words import size


def memory_of(worker: int, at_fork: int) -> int:
    """Bytes that a worker's job uses; `at_fork` is what the worker had before its first job.

    Pages that a child has from the worker are counted once, with the worker.
    """
    return max(0, _grown(worker) - at_fork) + sum(_own(pid) for pid in below(worker))


def below(pid: int) -> Iterator[int]:
    """Every process below this one."""
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for child in _children(pid):
            yield child
            yield from below(child)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with (
            contextlib.suppress(FileNotFoundError),
            open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file,
        ):
            found += map(int, file.read().split())
    return found


def _grown(pid: int) -> int:
    """Anonymous memory of a process, swapped or not, also what it shares with the one that forked it."""
    return _sum(f"/proc/{pid}/status", ("RssAnon:", "VmSwap:"))


def _own(pid: int) -> int:
    """Memory that a process shares with none."""
    return _sum(f"/proc/{pid}/smaps_rollup", ("Private_Dirty:", "Swap:"))


def _sum(path: str, words: tuple[str, ...]) -> int:
    total = 0
    # it may have ended, or run as somebody else
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(words):
                total += int(line.split()[1]) << 10
    return total


def memory_verdict(worker: int, at_fork: int, limit: int, group: Group | None, seconds: float) -> str:
    """The verdict on a job after so many seconds; nothing while it keeps to its limit.

    Sampling finds what grows slowly. What the kernel has ended in the worker's group had reached the group's size.
    """
    if group is not None and group.has_killed():
        used = max(limit, group.size - at_fork)
        return over_memory(used, limit, seconds)
    used = memory_of(worker, at_fork)
    return over_memory(used, limit, seconds) if used > limit else ""


def over_memory(used: int, limit: int, seconds: float) -> str:
    """The verdict on a job that used too much memory."""
    after = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2f}"
    return f"killed: memory {size(used, like=limit)} over the limit of {size(limit)} after {after} s"
