"""Whether something large may lie in memory, by what is free: of the machine, and of the groups around this process.

Standard library only: daemon and workers ask, each before it makes a file in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from dispy import pages
from dispy.node.cgroups import below, mounts, own_groups

SMALL: Final = 1 << 20
"""Bytes up to which nobody asks."""
PART: Final = 4
"""What is larger lies in memory if it takes no more than that part of what is free."""


def has_room(size: int, taken: int = 0, proc: Path = Path("/proc")) -> bool:
    """Whether so many bytes may lie in memory; if not, they belong into a file on a disk.

    Args:
        size: of what is to lie there.
        taken: bytes that are free now and promised to others.
        proc: what the kernel says.
    """
    return size <= SMALL or size * PART <= free(proc) - taken


def file_of(parts: Sequence[bytes | bytearray | memoryview], size: int) -> int:
    """A file with a large result, in memory or in the working directory; returns its descriptor.

    Raises:
        OSError: there is neither memory nor a disk for it.
    """
    if has_room(size):
        return pages.memory_file("dispy-result", parts)
    import tempfile  # is seldom needed

    with tempfile.TemporaryFile(buffering=0, dir=os.curdir) as file:
        pages.write_all(file.fileno(), parts)
        return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)


def free(proc: Path = Path("/proc")) -> int:
    """Bytes that this process may still take before the kernel has to end something."""
    left = _of_machine((proc / "meminfo").read_text())
    with contextlib.suppress(OSError):  # a kernel without groups
        for group, is_v2 in _groups(proc / "self"):
            with contextlib.suppress(OSError, ValueError, KeyError):  # it has no limit that could be read
                left = min(left, _of_group(group, is_v2=is_v2))
    return max(left, 0)


def _of_machine(text: str) -> int:
    values = dict(line.split(":", 1) for line in text.splitlines())
    return int(values["MemAvailable"].split()[0]) << 10


def _groups(process: Path) -> Iterator[tuple[Path, bool]]:
    """The groups whose limits hold for it, and whether they are of v2."""
    mounted = mounts((process / "mountinfo").read_text())
    own = own_groups((process / "cgroup").read_text())
    for name in ("", "memory"):
        if name in own and name in mounted:
            path = below(mounted[name], own[name])
            while path is not None and path.is_relative_to(mounted[name][1]):
                yield path, not name
                path = path.parent


def _of_group(group: Path, *, is_v2: bool) -> int:
    """What is left of its limit; what it holds of files that were read can be taken from it."""
    names = ("memory.max", "memory.current") if is_v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    most, used = (int((group / name).read_text()) for name in names)
    counted = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return most - used + int(counted["inactive_file" if is_v2 else "total_inactive_file"])
