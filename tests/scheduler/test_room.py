"""Memory for large results: never more than there is, in the order of those who want it."""

from __future__ import annotations

import asyncio

from dispy.scheduler.room import Room


async def rest() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_no_more_is_taken_than_there_is_and_all_have_their_turn() -> None:
    async def go() -> None:
        room = Room(100)
        turns: list[int] = []

        async def one(number: int, size: int) -> None:
            await room.take(size)
            turns.append(number)

        tasks = [asyncio.create_task(one(number, size)) for number, size in enumerate([60, 60, 10, 1000, 1])]
        await rest()
        assert (turns, room.used) == ([0], 60), "who comes later does not pass by who stands in line"
        room.give(60)
        await rest()
        assert (turns, room.used) == ([0, 1, 2], 70)
        room.give(60)
        await rest()
        assert turns == [0, 1, 2], "more than there is at all waits until nobody has any"
        room.give(10)
        await rest()
        assert (turns, room.used) == ([0, 1, 2, 3], 1000)
        room.give(1000)
        await asyncio.gather(*tasks)
        assert (turns[-1], room.used) == (4, 1)

    asyncio.run(go())


def test_who_gives_up_leaves_the_line() -> None:
    async def go() -> None:
        room = Room(10)
        await room.take(10)
        first, second = (asyncio.create_task(room.take(10)) for _ in range(2))
        await rest()
        first.cancel()
        await rest()
        room.give(10)
        await second
        third = asyncio.create_task(room.take(10))
        await rest()
        room.give(10)
        third.cancel()  # it has its turn already, and has not heard of it
        await rest()
        assert third.cancelled()
        assert room.used == 0

    asyncio.run(go())
