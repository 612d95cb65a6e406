"""How the node of a program that is gone is found: a file of its user that says where it listens, and its key.

The node that a program starts for itself has a key that nobody else knows. So that `recover_jobs` can fetch results
from it, it keeps one file per lease, readable by its user alone, named by the SHA-256 of the lease's token and removed
when the node ends.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Final

from dispy import settings
from dispy.model import ProcessId
from dispy.node.leftovers import start_time
from dispy.node.settings import NodeSettings

VERSION: Final = 1
"""Of the format."""


def directory() -> Path:
    """Where they are."""
    return settings.handles_dir()


def write(folder: Path, lease: bytes, node: NodeSettings, process: ProcessId, port: int) -> Path:
    """Write the file for the lease with this name.

    Raises:
        OSError: it cannot be written.
    """
    assert node.credentials.key is not None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    said = {
        "version": VERSION,
        "host": node.hosts[0],
        "port": port,
        "process": process,
        "name": node.name,
        "key": node.credentials.key.hex(),
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
    }
    path = folder / f"{lease.hex()}.json"
    fresh = path.with_suffix(f".{os.getpid()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(said, file)
    fresh.replace(path)
    return path


def remove_abandoned(folder: Path) -> None:
    """Remove those of nodes that were killed."""
    for path in folder.glob("*.json") if folder.is_dir() else ():
        # One that just went away, or that is no handle, is nobody's concern here.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(path.read_text())
            if start_time(int(said["pid"])) != said["started"]:
                path.unlink()
