"""Real workers: results, batches, what stays between two jobs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dispy.model import Ending

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import result, serving, text


def test_results_keywords_and_errors(tmp_path: Path) -> None:
    def divide(a: float, b: float = 2.0) -> float:
        return a / b

    async def main() -> None:
        async with serving(tmp_path, divide) as at:
            before = time.time()
            reply = await at.run(5)
            assert result(reply) == 2.5
            assert before <= reply.started_at <= reply.ended_at <= time.time()
            assert result(await at.run(a=9, b=3)) == 3
            failed = await at.run(1, 0)
            assert failed.ending == Ending.RAISED
            trace = text(failed, "error")
            assert "ZeroDivisionError" in trace
            assert "return a / b" in trace, "the source travels for tracebacks"
            assert "worker.py" not in trace
            assert "calls.py" not in trace

    asyncio.run(main())


def test_batches_answer_each_job_once_and_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda x: x) as at:
            sequences = [at.submit(number) for number in range(3000)]
            await at.seen.until(lambda: len(at.seen.replies) == 3000)
            assert [result(at.seen.replies[sequence]) for sequence in sequences] == list(range(3000))
            assert list(at.seen.replies) == sequences

    asyncio.run(main())


@pytest.mark.parametrize(("status", "shown"), [(0, "SystemExit: 0"), (4, "SystemExit: 4"), (None, "SystemExit")])
def test_sys_exit_ends_the_job_but_not_the_worker(tmp_path: Path, status: int | None, shown: str) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda code: sys.exit(code)) as at:
            reply = await at.run(status)
            assert reply.ending == Ending.RAISED
            assert text(reply, "error").rstrip().endswith(shown)
            assert (await at.run(1)).ending == Ending.RAISED
            assert not at.seen.deaths

    asyncio.run(main())


def test_what_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    def job() -> dict[str, object]:
        import threading

        return {"fine": 1, "parts": [threading.Lock()]}

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            reply = await at.run()
            assert reply.ending == Ending.UNSENDABLE
            assert text(reply, "error").startswith("the result['parts'][0] (a _thread.lock) cannot be pickled")

    asyncio.run(main())


def test_errors_that_cannot_be_shown_or_pickled_are_still_errors(tmp_path: Path) -> None:
    def job(kind: str) -> None:
        class BadError(Exception):
            def __str__(self) -> str:
                raise ValueError("no words")

        def deep() -> None:
            deep()

        if kind == "str":
            raise BadError
        if kind == "base":
            raise BaseException("base")
        deep()

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            for kind, shown in (("str", "BadError"), ("base", "BaseException: base"), ("deep", "RecursionError")):
                reply = await at.run(kind)
                assert reply.ending == Ending.RAISED
                assert shown in text(reply, "error")

    asyncio.run(main())


def test_large_arguments_and_results_go_through_memory(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda data: data[::-1]) as at:
            fd = os.memfd_create("arguments")
            from dispy.shipping import dumps_arguments

            data = bytes(range(256)) * 20_000
            os.writev(fd, dumps_arguments(at.shipment, (data,), {}))
            at.server.feed(1, [(1, fd), (2, dumps_arguments(at.shipment, (b"ab",), {})), (3, fd)])
            os.close(fd)
            at.sequence = 3
            assert result(await at.reply(1)) == data[::-1]
            assert result(await at.reply(2)) == b"ba"
            assert result(await at.reply(3)) == data[::-1]

    asyncio.run(main())


def test_many_jobs_are_queued_without_blocking_the_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda data: len(data)) as at:
            started = time.monotonic()
            for _ in range(200):
                at.submit(b"x" * 30_000)
            assert time.monotonic() - started < 1
            await at.seen.until(lambda: len(at.seen.replies) == 200)
            assert {result(reply) for reply in at.seen.replies.values()} == {30_000}

    asyncio.run(main())


def test_a_job_finds_the_process_as_every_other_did(tmp_path: Path) -> None:
    def job(change: bool) -> Any:
        import os
        import sys

        if change:
            os.chdir("/")
            os.umask(0o777)
            os.environ["LEFT"] = "1"
            del os.environ["PATH"]
            sys.argv.append("x")
            sys.stdin = None
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
        umask = os.umask(0)
        os.umask(umask)
        return (
            os.getcwd(),
            umask,
            sorted(os.environ.items()),
            list(sys.argv),
            sys.stdin is None,
            str(signal.getsignal(signal.SIGCHLD)),
            sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        )

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            before = result(await at.run(False))
            assert before[0] == str(tmp_path)
            await at.run(True)
            await asyncio.sleep(0.05)
            assert result(await at.run(False)) == before
            assert not at.seen.deaths

    asyncio.run(main())
