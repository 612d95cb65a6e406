"""What a node says of its machine: platform, memory, load. psutil is imported when the load is first asked for."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path
from typing import Final

from dispy.errors import NodeError, SettingsError
from dispy.model import AvailInfo, NodeInfo, ProcessId
from dispy.node.settings import NodeSettings
from dispy.settings import VERSION
from dispy.words import counted

_GPUS: Final = Path("/proc/driver/nvidia/gpus")
FILES_NEEDED: Final = 1024
"""Descriptors that a process here must be able to have: workers keep theirs from 500 on, out of the way of jobs."""


def allow_files() -> None:
    """Raise the limit of open files, as far as the hard limit allows, where it is too low for a node.

    Raises:
        NodeError: the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES_NEEDED:
        return
    if hard != resource.RLIM_INFINITY and hard < FILES_NEEDED:
        raise NodeError(
            f"a process may have only {hard} files open here, and a node needs {FILES_NEEDED}: "
            f"run `ulimit -n {FILES_NEEDED}` before it, or raise the limit of the user or the service"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_NEEDED, hard))


def describe(process: ProcessId, node: NodeSettings, pythons: tuple[str, ...], home: str) -> NodeInfo:
    """The description that schedulers get."""
    return NodeInfo(
        process,
        node.name,
        node.cpus,
        _platform(),
        pythons,
        node.memory or main_memory(),
        VERSION,
        node.oversubscribe,
        tags=node.tags,
        gpus=node.gpus,
        home=home,
    )


def _platform() -> str:
    """As `platform.platform()`, which reads a whole program to find the C library."""
    system = os.uname()
    libc = (os.confstr("CS_GNU_LIBC_VERSION") or "") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
    return f"{system.sysname}-{system.release}-{system.machine}{f'-with-{libc}' if libc else ''}".replace(" ", "")


def main_memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def count_gpus() -> int:
    """GPUs that this process may use, as far as the driver tells."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in {"", "-1"}])
    with contextlib.suppress(OSError):
        return len(list(_GPUS.iterdir()))
    # shutil.which loads every compression there is
    if not any(os.access(Path(folder, "nvidia-smi"), os.X_OK) for folder in os.get_exec_path()):
        return 0
    import subprocess

    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs has no GPU for us
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def offered_cpus(asked: int, *, oversubscribe: bool) -> int:
    """How many CPUs a node offers: all for 0, `asked` of them, or all but `-asked` for a negative number.

    Raises:
        SettingsError: more than there are without `oversubscribe`, or none would be left.
    """
    there = usable_cpus()
    offered = asked if asked > 0 else there + asked
    if offered < 1:
        raise SettingsError(f"this machine has {counted(there, 'CPU')}, so {asked} leaves none for jobs")
    if offered > there and not oversubscribe:
        raise SettingsError(f"this machine has {counted(there, 'CPU')}, not {asked}; to offer more add --oversubscribe")
    return offered


def sample(directory: Path) -> AvailInfo:
    """What is free now. The first call after a start measures the CPU since boot."""
    import psutil

    place = os.statvfs(directory)
    disk = place.f_bavail * place.f_frsize
    swap = psutil.swap_memory()
    free_swap = 100.0 - swap.percent if swap.total else 0.0
    return AvailInfo(100.0 - psutil.cpu_percent(), psutil.virtual_memory().available, disk, free_swap)


class LoadMeter:
    """Measures how much of the CPUs is used by others than this process and all that it has started."""

    def __init__(self) -> None:
        self._before = self._look()

    def measure(self) -> float:
        """CPUs used by others since the last call (or since the meter was made)."""
        (at, busy, own), self._before = self._before, self._look()
        now, busy_now, own_now = self._before
        return max(0.0, (busy_now - busy - max(0.0, own_now - own)) / max(now - at, 1e-3))

    def _look(self) -> tuple[float, float, float]:
        import psutil

        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        busy -= getattr(times, "guest_nice", 0.0)
        own = 0.0
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile; its parent has its time
                own += sum(process.cpu_times()[:4])
        return time.monotonic(), busy, own
