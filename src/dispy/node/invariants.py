"""What must be true of the jobs and workers of a node after every event.

Part of the node's core, for tests.
"""

from __future__ import annotations

from dispy.node.jobs import JobDesk
from dispy.node.serving import ComputationState, ForkServerState, HeldJob, Lease, WorkerState


def check_jobs(desk: JobDesk, lease: Lease | None) -> None:
    """Recompute the tables of jobs and workers from each other.

    Raises:
        AssertionError: two of them differ, which is a bug here.
    """
    workers = desk.feeder.workers
    computations = {} if lease is None else lease.computations
    running = [
        each
        for computation in computations.values()
        if computation.server is ForkServerState.STANDING
        for each in computation.workers.values()
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
            assert job.sequence == 0
            assert (job in computation.heavy) == (job.special is not None and job.special.is_heavy)
            assert job.arguments is not None
            seen.append(job)
        for number, job in computation.arriving.items():
            assert job.job == number
            assert job.arguments is None or (job.loan is not None and not job.loan.is_complete)
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
    desk.objects.check(held)
    assert lease is not None or not desk.objects, "objects outlive their lease"
    timed = {job for job in held if job.special is not None and job.special.timeout > 0}
    assert timed - (set() if lease is None else lease.superseded) <= set(desk.forcing.timed), "nobody looks at its time"
    for worker in workers.values():
        head = worker.head()
        assert head is not None or worker.escalation is None
        assert head is None or not head.cancelled or worker.escalation is not None, "nobody ends a cancelled job"
        assert worker.state is not WorkerState.RETIRING or worker.jobs or worker.told_to_end, "it never ends"
        assert not (worker.told_to_end and worker.jobs), "it ends with jobs"
        assert worker not in desk.feeder.heavy or len(worker.jobs) <= 1, "jobs wait behind a heavy one"
        assert worker.sequence <= 1 or not computations[worker.computation].spec.isolate, "a process for two jobs"


def check_lease(desk: JobDesk, lease: Lease, *, in_line: bool) -> None:
    """Compare what a lease is with what is here of it; `in_line`: somebody waits for the node.

    Raises:
        AssertionError: something was forgotten, which is a bug here.
    """
    workers = desk.feeder.workers
    for request in lease.recalls:
        assert request.wanted >= 0, "more goes back than was asked for"
        assert request.waiting, "a request that nobody answers"
        assert all(workers[worker].recalling for worker in request.waiting if worker in workers)
        assert request.waiting <= set(workers), "a request waits for a worker that is gone"
    if lease.peer is not None:
        assert lease.grace_at is None, "a lease with a link runs out"
        assert lease.zombie_at is None or lease.ended, "a lease with a link is given up"
        assert not lease.expired, "a lease with a link is over its grace"
    if lease.expired:
        assert lease.grace_at is None
        assert not lease.parcels, "nobody takes these files"
        assert not (lease.is_idle and not lease.ended and (in_line or lease.zombie_at is None)), "held for nobody"
    keeps_none = lease.expired or lease.giving_back
    for computation in lease.computations.values():
        if keeps_none or computation.refused:
            assert not computation.queue, "a job waits that is not to start"
            assert not computation.heavy, "a heavy job waits that is not to start"
            assert not computation.arriving, "a job arrives that is not to start"
        cleaning = computation.state is ComputationState.CLEANING
        closing = computation.state is ComputationState.CLOSING
        assert not cleaning or computation.is_empty, "its jobs are cleaned away"
        assert not closing or not computation.is_empty, "nobody cleans it away"
        assert not lease.ended or cleaning or closing, "open in a lease that is over"
        assert computation.reopen is None or not lease.ended, "opened again in a lease that is over"
    if keeps_none:
        assert all(worker.recalling for worker in workers.values() if worker.unstarted), "jobs stay in a worker"
