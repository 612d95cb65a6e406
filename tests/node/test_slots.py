"""How jobs are shared out over workers, and the steps by which a job is ended."""

from __future__ import annotations

import random
import signal

import pytest

from dispy.node.slots import PREFETCH_MOST, Escalation, prefetch_depth, share_out


@pytest.mark.parametrize(
    ("mean", "depth"), [(None, 1), (1.0, 1), (0.004, 1), (0.001, 4), (0.0001, 31), (1e-9, PREFETCH_MOST)]
)
def test_depth_is_some_milliseconds_of_work(mean: float | None, depth: int) -> None:
    assert prefetch_depth(mean) == depth


@pytest.mark.parametrize(
    ("queued", "held", "depth", "reserved", "gives"),
    [
        (5, [], 9, 0, []),
        (1, [0, 0], 9, 0, [1, 0]),
        (1, [1, 0], 9, 0, [0, 1]),
        (2, [2, 0, 0], 9, 0, [0, 1, 1]),
        (10, [0, 0], 1, 0, [1, 1]),
        (10, [0, 0], 4, 0, [4, 4]),
        (7, [0, 0], 100, 0, [4, 3]),
        (7, [0, 0], 100, 3, [2, 2]),
        (4, [0, 5], 100, 0, [4, 0]),
        (100, [100, 20], 100, 0, [0, 80]),
        (100, [90, 20], 100, 0, [0, 80]),
        (100, [75, 20], 100, 0, [23, 77]),
    ],
)
def test_sharing_out(queued: int, held: list[int], depth: int, reserved: int, gives: list[int]) -> None:
    assert share_out(queued, held, depth, reserved) == gives


def test_sharing_out_keeps_its_bounds() -> None:
    source = random.Random(1)
    for _ in range(5000):
        depth = source.randint(1, 50)
        held = [source.choice([0, source.randint(0, 60)]) for _ in range(source.randint(0, 8))]
        queued, reserved = source.randint(1, 200), source.randint(0, 5)
        gives = share_out(queued, held, depth, reserved)
        assert sum(gives) <= queued
        assert all(give >= 0 for give in gives)
        assert all(give == 0 or count + give <= depth for count, give in zip(held, gives, strict=True))
        idle = held.count(0)
        assert sum(1 for count, give in zip(held, gives, strict=True) if not count and give) == min(idle, queued)


def test_escalation_by_steps() -> None:
    steps = Escalation.begin(7, now=0.0)
    sent = []
    while not sent or sent[-1][1] is not signal.SIGKILL:
        now = steps.deadline
        sent.append((now, steps.advance(now)))
    interrupts = [at for at, number in sent if number is signal.SIGINT]
    assert len(interrupts) in (59, 60)
    assert sent[-2:] == [(6.0, signal.SIGTERM), (8.0, signal.SIGKILL)]
