"""The promises under trouble of all kinds, and the choices of the scheduler in a calm world.

A failing seed is printed with the command that replays it. DISPY_SEEDS="1000:1100" runs those seeds instead.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
GROUPS = 10
SEEDS = 32
"""Per group."""


def _load() -> ModuleType:
    name = "simulator_sim"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, HERE / "sim.py")
        assert found is not None
        assert found.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    return sys.modules[name]


sim = _load()


def _groups() -> Iterator[range]:
    chosen = os.environ.get("DISPY_SEEDS", "")
    if chosen:
        first, _, last = chosen.partition(":")
        yield range(int(first), int(last or int(first) + 1))
        return
    for group in range(GROUPS):
        yield range(group * SEEDS, (group + 1) * SEEDS)


@pytest.mark.parametrize("seeds", list(_groups()), ids=str)
def test_promises_hold_under_trouble(seeds: range) -> None:
    for seed in seeds:
        try:
            sim.run_seed(seed)
        except Exception as error:
            pytest.fail(f"seed {seed}: {error}\nreplay it: python tests/simulator/sim.py {seed}")


def test_same_seed_same_run() -> None:
    first, second = sim.run_seed(11), sim.run_seed(11)
    assert first.clock.now == second.clock.now
    assert first.starts == second.starts
    assert first.started_at == second.started_at


def _makespan(nodes: int, cpus: int, durations: list[float]) -> float:
    """Seconds from submission to the end of the last job in a calm world."""
    world = sim.World(1, sim.CALM)
    for _ in range(nodes):
        world.add_node(cpus)
    cluster = world.open(reentrant=False)
    done: list[bool] = []
    world.clock.at(1.0, lambda: done.append(True))
    world.run(lambda: bool(done))
    start = world.clock.now
    world.submit(cluster, durations)
    world.run(lambda: all(told.endings for told in world.scheduler.jobs.values()))
    end = world.clock.now
    sim.finish(world)
    return end - start


def _greedy(workers: int, durations: list[float]) -> float:
    """What a schedule without any delay takes that gives each job to the first free worker."""
    free = [0.0] * workers
    for duration in durations:
        index = free.index(min(free))
        free[index] += duration
    return max(free)


@pytest.mark.parametrize(("nodes", "cpus"), [(8, 1), (2, 4), (1, 8)])
def test_long_jobs_after_short_ones_take_as_long_as_a_greedy_schedule(nodes: int, cpus: int) -> None:
    durations = [0.001] * 1000 + [10.0] * 12
    assert _makespan(nodes, cpus, durations) <= 1.05 * _greedy(8, durations)


@pytest.mark.parametrize("order", ["long ones first", "long ones in between"])
def test_long_jobs_among_short_ones(order: str) -> None:
    durations = [0.001] * 1000
    places = range(12) if order == "long ones first" else range(0, 960, 80)
    for place in places:
        durations[place] = 10.0
    assert _makespan(8, 1, durations) <= 1.05 * _greedy(8, durations) + 0.1


def test_every_cpu_is_used() -> None:
    assert _makespan(4, 2, [1.0] * 16) <= 2.1
