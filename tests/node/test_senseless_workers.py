"""Workers and fork servers that say what makes no sense, or nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dispy.node import patience

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import result, serving


@pytest.mark.parametrize("number", [0, 1 << 40, 1 << 62, (1 << 64) - 1])
@pytest.mark.parametrize("ends", ["dies", "returns", "prints"])
def test_a_job_that_spoils_what_its_worker_tells_the_daemon_ends_like_any_other(
    tmp_path: Path, number: int, ends: str
) -> None:
    def job(number: int, ends: str) -> str:
        import os
        import struct

        for entry in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{entry}"
            if os.path.lexists(path) and "dispy-cell" in os.readlink(path):
                os.pwrite(int(entry), struct.pack("Q", number) * 16, 0)
        print("last words")
        if ends == "dies":
            os._exit(3)
        if ends == "prints":
            os.write(1, b"x" * 300_000)
        return ends

    async def main() -> None:
        async with serving(tmp_path, job, limit=1000) as at:
            first = at.submit(number, ends)
            await at.seen.until(lambda: bool(at.seen.replies or at.seen.deaths))
            if number and ends == "dies":
                assert at.seen.deaths[0].running == first
                assert at.seen.deaths[0].cause.startswith("exit code 3")
            at.server.cancel(1, first)
            at.server.fork(2)
            at.worker, at.sequence = 2, 0
            at.seen.replies.clear()
            at.seen.deaths.clear()
            await at.seen.until(lambda: 2 in at.seen.forked)
            at.submit(0, "returns")
            await at.seen.until(lambda: 1 in at.seen.replies)

    asyncio.run(main())


def test_a_job_that_speaks_for_its_worker_costs_the_worker(tmp_path: Path) -> None:
    def job(kind: str) -> str:
        import os
        import struct

        if kind != "fine":
            sequence, ending = {"unknown job": (99, 0), "file without a file": (1, 8)}[kind]
            reply = struct.pack("<QBBHIIIIdd", sequence, ending, 0, 0, 0, 0, 0, 0, float("nan"), float("inf"))
            for entry in os.listdir("/proc/self/fd"):
                path = f"/proc/self/fd/{entry}"
                if int(entry) >= 500 and os.path.lexists(path) and "socket" in os.readlink(path):
                    os.write(int(entry), reply)
            import time

            time.sleep(60)
        return kind

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            for number, kind in enumerate(("unknown job", "file without a file"), 1):
                at.server.fork(number + 1)
                sequence = at.submit(kind)
                death = await at.death()
                assert death.cause.startswith("what it sent to the node makes no sense"), death
                assert death.running == sequence
                at.worker, at.sequence = number + 1, 0
                at.seen.deaths.clear()
            assert result(await at.run("fine")) == "fine"

    asyncio.run(main())


def test_a_report_that_cannot_be_followed_ends_the_fork_server_with_a_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop would call the failing reader again for ever."""

    async def main() -> None:
        async with serving(tmp_path, len) as at:

            def fails(worker: int, pid: int) -> None:
                raise RuntimeError("no idea")

            monkeypatch.setattr(at.seen, "worker_forked", fails)
            at.server.fork(2)
            await at.seen.until(lambda: bool(at.seen.server_death))
            cause = "the node cannot follow it any more (RuntimeError: no idea)"
            assert at.seen.server_death == f"the computation's fork server ended: {cause}"
            assert len(at.seen.deaths) == 2

    asyncio.run(main())


@pytest.mark.parametrize("guard_too", [False, True])
def test_a_stopped_fork_server_is_not_waited_for_with_cleanup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard_too: bool
) -> None:
    monkeypatch.setattr(patience, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))

    async def main() -> None:
        async with serving(tmp_path, len) as at:
            if guard_too:
                os.kill(at.server._process.pid, signal.SIGSTOP)
            os.kill(at.server.pid, signal.SIGSTOP)
            async with asyncio.timeout(10):
                trace = await at.server.cleanup()
            assert "it was stopped (SIGSTOP) and answered nothing for 0.5 s" in trace
            await at.server.wait_ended()

    asyncio.run(main())


def test_a_cleanup_function_may_take_longer_than_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "ANSWER_TIMEOUT", 0.3)

    def cleanup() -> None:

        time.sleep(1.5)
        with open("done", "w") as file:
            file.write("done")

    async def main() -> None:
        async with serving(tmp_path, len, cleanup=cleanup) as at:
            assert not await at.server.cleanup()
        assert (tmp_path / "done").exists()

    asyncio.run(main())
