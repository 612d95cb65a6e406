"""When a shared scheduler's process collects garbage."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from dispy.sharing import collecting
from dispy.sharing.collecting import MOST, Collecting


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Collections as they were."""
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_all_objects_are_looked_at_now_and_then_while_jobs_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "INTERVAL", 0.0)
    asked: list[int] = []
    collected: list[int] = []
    done = asyncio.Event()

    def note() -> None:
        collected.append(len(asked))
        done.set()

    def count() -> int:
        asked.append(len(collected))
        return MOST + 1 if len(asked) <= 5 else MOST

    async def collect() -> None:
        timed = Collecting(asyncio.get_running_loop(), count)
        timed.start()
        monkeypatch.setattr(gc, "collect", note)
        assert gc.get_threshold()[2] == collecting.NEVER
        await done.wait()
        timed.stop()

    asyncio.run(collect())
    assert collected == [6]
