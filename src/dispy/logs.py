"""The logger that users know as `dispy.logger`, with the level names of the original as attributes."""

from __future__ import annotations

import logging
import sys
from typing import Any


class DispyLogger(logging.Logger):
    """A standard logger that also carries DEBUG … CRITICAL, as programs for the original expect."""

    DEBUG = logging.DEBUG
    INFO = logging.INFO
    WARNING = logging.WARNING
    ERROR = logging.ERROR
    CRITICAL = logging.CRITICAL


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to whatever `sys.stderr` is at the time, so that redirection by the program works."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _stream: object) -> None:
        return


def _make_logger() -> DispyLogger:
    logger = DispyLogger("dispy", logging.INFO)
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s dispy - %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    return logger


logger: DispyLogger = _make_logger()
