"""Programs as jobs of real workers."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from dispy.model import Ending

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import result, serving, text, when


def write_program(path: Path, source: str) -> Path:
    path.write_text(textwrap.dedent(source))
    path.chmod(0o755)
    return path


def test_a_program_gets_arguments_and_gives_its_exit_code(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    program = write_program(
        tmp_path / "prog.sh",
        """\
        #!/bin/sh
        echo "$1-$2"
        echo "$dispy_node_name" >&2
        pwd
        read nothing || echo no input
        exit $2
        """,
    )

    async def main() -> None:
        async with serving(folder, str(program)) as at:
            for code in (0, 7):
                reply = await at.run("a b", code)
                assert result(reply) == code
                assert text(reply, "stdout") == f"a b-{code}\n{folder}\nno input\n"
                assert text(reply, "stderr") == "here\n"

    asyncio.run(main())


def test_a_python_program_and_a_system_program(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    (tmp_path / "prog.py").write_text("import sys, os; print(sys.argv[1:]); os.kill(os.getpid(), 9)")

    async def main() -> None:
        async with serving(folder, str(tmp_path / "prog.py")) as at:
            reply = await at.run(1, "x")
            assert result(reply) == -9
            assert text(reply, "stdout") == "" or "['1', 'x']" in text(reply, "stdout")
        async with serving(folder, "false") as at:
            assert at.shipment.files == []
            assert result(await at.run()) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("just text\n", "a script that begins with #!"),
        ("#!/no/such/interpreter\n", "the interpreter that its first line names"),
    ],
)
def test_a_program_that_cannot_be_executed_says_why(tmp_path: Path, source: str, words: str) -> None:
    program = tmp_path / "prog"
    program.write_text(source)
    program.chmod(0o755)

    async def main() -> None:
        async with serving(tmp_path, str(program)) as at:
            reply = await at.run()
            assert reply.ending == Ending.RAISED
            assert words in text(reply, "error")

    asyncio.run(main())


def test_a_running_program_is_interrupted(tmp_path: Path) -> None:
    program = write_program(tmp_path / "prog", "#!/bin/sh\n: > ready\nexec sleep 60\n")
    stubborn = write_program(tmp_path / "stubborn", "#!/bin/sh\ntrap '' INT\n: > ready\nwhile :; do sleep 1; done\n")

    async def main() -> None:
        for path, number in ((program, signal.SIGINT), (stubborn, signal.SIGTERM)):
            (tmp_path / "ready").unlink(missing_ok=True)
            async with serving(tmp_path, str(path)) as at:
                sequence = at.submit()
                await when((tmp_path / "ready").exists)
                at.server.cancel(1, sequence)
                if number == signal.SIGTERM:
                    await asyncio.sleep(0.1)
                    assert not at.seen.replies
                    at.server.signal(1, sequence, number)
                reply = await at.reply(sequence)
                assert reply.ending == Ending.INTERRUPTED
                assert number.name in text(reply, "error")

    asyncio.run(main())
