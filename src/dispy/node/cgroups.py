"""Control groups of the kernel: the net below sampling for jobs with a memory limit, where the machine grants them.

A node makes groups only below a group that was given to it: the one in which it runs, or for v2 the one around that,
if it is the root of what is seen, is marked as delegated (systemd's `Delegate=`), or belongs to the node's own user.
So whatever holds for the node holds for its jobs too. No other group is written to; the node itself is never moved.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from dispy.node.leftovers import start_time

ROOM: Final = 32 << 20
"""Bytes beyond the limit and the output: the kernel also counts page tables and the like, which are not the job's."""
_NAME: Final = "dispy"
_CLOSE_TIMEOUT: Final = 1.0
_numbers: Final = itertools.count(1)


class Group:
    """The group of one worker."""

    def __init__(self, path: Path, *, is_v2: bool) -> None:
        self.path = path
        self.size = 0
        """Bytes beyond which the kernel ends something of it; 0: no limit."""
        self._limit = "memory.max" if is_v2 else "memory.limit_in_bytes"
        self._none = "max" if is_v2 else "-1"
        self._events = "memory.events" if is_v2 else "memory.oom_control"
        self._kills_before = 0

    def take(self, pid: int) -> None:
        """Put a process into it; what it starts from now on is in it too.

        Raises:
            OSError: the kernel refuses.
        """
        _write(self.path / "cgroup.procs", str(pid))

    def limit(self, size: int) -> None:
        """Let the kernel end what needs more than these bytes.

        Raises:
            OSError: the kernel refuses.
        """
        self._kills_before = self._kills()
        _write(self.path / self._limit, str(size))
        self.size = size

    def lift(self) -> None:
        """No limit from now on.

        Raises:
            OSError: the kernel refuses.
        """
        _write(self.path / self._limit, self._none)
        self.size = 0

    def has_killed(self) -> bool:
        """Whether the kernel has ended a process of it since the limit was set."""
        return self.size > 0 and self._kills() > self._kills_before

    def _kills(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            for line in (self.path / self._events).read_text().splitlines():
                word, _, count = line.partition(" ")
                if word == "oom_kill":
                    return int(count)
        return 0


class Groups:
    """The groups of one daemon, in a group of its own that is named after it."""

    def __init__(self, parent: Path, *, is_v2: bool) -> None:
        """Make the daemon's group below `parent`; see `find`.

        Raises:
            OSError: it cannot be made, or has no memory controller.
        """
        self._is_v2 = is_v2
        self._path = parent / f"{_NAME}-{os.getpid()}-{start_time(os.getpid()) or 0}"
        self._emptying: set[Path] = set()
        self._path.mkdir(exist_ok=True)
        try:
            if is_v2:
                _write(self._path / "cgroup.subtree_control", "+memory")
            self.remove(self.make())
        except OSError:
            self.close()
            raise

    def make(self) -> Group:
        """A group for one worker.

        Raises:
            OSError: it cannot be made.
        """
        self._sweep()
        path = self._path / f"worker-{next(_numbers)}"
        path.mkdir()
        group = Group(path, is_v2=self._is_v2)
        try:
            if self._is_v2:
                _write(path / "memory.oom.group", "1")
            group.lift()
        except OSError:
            self.remove(group)
            raise
        return group

    def remove(self, group: Group) -> None:
        """Its worker is gone, or about to be, with whatever else is in it."""
        _end(group.path)
        self._emptying.add(group.path)
        self._sweep()

    def close(self) -> None:
        """Remove all of them; what is still dying in them is waited for."""
        until = time.monotonic() + _CLOSE_TIMEOUT
        while not _removed(self._path, self._emptying) and time.monotonic() < until:
            time.sleep(0.01)

    def _sweep(self) -> None:
        self._emptying = {path for path in self._emptying if not _removed(path)}


def find(proc: Path = Path("/proc/self")) -> Groups | None:
    """Groups with the memory controller that this process may make, v2 before v1; None where there are none.

    What daemons that were killed have left there is removed.
    """
    try:
        parents = list(_parents(proc))
    except OSError:  # no /proc, or a kernel without groups
        return None
    for parent, is_v2 in parents:
        try:
            if not _is_given(parent) or not os.access(parent, os.W_OK):
                continue
            if is_v2 and not _hands_memory_down(parent):
                continue
            _remove_left(parent)
            return Groups(parent, is_v2=is_v2)
        except OSError:
            continue
    return None


def _parents(proc: Path) -> Iterator[tuple[Path, bool]]:
    """Groups that this process may have been given, and whether they are of v2."""
    mounted = mounts((proc / "mountinfo").read_text())
    own = own_groups((proc / "cgroup").read_text())
    if "" in own and "" in mounted:
        path = below(mounted[""], own[""])
        if path is not None:
            yield path, True
            if path != mounted[""][1]:
                yield path.parent, True
    if "memory" in own and "memory" in mounted:
        path = below(mounted["memory"], own["memory"])
        if path is not None:
            yield path, False


def mounts(text: str) -> dict[str, tuple[str, Path]]:
    """What is mounted where: (group, directory) by controller of v1; v2 has no name."""
    found: dict[str, tuple[str, Path]] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3 or not kinds[0].startswith("cgroup"):
            continue
        names = [""] if kinds[0] == "cgroup2" else kinds[2].split(",")
        for name in names:
            found.setdefault(name, (fields[3], Path(fields[4])))
    return found


def own_groups(text: str) -> dict[str, str]:
    """The groups of a process by controller of v1; v2 has no name."""
    found = {}
    for line in text.splitlines():
        _, names, group = line.split(":", 2)
        for name in names.split(","):
            found[name] = group
    return found


def below(mount: tuple[str, Path], group: str) -> Path | None:
    """Where a group is seen; None when it is outside of what is mounted."""
    root, at = mount
    inside = os.path.relpath(group, root)
    return None if inside.startswith("..") else at / inside


def _is_given(path: Path) -> bool:
    """Whether whoever rules the machine has left this group to this process."""
    if os.path.ismount(path) or path.stat().st_uid == os.getuid() != 0:
        return True
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _hands_memory_down(group: Path) -> bool:
    """Whether groups of v2 below this one have the memory controller; asks for it unless it is the root."""
    control = group / "cgroup.subtree_control"
    if "memory" in control.read_text().split():
        return True
    if os.path.ismount(group) or "memory" not in (group / "cgroup.controllers").read_text().split():
        return False
    _write(control, "+memory")
    return True


def _remove_left(parent: Path) -> None:
    """Remove the groups of daemons that do not run any more."""
    for path in parent.glob(f"{_NAME}-*-*"):
        _, pid, began = path.name.split("-", 2)
        if pid.isdecimal() and began.isdecimal() and start_time(int(pid)) != int(began):
            for each in path.glob("worker-*"):
                _end(each)
            _removed(path, path.glob("worker-*"))


def _end(path: Path) -> None:
    """Let the kernel kill all that is in a group at once, where it can (v2 since Linux 5.14)."""
    with contextlib.suppress(OSError):
        _write(path / "cgroup.kill", "1")


def _removed(path: Path, below: Iterable[Path] = ()) -> bool:
    """Remove a group and some below it; False while something lives there."""
    for each in below:
        _removed(each)
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
