"""A shared scheduler that is killed and started again: the real core, the real gathering and the real file (in memory).

Its clients are perfect: they are never away for long, and know what a client of the wire knows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from dispy.model import ComputationId, Holder, JobState, ProcessId
from dispy.scheduler import effects as notices
from dispy.scheduler import events
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.fairness import Policy
from dispy.scheduler.jobs import JobRecord
from dispy.sharing.gathering import Gathering
from dispy.sharing.keeping import KeptCluster, Restored
from dispy.sharing.reopening import opened_of, read_ends, reopen
from dispy.sharing.storefile import StoreFile
from dispy.sharing.storewriting import Batch, BatchWriter
from dispy.wire.sharing import OpenCluster
from simulator.program import SimProgram, Told

if TYPE_CHECKING:
    from simulator.world import World

COMMIT = 0.02
"""Seconds that a commit takes at most."""


class MemoryFile(StoreFile):
    """A store without a disk."""

    def __init__(self) -> None:
        self.path = self.results = Path("memory")
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.writer = BatchWriter(self.db)
        self._prepare()


class SimScheduler(SimProgram):
    """One shared scheduler and its clients, in all the processes that it is one after another."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.holder = Holder("root", "host", number, "dispyscheduler")
        self.store_file = MemoryFile()
        self.is_shared = True
        self.policy = world.sharing.choice(list(Policy))
        self.quota = world.sharing.choice([0, 0, 3])
        self.park_above = world.sharing.choice([0, 1, 2, 4])
        self.opens: dict[ComputationId, KeptCluster] = {}
        """What clients have asked for, and their batches, of which each is sent until it is stored."""
        self.batches: dict[ComputationId, list[list[JobRecord]]] = {}
        self.terminates: dict[ComputationId, bool] = {}
        self.own: dict[int, int] = {}
        """A client's number of a job → that of the scheduler."""
        self.starts = 0
        self._start()

    def _start(self) -> Restored:
        """The daemon reads its store."""
        self.starts += 1
        restored = reopen(self.store_file)
        self.store = Gathering(self.store_file.meta()["next"], self._begin_writing)
        self.core = SchedulerCore(
            holder=self.holder,
            token=restored.token,
            policy=self.policy,
            max_cpus_per_user=self.quota,
            park_above=self.park_above,
        )
        return restored

    def restart(self) -> None:
        """The daemon is started again, on the same machine."""
        if self.alive or self.is_over:
            return
        for dialler in self.diallers.values():
            dialler.give_up()
        self.number = 1_000_000 + self.world.number()
        self.process = ProcessId(f"{self.number:032x}")
        self.alive, self.stopped = True, False
        self.doom(0)
        self.reached, self.machines, self.diallers = {}, {}, {}
        self.opened.clear()
        restored = self._start()
        self.world.log(f"the scheduler is started again with {restored}")
        self.hear(lambda: self._go_on(restored))
        for machine in self.world.machines:
            self.learn(machine)

    def _go_on(self, restored: Restored) -> None:
        for record in restored.event.jobs:
            self.own[self._client(record)] = record.job
        self.handle_now(restored.event)
        for end in [end for jobs in restored.ends.values() for end in read_ends(self.store_file, jobs)]:
            over = end.over
            record = JobRecord(end.job, end.cluster, b"", over.job, state=over.state)
            self._settle(notices.JobEnded(record, over.state, over.node, over.done, end.body, over.cause))
        known = {kept.opened.computation.id: kept for kept in restored.clusters}
        for cluster in self.opens:
            if cluster in self.ended_clusters:
                self.store.cluster_over(cluster)
                continue
            kept = known.get(cluster)
            if kept is not None and kept.state == "ended":
                self._over(cluster)
                continue
            if kept is None:
                self._open(self.opens[cluster])
            stored = 0 if kept is None else kept.stored
            for sequence, records in enumerate(self.batches[cluster], 1):
                if sequence > stored:
                    self._submit(cluster, sequence, records)
            if cluster in self.terminates:
                self.handle_now(events.ClusterClosing(cluster, self.terminates[cluster]))

    def die(self) -> None:
        for reached in self.reached.values():
            reached.relink(None)
        super().die()
        self.world.clock.at(self.world.clock.now + 5.0 * self.world.random.random(), self.restart)

    def end(self, *, power: bool, goodbye: bool = False) -> None:
        for reached in self.reached.values():
            reached.relink(None)
        super().end(power=power, goodbye=goodbye)
        self.world.clock.at(self.world.clock.now + 5.0 * self.world.random.random(), self.restart)

    # ---- clients ----

    def open(self, opened: events.ClusterOpened) -> None:
        asked = OpenCluster(
            opened.computation, b"", self.holder, opened.reentrant, opened.open_ended, exclusive=opened.exclusive
        )
        kept = KeptCluster(asked, opened.user, False, self.world.clock.now)
        cluster = opened.computation.id
        self.opens[cluster], self.batches[cluster] = kept, []
        self.hear(lambda: self._open(kept))

    def _open(self, kept: KeptCluster) -> None:
        self.store.cluster_opened(kept)
        self.handle_now(opened_of(kept))

    def submit(self, records: list[JobRecord]) -> None:
        cluster = records[0].cluster
        if cluster in self.closing:  # its client knows better
            for record in records:
                record.state = JobState.Cancelled
                self.jobs[record.job].endings.append(
                    notices.JobEnded(record, JobState.Cancelled, cause="its cluster is closed")
                )
            return
        self.batches[cluster].append(records)
        self._submit(cluster, len(self.batches[cluster]), records)

    def _submit(self, cluster: ComputationId, sequence: int, records: list[JobRecord]) -> None:
        first = self.store.numbers(len(records))
        jobs = []
        for number, record in enumerate(records, first):
            self.own[record.job] = number
            jobs.append(replace(record, job=number, handle=record.job))
        self.handle_now(events.JobsSubmitted(jobs))
        self.store.batch_stored(cluster, sequence)

    def close(self, cluster: ComputationId, *, terminate: bool) -> None:
        self.closing.add(cluster)
        self.terminates[cluster] = terminate
        super().close(cluster, terminate=terminate)

    def handle(self, event: events.Event) -> None:
        if isinstance(event, events.CancelAsked):
            event = events.CancelAsked([self.own[job] for job in event.jobs if job in self.own])
        super().handle(event)

    def told(self, record: JobRecord) -> Told:
        return self.jobs[self._client(record)]

    def _client(self, record: JobRecord) -> int:
        assert isinstance(record.handle, int)
        return record.handle

    # ---- what is kept ----

    def noted(self, event: events.Event | None, effects: notices.Effects) -> None:
        self.store.note(self.core, event, effects)

    def after(self, then: Callable[[], object]) -> None:
        self.store.after(then)

    def _begin_writing(self) -> None:
        self._later(0.0, lambda: self._take())

    def _take(self) -> None:
        batch = self.store.take()
        if batch is not None:
            self._later(COMMIT * self.world.random.random(), lambda: self._write(batch))

    def _write(self, batch: Batch) -> None:
        self.effect()
        self.store_file.write(batch)
        self.effect()
        self.store.written(batch.number)
        self.store.call_waiting()

    def _later(self, seconds: float, action: Callable[[], Any]) -> None:
        """In this process, if it still is the same one then."""
        starts = self.starts
        clock = self.world.clock
        clock.at(clock.now + seconds, lambda: self.hear(action) if starts == self.starts else None)

    # ---- what is said ----

    def _send(self, send: notices.Send) -> None:
        reached = self.reached.get(send.node)
        link = None if reached is None else reached.link

        def over_the_same_link() -> None:
            if reached is not None and reached.link is link:
                SimProgram._send(self, send)

        self.after(over_the_same_link)

    def _tell(self, notice: notices.Notice) -> None:
        match notice:
            case notices.JobsEnded(jobs):
                for ended in jobs:
                    self.after(lambda ended=ended: self._settle(ended))
            case notices.ClusterEnded(cluster):
                self.after(lambda: self._over(cluster))
            case _:
                super()._tell(notice)

    def _settle(self, ended: notices.JobEnded) -> None:
        """A client hears of an end, perhaps again, and acknowledges it soon."""
        self.effect()
        told = self.told(ended.job)
        if told.endings:
            assert told.endings[0].state is ended.state, f"job {ended.job} ended otherwise before"
        else:
            told.record = ended.job
            told.endings.append(ended)
        if self.world.happens(0.8) or not self.world.trouble:
            cluster, job = ended.job.cluster, ended.job.job
            self._later(self.world.chances.latency, lambda: self.store.acknowledged(cluster, [job]))

    def _over(self, cluster: ComputationId) -> None:
        left = [job for job, told in self.jobs.items() if told.record.cluster == cluster and not told.endings]
        assert not left, f"a cluster ended before its jobs {left}"
        self.ended_clusters.add(cluster)
        self._later(self.world.chances.latency, lambda: self.store.cluster_over(cluster))


def check_store(scheduler: SimScheduler) -> None:
    """When all is over nothing is kept.

    Raises:
        AssertionError: something is.
    """
    restored = reopen(scheduler.store_file)
    assert not restored.clusters, "a cluster is left over in the store"
    assert not restored.event.jobs, f"jobs are left over in the store: {restored.event.jobs}"
    assert not restored.ends, "ends are left over in the store"
    assert all(told.endings[0].state is not JobState.Running for told in scheduler.jobs.values())
