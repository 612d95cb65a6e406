"""Virtual environments of computations: built once, and again when something of them is missing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from dispy.node.replies import SetupFailed
from dispy.node.venvs import VirtualEnvironments


class Builder(VirtualEnvironments):
    """Makes what looks like an environment, and counts."""

    built = 0
    fails = False

    async def _build(self, python: str, requirements: Sequence[str], place: Path) -> None:
        self.built += 1
        (place / "bin").mkdir(parents=True)
        (place / "half").touch()
        if self.fails:
            raise SetupFailed("no index")
        (place / "bin/python").symlink_to(python)


@pytest.fixture
def venvs(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "environments", tmp_path / "own", {})


def provide(venvs: Builder, *requirements: str) -> Path:
    return Path(asyncio.run(venvs.provide(sys.executable, requirements)))


def test_one_is_built_once_and_others_apart(venvs: Builder) -> None:
    assert provide(venvs, "numpy") == provide(venvs, "numpy")
    assert venvs.built == 1
    assert provide(venvs, "numpy", "scipy") != provide(venvs, "numpy")
    assert venvs.built == 2


def test_one_whose_interpreter_has_gone_is_built_again(venvs: Builder) -> None:
    python = provide(venvs, "numpy")
    python.unlink()
    assert os.access(provide(venvs, "numpy"), os.X_OK)
    python.unlink()
    python.symlink_to("/nowhere/python")  # the Python that it was made from was removed
    assert os.access(provide(venvs, "numpy"), os.X_OK)
    shutil.rmtree(python.parent)
    provide(venvs, "numpy")
    assert venvs.built == 4


def test_one_that_was_not_finished_is_built_again(venvs: Builder) -> None:
    venvs.fails = True
    with pytest.raises(SetupFailed):
        provide(venvs, "numpy")
    venvs.fails = False
    assert provide(venvs, "numpy").exists()
    assert venvs.built == 2


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


BUILDING = """
import asyncio, sys
from pathlib import Path
from dispy.node.venvs import VirtualEnvironments

root, path = sys.argv[1:]
venvs = VirtualEnvironments(Path(root, "environments"), Path(root, "own"), {"PATH": path})
print(asyncio.run(venvs.provide(sys.executable, ["numpy"])))
"""


def test_one_whose_builder_was_killed_before_it_was_marked_is_built_again(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    work = f'echo "$1" >>{calls}; test "$1" != venv || {{ mkdir -p "$4/bin" && ln -s "$3" "$4/bin/python"; }}'
    uv = script(tmp_path / "path/uv", work)

    def build(failpoint: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", BUILDING, str(tmp_path), f"{uv.parent}:/usr/bin:/bin"]
        env = {**os.environ, "DISPY_FAILPOINT": failpoint}
        return subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, timeout=60)

    assert build("environment.before-done").returncode == -signal.SIGKILL
    [half] = (tmp_path / "environments").glob("*/bin/python")
    assert half.exists()
    before = calls.read_text()
    done = build("")
    assert done.stdout == f"{half}\n"
    assert calls.read_text() == 2 * before, "what was there was not trusted"
    assert build("").stdout == done.stdout
    assert calls.read_text() == 2 * before, "now it is"


@pytest.mark.parametrize("found", ["path", "own", "none"])
def test_uv_is_used_if_it_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """That of the PATH first, then that beside the daemon's Python; else venv and pip."""
    said = tmp_path / "said"
    work = f'test "$1" = --version || {{ echo "$0 $*" >>{said}; pwd >>{said}; }}'
    on_path = script(tmp_path / "path/uv", work if found == "path" else "exit 1")
    own = script(tmp_path / "own/uv", work if found != "none" else "exit 1")
    python = script(tmp_path / "python/python", work)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(own.parent))
    root = tmp_path / "environments"
    root.mkdir()
    venvs = VirtualEnvironments(root, tmp_path / "links", {"PATH": f"{on_path.parent}:/usr/bin:/bin"})
    place = root / "place"
    building = venvs._build(str(python), ["--pre", "numpy"], place)
    if found == "none":
        with pytest.raises(SetupFailed, match="cannot be started"):  # this Python makes no environment with a pip
            asyncio.run(building)
        expected = [f"{python} -m venv {place}"]
    else:
        asyncio.run(building)
        uv = on_path if found == "path" else own
        packages = f"--python {place}/bin/python --prerelease=allow --requirement {place}.txt"
        expected = [f"{uv} venv --python {python} {place}", f"{uv} pip install {packages}"]
    lines = said.read_text().splitlines()
    assert lines[::2] == expected
    assert set(lines[1::2]) == {str(root)}, "settings of uv or modules of somebody else may lie elsewhere"
