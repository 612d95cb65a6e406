"""How many CPUs a node offers now, and why none: what its owner, its hours and its machine say together; pure."""

from __future__ import annotations

from msgspec import Struct

from dispy.node.window import Phase, ServiceWindow

QUIET_SECONDS = 15.0
"""So long the machine must be quiet before a node that works only then begins."""
BUSY_SECONDS = 5.0
"""So long the machine must be busy before such a node stops."""
BUSY_FACTOR = 1.5
"""How far above the limit is busy: between the two nothing changes."""


class Idleness(Struct):
    """Whether the machine is left alone, by the load that is not ours, in CPUs. It begins as busy."""

    limit: float
    quiet: bool = False
    _since: float | None = None
    """When the load began to speak against what holds."""

    def measure(self, load: float, now: float) -> bool:
        """Take a measurement in; returns whether the machine is quiet."""
        against = load >= self.limit * BUSY_FACTOR if self.quiet else load < self.limit
        if not against:
            self._since = None
            return self.quiet
        if self._since is None:
            self._since = now
        if now - self._since >= (BUSY_SECONDS if self.quiet else QUIET_SECONDS):
            self.quiet = not self.quiet
            self._since = None
        return self.quiet


class Offer(Struct):
    """All that speaks for and against offering CPUs."""

    cpus: int
    """What the owner offers."""
    window: ServiceWindow | None = None
    phase: Phase = Phase.OPEN
    idleness: Idleness | None = None
    stopped: bool = False
    """The owner said stop."""
    spool_trouble: str = ""
    """Why results cannot be kept on the disk."""

    def now(self) -> tuple[int, str]:
        """CPUs offered, and the reason when there are none."""
        if self.stopped:
            return 0, "its owner has stopped it"
        if self.window is not None and self.phase is not Phase.OPEN:
            return 0, self.window.text(self.phase)
        if self.idleness is not None and not self.idleness.quiet:
            return 0, "its machine is in use"
        if self.spool_trouble:
            return 0, f"it cannot keep results on its disk: {self.spool_trouble}"
        return self.cpus, ""
