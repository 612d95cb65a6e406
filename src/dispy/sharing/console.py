"""What the owner of a shared scheduler types at its terminal: to end it, or to see how it stands."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Final

from dispy.sharing.daemon import SharedScheduler
from dispy.sharing.identity import whose
from dispy.words import counted

_HELP: Final = """\
quit      end now; what is left is on the disk for the next start
exit      end when no job is pending
status    how it stands (Enter as well)
help      this list
Programs are served, and new ones taken in, until it ends. It is ended here or by a signal, not from afar."""
_BUFFER_SIZE: Final = 4096


def is_wanted() -> bool:
    """Whether somebody can type: reading in the background would stop the process."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


class Console:
    """Reads lines from a terminal and obeys them. `start`, then `stop`."""

    def __init__(self, scheduler: SharedScheduler, fd: int = 0, say: Callable[[str], None] | None = None) -> None:
        self._scheduler = scheduler
        self._fd = fd
        self._say = say or _print
        self._rest = b""

    def start(self) -> None:
        """Begin to read."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_readable)
        self._say("Type help for the words that steer this scheduler, or Enter to see how it stands.")

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
        scheduler = self._scheduler
        match line.lower().split():
            case ["help"]:
                self._say(_HELP)
            case ["quit"]:
                scheduler.end("by its owner")
            case ["exit"]:
                self._say(f"ending when no job is pending ({counted(scheduler.pending, 'job')} now); more may come")
                scheduler.end_when_idle()
            case [] | ["status"]:
                self._say(standing(scheduler))
            case _:
                self._say(f"{line.strip()!r} is no word of this scheduler:\n{_HELP}")


def standing(scheduler: SharedScheduler) -> str:
    """How it stands, in tables."""
    from rich.console import Console as Screen
    from rich.table import Table

    status = scheduler.status()
    nodes = Table("node", "address", "CPUs", "jobs", "state")
    for node in status.nodes:
        nodes.add_row(node.name, node.address, str(node.cpus), str(node.running), node.problem or node.state)
    clusters = Table("cluster", "of", "waiting", "running", "done", "state")
    for cluster in status.clusters:
        owner = whose(cluster.owner, cluster.claim, proved=cluster.proved)
        state = cluster.state if cluster.attached else f"{cluster.state}, program away"
        clusters.add_row(cluster.name, owner, str(cluster.waiting), str(cluster.running), str(cluster.done), state)
    screen = Screen()
    with screen.capture() as shown:
        screen.print(nodes if status.nodes else "No node is connected.")
        screen.print(clusters if status.clusters else "No cluster is open.")
    return shown.get().rstrip("\n")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
