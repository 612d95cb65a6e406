"""Frames: two lengths, a msgpack header (one message), a raw payload. Bytes in, messages out, and back; pure.

Copies are what costs: small frames are parsed where they arrived and their payload is copied once; a large frame
gets memory of its own and the rest of it is received straight into it. Lengths are bounded before memory is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from dispy.errors import LocalProtocolError, RemoteProtocolError
from dispy.wire.messages import AnyMessage
from dispy.wire.slabs import slabs, untouched

Buffer = bytes | bytearray | memoryview
Frame = tuple[AnyMessage, bytes | memoryview]
"""A message with its payload; the payload belongs to the receiver."""

LENGTHS: Final = struct.Struct("!II")
"""Bytes of the header, bytes of the payload."""

HEADER_LIMIT: Final = 8 << 20
"""A batch of some thousand jobs has a header of some hundred KiB; the list of held attempts can be longer."""
PAYLOAD_LIMIT: Final = 64 << 20
"""A batch carries inline arguments (64 KiB each at most); everything larger travels in chunks."""

RECEIVE_SIZE: Final = 256 << 10
"""As much as asyncio's TLS layer hands over at once."""
OWN_MEMORY_SIZE: Final = 32 << 10
"""An incomplete frame of this size gets memory of its own: one copy less than moving it to the front."""
JOIN_SIZE: Final = 32 << 10
"""Parts up to this size are joined for one write; copying larger ones costs more than another TLS record."""
MANY_PARTS: Final = 8
"""The arguments of a batch of jobs: joining them at once is much cheaper than one by one."""

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[AnyMessage]] = msgspec.msgpack.Decoder(AnyMessage)


def encode_frames(frames: Iterable[tuple[AnyMessage, Sequence[Buffer]]]) -> list[memoryview]:
    """Encode messages with the parts of their payloads, in order, into few buffers.

    Small parts are joined; large ones are passed through without a copy, so they must not change until they
    are written. Buffers are views because asyncio slices what it could not write yet.

    Raises:
        LocalProtocolError: a header or payload is longer than the other side would accept, or a message holds what
            cannot be sent, as text that is not Unicode.
    """
    buffers: list[memoryview] = []
    joined = bytearray()
    for message, payload in frames:
        at = len(joined)
        joined += b"\0\0\0\0\0\0\0\0"
        try:
            _encoder.encode_into(message, joined, -1)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise LocalProtocolError(f"{type(message).__name__} cannot be encoded: {error}") from error
        header_size = len(joined) - at - LENGTHS.size
        if len(payload) > MANY_PARTS and max(map(len, payload)) <= JOIN_SIZE:
            payload = (b"".join(payload),)
        payload_size = 0
        for part in payload:
            payload_size += len(part) if type(part) is bytes else memoryview(part).nbytes
        if header_size > HEADER_LIMIT or payload_size > PAYLOAD_LIMIT:
            raise LocalProtocolError(
                f"{type(message).__name__} with {header_size} bytes of header and {payload_size} of payload "
                f"is too long for one frame (limits: {HEADER_LIMIT} and {PAYLOAD_LIMIT})"
            )
        LENGTHS.pack_into(joined, at, header_size, payload_size)
        for part in payload:
            view = part if type(part) is bytes else memoryview(part).cast("B")
            if len(view) <= JOIN_SIZE:
                joined += view
            else:
                buffers.append(memoryview(joined))
                buffers.append(memoryview(view))
                joined = bytearray()
    if joined:
        buffers.append(memoryview(joined))
    return buffers


class FrameDecoder:
    """Turns received pieces of any size into frames.

    Either `feed(data)`, or without a copy: receive into `get_buffer()`, then call `advance(count)`.
    """

    __slots__ = ("_end", "_large", "_large_end", "_view")

    def __init__(self) -> None:
        self._view = untouched(RECEIVE_SIZE)
        self._end = 0
        # An incomplete frame with memory of its own (lengths included), and how much of it is here.
        self._large: memoryview | None = None
        self._large_end = 0

    def get_buffer(self) -> memoryview:
        """Memory to receive into; never empty."""
        if self._large is not None:
            return self._large[self._large_end :]
        return self._view[self._end :]

    def advance(self, count: int) -> list[Frame]:
        """Parse after `count` bytes were received into `get_buffer()`.

        Raises:
            RemoteProtocolError: a length is over its limit, or a header is no message of ours.
        """
        if self._large is None:
            return self._parse(self._end + count)
        self._large_end += count
        large = self._large
        if self._large_end < len(large):
            return []
        self._large = None
        header_size, payload_size = LENGTHS.unpack_from(large)
        header_end = LENGTHS.size + header_size
        message = _decode(large[LENGTHS.size : header_end])
        return [(message, large[header_end:] if payload_size else b"")]

    def feed(self, data: Buffer) -> list[Frame]:
        """Parse after `data` was received. Raises like `advance`."""
        frames: list[Frame] = []
        rest = memoryview(data)
        while rest:
            room = self.get_buffer()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            frames += self.advance(count)
            rest = rest[count:]
        return frames

    def _parse(self, end: int) -> list[Frame]:
        frames: list[Frame] = []
        view = self._view
        at = 0
        while end - at >= LENGTHS.size:
            header_size, payload_size = LENGTHS.unpack_from(view, at)
            if header_size > HEADER_LIMIT or payload_size > PAYLOAD_LIMIT:
                raise RemoteProtocolError(
                    f"the other side announced a frame with a header of {header_size} and a payload of "
                    f"{payload_size} bytes (limits: {HEADER_LIMIT} and {PAYLOAD_LIMIT})"
                )
            header_at = at + LENGTHS.size
            payload_at = header_at + header_size
            frame_end = payload_at + payload_size
            if frame_end > end:
                if frame_end - at >= OWN_MEMORY_SIZE:
                    self._large = slabs.take(frame_end - at)
                    self._large_end = end - at
                    self._large[: end - at] = view[at:end]
                    self._end = 0
                    return frames
                break
            message = _decode(view[header_at:payload_at])
            frames.append((message, bytes(view[payload_at:frame_end]) if payload_size else b""))
            at = frame_end
        if at:
            # Through bytes: the two ranges may overlap.
            view[: end - at] = bytes(view[at:end])
        self._end = end - at
        return frames


def _decode(header: memoryview) -> AnyMessage:
    try:
        return _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"the other side sent a header that is no message: {error}") from error
