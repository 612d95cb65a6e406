"""What the owner of a node types at its terminal: a word steers it, anything else shows how it is.

Only where the standard input is a terminal in whose foreground the node runs, and without `--daemon`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

from dispy.errors import SettingsError
from dispy.node import events as ev
from dispy.node import vitals
from dispy.node.core import Snapshot
from dispy.node.offer import Offer
from dispy.node.service import NodeService
from dispy.node.window import ServiceWindow, clock_text

_HELP: Final = """\
quit      end now; what has not started is given back
exit      end when the jobs that are here have ended
stop      start no new jobs
start     start jobs again
cpus N    offer N CPUs (0: all, -N: all but N)
release   let go of a program that is gone, without waiting for it
help      this list
anything else shows how the node is."""
_BUFFER_SIZE: Final = 4096


def is_wanted() -> bool:
    """Whether somebody can type: reading in the background would stop the process."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


class Console:
    """Reads lines from a terminal and obeys them. `start`, then `stop`."""

    def __init__(self, service: NodeService, fd: int = 0, say: Callable[[str], None] | None = None) -> None:
        self._service = service
        self._fd = fd
        self._say = say or _print
        self._rest = b""
        self._asked_for_cpus = False
        self._commands: Mapping[str, Callable[[list[str]], None]] = {
            "quit": lambda _: self._end(at_once=True),
            "exit": lambda _: self._end(at_once=False),
            "stop": lambda _: self._stop(stopped=True),
            "start": lambda _: self._stop(stopped=False),
            "cpus": self._cpus,
            "release": lambda _: self._release(),
            "help": lambda _: self._say(_HELP),
        }

    def start(self) -> None:
        """Begin to read."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_readable)
        self._say("Type help for the words that steer this node, or Enter to see how it is.")

    def stop(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._fd)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fd, _BUFFER_SIZE)
        except OSError:  # the terminal is gone; SIGHUP says what that means
            data = b""
        if not data:
            self.stop()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.obey(line.decode("utf-8", "replace"))

    def obey(self, line: str) -> None:
        """Do what a line says."""
        words = line.lower().split()
        if self._asked_for_cpus and words:
            words = ["cpus", *words]
        self._asked_for_cpus = False
        command = self._commands.get(words[0]) if words else None
        if command is None:
            _show(self._service, self._say)
        else:
            command(words[1:])

    def _end(self, *, at_once: bool) -> None:
        self._say("ending now" if at_once else "ending after the jobs that are here (quit: now)")
        self._service.ask_exit(at_once=at_once)

    def _stop(self, *, stopped: bool) -> None:
        upkeep = self._service.upkeep
        upkeep.offer.stopped = stopped
        upkeep.tell()
        self._say(offer_text(upkeep.offer))

    def _cpus(self, words: list[str]) -> None:
        upkeep = self._service.upkeep
        if not words:
            self._asked_for_cpus = True
            self._say(f"{upkeep.offer.cpus} are offered. How many shall it be (0: all, -N: all but N)?")
            return
        try:
            asked = int(words[0])
            offered = vitals.offered_cpus(asked, oversubscribe=self._service.settings.oversubscribe)
        except (ValueError, SettingsError) as error:
            self._say(str(error) if isinstance(error, SettingsError) else f"{words[0]!r} is no number of CPUs")
            return
        upkeep.offer.cpus = offered
        upkeep.tell()
        self._say(offer_text(upkeep.offer))

    def _release(self) -> None:
        lease = self._service.core.lease
        if lease is None:
            self._say("nobody uses this node")
        elif lease.peer is not None:
            self._say("the program that uses this node is connected; quit or stop if it shall not go on")
        else:
            self._service.handle(ev.ReleaseAsked())
            left = self._service.core.lease is not None and not self._service.core.lease.is_idle
            self._say("it is let go as soon as its jobs that run have ended" if left else "it is let go")


def offer_text(offer: Offer) -> str:
    """What is offered now, for people."""
    cpus, reason = offer.now()
    return f"{cpus} CPU{'' if cpus == 1 else 's'} offered" if cpus else f"no CPU offered: {reason}"


def status_rows(seen: Snapshot, offer: Offer, window: ServiceWindow | None, now: float) -> list[tuple[str, str]]:
    """How a node is: names and values, in the order in which people want them. Pure."""
    rows = [("CPUs", offer_text(offer))]
    if window is not None:
        rows.append(("service", _window_text(window)))
    if seen.holder is None:
        rows.append(("used by", "nobody"))
    else:
        holder = seen.holder
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
        who = f"{holder.user}@{holder.host} ({holder.program}, process {holder.pid})"
        rows.append(("used by", f"{who} since {since}, {_span(now - holder.since)}"))
    if seen.waiting:
        rows.append(("in line", f"{seen.waiting} more program{'' if seen.waiting == 1 else 's'}"))
    rows += [("computation", f"{name} ({state})") for _, name, state in seen.computations]
    rows.append(("jobs here", f"{seen.given} with {seen.workers} workers, {seen.queued} queued"))
    rows.append(("jobs done", f"{seen.done}, {seen.unacknowledged} of them not yet fetched"))
    rows.append(("programs", f"{seen.served} served"))
    return rows


def _window_text(window: ServiceWindow) -> str:
    parts = [f"from {clock_text(window.start)}", f"no new jobs from {clock_text(window.stop)}"]
    if window.end is not None:
        parts.append(f"jobs end at {clock_text(window.end)}")
    return ", ".join(parts)


def _span(seconds: float) -> str:
    minutes, seconds = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} h" if hours else f"{minutes}:{seconds:02} min"


def _show(service: NodeService, say: Callable[[str], None]) -> None:
    from rich.console import Console as Screen
    from rich.table import Table

    upkeep = service.upkeep
    table = Table(title=service.settings.name, show_header=False, title_justify="left")
    for name, value in status_rows(service.core.snapshot(), upkeep.offer, service.settings.window, time.time()):
        table.add_row(name, value)
    screen = Screen()
    with screen.capture() as shown:
        screen.print(table)
    say(shown.get().rstrip("\n"))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
