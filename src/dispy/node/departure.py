"""How a node leaves that was told to end: what it still waits for, and when it goes.

Part of the node's core, which does what is due.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from dispy.node.computations import ComputationDesk
from dispy.node.effects import Effects, Exit, HangUp
from dispy.node.events import ExitAsked
from dispy.node.serving import Lease

EXIT_TIMEOUT: Final = 0.3
"""Seconds that an immediate exit waits for workers to say which jobs they had not started, and for acknowledgements."""
FAREWELL_TIMEOUT: Final = 5.0
"""Seconds that an orderly exit waits for the scheduler to acknowledge the last results."""
_JOBS_DONE: Final = "it was told to end and its jobs are done"


class Departure(Struct):
    """A node that was told to end."""

    at_once: bool
    deadline: float | None = None
    """When it waits no longer for workers or acknowledgements."""
    fetch_until: float | None = None
    """Until then it waits for whoever comes for its results; None: it does not wait."""

    @classmethod
    def begin(cls, order: ExitAsked, now: float, zombie_interval: float) -> Departure:
        """What an order means."""
        if order.at_once:
            return cls(True, now + EXIT_TIMEOUT)
        return cls(False, fetch_until=now + zombie_interval if order.when_fetched else None)

    def deadlines(self) -> Iterable[float]:
        """When something is due although nothing happens."""
        return [at for at in (self.deadline, self.fetch_until) if at is not None]

    def without_lease(self, now: float, *, unfetched: bool, reason: str = "it was told to end") -> Exit | None:
        """What is due on a node that nobody holds; `unfetched`: results wait for a scheduler that is gone."""
        if self.at_once:
            return Exit("it was told to end now")
        if self._nobody_came(now):
            return Exit("nobody has come for its results")
        return None if unfetched and self.fetch_until is not None else Exit(reason)

    def after_lease(self, now: float, *, unfetched: bool) -> Exit | None:
        """What is due when the last lease is over."""
        return self.without_lease(now, unfetched=unfetched, reason=_JOBS_DONE)

    def with_lease(
        self, lease: Lease, computations: ComputationDesk, now: float, effects: Effects, *, recalling: bool
    ) -> Exit | HangUp | None:
        """What is due on a node that is held; `recalling`: workers have been asked for what they have not started."""
        if self.at_once:
            unheard = lease.hearer is not None and bool(lease.results.batches)
            return None if (recalling or unheard) and not self._is_late(now) else Exit("it was told to end now")
        if self._nobody_came(now):
            return Exit("nobody has come for its results")
        if self.fetch_until is None or lease.peer is not None:
            return self._farewell(lease, computations, now, effects)
        lease.zombie_at = None
        if not lease.expired:
            computations.expire(lease, effects)
        return None

    def _farewell(
        self, lease: Lease, computations: ComputationDesk, now: float, effects: Effects
    ) -> Exit | HangUp | None:
        """Leave as soon as nothing of the lease is here, and its holder has acknowledged that or has had time to."""
        if lease.is_idle:
            for computation in lease.computations.values():
                computations.close(lease, computation, terminate=False, now=now, effects=effects)
        if lease.computations:
            return None
        late = self._is_late(now)
        if late and self.fetch_until is not None and lease.peer is not None:
            self.deadline = None
            return HangUp(lease.peer, "the node is ending")
        if not lease.results.batches or lease.hearer is None or late:
            return Exit(_JOBS_DONE)
        if self.deadline is None:
            self.deadline = now + FAREWELL_TIMEOUT
        return None

    def _is_late(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    def _nobody_came(self, now: float) -> bool:
        return self.fetch_until is not None and now >= self.fetch_until
