"""The promises under trouble of all kinds, bounds of time, and the choices of the scheduler in a calm world.

A failing seed is printed with the command that replays it. DISPY_SEEDS="1000:1100" tries those seeds instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dispy.model import JobState
from dispy.node import events as node_events
from simulator.__main__ import replay, try_seeds
from simulator.calm import Calm, makespan
from simulator.chances import CALM
from simulator.network import TO_NODE, TO_PROGRAM
from simulator.promises import finish
from simulator.recoverer import RecoveryFile
from simulator.trouble import run_seed
from simulator.world import World

SEEDS = 2400
SHARED_SEEDS = 400
GROUP = 200


def _groups(seeds: int = SEEDS) -> Iterator[range]:
    first, _, last = os.environ.get("DISPY_SEEDS", "").partition(":")
    chosen = range(int(first), int(last or int(first) + 1)) if first else range(seeds)
    for start in range(chosen.start, chosen.stop, GROUP):
        yield range(start, min(start + GROUP, chosen.stop))


@pytest.mark.parametrize("seeds", list(_groups()), ids=str)
def test_promises_hold_under_trouble(seeds: range) -> None:
    _try(seeds)


@pytest.mark.parametrize("seeds", list(_groups(SHARED_SEEDS)), ids=str)
def test_promises_hold_when_a_shared_scheduler_is_killed_and_started_again(seeds: range) -> None:
    _try(seeds, shared=True)


def _try(seeds: range, *, shared: bool = False) -> None:
    failed = try_seeds(seeds.start, seeds.stop, shared=shared)
    if failed:
        pytest.fail("\n".join(f"seed {seed}: {why}\nreplay it: {replay(seed, shared)}" for seed, why in failed))


def test_same_seed_same_run() -> None:
    first, second = run_seed(11), run_seed(11)
    assert first.clock.now == second.clock.now
    assert [task.started_at for task in first.tasks.values()] == [task.started_at for task in second.tasks.values()]


# ---- bounds of time ----


@pytest.fixture
def calm() -> Calm:
    return Calm(1, 1)


def test_jobs_of_a_node_that_is_killed_start_elsewhere_within_a_second(calm: Calm) -> None:
    calm.submit(calm.open(reentrant=True), [3.0])
    calm.world.pass_time(1.0)
    first = next(node for node in calm.world.nodes if any(server.workers for server in node.servers.values()))
    first.end(goodbye=False)
    killed_at = calm.world.clock.now
    calm.world.pass_time(1.0)
    (task,) = calm.world.tasks.values()
    assert len(task.started_at) == 2
    assert task.started_at[1] - killed_at < 1.0
    calm.run_all()
    assert calm.states() == [JobState.Finished]
    finish(calm.world)


@pytest.mark.parametrize("ways", [[TO_NODE], [TO_PROGRAM], [TO_NODE, TO_PROGRAM]], ids=["to node", "back", "both"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_nothing_runs_twice_after_four_seconds_of_silence(calm: Calm, ways: list[int], reentrant: bool) -> None:
    calm.submit(calm.open(reentrant=reentrant), [2.0, 6.0, 2.0, 6.0])
    calm.world.pass_time(1.0)
    for machine in calm.machines:
        calm.part(machine, ways, 3.9)
    calm.run_all()
    assert calm.starts() == [1, 1, 1, 1]
    assert calm.states() == [JobState.Finished] * 4
    finish(calm.world)


@pytest.mark.parametrize("ways", [[TO_PROGRAM], [TO_NODE, TO_PROGRAM]], ids=["back", "both"])
def test_after_ten_seconds_of_silence_jobs_run_elsewhere_and_old_attempts_end(calm: Calm, ways: list[int]) -> None:
    calm.submit(calm.open(reentrant=True), [60.0])
    calm.world.pass_time(1.0)
    (first,) = [node for node in calm.world.nodes if node.core.snapshot().given]
    cut_at = calm.world.clock.now
    calm.part(first.machine, ways, 10.0)
    calm.world.pass_time(6.0)
    (task,) = calm.world.tasks.values()
    assert len(task.started_at) == 2
    assert 3.9 < task.started_at[1] - cut_at < 5.5
    assert first.core.snapshot().given == 1, "what runs there goes on as long as nobody says otherwise"
    calm.world.pass_time(10.0 - 6.0 + 3.0)
    assert first.core.snapshot().given == 0, "the old attempt was not told to stop when the node was back"
    calm.run_all()
    assert calm.starts() == [2]
    finish(calm.world)


def test_a_node_that_was_stopped_is_lost_in_time(calm: Calm) -> None:
    calm.submit(calm.open(), [60.0, 60.0])
    calm.world.pass_time(1.0)
    calm.world.nodes[0].stop()
    calm.world.pass_time(5.5)
    assert calm.states() == [JobState.Abandoned]
    calm.world.nodes[0].go_on()
    calm.run_all()
    assert calm.starts() == [1, 1]
    finish(calm.world)


def test_a_program_that_was_stopped_finds_everything_as_it_was(calm: Calm) -> None:
    calm.submit(calm.open(), [2.0, 30.0])
    calm.world.pass_time(1.0)
    calm.program.stop()
    calm.world.pass_time(4.0)
    calm.program.go_on()
    calm.run_all()
    assert calm.states() == [JobState.Finished] * 2
    assert calm.starts() == [1, 1]
    finish(calm.world)


@pytest.mark.parametrize("restarted", [False, True], ids=["the node lives", "the node is started again"])
def test_results_of_a_killed_program_reach_its_successor_once(calm: Calm, restarted: bool) -> None:
    calm.submit(calm.open(), [1.0, 3.0])
    calm.world.pass_time(0.5)
    calm.program.end(power=False)
    calm.world.pass_time(6.0)
    if restarted:
        for machine, node in zip(calm.machines, list(calm.world.nodes), strict=True):
            node.end(goodbye=False)
            calm.world.start_node(machine)
    file = RecoveryFile(calm.program)
    first = calm.world.add_recoverer(file)
    calm.world.pass_time(3.0)
    assert sorted(file.results) == [1, 2]
    first.leave()
    again = RecoveryFile(calm.program)
    second = calm.world.add_recoverer(again)
    calm.world.pass_time(3.0)
    assert len(second.answered) == 2
    assert not again.results
    second.leave()
    finish(calm.world)


@pytest.mark.parametrize("restarted", [False, True], ids=["the node lives", "the node is started again"])
def test_durable_jobs_of_a_killed_program_go_on_in_its_successors(restarted: bool) -> None:
    world = World(1, CALM)
    program, machine = world.add_program(durable=True), world.add_machine(1)
    cluster = world.open(program, reentrant=False)
    world.submit(program, cluster, [2.0])  # from now on it is known that nothing has to be sent ahead
    world.pass_time(4.0)
    world.submit(program, cluster, [3.0] * 3)
    world.submit_to(program, cluster, world.nodes[0], 1.0)
    world.pass_time(1.0)
    program.end(power=False)
    if restarted:
        world.nodes[0].end(goodbye=False)
        world.start_node(machine)
    world.pass_time(5.0)
    successor = world.programs[-1]
    assert successor.going_on is program.file
    assert len(successor.jobs) == 3
    successor.end(power=False)
    finish(world)
    (succession,) = world.successions
    states = [succession.states[job] for job in (2, 3, 4, 5)]
    lost = JobState.Abandoned if restarted else JobState.Finished
    assert states == [lost, JobState.Finished, JobState.Finished, JobState.Finished]
    assert [len(task.started_at) for task in world.tasks.values()] == [1] * 5


def test_what_goes_on_with_durable_jobs_fetches_the_result_of_one_whose_node_sent_everybody_away() -> None:
    world = World(1, replace(CALM, large=1.0))
    program = world.add_program(durable=True)
    world.add_machine(1)
    cluster = world.open(program, reentrant=False)
    world.submit(program, cluster, [2.0, 2.0, 2.0])
    world.pass_time(1.0)
    program.end(power=False)
    (node,) = world.nodes
    world.run(lambda: 2 in node.answered)  # the result is on its way to the successor
    node.handle(node_events.EndAsked("its service window has ended"))
    finish(world)
    (succession,) = world.successions
    assert succession.states == dict.fromkeys([1, 2, 3], JobState.Finished)
    assert [len(task.started_at) for task in world.tasks.values()] == [1, 1, 1]


def test_a_result_on_the_disk_of_a_node_that_is_killed_and_started_again_counts() -> None:
    calm = Calm(1)
    calm.submit(calm.open(reentrant=True), [1.0])
    calm.world.pass_time(0.5)
    (machine,), (node,) = calm.machines, calm.world.nodes
    calm.part(machine, [TO_NODE, TO_PROGRAM], 8.0)
    calm.world.pass_time(2.5)
    node.end(goodbye=False)
    calm.world.start_node(machine)
    calm.run_all()
    assert calm.states() == [JobState.Finished]
    assert calm.starts() == [1]
    assert calm.program.core.counters.returned == 1
    finish(calm.world)


def test_a_successor_that_is_killed_before_it_acknowledges_is_no_loss(calm: Calm) -> None:
    calm.submit(calm.open(), [0.5, 0.5])
    calm.world.pass_time(0.3)
    calm.program.end(power=False)
    calm.world.pass_time(3.0)
    file = RecoveryFile(calm.program)
    calm.world.add_recoverer(file).doom(1)
    calm.world.pass_time(3.0)
    assert not file.results
    calm.world.add_recoverer(file)
    calm.world.pass_time(3.0)
    assert sorted(file.results) == [1, 2]
    finish(calm.world)


def test_two_programs_that_wait_for_nodes_of_each_other_both_end() -> None:
    """Each has closed its cluster with one job left that can only run where the other one is."""
    world = World(1, CALM)
    first = world.add_program()
    world.add_machine(1)
    cluster = world.open(first, reentrant=False)
    world.pass_time(1.0)
    second = world.add_program()
    other = world.open(second, reentrant=False)
    world.add_machine(1)
    second.diallers["n2"].start()
    world.pass_time(1.0)
    held = [node.core.snapshot().holder for node in world.nodes]
    assert all(held)
    for program, own in ((first, cluster), (second, other)):
        for node in world.nodes:
            world.submit_to(program, own, node, 0.1)
        world.close(program, own, terminate=False)
    world.run(lambda: all(told.endings for program in world.programs for told in program.jobs.values()))
    finish(world)


# ---- choices in a calm world ----


def test_every_cpu_is_used() -> None:
    assert makespan(4, 2, [1.0] * 16) <= 2.1
