"""Whatever order of breaks and restarts: each submitted job is stored once, and its end is told once."""

from __future__ import annotations

import asyncio
from collections import deque

import hypothesis
from hypothesis import given
from hypothesis import strategies as st
from test_attachment import ID, Process, done

from dispy.wire.messages import AnyMessage
from dispy.wire.sharing import (
    AckOver,
    CloseCluster,
    ClusterAccepted,
    ClusterOver,
    JobsOver,
    JobsStored,
    OpenCluster,
    SubmitJobs,
)


class Scheduler:
    """The other side: a disk that outlives it, and the two directions of a link that do not."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.stored = 0
        self.pending: list[int] = []
        self.ended: list[int] = []
        """Jobs whose ends the client has not acknowledged."""
        self.jobs: list[int] = []
        """All that were ever stored."""
        self.closing = False
        self.unstored: list[SubmitJobs] = []
        self.coming: deque[AnyMessage] = deque()
        self.going: deque[AnyMessage] = deque()
        self.told: list[tuple[int, list[int]]] = []
        """Batches of ends on this link."""
        self.is_linked = False

    def link(self) -> None:
        self.coming.clear()
        self.going.clear()
        self.told = []
        self.unstored = []
        self.is_linked = True
        self.process.attachment.open()

    def lose(self) -> None:
        self.is_linked = False
        self.process.attachment.link_gone()
        self.process.sent()

    def arrive(self) -> None:
        """One message of the client's arrives."""
        match self.coming.popleft():
            case OpenCluster():
                self.going.append(ClusterAccepted(ID, self.stored, False))
                self.tell(list(self.ended))
            case SubmitJobs() as batch:
                self.unstored.append(batch)
            case AckOver(_, sequence):
                for number, jobs in self.told:
                    if number <= sequence:
                        self.ended = [job for job in self.ended if job not in jobs]
            case CloseCluster():
                self.closing = True

    def store(self) -> None:
        for batch in self.unstored:
            if batch.sequence > self.stored:
                assert batch.sequence == self.stored + 1
                self.stored = batch.sequence
                self.jobs += [spec.job for spec in batch.jobs]
                self.pending += [spec.job for spec in batch.jobs]
        self.unstored = []
        self.going.append(JobsStored(ID, self.stored))

    def tell(self, jobs: list[int]) -> None:
        if jobs:
            self.told.append((len(self.told) + 1, jobs))
            self.going.append(JobsOver(ID, len(self.told), [done(job) for job in jobs]))

    def end(self, job: int) -> None:
        self.pending.remove(job)
        self.ended.append(job)
        self.tell([job])


@hypothesis.settings(max_examples=300)
@given(st.data())
def test_whatever_breaks_every_job_is_stored_once_and_its_end_is_told_once(data: st.DataObject) -> None:
    async def run() -> None:
        process = Process()
        there = Scheduler(process)
        submitted, ends = 0, []

        def take_sent() -> None:
            if there.is_linked:
                there.coming.extend(process.sent())

        def hear() -> None:
            process.hear(there.going.popleft())
            ends.extend(said[0] for said in process.owner.news() if said != "over")

        there.link()
        take_sent()
        there.arrive()
        steps = ["hear", "arrive", "submit", "store", "end", "lose", "link", "hear", "arrive"]
        for step in data.draw(st.lists(st.sampled_from(steps), min_size=10, max_size=80)):
            match step:
                case "submit":
                    process.submit(submitted, submitted + 1)
                    submitted += 2
                case "arrive" if there.coming:
                    there.arrive()
                case "store" if there.is_linked:
                    there.store()
                case "end" if there.pending:
                    there.end(data.draw(st.sampled_from(there.pending)))
                case "hear" if there.going and there.is_linked:
                    hear()
                case "link" if not there.is_linked:
                    there.link()
                case "lose" if there.is_linked:
                    there.lose()
            take_sent()
        if not there.is_linked:
            there.link()
        process.attachment.close(terminate=False)
        take_sent()
        while there.coming or there.unstored or there.pending or there.going or not there.closing:
            while there.coming:
                there.arrive()
            there.store()
            for job in list(there.pending):
                there.end(job)
            while there.going:
                hear()
            take_sent()
            if not there.coming:
                there.going.clear()
        assert there.jobs == list(range(submitted))
        assert sorted(ends) == list(range(submitted))
        assert not there.ended, "all was acknowledged"
        process.hear(ClusterOver(ID))
        assert process.owner.news() == ["over"]

    asyncio.run(run())
