"""Results of one node: fetched bodies, the order of what one job says, acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dispy.errors import TransferError
from dispy.model import BlobRef, ComputationId, Ending, JobDone, ProcessId
from dispy.scheduler.events import Event, NodeSaid
from dispy.scheduler.intake import ResultIntake
from dispy.scheduler.room import Room
from dispy.wire.messages import AckResults, JobsDone, RecallJobs, RunJobs

NODE = ProcessId("1" * 32)


def blob(number: int) -> BlobRef:
    return BlobRef(bytes([number]) * 32, 1, False)


def said(job: int, body: bytes = b"", large: int = 0, ending: int = Ending.FINISHED) -> JobDone:
    return JobDone(job, 1, ending, 0.0, 1.0, 1 if large else len(body), 0, 0, 0, blob(large) if large else None)


class World:
    """An intake whose fetches end when the test says so."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, bytes]] = []
        self.acknowledged: list[int] = []
        self.fetches: dict[bytes, asyncio.Future[bytes]] = {}
        self.tasks: list[asyncio.Task[None]] = []
        exchange: Any = self
        self.intake = ResultIntake(NODE, exchange, self.event, self.spawn, self.later)
        self.waiting: list[Callable[[], None]] = []
        self.is_patient = False
        link: Any = self
        self.intake.link = link

    def event(self, event: Event) -> None:
        assert isinstance(event, NodeSaid)
        assert isinstance(event.message, JobsDone)
        for done, body in zip(event.message.jobs, event.bodies, strict=True):
            self.told.append((done.job, done.ending, body))

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        if self.is_patient:
            self.waiting.append(function)
        else:
            function()

    def send_now(self, messages: list[tuple[AckResults, tuple[()]]]) -> None:
        self.acknowledged += [message.sequence for message, _ in messages]

    async def fetch_memory(self, ref: BlobRef) -> bytes:
        future = self.fetches[ref.name] = asyncio.get_running_loop().create_future()
        return await future

    async def batch(self, sequence: int, *jobs: JobDone, payload: bytes = b"") -> None:
        self.intake.arrived(JobsDone(sequence, list(jobs)), payload)
        self.intake.acknowledge()
        await self.rest()

    async def fetched(self, number: int, body: bytes | None) -> None:
        future = self.fetches.pop(blob(number).name)
        if body is None:
            future.set_exception(TransferError("it is gone"))
        else:
            future.set_result(body)
        await self.rest()

    async def rest(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def run(scene: Any) -> None:
    async def main() -> None:
        world = World()
        async with asyncio.timeout(10):
            await scene(world)
            await asyncio.gather(*world.tasks)

    asyncio.run(main())


def test_a_batch_is_acknowledged_when_its_bodies_are_here() -> None:
    async def scene(world: World) -> None:
        await world.batch(1, said(1, b"a"), said(2, large=1), payload=b"a")
        await world.batch(2, said(3, b"c"), payload=b"c")
        assert world.told == [(1, 0, b"a"), (3, 0, b"c")]
        assert world.acknowledged == []
        await world.batch(1, said(1, b"a"), said(2, large=1), payload=b"a")
        await world.fetched(1, b"b")
        assert world.told[2:] == [(2, 0, b"b")]
        assert world.acknowledged == [2]
        await world.batch(2, said(3, b"c"), payload=b"c")
        assert len(world.told) == 3

    run(scene)


def test_what_a_job_says_waits_for_what_it_said_before() -> None:
    interim = Ending.PROVISIONAL

    async def scene(world: World) -> None:
        await world.batch(1, said(1, large=1, ending=interim), said(1, b"x", ending=interim), payload=b"x")
        await world.batch(2, said(1, large=2, ending=interim))
        await world.batch(3, said(1, b"end"), said(2, b"other"), payload=b"endother")
        assert world.told == [(2, 0, b"other")]
        await world.fetched(1, b"one")
        assert world.told[1:] == [(1, interim, b"one"), (1, interim, b"x")]
        assert world.acknowledged == [1]
        await world.fetched(2, b"two")
        assert world.told[3:] == [(1, interim, b"two"), (1, 0, b"end")]
        assert world.acknowledged == [1, 2, 3]

    run(scene)


def test_a_large_result_waits_for_what_its_job_said_before() -> None:
    async def scene(world: World) -> None:
        await world.batch(1, said(1, large=1, ending=Ending.PROVISIONAL), said(1, large=2), said(2, large=3))
        await world.fetched(3, b"other")
        assert list(world.fetches) == [blob(1).name], "it is not even fetched"
        await world.fetched(1, b"interim")
        await world.fetched(2, b"end")
        assert world.told == [(2, 0, b"other"), (1, Ending.PROVISIONAL, b"interim"), (1, 0, b"end")]
        assert world.acknowledged == [1]

    run(scene)


def test_a_body_that_cannot_be_had() -> None:
    async def scene(world: World) -> None:
        await world.batch(1, said(1, large=1), said(2, large=2, ending=Ending.PROVISIONAL))
        await world.fetched(1, None)
        await world.fetched(2, None)
        assert world.told == [(1, Ending.DIED, b"the result could not be fetched from the node: it is gone")]
        assert world.acknowledged == [1]

    run(scene)


def test_nothing_is_told_of_a_node_that_was_given_up() -> None:
    async def scene(world: World) -> None:
        await world.batch(1, said(1, large=1), said(2, large=2, ending=Ending.PROVISIONAL), said(3, large=3))
        world.intake.close()
        await world.fetched(1, b"late")
        await world.fetched(2, None)
        assert world.told == []
        assert world.acknowledged == []

    run(scene)


def test_acknowledgements_wait_for_one_another() -> None:
    async def scenario() -> None:
        world = World()
        world.is_patient = True
        await world.batch(1, said(1))
        await world.batch(2, said(2))
        assert world.acknowledged == []
        assert len(world.waiting) == 1
        world.waiting.pop()()
        assert world.acknowledged == [2]
        world.intake.acknowledge()
        assert world.waiting == [], "there is nothing to tell"
        await world.batch(2, said(2))
        assert [job for job, _, _ in world.told] == [1, 2]
        await world.batch(3, said(3))
        world.intake.tell()  # another message goes to the node
        world.waiting.pop()()
        assert world.acknowledged == [2, 3]
        await world.batch(3, said(3))  # the node says it again: it has not heard that
        assert [job for job, _, _ in world.told] == [1, 2, 3]
        world.waiting.pop()()
        assert world.acknowledged == [2, 3, 3]

    asyncio.run(scenario())


def test_the_next_jobs_say_what_is_here_and_save_a_message() -> None:
    async def scene(world: World) -> None:
        world.is_patient = True
        jobs, other = (RunJobs(ComputationId("c"), []), [b"x"]), (RecallJobs(1), ())
        assert world.intake.acknowledging([jobs, other]) == [jobs, other]
        await world.batch(1, said(1, b"a"), payload=b"a")
        await world.batch(2, said(2, b"b"), payload=b"b")
        assert world.intake.acknowledging([jobs, other]) == [(RunJobs(ComputationId("c"), [], 2), [b"x"]), other]
        assert world.intake.acknowledging([jobs]) == [jobs]
        await world.batch(3, said(3, b"c"), payload=b"c")
        assert world.intake.acknowledging([other, jobs]) == [(AckResults(3), ()), other, jobs]
        for function in world.waiting:
            function()
        assert world.acknowledged == []

    run(scene)


def test_large_results_that_are_not_safe_have_a_bound() -> None:
    async def go() -> None:
        world = World()
        safe: list[Callable[[], object]] = []
        exchange: Any = world
        world.intake = ResultIntake(NODE, exchange, world.event, world.spawn, world.later, safe.append, Room(2))
        for number in range(1, 21):
            await world.batch(number, said(number, large=number))
        assert sorted(world.fetches) == [blob(1).name, blob(2).name]
        for number in range(1, 21):
            await world.fetched(number, b"x")
            assert len(world.fetches) == min(1, 20 - number)
            for function in safe[:]:
                safe.remove(function)
                function()
            await world.rest()
            assert len(world.fetches) <= 2
        assert [job for job, *_ in world.told] == list(range(1, 21))

    asyncio.run(go())
