"""What is heard of jobs whose large bodies are still to be fetched: taken in its order, one step after another."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

Step: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class LateLine:
    """Large bodies on their way, and whatever their jobs said after them. In the loop's thread."""

    def __init__(self, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._spawn = spawn
        self._waiting: deque[tuple[int, Step]] = deque()
        """By job."""
        self._steps: Counter[int] = Counter()
        """Of each job."""

    def __contains__(self, job: int) -> bool:
        """Whether something of this job has not been taken yet."""
        return job in self._steps

    def add(self, job: int, step: Step) -> None:
        """Take this when all that came before has been taken."""
        self._steps[job] += 1
        self._waiting.append((job, step))
        if len(self._waiting) == 1:
            self._spawn(self._walk())

    async def _walk(self) -> None:
        while self._waiting:
            job, step = self._waiting[0]
            await step()
            self._waiting.popleft()
            self._steps[job] -= 1
            if not self._steps[job]:
                del self._steps[job]
