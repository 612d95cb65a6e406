"""What must be true of the jobs and workers of a node after every event.

Part of the node's core, for tests.
"""

from __future__ import annotations

from dispy.node.jobs import JobDesk
from dispy.node.serving import HeldJob, Lease, WorkerState


def check_jobs(desk: JobDesk, lease: Lease | None) -> None:
    """Recompute the tables of jobs and workers from each other.

    Raises:
        AssertionError: two of them differ, which is a bug here.
    """
    workers = desk.feeder.workers
    computations = {} if lease is None else lease.computations
    running = [
        each for computation in computations.values() if computation.can_run for each in computation.workers.values()
    ]
    staying = [each for each in running if each.state is not WorkerState.RETIRING]
    assert len(staying) <= max(desk.feeder.cpus, desk.feeder.capacity), "more workers than CPUs"
    desk.feeder.check()
    by_computation = {id: each for one in computations.values() for id, each in one.workers.items()}
    assert by_computation == workers, "workers and computations differ"
    seen: list[HeldJob] = []
    for computation in computations.values():
        for job in (*computation.queue, *computation.heavy):
            assert job.worker is None
            assert (job in computation.heavy) == (job.special is not None and job.special.is_heavy)
            assert job.arguments is not None
            seen.append(job)
        for number, job in computation.arriving.items():
            assert job.job == number
            assert job.arguments is None or (job.loan is not None and not job.loan.is_here)
            seen.append(job)
    for worker in workers.values():
        for sequence, job in worker.jobs.items():
            assert job.worker is worker
            assert job.sequence == sequence <= worker.sequence
            seen.append(job)
        assert list(worker.jobs) == sorted(worker.jobs)
        assert worker.escalation is None or worker.escalation.sequence in worker.jobs
    assert len(set(seen)) == len(seen), "a job is in two places"
    held = set() if lease is None else {*lease.jobs.values(), *lease.superseded}
    assert set(seen) == held, "a job is lost or left over"
    desk.arguments.check(held)
