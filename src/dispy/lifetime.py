"""What a process owes its clusters: one scheduler service for those that fit together, an exit that waits visibly,
and a fork that leaves the parent's jobs alone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable
from typing import Protocol

from dispy.logs import logger
from dispy.portal import current_portal, portal
from dispy.scheduler.access import SchedulerAccess
from dispy.words import counted

SAY_AFTER = 2.0
"""Seconds that an ending program waits in silence before it says what it waits for."""
INTERRUPTED_TIMEOUT = 2.0
"""Seconds that jobs have to end when an ending program is interrupted; their nodes end what is left then."""


class Closable(Protocol):
    """What is asked of a cluster at the end of its process."""

    pid: int
    service: SchedulerAccess

    @property
    def name(self) -> str:
        """For sentences."""

    @property
    def pending(self) -> int:
        """Jobs that have not ended."""

    @property
    def is_closed(self) -> bool:
        """Whether nothing is left to do."""

    @property
    def is_hurried(self) -> bool:
        """Whether its end was being waited for when Ctrl-C came again: that is left to the nodes."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no job is pending."""

    def finish(self, terminate: bool) -> None:
        """Close it, whatever is pending."""

    def expect_no_more_nodes(self) -> None:
        """Let jobs end that none of the known nodes can ever run."""

    @property
    def abandoned(self) -> str:
        """Why the last job was abandoned; empty when none was."""

    def end_jobs(self) -> None:
        """Ask for the end of what is pending, and do not wait for it."""

    def forget(self) -> None:
        """Mark it closed: it belongs to another process."""


_services: dict[Hashable, SchedulerAccess] = {}
"""By what clusters must have in common to share one."""
_clusters: set[Closable] = set()
_lock = threading.Lock()
_exit_registered = False


def service_for(settings: Hashable, make: Callable[[], SchedulerAccess]) -> SchedulerAccess:
    """The scheduler of this process for these settings; made when there is none."""
    with _lock:
        service = _services.get(settings)
        if service is None:
            service = _services[settings] = make()
        return service


def remember(cluster: Closable) -> None:
    """An open cluster: the process does not end without it."""
    global _exit_registered
    with _lock:
        _clusters.add(cluster)
        if not _exit_registered:
            _exit_registered = True
            atexit.register(_at_exit)


def release(cluster: Closable) -> None:
    """The cluster is closed."""
    with _lock:
        _clusters.discard(cluster)


def stop_if_unused(service: SchedulerAccess) -> None:
    """Stop a service that no open cluster uses."""
    with _lock:
        if any(cluster.service is service for cluster in _clusters):
            return
        for settings in [settings for settings, known in _services.items() if known is service]:
            del _services[settings]
    portal().call(service.stop())


def _left_by_interrupt() -> bool:
    last = getattr(sys, "last_type", None)
    return isinstance(last, type) and issubclass(last, KeyboardInterrupt) and not hasattr(sys, "ps1")


def _at_exit() -> None:
    """Wait for jobs that are pending when the program ends, as users of the original expect, but not in silence."""
    with _lock:
        clusters = [cluster for cluster in _clusters if cluster.pid == os.getpid()]
    terminate = _left_by_interrupt()
    try:
        if not terminate:
            _wait_visibly(clusters)
        for cluster in clusters:
            if not cluster.is_closed and not cluster.is_hurried:
                cluster.finish(terminate)
    except KeyboardInterrupt:
        _end_interrupted(clusters)
    with _lock:
        services = list(_services.values())
        _services.clear()
    hurried = any(cluster.is_hurried for cluster in clusters)
    for service in services:
        portal().call(service.stop(hurried=hurried))


def _wait_visibly(clusters: list[Closable]) -> None:
    silent_until = time.monotonic() + SAY_AFTER
    for cluster in clusters:
        cluster.wait(max(0.0, silent_until - time.monotonic()))
    busy = [cluster for cluster in clusters if cluster.pending]
    if not busy:
        return
    jobs = ", ".join(f"{cluster.pending} of {cluster.name}" for cluster in busy)
    logger.info("the program is done, but not its jobs: %s; waiting for them (Ctrl-C ends them)", jobs)
    for cluster in busy:
        cluster.expect_no_more_nodes()
    for cluster in busy:
        cluster.wait()
        if cluster.abandoned:
            logger.warning("jobs of %s end without a result: %s", cluster.name, cluster.abandoned)


def _end_interrupted(clusters: list[Closable]) -> None:
    """Ctrl-C while the program waits for its jobs: cancel them, and let it end as one that was interrupted."""
    pending = sum(cluster.pending for cluster in clusters)
    left = [cluster for cluster in clusters if not cluster.is_closed]
    with contextlib.suppress(KeyboardInterrupt):  # then the nodes end what is left, as the links say goodbye
        words = f"{counted(pending, 'job')} to be ended now (Ctrl-C once more: without waiting for that)"
        logger.warning("interrupted: %s", words)
        for cluster in left:
            cluster.end_jobs()
        until = time.monotonic() + INTERRUPTED_TIMEOUT
        for cluster in left:
            if cluster.wait(max(0.0, until - time.monotonic())):
                cluster.finish(terminate=True)
    for cluster in left:
        if not cluster.is_closed:
            cluster.end_jobs()  # the second interrupt may have come before that was asked
    _die_of_interrupt()


def _die_of_interrupt() -> None:
    """Let this process end by SIGINT, as its parent expects of an interrupted program, when all else is done.

    Python does so after a program that ended with this exception. We are called after that: only another program that
    ends so can still tell Python.
    """
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt", {})


def _after_fork_in_child() -> None:
    """The child has no portal threads: its clusters are closed objects, and it must not hold the parent's sockets."""
    global _lock
    _lock = threading.Lock()
    inherited = current_portal()
    if inherited is not None:
        inherited.abandon()
    for service in _services.values():
        service.abandon()
    for cluster in _clusters:
        cluster.forget()
    _clusters.clear()
    _services.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
