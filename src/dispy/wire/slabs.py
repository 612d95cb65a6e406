"""Memory to receive into: for pieces of files, used again as soon as nobody looks at it any more, and for links.

A fresh MiB is 256 page faults; a file of 1 GB took a tenth of its time for them. Pure.
"""

from __future__ import annotations

import mmap
from collections import deque
from typing import Final

SLAB_SIZE: Final = (1 << 20) + (4 << 10)
"""A large chunk with the header of its frame."""
SLABS: Final = 24
"""As many as are under way in the windows of two fast links."""
_LEAST: Final = 256 << 10
"""Smaller pieces are in memory that Python keeps anyway."""


def untouched(size: int) -> memoryview:
    """Zeroed memory of which the kernel gives each page when it is first written to: a link seldom fills its own.

    Raises:
        OSError: there is not so much.
    """
    return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Slabs:
    """Memory of one process, for any of its threads."""

    def __init__(self) -> None:
        self._slabs: deque[bytearray] = deque(maxlen=SLABS)

    def take(self, size: int) -> memoryview:
        """Memory of this size with anything in it; it is used for somebody else when no view of it is left."""
        if not _LEAST <= size <= SLAB_SIZE:
            return memoryview(bytearray(size))
        slabs = self._slabs
        for _ in range(len(slabs)):
            try:
                slab = slabs.popleft()  # nobody else has it now
            except IndexError:
                break
            try:
                slab.append(0)  # not as long as there is a view
            except BufferError:
                slabs.append(slab)
                continue
            slab.pop()
            view = memoryview(slab)[:size]
            slabs.append(slab)
            return view
        slab = bytearray(SLAB_SIZE)
        view = memoryview(slab)[:size]
        slabs.append(slab)
        return view


slabs: Final = Slabs()
