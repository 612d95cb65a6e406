"""Loading, setup, cleanup and the choice where setup runs, with a real fork server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dispy.model import Ending
from dispy.node import channel, linux
from dispy.node.replies import ForkServerSpec, SetupFailed
from dispy.node.workers import ForkServer
from dispy.shipping import dumps_setup_args, pack

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import Recorder, other_python, result, serving, text


def test_setup_runs_once_in_the_computations_directory_before_all_workers(tmp_path: Path) -> None:
    state: dict[str, Any] = {}

    def setup() -> int:
        import os

        state["pid"] = os.getpid()
        with open("setup", "a") as file:
            file.write("ran\n")
        return 0

    def job() -> Any:
        import os

        return state["pid"] == os.getppid(), dispy_node_name, dispy_job_path  # type: ignore[name-defined] # noqa: F821

    async def main() -> None:
        async with serving(tmp_path, job, setup=setup, workers=2) as at:
            assert at.server.setup_in == "node"
            for at.worker in (1, 2):
                assert result(await at.run()) == (True, "here", str(tmp_path))
        assert (tmp_path / "setup").read_text() == "ran\n"

    asyncio.run(main())


def _raises() -> None:
    raise ValueError("no data")


@pytest.mark.parametrize(
    ("setup", "reason", "trace", "killed"),
    [
        (lambda: 3, "setup returned 3; 0 or nothing means success", "", False),
        (lambda: sys.exit(2), "setup failed: SystemExit: 2", "SystemExit", False),
        (_raises, "setup failed: ValueError: no data", "_raises", False),
        (lambda: os._exit(9), "while it was set up, the computation's fork server ended: exit code 9", "", False),
        (lambda: os.abort(), "ended: killed by SIGABRT (aborted)", "", True),
    ],
)
def test_a_failed_setup_says_why(tmp_path: Path, setup: Any, reason: str, trace: str, killed: bool) -> None:
    async def main() -> None:
        with pytest.raises(SetupFailed) as failure:
            async with serving(tmp_path, len, setup=setup):
                pass
        assert reason in failure.value.reason
        assert trace in failure.value.trace
        assert failure.value.killed is killed
        assert "node/forkserver.py" not in failure.value.trace

    asyncio.run(main())


class _OnceLoaded:
    """Calls a function with arguments where it is unpickled."""

    def __init__(self, function: str, *arguments: object) -> None:
        self.call = f"__import__('os').{function}({', '.join(map(str, arguments))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.call,)


@pytest.mark.parametrize("victim", ["getpid", "getppid"])
def test_a_fork_server_or_its_guard_killed_while_it_starts_leaves_nothing(tmp_path: Path, victim: str) -> None:
    """Nobody has heard of the fork server yet, and nobody else waits for it when its guard is gone."""
    fatal = _OnceLoaded("kill", f"__import__('os').{victim}()", 9)
    before = set(linux.children())

    async def main() -> None:
        with pytest.raises(SetupFailed) as failure:
            async with serving(tmp_path, lambda: fatal):
                pass
        assert failure.value.killed
        cause = "while it started, the computation's fork server ended: killed by SIGKILL (killed)"
        assert failure.value.reason == cause

    asyncio.run(main())
    assert set(linux.children()) <= before


def test_a_guard_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    before = set(linux.children())

    async def main() -> None:
        async with serving(tmp_path, os.getppid, workers=2) as at:
            [guard] = set(linux.children()) - before
            os.kill(guard, signal.SIGKILL)
            await at.seen.until(lambda: bool(at.seen.server_death))

    asyncio.run(main())
    assert set(linux.children()) <= before


def test_code_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        spec = ForkServerSpec(sys.executable, tmp_path, dict(os.environ), "function", "x", b"garbage")
        with pytest.raises(SetupFailed, match="loading the code failed"):
            await ForkServer(spec, Recorder()).start()

    asyncio.run(main())


def test_cleanup_runs_with_setups_arguments_and_reports_its_failure(tmp_path: Path) -> None:
    def setup(name: str) -> None:
        with open(name, "w") as file:
            file.write("made")

    def cleanup(name: str) -> None:
        import os

        os.remove(name)
        raise OSError("half done")

    async def main() -> None:
        shipment = pack(len, setup=setup, cleanup=cleanup)
        arguments = dumps_setup_args(shipment, ("data",))
        spec = ForkServerSpec(
            sys.executable, tmp_path, dict(os.environ), "function", "len", shipment.code, setup_args=arguments
        )
        for file in shipment.files:
            (tmp_path / file.dest).write_bytes(file.path.read_bytes())
        server = ForkServer(spec, Recorder())
        await server.start()
        assert (tmp_path / "data").read_text() == "made"
        trace = await server.cleanup()
        assert "OSError: half done" in trace
        assert not (tmp_path / "data").exists()
        server.kill()
        await server.wait_ended()
        assert await server.cleanup() == ""

    asyncio.run(main())


def test_a_setup_that_leaves_threads_runs_in_every_worker(tmp_path: Path) -> None:
    state: dict[str, Any] = {}

    def setup() -> None:
        import os
        import threading

        lock = threading.Lock()
        ready = threading.Event()

        def hold() -> None:
            with lock:
                ready.set()
                threading.Event().wait()

        threading.Thread(target=hold, daemon=True).start()
        ready.wait()
        state["pid"] = os.getpid()
        state["lock"] = lock

    def job() -> Any:
        import os
        import threading

        return state["pid"] == os.getpid(), state["lock"].locked(), threading.active_count()

    async def main() -> None:
        async with serving(tmp_path, job, setup=setup, workers=2) as at:
            assert at.server.setup_in == "worker"
            for at.worker in (1, 2):
                assert result(await at.run()) == (True, True, 2)
                assert result(await at.run()) == (True, True, 2), "its own threads do not cost the worker"
            assert not at.seen.deaths

    asyncio.run(main())


def test_setups_own_children_live_as_long_as_the_fork_server(tmp_path: Path) -> None:
    state: dict[str, Any] = {}

    def setup() -> None:
        import subprocess

        state["child"] = subprocess.Popen(["sleep", "60"])

    def job(die: bool) -> bool:
        import os

        from dispy.node import linux

        if die:
            os._exit(1)
        return linux.is_gone(state["child"].pid)

    async def main() -> None:
        async with serving(tmp_path, job, setup=setup) as at:
            at.submit(True)
            await at.death()
            at.seen.deaths.clear()
            at.server.fork(2)
            at.worker = 2
            assert result(await at.run(False)) is False

    asyncio.run(main())


def test_secrets_do_not_reach_user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPY_SECRET", "hidden")
    monkeypatch.setenv("DISPY_SECRET_FILE", "/hidden")

    def job() -> list[str]:
        import os

        return [name for name in os.environ if name.startswith("DISPY_SECRET")]

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            assert result(await at.run()) == []

    asyncio.run(main())


CODE_OF_ANOTHER = """
import dataclasses, pickle, sys, types
sys.path[:0] = {folders!r}

class Struct:  # in place of msgspec's, which is compiled for the Python of the tests
    def __init_subclass__(cls, **options):
        dataclasses.dataclass(cls)

sys.modules["msgspec"] = types.SimpleNamespace(Struct=Struct, field=dataclasses.field)
from dispy import shipping

def helper(x):
    return x * 2

def compute(x):
    import sys
    print("hello")
    return helper(x), sys.version_info[:2]

def stop(x):
    import time
    time.sleep(60)

shipment = shipping.pack(compute)
with open(sys.argv[1], "wb") as file:
    pickle.dump((shipment.code, shipping.dumps_arguments(shipment, (21,), {{}})), file)
"""


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_functions_in_another_interpreter(tmp_path: Path, version: str) -> None:
    import pickle

    import cloudpickle

    import dispy

    python = other_python(version)
    folders = [str(Path(module.__path__[0]).parent) for module in (dispy, cloudpickle)]
    script = tmp_path / "client.py"
    script.write_text(CODE_OF_ANOTHER.format(folders=folders))
    subprocess.run([python, str(script), str(tmp_path / "code")], check=True)
    code, arguments = pickle.loads((tmp_path / "code").read_bytes())

    async def main() -> None:
        spec = ForkServerSpec(python, tmp_path, dict(os.environ), "function", "compute", code)
        seen = Recorder()
        server = ForkServer(spec, seen)
        await server.start()
        try:
            server.fork(1)
            server.feed(1, [(1, arguments), (2, b"garbage"), (3, arguments)])
            await seen.until(lambda: 3 in seen.replies)
            major, minor = version.split(".")
            assert result(seen.replies[3]) == (42, (int(major), int(minor)))
            assert text(seen.replies[3], "stdout") == "hello\n"
            assert seen.replies[2].ending == Ending.RAISED
        finally:
            server.kill()
            await server.wait_ended()

    asyncio.run(main())


def test_control_frames_are_cut_wherever_reads_end() -> None:
    frames = [
        (channel.LOAD, {"kind": "function"}, b"x" * 100),
        (channel.FORK, {"worker": 3}, b""),
        (channel.CLEANUP, {}, b""),
    ]
    stream = b"".join(channel.control_frame(*frame) for frame in frames)
    for size in (1, 7, 64, len(stream)):
        reader = channel.ControlReader()
        seen = []
        for at in range(0, len(stream), size):
            seen += list(reader.feed(stream[at : at + size]))
        assert seen == frames


def test_nothing_that_needs_an_installation_is_imported() -> None:
    """A fork server runs in interpreters that have nothing but the standard library."""
    code = (
        "import sys; before = set(sys.modules); import dispy.node.forkserver; "
        "print(*sorted({n.partition('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(shown) <= {"dispy", "cloudpickle"}
