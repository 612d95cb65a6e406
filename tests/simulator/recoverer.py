"""The successor of a program that was killed: claims its results from all nodes, and may be killed as well."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dispy.model import UNSTARTED, Ending, JobDone, ProcessId
from dispy.wire import messages
from simulator.network import TO_NODE, DiallingProcess, Link, Machine

if TYPE_CHECKING:
    from simulator.program import SimProgram
    from simulator.world import World


@dataclass
class RecoveryFile:
    """What outlives each of the successors."""

    program: SimProgram
    results: dict[int, JobDone] = field(default_factory=dict)
    """By job."""


class SimRecoverer(DiallingProcess):
    """One process that recovers."""

    def __init__(self, world: World, number: int, file: RecoveryFile, *, terminate: bool) -> None:
        super().__init__(world, number)
        self.process = ProcessId(f"{number:032x}")
        self.file = file
        self.terminate = terminate
        self.links: dict[ProcessId, Link] = {}
        self.answered: set[ProcessId] = set()
        """Nodes that have said what they hold."""
        self._safe: dict[ProcessId, int] = {}
        self._kept_at: dict[ProcessId, float] = {}
        """When the last of the batches that have come is in the recovery file."""
        self._from: dict[tuple[ProcessId, int, int], int] = {}

    def link_opened(self, link: Link) -> None:
        self.links[link.node.process] = link

    def heard(self, link: Link, message: messages.AnyMessage, bodies: list[bytes]) -> None:
        """A message of a node has arrived."""
        process = link.node.process
        if self.links.get(process) is not link:
            return
        match message:
            case messages.NodeDescribed():
                if process not in self.answered:
                    self._say(link, messages.ClaimResults(self.file.program.token, self.terminate))
            case messages.ResultsClaimed(ended, running):
                self.answered.add(process)
                if self.world.verbose:
                    self.world.log(f"recoverer {self.number} of {process[:4]}: ended {ended}, running {running}")
            case messages.JobsDone(sequence, jobs):
                # one after another, as an acknowledgement is for all batches before it as well
                at = max(self._kept_at.get(process, 0.0), self.world.clock.now + 0.01 * self.world.random.random())
                self._kept_at[process] = at
                self.world.clock.at(at, lambda: self.hear(lambda: self._keep(link, sequence, jobs)))
            case _:
                pass

    def _keep(self, link: Link, sequence: int, jobs: list[JobDone]) -> None:
        """The batch is in the recovery file: acknowledge it."""
        process = link.node.process
        self.effect()
        for done in jobs:
            if done.ending in (Ending.PROVISIONAL, *UNSTARTED):
                continue
            known = self._from.setdefault((process, done.job, done.attempt), sequence)
            assert known == sequence, f"job {done.job} came in two batches"
            self.file.results.setdefault(done.job, done)
        self.effect()
        self._acknowledge(link, sequence)

    def _acknowledge(self, link: Link, sequence: int) -> None:
        process = link.node.process
        self._safe[process] = max(sequence, self._safe.get(process, 0))
        self._say(link, messages.AckResults(self._safe[process]))

    def _say(self, link: Link, message: messages.AnyMessage) -> None:
        if self.world.verbose:
            self.world.log(f"recoverer {self.number} -> {link.node.info.name} {message}")
        node, peer = link.node, self.process
        link.streams[TO_NODE].send(lambda: node.said(link, peer, message, b""))

    def link_silent(self, link: Link) -> None:
        """It waits."""

    def link_recovered(self, link: Link) -> None:
        """It has waited."""

    def link_lost(self, link: Link, *, goodbye: bool, silent: bool) -> None:
        process = link.node.process
        if self.links.get(process) is link:
            del self.links[process]
            self.answered.discard(process)
        self.diallers[link.node.machine.name].lost(link, goodbye=goodbye)

    def dial_refused(self, machine: Machine) -> None:
        """It goes on trying."""

    def die(self) -> None:
        self.end(power=False)

    def leave(self) -> None:
        """It has what it wants."""
        self.is_over = True
        self.end(power=False, goodbye=True)
