"""When the node of this machine is given up, and what is said meanwhile, by value."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from dispy.errors import NodeError
from dispy.logs import logger
from dispy.scheduler import search
from dispy.scheduler.embedded import NodeSilent
from dispy.scheduler.search import CHANGING_PATIENCE, EMBEDDED_LIVES, NodeSearch
from dispy.settings import EXPLAIN_AFTER


class Owner:
    """A cluster that runs on this machine alone."""

    spec = SimpleNamespace(id="c")
    wants_local, wants_discovery, may_embed, interval = True, False, True, None

    def named_nodes(self) -> list[tuple[str, int]]:
        return []


def links() -> Any:
    targets = SimpleNamespace(unreachable=[], unknown=[], told=frozenset())
    credentials = SimpleNamespace(key=b"k")
    return SimpleNamespace(
        tried=[],
        base_port=1,
        node_port=2,
        nodes={},
        heard=set(),
        refusals={},
        missing_interfaces=[],
        targets=targets,
        settings=SimpleNamespace(credentials=credentials),
    )


@pytest.fixture
def forsaken() -> list[tuple[Any, str]]:
    return []


def searching(why: list[str | None], forsaken: list[tuple[Any, str]]) -> NodeSearch:
    loop = asyncio.get_running_loop()
    return NodeSearch(loop, links(), lambda: [Owner()], lambda: why[0], lambda *said: forsaken.append(said))  # type: ignore[list-item]


@pytest.mark.parametrize(("error", "tries"), [(NodeSilent, EMBEDDED_LIVES), (NodeError, 1)])
def test_a_node_that_dies_while_it_starts_is_started_again_and_then_given_up(
    error: type[NodeError], tries: int, forsaken: list[tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    async def start() -> Any:
        calls.append(1)
        raise error("it ended without a word")

    async def run() -> str:
        found = searching([None], forsaken)
        monkeypatch.setattr(search, "start_embedded", start)
        await found._embed()
        return found.account()

    said = asyncio.run(run())
    assert len(calls) == tries
    assert forsaken == [("c", "it ended without a word")]
    assert said == "It ended without a word."


def test_a_reason_is_told_when_it_has_lasted_and_once(
    forsaken: list[tuple[Any, str]], caplog: pytest.LogCaptureFixture
) -> None:
    why: list[str | None] = [None]
    logger.addHandler(caplog.handler)

    async def run() -> None:
        found = searching(why, forsaken)
        patience = int(EXPLAIN_AFTER / search.LOOK_INTERVAL)
        found._later = lambda *_: None  # type: ignore[method-assign]
        for seconds in range(patience - 1):
            why[0] = f"3 jobs wait: node n is busy since {seconds} s."
            found._look()
        for seconds in range(patience + 5):
            why[0] = f"{9 - seconds} jobs wait: node n builds since {seconds} s."
            found._look()
        assert [record.getMessage() for record in caplog.records] == ["7 jobs wait: node n builds since 2 s."]
        for number in range(int(CHANGING_PATIENCE)):
            why[0] = f"3 jobs wait: step {number % 2}."
            found._look()
        assert len(caplog.records) > 1

    try:
        asyncio.run(run())
    finally:
        logger.removeHandler(caplog.handler)
