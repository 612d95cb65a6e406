"""A world in which nothing goes wrong by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dispy.model import ComputationId, JobState
from simulator.chances import CALM
from simulator.network import Machine
from simulator.program import SimProgram
from simulator.promises import finish
from simulator.world import World


class Calm:
    """A program, and machines with it where nothing goes wrong by itself."""

    def __init__(self, *cpus: int, latency: float = CALM.latency) -> None:
        self.world = World(1, replace(CALM, latency=latency))
        self.program: SimProgram = self.world.add_program()
        self.machines: list[Machine] = [self.world.add_machine(count) for count in cpus]
        self.world.pass_time(0.5)

    def open(self, *, reentrant: bool = False) -> ComputationId:
        cluster = self.world.open(self.program, reentrant=reentrant)
        self.world.pass_time(1.0)
        return cluster

    def submit(self, cluster: ComputationId, durations: list[float]) -> None:
        self.world.submit(self.program, cluster, durations)

    def states(self) -> list[JobState]:
        return [told.endings[0].state for told in self.program.jobs.values() if told.endings]

    def run_all(self) -> None:
        self.world.run(lambda: all(told.endings for told in self.program.jobs.values()))

    def starts(self) -> list[int]:
        return [len(task.started_at) for task in self.world.tasks.values()]

    def part(self, machine: Machine, ways: list[int], seconds: float) -> None:
        path = machine.paths[self.program.number]
        path.close(ways)
        self.world.clock.at(self.world.clock.now + seconds, lambda: path.open(ways))


def makespan(nodes: int, cpus: int, *durations: Sequence[float], latency: float = 0.0005) -> float:
    """Seconds from submission to the end of the last job: a cluster for each list of durations, one after another.

    Every message between two machines takes up to `latency` seconds. Each cluster uses all CPUs of all nodes.
    """
    calm = Calm(*[cpus] * nodes, latency=latency)
    calm.world.trouble = False  # owners would want more or less of a node than it has
    calm.world.check_every = 1000
    clusters = [calm.open() for _ in durations]
    start = calm.world.clock.now
    for cluster, some in zip(clusters, durations, strict=True):
        calm.submit(cluster, list(some))
    calm.run_all()
    end = calm.world.clock.now
    finish(calm.world)
    return end - start
