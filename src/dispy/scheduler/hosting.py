"""What the scheduler service needs of the process that hosts it: a user's program, or a daemon that many share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import Effects
from dispy.scheduler.events import Event
from dispy.scheduler.links import Reached
from dispy.scheduler.room import Room
from dispy.wire.messages import FileOffered


class LoopHost(Protocol):
    """Whose event loop the service lives in."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Run a function in the loop soon; from any thread."""

    def wake(self, function: Callable[[], object]) -> None:
        """As `post`; its order among other things does not matter."""


class Hosting(Struct, frozen=True):
    """What is different in a daemon. Without it the service works for the clusters of its own process."""

    core: SchedulerCore
    token: bytes
    """Proves the leases of `core`."""
    note: Callable[[Event | None, Effects], None]
    """Hears of each event (None: time has passed) and its effects before any of them is performed."""
    after: Callable[[Callable[[], object]], None]
    """Calls a function when everything is safe that `note` has heard until now: at once, or later, in order."""
    deliver: Callable[[Reached, FileOffered], Awaitable[str]]
    """Gives a file that a job sends to its program; returns why that failed, else nothing."""
    room: Room
    """For large results that are not safe yet."""
