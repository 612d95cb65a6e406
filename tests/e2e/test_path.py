"""What the way of a small job costs, counted: calls, system calls and bytes that must not come back unseen."""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import dispy
from dispy.portal import portal
from dispy.scheduler import intake

TRIPS = 20
SYSTEM = {"poll", "send", "recv", "recv_into", "recvmsg", "sendmsg", "getpeername"}
"""C functions of the loop that are system calls."""


def same(number: int) -> int:
    return number


def the_least_of_a_round_trip(cluster: dispy.JobCluster) -> tuple[float, dict[str, float]]:
    """Python functions that the client's loop calls for one lonely job, and its system calls."""
    calls = 0
    system: Counter[str] = Counter()

    def note(frame: FrameType, event: str, function: Any) -> None:
        nonlocal calls
        if event == "call":
            calls += 1
        elif event == "c_call" and function.__name__ in SYSTEM:
            system[function.__name__] += 1

    async def watch(watcher: Any) -> None:
        sys.setprofile(watcher)

    blocks: list[tuple[float, dict[str, float]]] = []
    for _ in range(10):  # what happens now and then, as heartbeats, is not in the least of them
        portal().call(watch(note))
        calls = 0
        system.clear()
        for number in range(TRIPS):
            assert cluster.submit(number)() == number
        blocks.append((calls / TRIPS, {name: count / TRIPS for name, count in system.items()}))
        portal().call(watch(None))
    return min(blocks, key=lambda block: block[0])


def test_a_lonely_round_trip_costs_the_loop_few_calls(
    local: Callable[..., dispy.JobCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPY_CHECK", raising=False)
    monkeypatch.setattr(intake, "ACKNOWLEDGE_AFTER", 1000.0)  # so that they go with the next job however slow this is
    cluster = local(same)
    portal().expect(lambda: False)  # else it looks again and again instead of sleeping
    assert [job() for job in [cluster.submit(number) for number in range(500)]] == list(range(500))
    calls, system = the_least_of_a_round_trip(cluster)
    # it is woken by the thread that submits and by the node, says each of them one thing, and waits
    most = {"poll": 2, "send": 1, "recv": 1, "recv_into": 1}
    assert {name: round(count, 1) for name, count in system.items() if count > most.get(name, 0) + 0.3} == {}
    assert calls < 260, f"{calls:.0f}"


def test_a_queued_job_takes_no_more_than_700_bytes(
    clusters: Callable[..., dispy.JobCluster], free_base_port: int
) -> None:
    cluster = clusters(same, nodes=[f"127.0.0.1:{free_base_port}"])
    first = [cluster.submit(number) for number in range(100)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        jobs = [cluster.submit(number) for number in range(1000, 11_000)]
        portal().call(_nothing())
        cluster.explain(jobs[-1])
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # with the DispyJob, which the program holds, and the pickled argument; the tables grow by doubling
    assert (after - before) / len(jobs) < 700
    for job in first + jobs:
        cluster.cancel(job)


async def _nothing() -> None:
    pass
