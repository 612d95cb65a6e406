"""What the owner of a node types at its terminal: a word steers it, anything else shows how it is.

Only where the standard input is a terminal in whose foreground the node runs, and without `--daemon`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Final

from dispy.model import NodeOrder
from dispy.node.service import NodeService
from dispy.node.steering import status_rows
from dispy.words import counted

_HELP: Final = """\
quit      end now; what has not started is given back
exit      end when the jobs that are here have ended
stop      start no new jobs; what has not started is given back
start     start jobs again
cpus N    offer N CPUs (0: all, -N: all but N)
hours START STOP [END]
          serve in these hours (HH:MM; no new jobs from STOP, jobs end at END); hours always: no limit
release   let go of a program that is gone, without waiting for it
help      this list
anything else shows how the node is."""
_ORDERS: Final = {order.value: order for order in NodeOrder}
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
        match words:
            case ["help"]:
                self._say(_HELP)
            case ["cpus", *rest]:
                self._cpus(rest)
            case ["hours", *rest]:
                self._order(NodeOrder.HOURS, hours=" ".join(rest))
            case [word] if word in _ORDERS:
                self._order(_ORDERS[word])
            case [word, *more] if word in _ORDERS or word == "help":
                self._say(f"{word} stands alone, without {' '.join(more)!r}: nothing was done")
            case _:
                _show(self._service, self._say)

    def _order(self, order: NodeOrder, cpus: int = 0, hours: str = "") -> None:
        self._say(self._service.steering.obey(order, cpus, hours).sentence)

    def _cpus(self, words: list[str]) -> None:
        if not words:
            self._asked_for_cpus = True
            offered = counted(self._service.steering.offer.cpus, "CPU")
            self._say(f"This node offers {offered}. How many shall it offer (0: all, -N: all but N)?")
            return
        if len(words) > 1:
            self._say(f"cpus takes one number, not {' '.join(words)!r}: nothing was done")
            return
        try:
            asked = int(words[0])
        except ValueError:
            self._say(f"{words[0]!r} is no number of CPUs")
        else:
            self._order(NodeOrder.CPUS, asked)


def _show(service: NodeService, say: Callable[[str], None]) -> None:
    from rich.console import Console as Screen
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in status_rows(service.steering.status()):
        table.add_row(name, value)
    screen = Screen()
    with screen.capture() as shown:
        screen.print(service.settings.name, markup=False, highlight=False)
        screen.print(table)
    say(shown.get().rstrip("\n"))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
