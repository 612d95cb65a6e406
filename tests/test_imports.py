"""What a start of each kind of process loads: modules are counted, not seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_a_node_that_joins_loads_nothing_for_those_that_might_dial_it(tmp_path: Path, free_base_port: int) -> None:
    """Hundreds of them may start on one machine: neither for their certificate nor for who has their usual port."""
    statement = f"""
import asyncio
from dispy.node import service
from dispy.node.vitals import count_gpus
from dispy.node.settings import NodeSettings
from dispy.secrets import find_credentials
from pathlib import Path

async def work():
    place = ("127.0.0.1", {free_base_port})
    node = service.NodeService(NodeSettings(
        name="n", cpus=1, prefix=Path({str(tmp_path)!r}) / "node", credentials=find_credentials(secret="s" * 32),
        interfaces=("lo",), base_port={free_base_port + 1}, joins=(place,)))
    await node.start()
    await node.close()

count_gpus()
asyncio.run(work())
"""
    unwanted = HEAVY - {"psutil"} | OF_USER_CODE | OF_FEW_NODES | {"encodings.idna", "unicodedata", "zlib", "bz2"}
    assert not sorted(loaded(statement) & unwanted)
