"""What Linux offers for keeping and ending processes and for files in memory; standard library only.

Used by the daemon, the fork server and the workers, so that nothing that user code starts outlives them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Container
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_KEEP_SIZE_AND_PUNCH_HOLE: Final = 1 | 2
_LINE_BUFFERED: Final = 1

_EXHAUSTIONS: Final = {
    errno.EMFILE: "no file descriptors are left to this process (`ulimit -n`)",
    errno.ENFILE: "no file descriptors are left on this machine",
    errno.EAGAIN: "no more processes or threads are allowed (`ulimit -u`, or the pids of a control group)",
    errno.ENOMEM: "no memory is left",
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
}

_LOOK_ONLY: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT

flush_c_output = _libc.fflush
"""`flush_c_output(None)` writes out what C code has printed."""


def buffer_c_output_by_line() -> None:
    """Let C's stdout write at each end of line, so that its order with Python's output is kept."""
    _libc.setvbuf(ctypes.c_void_p.in_dll(_libc, "stdout"), None, _LINE_BUFFERED, 0)


def become_subreaper() -> None:
    """Make orphans below this process its children, however they detached themselves."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def name_process(name: str) -> None:
    """Set what `ps` and `top` show (15 characters)."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """End this process by SIGKILL when the thread that forked it ends; at once if that has happened already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(111)


def refuse_new_privileges() -> None:
    """Let no program that this process or one below it starts have more rights than it (setuid, capabilities)."""
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def punch(fd: int, offset: int, size: int) -> None:
    """Give back the memory of a part of a file; it reads as zeros, the file keeps its size."""
    if _libc.fallocate(fd, _KEEP_SIZE_AND_PUNCH_HOLE, offset, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def has_children() -> bool:
    """Whether this process has any child, dead or alive; not by `os.waitid`, whose exception costs 1 µs per job."""
    return _libc.waitid(0, 0, None, _LOOK_ONLY) == 0  # type: ignore[no-any-return]


def children() -> list[int]:
    """The pids of this process's children, zombies too."""
    found: list[int] = []
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:
        return _children_by_scan()
    return found


def _children_by_scan() -> list[int]:
    """For kernels without CONFIG_PROC_CHILDREN."""
    me = str(os.getpid())
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
            if file.read().rpartition(")")[2].split()[1] == me:
                found.append(int(entry))
    return found


def end_children(keep: Container[int] = ()) -> int:
    """Kill and reap every child except those to keep, until none is left; returns how many had to be killed.

    In a subreaper the children of the killed come to it, so that this reaches everything below.
    """
    killed = 0
    untouchable: set[int] = set()
    while True:
        pids = [pid for pid in children() if pid not in keep and pid not in untouchable]
        if not pids:
            return killed
        for pid in pids:
            try:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    continue
                os.kill(pid, signal.SIGKILL)
                killed += 1
                os.waitpid(pid, 0)
            except PermissionError:
                untouchable.add(pid)  # it runs as somebody else (sudo); waiting for it could take forever
            except (ProcessLookupError, ChildProcessError):
                continue  # gone between the look and the kill


def is_gone(pid: int) -> bool:
    """Whether no such process runs; a zombie is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def private_memory(pid: int | str = "self") -> int:
    """Bytes of a process (this one) that it shares with no file and no memfd (an upper bound after a fork)."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        pages = file.read().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGESIZE")


def data_size() -> int:
    """Bytes of private writable memory that this process has reserved: what RLIMIT_DATA counts."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0


def exhaustion(error: OSError) -> str:
    """What a machine or process has run out of, by the error that says so; empty for other errors."""
    return _EXHAUSTIONS.get(error.errno or 0, "")


def read_output(fd: int, at: int, end: int, limit: int) -> bytes:
    """What lies between two offsets of an output memfd; beyond the limit its head and tail with a note between.

    `at` may be anything: it comes from the cell, into which jobs can write.
    """
    at = min(at, end)
    if end - at <= limit:
        return os.pread(fd, end - at, at)
    half = limit // 2
    note = b"\n... %d bytes left out ...\n" % (end - at - 2 * half)
    return b"".join((os.pread(fd, half, at), note, os.pread(fd, half, end - half)))
