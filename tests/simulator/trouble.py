"""Runs with trouble of all kinds."""

from __future__ import annotations

from collections.abc import Callable

from dispy.model import ComputationId
from dispy.node import events as node_events
from dispy.scheduler import events
from simulator.chances import Chances
from simulator.network import TO_NODE, TO_PROGRAM, Link, Path
from simulator.node import SimNode
from simulator.program import SimProgram
from simulator.promises import finish
from simulator.recoverer import RecoveryFile
from simulator.world import World

DURATIONS = (0.0, 0.00002, 0.0005, 0.004, 0.05, 0.5, 3.0, 20.0)
HORIZON = 6.0
"""Seconds in which things go wrong."""


def run_seed(seed: int, *, shared: bool = False, verbose: bool = False, chances: Chances | None = None) -> World:
    """A run with trouble, which ends with all promises checked.

    Raises:
        AssertionError, InvalidTransition: a promise is broken, or the tables of a core contradict each other.
    """
    world = World(seed, chances, shared=shared, verbose=verbose)
    random, chances = world.random, world.chances
    if verbose:
        print(chances)
    trouble = Trouble(world)

    def sometime(times: int, action: Callable[[], None]) -> None:
        for _ in range(random.randint(0, times)):
            world.clock.at(HORIZON * random.random(), action)

    for _ in range(random.randint(1, chances.programs)):
        world.clock.at(0.1 * HORIZON * random.random(), trouble.new_program)
    for _ in range(random.randint(1, chances.nodes)):
        world.clock.at(0.3 * HORIZON * random.random(), trouble.new_machine)
    sometime(chances.breaks, trouble.break_link)
    sometime(chances.partitions, trouble.part)
    sometime(chances.stops, trouble.stop)
    sometime(chances.kills, trouble.kill_node)
    sometime(chances.program_kills + 4 * shared, trouble.kill_program)
    sometime(chances.full_disks, trouble.fill_disk)
    sometime(chances.exits, trouble.exit_node)
    sometime(chances.fork_server_deaths, trouble.kill_fork_server)
    sometime(chances.reallocations, trouble.reallocate)
    sometime(chances.steerings, trouble.steer)
    sometime(chances.owners, trouble.owner)
    sometime(chances.cancels, trouble.cancel)
    world.pass_time(HORIZON)
    finish(world)
    return world


class Trouble:
    """What may happen, each method once, to somebody whom chance chooses."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self._recovered: list[SimProgram] = []
        """Programs with a recovery file in use: only one process may have it."""

    # What there is.

    def new_program(self) -> None:
        if not self.world.trouble:
            return
        if self.world.shared:
            program: SimProgram = self.world.add_scheduler()
        else:
            program = self.world.add_program(durable=self.world.happens(self.world.chances.durable))
        for _ in range(self.random.randint(1, self.world.chances.clusters)):
            self._later(0.3 * HORIZON, lambda: self._use(program))

    def new_machine(self) -> None:
        self.world.add_machine(self.random.randint(1, 3))

    def _use(self, program: SimProgram) -> None:
        """A cluster: opened, used, perhaps closed."""
        random, world = self.random, self.world
        if not program.alive or not world.trouble:
            return
        cluster = world.open(program, reentrant=random.random() < 0.5, open_ended=random.random() < 0.8)
        usual, most = random.choice(DURATIONS), world.chances.jobs
        for _ in range(random.randint(1, 4)):
            durations = [
                usual if random.random() < 0.8 else random.choice(DURATIONS) for _ in range(random.randint(1, most))
            ]
            self._later(2.0, lambda durations=durations: self._submit(program, cluster, durations))
        if random.random() < 0.5:
            terminate = random.random() < 0.5
            self._later(HORIZON, lambda: world.close(program, cluster, terminate=terminate) if program.alive else None)

    def _submit(self, program: SimProgram, cluster: ComputationId, durations: list[float]) -> None:
        is_sealed = program.file is not None and cluster in program.closing
        if program.alive and not is_sealed:
            self.world.submit(program, cluster, durations)

    def _later(self, most: float, action: Callable[[], None]) -> None:
        self.world.clock.at(self.world.clock.now + most * self.random.random(), action)

    def _node(self) -> SimNode | None:
        nodes = [node for node in self.world.nodes if node.alive and not node.machine.reliable]
        return self.random.choice(nodes) if nodes else None

    def _program(self) -> SimProgram | None:
        return self.random.choice(self.world.living) if self.world.living else None

    # The network.

    def break_link(self) -> None:
        """A connection is reset by something in between."""
        links: list[Link] = [link for node in self.world.nodes for link in node.links.values()]
        if links:
            link = self.random.choice(links)
            self.world.log(f"the link of {link.node.info.name} to program {link.program.number} breaks")
            link.break_(self.world)

    def part(self) -> None:
        """Nothing passes between two machines for a while: in one direction, or in both."""
        paths: list[Path] = [path for machine in self.world.machines for path in machine.paths.values()]
        if not paths:
            return
        path = self.random.choice(paths)
        ways = self.random.choice([[TO_NODE], [TO_PROGRAM], [TO_NODE, TO_PROGRAM]])
        seconds = self.random.choice([1.0, 4.0, 6.0, 20.0]) * self.random.random()
        self.world.log(f"nothing passes in the directions {ways} for {seconds:.3f} s")
        path.close(ways)
        self.world.clock.at(self.world.clock.now + seconds, lambda: path.open(ways))

    # Processes.

    def stop(self) -> None:
        """A process, or a laptop, stands still for a while."""
        process = self.random.choice([self._node(), self._program()])
        if process is None or process.stopped:
            return
        seconds = self.random.choice([1.0, 4.0, 6.0, 20.0]) * self.random.random()
        self.world.log(f"{process} is stopped for {seconds:.3f} s")
        process.stop()
        self.world.clock.at(self.world.clock.now + seconds, process.go_on)

    def kill_node(self) -> None:
        node = self._node()
        if node is None:
            return
        world, machine = self.world, node.machine
        power = self.random.random() < world.chances.power
        if self.random.random() < world.chances.restarts:
            self._later(self.random.choice([0.05, 2.0, 10.0]), lambda: self._restart(node))
        if self.random.random() < 0.5:
            node.doom(self.random.randint(1, 6))
            return
        world.log(f"{machine.name} is killed{' with its machine' if power else ''}")
        machine.is_up = not power
        node.end(goodbye=False, power=power)

    def _restart(self, node: SimNode) -> None:
        if node.machine.node is node and not node.alive:
            self.world.start_node(node.machine)

    def kill_program(self) -> None:
        """A program is killed, and its user starts another."""
        program = self._program()
        if program is None:
            return
        power = self.random.random() < self.world.chances.power
        if self.random.random() < 0.5 and not self.world.shared:
            self._later(5.0, self.new_program)
        is_wanted = program.file is None and program not in self._recovered and not self.world.shared
        if self.random.random() < self.world.chances.recoveries and is_wanted:
            self._recovered.append(program)
            file, terminate = RecoveryFile(program), self.random.random() < 0.2
            self._later(5.0, lambda: self._recover(file, terminate))
        if self.random.random() < 0.5:
            program.doom(self.random.randint(1, 12))
            return
        self.world.log(f"program {program.number} is killed{' with its machine' if power else ''}")
        program.end(power=power)

    def _recover(self, file: RecoveryFile, terminate: bool) -> None:
        if file.program.alive:
            return
        recoverer = self.world.add_recoverer(file, terminate=terminate)
        if self.world.happens(0.3):
            recoverer.doom(self.random.randint(1, 6))
            self._later(10.0, lambda: None if recoverer.alive else self._recover(file, terminate))

    def fill_disk(self) -> None:
        """Nothing can be written on a machine for a while."""
        if self.world.machines:
            disk = self.random.choice(self.world.machines).disk
            disk.is_full = True
            self._later(10.0, lambda: setattr(disk, "is_full", False))

    def exit_node(self) -> None:
        if node := self._node():
            node.handle(node_events.ExitAsked(at_once=self.random.random() < 0.5))

    def kill_fork_server(self) -> None:
        node = self._node()
        alive = [server for server in node.servers.values() if server.alive] if node else []
        if alive:
            self.random.choice(alive).die()

    # What people want.

    def owner(self) -> None:
        """The owner of a node wants it for something else, for a while."""
        node = self._node()
        if node is None:
            return
        what = self.random.randint(0, 3)
        if what == 0:
            node.handle(node_events.EndAsked("its owner wants it"))
        elif what == 1:
            node.handle(node_events.ReleaseAsked())
        else:
            cpus = node.machine.cpus
            node.handle(node_events.OfferChanged(self.random.randint(0, cpus + 1), "its owner wants it"))
            self._later(10.0, lambda: node.handle(node_events.OfferChanged(cpus)))

    def _user(self) -> SimProgram | None:
        """A program with somebody who steers it."""
        programs = [program for program in self.world.living if program.going_on is None]
        return self.random.choice(programs) if programs else None

    def _choice(self) -> tuple[SimProgram, ComputationId, SimNode] | None:
        program, node = self._user(), self._node()
        if program is None or node is None or not program.clusters:
            return None
        return program, self.random.choice(list(program.clusters)), node

    def reallocate(self) -> None:
        """The owner of a cluster changes its mind, in time or too late."""
        if chosen := self._choice():
            program, cluster, node = chosen
            program.handle(events.NodeAllocated(cluster, node.process, self.random.randint(0, node.machine.cpus)))

    def steer(self) -> None:
        """The user pauses, caps, closes, renews or uses a node for one of the clusters."""
        if chosen := self._choice():
            program, cluster, node = chosen
            how = self.random.choice(list(events.Steering))
            cpus, terminate = self.random.randint(0, node.machine.cpus), self.random.random() < 0.5
            program.handle(events.NodeSteered(cluster, node.process, how, cpus, terminate))

    def cancel(self) -> None:
        program = self._user()
        if program is not None and program.jobs:
            jobs = list(program.jobs)
            some = [self.random.choice(jobs) for _ in range(self.random.randint(1, 5))]
            program.handle(events.CancelAsked(some))
