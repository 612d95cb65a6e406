"""What a start of each kind of process loads: modules are counted, not seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "aiohttp",
    "cloudpickle",
    "configparser",
    "cryptography",
    "multiprocessing",
    "pickle",
    "platformdirs",
    "psutil",
    "rich",
    "shutil",
    "sqlite3",
    "tempfile",
    "xml",
}
OF_USER_CODE = {
    "dispy.namespace",
    "dispy.node.calls",
    "dispy.node.forkserver",
    "dispy.node.hygiene",
    "dispy.node.jobside",
    "dispy.node.worker",
}
OF_FEW_PROGRAMS = {
    "click",
    "difflib",
    "dispy.cli",
    "dispy.node",
    "dispy.recover",
    "dispy.scheduler.invariants",
    "dispy.sharing",
    "json",
    "tomllib",
}
OF_FEW_NODES = {"dispy.node.console", "dispy.node.embedded", "dispy.node.handles", "dispy.node.launch"}


def loaded(statement: str) -> set[str]:
    """The modules that a new interpreter has after this statement, as far as they are heavy or ours."""
    told = "import sys\nprint(*sys.modules)"
    # -S: what is installed beside dispy may load anything at the start of an interpreter
    paths = [each for each in sys.path if each]
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {paths!r}\n{statement}\n{told}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        pytest.param("import dispy.node.cli", HEAVY | OF_USER_CODE | OF_FEW_NODES | {"dataclasses"}, id="dispynode"),
        pytest.param(
            "import dispy.node.forkserver",
            {"asyncio", "click", "msgspec", "psutil", "ssl", "dispy.wire", "dispy.node.core"},
            id="fork server",
        ),
        pytest.param("import dispy", {"asyncio", "msgspec", "dispy.cluster", "ssl"}, id="dispy"),
        pytest.param(
            "import dispy; dispy.JobCluster",
            HEAVY - {"cloudpickle", "pickle"} | OF_FEW_PROGRAMS,
            id="JobCluster",
        ),
    ],
)
def test_a_start_loads_nothing_that_it_does_not_need(statement: str, unwanted: set[str]) -> None:
    assert not sorted(loaded(statement) & unwanted)
