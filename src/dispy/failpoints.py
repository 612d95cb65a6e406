"""Points at which a test lets this process die: wherever something is persisted or sent.

`DISPY_FAILPOINT=NAME` kills the process with SIGKILL when it comes to that point for the first time, `NAME:3` for the
third. It is read when this module is imported. Without it `hit` is an empty function, and who is called often looks at
`ARMED` first; neither is called for single jobs.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

_name, _, _count = os.environ.get("DISPY_FAILPOINT", "").partition(":")
ARMED: Final = bool(_name)
_lock: Final = threading.Lock()
_left = int(_count or 1)


def _off(name: str) -> None:
    """No test is under way."""


def _on(name: str) -> None:
    global _left
    if name != _name:
        return
    with _lock:
        _left -= 1
        if not _left:
            os.kill(os.getpid(), signal.SIGKILL)


hit = _on if ARMED else _off
"""`hit(name)`: this process has come to a point. From any thread."""
