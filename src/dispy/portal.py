"""One event loop in one thread for the blocking API, and one thread for the user's callbacks.

Both threads, and the two that do file work for the loop, are started once, at the first cluster: no thread can be
started while the interpreter is ending, and that is when a program without `wait()` waits for its jobs. They are
daemon threads; `atexit` functions (see `dispy.cluster`) run while they still work.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, ParamSpec, TypeVar

from dispy.errors import ClosedError
from dispy.logs import logger
from dispy.watchful import WatchfulSelector

T = TypeVar("T")
P = ParamSpec("P")

FILE_THREADS = 2


class LastingExecutor(ThreadPoolExecutor):
    """An executor that goes on while the interpreter ends.

    The standard one refuses work as soon as the main thread is done, before `atexit` functions run. The base class is
    only there because an event loop accepts no other kind as its default.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(max_workers=threads)
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for number in range(threads):
            threading.Thread(target=self._run, name=f"dispy-files-{number}", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._work.get()()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in one of the threads."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # it belongs to whoever waits for the future
                future.set_exception(error)
            else:
                future.set_result(result)

        self._work.put(work)
        return future


class Calling(NamedTuple):
    """A callback of the user's that runs."""

    function: Callable[..., Any]
    since: float
    """By the monotonic clock."""


class Portal:
    """The threads of this process that work for all its clusters."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._selector = WatchfulSelector()
        self.loop = asyncio.SelectorEventLoop(self._selector)
        self.loop.set_default_executor(LastingExecutor(FILE_THREADS))
        self._wanted: deque[Callable[[], object]] = deque()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self.loop.add_reader(self._ear, self._hear)
        self._callbacks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.calling: Calling | None = None
        """The callback that runs now, as far as whoever queued it says so."""
        self._loop_thread = threading.Thread(target=self._run_loop, name="dispy-loop", daemon=True)
        self._callback_thread = threading.Thread(target=self._run_callbacks, name="dispy-callbacks", daemon=True)
        self._loop_thread.start()
        self._callback_thread.start()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:  # everybody waits for ever when it ends
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):  # what asyncio lets out of a callback
                logger.exception("something in dispy's event loop failed; dispy goes on")

    def _run_callbacks(self) -> None:
        while True:
            callback = self._callbacks.get()
            try:
                callback()
            except BaseException:  # sys.exit would end this thread, and whoever waits for callbacks waits for ever
                logger.exception("a callback of this program failed; dispy goes on")
            self.calling = None

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the loop and wait for its result.

        Raises:
            ClosedError: called from the loop's own thread, where waiting would stop everything.
            TimeoutError: `timeout` seconds were not enough.
        """
        if threading.current_thread() is self._loop_thread:
            coroutine.close()
            raise ClosedError(
                "a blocking call of dispy was made from dispy's own event loop; make it from another thread"
            )
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Run a function in the loop soon; returns at once."""
        self.loop.call_soon_threadsafe(function, *args)

    def wake(self, function: Callable[[], object]) -> None:
        """As `post`, for what is wanted often, and whose order among other things does not matter: at half the cost."""
        self._wanted.append(function)
        with contextlib.suppress(BlockingIOError):  # it is called often enough
            self._bell.send(b"\0")

    def _hear(self) -> None:
        self._ear.recv(4096)
        wanted = self._wanted
        for _ in range(len(wanted)):
            wanted.popleft()()

    def callback(self, callback: Callable[[], None]) -> None:
        """Run user code in the callback thread, after everything that was queued before it."""
        self._callbacks.put(callback)

    def expect(self, is_expecting: Callable[[], bool]) -> None:
        """While this says so one answer is out, for which the loop may stay awake."""
        self._selector.is_expecting = is_expecting

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets without a word to those at their other ends."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for key in list(self._selector.get_map().values()):
            # Not close(): objects that own the number would close it again when they are collected.
            os.dup2(nothing, key.fd, inheritable=False)
        os.close(nothing)

    @property
    def in_callback(self) -> bool:
        """Whether the caller is the callback thread."""
        return threading.current_thread() is self._callback_thread


_portal: Portal | None = None
_lock = threading.Lock()


def portal() -> Portal:
    """The portal of this process; a forked child gets its own."""
    global _portal
    with _lock:
        if _portal is None or _portal.pid != os.getpid():
            _portal = Portal()
        return _portal


def current_portal() -> Portal | None:
    """The portal if there is one already."""
    return _portal


def _forget_lock() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it at the fork


os.register_at_fork(after_in_child=_forget_lock)
