"""Programs in the style in which users of the original write them run, unchanged, on a node that they find."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).resolve().parent / "programs"
EXPECTED = {
    "classic": [
        *(" executed job 4 at ", "speedup"),
        "True ran 2: task 2 took 0.01",
        *("guessing has ended: True", "before its time: True"),
    ],
    "memory": [
        *("127.0.0.1: md5 : ", "127.0.0.1: sha256 : ", "shared: 46"),
        *("Allocate 2 cpus on one", "node one is ready with 2 CPUs for two"),
        "after one: [(0, 'text of one'), (1, 'text of one'), (2, 'text of one')]",
        "after two: [(0, 'text of two'), (1, 'text of two'), (2, 'text of two')]",
    ],
    "steering": [
        *("node 127.0.0.1 with 2 CPUs available", "sha1sum for 3: 40", "at most 10 pending: True"),
        *("delegated: 42", "delegated: 7-7-7", "long run: ('stopped', True), True", "127.0.0.1: 0 update"),
    ],
}


def test_every_program_is_run() -> None:
    assert {path.stem for path in PROGRAMS.glob("*.py")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_old_program(name: str, dispynode: Callable[..., Any], free_base_port: int, tmp_path: Path) -> None:
    dispynode("--cpus", "2", name="one")
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / f"{name}.py")],
        env={**os.environ, "DISPY_PORT": str(free_base_port), "DISPY_LOCAL": "never"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    for text in EXPECTED[name]:
        assert text in done.stdout, done.stdout + done.stderr
