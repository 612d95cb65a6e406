"""Machines, what passes between them, and connections: each direction keeps its order, ends, or falls silent.

What the wire's session notices is modelled, not its bytes: a peer that has been silent for 2.5 s is suspect, after 5 s
the connection is given up; a connection may also end at once, and then each side hears of it when its news arrives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from dispy.model import ProcessId
from dispy.settings import GRACE_TIMEOUT, HEARTBEAT_INTERVAL, REDIAL_FIRST, REDIAL_MOST, SUSPECT_TIMEOUT
from simulator.clock import Action, Process
from simulator.disk import Disk

if TYPE_CHECKING:
    from simulator.node import SimNode
    from simulator.world import World


class End(Protocol):
    """A process with connections."""

    def link_silent(self, link: Link) -> None: ...

    def link_recovered(self, link: Link) -> None: ...

    def link_lost(self, link: Link, *, goodbye: bool, silent: bool) -> None: ...


@dataclass
class Machine:
    """Where a node runs, or not."""

    name: str
    cpus: int
    reliable: bool = False
    narrow: float = 0.0
    """How often there is no room for what a job needs."""
    disk: Disk = field(default_factory=Disk)
    is_up: bool = True
    """Without power it does not even refuse connections."""
    node: SimNode | None = None
    paths: dict[int, Path] = field(default_factory=dict)
    """To programs, by their number."""


class Path:
    """What passes between the machine of a node and that of a program."""

    def __init__(self) -> None:
        self.closed = [False, False]
        """Whether nothing passes: towards the node, towards the program."""
        self.links: list[Link] = []

    def close(self, ways: list[int]) -> None:
        for way in ways:
            self.closed[way] = True
            for link in self.links:
                link.streams[way].hold("path")

    def open(self, ways: list[int]) -> None:
        for way in ways:
            self.closed[way] = False
            for link in self.links:
                link.streams[way].let("path")


TO_NODE, TO_PROGRAM = 0, 1


class Stream:
    """One direction of a connection."""

    def __init__(self, world: World, link: Link, way: int, receiver: Process) -> None:
        self.world, self.link, self.way, self.receiver = world, link, way, receiver
        self.is_open = True
        """Whether the receiver has not closed its end."""
        self.is_ending = False
        """The sender has closed: its end is under way, or has arrived."""
        self.holds: set[str] = set()
        """Why nothing of it arrives: the path is closed, or the sender is stopped."""
        self._under_way: deque[Action] = deque()
        self._due = 0
        self._last = 0.0
        self._silence = 0
        self._is_suspect = False

    def send(self, action: Action) -> None:
        if self.is_ending:
            return
        self._under_way.append(action)
        self._last = max(self._last, self.world.soon())
        self.world.clock.at(self._last, self._arrive)

    def end(self, *, goodbye: bool, lose: bool = False, after: float = 0.0) -> None:
        """The sender closes. With `lose` some of what is under way is lost with it."""
        if self.is_ending:
            return
        if lose:
            for _ in range(self.world.random.randint(0, len(self._under_way))):
                self._under_way.pop()
            self._due = min(self._due, len(self._under_way))
        self._last = max(self._last, self.world.clock.now + after)
        self.send(lambda: self._ended(goodbye))
        self.is_ending = True

    def _ended(self, goodbye: bool) -> None:
        self.link.close_end(self.way, goodbye=goodbye, silent=False)

    def close(self) -> None:
        """The receiver closes its end and hears nothing more of it."""
        self.is_open = False
        self._silence += 1
        self._under_way.clear()
        self._due = 0

    def _arrive(self) -> None:
        if self._under_way:
            self._due += 1
        self._deliver()

    def _deliver(self) -> None:
        if "path" in self.holds:
            return
        while self._due and self._under_way:
            self._due -= 1
            action = self._under_way.popleft()
            if self.is_open:
                self.receiver.hear(lambda action=action: action() if self.is_open else None)

    def hold(self, why: str) -> None:
        """Nothing is heard any more."""
        was = bool(self.holds)
        self.holds.add(why)
        if not was and self.is_open:
            self._watch()

    def let(self, why: str) -> None:
        """It may be heard again."""
        if why not in self.holds:
            return
        self.holds.discard(why)
        if not self.holds and self.is_open:
            self._silence += 1
            if self._is_suspect:
                self._is_suspect = False
                self.world.clock.at(self.world.soon(), lambda: self._tell(lambda end: end.link_recovered(self.link)))
        self.world.clock.at(self.world.soon(), self._deliver)

    def _watch(self) -> None:
        """The receiver looks at the time: its peer is suspect, then lost."""
        self._silence += 1
        silence, clock = self._silence, self.world.clock
        heard = clock.now - HEARTBEAT_INTERVAL * self.world.random.random()

        def suspect() -> None:
            if silence != self._silence or not self.is_open:
                return
            if self.receiver.stopped:
                clock.at(clock.now + SUSPECT_TIMEOUT, suspect)
                return
            self._is_suspect = True
            self._tell(lambda end: end.link_silent(self.link))
            clock.at(clock.now + GRACE_TIMEOUT - SUSPECT_TIMEOUT, lost)

        def lost() -> None:
            if silence != self._silence or not self.is_open:
                return
            if self.receiver.stopped:
                clock.at(clock.now + GRACE_TIMEOUT - SUSPECT_TIMEOUT, lost)
                return
            self.link.streams[1 - self.way].end(goodbye=False)
            self.link.close_end(self.way, goodbye=False, silent=True)

        clock.at(heard + SUSPECT_TIMEOUT, suspect)

    def _tell(self, what: Callable[[End], None]) -> None:
        if self.is_open:
            self.receiver.hear(lambda: what(self.link.ends[self.way]) if self.is_open else None)


class Link:
    """One connection between a node and a program."""

    def __init__(self, world: World, path: Path, node: SimNode, program: DiallingProcess) -> None:
        self.node, self.program, self.path = node, program, path
        self.peer = program.process
        """What the node knows the program as; a scheduler that was started again is another one."""
        self.ends: list[End] = [node, program]  # type: ignore[list-item]
        self.streams = [Stream(world, self, TO_NODE, node), Stream(world, self, TO_PROGRAM, program)]
        path.links.append(self)
        for way in (TO_NODE, TO_PROGRAM):
            if path.closed[way]:
                self.streams[way].hold("path")

    def close_end(self, way: int, *, goodbye: bool, silent: bool) -> None:
        """The receiver of this direction learns that the connection is over."""
        stream = self.streams[way]
        if not stream.is_open:
            return
        stream.close()
        self.streams[1 - way].end(goodbye=False)
        self._forget()
        receiver = stream.receiver
        receiver.hear(lambda: self.ends[way].link_lost(self, goodbye=goodbye, silent=silent))

    def leave(self, way: int, *, goodbye: bool, lose: bool = False) -> None:
        """The process at the end that receives this direction closes the connection, or is gone."""
        self.streams[way].close()
        self.streams[1 - way].end(goodbye=goodbye, lose=lose)
        self._forget()

    def vanish(self, way: int) -> None:
        """The machine at that end has no power any more: nobody is told."""
        self.streams[way].close()
        self.streams[1 - way].hold("power")

    def reset(self) -> None:
        """The machine of an end that vanished has power again and knows nothing of this connection."""
        for stream in self.streams:
            if "power" in stream.holds:
                stream.let("power")
                stream.end(goodbye=False)

    def break_(self, world: World) -> None:
        """Something in between resets the connection; each side hears of it when it does."""
        for way, most in ((TO_NODE, 5.0), (TO_PROGRAM, 3.0)):
            after = world.random.choice([0.001, 0.1, most]) * world.random.random()
            self.streams[way].end(goodbye=False, lose=True, after=after)

    def _forget(self) -> None:
        if not any(stream.is_open for stream in self.streams) and self in self.path.links:
            self.path.links.remove(self)


class SimDialler:
    """Keeps a connection from a program to the node of a machine: dials, and again when it is lost."""

    def __init__(self, world: World, path: Path, machine: Machine, program: DiallingProcess) -> None:
        self.world, self.path, self.machine, self.program = world, path, machine, program
        self.link: Link | None = None
        self._wait = REDIAL_FIRST
        self._number = 0

    def start(self, after: float = 0.0) -> None:
        """Dial now, or soon."""
        self._number += 1
        number = self._number
        self.world.clock.at(self.world.soon() + after, lambda: self.program.hear(lambda: self._dial(number)))

    def _dial(self, number: int) -> None:
        if number != self._number or self.link is not None or self.program.is_over:
            return
        machine = self.machine
        node = machine.node
        if not machine.is_up or any(self.path.closed) or (node is not None and node.alive and node.stopped):
            self._again()  # no answer
        elif node is None or not node.alive:
            self.program.dial_refused(machine)
            self._again()
        else:
            self._wait = REDIAL_FIRST
            link = self.link = Link(self.world, self.path, node, self.program)
            node.hear(lambda: node.link_opened(link) if link.streams[TO_NODE].is_open else None)
            self.program.link_opened(link)

    def _again(self) -> None:
        self.start(self._wait * self.world.random.uniform(0.75, 1.25))
        self._wait = min(2 * self._wait, REDIAL_MOST)

    def give_up(self) -> None:
        """Its process is gone."""
        self._number += 1

    def lost(self, link: Link, *, goodbye: bool = False) -> None:
        """The connection is over."""
        if self.link is link:
            self.link = None
            self.start(REDIAL_MOST if goodbye else 0.0)


class DiallingProcess(Process):
    """A process that keeps connections to all machines."""

    process: ProcessId

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world)
        self.number = number
        self.is_over = False
        """It dials no more."""
        self.diallers: dict[str, SimDialler] = {}

    def learn(self, machine: Machine) -> None:
        """There is a machine: dial it."""
        path = machine.paths.setdefault(self.number, Path())
        dialler = self.diallers[machine.name] = SimDialler(self.world, path, machine, self)
        dialler.start()

    def link_opened(self, link: Link) -> None:
        raise NotImplementedError

    def dial_refused(self, machine: Machine) -> None:
        """Its machine says that nobody is there."""
        raise NotImplementedError

    def stop(self) -> None:
        super().stop()
        for dialler in self.diallers.values():
            if dialler.link is not None:
                dialler.link.streams[TO_NODE].hold("stopped")

    def go_on(self) -> None:
        for dialler in self.diallers.values():
            if dialler.link is not None:
                dialler.link.streams[TO_NODE].let("stopped")
        super().go_on()

    def end(self, *, power: bool, goodbye: bool = False) -> None:
        """The process is gone: with its machine, or so that its connections end."""
        super().die()
        for dialler in self.diallers.values():
            if dialler.link is not None:
                if power:
                    dialler.link.vanish(TO_PROGRAM)
                else:
                    dialler.link.leave(TO_PROGRAM, goodbye=goodbye, lose=not goodbye)
                dialler.link = None
