"""What stands for a scattered object: how it is pickled, for whom, and when it is let go."""

from __future__ import annotations

import gc
import pickle

import numpy
import pytest

import dispy
from dispy import buffers, namespace
from dispy.errors import ClosedError, ShippingError
from dispy.model import BlobRef, ComputationId
from dispy.scattered import Scattered, naming
from dispy.shipping import dumps_arguments, dumps_object, dumps_setup_args, pack
from dispy.unpickling import loads_arguments

MINE, OTHER = ComputationId("1" * 32), ComputationId("2" * 32)
NAME = b"n" * 32


def made(released: list[str] | None = None, cluster: ComputationId = MINE) -> Scattered:
    return Scattered(cluster, "square", BlobRef(NAME, 8_000_000), lambda: (released or []).append("gone"))


def square(n: int) -> int:
    return n * n


def test_arguments_hold_its_name_alone_wherever_it_stands() -> None:
    scattered, shipment = made(), pack(square)
    with naming(MINE) as named:
        data = dumps_arguments(shipment, (1, scattered), {"x": {"y": [scattered]}})
    assert named == {NAME: scattered}
    assert len(data) < 300
    assert data.count(NAME) == 1


def test_the_worker_finds_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    with naming(MINE):
        data = pickle.dumps([made()], 5)
    with pytest.raises(LookupError, match="in jobs only"):
        pickle.loads(data)
    monkeypatch.setattr(namespace, "find_scattered", lambda name: {NAME: "the object"}[name])
    assert pickle.loads(data) == ["the object"]


def test_the_program_that_reads_arguments_again_sees_the_handle() -> None:
    scattered = made()
    with naming(MINE):
        data = pickle.dumps(((scattered,), {}), 5)
    assert loads_arguments(data)[0][0] is scattered
    del scattered
    gc.collect()
    found = loads_arguments(data)[0][0]
    assert isinstance(found, Scattered)
    assert found.is_closed


@pytest.mark.parametrize("cluster", [None, OTHER])
def test_nobody_else_can_pickle_it(cluster: ComputationId | None) -> None:
    scattered, shipment = made(), pack(square)
    if cluster is None:
        for attempt in (
            lambda: pickle.dumps(scattered),
            lambda: dumps_arguments(shipment, (scattered,), {}),
            lambda: dumps_setup_args(shipment, (scattered,)),
            lambda: dumps_object(shipment, {"x": scattered}),
        ):
            with pytest.raises(
                ShippingError, match=r"<Scattered of square: 8\.0 MB> can only stand in arguments of jobs"
            ):
                attempt()
        return
    with naming(cluster) as named, pytest.raises(ShippingError, match="scatter the object in the other cluster too"):
        dumps_arguments(shipment, ([scattered],), {})
    assert not named


def test_a_program_cannot_have_it() -> None:
    shipment = pack("/bin/true")
    with naming(MINE), pytest.raises(ShippingError, match="cannot be given to a program, whose arguments are texts"):
        dumps_arguments(shipment, ("-x", made()), {})


def test_it_is_let_go_once() -> None:
    for how in ("close", "with", "forget"):
        released: list[str] = []
        scattered = Scattered(MINE, "square", BlobRef(NAME, 1), lambda released=released: released.append("gone"))  # type: ignore[misc]
        if how == "with":
            with scattered:
                assert not scattered.is_closed
        if how != "forget":
            scattered.close()
            assert scattered.is_closed
            assert "closed" in repr(scattered)
            with naming(MINE), pytest.raises(ClosedError, match="scatter the object again"):
                dumps_arguments(pack(square), (scattered,), {})
        del scattered
        gc.collect()
        assert released == ["gone"], how


def test_an_object_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(ShippingError, match=r"the object\['rows'\]\[1\] \(a generator\) cannot be pickled"):
        dumps_object(pack(square), {"rows": [1, (n for n in range(3))]})


def test_arrays_are_read_only_whatever_their_size() -> None:
    small = [numpy.arange(n) for n in (1, 10, 1_000)]
    value = {"small": small, "large": numpy.arange(100_000), "empty": numpy.zeros(0)}
    parts = dumps_object(pack(square), value)
    assert len(parts) == 2, "small parts are one, so that many arrays are not as many parts"
    pickled, views = buffers.split(buffers.joined(parts))
    found = pickle.loads(pickled, buffers=views)
    for before, after in zip([*small, value["large"]], [*found["small"], found["large"]], strict=True):
        assert (before == after).all()
        assert not after.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            after[0] = 5
    assert not len(found["empty"])


def test_what_was_scattered_is_a_snapshot_whatever_its_size() -> None:
    for size in (10, 100_000):
        array = numpy.zeros(size)
        parts = dumps_object(pack(square), [array])
        array[:] = 1
        pickled, views = buffers.split(buffers.joined(parts))
        assert not pickle.loads(pickled, buffers=views)[0].any()


def test_the_name_is_public() -> None:
    assert dispy.Scattered is Scattered
    assert "Scattered" in dispy.__all__
