"""Which batches of ended jobs are safe with a client, so that the scheduler may forget them. Pure.

A batch is safe when every end in it is: when its large bodies are here and, in durable clusters, callbacks have told
the user. Numbers begin with 1 on every attachment, and what is said of an earlier one means nothing.
"""

from __future__ import annotations

from collections import Counter


class SafeBatches:
    """The batches of one attachment."""

    def __init__(self) -> None:
        self._pending: Counter[int] = Counter()
        """How many ends of a batch are not safe."""
        self._highest = 0
        self._told = 0

    def arrived(self, sequence: int, pending: int = 0) -> None:
        """A batch, with so many ends that are not safe yet."""
        self._highest = max(self._highest, sequence)
        if pending:
            self._pending[sequence] += pending

    def safe(self, sequence: int) -> None:
        """One more end of a batch is safe."""
        if self._pending[sequence] > 1:
            self._pending[sequence] -= 1
        else:
            del self._pending[sequence]

    def news(self) -> int | None:
        """Up to which batch all is safe, if that has not been told yet."""
        safe = min(self._pending) - 1 if self._pending else self._highest
        if safe <= self._told:
            return None
        self._told = safe
        return safe
