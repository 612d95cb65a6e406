"""Whose jobs a shared scheduler takes in, when one user may have only so many that have not ended. Pure.

Nobody's jobs are ended for that: what is too much waits at the door, and is not stored, so its client keeps it.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Final, Protocol

from dispy.words import counted

PARTS: Final = 8
"""A batch has so small a part of what a user may have: it is let in as a whole, and that shall not be much more."""


class Visitor(Protocol):
    """A cluster."""

    user: str
    exclusive: bool
    """It has to get on whatever else its user has, since that may have to wait for its end."""

    @property
    def jobs(self) -> Sized:
        """Those that were taken in and have not ended."""

    def let_in(self) -> None:
        """Take in what waits, as long as the door admits it."""


class Door:
    """One for all clusters."""

    def __init__(self, most: int = 0) -> None:
        """`most` jobs of one user are taken in at a time; 0: any number."""
        self.most = most
        self._clusters: dict[str, dict[Visitor, None]] = {}
        self._waiting: dict[str, dict[Visitor, None]] = {}

    @property
    def batch_jobs(self) -> int:
        """Clusters that may have only few jobs shall send them in batches so small; 0: of any size."""
        return max(1, self.most // PARTS) if self.most else 0

    def enter(self, cluster: Visitor) -> None:
        """A cluster is there: its jobs count."""
        self._clusters.setdefault(cluster.user, {})[cluster] = None

    def leave(self, cluster: Visitor) -> None:
        """It is over, and none of its jobs is left."""
        clusters = self._clusters.get(cluster.user, {})
        clusters.pop(cluster, None)
        if not clusters:
            self._clusters.pop(cluster.user, None)
        self.forget(cluster)

    def pending(self, user: str) -> int:
        """Jobs of a user that have not ended."""
        return sum(len(cluster.jobs) for cluster in self._clusters.get(user, ()))

    def admits(self, cluster: Visitor) -> bool:
        """Whether more jobs of it may come in: as many as are in one batch, be they a few too many."""
        if not self.most or (cluster.exclusive and not cluster.jobs):
            return True
        return self.pending(cluster.user) < self.most

    def wait(self, cluster: Visitor) -> None:
        """It is let in later, after those of its user that wait already."""
        self._waiting.setdefault(cluster.user, {})[cluster] = None

    def forget(self, cluster: Visitor) -> None:
        """It does not wait any more."""
        waiting = self._waiting.get(cluster.user, {})
        waiting.pop(cluster, None)
        if not waiting:
            self._waiting.pop(cluster.user, None)

    def is_waited_at(self, user: str) -> bool:
        """Whether a cluster of this user waits."""
        return user in self._waiting

    @property
    def is_shut(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def call(self, user: str) -> None:
        """Jobs of a user have ended: let in what there is room for, one cluster after the other."""
        for cluster in list(self._waiting.get(user, ())):
            if self.admits(cluster):
                self.forget(cluster)
                cluster.let_in()

    def why(self, user: str, name: str) -> str:
        """Why jobs of a user, called `name`, wait; the end of a sentence."""
        return (
            f"user {name} has {counted(self.pending(user), 'pending job')}, and this scheduler takes in more of one "
            f"user only while there are fewer than {self.most} (--max_jobs_per_user)"
        )
