"""A shared scheduler from its start to its end: one line that says what was started, signals, the exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from typing import Final

from dispy.commandline import tell_manager
from dispy.errors import DispyError, SettingsError
from dispy.sharing import console
from dispy.sharing.collecting import Collecting
from dispy.sharing.daemon import SharedScheduler
from dispy.sharing.settings import SharingSettings
from dispy.terminal import is_wanted
from dispy.wire.interfaces import shown
from dispy.wire.tls import prepare_certificate

logger = logging.getLogger("dispy.scheduler")

SWITCH_INTERVAL: Final = 0.0005
"""Seconds for which the event loop keeps the interpreter while the store's thread waits for it: that wants it some ten
times in a commit, and jobs wait for the commit. Python's own 5 ms make one last 50 ms longer under load."""


def run(settings: SharingSettings, *, daemon: bool) -> int:
    """Run a scheduler until it ends; returns the exit code.

    Raises:
        SettingsError: it cannot be run as it was asked to.
    """
    # both take long, and nobody waits yet
    prepare_certificate(settings.clients)
    gc.collect()
    try:
        return asyncio.run(_serve(settings, daemon=daemon))
    except SettingsError:
        raise
    except (DispyError, OSError) as error:
        logger.error("dispyscheduler cannot run: %s", error)
        return 1


async def _serve(settings: SharingSettings, *, daemon: bool) -> int:
    manager = os.environ.pop("NOTIFY_SOCKET", "")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    sys.setswitchinterval(SWITCH_INTERVAL)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every node and every program has a connection
    scheduler = SharedScheduler(settings)
    try:
        await scheduler.start()
    except BaseException:
        await scheduler.close()
        raise
    terminal: console.Console | None = None
    collecting = Collecting(asyncio.get_running_loop(), scheduler.load)
    collecting.start()
    try:
        _take_signals(scheduler, daemon=daemon)
        if scheduler.port_notice:
            logger.warning("%s", scheduler.port_notice)
        logger.info("%s", _ready_line(scheduler))
        tell_manager(manager, "READY=1")
        if not daemon and is_wanted():
            terminal = console.Console(scheduler)
            terminal.start()
        reason = await scheduler.ended
    finally:
        tell_manager(manager, "STOPPING=1")
        collecting.stop()
        if terminal is not None:
            terminal.stop()
        left = scheduler.left()
        await scheduler.close()
    logger.info("ended: %s%s", reason, f"; {left}" if left else "")
    return 1 if scheduler.has_failed else 0


def _take_signals(scheduler: SharedScheduler, *, daemon: bool) -> None:
    """Let SIGINT, SIGTERM, SIGQUIT and SIGHUP end it (a daemon ignores SIGHUP): what is left is on the disk."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        loop.add_signal_handler(number, scheduler.end, f"by {signal.Signals(number).name}")
    loop.add_signal_handler(signal.SIGHUP, (lambda: None) if daemon else lambda: scheduler.end("by SIGHUP"))


def _ready_line(scheduler: SharedScheduler) -> str:
    """What a sysadmin wants to know, in one line."""
    settings = scheduler.settings
    parts = [
        f"{scheduler.name} is ready for programs at {', '.join(shown(*place) for place in scheduler.where)}",
        f"for nodes that join at port {settings.base_port}",
        f"nodes: {', '.join(settings.use)}",
        f"secret of programs: {settings.clients.source}",
        f"of nodes: {settings.nodes.source}",
        f"policy: {settings.policy.value}",
    ]
    if settings.group:
        parts.append(f"group: {settings.group}")
    if settings.admin is not None:
        parts.append(f"of admins: {settings.admin.source}")
    parts.append(f"files in {settings.prefix}")
    return "; ".join(parts)
