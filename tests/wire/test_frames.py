"""Frames: whatever way bytes are cut, the same messages come out; what is too long or no message is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.errors import LocalProtocolError, RemoteProtocolError
from dispy.model import BlobRef, ComputationId, JobDone, JobOptions, JobSpec
from dispy.wire.frames import (
    HEADER_LIMIT,
    JOIN_SIZE,
    LENGTHS,
    OWN_MEMORY_SIZE,
    PAYLOAD_LIMIT,
    RECEIVE_SIZE,
    Frame,
    FrameDecoder,
    encode_frames,
)
from dispy.wire.messages import AckResults, AnyMessage, Chunk, Goodbye, Heartbeat, JobsDone, RunJobs

COMPUTATION = ComputationId("c" * 32)

specs = st.builds(
    JobSpec,
    job=st.integers(0, 2**63 - 1),
    attempt=st.integers(1, 1000),
    size=st.integers(0, 65536),
    blob=st.none() | st.builds(BlobRef, name=st.binary(max_size=32), size=st.integers(0, 2**40)),
    options=st.none() | st.builds(JobOptions, node=st.text(max_size=5)),
)
messages: st.SearchStrategy[AnyMessage] = st.one_of(
    st.just(Heartbeat()),
    st.builds(Goodbye, reason=st.text(max_size=20)),
    st.builds(AckResults, sequence=st.integers(0, 2**60)),
    st.builds(RunJobs, computation=st.just(COMPUTATION), jobs=st.lists(specs, max_size=5)),
    st.builds(Chunk, name=st.binary(max_size=32), offset=st.integers(0, 2**60)),
)
payloads = st.lists(st.binary(max_size=300) | st.just(b"l" * (OWN_MEMORY_SIZE + 7)), max_size=3)


def wire(*frames: tuple[AnyMessage, list[bytes]]) -> bytes:
    return b"".join(encode_frames(frames))


def frame(header: bytes) -> bytes:
    return LENGTHS.pack(len(header), 0) + header


def plain(frames: list[Frame]) -> list[tuple[AnyMessage, bytes]]:
    return [(message, bytes(payload)) for message, payload in frames]


@given(frames=st.lists(st.tuples(messages, payloads), max_size=6), data=st.data())
def test_any_cut_gives_the_same_frames(frames: list[tuple[AnyMessage, list[bytes]]], data: st.DataObject) -> None:
    sent = wire(*frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    decoder = FrameDecoder()
    got: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        got += decoder.feed(sent[start:end])
    assert plain(got) == [(message, b"".join(parts)) for message, parts in frames]


def test_byte_by_byte() -> None:
    sent = wire((Goodbye("enough"), []), (Chunk(b"n", 5), [b"abc", b"def"]), (Heartbeat(), []))
    decoder = FrameDecoder()
    got = [frame for at in range(len(sent)) for frame in decoder.feed(sent[at : at + 1])]
    assert got == [(Goodbye("enough"), b""), (Chunk(b"n", 5), b"abcdef"), (Heartbeat(), b"")]


def test_a_batch_of_jobs_survives_with_all_its_fields() -> None:
    jobs = [JobSpec(n, 1, 3, options=JobOptions("node") if n % 2 else None) for n in range(5000)]
    done = [JobDone(n, 2, 0, 1.5, 2.5, 1, 2, 3, 4, BlobRef(b"b" * 32, 9)) for n in range(500)]
    sent: list[tuple[AnyMessage, list[bytes]]] = [
        (RunJobs(COMPUTATION, jobs), [b"abc"] * 5000),
        (JobsDone(7, done), [b"r"]),
    ]
    assert plain(FrameDecoder().feed(wire(*sent))) == [(message, b"".join(parts)) for message, parts in sent]


def test_small_parts_are_joined_and_large_ones_are_not_copied() -> None:
    large = bytearray(JOIN_SIZE + 1)
    buffers = encode_frames([(Heartbeat(), ()), (Chunk(b"n", 0), (b"s", large, b"t")), (Heartbeat(), ())])
    assert len(buffers) == 3
    large[0] = 1
    assert buffers[1][0] == 1


def test_parts_that_are_not_bytes_count_in_bytes() -> None:
    part = memoryview(bytes(range(8))).cast("H")
    assert plain(FrameDecoder().feed(b"".join(encode_frames([(Heartbeat(), [part])])))) == [
        (Heartbeat(), bytes(range(8)))
    ]


def test_payloads_belong_to_the_receiver() -> None:
    decoder = FrameDecoder()
    (_, small), (_, large) = decoder.feed(wire((Chunk(b"n", 0), [b"s" * 100]), (Chunk(b"n", 0), [b"l" * RECEIVE_SIZE])))
    decoder.feed(wire((Chunk(b"n", 0), [b"x" * 100]), (Chunk(b"n", 0), [b"x" * RECEIVE_SIZE])))
    assert bytes(small) == b"s" * 100
    assert bytes(large) == b"l" * RECEIVE_SIZE


def test_the_rest_of_a_large_frame_is_received_into_its_own_memory() -> None:
    sent = wire((Chunk(b"n", 0), [b"l" * (1 << 20)]))
    decoder = FrameDecoder()
    assert decoder.feed(sent[:1000]) == []
    room = decoder.get_buffer()
    assert len(room) == len(sent) - 1000
    room[:] = sent[1000:]
    ((_, payload),) = decoder.advance(len(room))
    assert bytes(payload) == b"l" * (1 << 20)
    assert len(decoder.get_buffer()) == RECEIVE_SIZE


@pytest.mark.parametrize("lengths", [(HEADER_LIMIT + 1, 0), (1, PAYLOAD_LIMIT + 1), (2**32 - 1, 2**32 - 1)], ids=str)
def test_lengths_over_the_limit_are_refused_before_memory_is_taken(lengths: tuple[int, int]) -> None:
    with pytest.raises(RemoteProtocolError, match=r"announced a frame.*limits"):
        FrameDecoder().feed(LENGTHS.pack(*lengths))


def test_too_long_messages_are_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match=r"Chunk .* is too long"):
        encode_frames([(Chunk(b"n", 0), [b"x" * (PAYLOAD_LIMIT + 1)])])
    with pytest.raises(LocalProtocolError, match=r"Goodbye .* is too long"):
        encode_frames([(Goodbye("x" * (HEADER_LIMIT + 1)), [])])


def test_a_message_that_cannot_be_encoded_is_named() -> None:
    with pytest.raises(LocalProtocolError, match=r"^Goodbye cannot be encoded: .*surrogates"):
        encode_frames([(Goodbye("\udcfe"), [])])
    with pytest.raises(LocalProtocolError, match=r"^Chunk cannot be encoded"):
        encode_frames([(Chunk(b"n", 1 << 70), [])])


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x91\xa7Unknown",
        b"\x92\xa7Goodbye\x01",
        b"\x91\xa7Goodbye",
        b"\x92\xa7Goodbye\xa2\xff\xfe",
        b"\x91" * 5000,
        b"\x91\xa9Heartbeat\x00",
        msgspec.msgpack.encode({"type": "Heartbeat"}),
    ],
    ids=["empty", "opcode", "tag", "type", "missing", "utf-8", "deep", "trailing", "map"],
)
def test_what_is_no_message_is_refused(header: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="sent a header that is no message"):
        FrameDecoder().feed(frame(header))


@given(st.binary(max_size=200))
def test_garbage_never_does_anything_else(data: bytes) -> None:
    try:
        FrameDecoder().feed(data)
    except RemoteProtocolError:
        return


def test_frames_before_garbage_are_not_delivered() -> None:
    # One read is one unit: the link ends, and what it held is sent again on the next one.
    with pytest.raises(RemoteProtocolError):
        FrameDecoder().feed(wire((Heartbeat(), [])) + frame(b"\xc1"))
