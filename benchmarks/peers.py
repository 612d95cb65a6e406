"""The environments of dispy's peers: made when they are first asked for, outside the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dispy.settings import default_prefix

PACKAGES = {
    "dispy 4.15": ("original", ["dispy==4.15.2", "psutil"]),
    "dask.distributed": ("dask", ["dask==2026.8.0", "distributed==2026.8.0"]),
    "Ray": ("ray", ["ray==2.60.0"]),
    "ipyparallel": ("ipyparallel", ["ipyparallel"]),
}
"""Folder and packages of those that are not in Python or in this repository."""
INSTALL_TIMEOUT = 600.0


def default_folder() -> Path:
    """Where environments are unless a place is given."""
    return default_prefix().with_name("benchmark-peers")


def python_of(system: str, folder: Path) -> tuple[str, str]:
    """The interpreter that has this system, and why there is none (else empty)."""
    if system not in PACKAGES:
        return sys.executable, ""
    name, packages = PACKAGES[system]
    python = folder / name / "bin" / "python"
    mark = folder / f"{name}.installed"
    if python.exists() and mark.exists():
        return str(python), ""
    print(f"installing {', '.join(packages)} into {folder / name}", file=sys.stderr, flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True, capture_output=True, text=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
        subprocess.run(install, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
    except (subprocess.SubprocessError, OSError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return "", f"cannot be installed: {said[-1] if said else type(error).__name__}"
    mark.touch()
    return str(python), ""
