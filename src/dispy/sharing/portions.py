"""How many jobs clients may give in one turn of the loop, all together: between two turns everybody is heard. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from dispy.sharing.submitting import BATCH_JOBS

FEW: Final = 64
"""So many jobs cost less than to count them: they are taken in at once."""


class Portions:
    """One for all clusters."""

    def __init__(self, soon: Callable[[Callable[[], object]], object], most: int = BATCH_JOBS) -> None:
        """`soon` calls in the next turn of the loop."""
        self._soon = soon
        self._most = most
        self._taken = 0
        """Jobs of this turn. Unless there are none, the next turn is asked for."""
        self._waiting: deque[Callable[[], object]] = deque()

    def take(self, jobs: int) -> bool:
        """Whether so many may be taken in now: one batch in any case."""
        if jobs <= FEW:
            return True
        if self._taken and self._taken + jobs > self._most:
            return False
        if not self._taken:
            self._soon(self._begin)
        self._taken += jobs
        return True

    def wait(self, go_on: Callable[[], object]) -> None:
        """They were not: call this in a later turn, after those that wait already."""
        self._waiting.append(go_on)

    def _begin(self) -> None:
        self._taken = 0
        for _ in range(len(self._waiting)):
            if self._taken >= self._most:
                break
            self._waiting.popleft()()
