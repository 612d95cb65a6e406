"""Discovery datagrams by value: round trips, sizes, what is a stranger, and that no bytes whatever get through."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from dispy.model import ProcessId
from dispy.wire import datagrams
from dispy.wire.datagrams import (
    Announcement,
    Answer,
    DatagramError,
    DiscoveryIdentity,
    Kind,
    Question,
    RateLimit,
    Reason,
    RefusedDiscovery,
    Stranger,
)

OURS = DiscoveryIdentity.of(b"k" * 32, b"our-key1", "")
THEIRS = DiscoveryIdentity.of(b"x" * 32, b"theirkey", "")
GROUPED = DiscoveryIdentity.of(b"k" * 32, b"our-key1", "tests")
NONCE = bytes(range(16))
PROCESS = ProcessId("0123456789abcdef" * 2)


@hypothesis.given(name=st.text(max_size=200), port=st.integers(1, 65535))
def test_round_trips(name: str, port: int) -> None:
    question = datagrams.encode_question(OURS, NONCE, name)
    assert len(question) == datagrams.QUESTION_SIZE
    decoded = datagrams.decode(question, OURS)
    assert isinstance(decoded, Question)
    assert decoded.name.isprintable()
    shown = decoded.name
    answer = datagrams.encode_answer(OURS, NONCE, PROCESS, name, port)
    assert datagrams.decode(answer, OURS) == Answer(NONCE, PROCESS, shown, port)
    announcement = datagrams.encode_announcement(OURS, NONCE, PROCESS, name, port)
    assert datagrams.decode(announcement, OURS) == Announcement(PROCESS, shown, port)
    refusal = datagrams.encode_refusal(NONCE, Reason.SECRET, name)
    assert datagrams.decode(refusal, OURS) == RefusedDiscovery(NONCE, "secret", shown)
    assert max(len(answer), len(refusal)) <= len(question)


def test_short_names_are_kept() -> None:
    decoded = datagrams.decode(datagrams.encode_question(OURS, NONCE, "Köln-1"), OURS)
    assert decoded == Question(NONCE, "Köln-1")


@pytest.mark.parametrize(("identity", "reason"), [(THEIRS, Reason.SECRET), (GROUPED, Reason.GROUP)])
def test_strangers_are_known_by_name(identity: DiscoveryIdentity, reason: Reason) -> None:
    question = datagrams.encode_question(identity, NONCE, "laptop")
    assert datagrams.decode(question, OURS) == Stranger(Kind.QUESTION, NONCE, reason, "laptop")
    announcement = datagrams.encode_announcement(identity, NONCE, PROCESS, "node7", 9701)
    assert datagrams.decode(announcement, OURS) == Stranger(Kind.ANNOUNCEMENT, NONCE, reason, "node7")


def test_another_protocol_is_told_from_garbage() -> None:
    question = bytearray(datagrams.encode_question(OURS, NONCE, "laptop"))
    question[5] = 99
    assert datagrams.decode(bytes(question), OURS) == Stranger(Kind.QUESTION, NONCE, Reason.PROTOCOL, "")
    refusal = bytearray(datagrams.encode_refusal(NONCE, Reason.PROTOCOL, "node"))
    refusal[5] = 99
    assert datagrams.decode(bytes(refusal), OURS) == RefusedDiscovery(NONCE, "protocol", "node")


def test_forged_and_changed_datagrams_are_refused() -> None:
    forged = DiscoveryIdentity(b"guess" * 6, OURS.key_id, OURS.group_hash)
    for data in (
        datagrams.encode_question(forged, NONCE, "x"),
        datagrams.encode_announcement(forged, NONCE, PROCESS, "x", 1),
        datagrams.encode_answer(forged, NONCE, PROCESS, "x", 1),
    ):
        with pytest.raises(DatagramError):
            datagrams.decode(data, OURS)
    answer = datagrams.encode_answer(OURS, NONCE, PROCESS, "node", 9701)
    for position in range(len(answer)):
        changed = bytearray(answer)
        changed[position] ^= 1
        with pytest.raises(DatagramError):
            datagrams.decode(bytes(changed), OURS)


def test_an_answer_cannot_be_turned_into_an_announcement() -> None:
    data = bytearray(datagrams.encode_announcement(OURS, NONCE, PROCESS, "node", 9701))
    data[6] = Kind.ANSWER
    with pytest.raises(DatagramError):
        datagrams.decode(bytes(data), OURS)


def test_small_questions_are_not_answered() -> None:
    question = datagrams.encode_question(OURS, NONCE, "x")
    with pytest.raises(DatagramError):
        datagrams.decode(question[:-1], OURS)


@hypothesis.given(st.binary(max_size=1200))
def test_random_bytes_raise_only_datagram_errors(data: bytes) -> None:
    for candidate in (data, b"dispy\x01" + data, b"dispy\x01\x04" + data.ljust(48, b"\0")):
        try:
            datagrams.decode(candidate, OURS)
        except DatagramError:
            continue


@hypothesis.given(st.data())
def test_damaged_datagrams_raise_only_datagram_errors(data: st.DataObject) -> None:
    original = data.draw(
        st.sampled_from(
            [
                datagrams.encode_question(THEIRS, NONCE, "x"),
                datagrams.encode_announcement(THEIRS, NONCE, PROCESS, "x", 1),
                datagrams.encode_refusal(NONCE, Reason.GROUP, "x"),
            ]
        )
    )
    position = data.draw(st.integers(55, len(original) - 1))
    damaged = original[:position] + data.draw(st.binary(min_size=1, max_size=40)) + original[position + 1 :]
    try:
        datagrams.decode(damaged, OURS)
    except DatagramError:
        return


def test_names_are_fit_for_a_terminal() -> None:
    assert datagrams.clean_name("a\x1b[2J\n\u202eb") == "a?[2J??b"
    assert len(datagrams.clean_name("x" * 1000)) == datagrams.NAME_LIMIT


def test_rate_limit() -> None:
    limit = RateLimit(1.0)
    assert [limit.allows("a", at) for at in (0.0, 0.5, 1.0, 1.5)] == [True, False, True, False]
    assert limit.allows("b", 1.5)


def test_rate_limit_is_bounded_and_recovers() -> None:
    limit = RateLimit(1.0)
    assert all(limit.allows(key, 0.0) for key in range(datagrams.RATE_TABLE_LIMIT))
    assert not limit.allows("one more", 0.5)
    assert limit.allows("one more", 1.0)
