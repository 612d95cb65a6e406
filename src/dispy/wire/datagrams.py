"""The datagrams of discovery: encode, decode, authenticate, and limit how often something is answered.

A datagram is a header (magic, protocol number, kind, nonce, HMAC) and a msgpack array. Header and refusal
stay as they are in every protocol, so that processes of different protocols can still refuse each other.
Knows nothing of sockets, clocks and random numbers; see `dispy.wire.discovery`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Hashable
from enum import IntEnum, StrEnum
from typing import Annotated, Final, NoReturn

import msgspec
from msgspec import Struct

from dispy.errors import RemoteProtocolError
from dispy.model import ProcessId
from dispy.wire.messages import PROTOCOL

QUESTION_SIZE: Final = 512
"""A question is padded to this size, so that no reply to a forged sender is larger than what was sent."""
DATAGRAM_LIMIT: Final = 1024
NAME_LIMIT: Final = 64
NONCE_SIZE: Final = 16
RATE_TABLE_LIMIT: Final = 4096

Places = tuple[tuple[str, int], ...]
"""Hosts and ports."""

_MAGIC: Final = b"dispy"
_HEADER: Final = struct.Struct(">5sBB16s32s")
_UNSIGNED_HEADER_SIZE: Final = _HEADER.size - 32
_PLACES_SIZE: Final = 320
"""Bytes for further places in an answer or announcement: the rest of it is always below 192."""
_HOST_LIMIT: Final = 253


class DatagramError(RemoteProtocolError):
    """A datagram that is not ours, is damaged, or has a wrong HMAC: to be counted and forgotten."""


class Kind(IntEnum):
    """What a datagram is."""

    QUESTION = 1
    ANSWER = 2
    ANNOUNCEMENT = 3
    REFUSAL = 4


class Reason(StrEnum):
    """What keeps two processes apart."""

    SECRET = "secret"
    GROUP = "group"
    PROTOCOL = "protocol"


class DiscoveryIdentity(Struct, frozen=True):
    """What a process proves and asks for in discovery."""

    key: bytes
    """Key of the HMAC."""
    key_id: bytes
    group_hash: bytes

    @classmethod
    def of(cls, key: bytes, key_id: bytes, group: str) -> DiscoveryIdentity:
        """The identity for a discovery key, its id, and a group by name."""
        return cls(key, key_id, hashlib.sha256(b"dispy group " + group.encode()).digest()[:8])


class Question(Struct, frozen=True):
    """Which nodes are there?"""

    nonce: bytes
    name: str


class Answer(Struct, frozen=True):
    """I am here; to the question with this nonce."""

    nonce: bytes
    process: ProcessId
    name: str
    port: int
    others: Places = ()
    """Further hosts and ports where I can be reached."""


class Announcement(Struct, frozen=True):
    """I am here now. It may be old or repeated by others: all that it may cause is a dial."""

    process: ProcessId
    name: str
    port: int
    others: Places = ()


class RefusedDiscovery(Struct, frozen=True):
    """I am here but not for you. Anybody can have sent it: good for text only."""

    nonce: bytes
    reason: str
    name: str


class Stranger(Struct, frozen=True):
    """A well-formed question or announcement of a process with another secret, group or protocol."""

    kind: Kind
    nonce: bytes
    reason: Reason
    name: str


Datagram = Question | Answer | Announcement | RefusedDiscovery | Stranger

_Id = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
_Process = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class _QuestionBody(msgspec.Struct, array_like=True, frozen=True):
    key_id: _Id
    group_hash: _Id
    name: str
    padding: bytes = b""


class _AnswerBody(msgspec.Struct, array_like=True, frozen=True):
    process: _Process
    name: str
    port: _Port
    others: tuple[tuple[str, _Port], ...] = ()


class _AnnouncementBody(msgspec.Struct, array_like=True, frozen=True):
    key_id: _Id
    group_hash: _Id
    name: str
    process: _Process
    port: _Port
    others: tuple[tuple[str, _Port], ...] = ()


class _RefusalBody(msgspec.Struct, array_like=True, frozen=True):
    reason: str
    name: str


def encode_question(identity: DiscoveryIdentity, nonce: bytes, name: str) -> bytes:
    """A question of exactly `QUESTION_SIZE` bytes."""
    text = _short(name)
    bare = _QuestionBody(identity.key_id, identity.group_hash, text)
    room = QUESTION_SIZE - _HEADER.size - len(msgspec.msgpack.encode(bare))
    # Names are short, so the padding is always over 255 bytes: msgpack needs one byte more for its length.
    padding = bytes(room - 1)
    return _sealed(Kind.QUESTION, identity.key, nonce, msgspec.structs.replace(bare, padding=padding))


def encode_answer(
    identity: DiscoveryIdentity, nonce: bytes, process: ProcessId, name: str, port: int, others: Places = ()
) -> bytes:
    """The answer to the question with this nonce; `port` is the TCP port to dial, of `others` go as many as fit."""
    body = _AnswerBody(bytes.fromhex(process), _short(name), port, _with_room(others))
    return _sealed(Kind.ANSWER, identity.key, nonce, body)


def encode_announcement(
    identity: DiscoveryIdentity, nonce: bytes, process: ProcessId, name: str, port: int, others: Places = ()
) -> bytes:
    """An announcement; `port` is the TCP port to dial, of `others` go as many as fit."""
    body = _AnnouncementBody(
        identity.key_id, identity.group_hash, _short(name), bytes.fromhex(process), port, _with_room(others)
    )
    return _sealed(Kind.ANNOUNCEMENT, identity.key, nonce, body)


def encode_refusal(nonce: bytes, reason: Reason, name: str) -> bytes:
    """A refusal of the question with this nonce; not authenticated, because there is no common key."""
    body = msgspec.msgpack.encode(_RefusalBody(reason, _short(name)))
    return _HEADER.pack(_MAGIC, PROTOCOL, Kind.REFUSAL, nonce, bytes(32)) + body


def decode(data: bytes, identity: DiscoveryIdentity) -> Datagram:
    """What a datagram says. Names in it are cut and free of control characters, fit for a terminal.

    Raises:
        DatagramError: it is none of dispy, damaged, too long, or claims our secret with a wrong HMAC.
    """
    if not _HEADER.size < len(data) <= DATAGRAM_LIMIT:
        _refuse("its length is wrong")
    magic, protocol, number, nonce, mac = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        _refuse("it is not of dispy")
    try:
        kind = Kind(number)
        if kind is Kind.QUESTION and len(data) < QUESTION_SIZE:
            _refuse("a question must be padded")
        if kind is Kind.REFUSAL:
            refusal = msgspec.msgpack.decode(data[_HEADER.size :], type=_RefusalBody)
            return RefusedDiscovery(nonce, clean_name(refusal.reason, 16), clean_name(refusal.name))
        if protocol != PROTOCOL:
            if kind is Kind.ANSWER:
                _refuse("an answer in another protocol")
            return Stranger(kind, nonce, Reason.PROTOCOL, "")
        return _decode_body(kind, nonce, mac, data, identity)
    except (ValueError, msgspec.DecodeError) as error:
        raise DatagramError(f"a datagram was ignored: {error}") from error


def clean_name(text: str, limit: int = NAME_LIMIT) -> str:
    """A text from elsewhere as it may be shown: printable characters only, at most `limit`."""
    return "".join(character if character.isprintable() else "?" for character in text[:limit])


class RateLimit:
    """Lets something happen once per key and interval; forgets old keys, and refuses new ones when full."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last: dict[Hashable, float] = {}

    def allows(self, key: Hashable, now: float) -> bool:
        """Whether it may happen for `key` now; counts as happened when it may."""
        last = self._last.get(key)
        if last is not None and now - last < self._interval:
            return False
        if len(self._last) >= RATE_TABLE_LIMIT:
            self._last = {key: at for key, at in self._last.items() if now - at < self._interval}
            if len(self._last) >= RATE_TABLE_LIMIT:
                return False
        self._last[key] = now
        return True


def _decode_body(kind: Kind, nonce: bytes, mac: bytes, data: bytes, identity: DiscoveryIdentity) -> Datagram:
    content = data[_HEADER.size :]
    genuine = hmac.compare_digest(mac, _mac(identity.key, data[:_UNSIGNED_HEADER_SIZE], content))
    if kind is Kind.ANSWER:
        if not genuine:
            _refuse("the HMAC of an answer is wrong")
        answer = msgspec.msgpack.decode(content, type=_AnswerBody)
        return Answer(
            nonce, ProcessId(answer.process.hex()), clean_name(answer.name), answer.port, _clean_places(answer.others)
        )
    body: _QuestionBody | _AnnouncementBody
    if kind is Kind.QUESTION:
        body = msgspec.msgpack.decode(content, type=_QuestionBody)
    else:
        body = msgspec.msgpack.decode(content, type=_AnnouncementBody)
    name = clean_name(body.name)
    if body.key_id != identity.key_id:
        return Stranger(kind, nonce, Reason.SECRET, name)
    if not genuine:
        _refuse("its HMAC is wrong")
    if body.group_hash != identity.group_hash:
        return Stranger(kind, nonce, Reason.GROUP, name)
    if isinstance(body, _AnnouncementBody):
        return Announcement(ProcessId(body.process.hex()), name, body.port, _clean_places(body.others))
    return Question(nonce, name)


def _with_room(places: Places) -> Places:
    """The first of them that fit beside the rest into an answer, which is never longer than a question."""
    chosen: Places = ()
    for place in places:
        if len(msgspec.msgpack.encode((*chosen, place))) <= _PLACES_SIZE:
            chosen = (*chosen, place)
    return chosen


def _clean_places(places: Places) -> Places:
    return tuple((clean_name(host, _HOST_LIMIT), port) for host, port in places)


def _refuse(why: str) -> NoReturn:
    raise DatagramError(f"a datagram was ignored: {why}")


def _sealed(kind: Kind, key: bytes, nonce: bytes, body: msgspec.Struct) -> bytes:
    content = msgspec.msgpack.encode(body)
    unsigned = _HEADER.pack(_MAGIC, PROTOCOL, kind, nonce, bytes(32))[:_UNSIGNED_HEADER_SIZE]
    return unsigned + _mac(key, unsigned, content) + content


def _mac(key: bytes, unsigned: bytes, content: bytes) -> bytes:
    return hmac.digest(key, unsigned + content, "sha256")


def _short(name: str) -> str:
    return clean_name(name).encode()[:NAME_LIMIT].decode(errors="ignore")
