"""What the owner of a shared scheduler types at its terminal: to end it, or to see how it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dispy.sharing.daemon import SharedScheduler
from dispy.sharing.identity import whose
from dispy.terminal import Terminal
from dispy.words import counted

_HELP: Final = """\
quit      end now; what is left is on the disk for the next start
exit      end when no job is pending
status    how it stands (Enter as well)
help      this list
Programs are served, and new ones taken in, until it ends. It is ended here or by a signal, not from afar."""


class Console(Terminal):
    """What the words mean to a shared scheduler."""

    greeting = "Type help for the words that steer this scheduler, or Enter to see how it stands."

    def __init__(self, scheduler: SharedScheduler, fd: int = 0, say: Callable[[str], None] | None = None) -> None:
        super().__init__(fd, say)
        self._scheduler = scheduler

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
