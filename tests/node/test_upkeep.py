"""What a node does by the clock."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from dispy.node import events as ev
from dispy.node import upkeep
from dispy.node.settings import NodeSettings
from dispy.node.upkeep import Upkeep
from dispy.node.vitals import LoadMeter
from dispy.node.window import Phase, ServiceWindow
from dispy.secrets import credentials_from_key


def settings(**more: Any) -> NodeSettings:
    return NodeSettings("n", 2, Path("/nowhere"), credentials_from_key(bytes(32)), **more)


class Watched:
    def __init__(self, **more: Any) -> None:
        self.events: list[ev.Event] = []
        self.announced = self.tidied = 0
        self.upkeep = Upkeep(settings(**more), post=self.events.append, announce=self.announce, tidy=self.tidy)

    def announce(self) -> None:
        self.announced += 1

    def tidy(self) -> None:
        self.tidied += 1

    async def until(self, what: Any) -> None:
        async with asyncio.timeout(10):
            while not what():  # noqa: ASYNC110  # a timer of the object under test sets it
                await asyncio.sleep(0.005)


def test_it_tells_its_offer_and_tidies_up_at_the_start() -> None:
    async def main() -> None:
        node = Watched()
        node.upkeep.start()
        await node.upkeep.stop()
        assert node.events == [ev.OfferChanged(2, "")]
        assert (node.announced, node.tidied) == (0, 1)

    asyncio.run(main())


def test_announcements_are_repeated() -> None:
    async def main() -> None:
        node = Watched(ping_interval=0.01)
        node.upkeep.start()
        await node.until(lambda: node.announced > 2)
        await node.upkeep.stop()

    asyncio.run(main())


def test_the_end_of_the_hours_ends_jobs_after_they_could_go_back(monkeypatch: Any) -> None:
    monkeypatch.setattr(upkeep, "RETURN_TIMEOUT", 0.01)
    later = datetime.now() + timedelta(hours=3)
    minute = later.hour * 60 + later.minute

    async def main() -> None:
        node = Watched(window=ServiceWindow(minute, (minute + 60) % 1440, (minute + 60) % 1440))
        node.upkeep.start()
        await node.until(lambda: ev.EndAsked("its service window has ended") in node.events)
        await node.upkeep.stop()
        reason = f"its service window begins at {later:%H:%M}"
        assert node.events[0] == ev.OfferChanged(0, reason)

    asyncio.run(main())


def test_hours_that_are_set_later(monkeypatch: Any) -> None:
    monkeypatch.setattr(upkeep, "RETURN_TIMEOUT", 0.01)
    ended = ev.EndAsked("its service window has ended")

    def window(hours: int, lasting: int) -> ServiceWindow:
        at = datetime.now() + timedelta(hours=hours)
        start = at.hour * 60 + at.minute
        end = (start + 60 * lasting) % 1440
        return ServiceWindow(start, end, end)

    async def main() -> None:
        node = Watched()
        node.upkeep.start()
        node.upkeep.set_window(window(-1, 23))
        assert node.upkeep.offer.phase is Phase.OPEN
        node.upkeep.set_window(window(3, 1))
        await node.until(lambda: ended in node.events)
        assert node.upkeep.offer.phase is Phase.CLOSED
        node.upkeep.set_window(None)
        assert node.upkeep.offer.now()[0] > 0
        assert "window" not in node.upkeep._timers
        await node.upkeep.stop()

    asyncio.run(main())


def test_the_load_of_this_process_is_not_the_load_of_others() -> None:
    meter = LoadMeter()
    assert meter.measure() >= 0.0
    before = meter._before
    until = before[2] + 0.2
    while meter._look()[2] < until:  # our own work
        pass
    now, busy, _ = meter._look()
    assert meter.measure() <= max(0.0, busy - before[1] - 0.15) / (now - before[0]) + 0.3
