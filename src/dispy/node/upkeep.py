"""What a node does by the clock: its hours, its rest while the machine is in use, announcements, tidying up.

It keeps the offer and tells the core when that changes; the console changes it as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from dispy.node import events as ev
from dispy.node import vitals
from dispy.node.offer import Idleness, Offer
from dispy.node.settings import NodeSettings
from dispy.node.window import Phase, ServiceWindow

logger = logging.getLogger("dispy.node")

TIDY_INTERVAL: Final = 3600.0
LOOK_INTERVAL: Final = 5.0
"""Seconds between two looks at the load of others."""
RETURN_TIMEOUT: Final = 0.5
"""Seconds that jobs which have not started get to go back before those that run are ended."""


class Upkeep:
    """Timers of a running node. `start`, then `stop`."""

    def __init__(
        self,
        settings: NodeSettings,
        *,
        post: Callable[[ev.Event], None],
        announce: Callable[[], None],
        tidy: Callable[[], None],
    ) -> None:
        """`announce` tells the network of a free node; `tidy` runs in a thread, once at the start and then hourly."""
        self.offer = Offer(settings.cpus, settings.window)
        self._settings = settings
        self._post = post
        self._announce = announce
        self._tidy = tidy
        self._meter: vitals.LoadMeter | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tidying: asyncio.Future[None] | None = None
        if settings.idle_only is not None:
            self.offer.idleness = Idleness(settings.idle_only)

    def start(self) -> None:
        """Begin; the first offer is told before anything else happens."""
        self._loop = asyncio.get_running_loop()
        if self.offer.window is not None:
            self._watch_window()
        if self._settings.idle_only is not None:
            self._meter = vitals.LoadMeter()
            self._after("load", LOOK_INTERVAL, self._watch_load)
        if self._settings.ping_interval:
            self._after("ping", self._settings.ping_interval, self._ping)
        self.tell()
        self._begin_to_tidy()

    async def stop(self) -> None:
        """Do nothing more."""
        for timer in self._timers.values():
            timer.cancel()
        if self._tidying is not None:
            await self._tidying

    def tell(self) -> None:
        """Tell the core what is offered now."""
        cpus, reason = self.offer.now()
        self._post(ev.OfferChanged(cpus, reason))

    def set_window(self, window: ServiceWindow | None) -> None:
        """Serve in these hours from now on; None: always."""
        self.offer.window = window
        if "window" in self._timers:
            self._timers.pop("window").cancel()
        self._watch_window()

    def _after(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        self._timers[name] = self._loop.call_later(seconds, call)

    def _watch_window(self) -> None:
        window = self.offer.window
        now = time.time()
        phase = Phase.OPEN if window is None else window.phase(datetime.fromtimestamp(now))
        if phase is not self.offer.phase:
            self.offer.phase = phase
            logger.info("the service window is %s", phase.value)
            self.tell()
            if phase is Phase.CLOSED:
                self._after("end", RETURN_TIMEOUT, self._end_jobs)
        if window is not None:  # looked at every minute as well: the clock of the machine may be set
            self._after("window", min(60.0, max(0.01, window.next_change(now) - now)), self._watch_window)

    def _end_jobs(self) -> None:
        if self.offer.phase is Phase.CLOSED:
            self._post(ev.EndAsked("its service window has ended"))

    def _watch_load(self) -> None:
        idleness = self.offer.idleness
        assert self._meter is not None
        assert idleness is not None
        before = idleness.quiet
        load = self._meter.measure()
        if idleness.measure(load, self._loop.time()) is not before:
            logger.info("%s: others use %.1f CPUs", "resting" if before else "working", load)
            self.tell()
        self._after("load", LOOK_INTERVAL, self._watch_load)

    def _ping(self) -> None:
        self._announce()
        self._after("ping", self._settings.ping_interval, self._ping)

    def _begin_to_tidy(self) -> None:
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.ensure_future(asyncio.to_thread(self._tidy))
        self._after("tidy", TIDY_INTERVAL, self._begin_to_tidy)
