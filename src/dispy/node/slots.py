"""The CPUs of a node: which workers sit on them, how many jobs each is given, how a job is ended by steps.

Choices are pure functions over counts; `dispy.node.feeding` applies them.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from dispy.model import ComputationId
from dispy.settings import INTERRUPT_TIMEOUT, TERMINATE_TIMEOUT

if TYPE_CHECKING:
    from dispy.node.serving import HeldJob

PREFETCH_SECONDS: Final = 0.003
"""Work that lies ready in a worker behind the job that it runs."""
PREFETCH_MOST: Final = 1024
STALL_SECONDS: Final = 0.002
"""A worker that is silent for so long gets nothing more ahead, and gives back what it has for an idle CPU."""
STARVE_SECONDS: Final = 0.1
"""A computation that waits so long with less than its share of the CPUs takes one from another."""
INTERRUPT_INTERVAL: Final = 0.1
"""SIGINT is repeated while the job stands: Python swallows a KeyboardInterrupt in finalisers."""


class WorkerState(Enum):
    """Idle and busy are READY without and with jobs."""

    STARTING = auto()
    READY = auto()
    RETIRING = auto()
    """Gets no more jobs and ends after those that it has."""


class EndingStep(Enum):
    """How far the ending of a job that does not end has come."""

    INTERRUPT = auto()
    TERMINATE = auto()
    KILL = auto()


@dataclass(slots=True)
class Escalation:
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
        self.step = EndingStep.KILL
        self.next_at = self.repeat_at = now + INTERRUPT_INTERVAL
        return signal.SIGKILL


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process on one CPU."""

    id: int
    computation: ComputationId
    state: WorkerState = WorkerState.STARTING
    jobs: dict[int, HeldJob] = field(default_factory=dict)
    """Sequence → job; those that were given and not answered, the oldest first."""
    sequence: int = 0
    """The last one that was given."""
    progress_at: float = 0.0
    """When it last answered, or was given a job while idle."""
    answered: int = 0
    recalling: int = 0
    """The `before` of the recall that is under way; 0 = none."""
    escalation: Escalation | None = None
    told_to_end: bool = False
    pid: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether it could run a job now."""
        return self.state is WorkerState.READY and not self.jobs

    @property
    def unstarted(self) -> int:
        """Jobs behind the one that it runs, as far as is known."""
        return max(0, len(self.jobs) - 1)

    def head(self) -> HeldJob | None:
        """The job that it runs or begins next."""
        return next(iter(self.jobs.values()), None)

    def is_stalled(self, now: float) -> bool:
        """Whether it has run one job for longer than what is given ahead was meant to take."""
        return bool(self.jobs) and now >= self.progress_at + STALL_SECONDS


def prefetch_depth(mean: float | None) -> int:
    """Jobs that a worker may have at once when one takes `mean` seconds (None: not known yet)."""
    if mean is None:
        return 1
    return min(PREFETCH_MOST, 1 + int(PREFETCH_SECONDS / mean))


def share_out(queued: int, held: Sequence[int], depth: int, reserved: int = 0) -> list[int]:
    """How many of `queued` jobs go to each of the workers that have `held` jobs.

    Idle workers get one each first. What is left beyond `reserved` (jobs for workers that are about to start)
    fills all to the same level, at most `depth`; a nearly full worker waits until a batch is worth sending.
    """
    gives = [0] * len(held)
    left = queued
    for index, count in enumerate(held):
        if not left:
            return gives
        if not count:
            gives[index] = 1
            left -= 1
    left -= reserved
    if depth < 2 or left <= 0 or not held:
        return gives
    total = sum(held) + sum(gives) + left
    level = min(depth, -(-total // len(held)))
    for index, count in enumerate(held):
        more = min(level - count - gives[index], left)
        if more > 0 and (not count or depth - count >= depth // 4):
            gives[index] += more
            left -= more
    return gives
