"""The end of a run, and what must be true then."""

from __future__ import annotations

from dispy.model import JobState
from dispy.scheduler import events
from simulator.durable import Succession
from simulator.network import TO_NODE, TO_PROGRAM
from simulator.node import SimNode
from simulator.program import SimProgram, Told
from simulator.recoverer import SimRecoverer
from simulator.shared import SimScheduler, check_store
from simulator.world import World

FETCH = 30.0
"""Virtual seconds in which a successor has everything: longer than any job."""
REST = 150.0
"""Virtual seconds after the last cluster has ended: longer than anything is kept for somebody who is gone."""


def finish(world: World) -> None:
    """No more trouble, a node that works for all, all clusters closed: now everything must come to an end."""
    world.trouble = False
    for process in [*world.nodes, *world.programs, *world.recoverers]:
        process.doom(0)
        process.go_on()
    for machine in world.machines:
        for path in machine.paths.values():
            path.open([TO_NODE, TO_PROGRAM])
        machine.disk.is_full = False
    world.add_machine(3, reliable=True)
    for program in world.programs:
        if isinstance(program, SimScheduler):
            program.restart()
    for program in world.living:
        if program.going_on is not None:
            continue
        for cluster in program.clusters:
            for node in world.nodes:
                # jobs that are pinned to a paused node wait until it is used again
                program.handle(events.NodeSteered(cluster, node.process, events.Steering.USE))
            if cluster not in program.closing:
                world.close(program, cluster, terminate=False)
    world.run(lambda: all(succession.is_done for succession in world.successions))
    world.run(lambda: all(program.ended_clusters == program.clusters.keys() for program in world.living))
    world.pass_time(FETCH)
    for recoverer in world.recoverers:
        if recoverer.alive:
            _check_recovered(world, recoverer)
            recoverer.leave()
    world.pass_time(REST)
    check_promises(world)


def check_promises(world: World) -> None:
    """Compare what happened with what is promised.

    Raises:
        AssertionError: a promise is broken.
    """
    for program in world.living:
        if isinstance(program, SimScheduler):
            check_store(program)
        for job, told in program.jobs.items():
            _check_job(job, told)
        _check_program(program)
    for succession in world.successions:
        _check_succession(world, succession)
    for task in world.tasks.values():
        told = task.program.jobs[task.record.job]
        if not told.endings:
            continue
        state = told.endings[0].state
        if state is JobState.Finished:
            assert task.started_at, f"job {task.record.job} finished and never started"
        if state is JobState.Cancelled and not task.again:
            assert not task.started_at, f"job {task.record.job} was cancelled before its start and had started"
    for node in world.nodes:
        if node.alive:
            _check_node(node)


def _check_job(job: int, told: Told) -> None:
    assert len(told.endings) == 1, f"job {job} ended {len(told.endings)} times"
    ended = told.endings[0]
    assert ended.state is told.record.state
    assert (ended.cause is None) == (ended.state is JobState.Finished), f"job {job} ended without a cause"


def _check_recovered(world: World, recoverer: SimRecoverer) -> None:
    """What ended on nodes that live, and was not told to the program, has been told to its successor."""
    program, results = recoverer.file.program, recoverer.file.results
    for node in world.nodes:
        if not node.alive:
            continue
        assert node.process in recoverer.answered, f"{node.info.name} has not answered a claim"
        for serial in node.answered:
            task = world.tasks[serial]
            job = task.record.job
            if task.program is program and not task.again and job not in program.delivered:
                assert job in results, f"the result of job {job} of program {program.number} was not recovered"
    for job, done in results.items():
        assert done.job == job


def _check_succession(world: World, succession: Succession) -> None:
    """Each job that a program had stored ended once, in its own life or in those of its successors."""
    written, returned = succession.file.segments(), succession.returned
    handed, clusters = succession.file.handed(), succession.file.book().computations
    results = succession.file.results() | written.over | written.results.keys()
    for job, stored in written.jobs.items():
        assert returned[job] == 1, f"durable job {job} was returned {returned[job]} times"
        task = world.tasks[int(stored.args)]
        state = succession.states[job]
        assert state is not JobState.Finished or task.started_at, f"durable job {job} finished and never started"
        assert state is not JobState.Cancelled or task.again or not task.started_at, f"durable job {job} had started"
        pinned = stored.options is not None and stored.options.node
        if state is JobState.Abandoned and not pinned and stored.cluster in clusters:
            assert task.started_at or job in handed, f"durable job {job} was abandoned and cannot have started"
        for node in world.nodes:
            if node.alive and int(stored.args) in node.answered and not task.again:
                assert job in results, f"the result of durable job {job} was not recovered"
    assert not written.over & returned.keys(), f"jobs {written.over & returned.keys()} had ended and were returned"


def _check_program(program: SimProgram) -> None:
    program.core.check()
    view = program.core.snapshot()
    assert not view.clusters, "a cluster is left over"
    for shown in view.nodes:
        assert shown.state == "free", f"a lease was not given back: {shown}"
    assert not program.opened, f"the user was not told that nodes are closed: {program.opened}"


def _check_node(node: SimNode) -> None:
    node.core.check()
    name, left = node.info.name, node.core.snapshot()
    assert left.holder is None, f"{name} is still held: {left}"
    assert not left.waiting, f"somebody still stands in line for {name}: {left}"
    assert not left.computations, f"{name} still has computations: {left}"
    assert left.workers == 0, f"{name} still has workers: {left}"
    assert not left.unclaimed, f"{name} still keeps results for somebody who is gone"
    assert not node.core.claims.claims, f"somebody still claims results of {name}"
    assert not node.machine.disk.leases, f"{name} still has results on its disk: {node.machine.disk.leases}"
    assert not node.servers, f"{name} still has fork servers"
    assert not node.hosted, f"{name} still has open computations"
    assert not node.descriptors, f"{name} still has arguments: {node.descriptors}"
    assert not node.objects, f"{name} still has scattered objects: {node.objects}"
    assert not node.offered, f"{name} still offers results: {node.offered}"
    assert not node.lent, f"{name} still has files that jobs brought: {node.lent}"
