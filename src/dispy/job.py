"""`DispyJob`: what `submit` returns, and what it shows once the job has ended.

A job is made by the million, so it carries no lock and no event until somebody waits for it. Its fields are set in the
event loop's thread; `_ended` is set last, and whoever waits looks at it again after he has hung up his event.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Protocol

from dispy import buffers
from dispy.model import ComputationId, JobDone, JobState
from dispy.settings import INLINE_SIZE

if TYPE_CHECKING:
    from dispy.scheduler.jobs import JobRecord


class Keeper(Protocol):
    """Who knows more of a job than its fields."""

    def _tail(self, record: JobRecord) -> tuple[Any, Any]:
        """What it has printed so far."""

    def _arguments(self, record: JobRecord) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What its function is called with."""


KEEPERS: Final[dict[ComputationId, Keeper]] = {}
"""Of each open cluster."""
_numbers = itertools.count(1)
_waiters_lock = threading.Lock()


class Waiters:
    """Who wants to know that a job has ended: threads, an event, functions."""

    __slots__ = ("are_awake", "event", "functions", "threads")

    def __init__(self) -> None:
        self.threads: list[_thread.LockType] = []
        """A lock that is held, for each thread that waits in `job()`: it costs a tenth of an event."""
        self.event: threading.Event | None = None
        self.functions: tuple[Callable[[DispyJob], object], ...] = ()
        self.are_awake = False
        """The job has ended; a copy of it that waits may not know."""

    def wake(self, job: DispyJob) -> None:
        """The job has ended."""
        self.are_awake = True
        for lock in self.threads:
            lock.release()
        if self.event is not None:
            self.event.set()
        for function in self.functions:
            function(job)


class DispyJob:
    """One submitted job.

    Attributes:
        id: counts 1, 2, 3 … per process; may be set to anything.
        status: a state of `DispyJob` (`DispyJob.Finished` …).
        result: what the function returned, or the program's exit code; None unless finished. While the job runs, the
            last provisional result.
        stdout, stderr: captured output; str for functions, bytes for programs.
        exception: traceback, or the sentence that says what ended the job; None if it finished.
        submit_time, start_time, end_time: seconds since the epoch; start and end by the node's clock.
        ip_addr: address of the node that ran it.
        finish: a `threading.Event` that is set when the job has ended.
    """

    Created = JobState.Created
    Running = JobState.Running
    ProvisionalResult = JobState.ProvisionalResult
    Cancelled = JobState.Cancelled
    Terminated = JobState.Terminated
    Abandoned = JobState.Abandoned
    Finished = JobState.Finished

    __slots__ = (
        "__weakref__",
        "_ended",
        "_lazy",
        "_record",
        "_result",
        "_status",
        "_waiters",
        "end_time",
        "exception",
        "id",
        "ip_addr",
        "start_time",
        "stderr",
        "stdout",
        "submit_time",
    )

    def __init__(self, job_id: object = None) -> None:
        self.id: Any = next(_numbers) if job_id is None else job_id
        self.submit_time: float = time.time()
        self.start_time: float | None = None
        self.end_time: float | None = None
        self.stdout: Any = None
        self.stderr: Any = None
        self.exception: str | None = None
        self.ip_addr: str | None = None
        self._status = JobState.Created
        self._result: Any = None
        self._lazy: bytes | memoryview | None = None
        self._waiters: Waiters | None = None
        self._ended = False
        self._record: JobRecord | None = None

    def __call__(self, clear: bool = False) -> Any:
        """Wait until the job has ended and return its result (None unless it finished).

        Args:
            clear: reset `finish` afterwards.
        """
        job = self if self._ended else self._original()
        if not job._ended:
            job._wait()
        if job._lazy is not None:
            job._load()
        if clear:
            self.finish.clear()
        return job._result

    def __await__(self) -> Generator[Any, None, Any]:
        """`await job` is `job()` in a running asyncio loop, which goes on meanwhile."""
        if not self._ended:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()

            def resolve() -> None:
                if not future.done():
                    future.set_result(None)

            def ended(job: DispyJob) -> None:
                with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(resolve)

            self._when_ended(ended)
            yield from future
        return self._original().result

    def _wait(self) -> None:
        lock = _thread.allocate_lock()
        lock.acquire()
        with _waiters_lock:
            if self._waiters is None:
                self._waiters = Waiters()
            self._waiters.threads.append(lock)
        if not self._ended:
            lock.acquire()

    def tail(self) -> tuple[Any, Any]:
        """What it has printed so far: stdout and stderr, the last 64 KiB of each while it runs, all after its end.

        Text for functions, bytes for programs; nothing before it has started.
        """
        record = self._record
        keeper = None if record is None else KEEPERS.get(record.cluster)
        printed: tuple[Any, Any] = ("", "")
        if record is not None and keeper is not None:
            printed = keeper._tail(record)
        if self._ended and self.stdout is not None:
            return self.stdout, self.stderr
        return printed

    @property
    def finish(self) -> threading.Event:
        """Set when the job has ended."""
        with _waiters_lock:
            if self._waiters is None:
                self._waiters = Waiters()
            event = self._waiters.event
            if event is None:
                event = self._waiters.event = threading.Event()
            waiters = self._waiters
        if self._ended or waiters.are_awake:
            event.set()
        return event

    def _original(self) -> DispyJob:
        """The job of which this is a copy for a callback, or itself."""
        record: Any = self._record
        return self if self._ended or record is None else record.handle

    def _when_ended(self, function: Callable[[DispyJob], object]) -> None:
        """Call a function when the job has ended, or now if it has.

        It may be called twice, and in any thread; it must not wait.
        """
        with _waiters_lock:
            if self._waiters is None:
                self._waiters = Waiters()
            self._waiters.functions = (*self._waiters.functions, function)
        if self._ended:
            function(self)

    @property
    def status(self) -> JobState:
        """The job's state; a large result is unpickled first, because that can fail."""
        if self._lazy is not None:
            self._load()
        return self._status

    @status.setter
    def status(self, value: int) -> None:
        self._status = JobState(value)

    @property
    def result(self) -> Any:
        """What the function returned, or the program's exit code."""
        if self._lazy is not None:
            self._load()
        return self._result

    @result.setter
    def result(self, value: Any) -> None:
        self._lazy = None
        self._result = value

    @property
    def _args(self) -> tuple[Any, ...]:
        """Copies of the positional arguments; none any more when it has ended (as in the original)."""
        return self._arguments()[0]

    @property
    def _kwargs(self) -> dict[str, Any]:
        """Copies of the named arguments; none any more when it has ended."""
        return self._arguments()[1]

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        record = None if self._original()._ended else self._record
        keeper = None if record is None else KEEPERS.get(record.cluster)
        return ((), {}) if record is None or keeper is None else keeper._arguments(record)

    @property
    def host(self) -> str | None:
        """Old name of `ip_addr`."""
        return self.ip_addr

    @property
    def execution_trace(self) -> str | None:
        """Old name of `exception`."""
        return self.exception

    def _load(self) -> None:
        data = self._lazy
        if data is None:
            return
        value, problem = None, None
        try:
            value = buffers.loads(data)
        except BaseException as error:  # any class of the user can raise anything while it is rebuilt
            if _is_of_user(error):
                raise
            problem = f"the result cannot be unpickled in this program: {_described(error)}"
        with _waiters_lock:
            if self._lazy is not data:
                return  # a later result has come, or another thread was quicker
            self._result, self._lazy = value, None
            if problem is not None:
                self.exception = problem
                if self._ended or self._status is JobState.Finished:
                    self._status = JobState.Terminated

    def _take_provisional(self, data: bytes | memoryview) -> None:
        """Show an interim result; whoever waits for the end goes on waiting."""
        self.exception = None
        self._status = JobState.ProvisionalResult
        self._lazy = data
        if len(data) <= INLINE_SIZE:
            self._load()

    def _settle(
        self,
        state: JobState,
        done: JobDone | None,
        body: bytes | memoryview,
        cause: str | None,
        text: bool,
        address: str | None,
    ) -> None:
        """Set all fields from what the scheduler says, then wake whoever waits."""
        if address is not None:
            self.ip_addr = address
        if done is None:
            self.exception = cause
            self.end_time = time.time()
            self._lazy = self._result = None
        else:
            if done.started_at:
                self.start_time = done.started_at
            self.end_time = done.ended_at or time.time()
            self._take(state, done, body, cause, text)
        self._status = state
        if self._lazy is not None and len(self._lazy) <= INLINE_SIZE:
            self._load()
        self._record = None
        self._ended = True
        if self._waiters is not None:
            self._waiters.wake(self)

    def _take(self, state: JobState, done: JobDone, body: bytes | memoryview, cause: str | None, text: bool) -> None:
        at = done.result_size
        if done.stdout_size or done.stderr_size:
            out = body[at : at + done.stdout_size]
            at += done.stdout_size
            err = body[at : at + done.stderr_size]
            at += done.stderr_size
            self.stdout = bytes(out).decode(errors="replace") if text else bytes(out)
            self.stderr = bytes(err).decode(errors="replace") if text else bytes(err)
        else:
            self.stdout = self.stderr = "" if text else b""
        if state is JobState.Finished:
            self._lazy = body if len(body) == done.result_size else memoryview(body)[: done.result_size]
            self.exception = None
            return
        self._lazy = self._result = None
        if done.error_size:
            self.exception = bytes(body[at : at + done.error_size]).decode(errors="replace")
        else:
            self.exception = cause

    def _snapshot(self) -> DispyJob:
        """A copy with the state of now, for callbacks."""
        if self._waiters is None and not self._ended:
            with _waiters_lock:
                if self._waiters is None:  # the copy must share them, or waiting for the copy would never end
                    self._waiters = Waiters()
        copy = DispyJob.__new__(DispyJob)
        # one by one, as a loop over the names takes four times as long, and there are up to three copies of each job
        copy.id, copy.submit_time, copy.start_time, copy.end_time = (
            self.id,
            self.submit_time,
            self.start_time,
            self.end_time,
        )
        copy.stdout, copy.stderr, copy.exception, copy.ip_addr = self.stdout, self.stderr, self.exception, self.ip_addr
        copy._status, copy._result, copy._lazy = self._status, self._result, self._lazy
        copy._waiters, copy._ended, copy._record = self._waiters, self._ended, self._record
        return copy

    def __lt__(self, other: DispyJob) -> bool:
        return bool(self.id < other.id)

    def __repr__(self) -> str:
        return f"<DispyJob {self.id}: {self._status.name}>"


def _is_of_user(error: BaseException) -> bool:
    """Whether it is (or cannot be told from) the user's Ctrl-C, which is heard in the main thread alone."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def _described(error: BaseException) -> str:
    """Type and text of an exception, also of one that has no text to give."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException as trouble:  # its __str__ is the user's as well
        if _is_of_user(trouble):
            raise
        text = f"(its text cannot be told: {type(trouble).__name__})"
    return f"{name}: {text}" if text else name


def _renew_lock() -> None:
    global _waiters_lock
    _waiters_lock = threading.Lock()  # another thread of the parent may have held it at the fork


os.register_at_fork(after_in_child=_renew_lock)
