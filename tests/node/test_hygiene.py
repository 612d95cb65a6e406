"""Jobs that spoil their process: their own result arrives all the same, and the next job finds nothing of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dispy.node.worker import DESCRIPTORS_GONE

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import Running, result, serving, text


def state() -> tuple[Any, ...]:
    """What a job finds."""
    import os
    import resource
    import sys
    import threading

    return (
        os.getcwd(),
        os.getresuid(),
        os.getresgid(),
        os.getgroups(),
        os.getpriority(os.PRIO_PROCESS, 0),
        sorted(os.sched_getaffinity(0)),
        [resource.getrlimit(number) for number in range(10)],
        sys.path[:],
        "json" in sys.modules,
        "os" in sys.modules,
        sys.gettrace(),
        sys.getprofile(),
        threading._trace_hook,  # type: ignore[attr-defined]
        threading._profile_hook,  # type: ignore[attr-defined]
    )


def limits() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def nice() -> None:
    import os

    os.nice(3)


def affinity() -> None:
    import os

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def modules() -> None:
    import sys

    sys.modules.clear()


def some_modules() -> None:
    import sys

    del sys.modules["os"], sys.modules["json"]


def main_module() -> None:
    import sys
    import types

    sys.modules["__main__"] = types.ModuleType("__main__")


def descriptors() -> None:
    import os

    os.closerange(3, 5000)


def descriptors_one_by_one() -> None:
    import contextlib
    import os

    for fd in range(3, 5000):
        with contextlib.suppress(OSError):
            os.close(fd)


def other_user() -> None:
    import os

    os.setgid(65534)
    os.setuid(65534)


def tracing() -> None:
    import sys

    def trace(frame: Any, event: str, argument: Any) -> Any:
        raise RuntimeError("no more calls")

    sys.settrace(trace)


def profiling() -> None:
    import sys

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "c_call":
            raise RuntimeError("no more calls")

    sys.setprofile(profile)


def profiling_and_little() -> None:
    profiling()


def tracing_for_ever() -> None:
    import sys

    def trace(frame: Any, event: str, argument: Any) -> Any:
        return trace

    sys.settrace(trace)
    sys.setprofile(lambda *_: None)


def hooks_of_threads() -> None:
    import threading

    threading.settrace(lambda *_: None)
    threading.setprofile(lambda *_: None)


def path() -> None:
    import sys

    sys.path = ["/nowhere"]


def elsewhere() -> None:
    import os

    os.chdir("/")


REPLACING: list[Callable[[], None]] = [
    *(limits, nice, affinity, modules, some_modules, main_module, other_user, tracing, tracing_for_ever),
]
KEEPING: list[Callable[[], None]] = [
    profiling,
    profiling_and_little,
    descriptors,
    descriptors_one_by_one,
    path,
    elsewhere,
    hooks_of_threads,
]


def job(spoil: Callable[[], None] | None) -> Any:
    if spoil is None:
        return state()
    print("spoiling")
    spoil()
    return 7 if spoil is profiling_and_little else bytes(100_000)  # so much that it does not go inline


@pytest.mark.parametrize("how", [*REPLACING, *KEEPING], ids=lambda how: how.__name__)
def test_what_a_job_does_to_its_process_ends_with_it(tmp_path: Path, how: Callable[[], None]) -> None:
    if how is other_user and os.geteuid() != 0:
        pytest.skip("only root can become somebody else: run the tests as root")
    if how is affinity and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU: run the tests on a machine with two")

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            before = result(await at.run(None))
            assert before[0] == str(tmp_path)
            reply = await at.run(how)
            assert text(reply, "stdout") == "spoiling\n"
            assert reply.result_size > (1 if how is profiling_and_little else 100_000)
            if how in REPLACING:
                assert (await at.death()).expected
                await fork_another(at)
            assert result(await at.run(None)) == before
            assert len(at.seen.forked) == (2 if how in REPLACING else 1)

    asyncio.run(main())


async def fork_another(at: Running) -> None:
    at.seen.deaths.clear()
    at.worker += 1
    at.server.fork(at.worker)
    await at.seen.until(lambda: at.worker in at.seen.forked)


def test_what_changes_nothing_costs_no_worker(tmp_path: Path) -> None:
    def job() -> int:
        import os
        import resource
        import subprocess

        os.nice(0)
        resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE))
        os.mkdir("folder")
        os.rename("folder", "moved")
        os.rmdir("moved")
        subprocess.run(["true"], check=True)
        return os.getpid()

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            assert result(await at.run()) == result(await at.run())
            assert not at.seen.deaths

    asyncio.run(main())


def test_noted_functions_are_still_themselves(tmp_path: Path) -> None:
    def job() -> Any:
        import os
        import pickle

        kept = pickle.loads(pickle.dumps((os.rename, os.close))) == (os.rename, os.close)
        pid = os.fork()
        if pid == 0:
            os.closerange(0, 5000)
            os._exit(5 if not os.listdir("/proc/self/fd")[1:] else 6)
        return kept, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.rename.__doc__

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            kept, code, doc = result(await at.run())
            assert (kept, code) == (True, 5)
            assert doc == os.rename.__doc__

    asyncio.run(main())


def test_descriptors_that_c_code_closes_are_told(tmp_path: Path) -> None:
    def job() -> None:
        import ctypes

        libc = ctypes.CDLL(None)
        for fd in range(3, 5000):
            libc.close(fd)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            at.submit()
            death = await at.death()
            assert death.running == 1
            assert death.cause.startswith("it has closed descriptors that are not its own"), death
            assert DESCRIPTORS_GONE

    asyncio.run(main())


def remove_directory(how: str) -> str:
    import os
    import shutil
    import subprocess

    here = os.getcwd()
    if how == "child":
        subprocess.run(["rm", "-rf", here], check=True)
    elif how == "moved":
        os.rename(here, here + "-moved")
    elif how == "itself":
        shutil.rmtree(here)
    return here


@pytest.mark.parametrize("how", ["itself", "child", "moved"])
def test_a_job_that_removes_the_directory_is_told_and_costs_the_worker(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    async def main() -> None:
        async with serving(folder, remove_directory) as at:
            reply = await at.run(how)
            assert result(reply) == str(folder)
            assert "the directory of the computation is gone" in text(reply, "stderr")
            assert (await at.death()).expected
            assert at.seen.directories_gone == 1
            folder.mkdir(exist_ok=True)
            await fork_another(at)
            assert result(await at.run("none")) == str(folder)

    asyncio.run(main())


def test_a_stopped_fork_server_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job() -> int:
        import os
        import signal

        os.kill(os.getppid(), signal.SIGSTOP)
        return 7

    monkeypatch.setattr("dispy.node.patience.ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            assert result(await at.run()) == 7
            at.server.fork(2)
            await at.seen.until(lambda: bool(at.seen.server_death))
            assert at.seen.server_death == (
                "the computation's fork server ended: it was stopped (SIGSTOP) and answered nothing for 0.5 s"
            )

    asyncio.run(main())
