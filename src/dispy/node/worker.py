"""The process that runs jobs, one after another, forked by the fork server.

Per job: claim it under the lock, note it in the cell, capture output, call, hand the result to the kernel, clean up.
What must be exact (which job died, which was interrupted) rests on the order of these steps; see `docs/design/node.md`.
Standard library and cloudpickle only.
"""

from __future__ import annotations

import _signal
import _thread
import array
import contextlib
import faulthandler
import fcntl
import io
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from _multiprocessing import SemLock

from dispy import namespace
from dispy.node import linux
from dispy.node.channel import (
    ANCILLARY,
    CANCEL,
    CLAIMED,
    DROP_BEFORE,
    DROP_FIRST,
    FLAG_RETIRE,
    INLINE,
    JOB,
    LOW_FD,
    MEMORY_AT_FORK,
    REPLY,
    RUNNING,
    STDERR_AT,
    STDOUT_AT,
    descriptors,
)

FINISHED, RAISED, _DIED, NOT_STARTED, INTERRUPTED, _LIMITED, UNSENDABLE = range(7)
"""As `dispy.model.Ending`, which needs more than the standard library; a test compares them."""

SETUP_FAILED: Final = 120
"""Exit code of a worker whose setup failed (only where setup runs in workers)."""
_BUFFER_SIZE: Final = 256 << 10
_KEPT_OUTPUT: Final = 1 << 20
"""Output already delivered that may stay in a memfd before its memory is given back."""
_AGAIN_AFTER: Final = 3.0
"""Seconds after which a cancelled job that still runs is interrupted once more."""
_ERROR_SIZE: Final = 64 << 10
_WATCHED_SIGNALS: Final = tuple(
    int(number)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGALRM,
        signal.SIGCHLD,
        signal.SIGHUP,
        signal.SIGPIPE,
        signal.SIGUSR1,
        signal.SIGUSR2,
    )
)


class SetupRefused(Exception):
    """The setup function returned something that does not mean success."""


class Cancelled(KeyboardInterrupt):
    """What a job sees when it is cancelled."""


class _Unsendable(Exception):
    """A result cannot be pickled; the text says what of it."""


@dataclass(slots=True)
class Post:
    """What a fork server hands to a worker."""

    socket: socket.socket
    cell: memoryview
    lock: SemLock
    outputs: tuple[int, int]
    """memfds for stdout and stderr, shared with the daemon."""
    console: int
    program: str
    """Path of the program to run for each job; empty when jobs are calls of a function."""
    output_limit: int
    computation: namespace.Computation | None
    setup_args: tuple[object, ...] | None
    """Given when this worker has to run the setup itself."""


class _Output(NamedTuple):
    """What a job left besides its result."""

    stdout: bytes
    stderr: bytes
    clean: bool


def run_setup(computation: namespace.Computation, arguments: tuple[object, ...]) -> None:
    """Run the user's setup function, if there is one.

    Raises:
        SetupRefused: it returned something other than 0, 1, 2 or None.
        BaseException: what it raised.
    """
    if computation.setup is None:
        return
    status = computation.setup(*arguments)
    if status is not None and status not in (0, 1, 2):
        raise SetupRefused(f"setup returned {status!r}; 0 or nothing means success")


def user_trace(error: BaseException, *own_files: str) -> str:
    """The traceback as text, without the frames of this program above the user's code."""
    own = {__file__, namespace.__file__, *own_files}
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in own:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except Exception as unprintable:
        text = f"{type(error).__name__} (it cannot be shown: {type(unprintable).__name__})\n"
    if len(text) > _ERROR_SIZE:
        half = _ERROR_SIZE // 2
        text = f"{text[:half]}\n… {len(text) - _ERROR_SIZE} characters left out …\n{text[-half:]}"
    return text


def run(post: Post) -> int:
    """Run jobs until the daemon closes the channel or this process is not clean any more; returns its exit code."""
    worker = _Worker(post)
    if post.setup_args is not None and post.computation is not None:
        try:
            run_setup(post.computation, post.setup_args)
        except BaseException as error:
            os.write(2, f"setup failed in a worker: {user_trace(error)}".encode())
            return SETUP_FAILED
        worker.note_normal_state()
    worker.serve()
    if post.setup_args is not None and post.computation is not None and post.computation.cleanup is not None:
        post.computation.cleanup(*post.setup_args)
    return 0


class _Worker:
    """State of this process, and what is done around a job; the loop itself is `serve`."""

    def __init__(self, post: Post) -> None:
        self._socket = post.socket
        self._cell = post.cell
        self._lock = post.lock
        self._outputs = post.outputs
        self._limit = max(post.output_limit, 2)
        self._program = post.program
        self._pid = os.getpid()
        self._given_back = [0, 0]
        self._interrupted_at = 0.0
        self._computation = post.computation
        self._call = _program_call(post) if post.program else _function_call(post)
        self._own_frames = frozenset({type(self).serve.__code__, type(self)._end_job.__code__})
        self._buffer = bytearray(_BUFFER_SIZE)
        self._become_worker()

    def _become_worker(self) -> None:
        with contextlib.suppress(PermissionError):
            os.setpgid(0, 0)
        linux.become_subreaper()
        linux.name_process("dispy-worker")
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")  # the kernel shall end a worker before the fork server that holds setup's data
        os.register_at_fork(after_in_child=self._leave)
        signal.signal(signal.SIGINT, self._on_interrupt)
        if self._program:
            # The escalation is meant for the program; as a handler (not ignored) it is not inherited over exec.
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed()
        out, err = self._outputs
        for fd in self._outputs:
            _append(fd)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(out, 1)
        os.dup2(err, 2)
        linux.buffer_c_output_by_line()
        faulthandler.enable(err, all_threads=False)
        sys.stdout = _text(1)
        sys.stderr = _text(2)
        self.note_normal_state()
        self._cell[MEMORY_AT_FORK] = max(linux.private_memory(), 1)

    def note_normal_state(self) -> None:
        """Take the present state of the process as what every job finds."""
        self._stdout, self._stderr, self._stdin = sys.stdout, sys.stderr, sys.stdin
        self._argv, self._arguments = sys.argv, list(sys.argv)
        self._handlers = [_signal.getsignal(number) for number in _WATCHED_SIGNALS]
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directory = _high(directory)
        self._umask = os.umask(0o22)
        os.umask(self._umask)
        self._environment = dict(os.environ._data)  # type: ignore[attr-defined]
        self._threads = _thread._count()
        self._children = set(linux.children())

    def _leave(self) -> None:
        """In a child that a job forked: it has no part in this worker's conversation."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._socket.close()
        for fd in (*self._outputs, self._directory):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _on_interrupt(self, number: int, frame: types.FrameType | None) -> None:
        """Raise in the user's code, if it is the one that is to be cancelled."""
        cell = self._cell
        running = cell[RUNNING]
        if not running or running != cell[CANCEL]:
            return
        code = self._call.__code__  # type: ignore[attr-defined]
        while frame is not None:
            if frame.f_code is code:
                break
            if frame.f_code in self._own_frames or frame.f_code.co_name == "__del__":
                return  # our code is left whole; a destructor would swallow it: the fork server asks again
            frame = frame.f_back
        now = time.monotonic()
        if frame is None or self._program or now - self._interrupted_at < _AGAIN_AFTER:
            return
        self._interrupted_at = now
        raise Cancelled

    def serve(self) -> None:
        """The loop; one turn costs a no-op job about 8 µs, so it looks things up once and calls little."""
        cell, acquire, release = self._cell, self._lock.acquire, self._lock.release
        call, end_job, clock, dup2 = self._call, self._end_job, time.time, os.dup2
        out, err = self._outputs
        send, pack = self._socket.send, REPLY.pack
        unpack, header = JOB.unpack_from, JOB.size
        buffer = self._buffer
        view = memoryview(buffer)
        fds: list[int] = []
        at = end = 0
        while True:
            while end - at < header or (end - at - header) < unpack(buffer, at)[1]:
                buffer[: end - at] = buffer[at:end]
                at, end = 0, end - at
                size, ancillary, _, _ = self._socket.recvmsg_into([view[end:]], ANCILLARY, socket.MSG_CMSG_CLOEXEC)
                if not size:
                    return
                end += size
                if ancillary:
                    fds += descriptors(ancillary)
            sequence, size, count, _ = unpack(buffer, at)
            at += header + size
            fd = fds.pop(0) if count else -1
            acquire()
            if cell[DROP_FIRST] <= sequence < cell[DROP_BEFORE]:
                release()
                if fd >= 0:
                    os.close(fd)
                continue
            cell[CLAIMED] = sequence
            cell[RUNNING] = sequence
            release()
            dup2(out, 1)
            dup2(err, 2)
            result = error = b""
            started = clock()
            try:
                result = call(sequence, view[at - size : at] if fd < 0 else _mapped(fd))
                ending = FINISHED
            except BaseException as raised:
                ending, error = self._describe(raised, sequence)
                if ending == NOT_STARTED:
                    started = 0.0
            ended = clock() if started else 0.0
            output = end_job()
            if output is None:
                stdout = stderr = b""
                flags = 0
            else:
                stdout, stderr = output.stdout, output.stderr
                flags = 0 if output.clean else FLAG_RETIRE
            body = result if output is None and not error else b"".join((result, stdout, stderr, error))
            sizes = len(result), len(stdout), len(stderr), len(error)
            if len(body) > INLINE:
                self._send_memfd(pack(sequence, ending, 1, flags, *sizes, started, ended), body)
                body = result = b""
            else:
                frame = pack(sequence, ending, 0, flags, *sizes, started, ended) + body
                sent = send(frame)
                if sent != len(frame):
                    self._socket.sendall(frame[sent:])
            cell[RUNNING] = 0
            if flags:
                os._exit(0)

    def _send_memfd(self, header: bytes, body: bytes) -> None:
        fd = os.memfd_create("dispy-result", os.MFD_CLOEXEC)
        rest = memoryview(body)
        while rest:
            rest = rest[os.write(fd, rest) :]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())]
        sent = self._socket.sendmsg([header], ancillary)
        self._socket.sendall(header[sent:])
        os.close(fd)

    def _describe(self, raised: BaseException, sequence: int) -> tuple[int, bytes]:
        """Ending and error text for what a call raised."""
        if isinstance(raised, _NotStarted):
            return NOT_STARTED, b""
        if isinstance(raised, _Unsendable | _ProgramFailed):
            ending = UNSENDABLE if isinstance(raised, _Unsendable) else RAISED
            return ending, str(raised).encode("utf-8", "backslashreplace")
        text = user_trace(raised)
        omitted = self._computation.omitted if self._computation is not None else {}
        if isinstance(raised, NameError) and getattr(raised, "name", None) in omitted:
            text += f"({raised.name!r} of the client's program was not sent: {omitted[raised.name]})\n"
        interrupted = isinstance(raised, KeyboardInterrupt) and self._cell[CANCEL] == sequence
        return INTERRUPTED if interrupted else RAISED, text.encode("utf-8", "backslashreplace")

    # After a job

    def _end_job(self) -> _Output | None:
        """Bring the process back to its normal state; None if there was nothing to tell."""
        if os.getpid() != self._pid:
            os._exit(0)  # a child that the job forked has come back from the function
        clean = True
        if (
            sys.stdout is not self._stdout
            or sys.stderr is not self._stderr
            or self._stdout.closed
            or self._stderr.closed
        ):
            self._restore_streams()
        try:
            self._stdout.flush()
            self._stderr.flush()
        except (OSError, ValueError):
            self._restore_streams()
        linux.flush_c_output(None)
        if self._children:
            clean = self._end_children()
        else:
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                pass
            else:
                clean = self._end_children()
        if _thread._count() != self._threads:
            clean = False
        if not self._restore():
            clean = False
        out, err = self._outputs
        cell = self._cell
        stdout_end, stderr_end = os.lseek(out, 0, os.SEEK_END), os.lseek(err, 0, os.SEEK_END)
        stdout_at, stderr_at = cell[STDOUT_AT], cell[STDERR_AT]
        if stdout_end == stdout_at and stderr_end == stderr_at:
            return None if clean else _Output(b"", b"", False)
        stdout = self._take(0, out, stdout_at, stdout_end)
        stderr = self._take(1, err, stderr_at, stderr_end)
        cell[STDOUT_AT] = stdout_end
        cell[STDERR_AT] = stderr_end
        return _Output(stdout, stderr, clean)

    def _take(self, index: int, fd: int, at: int, end: int) -> bytes:
        """What a job wrote. Offsets only grow: the daemon may be punching out what it read a moment ago."""
        text = read_output(fd, at, end, self._limit)
        if end - self._given_back[index] > _KEPT_OUTPUT:
            linux.punch(fd, self._given_back[index], end - self._given_back[index])
            self._given_back[index] = end
        return text

    def _end_children(self) -> bool:
        """Reap what the job left; False if something of it still ran and had to be killed."""
        clean = linux.end_children(self._children) == 0
        if not clean:
            linux.flush_c_output(None)
        return clean

    def _restore_streams(self) -> None:
        for stream, replaced in ((self._stdout, sys.stdout), (self._stderr, sys.stderr)):
            if replaced is not stream:
                with contextlib.suppress(Exception):  # an object of the user's; what it holds may be broken
                    replaced.flush()
        if self._stdout.closed:
            self._stdout = _text(1)
        if self._stderr.closed:
            self._stderr = _text(2)
        sys.stdout, sys.stderr = self._stdout, self._stderr

    def _restore(self) -> bool:
        """Undo what a job changed of the process; False if that is not possible."""
        getsignal = _signal.getsignal
        clean = True
        for number, handler in zip(_WATCHED_SIGNALS, self._handlers, strict=True):
            if getsignal(number) is not handler:
                if handler is None:  # it was set by C code, which Python cannot do again
                    clean = False
                else:
                    _signal.signal(number, handler)
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        if _signal.pthread_sigmask(_signal.SIG_BLOCK, ()) != self._mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        os.fchdir(self._directory)
        os.umask(self._umask)
        if os.environ._data != self._environment:  # type: ignore[attr-defined]
            self._restore_environment()
        if sys.argv is not self._argv or self._argv != self._arguments:
            sys.argv = self._argv
            sys.argv[:] = self._arguments
        if sys.stdin is not self._stdin:
            sys.stdin = self._stdin
        return clean

    def _restore_environment(self) -> None:
        present = os.environ._data  # type: ignore[attr-defined]
        for key in set(present) - set(self._environment):
            os.environ.pop(os.fsdecode(key), None)
        for key, value in self._environment.items():
            if present.get(key) != value:
                os.environ[os.fsdecode(key)] = os.fsdecode(value)


class _NotStarted(BaseException):
    """The job was cancelled before its function was called."""


def _function_call(post: Post) -> Callable[[int, Any], bytes]:
    """The trampoline for jobs that are calls of the computation's function."""
    cell, loads, dumps = post.cell, pickle.loads, pickle.dumps
    assert post.computation is not None
    compute = post.computation.compute

    def call(sequence: int, payload: memoryview | mmap.mmap) -> bytes:
        if cell[CANCEL] == sequence:
            raise _NotStarted
        arguments, named = loads(payload)
        del payload
        value = compute(*arguments, **named)
        try:
            return dumps(value, 5)
        except Exception:
            return _dumps_by_value(value)

    return call


def _dumps_by_value(value: object) -> bytes:
    try:
        return namespace.dumps_result(value)
    except Exception:
        culprit = namespace.find_culprit(value, "the result", namespace.dumps_result)
    raise _Unsendable(culprit) from None


def _program_call(post: Post) -> Callable[[int, Any], bytes]:
    """The trampoline for jobs that are runs of a program."""
    cell = post.cell
    command = [post.program]
    if post.program.endswith(".py"):
        command.insert(0, sys.executable)

    def call(sequence: int, payload: memoryview | mmap.mmap) -> bytes:
        arguments, _ = pickle.loads(payload)
        if cell[CANCEL] == sequence:
            raise _NotStarted
        try:
            process = subprocess.Popen([*command, *map(str, arguments)], stdin=subprocess.DEVNULL)
        except OSError as error:
            raise _cannot_execute(post.program, error) from None
        if cell[CANCEL] == sequence:  # the signal may have come before the program was there
            process.send_signal(signal.SIGINT)
        code = process.wait()
        if cell[CANCEL] == sequence and (code < 0 or code == 128 + signal.SIGINT):
            raise Cancelled(f"the program ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
        return pickle.dumps(code)

    return call


class _ProgramFailed(Exception):
    """The program could not be started; the text says why."""


def _cannot_execute(program: str, error: OSError) -> _ProgramFailed:
    reason = error.strerror
    if isinstance(error, PermissionError):
        reason = "it is not executable (chmod +x it), or its directory forbids that"
    elif error.errno == 8:
        reason = "it is neither a binary for this machine nor a script that begins with #!"
    elif isinstance(error, FileNotFoundError):
        reason = "it is not on this node, or the interpreter that its first line names is not"
    return _ProgramFailed(f"{program} cannot be executed: {reason}")


def read_output(fd: int, at: int, end: int, limit: int) -> bytes:
    """What lies between two offsets of an output memfd; beyond the limit its head and tail with a note between."""
    if end - at <= limit:
        return os.pread(fd, end - at, at)
    half = limit // 2
    note = b"\n... %d bytes left out ...\n" % (end - at - 2 * half)
    return b"".join((os.pread(fd, half, at), note, os.pread(fd, half, end - half)))


def _mapped(fd: int) -> mmap.mmap:
    """The content of a memfd; writable privately, for what unpickles without a copy."""
    with open(fd, "rb", buffering=0) as file:
        return mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)


def _append(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)


def _high(fd: int) -> int:
    """Move a descriptor to where user code that closes low ones does not reach."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOW_FD)
    os.close(fd)
    return high


def _text(fd: int) -> io.TextIOWrapper:
    raw = open(fd, "wb", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True)
