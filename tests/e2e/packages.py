"""A package of a test's own for environments of computations, and the uv to build them with."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest


def wheel(folder: Path, name: str, body: str) -> str:
    """A requirement for a package of one module, from a wheel that needs no index."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": body,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{each},,\n" for each in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(each, text)
    return f"{name} @ {path.as_uri()}"


def find_uv() -> Path:
    """A uv that can be run; skips the test when there is none."""
    for folders in (str(Path(__file__).parents[2] / ".venv-uv/bin"), os.environ["PATH"]):
        if (uv := shutil.which("uv", path=folders)) is not None:
            return Path(uv)
    pytest.skip("uv is neither in .venv-uv nor on the PATH: run scripts/real-parts")
