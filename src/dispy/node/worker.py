"""The process that runs jobs, one after another, forked by the fork server.

Per job: claim it under the lock, note it in the cell, capture output, call, hand the result to the kernel, clean up.
What must be exact (which job died, which was interrupted) rests on the order of these steps; see `docs/design/jobs.md`.
Standard library and cloudpickle only.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import os
import resource
import signal
import socket
import sys
import time
import types
from _multiprocessing import SemLock  # type: ignore[import-not-found]
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dispy import namespace, pages
from dispy.buffers import Readable
from dispy.node import calls, chunk, freememory, jobside, linux, tripwires
from dispy.node.channel import (
    ANCILLARY,
    CANCEL,
    CLAIMED,
    CLEANUP_FAILED,
    DESCRIPTORS_GONE,
    DROP_BEFORE,
    DROP_FIRST,
    FINISHED,
    FLAG_DIRECTORY_GONE,
    FLAG_RETIRE,
    INLINE,
    INTERRUPTED,
    JOB,
    LIMITED,
    MEMORY_AT_FORK,
    NOT_STARTED,
    RAISED,
    REPLY,
    RUNNING,
    SETUP_FAILED,
    SHUTDOWN_ASKED,
    UNSENDABLE,
    descriptors,
    send_with,
)
from dispy.node.hygiene import NormalState, Output
from dispy.node.shelf import Shelf
from dispy.words import size

_BUFFER_SIZE: Final = 256 << 10
_LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at how far this process has grown."""
_ROOM_FACTOR: Final = 2
_ROOM: Final = 256 << 20
"""A job with a memory limit can reserve that many times the limit and these bytes: reserving is not using, and the
daemon measures what is used. This is only the net for what grows faster than it looks."""
_AGAIN_AFTER: Final = 3.0
"""Seconds after which a cancelled job that still runs is interrupted once more."""


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
    interpreter: str
    """Command that runs the program; empty: itself, or for `*.py` this Python."""
    output_limit: int
    growth_limit: int
    """Bytes by which this process may grow before it is replaced; 0: any."""
    computation: namespace.Computation | None
    setup_args: tuple[object, ...] | None
    """Given when this worker has to run the setup itself."""
    single: bool = False
    """It runs one job and ends."""
    may_end_node: bool = False
    """Whether its cleanup may call `dispynode_shutdown()`."""


def run(post: Post) -> int:
    """Run jobs until there are no more for this process; returns its exit code.

    That is when the daemon closes the channel, after a single job, or (without a return) when a job left it unclean.
    """
    worker = _Worker(post)
    if post.setup_args is not None and post.computation is not None:
        try:
            calls.run_setup(post.computation, post.setup_args)
        except BaseException as error:
            os.write(2, _encoded(calls.user_trace(error, __file__)))
            return SETUP_FAILED
        worker.normal.note()
    try:
        worker.serve()
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return DESCRIPTORS_GONE
    if post.setup_args is not None and post.computation is not None:
        trace, asked = calls.run_cleanup(post.computation, post.setup_args, may_end_node=post.may_end_node)
        if trace:
            os.write(2, _encoded(trace))
            return CLEANUP_FAILED
        return SHUTDOWN_ASKED if asked else 0
    return 0


class _Worker:
    """State of this process, and what is done around a job; the loop itself is `serve`."""

    def __init__(self, post: Post) -> None:
        self._socket = post.socket
        self._cell = post.cell
        self._lock = post.lock
        self._outputs = post.outputs
        self._program = post.program
        self._single = post.single
        self._omitted = post.computation.omitted if post.computation is not None else {}
        self._growth_limit = post.growth_limit
        self._memory_limit = 0
        self._data_limit = (0, 0)
        self._interrupted = 0
        self._interrupted_at = 0.0
        self._call: Callable[[int, Any], bytes | list[Readable]]
        if post.computation is None:
            self._call = calls.program_call(post.cell, post.program, post.interpreter)
        else:
            self._call = calls.function_call(post.cell, post.computation.compute)
        self._shelf = Shelf(post.cell, post.growth_limit // 2)
        namespace.find_scattered = self._shelf.find
        self.speaker = jobside.Speaker(post.socket, post.cell)
        self._own_frames = {type(self).serve.__code__, *jobside.WHOLE_FRAMES}
        own = (post.socket.fileno(), post.console)
        self.normal = NormalState(post.outputs, post.cell, max(post.output_limit, 2), own)
        self._become_worker()

    def _become_worker(self) -> None:
        with contextlib.suppress(PermissionError):
            os.setpgid(0, 0)
        linux.become_subreaper()
        linux.name_process("dispy-worker")
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")  # the kernel shall end a worker before the fork server that holds setup's data
        jobside.speak_through(self.speaker)
        os.register_at_fork(after_in_child=self._leave)
        signal.signal(signal.SIGINT, self._on_interrupt)
        if self._program:
            # The escalation is meant for the program; as a handler (not ignored) it is not inherited over exec.
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed()
        self.normal.redirect()
        faulthandler.enable(self._outputs[1], all_threads=False)
        self.normal.note()
        self._own_frames.add(self.normal.end_job.__code__)
        self._cell[MEMORY_AT_FORK] = max(linux.private_memory(), 1)

    def _leave(self) -> None:
        """In a child that a job forked: it has no part in this worker's conversation."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._socket.close()
        self.normal.close()
        for fd in self._outputs:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _on_interrupt(self, number: int, frame: types.FrameType | None) -> None:
        """Raise in the user's code, if it is the one that is to be cancelled."""
        cell = self._cell
        running = cell[RUNNING]
        if not running or running != cell[CANCEL]:
            return
        code = self._call.__code__
        while frame is not None:
            if frame.f_code is code:
                break
            if frame.f_code in self._own_frames or frame.f_code.co_name == "__del__":
                return  # our code is left whole; a destructor would swallow it: the fork server asks again
            frame = frame.f_back
        now = time.monotonic()
        again_soon = self._interrupted == running and now - self._interrupted_at < _AGAIN_AFTER
        if frame is None or self._program or again_soon:
            return
        self._interrupted = running
        self._interrupted_at = now
        raise KeyboardInterrupt

    def serve(self) -> None:
        """The loop; one turn costs a no-op job about 8 µs, so it looks things up once and calls little."""
        cell, acquire, release = self._cell, self._lock.acquire, self._lock.release
        call, end_job, clock, dup2 = self._call, self.normal.end_job, time.time, os.dup2
        ticks = time.monotonic  # durations must not jump with a clock that is set
        out, err = self._outputs
        send, pack = self._socket.send, REPLY.pack
        unpack, header = JOB.unpack_from, JOB.size
        last = FLAG_RETIRE if self._single else 0
        gettrace, getprofile = sys.gettrace, sys.getprofile
        failure: BaseException | None = None
        result: bytes | list[Readable]
        error: bytes
        buffer = bytearray(_BUFFER_SIZE)
        view = memoryview(buffer)
        fds: list[int] = []
        at = end = 0
        look_at = ticks() + _LOOK_INTERVAL
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
            sequence, size, extra, count = unpack(buffer, at)
            at += header + size
            fd = fds.pop(0) if count else -1
            if not sequence:
                self._shelf.tell(json.loads(bytes(view[at - size : at])), fd)
                continue
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
            started, began = clock(), ticks()
            try:
                if extra:
                    self._prepare(view[at - size : at - size + extra])
                result = call(sequence, view[at - size + extra : at] if fd < 0 else _content(fd))
                ending = FINISHED
            except BaseException as raised:
                failure = raised
            try:
                hooked = gettrace() is not None or getprofile() is not None
                if hooked:
                    sys.settrace(None)
                    sys.setprofile(None)
            except BaseException:  # what the job left has raised, and with that Python lets go of it
                hooked = True
                sys.settrace(None)
                sys.setprofile(None)
            if failure is not None:
                if isinstance(failure, chunk.CallFailed):
                    result, failure = failure.outcome, failure.error
                ending, error = self._describe(failure, sequence)
                failure = None
                if ending == NOT_STARTED:
                    started = 0.0
            now = ticks()
            ended = started + (now - began) if started else 0.0
            if extra:
                self._lift_limit()
            try:
                output = end_job()
            except Exception:
                output = self.normal.rescue()
            if hooked:
                output = Output(b"", b"", False) if output is None else output._replace(clean=False)
            if output is None:
                stdout = stderr = b""
                flags = last
            else:
                stdout, stderr = output.stdout, output.stderr
                flags = last if output.clean else FLAG_RETIRE
            if now > look_at:
                look_at = now + _LOOK_INTERVAL
                if not self.normal.is_intact():
                    flags, output = FLAG_RETIRE, Output(stdout, stderr, False)
                elif self._has_outgrown():
                    flags = FLAG_RETIRE
            if self.normal.directory_gone:
                flags |= FLAG_DIRECTORY_GONE
            if flags:
                self.speaker.silence()  # a thread that the job left must not speak into what follows
            if type(result) is not bytes or len(result) + len(stdout) + len(stderr) + len(error) > INLINE:
                parts: list[Readable] = result if isinstance(result, list) else [result]
                sizes = sum(map(len, parts)), len(stdout), len(stderr), len(error)
                times = started, ended
                apart, inline = (pack(sequence, ending, carried, flags, *sizes, *times) for carried in (1, 0))
                self._send_large(apart, inline, [*parts, stdout, stderr, error], sum(sizes))
                parts, result = [], b""
            else:
                body = result if output is None and not error else b"".join((result, stdout, stderr, error))
                sizes = len(result), len(stdout), len(stderr), len(error)
                frame = pack(sequence, ending, 0, flags, *sizes, started, ended) + body
                sent = send(frame)
                if sent != len(frame):
                    self._socket.sendall(frame[sent:])
            cell[RUNNING] = 0
            if flags:
                if output is None or output.clean:
                    return
                os._exit(0)

    def _prepare(self, extra: memoryview) -> None:
        """Give a job what it needs beyond its arguments. The environment is put back as after every job."""
        wanted = json.loads(bytes(extra))
        os.environ.update(wanted.get("env", {}))
        limit = wanted.get("memory", 0)
        if limit:
            self._memory_limit = limit
            self._shelf.is_limited = True
            self._data_limit = _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            most = linux.data_size() + _ROOM_FACTOR * limit + _ROOM
            if hard == resource.RLIM_INFINITY or most < hard:
                tripwires.set_limit(resource.RLIMIT_DATA, (most, hard))

    def _lift_limit(self) -> None:
        if self._memory_limit:
            self._memory_limit = 0
            self._shelf.is_limited = False
            with contextlib.suppress(ValueError, OSError):  # the job has lowered it for good, which is found next
                tripwires.set_limit(resource.RLIMIT_DATA, self._data_limit)

    def _has_outgrown(self) -> bool:
        """Whether so much was left behind by jobs that another process is better."""
        return bool(self._growth_limit) and linux.private_memory() > self._cell[MEMORY_AT_FORK] + self._growth_limit

    def _send_large(self, apart: bytes, inline: bytes, parts: list[Readable], size: int) -> None:
        """Send a body by descriptor, or behind its header if no descriptor can be had."""
        try:
            fd = freememory.file_of(parts, size)
        except OSError:  # the job has lowered a limit for good
            for part in (inline, *parts):
                self._socket.sendall(part)
            return
        send_with(self._socket, apart, [fd])
        os.close(fd)

    def _describe(self, raised: BaseException, sequence: int) -> tuple[int, bytes]:
        """Ending and error text for what a call raised."""
        if isinstance(raised, calls.NotStarted):
            return NOT_STARTED, b""
        if isinstance(raised, calls.UnsendableError):
            return UNSENDABLE, _encoded(str(raised))
        if isinstance(raised, calls.ProgramInterrupted):
            return INTERRUPTED, _encoded(str(raised))
        if isinstance(raised, calls.ProgramError):
            return RAISED, _encoded(str(raised))
        text = calls.user_trace(raised, __file__, chunk.__file__)
        if isinstance(raised, MemoryError) and self._memory_limit:
            words = f"memory: an allocation went far over the limit of {size(self._memory_limit)}"
            return LIMITED, _encoded(f"{words}\n{text}")
        if isinstance(raised, NameError) and raised.name in self._omitted:
            text += f"({raised.name!r} of the client's program was not sent: {self._omitted[raised.name]})\n"
        interrupted = isinstance(raised, KeyboardInterrupt) and self._cell[CANCEL] == sequence
        return INTERRUPTED if interrupted else RAISED, _encoded(text)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _content(fd: int) -> object:
    """The arguments that came as a descriptor: arrays in them stay there, and jobs write into pages of their own."""
    try:
        return pages.mapped(fd)
    finally:
        os.close(fd)
