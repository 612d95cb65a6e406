"""How a process ended, in words for people."""

from __future__ import annotations

import os
import signal

from dispy.node.channel import DESCRIPTORS_GONE, SETUP_FAILED
from dispy.words import size


def cause_of_death(status: int, memory: int) -> str:
    """A sentence from what `waitpid` said of a worker and the most memory that it had used, in bytes."""
    code = os.waitstatus_to_exitcode(status)
    if code == SETUP_FAILED:
        return "setup failed in the worker"
    if code == DESCRIPTORS_GONE:
        return "it has closed descriptors that are not its own, and what it returned could not be handed over"
    text = exit_words(code)
    return f"{text}; it had used up to {size(memory)} of memory" if code and memory else text


def exit_words(code: int | None) -> str:
    """An exit code as `subprocess` gives it, in words."""
    if code is None:
        return "it does not end"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    words = (signal.strsignal(-code) or "").lower()
    return f"killed by {name} ({words})" if words else f"killed by {name}"
