"""Functions by which a job can change its whole process: calls of them are noted, so that what they did is looked for.

To look at everything after every job would cost more than most jobs do. What C code changes unseen is found by the
look that a worker takes every second. Standard library only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import functools
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

touched: Final[set[str]] = set()
"""Names of the functions that were called since somebody cleared this."""
changed: Final[set[str]] = set()
"""The same for what is put back after each job: `environ`, `signal`. To compare either cost as much as to run a job."""

_of_process: Final = (
    *("chroot", "nice", "setpriority", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "unshare", "setns"),
    *("setuid", "seteuid", "setreuid", "setresuid", "setgid", "setegid", "setregid", "setresgid"),
    *("setgroups", "initgroups"),
)
_of_directories: Final = ("rmdir", "rename", "replace", "fork", "forkpty", "posix_spawn", "posix_spawnp", "system")
"""The last five start what can do anything to them."""
_limits: Final = tuple(
    number for name in sorted(dir(resource)) if name.startswith("RLIMIT_") and (number := getattr(resource, name)) >= 0
)
_kept: Final[set[int]] = set()
_setrlimit: Final = resource.setrlimit


class ProcessState(NamedTuple):
    """What a job could change for all that follow it."""

    users: tuple[int, int, int]
    groups: tuple[int, int, int]
    more_groups: list[int]
    niceness: int
    cpus: set[int]
    limits: list[tuple[int, int]]


def process_state() -> ProcessState:
    """As it is now."""
    return ProcessState(
        os.getresuid(),
        os.getresgid(),
        os.getgroups(),
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getaffinity(0),
        [resource.getrlimit(number) for number in _limits],
    )


def restore_limits(limits: Iterable[tuple[int, int]]) -> None:
    """Set the limits to these again, as far as this process may: what a job gave back must still get out."""
    for number, (soft, hard) in zip(_limits, limits, strict=True):
        if (now := resource.getrlimit(number)) != (soft, hard):
            try:
                _setrlimit(number, (soft, hard))
            except (OSError, ValueError):  # it was the hard one that was lowered
                _setrlimit(number, (now[1], now[1]))


def set_limit(number: int, limits: tuple[int, int]) -> None:
    """`resource.setrlimit` for this program's own use."""
    _setrlimit(number, limits)


def install() -> None:
    """Note calls from now on, in this process and those forked from it."""
    for module, names in ((os, (*_of_process, *_of_directories)), (resource, ("setrlimit", "prlimit"))):
        for name in names:
            if hasattr(module, name):
                _replace(module, name, _noting(name, getattr(module, name)))
    _replace(_signal, "signal", _noting("signal", _signal.signal, changed))  # on which `signal.signal` rests
    environ: Any = type(os.environ)
    for name in ("__setitem__", "__delitem__"):
        setattr(environ, name, _noting("environ", getattr(environ, name), changed))
    _replace(os, "close", _closing(os.close))
    _replace(os, "closerange", _closing_range(os.closerange))
    starter: Any = subprocess.Popen
    starter.__init__ = _noting("Popen", starter.__init__)


def keep(descriptors: Iterable[int]) -> None:
    """Let `os.close` and `os.closerange` pass over these, in this process alone."""
    _kept.update(descriptors)


def keep_none() -> None:
    """A forked child may close whatever it likes."""
    _kept.clear()


def _replace(module: Any, name: str, function: Callable[..., Any]) -> None:
    # Pickle looks for a function where it says that it is from: `posix`, for most of `os`.
    for place in {module, sys.modules[function.__module__]}:
        setattr(place, name, function)


def _noting(name: str, original: Callable[..., Any], noted: set[str] = touched) -> Callable[..., Any]:
    @functools.wraps(original)
    def noting(*args: Any, **named: Any) -> Any:
        noted.add(name)
        return original(*args, **named)

    return noting


def _closing(original: Callable[[int], None]) -> Callable[[int], None]:
    @functools.wraps(original)
    def close(fd: int) -> None:
        if fd in _kept:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        original(fd)

    return close


def _closing_range(original: Callable[[int, int], None]) -> Callable[[int, int], None]:
    @functools.wraps(original)
    def closerange(fd_low: int, fd_high: int, /) -> None:
        for fd in sorted(_kept):
            if fd_low <= fd < fd_high:
                original(fd_low, fd)
                fd_low = fd + 1
        original(fd_low, fd_high)

    return closerange
