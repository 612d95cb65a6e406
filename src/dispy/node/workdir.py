"""The directory of a node: one daemon's at a time, with a directory for each computation and nothing left behind.

Files of users are written beneath a directory descriptor, component by component, so that no name leads outside.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import signal
import time
from pathlib import Path

from msgspec import Struct, field

from dispy import failpoints, owndirectory
from dispy.errors import NodeError, TransferError
from dispy.model import ComputationSpec, FileSpec
from dispy.node import identity, leftovers
from dispy.node.leftovers import start_time
from dispy.node.placing import place_file
from dispy.owndirectory import NODE, remove_tree
from dispy.wire import beneath
from dispy.wire.blobstore import BlobStore

logger = logging.getLogger("dispy.node")

_END_TIMEOUT = 10.0


class DirectoryGone(NodeError):
    """Somebody has removed the node's own directory, and it cannot be made again for now."""


class Prefix:
    """The daemon's own directory, locked while it lives."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._is_open = False
        """Whether other users may come to what is theirs."""
        self._processes: dict[int, int] = {}
        self._marks: set[str] = set()
        self._directories: set[str] = set()

    @classmethod
    def claim(cls, path: Path, *, clean: bool = False) -> Prefix:
        """Make the directory, lock it, and end what a daemon that was killed has left.

        With `clean` a daemon that has it is ended first, and everything in it removed.

        Raises:
            NodeError: another daemon has it (the sentence names its pid), or it cannot be made or written.
        """
        try:
            lock = _own(path, clean)
        except OSError as error:
            raise NodeError(f"the node's directory {path} cannot be used: {error.strerror}") from error
        path = path.resolve()
        try:
            prefix = cls(path, lock)
            prefix._end_leftovers()
            if clean:
                owndirectory.empty(path, NODE, stay=frozenset({identity.FILE}))
            prefix._make_places()
        except OSError as error:
            os.close(lock)
            raise NodeError(f"the node's directory {path} cannot be used: {error.strerror}") from error
        return prefix

    def renew(self) -> None:
        """Make the directory again, and lock it, where somebody has removed it (a tool that empties caches).

        Raises:
            DirectoryGone: it cannot be made, or another node has it by now.
        """
        if self._is_ours():
            return
        path = self.path
        try:
            lock = _own(path, clean=False)
            try:
                self._make_places()
                if self._is_open:
                    self.let_in()
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            why = (
                f"{path} was removed and cannot be made again: {error.strerror}; make that possible, it is tried again"
            )
            raise DirectoryGone(f"the node's directory {why}") from error
        except NodeError as error:
            raise DirectoryGone(f"the node's directory was removed; {error}") from error
        os.close(self._lock)
        self._lock = lock
        self._write_down()
        logger.warning("somebody has removed the node's directory %s; it is made again", path)

    def _is_ours(self) -> bool:
        try:
            there, own = os.stat(self.path / "lock"), os.fstat(self._lock)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)

    def _make_places(self) -> None:
        for name in ("jobs", "named", "blobs"):
            (self.path / name).mkdir(exist_ok=True)

    def let_in(self) -> None:
        """Let other users come to the directories that are theirs; they cannot list what is here.

        Raises:
            NodeError: it cannot be changed.
        """
        self._is_open = True
        try:
            self.path.chmod(0o711)
            (self.path / "jobs").chmod(0o711)
            (self.path / "named").chmod(0o711)
            (self.path / "blobs").chmod(0o700)
        except OSError as error:
            raise NodeError(f"the node's directory {self.path} cannot be opened: {error.strerror}") from error

    def release(self, *, remove: bool = False) -> None:
        """Let another daemon have it, or remove it with all that nodes have made in it."""
        if remove and self._is_ours():
            owndirectory.remove(self.path, NODE)
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def add_process(self, pid: int) -> None:
        """Write down a process that must not outlive the daemon."""
        self._processes[pid] = start_time(pid) or 0
        self._write_down()

    def forget_process(self, pid: int) -> None:
        """It has ended."""
        if self._processes.pop(pid, None) is not None:
            self._write_down()

    def add_mark(self, mark: str) -> None:
        """Write down a mark that processes carry which must not outlive the daemon."""
        self._marks.add(mark)
        self._write_down()

    def forget_mark(self, mark: str) -> None:
        """No process carries it any more."""
        self._marks.discard(mark)
        self._write_down()

    @property
    def open_directories(self) -> list[Path]:
        """Those of computations that are open."""
        return [Path(name) for name in tuple(self._directories)]

    def add_directory(self, path: Path) -> None:
        """Write down a directory that must not outlive the daemon."""
        self._directories.add(str(path))
        self._write_down()

    def forget_directory(self, path: Path) -> None:
        """It has been removed, or shall stay."""
        self._directories.discard(str(path))
        self._write_down()

    def _write_down(self) -> None:
        left = {"processes": self._processes, "marks": sorted(self._marks), "directories": sorted(self._directories)}
        text = json.dumps(left)
        fresh = self.path / "left.tmp"
        # A disk that is full must not stop the node: what is not written down is missed only after a kill -9.
        with contextlib.suppress(OSError):
            fresh.write_text(text)
            failpoints.hit("left.before-rename")
            fresh.replace(self.path / "left")
            failpoints.hit("left.after-rename")

    def _end_leftovers(self) -> None:
        try:
            left = json.loads((self.path / "left").read_text())
            processes = {int(pid): int(began) for pid, began in left["processes"].items()}
            directories = [Path(name) for name in left["directories"]]
            marks = [str(mark) for mark in left["marks"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # nothing was left, or the machine went down while it was written
        leftovers.end(processes, marks)
        for directory in directories:
            if self.path in directory.parents:
                remove_tree(directory)
        self._write_down()


def _own(path: Path, clean: bool) -> int:
    """Make a directory unless it is there, lock it and mark it as a node's; returns the open lock.

    Raises:
        NodeError: another daemon has it, or it is not a node's, and not an empty one that only its owner can write to.
        OSError: it cannot be made or written.
    """
    _check_ours(path)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path / owndirectory.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(lock, path, clean)
        _check_ours(path)  # another daemon may have been quicker, and have ended
        owndirectory.mark(path, NODE)
        if path.stat().st_uid == os.getuid():
            path.chmod(0o700)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _check_ours(path: Path) -> None:
    if why := owndirectory.refusal(path, NODE):
        raise NodeError(why)


def _take(lock: int, path: Path, clean: bool) -> None:
    deadline = time.monotonic() + _END_TIMEOUT
    number = signal.SIGTERM
    asked = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            owner = _owner(lock)
        if not clean or owner is None:
            who = f"process {owner}" if owner else "another process"
            raise NodeError(
                f"the directory {path} belongs to a dispynode that runs ({who}); end it, let --clean end it, "
                "or give this node another directory with --dest_path_prefix"
            )
        if time.monotonic() > deadline:
            number, asked = signal.SIGKILL, False
            deadline += _END_TIMEOUT
        if not asked:
            asked = True
            with contextlib.suppress(ProcessLookupError):
                try:
                    os.kill(owner, number)
                except PermissionError as error:
                    raise NodeError(f"process {owner}, which has {path}, belongs to another user") from error
        time.sleep(0.02)


def _owner(lock: int) -> int | None:
    text = os.pread(lock, 32, 0).strip()
    return int(text) if text.isdigit() else None


def remove_abandoned(parent: Path) -> None:
    """Remove the directories below `parent`, named by process ids, whose daemon is gone, and end what it left."""
    if not parent.is_dir():
        return
    for path in parent.iterdir():
        # A node that starts at this moment has made its directory and not locked it yet.
        if not path.name.isdigit() or start_time(int(path.name)) is not None:
            continue
        # One that a living daemon has is refused, which is what we want to know.
        with contextlib.suppress(NodeError):
            Prefix.claim(path).release(remove=True)


class Workdir(Struct):
    """The working directory of one computation."""

    path: Path
    fresh: bool
    """Made for it alone; else it is a `dest_path` that other computations may use as well."""
    inode: int = 0
    """Tells whether it is still the one that was made."""
    placed: dict[str, bytes] = field(default_factory=dict)
    """Path → name of the content."""


class Workdirs:
    """Makes, fills and removes the directories of computations."""

    def __init__(self, prefix: Prefix, owner: tuple[int, int] | None = None) -> None:
        """`owner`: user and group to whom all that is made here belongs, if not to this process's."""
        self._prefix = prefix
        self._owner = owner
        self._users: dict[Path, int] = {}
        self._kept: set[Path] = set()

    def open(self, spec: ComputationSpec) -> Workdir:
        """Make the directory of a computation.

        Raises:
            NodeError: its `dest_path` leads outside, or the directory cannot be made (a full disk, …).
            DirectoryGone: there is nowhere to make it for now.
        """
        base = self._prefix.path
        if spec.dest_path:
            parts = checked_parts(spec.dest_path)
            path = base.joinpath("named", *parts)
        else:
            word = re.sub(r"[^A-Za-z0-9_.-]", "_", spec.name).strip(".")[:40] or "jobs"
            path = base / "jobs" / f"{word}-{re.sub(r'[^A-Za-z0-9]', '_', spec.id)[:12]}"
        existed = path.is_dir()
        self._make(path)
        self._users[path] = self._users.get(path, 0) + 1
        if not existed or not spec.dest_path:
            self._prefix.add_directory(path)
        return Workdir(path, fresh=not spec.dest_path, inode=path.stat().st_ino)

    def make_again(self, workdir: Workdir) -> bool:
        """Make a directory that a job has removed, without its files; False if it is there, the same as ever.

        Raises:
            NodeError: it cannot be made.
        """
        if workdir.path.is_dir() and workdir.path.stat().st_ino == workdir.inode:
            return False
        self._make(workdir.path)
        workdir.inode = workdir.path.stat().st_ino
        return True

    def _make(self, path: Path) -> None:
        self._prefix.renew()
        try:
            root = os.open(self._prefix.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.close(beneath.descend(root, path.relative_to(self._prefix.path).parts, owner=self._owner))
            finally:
                os.close(root)
        except OSError as error:
            raise NodeError(_why(f"the directory {path} cannot be made", error)) from error

    def place(self, workdir: Workdir, file: FileSpec, store: BlobStore) -> bool:
        """Put a received file under its name into the directory. To be called in a thread.

        It is the store's own file where that can lend it, else a copy. False: it is not in the store any more.

        Raises:
            NodeError: the name leads outside, or it cannot be written.
        """
        parts = checked_parts(file.path)
        try:
            root = os.open(workdir.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                folder = beneath.descend(root, parts[:-1], owner=self._owner)
            finally:
                os.close(root)
            try:
                if not place_file(folder, parts[-1], file, store, self._owner):
                    return False
            finally:
                os.close(folder)
        except OSError as error:
            raise NodeError(_why(f"the file {file.path} cannot be written", error)) from error
        workdir.placed[file.path] = file.blob.name
        return True

    def close(self, workdir: Workdir, store: BlobStore, *, keep: bool) -> None:
        """Remove what is not to be kept; what the store has lent it may take back. To be called in a thread."""
        path = workdir.path
        self._users[path] -= 1
        last = not self._users[path]
        if last:
            del self._users[path]
        if keep:
            self._kept.add(path)
            for above in set(path.parents).intersection(self._prefix.open_directories):
                self._prefix.forget_directory(above)  # what is kept keeps those above it
        with store.removing(workdir.placed.values()):
            if workdir.fresh and not keep:
                remove_tree(path)
            elif not keep and last and path not in self._kept:
                self._remove_shared(workdir)
        if last:
            self._kept.discard(path)
            self._prefix.forget_directory(path)

    def _remove_shared(self, workdir: Workdir) -> None:
        base = self._prefix.path / "named"
        inside = any(workdir.path in other.parents for other in self._users)
        if not inside and str(workdir.path) in self._prefix._directories:
            remove_tree(workdir.path)
        else:
            for name in workdir.placed:
                with contextlib.suppress(OSError):  # a job has removed it
                    os.unlink(workdir.path / name)
        parent = workdir.path.parent
        while parent != base and base in parent.parents:
            try:
                parent.rmdir()
            except OSError:
                return  # not empty: somebody else uses it
            parent = parent.parent


def checked_parts(name: str) -> tuple[str, ...]:
    """The components of a relative POSIX path that stays below where it begins.

    Raises:
        NodeError: it does not.
    """
    try:
        return beneath.checked_parts(name)
    except TransferError as error:
        raise NodeError(str(error)) from error


def _why(what: str, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}: the disk of this node is full"
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return f"{what}: something that is no directory is in the way"
    return f"{what}: {error.strerror}"
