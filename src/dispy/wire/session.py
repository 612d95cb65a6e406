"""One authenticated connection as a value: handshake, then messages, heartbeats, suspicion, loss, goodbye. Pure.

The host (`dispy.wire.connection`) feeds bytes and time (monotonic seconds) in, and takes events and bytes out.
Any byte received is a sign of life. A side that leaves says goodbye and waits until the other side has closed, so
that nothing of what it sent before is lost to a reset. Once the session has ended it ignores everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from dispy.errors import LocalProtocolError, RemoteProtocolError
from dispy.settings import GRACE_TIMEOUT, HANDSHAKE_TIMEOUT, HEARTBEAT_INTERVAL, SUSPECT_TIMEOUT
from dispy.wire.frames import LENGTHS, Buffer, Frame, FrameDecoder, encode_frames
from dispy.wire.handshake import (
    HANDSHAKE_LIMIT,
    Channel,
    Handshake,
    HandshakeRejected,
    Identity,
    ProvenPeer,
)
from dispy.wire.messages import AnyMessage, BrokenOff, Goodbye, Heartbeat

LATE_FRACTION: Final = 0.25
"""A timer that fires later than this part of the suspect timeout says that this process stood still."""

LEAST_HEARTBEAT: Final = 0.02
"""Seconds; a peer cannot ask for heartbeats more often."""


class Intervals(Struct, frozen=True):
    """How long silence may last, in seconds. Heartbeats are sent at `heartbeat` or the default, or as often as the
    other side asks for, whichever is the shortest: what one side tolerates does not make it silent to the other.
    """

    heartbeat: float = HEARTBEAT_INTERVAL
    suspect: float = SUSPECT_TIMEOUT
    grace: float = GRACE_TIMEOUT
    handshake: float = HANDSHAKE_TIMEOUT


class Established(Struct, frozen=True):
    """Both sides have proved themselves; messages may be sent."""

    peer: ProvenPeer


class Received(Struct, frozen=True):
    """Messages of the other side, in order, each with its payload."""

    frames: list[Frame]


class Suspected(Struct, frozen=True):
    """Nothing has been heard for the suspect timeout."""


class Recovered(Struct, frozen=True):
    """A suspected peer was heard again."""


class Refused(Struct, frozen=True):
    """The handshake ended with a refusal; trying again cannot help. Send what is there, then close."""

    reason: str
    """One of `handshake.Refusal`, or what another version calls it."""
    cause: str


class Ended(Struct, frozen=True):
    """The session is over (before or after it was established)."""

    reason: str
    """One word for counting: `goodbye`, `eof`, `broken`, `silence`, `timeout`, `garbage`."""
    cause: str
    returns: bool = False
    """It was a goodbye of one that means to come back."""


SessionEvent = Established | Received | Suspected | Recovered | Refused | Ended


class Session:
    """One side of one connection.

    What is received is put into `get_buffer()`, without a copy; then `buffer_updated` is told.
    After each call of any method look at `events_received()` and write what `data_to_send()` gives.
    """

    def __init__(
        self,
        identity: Identity,
        channel: Channel,
        *,
        dialled: bool,
        nonce: bytes,
        now: float,
        intervals: Intervals | None = None,
    ) -> None:
        self.established = False
        self.ended = False
        self._leaving = False
        self._intervals = Intervals() if intervals is None else intervals
        self._handshake = Handshake(identity, channel, dialled, nonce)
        self._handshake.start()
        self._unread = bytearray(HANDSHAKE_LIMIT)
        self._unread_end = 0
        self._handshake_bytes = 0
        self._decoder: FrameDecoder | None = None
        self.outgoing: list[tuple[AnyMessage, Sequence[Buffer]]] = []
        """What `data_to_send` will encode."""
        self.patience = 1.0
        """How many times longer than usual the other side may be silent; the host knows what is good."""
        self.is_greeting = True
        """Whether the handshake may have something to say."""
        self._events: list[SessionEvent] = []
        self._started_at = self._heard_at = self._sent_at = now
        self._every = min(self._intervals.heartbeat, HEARTBEAT_INTERVAL)
        self._suspected = False
        self._asked: float | None = None

    # What the host does for the user.

    def send(self, message: AnyMessage, payload: Sequence[Buffer] = ()) -> None:
        """Queue a message; it is encoded by `data_to_send`. After the end it goes nowhere.

        Raises:
            LocalProtocolError: the handshake is not done.
        """
        if not self.established:
            raise LocalProtocolError(f"{type(message).__name__} cannot be sent before the handshake is done")
        if not self.ended and not self._leaving:
            self.outgoing.append((message, payload))

    def say_goodbye(self, reason: str, *, returns: bool = False) -> None:
        """Queue a goodbye, the last message. From now on nothing arrives but the end: `Ended`."""
        if self.established and not self.ended and not self._leaving:
            self.outgoing.append((Goodbye(reason, returns), ()))
            self._leaving = True

    def say_why(self, cause: str) -> None:
        """Queue why the connection is about to be broken off, instead of all that waits to be encoded."""
        if self.established and not self._leaving:
            self.outgoing = [(BrokenOff(cause), ())]
            self._leaving = True

    def data_to_send(self, now: float) -> list[memoryview]:
        """What to write now; the parts of payloads that are large are not copied."""
        buffers = []
        if self.is_greeting:
            self.is_greeting = not self.established
            buffers = [memoryview(data) for data in self._handshake.data_to_send()]
        if self.outgoing:
            queue, self.outgoing = self.outgoing, []
            buffers += encode_frames(queue)
        if buffers:
            self._sent_at = now
        return buffers

    def events_received(self) -> list[SessionEvent]:
        """What has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    # What arrives.

    def get_buffer(self) -> memoryview:
        """Memory to receive into; never empty. Before authentication there is only little of it."""
        if self._decoder is not None:
            return self._decoder.get_buffer()
        return memoryview(self._unread)[self._unread_end :]

    def buffer_updated(self, count: int, now: float) -> None:
        """`count` bytes were received into `get_buffer()`."""
        if self.ended:
            return
        self._heard(now)
        try:
            if self._decoder is not None:
                self._deliver(self._decoder.advance(count))
            else:
                self._read_handshake(self._unread_end + count)
        except RemoteProtocolError as error:
            self._end("garbage", str(error))

    def receive_eof(self, cause: str = "") -> None:
        """The connection ended; `cause` says why if it was no orderly end."""
        if self.established:
            self._end("eof", cause or "the other side closed the connection without a goodbye")
        elif cause:
            self._end("eof", f"the connection ended during the handshake: {cause}")
        else:
            self._end("eof", "the other side closed during the handshake")

    # Time.

    def next_deadline(self) -> float | None:
        """When to call `handle_timeout`. Ask after each event; nothing happens if the host is early."""
        self._asked = self._deadline()
        return self._asked

    def is_overdue(self, now: float) -> bool:
        """Whether the usual patience with the other side is at its end: ask for `patience` before `handle_timeout`."""
        if not self.established:
            return now >= self._started_at + self._intervals.handshake
        return self.silent_for(now) >= self._intervals.suspect

    def handle_timeout(self, now: float) -> None:
        """The time that `next_deadline` gave last has come (or passed long ago: then this process stood still)."""
        if self.ended or self._leaving:
            return
        intervals = self._intervals
        if not self.established:
            most = intervals.handshake * self.patience
            if now >= self._started_at + most:
                self._end("timeout", f"the handshake was not done within {most:g} s")
            return
        late = now - self._asked if self._asked is not None else 0.0
        suspect = intervals.suspect * self.patience
        if late > LATE_FRACTION * intervals.suspect:
            self._heard_at = max(self._heard_at, now - (suspect if self._suspected else 0.0))
        silence = self.silent_for(now)
        if silence >= intervals.grace * self.patience:
            self._end("silence", f"nothing was heard for {silence:.1f} s")
            return
        if silence >= suspect and not self._suspected:
            self._suspected = True
            self._events.append(Suspected())
        if now - self._sent_at >= self._every:
            self.outgoing.append((Heartbeat(), ()))

    def silent_for(self, now: float) -> float:
        """Seconds since the last byte of the other side."""
        return now - self._heard_at

    def _deadline(self) -> float | None:
        intervals = self._intervals
        if self.ended or self._leaving:
            return None
        if not self.established:
            return self._started_at + intervals.handshake * self.patience
        silence = intervals.grace if self._suspected else min(intervals.suspect, intervals.grace)
        return min(self._sent_at + self._every, self._heard_at + silence * self.patience)

    # Inside.

    def _heard(self, now: float) -> None:
        self._heard_at = now
        if self._suspected:
            self._suspected = False
            self._events.append(Recovered())

    def _deliver(self, frames: list[Frame]) -> None:
        wanted: list[Frame] = []
        last: Goodbye | BrokenOff | None = None
        for frame in frames:
            message = frame[0]
            if type(message) is Heartbeat:
                if message.every > 0:
                    self._every = min(self._every, max(message.every, LEAST_HEARTBEAT))
                continue
            if isinstance(message, Goodbye | BrokenOff):
                last = message
                break
            wanted.append(frame)
        if wanted and not self._leaving:
            self._events.append(Received(wanted))
        if isinstance(last, Goodbye):
            self._end("goodbye", last.reason, returns=last.returns)
        elif last is not None:
            self._end("broken", f"the other side broke it off: {last.cause}")

    def _read_handshake(self, end: int) -> None:
        at = 0
        unread = self._unread
        while end - at >= LENGTHS.size and not self.established:
            header_size, payload_size = LENGTHS.unpack_from(unread, at)
            if payload_size or self._handshake_bytes + LENGTHS.size + header_size > HANDSHAKE_LIMIT:
                raise RemoteProtocolError(
                    f"it sent something else than a handshake of dispy, or more than {HANDSHAKE_LIMIT} bytes of it"
                )
            frame_end = at + LENGTHS.size + header_size
            if frame_end > end:
                break
            self._handshake_bytes += frame_end - at
            header = bytes(unread[at + LENGTHS.size : frame_end])
            at = frame_end
            try:
                self._handshake.receive(header)
            except HandshakeRejected as rejected:
                self.ended = True
                self._events.append(Refused(rejected.reason, str(rejected)))
                return
            if self._handshake.peer is not None:
                self.established = True
                self._events.append(Established(self._handshake.peer))
                if self._intervals.heartbeat < HEARTBEAT_INTERVAL:
                    self.outgoing.append((Heartbeat(self._intervals.heartbeat), ()))
        rest = bytes(unread[at:end])
        if self.established:
            self._decoder = FrameDecoder()
            self._deliver(self._decoder.feed(rest))
        else:
            unread[: len(rest)] = rest
            self._unread_end = len(rest)

    def _end(self, reason: str, cause: str, *, returns: bool = False) -> None:
        if not self.ended:
            self.ended = True
            self._events.append(Ended(reason, cause, returns))
