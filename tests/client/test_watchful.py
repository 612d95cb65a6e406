from __future__ import annotations

import selectors
from collections.abc import Iterator

import pytest

from dispy import watchful
from dispy.watchful import LEAST_RUN, MOST_RUN, SOON, WatchfulSelector

QUICK = SOON / 4
LONG = SOON * 10
LOOK = SOON / 50
"""Seconds of one look."""


class World:
    """Time that passes only while a selector waits, for answers that take as long as they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ready_at = 0.0
        self.looks = 0
        self.sleeps = 0

    def select(self, selector: object, timeout: float | None = None) -> list[str]:
        if timeout == 0:
            self.looks += 1
            self.now += LOOK
            return ["answer"] if self.now >= self.ready_at else []
        self.sleeps += 1
        self.now = max(self.now, self.ready_at)
        return ["answer"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(selectors.DefaultSelector, "select", lambda *args: world.select(*args))
    monkeypatch.setattr(watchful, "monotonic", lambda: world.now)
    monkeypatch.setattr(watchful.os, "cpu_count", lambda: 2)
    return world


@pytest.fixture
def selector(world: World) -> Iterator[WatchfulSelector]:
    with WatchfulSelector() as selector:
        selector.is_expecting = lambda: True
        yield selector


def answers(world: World, selector: WatchfulSelector, seconds: float, times: int = 1) -> tuple[int, int]:
    """Wait for so many answers that take so long; how often it looked, how often it slept."""
    world.looks = world.sleeps = 0
    for _ in range(times):
        world.ready_at = world.now + seconds
        assert selector.select() == ["answer"]
        assert world.now >= world.ready_at
    return world.looks, world.sleeps


def test_it_stays_awake_after_some_quick_answers(world: World, selector: WatchfulSelector) -> None:
    assert answers(world, selector, QUICK, LEAST_RUN) == (0, LEAST_RUN)
    looks, sleeps = answers(world, selector, QUICK)
    assert looks
    assert not sleeps


def test_it_sleeps_when_answers_take_long(world: World, selector: WatchfulSelector) -> None:
    assert answers(world, selector, LONG, 100) == (0, 100)
    assert answers(world, selector, QUICK, LEAST_RUN - 1) == (0, LEAST_RUN - 1)
    answers(world, selector, LONG)
    assert answers(world, selector, QUICK, LEAST_RUN) == (0, LEAST_RUN)


def test_it_sleeps_when_no_single_answer_is_out(world: World, selector: WatchfulSelector) -> None:
    answers(world, selector, QUICK, LEAST_RUN)
    selector.is_expecting = lambda: False
    assert answers(world, selector, QUICK, 10) == (0, 10)


def test_a_machine_with_one_cpu_is_left_to_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchful.os, "cpu_count", lambda: 1)
    with WatchfulSelector() as selector:
        selector.is_expecting = lambda: True
        assert answers(world, selector, QUICK, 100) == (0, 100)


def test_what_is_due_soon_is_not_missed(world: World, selector: WatchfulSelector) -> None:
    answers(world, selector, QUICK, LEAST_RUN)
    world.looks = 0
    world.ready_at = world.now + QUICK
    selector.select(SOON / 2)
    assert not world.looks


def test_each_time_in_vain_makes_it_twice_as_careful(world: World, selector: WatchfulSelector) -> None:
    needed = LEAST_RUN
    for _ in range(10):
        assert answers(world, selector, QUICK, needed) == (0, needed)
        began = world.now
        looks, sleeps = answers(world, selector, LONG)
        assert sleeps == 1
        assert 0 < looks * LOOK <= SOON + LOOK
        assert world.now - began < LONG + 2 * LOOK
        needed = min(2 * needed, MOST_RUN)
    assert needed == MOST_RUN
    answers(world, selector, QUICK, needed + MOST_RUN)  # the machine has become quiet
    answers(world, selector, LONG)
    looks, _ = answers(world, selector, QUICK, 2 * LEAST_RUN + 1)
    assert looks


def test_it_looks_no_longer_than_twice_what_is_usual(world: World, selector: WatchfulSelector) -> None:
    answers(world, selector, QUICK / 4, 100)
    looks, _ = answers(world, selector, LONG)
    assert looks * LOOK < QUICK
