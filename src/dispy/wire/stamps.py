"""What the times that kernels stamp on files tell of a change, and where they tell nothing.

Where every change is stamped, a file with the same times is the same file. Not all file systems do that: those in
memory stamp what is written by a call, not what is written through a shared mapping of the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

TICK: Final = 0.02
"""Seconds; longer than the steps of the clock by which kernels stamp files: two changes within it may have one time."""
LEFT_ALONE: Final = 60.0
"""Seconds after which the kernel has written a change to the disk by itself, unless that has too much to do."""
_COARSE_NS: Final = 1_000_000
"""A time that is a multiple of this comes from such a file system."""
_STAMPING: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})
"""The file systems of Linux of which it is known that a write through a mapping is stamped when a page is first written
to; the others, and those of other machines, are not believed."""
_PROCESS: Final = Path("/proc/self")


def is_coarse(stamp_ns: int) -> bool:
    """Whether a time seems to come from a file system with long steps."""
    return not stamp_ns % _COARSE_NS


def are_true(fd: int, process: Path = _PROCESS) -> bool:
    """Whether the file system of an open file stamps every change of it; False also where that cannot be found out.

    Args:
        process: the folder in which the kernel describes this process.
    """
    try:
        described = (process / "fdinfo" / str(fd)).read_bytes()
        mounts = (process / "mountinfo").read_bytes()
    except OSError:
        return False
    mount = next((line.split()[1] for line in described.splitlines() if line.startswith(b"mnt_id:")), None)
    for line in mounts.splitlines():
        fields = line.split()
        if fields[0] == mount:
            after = fields.index(b"-", 6)  # a number of optional fields ends with it
            return os.fsdecode(fields[after + 1]) in _STAMPING
    return False


def will_tell(fd: int, status: os.stat_result, now_ns: int) -> bool:
    """Whether from now on every change of an open file that others may have open, too, will be seen in its times.

    A page that was written to through a mapping is written to again without a new time until it is on the disk. So all
    of it is brought there; for one that has long been left alone that takes no time.

    Args:
        status: what the file was when it was opened.
        now_ns: when that was.
    """
    if now_ns - max(status.st_mtime_ns, status.st_ctime_ns) < LEFT_ALONE * 1e9 or not are_true(fd):
        return False
    try:
        os.fdatasync(fd)
    except OSError:
        return False
    after = os.fstat(fd)
    return (after.st_mtime_ns, after.st_ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)
