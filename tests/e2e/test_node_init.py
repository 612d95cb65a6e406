"""The owner's init file: what it makes is there for jobs, and a failing one never hangs the start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dispy

SOON = 20.0
GOOD = """
import json as notation
import threading

BASE = 40
FOLDER = __file__

def more(number):
    return number + table["step"]

def init():
    global table, lock
    table = {"step": 2, "same": shared}
    lock = threading.Lock()
    return 0

def close():
    with open(FOLDER + ".closed", "w") as file:
        file.write(str(BASE))

shared = [1]
"""


def use_names() -> tuple[Any, ...]:
    return notation.dumps(more(BASE)), table["same"] is shared, "lock" in globals()  # type: ignore[name-defined]  # noqa: F821


@pytest.fixture
def init_file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "init.py"
        path.write_text(text)
        return str(path)

    return write


def test_what_init_makes_is_there_for_jobs(
    dispynode: Callable[..., Any],
    init_file: Callable[[str], str],
    free_base_port: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("DISPY_PORT", str(free_base_port))
    monkeypatch.setenv("DISPY_LOCAL", "never")
    path = init_file(GOOD)
    node = dispynode("--init", path)
    assert "jobs cannot have these names" in node.output
    assert "lock" in node.output
    cluster = dispy.JobCluster(use_names)
    program = tmp_path / "program.py"
    program.write_text("import os; print(os.environ['BASE'])\n")
    programs = dispy.JobCluster(str(program))
    try:
        job, other = cluster.submit(), programs.submit()
        assert job.finish.wait(SOON), cluster.explain(job)
        assert job.result == (json.dumps(42), True, False), job.exception
        assert other.finish.wait(SOON)
        assert other.stdout.strip() in (b"40", "40")
    finally:
        for each in (cluster, programs):
            each.close()
            each.shutdown()
    node.process.terminate()
    assert node.wait() == 0
    assert Path(path + ".closed").read_text() == "40"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def init():\n    return 3\n", "init() returned 3"),
        ("def init():\n    raise ValueError('no disk')\n", "ValueError: no disk"),
        ("this is no Python", "SyntaxError"),
        ("import os\nos._exit(5)", "exit code 5"),
        ("def init():\n    import sys\n    sys.exit('gone')\n", "SystemExit: gone"),
    ],
)
def test_an_init_that_fails_ends_the_start(
    dispynode: Callable[..., Any], init_file: Callable[[str], str], text: str, words: str
) -> None:
    node = dispynode("--init", init_file(text), ready=False)
    assert node.wait() == 1
    assert words in node.output


def test_a_file_with_nothing_but_close_is_good(dispynode: Callable[..., Any], init_file: Callable[[str], str]) -> None:
    node = dispynode("--init", init_file("def close():\n    raise RuntimeError('x')\n"))
    node.process.terminate()
    assert node.wait() == 0
    assert "close() of" in node.output
