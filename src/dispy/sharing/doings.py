"""What one cluster at a shared scheduler needs of its process."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec import Struct

from dispy.model import BlobRef
from dispy.scheduler.jobs import JobRecord
from dispy.wire.messages import AnyMessage


class Doings(Struct, frozen=True):
    """All of it in the loop's thread."""

    send: Callable[[AnyMessage, Sequence[bytes]], None]
    """Without a link a message goes nowhere."""
    fetch: Callable[[BlobRef], Coroutine[Any, Any, memoryview]]
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    take_back: Callable[[JobRecord], None]
    """What could have been fetched for a job is not wanted any more."""
    accepted: Callable[[], None]
    """The cluster was accepted for the first time."""
    over: Callable[[], None]
    """It has ended, and its owner knows."""
