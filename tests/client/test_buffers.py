"""How a pickle and its large buffers lie one behind the other."""

from __future__ import annotations

import mmap
import pickle
from typing import Any

import numpy as np
import pytest

from dispy import buffers
from dispy.node.channel import INLINE


def body_of(value: object) -> bytes:
    apart = buffers.Apart()
    pickled = pickle.dumps(value, 5, buffer_callback=apart)
    return b"".join(buffers.parts([pickled], apart.views))


def test_a_value_without_large_buffers_is_a_plain_pickle() -> None:
    value = {"small": np.arange(10), "text": "x" * 100_000}

    body = body_of(value)

    assert body[0] == 0x80
    assert buffers.loads(body)["text"] == value["text"]
    assert pickle.loads(body)["small"].tolist() == list(range(10))


def test_large_buffers_lie_apart_and_come_back_equal() -> None:
    arrays = [np.arange(100_001, dtype=kind) for kind in (np.uint8, np.float64, np.int16)]
    value = [arrays, {"again": arrays[0], "turned": np.asfortranarray(arrays[1][:100_000].reshape(250, 400))}]

    body = body_of(value)
    made = buffers.loads(body)

    assert body.startswith(buffers.MAGIC)
    for before, after in zip(arrays, made[0], strict=True):
        assert before.dtype == after.dtype
        assert (before == after).all()
    assert made[1]["again"] is made[0][0]
    assert (made[1]["turned"] == value[1]["turned"]).all()


def test_each_buffer_begins_where_the_widest_instructions_want_it() -> None:
    view = memoryview(bytes(buffers.LARGE + 1))
    body = b"".join(buffers.parts([b"\x80pick", b"le"], [view, view, view]))
    pickled, found = buffers.split(body)

    assert bytes(pickled) == b"\x80pickle"
    assert [len(each) for each in found] == [buffers.LARGE + 1] * 3
    begin = np.frombuffer(body, np.uint8).ctypes.data
    places = [np.frombuffer(each, np.uint8).ctypes.data - begin for each in found]
    assert [place % buffers.ALIGNMENT for place in places] == [0, 0, 0]


def test_nothing_large_is_copied_on_either_side() -> None:
    array = np.zeros(1 << 20, np.uint8)
    apart = buffers.Apart()
    pickled = pickle.dumps(array, 5, buffer_callback=apart)
    parts = buffers.parts([pickled], apart.views)
    array[5] = 7

    body = bytearray(b"".join(parts))
    made = buffers.loads(body)
    made[6] = 8

    assert made[5] == 7
    assert body.count(8, len(body) - len(array)) == 1
    assert sum(map(len, parts)) == len(body)


def test_what_was_read_only_still_is() -> None:
    array = np.zeros(buffers.LARGE, np.uint8)
    array.flags.writeable = False

    made = buffers.loads(bytearray(body_of([array, np.zeros(buffers.LARGE, np.uint8)])))

    assert not made[0].flags.writeable
    assert made[1].flags.writeable


def test_a_private_mapping_can_be_written_to_and_lives_as_long_as_what_was_made_of_it(tmp_path: Any) -> None:
    path = tmp_path / "body"
    path.write_bytes(body_of(np.zeros(buffers.LARGE, np.uint8)))
    with path.open("rb") as file:
        made = buffers.loads(mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE))

    made[:] = 9

    assert made.sum() == 9 * buffers.LARGE
    assert not buffers.loads(path.read_bytes()).any()


def test_a_body_with_buffers_always_travels_as_a_blob() -> None:
    assert len(body_of(np.zeros(buffers.LARGE, np.uint8))) > INLINE
    assert body_of(np.zeros(buffers.LARGE - 1, np.uint8))[0] == 0x80


@pytest.mark.parametrize("size", [9, 30, 200, 70_000])
def test_a_body_that_is_cut_short_is_refused(size: int) -> None:
    body = body_of(np.zeros(100_000, np.uint8))

    with pytest.raises(pickle.UnpicklingError):
        buffers.loads(body[:size])


def test_a_body_that_promises_too_much_is_refused() -> None:
    body = buffers.MAGIC + b"\xff" * 100

    with pytest.raises(pickle.UnpicklingError):
        buffers.loads(body)
