"""The names that a running job sees without importing anything.

Functions find them as globals, programs as environment variables.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from typing import Final

from dispy import namespace

LOGGER_NAME: Final = "dispynode"


def console_logger(fd: int) -> logging.Logger:
    """A logger that writes to the node's console, not to the job's output."""
    logger = logging.getLogger(LOGGER_NAME)
    stream = io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s job: %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    return logger


def give_names(job_names: Mapping[str, str], console: int) -> None:
    """For functions: put the names where their code finds them."""
    namespace.inject({**job_names, "dispynode_logger": console_logger(console)})


def give_environment(job_names: Mapping[str, str], directory: str) -> None:
    """For programs: put the names into the environment and the computation's directory first on PATH."""
    os.environ.update(job_names)
    os.environ["PATH"] = os.pathsep.join(filter(None, (directory, os.environ.get("PATH", ""))))
