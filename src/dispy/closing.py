"""The end of a cluster: what is waited for, in which order, and how long."""

from __future__ import annotations

import threading
import time

from dispy.clusterbase import ClusterBase
from dispy.job import KEEPERS
from dispy.lifetime import SAY_AFTER, release
from dispy.logs import logger
from dispy.portal import Calling

SLACK = 1.0
"""Seconds that what nothing holds up may take when the time is over: nodes clean up, no callback runs."""
SAY_AGAIN = 10.0
"""Seconds between two sentences about what is waited for."""
CALLBACK_PATIENCE = 5.0
"""Seconds that a callback may run on in a cluster whose jobs were ended."""


class ClusterClosing(ClusterBase):
    """How a cluster ends."""

    end_time: float | None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all jobs have ended.

        Args:
            timeout: seconds; None waits as long as it takes.

        Returns:
            True when all have ended, False when the time was over first.
        """
        self._check_process()
        return self._ledger.wait(timeout)

    def __call__(self) -> None:
        """Same as `wait()`."""
        self.wait()

    def close(self, timeout: float | None = None, terminate: bool = False) -> bool | None:
        """Wait for all jobs and callbacks, clean up on the nodes and release them.

        Jobs that callbacks submit meanwhile are waited for as well. As soon as none is left, or they are ended,
        `submit` raises ClosedError.

        Args:
            timeout: seconds to wait for jobs and callbacks.
            terminate: end the jobs that are not done by then; without `timeout`, end them now. A callback that does
                not return is then left alone, and the log names it.

        Returns:
            True when closed; False when the time was over: the cluster stays open, or nodes still clean up (then it
            takes no more jobs, and `close()` waits for the rest); None when it was closed before.
        """
        self._check_process()
        if self.is_closed:
            return None
        until = None if timeout is None else time.monotonic() + timeout
        if not (terminate and timeout is None) and not self._seal_when_quiet(until) and not terminate:
            return False
        return self._end(terminate, until)

    def finish(self, terminate: bool) -> None:
        """Close the cluster however long that takes; with `terminate` pending jobs are ended, else they finish."""
        if not terminate:
            self._seal_when_quiet(None)
        self._end(terminate, None)

    def end_jobs(self) -> None:
        """Ask for the end of pending jobs, and do not wait for it."""
        self._ledger.seal()
        self._portal.post(self.service.close_cluster, self._id, True)

    def expect_no_more_nodes(self) -> None:
        """Let jobs end that none of the known nodes can ever run; others still wait."""
        self._portal.post(self.service.narrow, self._id)

    @property
    def abandoned(self) -> str:
        """Why the last job was abandoned; empty when none was."""
        return self._ledger.abandoned

    def forget(self) -> None:
        """Mark this object closed, as its process forked and only the parent owns the jobs."""
        self.is_closed = True

    def _seal_when_quiet(self, until: float | None) -> bool:
        """Take no more jobs as soon as none is pending and no callback can submit one; False when time was over."""
        while self._ledger.wait(_left(until)):
            if not self._portal.in_callback and not self._callbacks_return(until):
                return False
            if self._ledger.seal(if_idle=True):
                return True
        return False

    def _end(self, terminate: bool, until: float | None) -> bool:
        self._ledger.closing = True
        self._ledger.seal()
        self._portal.post(self.service.close_cluster, self._id, terminate)
        patience = None if terminate else _left(until, SLACK)  # nodes have limits of their own
        if not self._wait_until_over(patience, "; Ctrl-C again: without waiting" if terminate else ""):
            return False
        self.is_closed = True
        KEEPERS.pop(self._id, None)
        self.end_time = time.time()
        self._close_scattered()
        release(self)
        if not self._portal.in_callback:
            self._see_callbacks_off(terminate, until)
        return True

    def _wait_until_over(self, patience: float | None, hint: str) -> bool:
        """Wait for the nodes, and say what for; False when the time (seconds) was over."""
        until = None if patience is None else time.monotonic() + patience
        pause = SAY_AFTER
        while not self._ledger.over.wait(pause if until is None else min(pause, max(0.0, until - time.monotonic()))):
            if until is not None and time.monotonic() >= until:
                return False
            logger.info("%s; waiting for that%s", self._what_is_left(), hint)
            pause = SAY_AGAIN
        return True

    def _what_is_left(self) -> str:
        """What keeps it from being closed, in words."""
        silence = self.service.silence
        if self.pending:
            what = f"jobs of {self.name} are being ended ({self.pending} are left)"
            return f"{what}: {silence}" if silence else what
        if not silence:
            nodes = [
                f"node {each.name} ({each.address}) {each.problem}"
                for each in self._portal.call(self.service.standings(self._id))
            ]
            silence = "; ".join(nodes) or "its nodes are being told"
        return f"{self.name} is not closed yet: {silence}"

    def _callbacks_return(self, until: float | None) -> bool:
        """Wait for the callbacks of all that has happened; False when the time was over."""
        drained = self._after_callbacks()
        return drained.wait(_left(until)) or (self._portal.calling is None and drained.wait(SLACK))

    def _see_callbacks_off(self, terminate: bool, until: float | None) -> None:
        """The cluster is closed: wait for the callbacks that tell of it, but not for ever on one that hangs."""
        drained = self._after_callbacks()
        end = None
        if until is not None:
            end = max(until, time.monotonic() + (CALLBACK_PATIENCE if terminate else SLACK))
        elif not terminate:
            drained.wait()
        while not drained.is_set():
            calling, now = self._portal.calling, time.monotonic()
            if end is not None:
                left = end - now
            else:
                left = CALLBACK_PATIENCE - (0.0 if calling is None else now - calling.since)
            if left <= 0:
                logger.warning("%s is closed, but not all callbacks have returned%s", self.name, _about(calling, now))
                return
            drained.wait(left)

    def _after_callbacks(self) -> threading.Event:
        """Set when the callbacks have returned of all that has happened until now."""
        drained = threading.Event()
        # by way of the loop: what it is telling at this moment may not have queued its callbacks
        self._portal.post(self._portal.callback, drained.set)
        return drained


def _left(until: float | None, least: float = 0.0) -> float | None:
    return None if until is None else max(least, until - time.monotonic())


def _about(calling: Calling | None, now: float) -> str:
    if calling is None:
        return ""
    function = calling.function
    name = getattr(function, "__qualname__", type(function).__name__)
    return f": {name} has been running for {now - calling.since:.0f} s"
