"""Sessions joined by hand: handshake and messages however bytes are cut, heartbeats, silence, lateness, goodbye."""

from __future__ import annotations

import pytest

from dispy.errors import LocalProtocolError
from dispy.model import ProcessId, Role
from dispy.secrets import Credentials, credentials_from_key
from dispy.wire.frames import LENGTHS, encode_frames
from dispy.wire.handshake import HANDSHAKE_LIMIT, Channel, Identity
from dispy.wire.messages import AckResults, Chunk, Goodbye, Heartbeat
from dispy.wire.session import (
    Ended,
    Established,
    Intervals,
    Received,
    Recovered,
    Refused,
    Session,
    SessionEvent,
    Suspected,
)

SECRET = credentials_from_key(b"s" * 32)
INTERVALS = Intervals(heartbeat=1.0, suspect=2.5, grace=5.0, handshake=5.0)


def session(
    *, dialled: bool, credentials: Credentials = SECRET, now: float = 0.0, intervals: Intervals = INTERVALS
) -> Session:
    identity = Identity(
        ProcessId(("d" if dialled else "l") * 32),
        Role.SCHEDULER if dialled else Role.NODE,
        "lap" if dialled else "n1",
        credentials,
    )
    return Session(
        identity,
        Channel("10.0.0.2:9701" if dialled else "10.0.0.7", b"c" * 32),
        dialled=dialled,
        nonce=(b"D" if dialled else b"L") * 32,
        now=now,
        intervals=intervals,
    )


def taken(source: Session, now: float = 0.0) -> bytes:
    return b"".join(source.data_to_send(now))


def receive(target: Session, data: bytes, now: float) -> None:
    """Bytes of any number arrive."""
    rest = memoryview(data)
    while rest and not target.ended:
        room = target.get_buffer()
        count = min(len(room), len(rest))
        room[:count] = rest[:count]
        target.buffer_updated(count, now)
        rest = rest[count:]


def exchange(dialler: Session, listener: Session, *, piece: int = 1 << 20, now: float = 0.0) -> None:
    """Carry bytes in both directions, in pieces, until both are silent."""
    while (there := taken(dialler, now)) + (back := taken(listener, now)):
        for data, target in ((there, listener), (back, dialler)):
            for at in range(0, len(data), piece):
                receive(target, data[at : at + piece], now)


def pair(*, now: float = 0.0) -> tuple[Session, Session]:
    dialler, listener = session(dialled=True, now=now), session(dialled=False, now=now)
    exchange(dialler, listener, now=now)
    for one in (dialler, listener):
        (event,) = one.events_received()
        assert isinstance(event, Established)
    return dialler, listener


def kinds(events: list[SessionEvent]) -> list[type[SessionEvent]]:
    return [type(event) for event in events]


@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 20])
def test_handshake_and_messages_in_pieces(piece: int) -> None:
    dialler, listener = session(dialled=True), session(dialled=False)
    exchange(dialler, listener, piece=piece)
    assert kinds(dialler.events_received()) == kinds(listener.events_received()) == [Established]
    dialler.send(AckResults(1))
    dialler.send(Chunk(b"n", 2), [b"ab", b"c"])
    listener.send(AckResults(3))
    exchange(dialler, listener, piece=piece)
    frames = [frame for event in listener.events_received() for frame in event.frames]  # type: ignore[union-attr]
    assert frames == [(AckResults(1), b""), (Chunk(b"n", 2), b"abc")]
    assert dialler.events_received() == [Received([(AckResults(3), b"")])]


def test_who_the_other_side_is() -> None:
    dialler, listener = session(dialled=True), session(dialled=False)
    exchange(dialler, listener)
    (event,) = dialler.events_received()
    assert isinstance(event, Established)
    assert (event.peer.name, event.peer.role) == ("n1", Role.NODE)


def test_messages_right_behind_the_welcome_are_not_lost() -> None:
    dialler, listener = session(dialled=True), session(dialled=False)
    receive(listener, taken(dialler), 0)
    receive(dialler, taken(listener), 0)
    receive(listener, taken(dialler), 0)
    listener.send(AckResults(1))
    listener.send(Chunk(b"n", 0), [b"x" * 300_000])
    receive(dialler, taken(listener), 0)
    established, *received = dialler.events_received()
    assert isinstance(established, Established)
    frames = [(message, len(payload)) for event in received for message, payload in event.frames]  # type: ignore[union-attr]
    assert frames == [(AckResults(1), 0), (Chunk(b"n", 0), 300_000)]


def test_one_read_is_one_event() -> None:
    dialler, listener = pair()
    for number in range(100):
        dialler.send(AckResults(number))
    receive(listener, taken(dialler), 0)
    (event,) = listener.events_received()
    assert isinstance(event, Received)
    assert len(event.frames) == 100


def test_nothing_can_be_sent_before_the_handshake_is_done() -> None:
    with pytest.raises(LocalProtocolError, match="before the handshake"):
        session(dialled=True).send(Heartbeat())


def test_a_refusal_reaches_both_sides() -> None:
    dialler = session(dialled=True)
    listener = session(dialled=False, credentials=credentials_from_key(b"o" * 32))
    exchange(dialler, listener)
    (here,), (there,) = dialler.events_received(), listener.events_received()
    assert isinstance(here, Refused)
    assert isinstance(there, Refused)
    assert here.reason == there.reason == "secret"
    assert here.cause.startswith("node n1 (10.0.0.2:9701) has another secret")
    assert there.cause.startswith("a program on lap (10.0.0.7) has another secret")
    assert dialler.ended
    assert listener.ended


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n",
        LENGTHS.pack(HANDSHAKE_LIMIT, 0),
        LENGTHS.pack(10, 1),
        LENGTHS.pack(3, 0) + b"abc",
        b"\0" * 8,
        b"".join(encode_frames([(Heartbeat(), ())])),
    ],
    ids=["http", "long", "payload", "no msgpack", "zeros", "message"],
)
def test_strangers_that_talk_nonsense_are_cut_off(data: bytes) -> None:
    listener = session(dialled=False)
    receive(listener, data, 0)
    (event,) = listener.events_received()
    assert isinstance(event, Ended)
    assert event.reason == "garbage"
    assert listener.data_to_send(0) == []


def test_a_stranger_gets_four_kilobytes_in_all() -> None:
    listener = session(dialled=False)
    assert len(listener.get_buffer()) == HANDSHAKE_LIMIT
    receive(listener, LENGTHS.pack(HANDSHAKE_LIMIT - LENGTHS.size, 0) + b"x" * 4000, 0)
    assert listener.events_received() == []
    assert 0 < len(listener.get_buffer()) < 100


def test_the_handshake_has_its_time() -> None:
    listener = session(dialled=False, now=100)
    assert listener.next_deadline() == 105
    listener.handle_timeout(104)
    assert listener.events_received() == []
    receive(listener, b"\0", 104.9)
    listener.handle_timeout(105)
    assert listener.events_received() == [Ended("timeout", "the handshake was not done within 5 s")]
    assert listener.next_deadline() is None


def test_heartbeats_fill_silence_only() -> None:
    dialler, _ = pair()
    assert dialler.next_deadline() == 0.5
    dialler.handle_timeout(0.5)
    assert taken(dialler, 0.5) == b"".join(encode_frames([(Heartbeat(), ())]))
    dialler.send(AckResults(1))
    dialler.data_to_send(0.75)
    receive(dialler, b"", 0.75)
    dialler.handle_timeout(1.0)
    assert taken(dialler, 1.0) == b""
    dialler.handle_timeout(1.25)
    assert taken(dialler, 1.25) != b""


@pytest.mark.parametrize(("wanted", "due"), [(0.2, 0.2), (10.0, 0.5)])
def test_each_side_speaks_as_often_as_the_other_wants(wanted: float, due: float) -> None:
    """Whoever is patient with others must not be silent towards those who are not."""
    dialler = session(dialled=True, intervals=Intervals(wanted, 2.5 * wanted, 5 * wanted, 5.0))
    listener = session(dialled=False)
    exchange(dialler, listener)
    assert dialler.next_deadline() == listener.next_deadline() == due


def test_heartbeats_are_not_told() -> None:
    dialler, listener = pair()
    dialler.handle_timeout(1.0)
    dialler.send(AckResults(5))
    receive(listener, taken(dialler, 1.0), 1.0)
    assert listener.events_received() == [Received([(AckResults(5), b"")])]


def drive(one: Session, until: float) -> list[tuple[float, SessionEvent]]:
    """A host with an exact timer and a peer that says nothing."""
    seen: list[tuple[float, SessionEvent]] = []
    while (deadline := one.next_deadline()) is not None and deadline <= until:
        one.handle_timeout(deadline)
        one.data_to_send(deadline)
        seen += [(deadline, event) for event in one.events_received()]
    return seen


def test_silence_is_suspected_then_lost() -> None:
    dialler, _ = pair(now=10)
    assert drive(dialler, 30) == [
        (12.5, Suspected()),
        (15.0, Ended("silence", "nothing was heard for 5.0 s")),
    ]


def test_silence_lasts_as_many_times_longer_as_the_host_has_patience() -> None:
    dialler, _ = pair(now=10)
    assert not dialler.is_overdue(12.4)
    assert dialler.is_overdue(12.5)
    dialler.patience = 3.0
    assert drive(dialler, 60) == [
        (17.5, Suspected()),
        (25.0, Ended("silence", "nothing was heard for 15.0 s")),
    ]
    stranger = session(dialled=False, now=10)
    assert not stranger.is_overdue(14.9)
    assert stranger.is_overdue(15.0)
    stranger.patience = 2.0
    assert drive(stranger, 60) == [(20.0, Ended("timeout", "the handshake was not done within 10 s"))]


def test_why_a_link_is_broken_off_goes_instead_of_what_waits() -> None:
    dialler, listener = pair()
    dialler.send(AckResults(1))
    dialler.say_why("it was given up")
    receive(listener, taken(dialler), 0)
    assert listener.events_received() == [Ended("broken", "the other side broke it off: it was given up")]
    assert taken(listener) == b""


def test_nothing_follows_a_goodbye_not_even_why() -> None:
    dialler, _ = pair()
    dialler.say_goodbye("done")
    assert taken(dialler)
    dialler.say_why("it does not close")
    assert taken(dialler) == b""


def test_any_byte_is_a_sign_of_life() -> None:
    dialler, listener = pair()
    listener.send(Chunk(b"n", 0), [b"x" * 1000])
    data = taken(listener)
    assert kinds([event for _, event in drive(dialler, 2.6)]) == [Suspected]
    receive(dialler, data[:3], 2.6)
    assert dialler.events_received() == [Recovered()]
    assert kinds([event for _, event in drive(dialler, 5.0)]) == []
    receive(dialler, data[3:], 5.0)
    assert kinds(dialler.events_received()) == [Received]
    assert [at for at, event in drive(dialler, 20) if isinstance(event, Ended)] == [10.0]


def test_a_process_that_stood_still_gives_its_peer_a_fresh_interval() -> None:
    dialler, _ = pair()
    assert dialler.next_deadline() == 0.5
    dialler.handle_timeout(60.0)
    dialler.data_to_send(60.0)
    assert dialler.events_received() == []
    assert drive(dialler, 90) == [
        (62.5, Suspected()),
        (65.0, Ended("silence", "nothing was heard for 5.0 s")),
    ]


def test_standing_still_does_not_clear_a_suspicion_but_delays_the_loss() -> None:
    dialler, _ = pair()
    assert kinds([event for _, event in drive(dialler, 2.6)]) == [Suspected]
    dialler.next_deadline()
    dialler.handle_timeout(60.0)
    dialler.data_to_send(60.0)
    assert dialler.events_received() == []
    assert [at for at, _ in drive(dialler, 90)] == [62.5]


def test_a_goodbye_ends_both() -> None:
    dialler, listener = pair()
    dialler.send(AckResults(9))
    dialler.say_goodbye("closing")
    dialler.send(AckResults(10))
    dialler.say_goodbye("twice")
    assert dialler.next_deadline() is None
    dialler.handle_timeout(100)
    receive(listener, taken(dialler), 0)
    assert listener.events_received() == [Received([(AckResults(9), b"")]), Ended("goodbye", "closing")]
    listener.send(AckResults(1))
    assert listener.data_to_send(0) == []
    dialler.receive_eof()
    assert kinds(dialler.events_received()) == [Ended]


def test_a_goodbye_may_say_that_it_means_to_come_back() -> None:
    dialler, listener = pair()
    listener.say_goodbye("the scheduler ends", returns=True)
    receive(dialler, taken(listener), 0)
    assert dialler.events_received() == [Ended("goodbye", "the scheduler ends", returns=True)]


def test_what_arrives_after_the_own_goodbye_is_dropped() -> None:
    dialler, listener = pair()
    listener.send(AckResults(1))
    data = taken(listener)
    dialler.say_goodbye("closing")
    receive(dialler, data, 0)
    assert dialler.events_received() == []


def test_two_goodbyes_may_cross() -> None:
    dialler, listener = pair()
    dialler.say_goodbye("here")
    listener.say_goodbye("there")
    exchange(dialler, listener)
    assert dialler.events_received() == [Ended("goodbye", "there")]
    assert listener.events_received() == [Ended("goodbye", "here")]


def test_what_follows_a_goodbye_is_ignored() -> None:
    _, listener = pair()
    data = b"".join(encode_frames([(Goodbye("end"), ()), (AckResults(1), ())]))
    receive(listener, data + data, 0)
    listener.receive_eof()
    listener.handle_timeout(100)
    assert listener.events_received() == [Ended("goodbye", "end")]


def test_an_end_without_goodbye() -> None:
    dialler, listener = pair()
    dialler.receive_eof()
    listener.receive_eof("Connection reset by peer")
    assert dialler.events_received() == [Ended("eof", "the other side closed the connection without a goodbye")]
    assert listener.events_received() == [Ended("eof", "Connection reset by peer")]


def test_an_end_before_the_first_byte() -> None:
    dialler, listener = session(dialled=True), session(dialled=False)
    dialler.receive_eof()
    listener.receive_eof()
    closed = Ended("eof", "the other side closed during the handshake")
    assert dialler.events_received() == listener.events_received() == [closed]
    late = session(dialled=True)
    late.receive_eof("reset")
    assert late.events_received() == [Ended("eof", "the connection ended during the handshake: reset")]


def test_garbage_after_the_handshake_ends_the_session() -> None:
    dialler, _ = pair()
    receive(dialler, LENGTHS.pack(1, 0) + b"\xc1", 0)
    (event,) = dialler.events_received()
    assert isinstance(event, Ended)
    assert event.reason == "garbage"


@pytest.mark.parametrize("how", ["goodbye", "eof"])
def test_after_the_end_time_changes_nothing(how: str) -> None:
    """No heartbeat follows a goodbye, and nobody is suspected."""
    dialler, _ = pair()
    if how == "goodbye":
        dialler.say_goodbye("done")
        assert taken(dialler)
    else:
        dialler.receive_eof()
    dialler.events_received()
    dialler.handle_timeout(3.0)
    assert taken(dialler, 3.0) == b""
    assert dialler.events_received() == []
    assert dialler.next_deadline() is None


def test_a_timer_that_is_a_little_late_does_not_excuse_the_other_side() -> None:
    """Up to a quarter of the time of suspicion; beyond it this process stood still itself."""
    for late, suspected in ((0.25 * 2.5, True), (0.25 * 2.5 + 0.01, False)):
        dialler, _ = pair()
        dialler.handle_timeout(2.0)
        taken(dialler, 2.0)
        due = dialler.next_deadline()
        assert due == 2.5
        dialler.handle_timeout(due + late)
        assert (Suspected() in dialler.events_received()) == suspected, late


@pytest.mark.parametrize("how", ["goodbye", "eof"])
def test_nothing_is_sent_after_the_end(how: str) -> None:
    dialler, _ = pair()
    if how == "goodbye":
        dialler.say_goodbye("done")
        assert taken(dialler)
    else:
        dialler.receive_eof()
    dialler.send(AckResults(1))
    dialler.say_goodbye("again")
    assert taken(dialler) == b""


def test_no_goodbye_is_said_to_a_stranger() -> None:
    dialler = session(dialled=True)
    taken(dialler)
    dialler.say_goodbye("done")
    assert taken(dialler) == b""


def test_a_heartbeat_that_asks_for_nothing_changes_no_interval() -> None:
    dialler, listener = pair()
    before = dialler.next_deadline()
    listener.send(Heartbeat())
    exchange(dialler, listener)
    assert dialler.next_deadline() == before


def test_an_end_in_the_middle_of_the_handshake_is_not_laid_to_certificates() -> None:
    dialler, listener = session(dialled=True), session(dialled=False)
    receive(listener, taken(dialler), 0)
    receive(dialler, taken(listener), 0)
    dialler.receive_eof()
    assert dialler.events_received() == [Ended("eof", "the other side closed during the handshake")]
