"""How long a process of this machine may be silent where more processes want its CPUs than there are.

Silence tells of a machine that is gone or a network that is broken. A process of the own machine that ends is known
at once, since its connections end with it; one that is silent is stopped, or waits for a CPU. Giving it up would make
it dial again, which takes more of what is short.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

USUAL: Final = 4.0
"""Processes for each CPU with which answers come as soon as the timeouts expect."""
LONGEST: Final = 24.0
"""How many times longer silence may last at most."""
_LOAD: Final = Path("/proc/loadavg")


def patience_here() -> float:
    """How many times longer than usual a process of this machine may be silent now."""
    return patience_among(_waiting(), os.cpu_count() or 1)


def patience_among(waiting: float, cpus: int) -> float:
    """The same where so many processes want so many CPUs: each gets as much less of one."""
    return min(LONGEST, max(1.0, waiting / cpus / USUAL))


def _waiting() -> float:
    """Processes that want a CPU, now or in the mean of the last minute, whichever are more."""
    mean = os.getloadavg()[0]
    with contextlib.suppress(OSError, ValueError, IndexError):  # only Linux counts those of this moment
        return max(mean, float(_LOAD.read_text().split()[3].partition("/")[0]))
    return mean
