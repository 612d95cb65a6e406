"""Virtual environments of computations: built once, and again when something of them is missing."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
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
