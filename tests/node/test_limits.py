"""What real jobs get beyond their arguments, how much memory they may use, and workers that grow."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dispy.model import Ending
from dispy.node import limits
from dispy.node.verdicts import over_time

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import result, serving, text

MIB = 1 << 20


def test_variables_are_for_one_job(tmp_path: Path) -> None:
    def job() -> str | None:
        import os

        return os.environ.get("CUDA_VISIBLE_DEVICES")

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            first = at.submit()
            second = at.submit_with({"env": {"CUDA_VISIBLE_DEVICES": "1,3"}})
            third = at.submit()
            assert [result(await at.reply(each)) for each in (first, second, third)] == [None, "1,3", None]

    asyncio.run(main())


def test_large_arguments_come_with_an_extra_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda data: len(data)) as at:
            data = os.memfd_create("arguments")
            from dispy.shipping import dumps_arguments

            os.writev(data, dumps_arguments(at.shipment, (b"x" * 100_000,), {}))
            at.server.feed(at.worker, [(1, data)], {1: {"env": {"A": "b"}}})
            at.sequence = 1
            assert result(await at.reply(1)) == 100_000
            assert result(await at.run(b"12")) == 2
            os.close(data)

    asyncio.run(main())


@pytest.mark.parametrize("where", ["function", "child", "forked children"])
def test_memory_over_the_limit_ends_the_job_with_figures(tmp_path: Path, where: str) -> None:
    def job(where: str, size: int) -> int:
        import os
        import subprocess
        import sys
        import time

        if where == "function":
            kept = []
            for _ in range(size >> 20):
                kept.append(bytearray(os.urandom(1 << 10)) * 1024)
                time.sleep(0.002)
        elif where == "child":
            code = "import time; a = bytearray(b'x') * int(__import__('sys').argv[1]); time.sleep(60)"
            subprocess.run([sys.executable, "-c", code, str(size)])
        else:
            for _ in range(4):
                if not os.fork():
                    kept = [bytearray(b"x") * (size // 4)]
                    time.sleep(60)
            time.sleep(60)
        return size

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            fine = at.submit_with({"memory": 200 * MIB}, "function", 20 * MIB)
            assert result(await at.reply(fine)) == 20 * MIB
            at.submit_with({"memory": 60 * MIB}, where, 90 * MIB)
            death = await at.death()
            assert death.limited
            assert re.fullmatch(r"killed: memory \d\d+ MiB over the limit of 60 MiB after [\d.]+ s", death.cause), (
                death.cause
            )

    asyncio.run(main())


def test_an_allocation_far_over_the_limit_fails_in_the_function(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda size: len(bytearray(size))) as at:
            limited = at.submit_with({"memory": 50 * MIB}, 4 << 30)
            reply = await at.reply(limited)
            assert reply.ending == Ending.LIMITED
            assert text(reply, "error").startswith("memory: an allocation went far over the limit of 50 MiB\n")
            assert result(await at.run(600 * MIB)) == 600 * MIB, "the next job is not limited"

    asyncio.run(main())


def test_memory_of_a_tree_counts_what_is_shared_once() -> None:
    code = """
import os, sys, time
a = bytearray(b"x") * (40 << 20)
if not os.fork():
    b = bytearray(b"x") * (10 << 20)
    print("here", flush=True)
    time.sleep(60)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = limits.memory_of(process.pid, 0)
        assert limits.memory_of(process.pid, 40 * MIB) < used - 39 * MIB
        os.killpg(process.pid, 9)
    assert 50 * MIB < used < 75 * MIB, used
    assert limits.memory_of(process.pid, 0) == 0, "it is gone"


def test_a_worker_that_has_grown_is_replaced_between_two_jobs(tmp_path: Path) -> None:
    def job(size: int, seconds: float) -> int:
        import time

        kept = globals().setdefault("kept", [])
        kept.append(bytearray(b"x") * size)
        time.sleep(seconds)
        return len(kept)

    async def main() -> None:
        async with serving(tmp_path, job, growth=30 * MIB) as at:
            assert result(await at.run(1 * MIB, 1.1)) == 1
            assert result(await at.run(50 * MIB, 1.1)) == 2
            death = await at.death()
            assert death.expected

    asyncio.run(main())


def test_verdicts() -> None:
    assert over_time(10.16, 10) == "time: it ran 10.2 s, its limit was 10 s"
    assert over_time(0.016, 0.015) == "time: it ran 0.016 s, its limit was 0.015 s"
    words = limits.over_memory(int(4.1 * (1 << 30)), 4 << 30, 37.0)
    assert words == "killed: memory 4.1 GiB over the limit of 4.0 GiB after 37 s"
    assert limits.over_memory(2 << 30, 1 << 30, 1e-5).endswith("after 0.00 s")
    assert limits.over_memory(2 << 30, 1 << 30, 2.34).endswith("after 2.3 s")
