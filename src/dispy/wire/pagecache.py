"""Large files give their pages in the kernel's cache to what follows, while they are written or read from front to end.

Memory that the kernel has not used yet can cost more than the disk, and a large file would drive out what jobs need.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import Final

CACHED_SIZE: Final = 64 << 20
"""What came last of a file stays, and so does all of a file up to this size."""
STEP: Final = 8 << 20
"""Bytes after which the disk is set to work; fewer would be scattered over it."""
LEAST_RATE: Final = 400e6
"""Bytes per second: for a disk that makes one wait longer nobody waits, since new memory is quicker than that."""
PATIENCE: Final = 0.2
"""Seconds that one may wait beyond that."""


class Trail:
    """Goes along behind whoever goes through one file."""

    def __init__(self) -> None:
        self._at = 0
        self._waited = 0.0
        self._is_over = False

    def follow(self, fd: int, end: int) -> None:
        """All before `end` was written, or read.

        The disk begins with what is new of it, and what lies further back is given up. What the disk has not written
        yet the kernel keeps, whatever it is told; where even to set the disk to work takes long because it has too much
        to do already, all further is left to the kernel.
        """
        size = end - self._at
        if size < STEP or self._is_over or not hasattr(os, "posix_fadvise"):
            return
        began = monotonic()
        for first in (self._at, self._at - CACHED_SIZE):
            start = max(first, 0)
            if first + size > start:
                os.posix_fadvise(fd, start, first + size - start, os.POSIX_FADV_DONTNEED)
        self._at = end
        self._waited += monotonic() - began
        self._is_over = self._waited > PATIENCE + end / LEAST_RATE
