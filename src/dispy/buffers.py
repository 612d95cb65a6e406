"""How a pickle and its large buffers lie one behind the other, so that nothing has to be copied to read them.

Arguments and results are either a plain pickle, which begins with 0x80, or, where a value holds large buffers
(`pickle.PickleBuffer`, as numpy and others give them to protocol 5), a pickle with these behind it:

    0    8 bytes, MAGIC
    8    number of buffers, little-endian like what follows, 8 bytes
    16   size of the pickle, 8 bytes
    24   for each buffer its offset from the beginning and its size, 8 bytes each
    …    the pickle
    …    each buffer at a multiple of ALIGNMENT, zeros between them

Whether a buffer is read-only says the pickle. Large `bytes` stay within it: no object of theirs can be made of memory
that is there already, and the pickler hands them on as they are. Standard library only; nothing here opens anything.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

MAGIC: Final = b"\0dispy 5"
LARGE: Final = 64 << 10
"""Bytes from which on a buffer lies apart: a body with buffers is always one that travels as a blob."""
ALIGNMENT: Final = 64
"""As numpy and others want it for the widest instructions."""
ANY: Final = 1
"""The same where what reads a body must not write to any of its buffers: only empty ones may lie in the pickle."""

_HEADER: Final = struct.Struct("<8sQQ")
_PLACE: Final = struct.Struct("<QQ")

Readable = bytes | bytearray | memoryview


class Loads(Protocol):
    """What reads a pickle, as `pickle.loads`."""

    def __call__(self, data: Any, /, *, buffers: Sequence[Any] = ()) -> Any:
        """The value; its large buffers are those given here, in their order."""


class Apart:
    """Takes the large buffers out of one pickle: `pickle.dumps(value, 5, buffer_callback=apart)`."""

    __slots__ = ("_least", "views")

    def __init__(self, least: int = LARGE) -> None:
        """`least`: bytes from which on a buffer is large."""
        self._least = least
        self.views: list[memoryview] = []
        """Their bytes, in their order; still those of the value that is pickled."""

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether a buffer stays within the pickle."""
        view = buffer.raw()
        if view.nbytes < self._least:
            return True
        self.views.append(view)
        return False


class Pieces:
    """A file that keeps what is written as it is: pickle writes large bytes without a copy."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: list[Readable] = []

    def write(self, data: Readable) -> None:
        """Keep it."""
        self.pieces.append(data)


def dumps(value: object, pickler: Callable[..., pickle.Pickler] = pickle.Pickler, least: int = LARGE) -> list[Readable]:
    """The body of a value, in parts that refer to its large buffers: they must not change until it is written.

    `least` says how many bytes are large.

    A value without any costs more than by `pickle.dumps`.

    Raises:
        Exception: what pickling raises.
    """
    file, apart = Pieces(), Apart(least)
    pickler(file, protocol=5, buffer_callback=apart).dump(value)
    return parts(file.pieces, apart.views)


def parts(pickled: Sequence[Readable], views: Sequence[memoryview]) -> list[Readable]:
    """A body, in parts that only have to be written one after another; nothing large is copied.

    Args:
        pickled: the pickle, in one or more parts.
        views: the buffers that lie apart, as bytes; without any the body is the plain pickle.
    """
    if not views:
        return list(pickled)
    size = sum(map(len, pickled))
    end = _HEADER.size + len(views) * _PLACE.size + size
    head = bytearray(_HEADER.pack(MAGIC, len(views), size))
    tail: list[Readable] = []
    for view in views:
        at = -(-end // ALIGNMENT) * ALIGNMENT
        head += _PLACE.pack(at, view.nbytes)
        if at != end:
            tail.append(bytes(at - end))
        tail.append(view)
        end = at + view.nbytes
    return [bytes(head), *pickled, *tail]


def size(body: bytes | Sequence[Readable]) -> int:
    """Bytes of a body, in parts or not."""
    return len(body) if isinstance(body, bytes) else sum(map(len, body))


def joined(body: bytes | Sequence[Readable]) -> bytes:
    """A body, in parts or not, as one."""
    return body if isinstance(body, bytes) else b"".join(body)


def split(body: Any) -> tuple[memoryview, list[memoryview]]:
    """The pickle of a body and the buffers that lie apart: views of the body, as writable as it is.

    Args:
        body: anything whose memory can be looked at, as bytes or a mapped file.

    Raises:
        pickle.UnpicklingError: it is cut short, or was never a body.
    """
    view = pickle.PickleBuffer(body).raw()
    if bytes(view[: len(MAGIC)]) != MAGIC:
        return view, []
    total = len(view)
    if total < _HEADER.size:
        raise pickle.UnpicklingError("a body with buffers is cut short")
    _, count, size = _HEADER.unpack_from(view)
    start = _HEADER.size + count * _PLACE.size
    if start + size > total:
        raise pickle.UnpicklingError("a body with buffers is cut short")
    buffers: list[memoryview] = []
    for offset, length in _PLACE.iter_unpack(view[_HEADER.size : start]):
        if offset + length > total:
            raise pickle.UnpicklingError("a body with buffers is cut short")
        buffers.append(view[offset : offset + length])
    return view[start : start + size], buffers


def loads(body: Any, load: Loads = pickle.loads) -> Any:
    """The value of a body of either kind.

    Its large buffers stay where they are if they can be written to there: arrays are views of the body, which must not
    be used for anything else then.

    Raises:
        Exception: what unpickling raises.
    """
    if type(body) is bytes and body[:1] != MAGIC[:1]:  # a plain pickle, as nearly all are: on the path of every job
        return load(body)
    pickled, buffers = split(body)
    return load(pickled, buffers=[bytearray(each) if each.readonly else each for each in buffers])
