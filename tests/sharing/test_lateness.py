"""Large bodies on their way to a program: fetched ahead within bounds, taken in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from dispy.errors import TransferError
from dispy.model import BlobRef
from dispy.sharing.lateness import AHEAD, AHEAD_SIZE, LateLine


class World:
    """A line whose bodies come when the test says so."""

    def __init__(self) -> None:
        self.fetches: dict[int, asyncio.Future[memoryview]] = {}
        self.taken: list[tuple[int, object]] = []
        self.unwanted: set[int] = set()
        self.tasks: list[asyncio.Task[None]] = []
        self.line = LateLine(self.spawn, self.fetch, lambda job: job not in self.unwanted)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def fetch(self, ref: BlobRef) -> memoryview:
        future = self.fetches[int.from_bytes(ref.name, "big")] = asyncio.get_running_loop().create_future()
        return await future

    async def add(self, job: int, size: int = 1) -> None:
        ref = BlobRef(job.to_bytes(32, "big"), size, False) if size else None
        self.line.add(job, ref, lambda body: self.taken.append((job, body)))
        await self.rest()

    async def rest(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def came(self, job: int, error: str = "") -> None:
        future = self.fetches.pop(job)
        if error:
            future.set_exception(TransferError(error))
        else:
            future.set_result(memoryview(b"%d" % job))
        await self.rest()


def test_bodies_are_fetched_ahead_and_taken_in_their_order() -> None:
    async def go() -> None:
        world = World()
        await world.add(1)
        for job in (2, 3, 4):
            await world.add(job)
        await world.add(2, size=0)
        await world.came(1)
        assert sorted(world.fetches) == [2, 3, 4]
        await world.came(3, "it is gone")
        await world.came(4)
        assert [job for job, _ in world.taken] == [1]
        assert 2 in world.line
        await world.came(2)
        assert [job for job, _ in world.taken] == [1, 2, 3, 4, 2]
        assert isinstance(world.taken[2][1], TransferError)
        assert world.taken[4][1] is None
        assert 2 not in world.line

    asyncio.run(go())


def test_no_more_is_fetched_ahead_than_the_bounds_allow() -> None:
    async def go() -> None:
        many = World()
        for job in range(1, 10 * AHEAD):
            await many.add(job)
        await many.came(1)
        assert len(many.fetches) == AHEAD
        large = World()
        for job in range(1, 40):
            await large.add(job, AHEAD_SIZE // 4)
        await large.came(1)
        assert len(large.fetches) == 4
        huge = World()
        for job in (1, 2, 3):
            await huge.add(job, 10 * AHEAD_SIZE)
        assert list(huge.fetches) == [1]
        await huge.came(1)
        assert list(huge.fetches) == [2]
        for world in (many, large, huge):
            for task in world.tasks:
                task.cancel()
            await world.rest()
            assert all(future.cancelled() for future in world.fetches.values())

    asyncio.run(go())


def test_what_is_not_wanted_is_not_fetched() -> None:
    async def go() -> None:
        world = World()
        world.unwanted.add(2)
        await world.add(1)
        await world.add(2)
        await world.came(1)
        assert [job for job, _ in world.taken] == [1, 2]
        assert not world.fetches

    asyncio.run(go())
