"""Large files give their pages in the kernel's cache to what follows, while they are written or read from front to end.

Memory that the kernel has not used yet can cost more than the disk, and a large file would drive out what jobs need.
"""

from __future__ import annotations

import os
from typing import Final

CACHED_SIZE: Final = 64 << 20
"""What came last of a file stays, and so does all of a file up to this size."""
STEP: Final = 8 << 20
"""Bytes after which the disk is set to work; fewer would be scattered over it."""


class Trail:
    """Goes along behind whoever goes through one file."""

    def __init__(self) -> None:
        self._at = 0

    def follow(self, fd: int, end: int) -> None:
        """All before `end` was written, or read.

        The disk begins with what is new of it, and what lies further back is given up. Nothing waits here for the disk
        to end: what it has not written yet the kernel keeps, whatever it is told.
        """
        size = end - self._at
        if size < STEP or not hasattr(os, "posix_fadvise"):
            return
        for first in (self._at, self._at - CACHED_SIZE):
            start = max(first, 0)
            if first + size > start:
                os.posix_fadvise(fd, start, first + size - start, os.POSIX_FADV_DONTNEED)
        self._at = end
