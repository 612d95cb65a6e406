"""What a node says of its machine: platform, memory, load. psutil is imported when the load is first asked for."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from pathlib import Path
from typing import Final

from dispy.errors import NodeError, SettingsError
from dispy.model import AvailInfo, NodeInfo, ProcessId
from dispy.settings import VERSION

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


def describe(process: ProcessId, name: str, cpus: int, pythons: tuple[str, ...], oversubscribe: bool) -> NodeInfo:
    """The description that schedulers get."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return NodeInfo(process, name, cpus, platform.platform(), pythons, memory, VERSION, oversubscribe)


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
        raise SettingsError(f"this machine has {there} CPUs, so {asked} leaves none for jobs")
    if offered > there and not oversubscribe:
        raise SettingsError(f"this machine has {there} CPUs, not {asked}; to offer more add --oversubscribe")
    return offered


def sample(directory: Path) -> AvailInfo:
    """What is free now. The first call after a start measures the CPU since boot."""
    import psutil

    disk = shutil.disk_usage(directory).free
    swap = psutil.swap_memory()
    free_swap = 100.0 - swap.percent if swap.total else 0.0
    return AvailInfo(100.0 - psutil.cpu_percent(), psutil.virtual_memory().available, disk, free_swap)
