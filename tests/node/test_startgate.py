"""How many fork servers start at a time, and how long they may take to answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dispy.node.crowd import LONGEST_INTERVAL, WAIT_TIMEOUT, Crowd, look_interval
from dispy.node.patience import answer_timeout
from dispy.node.startgate import StartGate


class Starts:
    """What is started, each until its gate is opened."""

    def __init__(self, turns: StartGate) -> None:
        self._turns = turns
        self.begun: list[str] = []
        self.news = asyncio.Event()
        self.gates: dict[str, asyncio.Future[None]] = {}

    def start(self, name: str) -> asyncio.Task[None]:
        async def work() -> None:
            self.begun.append(name)
            self.news.set()
            self.gates[name] = asyncio.get_running_loop().create_future()
            await self.gates[name]

        return asyncio.create_task(self._turns.take(work))


@pytest.fixture
def alone(tmp_path: Path) -> Crowd:
    """A machine with one node."""
    return Crowd(tmp_path / "starts", 8)


async def settle() -> None:
    """Let everything happen that can without time."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_so_many_start_at_a_time_in_their_order(alone: Crowd) -> None:
    async def work() -> None:
        starts = Starts(StartGate(2, alone))
        tasks = {name: starts.start(name) for name in "abcd"}
        await settle()
        assert starts.begun == ["a", "b"]
        starts.gates["b"].set_result(None)
        await settle()
        assert starts.begun == ["a", "b", "c"]
        starts.gates["a"].set_exception(OSError("no memory"))
        await settle()
        assert starts.begun == ["a", "b", "c", "d"]
        with pytest.raises(OSError, match="no memory"):
            await tasks["a"]
        starts.gates["c"].set_result(None)
        starts.gates["d"].set_result(None)
        await asyncio.gather(tasks["b"], tasks["c"], tasks["d"])

    asyncio.run(work())


def test_one_that_takes_long_does_not_keep_others_out(alone: Crowd) -> None:
    async def work() -> None:
        starts = Starts(StartGate(1, alone, timeout=0.0))
        tasks = [starts.start(name) for name in "ab"]
        await asyncio.sleep(0.001)  # so that the loop looks at its timers
        await settle()
        assert starts.begun == ["a", "b"]
        for name in "ab":
            starts.gates[name].set_result(None)
        await asyncio.gather(*tasks)
        assert len({starts.start("c"), starts.start("d")}) == 2
        await settle()
        assert starts.begun[2] == "c", "its turn was given back once"
        starts.gates["c"].set_result(None)

    asyncio.run(work())


def test_one_that_is_given_up_before_its_turn_takes_none(alone: Crowd) -> None:
    async def work() -> None:
        starts = Starts(StartGate(1, alone))
        tasks = [starts.start(name) for name in "abc"]
        await settle()
        tasks[1].cancel()
        starts.gates["a"].set_result(None)
        await settle()
        assert starts.begun == ["a", "c"]
        starts.gates["c"].set_result(None)
        await tasks[2]

    asyncio.run(work())


async def begun(starts: Starts, names: list[str]) -> None:
    """Wait until so many have begun: locks of others are looked at now and then."""
    while starts.begun != names:
        starts.news.clear()
        await starts.news.wait()


def test_nodes_of_one_machine_let_few_start_together(tmp_path: Path) -> None:
    async def work() -> None:
        one, other = (Starts(StartGate(4, Crowd(tmp_path / "starts", 2))) for _ in range(2))
        first = [one.start("a"), one.start("b")]
        await settle()
        second = other.start("c")
        await settle()
        assert (one.begun, other.begun) == (["a", "b"], [])
        one.gates["a"].set_exception(OSError("no memory"))
        await begun(other, ["c"])
        third = one.start("d")
        second.cancel()
        await begun(one, ["a", "b", "d"])
        for name in "bd":
            one.gates[name].set_result(None)
        assert isinstance((await asyncio.gather(*first, second, third, return_exceptions=True))[0], OSError)

    asyncio.run(work())


def test_a_start_waits_for_other_nodes_only_so_long(tmp_path: Path) -> None:
    async def work() -> None:
        leave = await Crowd(tmp_path, 1).enter()
        (await Crowd(tmp_path, 1, wait_timeout=0.0).enter())()
        leave()

    asyncio.run(work())


def test_a_node_that_has_waited_looks_less_often() -> None:
    waited, looks = 0.0, 0
    while waited < WAIT_TIMEOUT:
        waited += look_interval(waited)
        looks += 1
        assert look_interval(waited) <= max(0.02, waited / 10) + 1e-9
        assert look_interval(waited) <= LONGEST_INTERVAL
    assert looks < 100


def test_a_directory_that_cannot_be_used_limits_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def work() -> None:
        crowd = Crowd(tmp_path / "file", 1)
        for leave in (await crowd.enter(), await crowd.enter()):
            leave()
            leave()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("load", "cpus", "seconds"), [(0.0, 2, 10.0), (2.0, 2, 10.0), (5.0, 2, 25.0), (45.0, 2, 60.0), (45.0, 64, 10.0)]
)
def test_where_cpus_are_scarce_answers_may_take_longer(load: float, cpus: int, seconds: float) -> None:
    assert answer_timeout(load, cpus) == seconds
