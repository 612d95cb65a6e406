"""What jobs of real workers write, and how much of it is kept."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from dispy.model import Ending

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import serving, text, when


def test_output_of_python_c_and_children_is_captured_in_order(tmp_path: Path) -> None:
    def job() -> None:
        import ctypes
        import sys

        print("python")
        ctypes.CDLL(None).puts(b"c")
        os.write(1, b"raw\n")
        subprocess.run(["echo", "child"], check=True)
        print("end", end="")
        print("error", file=sys.stderr)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            for _ in range(2):
                reply = await at.run()
                assert text(reply, "stdout") == "python\nc\nraw\nchild\nend"
                assert text(reply, "stderr") == "error\n"

    asyncio.run(main())


def test_a_job_that_breaks_the_streams_harms_no_other(tmp_path: Path) -> None:
    def job(how: str) -> None:
        import io
        import sys

        if how == "replace":
            sys.stdout = io.StringIO()
        elif how == "close":
            sys.stdout.close()
        elif how == "descriptor":
            os.close(1)
        elif how == "range":
            os.closerange(3, 400)
        elif how == "null":
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        else:
            print("surrogate \udc80")

    async def main() -> None:
        for how in ("replace", "descriptor", "range", "null", "close"):
            async with serving(tmp_path, job) as at:
                assert (await at.run(how)).ending == Ending.FINISHED
                if how == "close":
                    assert (await at.death()).expected
                    at.server.fork(2)
                    at.worker = 2
                    at.seen.deaths.clear()
                assert text(await at.run(""), "stdout") == "surrogate \\udc80\n"

    asyncio.run(main())


def test_the_middle_of_much_output_is_cut_out(tmp_path: Path) -> None:
    def job() -> None:
        line = "x" * 999
        print("first")
        for _ in range(100_000):
            print(line)
        print("last")

    async def main() -> None:
        async with serving(tmp_path, job, limit=16 << 20) as at:
            reply = await at.run()
            assert reply.ending == Ending.FINISHED
            out = text(reply, "stdout")
            assert out.startswith("first\n")
            assert out.endswith("last\n")
            assert "bytes left out" in out
            assert len(out) < 17 << 20

    asyncio.run(main())


def test_endless_output_ends_the_job(tmp_path: Path) -> None:
    def job() -> None:
        while True:
            print("y" * 1000)

    async def main() -> None:
        async with serving(tmp_path, job, limit=100_000) as at:
            sequence = at.submit()
            death = await at.death()
            assert death.limited
            assert death.running == sequence
            assert "to stdout (100 kB are kept" in death.cause
            assert len(death.stdout) < 110_000

    asyncio.run(main())


def test_the_tail_of_a_running_job(tmp_path: Path) -> None:
    def job(ready: str) -> None:

        print("so far")
        os.close(os.open(ready, os.O_CREAT))
        while os.path.exists(ready):
            time.sleep(0.005)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            ready = tmp_path / "ready"
            sequence = at.submit(str(ready))
            await when(ready.exists)
            assert at.server.tail(1, sequence) == (b"so far\n", b"")
            ready.unlink()
            assert text(await at.reply(sequence), "stdout") == "so far\n"
            assert at.server.tail(1, sequence) == (b"", b"")

    asyncio.run(main())
