"""How fork servers are started: other interpreters, and what is missing."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from pathlib import Path

import pytest

from dispy.node.replies import ForkServerSpec, SetupFailed
from dispy.node.workers import ForkServer

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import other_python, serving, text


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_another_interpreter(tmp_path: Path, version: str) -> None:
    program = tmp_path / "prog.py"
    program.write_text("import sys; print(sys.version_info[:2])")
    python = other_python(version)

    async def main() -> None:
        async with serving(tmp_path, str(program), python=python) as at:
            major, minor = version.split(".")
            assert text(await at.run(), "stdout") == f"({major}, {minor})\n"

    asyncio.run(main())


def test_an_interpreter_that_does_not_exist(tmp_path: Path) -> None:
    spec = ForkServerSpec("/no/such/python", tmp_path, {}, "program", "x")

    async def main() -> None:
        with pytest.raises(SetupFailed, match="/no/such/python cannot be started"):
            await ForkServer(spec, None).start()  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_fork_server_that_may_have_too_few_descriptors_says_so_for_now(tmp_path: Path) -> None:
    """The limit may be lowered while a node runs, and raised again: nothing is wrong with the computation."""

    async def scenario() -> None:
        server = ForkServer(ForkServerSpec(sys.executable, tmp_path, dict(os.environ), "program", "x"), None)  # type: ignore[arg-type]
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
        try:
            with pytest.raises(SetupFailed, match=r"descriptors from 500 on cannot be had here") as caught:
                await server.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert not caught.value.final

    asyncio.run(scenario())
