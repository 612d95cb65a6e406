"""Results as they come over the link to one node: large bodies are fetched before the core hears of them, what one job
says stays in its order, and a batch is acknowledged when all of it is here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Final

import msgspec

from dispy.errors import TransferError
from dispy.logs import logger
from dispy.model import Ending, JobDone, ProcessId
from dispy.scheduler.events import Event, NodeSaid
from dispy.scheduler.room import Room
from dispy.wire.blobs import BlobExchange
from dispy.wire.frames import Buffer
from dispy.wire.link import Link
from dispy.wire.messages import AckResults, AnyMessage, JobsDone, RunJobs

ACKNOWLEDGE_AFTER: Final = 0.02
"""Seconds that an acknowledgement waits for a message with which it can travel."""

_Outgoing = tuple[AnyMessage, Sequence[Buffer]]
_Late = tuple[int, JobDone, bytes | memoryview]
"""Sequence number of the batch, what ended, and its body unless that is a blob."""


class ResultIntake:
    """Takes the `JobsDone` of one node."""

    def __init__(
        self,
        node: ProcessId,
        exchange: BlobExchange,
        on_event: Callable[[Event], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
        later: Callable[[float, Callable[[], None]], object],
        after: Callable[[Callable[[], object]], None] | None = None,
        room: Room | None = None,
    ) -> None:
        """`after` lets acknowledgements wait until what came is safe (see `Hosting`); `room` bounds what is fetched and
        is not safe yet."""
        self.link: Link | None = None
        self._node = node
        self._exchange = exchange
        self._on_event = on_event
        self._spawn = spawn
        self._later = later
        self._after = after
        self._room = room
        self._pending: Counter[int] = Counter()
        """How many results of a batch are still on their way."""
        self._line: deque[_Late] = deque()
        """Large interim results on their way, and whatever their jobs said after them."""
        self._in_line: Counter[int] = Counter()
        self._highest = 0
        self._acknowledged = 0
        self._told = 0
        """Up to where the node has been told that everything is here."""
        self._is_waiting = False
        self._closed = False

    def arrived(self, message: JobsDone, payload: bytes | memoryview) -> None:
        """Take a batch; one that was taken before is only acknowledged again."""
        number = message.sequence
        if number <= self._acknowledged:
            # it was told on a link that has ended, or on this one before the node knew whose it is
            self._told = min(self._told, number - 1)
            return
        if number in self._pending:
            return
        view = memoryview(payload)
        jobs: list[JobDone] = []
        bodies: list[bytes | memoryview] = []
        late: list[_Late] = []
        in_line, at = self._in_line, 0
        for done in message.jobs:
            if done.blob is not None:
                if done.ending == Ending.PROVISIONAL or done.job in in_line:
                    self._stand_in_line((number, done, b""))
                else:
                    late.append((number, done, b""))
                continue
            end = at + done.result_size + done.stdout_size + done.stderr_size + done.error_size
            if done.job in in_line:
                self._stand_in_line((number, done, bytes(view[at:end])))
            else:
                jobs.append(done)
                bodies.append(bytes(view[at:end]))
            at = end
        self._highest = max(self._highest, number)
        if late:
            self._pending[number] += len(late)
            self._spawn(self._take_late(late))
        if len(jobs) != len(message.jobs):
            message = JobsDone(number, jobs)
        if jobs:
            self._on_event(NodeSaid(self._node, message, bodies))

    def acknowledge(self) -> None:
        """Note up to where everything is here. The node hears of it with the next message to it, or soon."""
        safe = min(self._pending) - 1 if self._pending else self._highest
        if self._after is None:
            self._acknowledge_up_to(safe)
        else:
            self._after(lambda: self._acknowledge_up_to(safe))

    def _acknowledge_up_to(self, safe: int) -> None:
        self._acknowledged = max(safe, self._acknowledged)
        if self._told < self._acknowledged and not self._is_waiting:
            self._is_waiting = True
            self._later(ACKNOWLEDGE_AFTER, self._waited)

    def acknowledging(self, messages: Sequence[_Outgoing]) -> Sequence[_Outgoing]:
        """The messages that go to the node now, and with them up to where everything is here if it has not been told.

        With `RunJobs` that costs nothing; another message would be one more to write, read and decide on.
        """
        number = self._acknowledged
        if self._told == number:
            return messages
        self._told = number
        if messages and type(first := messages[0][0]) is RunJobs:
            return [(RunJobs(first.computation, first.jobs, number), messages[0][1]), *messages[1:]]
        return [(AckResults(number), ()), *messages]

    def tell(self) -> None:
        """Tell the node now what it has not been told."""
        if self.link is not None:
            self.link.send_now(self.acknowledging([]))

    def _waited(self) -> None:
        self._is_waiting = False
        self.tell()

    def close(self) -> None:
        """The node is given up: what is still on its way is not told any more."""
        self._closed = True

    def _stand_in_line(self, item: _Late) -> None:
        self._pending[item[0]] += 1
        self._in_line[item[1].job] += 1
        self._line.append(item)
        if len(self._line) == 1:
            self._spawn(self._walk_line())

    async def _walk_line(self) -> None:
        while self._line:
            number, done, body = self._line[0]
            await self._take_one(number, done, body)
            self._line.popleft()
            self._in_line[done.job] -= 1
            if not self._in_line[done.job]:
                del self._in_line[done.job]

    async def _take_late(self, late: list[_Late]) -> None:
        for number, done, body in late:
            await self._take_one(number, done, body)

    def _is_wanted(self) -> bool:
        return not self._closed

    async def _take_one(self, number: int, said: JobDone, body: bytes | memoryview) -> None:
        if self._room is None or self._after is None or said.blob is None:
            await self._fetch_one(number, said, body)
            return
        size, room = said.blob.size, self._room
        await room.take(size)
        try:
            await self._fetch_one(number, said, body)
        finally:
            self._after(lambda: room.give(size))

    async def _fetch_one(self, number: int, said: JobDone, body: bytes | memoryview) -> None:
        done: JobDone | None = said
        if self._is_wanted() and said.blob is not None:
            try:
                body = await self._exchange.fetch_memory(said.blob)
            except TransferError as error:
                if not self._is_wanted():
                    return  # the loss of the node has already decided about its jobs
                done, body = _without_body(said, error)
        if not self._is_wanted():
            return
        if done is not None:
            self._on_event(NodeSaid(self._node, JobsDone(number, [done]), [body]))
        self._pending[number] -= 1
        if not self._pending[number]:
            del self._pending[number]
            self.acknowledge()


def _without_body(done: JobDone, error: TransferError) -> tuple[JobDone | None, bytes]:
    """What is told instead of a result that cannot be fetched; of an interim one nothing."""
    if done.ending == Ending.PROVISIONAL:
        logger.warning("an interim result could not be fetched from the node: %s", error)
        return None, b""
    text = f"the result could not be fetched from the node: {error}".encode()
    sizes = {"result_size": 0, "stdout_size": 0, "stderr_size": 0, "error_size": len(text)}
    return msgspec.structs.replace(done, ending=int(Ending.DIED), **sizes), text
