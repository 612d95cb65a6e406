"""Large arguments and results: they arrive as what they were, nobody can spoil them for others, and they are let go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import dispy
from dispy.wire import blobs, handing

MIB = 1 << 20


def files_in_memory() -> list[str]:
    """The contents of arguments and results that the nodes of this process hold."""
    found = []
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("dispy-"):
            continue
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if "memfd:dispy-blob" in target or "memfd:dispy-result" in target:
                found.append(target)
    return found


def test_each_kind_arrives_as_what_it_was(
    local: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any]
) -> None:
    def change(text: bytes, array: Any, values: dict[str, Any]) -> Any:
        kinds = [type(each).__name__ for each in (text, array, *values.values())]
        array[0] = 1
        values["changing"][0] = 1
        values["nested"][0][0] = 1
        return kinds, text, array, values

    text, array = os.urandom(3 * MIB), np.zeros((3, MIB), np.float32).T
    values = {"changing": bytearray(2 * MIB), "nested": [np.zeros(MIB, np.uint8)], "small": 1}
    cluster = local(change)
    jobs = [cluster.submit(text, array, values=values) for _ in range(4)]
    array[:] = values["changing"][0] = values["nested"][0][:] = 7  # type: ignore[index]

    for job in jobs:
        kinds, text_back, array_back, values_back = job()
        assert kinds == ["bytes", "ndarray", "bytearray", "list", "int"]
        assert text_back == text
        assert array_back.shape == (MIB, 3)
        assert (array_back[0] == 1).all()
        assert array_back.sum() == 3
        assert values_back["changing"] == b"\1" + bytes(2 * MIB - 1)
        assert values_back["nested"][0].sum() == 1
        array_back[:] = 2
        values_back["nested"][0][:] = 2
    wait_until(lambda: not files_in_memory(), timeout=60)


def test_what_a_job_keeps_of_its_arguments_outlives_it(local: Callable[..., dispy.JobCluster]) -> None:
    def keep(array: Any) -> float:
        kept = globals().setdefault("kept", [])
        kept.append(array)
        return float(sum(each.sum() for each in kept))

    cluster = local(keep)
    sums = [cluster.submit(np.full(MIB, 1.0))() for _ in range(5)]
    assert all(each >= MIB and each % MIB == 0 for each in sums)


def test_output_beside_a_large_result_and_interim_ones(
    local: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any]
) -> None:
    def speak() -> Any:
        print("before")
        dispy_provisional_result(np.ones(MIB))  # type: ignore[name-defined]  # noqa: F821
        print("after")
        return np.full(MIB, 2.0)

    interim: list[Any] = []

    def seen(job: dispy.DispyJob) -> None:
        if job.status == dispy.DispyJob.ProvisionalResult:
            interim.append(job.result)

    cluster = local(speak, job_status=seen)
    job = cluster.submit()
    assert job().sum() == 2 * MIB
    assert job.stdout == "before\nafter\n"
    wait_until(lambda: interim, timeout=60)  # callbacks run in a thread of their own
    assert [each.sum() for each in interim] == [MIB]


def test_the_arguments_are_there_for_another_attempt(
    local: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    def total(array: Any, text: bytes, gate: str) -> tuple[float, int]:
        import time
        from pathlib import Path

        array[:] += 1
        Path(gate + "-on").touch()
        while not Path(gate).exists():
            time.sleep(0.02)
        return float(array.sum()), len(text)

    gate = tmp_path / "gate"
    cluster = local(total, reentrant=True)
    job = cluster.submit(np.ones(MIB), bytes(3 * MIB), str(gate))
    wait_until((tmp_path / "gate-on").exists, timeout=60)
    [node] = [each for each in psutil.Process().children() if "--embedded" in each.cmdline()]
    node.kill()
    gate.touch()
    assert job() == (2.0 * MIB, 3 * MIB), job.exception


def test_in_pieces_as_from_another_machine(
    local: Callable[..., dispy.JobCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process takes and gives no descriptors; what the node asks for is refused."""

    def turned(array: Any, text: bytes) -> tuple[Any, bytes]:
        return array[::-1].copy(), text[::-1]

    monkeypatch.setattr(blobs, "is_near", lambda _peer: False)
    monkeypatch.setattr(handing, "_hand_over", refuse)
    array, text = np.arange(MIB), os.urandom(3 * MIB)
    array_back, text_back = local(turned).submit(array, text)()
    assert (array_back[::-1] == array).all()
    assert text_back[::-1] == text
    array_back[0] = 0


def refuse(*_: Any) -> None:
    raise PermissionError
