"""What the owner of a node types at its terminal: a word steers it, anything else shows how it is.

Only where the standard input is a terminal in whose foreground the node runs, and without `--daemon`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dispy.model import NodeOrder
from dispy.node.service import NodeService
from dispy.node.steering import status_rows
from dispy.terminal import Terminal
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


class Console(Terminal):
    """What the words mean to a node."""

    greeting = "Type help for the words that steer this node, or Enter to see how it is."

    def __init__(self, service: NodeService, fd: int = 0, say: Callable[[str], None] | None = None) -> None:
        super().__init__(fd, say)
        self._service = service
        self._asked_for_cpus = False

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
