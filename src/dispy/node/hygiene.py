"""What every job finds: streams, directory, environment, signals and processes of a worker as they were before.

Between two jobs this takes the output of the one and undoes what it changed. It is on the path of every job, so what
finds nothing to do must cost next to nothing. Standard library only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import contextlib
import fcntl
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from dispy import namespace
from dispy.node import linux, tripwires
from dispy.node.channel import LOW_FD, STDERR_AT, STDOUT_AT

_KEPT_OUTPUT: Final = 1 << 20
"""Output already delivered that may stay in a memfd before its memory is given back."""
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


_REMOVED: Final = b"dispy: the directory of the computation is gone after this job; the next ones get a new one\n"


class Output(NamedTuple):
    """What a job left besides its result."""

    stdout: bytes
    stderr: bytes
    clean: bool
    """False: this process is not fit for another job."""


class NormalState:
    """The state of this process that jobs are to find, and the outputs that they write to."""

    def __init__(self, outputs: tuple[int, int], cell: memoryview, limit: int, others: tuple[int, ...] = ()) -> None:
        """`others` are descriptors beside the outputs that jobs must not close."""
        self._outputs = outputs
        self._others = others
        self._cell = cell
        self._limit = limit
        self._pid = os.getpid()
        self._given_back = [0, 0]
        self._directory = -1
        self.directory_gone = False
        """A job has removed the directory."""

    def redirect(self) -> None:
        """Let standard output and error, of Python and of C, go to the outputs; there is no standard input."""
        out, err = self._outputs
        for fd in self._outputs:
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(out, 1)
        os.dup2(err, 2)
        linux.buffer_c_output_by_line()
        sys.stdout, sys.stderr = _text(1), _text(2)

    def note(self) -> None:
        """Take the present state as the one that every job finds."""
        self._stdout, self._stderr, self._stdin = sys.stdout, sys.stderr, sys.stdin
        self._argv, self._arguments = sys.argv, list(sys.argv)
        self._handlers = [_signal.getsignal(number) for number in _WATCHED_SIGNALS]
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self.close()
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directory = fcntl.fcntl(directory, fcntl.F_DUPFD_CLOEXEC, LOW_FD)
        os.close(directory)
        self._umask = os.umask(0o22)
        os.umask(self._umask)
        environ: Any = os.environ
        self._environment: dict[bytes, bytes] = dict(environ._data)
        self._children = set(linux.children())
        self._path = list(sys.path)
        self._modules = dict(sys.modules)
        self._process = tripwires.process_state()
        tripwires.touched.clear()
        tripwires.changed.clear()
        tripwires.keep((self._directory, *self._outputs, *self._others))
        self._place = os.fsencode(os.path.realpath(f"/proc/self/fd/{self._directory}"))
        self.end_job = self._make_end_job()

    def close(self) -> None:
        """Let go of the directory."""
        if self._directory >= 0:
            tripwires.keep_none()
            os.close(self._directory)

    def _make_end_job(self) -> Callable[[], Output | None]:
        """The function that is called after every job: None if nothing was written and nothing is wrong.

        A closure, because looking up some thirty attributes would cost a tenth of a job.
        """
        getpid, pid = os.getpid, self._pid
        stdout, stderr, flush_c = self._stdout, self._stderr, linux.flush_c_output
        has_children = linux.has_children
        thread_count, threads = _thread._count, _thread._count()
        getsignal, numbers, handlers = _signal.getsignal, _WATCHED_SIGNALS, self._handlers
        alarm, sigmask, block = _signal.alarm, _signal.pthread_sigmask, _signal.SIG_BLOCK
        mask, fchdir, directory, umask, normal_umask = self._mask, os.fchdir, self._directory, os.umask, self._umask
        environ: Any = os.environ  # with `_data`: decoding every variable would cost more than the job
        environment = self._environment
        argv, arguments, stdin, children = self._argv, self._arguments, self._stdin, self._children
        (out, err), cell, lseek = self._outputs, self._cell, os.lseek

        brought = namespace.brought_by_job
        touched, changed = tripwires.touched, tripwires.changed
        path, places = sys.path, self._path
        modules, main, module_count = sys.modules, sys.modules[namespace.MAIN], len(sys.modules)

        def end_job() -> Output | None:
            nonlocal module_count
            clean = True
            if getpid() != pid:
                os._exit(0)  # a child that the job forked has come back from the function
            if touched and not self.is_intact():
                clean = False
            if sys.stdout is not stdout or sys.stderr is not stderr or stdout.closed or stderr.closed:
                clean = self._restore_streams()
            else:
                try:
                    stdout.flush()
                    stderr.flush()
                except OSError:
                    clean = False
            flush_c(None)
            if has_children() and linux.end_children(children):
                clean = False
            if thread_count() != threads:
                clean = False
            if changed:
                if [getsignal(number) for number in numbers] != handlers and not self._restore_signals():
                    clean = False
                if environ._data != environment:
                    self._restore_environment(environ)
                changed.clear()
            alarm(0)  # which ends timers set by `setitimer` too
            if sigmask(block, ()) != mask:
                sigmask(_signal.SIG_SETMASK, mask)
            try:
                fchdir(directory)
            except OSError:  # it is not who it was
                clean = False
            umask(normal_umask)
            if os.environ is not environ:
                os.environ = environ  # noqa: B003 - the object that jobs are to find
            if sys.argv is not argv or argv != arguments:
                sys.argv = argv
                argv[:] = arguments
            sys.stdin = stdin
            if sys.path is not path or path != places:
                sys.path = path
                path[:] = places
            if brought:
                namespace.forget_job()
            if len(modules) < module_count or modules.get(namespace.MAIN) is not main or sys.modules is not modules:
                clean = False
            module_count = len(modules)
            if threading._trace_hook or threading._profile_hook:  # type: ignore[attr-defined]
                threading._trace_hook = threading._profile_hook = None  # type: ignore[attr-defined]
            stdout_end, stderr_end = lseek(out, 0, 2), lseek(err, 0, 2)
            if stdout_end == cell[STDOUT_AT] and stderr_end == cell[STDERR_AT]:
                return None if clean else Output(b"", b"", False)
            return Output(self._take(STDOUT_AT, stdout_end), self._take(STDERR_AT, stderr_end), clean)

        return end_job

    def is_intact(self) -> bool:
        """Look at all that jobs seldom change; False when this process is not fit for another one."""
        tripwires.touched.clear()
        intact = True
        try:
            now, then = os.stat(self._place), os.fstat(self._directory)
            gone = (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino)
        except FileNotFoundError:
            gone = True
        except OSError:  # it is not who it was, and may not look
            intact = gone = False
        if gone:
            if not self.directory_gone:
                with contextlib.suppress(OSError):  # the job has closed it
                    os.write(self._outputs[1], _REMOVED)
            self.directory_gone = True
            intact = False
        state = tripwires.process_state()
        if state != self._process:
            tripwires.restore_limits(self._process.limits)
            intact = False
        return intact

    def rescue(self) -> Output:
        """What can still be had of a job's output where it has spoiled its process so far that `end_job` fails."""
        found = []
        for word, fd in zip((STDOUT_AT, STDERR_AT), self._outputs, strict=True):
            try:
                found.append(self._take(word, os.lseek(fd, 0, 2)))
            except OSError:
                found.append(b"")
        return Output(found[0], found[1], False)

    def _take(self, word: int, end: int) -> bytes:
        """What a job wrote. Offsets only grow: the daemon may be punching out what it read a moment ago."""
        index = word - STDOUT_AT
        fd = self._outputs[index]
        text = linux.read_output(fd, self._cell[word], end, self._limit)
        self._cell[word] = end
        if end - self._given_back[index] > _KEPT_OUTPUT:
            linux.punch(fd, self._given_back[index], end - self._given_back[index])
            self._given_back[index] = end
        return text

    def _restore_streams(self) -> bool:
        """Put back replaced streams; False if one was closed, which cannot be undone."""
        for stream in (sys.stdout, sys.stderr, self._stdout, self._stderr):
            with contextlib.suppress(Exception):  # objects of the user's, or closed
                stream.flush()
        sys.stdout, sys.stderr = self._stdout, self._stderr
        return not (self._stdout.closed or self._stderr.closed)

    def _restore_signals(self) -> bool:
        """Put back the handlers; False if one was set by C code, which Python cannot do again."""
        for number, handler in zip(_WATCHED_SIGNALS, self._handlers, strict=True):
            if handler is None:
                if _signal.getsignal(number) is not None:
                    return False
            elif _signal.getsignal(number) is not handler:
                _signal.signal(number, handler)
        return True

    def _restore_environment(self, environ: Any) -> None:
        present = environ._data
        for key in set(present) - set(self._environment):
            environ.pop(os.fsdecode(key), None)
        for key, value in self._environment.items():
            if present.get(key) != value:
                environ[os.fsdecode(key)] = os.fsdecode(value)


def _text(fd: int) -> io.TextIOWrapper:
    raw = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True)
