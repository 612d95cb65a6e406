"""How real workers and fork servers die, what is told of it, and that nothing outlives them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import gone, kill, result, serving, when


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("exit", "exit code 3"),
        ("segfault", "killed by SIGSEGV (segmentation fault)"),
        ("kill", "killed by SIGKILL (killed)"),
        ("abort", "killed by SIGABRT (aborted)"),
        pytest.param(
            "endless C recursion",
            "killed by SIGSEGV (segmentation fault)",
            marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="later versions raise RecursionError there"),
        ),
    ],
)
def test_a_death_names_its_cause_and_loses_no_other_job(tmp_path: Path, how: str, cause: str) -> None:
    def job(how: str) -> str:
        import ctypes
        import sys

        print("last words", file=sys.stderr)
        if how == "exit":
            os._exit(3)
        elif how == "segfault":
            ctypes.string_at(0)
        elif how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "abort":
            os.abort()
        elif how == "endless C recursion":
            sys.setrecursionlimit(1 << 30)

            class Deep:
                def __repr__(self) -> str:
                    return repr(self)

            repr(Deep())
        return how

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            first, second, third = at.submit("fine"), at.submit(how), at.submit("behind")
            death = await at.death()
            assert result(at.seen.replies[first]) == "fine"
            assert third not in at.seen.replies
            assert death.running == second
            assert death.cause.startswith(cause)
            assert death.stderr.startswith(b"last words\n")
            assert death.started > 0
            assert at.seen.order[-1] == "died"
            at.server.fork(2)
            at.worker = 2
            at.seen.deaths.clear()
            assert result(await at.run("again")) == "again"

    asyncio.run(main())


LEAVERS = {
    "child": "subprocess.Popen(['sleep', '60'])",
    "session": "subprocess.Popen(['sleep', '60'], start_new_session=True)",
    "daemon": "subprocess.run(['sh', '-c', 'setsid sleep 60 & setsid sleep 60 &'])",
    "stubborn": "subprocess.Popen(['sh', '-c', 'trap \"\" TERM INT HUP; while :; do sleep 60; done'])",
}


def leave(code: str, then: str) -> list[int]:
    import subprocess

    from dispy.node import linux

    eval(code, {"subprocess": subprocess})
    left = []
    while not left:
        left = linux.children()
    if then == "exit":
        with open("left", "w") as file:
            file.write(" ".join(map(str, left)))
        os._exit(0)
    return left


@pytest.mark.parametrize("how", LEAVERS)
def test_nothing_that_a_job_started_outlives_it(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with serving(tmp_path, leave) as at:
            left = result(await at.run(LEAVERS[how], ""))
            await gone(*left)
            assert (await at.death()).expected, "such a worker is not used again"

    asyncio.run(main())


@pytest.mark.parametrize("how", LEAVERS)
def test_nothing_that_a_dead_job_started_outlives_it(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with serving(tmp_path, leave) as at:
            at.submit(LEAVERS[how], "exit")
            death = await at.death()
            assert (death.running, death.cause) == (1, "exit code 0")
            assert not death.expected
            await gone(*map(int, (tmp_path / "left").read_text().split()))

    asyncio.run(main())


def test_a_finished_child_that_nobody_waited_for_costs_nothing(tmp_path: Path) -> None:
    def job() -> int:
        import subprocess

        process = subprocess.Popen(["true"])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        process.returncode = 0
        return os.getpid()

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            assert result(await at.run()) == result(await at.run())

    asyncio.run(main())


def test_a_thread_left_running_costs_the_worker(tmp_path: Path) -> None:
    def job() -> int:
        import threading
        import time

        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        return 7

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            assert result(await at.run()) == 7
            assert (await at.death()).expected

    asyncio.run(main())


def test_a_forked_child_that_comes_back_answers_nothing(tmp_path: Path) -> None:
    def job() -> bool:

        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return bool(pid)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            assert result(await at.run()) is True
            assert result(await at.run()) is True
            assert len(at.seen.replies) == 2

    asyncio.run(main())


@pytest.mark.parametrize("victim", ["fork server", "guard"])
def test_a_killed_fork_server_leaves_nothing(tmp_path: Path, victim: str) -> None:
    def job() -> None:
        import subprocess
        import time

        from dispy.node import linux

        subprocess.Popen(["sleep", "60"], start_new_session=True)
        subprocess.run(["sh", "-c", "setsid sleep 60 & setsid sleep 60 &"], check=True)
        with open("left.new", "w") as file:
            file.write(" ".join(map(str, [os.getpid(), *linux.children()])))
        os.rename("left.new", "left")
        time.sleep(60)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            at.submit()
            behind = at.submit()
            await when((tmp_path / "left").exists)
            left = list(map(int, (tmp_path / "left").read_text().split()))
            assert len(left) >= 3
            process = at.server._process
            assert process is not None
            kill(at.server.pid if victim == "fork server" else process.pid)
            await at.seen.until(lambda: bool(at.seen.server_death))
            assert at.seen.server_death == "the computation's fork server ended: killed by SIGKILL (killed)"
            death = at.seen.deaths[0]
            assert death.running == 1
            assert behind not in at.seen.replies
            await at.server.wait_ended()
            await gone(*left)

    asyncio.run(main())


DAEMON = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = {folders!r}
from serving_computation import serving

def job():
    import os, subprocess, time, ctypes
    from dispy.node import linux
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    subprocess.run(["sh", "-c", "setsid sleep 60 & setsid sleep 60 &"], check=True)
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
    with open("left.new", "w") as file:
        file.write(" ".join(map(str, [os.getpid(), os.getppid(), *linux.children()])))
    os.rename("left.new", "left")
    time.sleep(60)

async def main():
    async with serving(Path.cwd(), job) as at:
        at.submit()
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_killed_daemon_leaves_nothing(tmp_path: Path) -> None:
    source = DAEMON.format(folders=[str(Path(__file__).parent), *sys.path])
    daemon = subprocess.Popen([sys.executable, "-c", source], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "left").exists():
            assert daemon.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        daemon.kill()
        daemon.wait()
    left = list(map(int, (tmp_path / "left").read_text().split()))
    assert len(left) >= 4
    asyncio.run(gone(*left))
