"""A node from its start to its end: one line that says what was started, signals, service managers, the exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from dispy.commandline import tell_manager
from dispy.errors import DispyError, SettingsError
from dispy.node.service import NodeService
from dispy.node.settings import NodeSettings
from dispy.terminal import is_wanted
from dispy.wire.interfaces import shown
from dispy.words import counted

logger = logging.getLogger("dispy.node")


def run(node_settings: NodeSettings, *, daemon: bool) -> int:
    """Run a node until it ends; returns the exit code.

    Raises:
        SettingsError: it cannot be run as it was asked to.
    """
    try:
        return asyncio.run(_serve(node_settings, daemon=daemon))
    except SettingsError:
        raise
    except (DispyError, OSError) as error:
        logger.error("dispynode cannot run: %s", error)
        return 1


async def _serve(node_settings: NodeSettings, *, daemon: bool) -> int:
    # Jobs must not speak to the service manager in our name.
    manager = os.environ.pop("NOTIFY_SOCKET", "")
    service = NodeService(node_settings)
    await service.start()
    take_signals(service, daemon=daemon)
    if os.geteuid() == 0 and node_settings.account is None:
        logger.warning("running as root: jobs are root as well and can do anything here; --user NAME makes them a user")
    if service.callers.port_notice:
        logger.warning("%s", service.callers.port_notice)
    logger.info("%s", _ready_line(service))
    tell_manager(manager, "READY=1")
    if daemon or not is_wanted():
        return await until_ended(service, manager)
    from dispy.node import console

    terminal = console.Console(service)
    terminal.start()
    try:
        return await until_ended(service, manager)
    finally:
        terminal.stop()


async def until_ended(service: NodeService, manager: str = "") -> int:
    """Wait for the end of a node that was started, and clear it away; returns the exit code.

    `manager` is the address of a service manager that wants to hear of it.
    """
    try:
        reason = await service.ended
    finally:
        tell_manager(manager, "STOPPING=1")
        await service.close()
    logger.info("ended: %s", reason)
    return 1 if reason.startswith("cannot ") else 0


def take_signals(service: NodeService, *, daemon: bool) -> None:
    """Let SIGINT end the node in order, SIGTERM, SIGQUIT and SIGHUP at once (a daemon ignores SIGHUP)."""
    loop = asyncio.get_running_loop()
    interrupts = 0

    def interrupted() -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts == 1:
            logger.info("ending after the jobs that are here (again: ending now)")
        service.ask_exit(at_once=interrupts > 1)

    def terminated() -> None:
        logger.info("ending now")
        service.ask_exit(at_once=True)

    loop.add_signal_handler(signal.SIGINT, interrupted)
    loop.add_signal_handler(signal.SIGTERM, terminated)
    loop.add_signal_handler(signal.SIGQUIT, terminated)
    loop.add_signal_handler(signal.SIGHUP, (lambda: None) if daemon else terminated)


def _ready_line(service: NodeService) -> str:
    """What a sysadmin wants to know, in one line."""
    node = service.settings
    callers = service.callers
    where = ", ".join(shown(host, callers.port) for host in callers.hosts)
    interfaces = ", ".join(node.interfaces) or "all"
    parts = [
        f"{node.name} is ready at {where}",
        counted(node.cpus, "CPU"),
        f"secret: {node.credentials.source}",
        f"interfaces: {interfaces}",
    ]
    if node.group:
        parts.append(f"group: {node.group}")
    if callers.ext_hosts:
        parts.append("for others at " + ", ".join(shown(*place) for place in callers.ext_hosts))
    if node.joins:
        parts.append("joining " + ", ".join(shown(*place) for place in node.joins))
    parts.append(f"files in {node.prefix}")
    return "; ".join(parts)
