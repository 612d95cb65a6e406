"""Memory for something large, as private pages and as files that nobody can change. Standard library only.

Most of the time that it takes to fill new memory goes into its pages; large pages are five times as quick.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import mmap
import os
from collections.abc import Iterable
from typing import Any, Final

_MAP_FIXED: Final = 0x10
_BUFFER_VIEW_WORDS: Final = 16
"""At least as many as Python's description of a buffer has; the first is its address."""


def private(size: int) -> memoryview:
    """Zeroed memory of this process, given back when nothing refers to it any more.

    Args:
        size: bytes, more than 0.

    Raises:
        OSError: there is not so much.
    """
    memory = _anonymous(size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them has small ones
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _anonymous(size: int, protection: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, protection)
    except OverflowError:
        raise OSError(errno.ENOMEM, "Cannot allocate memory") from None


def copy(content: memoryview) -> memoryview:
    """The bytes of something that may change, as they are now.

    Raises:
        MemoryError: there is no room for them.
    """
    try:
        memory = private(len(content))
    except OSError as error:
        raise MemoryError(f"a copy of {len(content):,} bytes cannot be made: {error.strerror}") from error
    memory[:] = content
    return memory


def memory_file(name: str, parts: Iterable[bytes | bytearray | memoryview]) -> int:
    """A file in memory with this content, which nobody can change any more; returns its descriptor (Linux only).

    Raises:
        OSError: there is no memory or no descriptor for it.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        write_all(fd, parts)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _seals() | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_sealed(fd: int) -> bool:
    """Whether it is a file in memory that nobody can change: whoever maps it is safe from whoever made it."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _seals() == _seals()
    except OSError:
        return False


def _seals() -> int:
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def write_all(fd: int, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write parts one after another. Raises OSError."""
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]


def mapped(fd: int, *, shared: bool = False) -> mmap.mmap:
    """The content of a file, and memory of this process where it is written to (Linux only).

    With `shared` it is the same memory for all who map it, and nobody can write there. Nothing keeps a descriptor, of
    which a process has few, and which a job could close: memory is made first, and the file put into its place. It goes
    when really nobody refers to it; a destructor in Python would be called while others, in the same garbage, may still
    look at it.

    Raises:
        OSError: it is empty, or there is no room for it.
    """
    import ctypes  # most programs need it never

    size = os.fstat(fd).st_size
    if not size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    protection = mmap.PROT_READ if shared else mmap.PROT_READ | mmap.PROT_WRITE
    made = _anonymous(size, protection)
    view = (ctypes.c_void_p * _BUFFER_VIEW_WORDS)()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(made), ctypes.byref(view), 0)
    address = view[0]
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    flags = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | _MAP_FIXED
    if _mmap()(address, size, protection, flags, fd, 0) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return made


@functools.cache
def _mmap() -> Any:
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).mmap
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    function.restype = ctypes.c_void_p
    return function
