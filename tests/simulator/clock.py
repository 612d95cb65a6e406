"""Virtual time, and processes that may stand still or end at any step."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.world import World

Action = Callable[[], None]


class Clock:
    """Actions in the order of their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Action]] = []
        self._numbers = count()

    def at(self, time: float, action: Action) -> None:
        heappush(self._heap, (max(time, self.now), next(self._numbers), action))

    def step(self) -> bool:
        """Do the next action; False when there is none."""
        if not self._heap:
            return False
        self.now, _, action = heappop(self._heap)
        action()
        return True


class Killed(BaseException):
    """The process whose code runs ends here: whatever it was about to do is not done."""


class Process:
    """What the world sees of a process: it may be stopped, and killed between any two of its effects."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.stopped = False
        self._backlog: list[Action] = []
        self._timer = 0
        self._doom = 0
        """So many effects from now it is killed; 0: it is not."""

    def hear(self, action: Action) -> None:
        """Something reaches the process: it is dealt with now, or when the process runs again, or never."""
        if not self.alive:
            return
        if self.stopped:
            self._backlog.append(action)
            return
        try:
            action()
        except Killed:
            self.die()

    def effect(self) -> None:
        """The process is about to do something that others see.

        Raises:
            Killed: this is where it ends.
        """
        if self._doom:
            self._doom -= 1
            if not self._doom:
                raise Killed

    def doom(self, effects: int) -> None:
        """Let the process end before its `effects`-th effect from now."""
        self._doom = effects

    def stop(self) -> None:
        """SIGSTOP, or a laptop that is closed."""
        if self.alive:
            self.stopped = True

    def go_on(self) -> None:
        """SIGCONT. What came meanwhile and the timers that are due are dealt with in any order."""
        if not self.stopped:
            return
        self.stopped = False
        backlog, self._backlog = self._backlog, []
        for action in backlog:
            self.hear(action)

    def die(self) -> None:
        """The process is gone, without a word."""
        self.alive = False
        self._backlog.clear()

    def wake_at(self, deadline: float | None, action: Action) -> None:
        """Replace the process's timer. Timers may be late."""
        self._timer += 1
        timer = self._timer
        if deadline is None or not self.alive:
            return
        world = self.world

        def due() -> None:
            if timer == self._timer:
                self.hear(lambda: action() if timer == self._timer else None)

        late = world.chances.late * world.random.random() if world.happens(0.1) else 1e-6
        world.clock.at(deadline + late, due)
