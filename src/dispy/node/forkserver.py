"""The process that holds a computation's code and data, runs its setup, and forks workers from there.

It runs beside user code in any interpreter: single-threaded, standard library and cloudpickle only; it is told what
to do over the control channel (see `dispy.node.channel`) and decides nothing. Three processes make sure that nothing
stays behind: the guard (forked before user code), the fork server and each worker adopt what is orphaned below them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import mmap
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from _multiprocessing import SemLock  # type: ignore[import-not-found]
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from dispy import namespace
from dispy.node import calls, channel, jobside, linux, tripwires, worker
from dispy.node.channel import CANCEL, CELL_SIZE, CLAIMED, DROP_BEFORE, DROP_FIRST, LOW_FD, RUNNING
from dispy.node.guard import guard

_REPEAT_INTERVAL: Final = 0.1
"""Seconds between SIGINTs while a cancelled job runs: Python loses the exception in destructors and callbacks."""
_LOCK_TIMEOUT: Final = 0.2
"""Seconds after which a worker that holds the claim lock (for 0.1 µs) is stopped or dead."""
_SEMAPHORE: Final = 1
_BUFFER_SIZE: Final = 64 << 10


@dataclass(slots=True)
class _Child:
    """A worker as its parent sees it."""

    number: int
    pid: int
    pidfd: int
    cell: memoryview
    lock: SemLock
    repeat: int = 0
    """Sequence of the job that gets SIGINT again and again."""


def main(fd: int, state: int) -> NoReturn:
    """Serve the daemon at the other end of `fd`; never returns.

    Args:
        fd: inherited stream socket: the control channel.
        state: `channel.FRESH`, or a descriptor with the LOAD message of a fork server that found itself unfit to fork.
    """
    try:
        control = socket.socket(fileno=_raise(fd))
        console = _raise(2)
    except OSError as error:
        why = f"file descriptors from {LOW_FD} on cannot be had here (`ulimit -n`): {error}"
        _refuse(socket.socket(fileno=fd), why)
    os.close(fd)
    if state == channel.FRESH:
        _go_below_guard(control)
    linux.name_process("dispy-fork")
    tripwires.install()
    server = _Server(control, console)
    if state != channel.FRESH:
        server.load_again(state)
    server.serve()


def _go_below_guard(control: socket.socket) -> None:
    """Go on as a child of a process that waits for the end of this one."""
    linux.become_subreaper()
    above = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        _refuse(control, linux.exhaustion(error) or str(error))
    if pid:
        guard(pid, control)
    linux.die_with_parent(above)
    linux.become_subreaper()


def _refuse(control: socket.socket, why: str) -> NoReturn:
    """Tell the daemon what this machine lacks now, and end."""
    control.sendall(channel.control_frame(channel.FAILED, {"reason": why, "trace": "", "final": False}))
    os._exit(1)


def _raise(fd: int) -> int:
    """Duplicate a descriptor to where user code that closes low ones does not reach."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOW_FD)


class _Server:
    """The fork server proper: one poll loop."""

    def __init__(self, control: socket.socket, console: int) -> None:
        self._control = control
        self._console = console
        self._reader = channel.ControlReader()
        self._children: dict[int, _Child] = {}
        self._by_pidfd: dict[int, _Child] = {}
        self._kept: set[int] = set()
        self._spec: dict[str, Any] = {}
        self._setup_args: tuple[object, ...] = ()
        self._computation: namespace.Computation | None = None
        self._setup_in = "node"
        self._is_second = False
        self._doing = ""
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        self._handlers: dict[int, Callable[[dict[str, Any], bytes], None]] = {
            channel.LOAD: self._on_load,
            channel.FORK: self._on_fork,
            channel.RECALL: self._on_recall,
            channel.SIGNAL: self._on_signal,
            channel.CLEANUP: self._on_cleanup,
        }

    def serve(self) -> NoReturn:
        """Do what the daemon asks until it is gone; then nothing below this process lives on."""
        control = self._control.fileno()
        while True:
            repeating = any(child.repeat for child in self._children.values())
            ready = self._poll.poll(_REPEAT_INTERVAL * 1000 if repeating else None)
            # Requests first: one that concerns a worker which has just died must find it.
            for fd, _ in sorted(ready, key=lambda entry: entry[0] != control):
                if fd != control:
                    self._reap(self._by_pidfd[fd])
                elif not self._receive():
                    self._end()
            if repeating:
                self._repeat_interrupts()

    def _end(self) -> NoReturn:
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(child.pid, signal.SIGKILL)
        linux.end_children()
        os._exit(0)

    def _receive(self) -> bool:
        try:
            data, ancillary, flags, _ = self._control.recvmsg(_BUFFER_SIZE, channel.ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # the daemon was gone before it had read everything
            return False
        self._reader.fds.extend(channel.whole_descriptors(ancillary, flags))
        for kind, info, payload in self._reader.feed(data):
            self._handlers[kind](info, payload)
        return bool(data)

    def _send(self, kind: int, **info: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next read says the same
            self._control.sendall(channel.control_frame(kind, info))

    def load_again(self, state: int) -> None:
        """Load what an earlier start of this process was sent; workers run the setup."""
        self._is_second = True
        with open(state, "rb") as file:
            for kind, info, payload in self._reader.feed(file.read()):
                self._handlers[kind](info, payload)

    def _on_load(self, spec: dict[str, Any], payload: bytes) -> None:
        self._spec = spec
        if self._is_second or spec["setup_in"] == "worker":
            self._setup_in = "worker"
        try:
            self._load(payload)
        except calls.SetupRefusedError as error:
            self._send(channel.FAILED, reason=str(error), trace="", final=True)
            return
        except BaseException as error:
            reason = f"{self._doing} failed: {type(error).__name__}: {error}"
            self._send(channel.FAILED, reason=reason, trace=calls.user_trace(error, __file__), final=True)
            return
        threads = threading.active_count() - 1
        if self._setup_in == "node" and spec["setup_in"] == "auto" and (threads or _cuda_started()):
            self._start_again(payload)
        self._kept = set(linux.children())
        gc.collect()
        gc.freeze()
        self._send(channel.LOADED, pid=os.getpid(), threads=threads, setup_in=self._setup_in)

    def _load(self, payload: bytes) -> None:
        spec = self._spec
        self._doing = "loading the code"
        if spec["confined"]:
            linux.refuse_new_privileges()
        if (nice := spec["nice"]) > os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        os.chdir(spec["cwd"])
        directory = os.getcwd()
        if spec["kind"] == "program":
            jobside.give_environment(spec["job_names"], directory)
            return
        sys.path.insert(0, directory)
        sys.argv[:] = [spec["name"]]
        namespace.make_main()
        jobside.give_names(spec["job_names"], self._console)
        if spec["made_by_init"]:
            self._doing = "loading what the init file of the node made"
            with open(spec["made_by_init"], "rb") as file:
                namespace.load_names(file.read())
            self._doing = "loading the code"
        code = payload[: spec["code_size"]]
        arguments = payload[spec["code_size"] :]
        self._computation = namespace.load_computation(code)
        self._setup_args = tuple(pickle.loads(arguments)) if arguments else ()
        if self._setup_in == "node":
            self._doing = "setup"
            calls.run_setup(self._computation, self._setup_args)

    def _start_again(self, payload: bytes) -> NoReturn:
        """After a setup that left threads: exec afresh, without setup.

        A lock that another thread holds at a fork stays locked in the child for ever.
        """
        linux.end_children()
        state = os.memfd_create("dispy-load", 0)
        with open(state, "wb", closefd=False) as file:
            file.write(channel.control_frame(channel.LOAD, self._spec, payload))
        os.lseek(state, 0, os.SEEK_SET)
        os.set_inheritable(self._control.fileno(), True)
        at = sys.orig_argv.index("-c") + 2
        command = [*sys.orig_argv[:at], str(self._control.fileno()), str(state), *sys.orig_argv[at + 2 :]]
        os.execv(sys.executable, [sys.executable, *command[1:]])

    def _on_cleanup(self, info: dict[str, Any], payload: bytes) -> None:
        trace, asked = "", False
        if self._computation is not None and self._setup_in == "node":
            trace, asked = calls.run_cleanup(
                self._computation, self._setup_args, may_end_node=self._spec["client_shutdown"]
            )
        self._send(channel.CLEANED, trace=trace, shutdown=asked)

    def _on_fork(self, info: dict[str, Any], payload: bytes) -> None:
        number: int = info["worker"]
        came = self._reader.fds
        fds = [came.popleft() for _ in range(min(channel.FORK_FDS, len(came)))]
        try:
            if len(fds) < channel.FORK_FDS:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            child = self._fork(number, fds)
        except OSError as error:
            text = f"no worker could be started: {linux.exhaustion(error) or error}"
            self._send(channel.DIED, worker=number, status=None, memory=0, error=text)
        else:
            self._children[number] = self._by_pidfd[child.pidfd] = child
            self._poll.register(child.pidfd, select.POLLIN)
            self._send(channel.FORKED, worker=number, pid=child.pid)
        finally:
            for fd in fds:
                os.close(fd)

    def _fork(self, number: int, fds: list[int]) -> _Child:
        cell = memoryview(mmap.mmap(fds[1], CELL_SIZE)).cast("Q")
        lock = SemLock(_SEMAPHORE, 1, 1, f"/dispy-{os.getpid()}-{number}-{time.monotonic_ns()}", True)
        with contextlib.suppress(OSError):  # a job may have removed the directory, and the daemon made it again
            os.chdir(self._spec["cwd"])
        # Python's own SIGINT handler would raise inside the hooks of os.fork.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # threads of numerical libraries survive a fork
                server = os.getpid()
                pid = os.fork()
            if pid == 0:
                self._become_worker(server, fds, cell, lock)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        with contextlib.suppress(PermissionError, ProcessLookupError):  # the worker was faster, or has ended
            os.setpgid(pid, pid)
        return _Child(number, pid, os.pidfd_open(pid), cell, lock)

    def _become_worker(self, server: int, fds: list[int], cell: memoryview, lock: SemLock) -> NoReturn:
        code = 1
        try:
            linux.die_with_parent(server)
            self._control.close()
            for pidfd in self._by_pidfd:
                os.close(pidfd)
            high = [_raise(fd) for fd in fds]
            for fd in fds:
                os.close(fd)
            fds.clear()
            spec = self._spec
            post = worker.Post(
                socket=socket.socket(fileno=high[0]),
                cell=cell,
                lock=lock,
                outputs=(high[2], high[3]),
                console=self._console,
                program=spec["program"] if spec["kind"] == "program" else "",
                interpreter=spec["interpreter"],
                output_limit=spec["output_limit"],
                growth_limit=spec["growth_limit"],
                computation=self._computation,
                setup_args=self._setup_args if self._setup_in == "worker" else None,
                single=spec["isolate"],
                may_end_node=spec["client_shutdown"],
            )
            self._children.clear()
            self._by_pidfd.clear()
            code = worker.run(post)
        except BaseException as error:
            os.write(2, f"The worker failed:\n{''.join(traceback.format_exception(error))}".encode())
        finally:
            os._exit(code)

    def _reap(self, child: _Child) -> None:
        """Report a dead worker, after everything that it left is dead too."""
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # while the leader is a zombie its number is not used again
        _, status, usage = os.wait4(child.pid, 0)
        self._poll.unregister(child.pidfd)
        del self._children[child.number], self._by_pidfd[child.pidfd]
        os.close(child.pidfd)
        linux.end_children({other.pid for other in self._children.values()} | self._kept)
        self._send(channel.DIED, worker=child.number, status=status, memory=usage.ru_maxrss * 1024, error="")

    def _lock(self, child: _Child) -> bool:
        """Take the claim lock; False when the worker died or was stopped while it held it."""
        return bool(child.lock.acquire(True, _LOCK_TIMEOUT))

    def _on_recall(self, info: dict[str, Any], payload: bytes) -> None:
        number: int = info["worker"]
        before: int = info["before"]
        child = self._children.get(number)
        first = before
        if child is not None and self._lock(child):
            cell = child.cell
            pending = cell[CLAIMED] + 1
            first = min(before, max(pending, cell[DROP_BEFORE]))
            if cell[DROP_BEFORE] <= pending:
                cell[DROP_FIRST] = first
            if before > cell[DROP_BEFORE]:
                cell[DROP_BEFORE] = before
            child.lock.release()
        self._send(channel.RECALLED, worker=number, first=first, before=before)

    def _on_signal(self, info: dict[str, Any], payload: bytes) -> None:
        child = self._children.get(info["worker"])
        sequence: int = info["sequence"]
        number: int = info["signal"]
        if child is None:
            return
        if not sequence:
            os.kill(child.pid, number)
            return
        held = self._lock(child)
        # Without the lock the worker is stopped between two jobs: only the strongest signal can help, and it may.
        if child.cell[RUNNING] == sequence and (held or number == signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, number)
        if number == signal.SIGINT and child.cell[CANCEL] == sequence:
            child.repeat = sequence
        if held:
            child.lock.release()

    def _repeat_interrupts(self) -> None:
        for child in self._children.values():
            sequence = child.repeat
            if not sequence:
                continue
            if child.cell[CANCEL] != sequence or child.cell[CLAIMED] > sequence:
                child.repeat = 0
            elif child.cell[RUNNING] == sequence:
                os.kill(child.pid, signal.SIGINT)  # only the worker: its handler knows which job is meant


def _cuda_started() -> bool:
    """Whether a GPU was touched: its state does not survive a fork."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return bool(cuda is not None and cuda.is_initialized())
