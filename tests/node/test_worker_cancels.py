"""Jobs of real workers that are cancelled, taken back or ended by force."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dispy.model import Ending
from dispy.node import workers
from dispy.node.channel import CLAIMED, RUNNING

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import result, serving, when


def test_a_cancelled_job_sees_keyboard_interrupt(tmp_path: Path) -> None:
    def job(catch: bool, ready: str) -> str:
        import time

        try:
            os.close(os.open(ready, os.O_CREAT))
            time.sleep(60)
        except KeyboardInterrupt:
            if catch:
                return "caught"
            raise
        return "not interrupted"

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            for catch in (True, False):
                ready = tmp_path / f"ready{catch}"
                sequence = at.submit(catch, str(ready))
                await when(ready.exists)
                at.server.cancel(1, sequence)
                reply = await at.reply(sequence)
                if catch:
                    assert result(reply) == "caught"
                else:
                    assert reply.ending == Ending.INTERRUPTED
            assert not at.seen.deaths

    asyncio.run(main())


def test_cancel_reaches_children_and_destructors(tmp_path: Path) -> None:
    def job(kind: str) -> None:
        import time

        class Slow:
            def __del__(self) -> None:
                end = time.monotonic() + 0.001
                while time.monotonic() < end:
                    pass

        if kind == "child":
            subprocess.run(["sleep", "60"], check=True)
        while True:
            Slow()
            time.sleep(0.001)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            for kind in ("child", "destructor"):
                sequence = at.submit(kind)
                await when(lambda sequence=sequence: at.server._workers[1].cell[RUNNING] == sequence)
                await asyncio.sleep(0.05)
                started = time.monotonic()
                at.server.cancel(1, sequence)
                assert (await at.reply(sequence)).ending == Ending.INTERRUPTED
                assert time.monotonic() - started < 2

    asyncio.run(main())


def test_a_queued_job_that_is_cancelled_is_not_started(tmp_path: Path) -> None:
    def job(mark: str) -> None:
        import time

        open(mark, "w").close()
        time.sleep(0.2)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            sequences = [at.submit(f"mark{number}") for number in range(4)]
            at.server.cancel(1, sequences[1])
            at.server.cancel(1, sequences[3])
            for number, sequence in enumerate(sequences):
                reply = await at.reply(sequence)
                assert reply.ending == (Ending.NOT_STARTED if number % 2 else Ending.FINISHED)
                assert (tmp_path / f"mark{number}").exists() == (not number % 2)
                assert (reply.started_at == 0) == bool(number % 2)

    asyncio.run(main())


def test_stronger_signals_end_a_stubborn_job_only(tmp_path: Path) -> None:
    def job() -> None:
        import time

        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                continue

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            sequence = at.submit()
            await when(lambda sequence=sequence: at.server._workers[1].cell[RUNNING] == sequence)
            at.server.signal(1, sequence + 1, signal.SIGKILL)
            at.server.cancel(1, sequence)
            await asyncio.sleep(0.1)
            assert not at.seen.deaths
            at.server.signal(1, sequence, signal.SIGTERM)
            death = await at.death()
            assert death.cause.startswith("killed by SIGTERM (terminated)")
            assert death.running == sequence

    asyncio.run(main())


def test_a_worker_that_lost_its_senses_can_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs nothing and answers nothing, so no signal finds the job that is to end."""
    monkeypatch.setattr(workers, "_END_TIMEOUT", 0.2)

    def job() -> None:
        import builtins

        builtins.len = lambda _: 42

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            sequence = at.submit()
            worker = at.server._workers[1]
            # It may also end by itself; then its cell is closed.
            await when(lambda: bool(at.seen.deaths) or (worker.cell[CLAIMED] == sequence and not worker.cell[RUNNING]))
            assert not at.seen.replies
            at.server.signal(1, sequence, signal.SIGKILL)
            await at.seen.until(lambda: bool(at.seen.deaths))

    asyncio.run(main())


def test_thousands_of_cancels_never_hit_another_job(tmp_path: Path) -> None:
    def job(number: int, span: float) -> int:
        import time

        end = time.perf_counter() + span
        try:
            while time.perf_counter() < end:
                sum(range(20))
        finally:
            number += 0
        return number

    async def main() -> None:
        chance = random.Random(7)
        async with serving(tmp_path, job) as at:
            wanted: set[int] = set()
            endings = {Ending.FINISHED: 0, Ending.INTERRUPTED: 0, Ending.NOT_STARTED: 0}
            for _ in range(250):
                batch = [at.submit(at.sequence + 1, chance.uniform(0, 1e-3)) for _ in range(8)]
                for _ in range(5):
                    until = time.perf_counter() + chance.uniform(0, 2e-3)
                    await when(lambda until=until: time.perf_counter() >= until, pause=0)  # type: ignore[misc]
                    sequence = at.server._workers[1].cell[RUNNING] or chance.choice(batch)
                    wanted.add(sequence)
                    at.server.cancel(1, sequence)
                await at.seen.until(lambda batch=batch: batch[-1] in at.seen.replies or bool(at.seen.deaths))  # type: ignore[misc]
                assert not at.seen.deaths
            assert len(at.seen.replies) == at.sequence
            for sequence, reply in at.seen.replies.items():
                endings[Ending(reply.ending)] += 1
                if sequence not in wanted:
                    assert reply.ending == Ending.FINISHED
                if reply.ending == Ending.FINISHED:
                    assert result(reply) == sequence
            assert endings[Ending.INTERRUPTED] > 50, endings
            assert endings[Ending.FINISHED] > 700, endings

    asyncio.run(main())


def test_recalled_jobs_do_not_run_and_all_others_do(tmp_path: Path) -> None:
    async def main() -> None:
        chance = random.Random(11)
        async with serving(tmp_path, lambda x: x) as at:
            dropped: set[int] = set()
            for _ in range(150):
                fed = [at.submit(at.sequence + 1) for _ in range(chance.randrange(1, 30))]
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                count = len(at.seen.recalled)
                at.server.recall(1, fed[-1] + 1)
                if chance.random() < 0.5:
                    at.submit(at.sequence + 1)
                await at.seen.until(lambda count=count: len(at.seen.recalled) > count)  # type: ignore[misc]
                first, before = at.seen.recalled[-1]
                assert before == fed[-1] + 1
                now = set(range(first, before))
                assert not now & dropped, "recalled twice"
                dropped |= now
            last = at.submit(0)
            await at.reply(last)
            assert set(at.seen.replies) == set(range(1, last + 1)) - dropped
            assert dropped
            assert at.server._workers[1].open == 0

    asyncio.run(main())


def test_retire_ends_a_worker_after_its_jobs(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda x: x) as at:
            for number in range(100):
                at.submit(number)
            at.server.retire(1)
            assert (await at.death()).expected
            assert len(at.seen.replies) == 100

    asyncio.run(main())
