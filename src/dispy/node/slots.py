"""How many jobs each worker of a node is given, and by which steps a job is ended.

Choices are pure functions over counts and times; `dispy.node.feeding` applies them.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from msgspec import Struct

from dispy.settings import INTERRUPT_TIMEOUT, TERMINATE_TIMEOUT

PREFETCH_SECONDS: Final = 0.003
"""Work that lies ready in a worker behind the job that it runs."""
PREFETCH_MOST: Final = 1024
STALL_SECONDS: Final = 0.002
"""A worker that is silent for so long gets nothing more ahead, and gives back what it has for an idle CPU."""
NEWCOMER_SECONDS: Final = 0.01
"""A computation without any worker that waits so long gets the next CPU on which a job of another ends."""
STARVE_SECONDS: Final = 0.1
"""A computation that waits so long with less than its share of the CPUs takes one from another."""
INTERRUPT_INTERVAL: Final = 0.1
"""SIGINT is repeated while the job stands: Python swallows a KeyboardInterrupt in finalisers."""


class EndingStep(Enum):
    """How far the ending of a job that does not end has come."""

    INTERRUPT = auto()
    TERMINATE = auto()
    """SIGTERM has been sent; what follows is SIGKILL."""


class Escalation(Struct):
    """The steps by which a running job is ended."""

    sequence: int
    step: EndingStep
    repeat_at: float
    """When the signal of this step is sent again."""
    next_at: float
    """When the next step begins."""

    @property
    def deadline(self) -> float:
        """When something is to be done."""
        return min(self.repeat_at, self.next_at)

    @classmethod
    def begin(cls, sequence: int, now: float) -> Escalation:
        """The first step, whose SIGINT is sent now."""
        return cls(sequence, EndingStep.INTERRUPT, now + INTERRUPT_INTERVAL, now + INTERRUPT_TIMEOUT)

    def advance(self, now: float) -> signal.Signals:
        """What to send at `now` (the deadline has come); SIGINT stands for a cancel."""
        if self.step is EndingStep.INTERRUPT:
            if now < self.next_at:
                self.repeat_at = now + INTERRUPT_INTERVAL
                return signal.SIGINT
            self.step = EndingStep.TERMINATE
            self.next_at = self.repeat_at = now + TERMINATE_TIMEOUT
            return signal.SIGTERM
        # SIGKILL is repeated: the fork server refuses it while the worker is between two jobs
        self.next_at = self.repeat_at = now + INTERRUPT_INTERVAL
        return signal.SIGKILL


def prefetch_depth(mean: float | None) -> int:
    """Jobs that a worker may have at once when one takes `mean` seconds (None: not known yet)."""
    if mean is None:
        return 1
    return min(PREFETCH_MOST, 1 + int(PREFETCH_SECONDS / mean))


def share_out(queued: int, held: Sequence[int], depth: int, reserved: int = 0) -> list[int]:
    """How many of `queued` jobs, at least one, go to each of the workers that have `held` jobs.

    Idle workers get one each first. What is left beyond `reserved` (jobs for workers that are about to start)
    fills all to the same level, at most `depth`; a nearly full worker waits until a batch is worth sending.
    """
    gives = [0] * len(held)
    left = queued
    for index, count in enumerate(held):
        if not count:
            gives[index] = 1
            left -= 1
            if not left:
                return gives
    left -= reserved
    if not held:
        return gives
    total = sum(held) + sum(gives) + left
    level = min(depth, -(-total // len(held)))
    for index, count in enumerate(held):
        if depth - count >= depth // 4:
            more = max(0, min(level - count - gives[index], left))
            gives[index] += more
            left -= more
    return gives
