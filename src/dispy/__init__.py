"""dispy: turn any machines at hand into one computer for Python.

    import dispy

    cluster = dispy.JobCluster(function)
    jobs = [cluster.submit(n) for n in range(100)]
    for job in jobs:
        print(job())

Public names are imported when they are first used: a worker or a daemon that needs none of them pays for none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispy import config
    from dispy.cluster import JobCluster
    from dispy.errors import DispyError
    from dispy.job import DispyJob
    from dispy.logs import logger
    from dispy.nodes import DispyNode, DispyNodeAvailInfo, NodeAllocate
    from dispy.recover import recover_jobs
    from dispy.scattered import Scattered
    from dispy.settings import VERSION as __version__  # noqa: N811
    from dispy.sharedcluster import SharedJobCluster
    from dispy.standing import ClusterStatus
    from dispy.waiting import as_completed

_PUBLIC = {
    "ClusterStatus": "dispy.standing",
    "DispyError": "dispy.errors",
    "DispyJob": "dispy.job",
    "DispyNode": "dispy.nodes",
    "DispyNodeAvailInfo": "dispy.nodes",
    "JobCluster": "dispy.cluster",
    "NodeAllocate": "dispy.nodes",
    "Scattered": "dispy.scattered",
    "SharedJobCluster": "dispy.sharedcluster",
    "as_completed": "dispy.waiting",
    "fault_recover_jobs": "dispy.recover",
    "logger": "dispy.logs",
    "recover_jobs": "dispy.recover",
}

_MODULES = ("config", "httpd")

__all__ = [
    "ClusterStatus",
    "DispyError",
    "DispyJob",
    "DispyNode",
    "DispyNodeAvailInfo",
    "JobCluster",
    "NodeAllocate",
    "Scattered",
    "SharedJobCluster",
    "__version__",
    "as_completed",
    "config",
    "logger",
    "recover_jobs",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from dispy.settings import VERSION

        return VERSION
    if name in _MODULES:
        return importlib.import_module(f"dispy.{name}")
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'dispy' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
