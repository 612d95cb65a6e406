"""Scattered objects in a worker: mapped, unpickled once, kept within bounds, counted apart from jobs' memory."""

from __future__ import annotations

import gc
import os
import pickle
import resource
from pathlib import Path

import numpy
import pytest

from dispy import buffers
from dispy.node import linux
from dispy.node.channel import CELL_SIZE, MEMORY_AT_FORK
from dispy.node.shelf import Shelf

NAME, OTHER = b"n" * 32, b"o" * 32


def cell() -> memoryview:
    made = memoryview(bytearray(CELL_SIZE)).cast("Q")
    made[MEMORY_AT_FORK] = 1
    return made


def file_of(value: object) -> int:
    apart = buffers.Apart()
    pickled = pickle.dumps(value, 5, buffer_callback=apart)
    fd = os.memfd_create("object")
    for part in buffers.parts([pickled], apart.views):
        os.write(fd, part)
    return fd


def shelf(most: int = 0, **objects: object) -> Shelf:
    made = Shelf(cell(), most)
    for name, value in objects.items():
        made.tell({"object": name.encode().hex()}, file_of(value))
    return made


class Counted:
    unpickled = 0

    def __init__(self, size: int = 0) -> None:
        self.data = list(range(size))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (len(self.data),)


def _rebuilt(size: int) -> Counted:
    Counted.unpickled += 1
    return Counted(size)


def maps() -> str:
    return Path("/proc/self/maps").read_text()


def test_an_object_is_unpickled_once() -> None:
    kept = shelf(a=Counted())
    Counted.unpickled = 0
    assert kept.find(b"a") is kept.find(b"a")
    assert Counted.unpickled == 1


def test_arrays_are_read_only_views_of_the_file() -> None:
    array = numpy.arange(1 << 16)
    kept = shelf(a={"x": array})
    assert "memfd:object" in maps()
    found = kept.find(b"a")
    assert isinstance(found, dict)
    assert (found["x"] == array).all()
    assert not found["x"].flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        found["x"][0] = 1


def test_forgetting_unmaps_when_nobody_looks_any_more() -> None:
    kept = shelf(a=numpy.arange(1 << 16))
    found = kept.find(b"a")
    kept.tell({"forget": [b"a".hex(), b"never heard of".hex()]}, -1)
    assert "memfd:object" in maps()
    assert isinstance(found, numpy.ndarray)
    assert found[-1] == (1 << 16) - 1, "who has it keeps it"
    del found
    gc.collect()
    assert "memfd:object" not in maps()
    with pytest.raises(LookupError, match="is not on this node"):
        kept.find(b"a")


def test_only_so_much_is_kept_unpickled() -> None:
    # Lists of 40 MB: memory that was freed before, and that this process still has, is no room for them.
    kept = shelf(16 << 20, a=Counted(5_000_000), b=Counted(5_000_000))
    Counted.unpickled = 0
    for _ in range(3):
        kept.find(b"a")
    assert Counted.unpickled == 1, "the last one always stays"
    kept.find(b"b")
    kept.find(b"a")
    assert Counted.unpickled == 3


def test_what_an_object_takes_is_not_counted_for_jobs() -> None:
    counted = cell()
    kept = Shelf(counted, 0)
    kept.tell({"object": NAME.hex()}, file_of(Counted(1_000_000)))
    kept.find(NAME)
    assert counted[MEMORY_AT_FORK] > 8_000_000
    kept.tell({"forget": [NAME.hex()]}, -1)
    assert counted[MEMORY_AT_FORK] == 1


def test_a_limit_of_memory_waits_while_an_object_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, seen = cell(), []

    class Looks:
        def __reduce__(self) -> tuple[object, ...]:
            return looked, ()

    def looked() -> int:
        seen.append((counted[MEMORY_AT_FORK] >= 1 << 60, resource.getrlimit(resource.RLIMIT_DATA)))
        return 7

    monkeypatch.setitem(globals(), "looked", looked)
    looked.__qualname__ = "looked"
    before = resource.getrlimit(resource.RLIMIT_DATA)
    kept = Shelf(counted, 0)
    kept.tell({"object": NAME.hex()}, file_of(Looks()))
    kept.is_limited = True
    limit = linux.data_size() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        assert kept.find(NAME) == 7
        after = resource.getrlimit(resource.RLIMIT_DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert seen == [(True, (before[1], before[1]))]
    assert limit <= after[0] < limit + (1 << 28)
    assert 1 <= counted[MEMORY_AT_FORK] < 1 << 28


def test_what_fails_to_unpickle_says_where_and_is_tried_again() -> None:
    fd = os.memfd_create("object")
    os.write(fd, pickle.dumps(Counted())[:-3])
    kept = Shelf(cell(), 0)
    kept.tell({"object": NAME.hex()}, fd)
    for _ in range(2):
        with pytest.raises((EOFError, pickle.UnpicklingError)) as caught:
            kept.find(NAME)
        assert caught.value.__notes__ == ["This happened on the node, while a scattered object was unpickled."]


def test_a_file_that_cannot_be_mapped_is_told_to_those_who_ask_and_leaves_no_descriptor() -> None:
    fd, kept = os.memfd_create("empty"), shelf()
    kept.tell({"object": NAME.hex()}, fd)
    with pytest.raises(MemoryError, match="could not be mapped by this worker: Invalid argument"):
        kept.find(NAME)
    kept.tell({"forget": [NAME.hex()]}, -1)
    with pytest.raises(LookupError):
        kept.find(NAME)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
