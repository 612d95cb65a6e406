"""Who shares the nodes with whom, and by which rule it is decided whose turn it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from dispy.model import ComputationId

if TYPE_CHECKING:
    from dispy.scheduler.clusters import ClusterRecord


class Policy(StrEnum):
    """Between whom it is chosen, and how. Within one of them: higher priority, then order of submission."""

    FIFO = "fifo"
    """Between jobs: higher priority, then order of submission, whoever submitted them."""
    FAIR = "fair"
    """Between users: who has had the least slot-seconds since they compete."""
    FAIR_CLUSTER = "fair_cluster"
    """Between clusters: the one that was served longest ago."""
    EARLY_CLUSTER = "early_cluster"
    """Between clusters: the one that was made first."""


@dataclass(slots=True)
class Quotas:
    """What one user may have at most; 0: no bound."""

    cpus: int = 0
    """CPUs at once, of all nodes."""
    jobs: int = 0
    """Jobs that have not ended."""


@dataclass(slots=True, eq=False)
class Account:
    """One user of the scheduler."""

    user: str
    clusters: dict[ComputationId, ClusterRecord] = field(default_factory=dict)
    used: float = 0.0
    """Slot-seconds that its jobs took, of all that it had since the scheduler began."""

    @property
    def jobs(self) -> int:
        """Jobs that have not ended."""
        return sum([cluster.jobs for cluster in self.clusters.values()])
