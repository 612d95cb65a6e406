"""Questions to a shared scheduler, each with a number, and who waits for their answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from dispy.wire.messages import AnyMessage


class Questions:
    """The open questions of one process. In the loop's thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[Any, bytes | memoryview]]] = {}

    async def ask(self, send: Callable[[int], bool], limit: float | None) -> tuple[Any, bytes | memoryview]:
        """Ask and wait; `send` gets the number of the question and says whether there is a link.

        Returns:
            The answer and its payload.

        Raises:
            TimeoutError: there is no link, it broke, or `limit` seconds were not enough.
        """
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            if not send(number):
                raise TimeoutError
            return await asyncio.wait_for(future, limit)
        finally:
            del self._waiting[number]

    def answered(self, number: int, answer: AnyMessage, payload: bytes | memoryview) -> None:
        """An answer has come; nobody need wait for it any more."""
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result((answer, payload))

    def link_gone(self) -> None:
        """What was asked over the link may have been lost with it."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(TimeoutError())
