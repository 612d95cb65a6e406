"""One run: its clock, its chances, its machines and programs, and what users do with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

from msgspec.structs import replace

from dispy.model import (
    BlobRef,
    ComputationId,
    ComputationSpec,
    FileSpec,
    JobDepends,
    JobOptions,
    ProcessId,
)
from dispy.scheduler import events
from dispy.scheduler.jobs import JobRecord
from simulator.chances import Chances, chances_of
from simulator.clock import Clock
from simulator.durable import Succession, make_durable, note_cluster
from simulator.network import Machine
from simulator.node import MEMORY, TAGS, SimNode
from simulator.program import SimProgram, Told
from simulator.recoverer import RecoveryFile, SimRecoverer
from simulator.shared import SimScheduler
from simulator.workers import LARGE

LONGEST = 3600.0
"""Virtual seconds after which a run that does not come to rest has failed."""
OBJECTS = [BlobRef(name, LARGE) for name in (b"one", b"two", b"three")]
"""What programs have scattered."""


@dataclass
class Task:
    """One job of one program, seen from outside."""

    program: SimProgram
    record: JobRecord
    duration: float
    again: bool
    """Whether it may run more than once."""
    started_at: list[float] = field(default_factory=list)


class World:
    """One run."""

    def __init__(
        self, seed: int, chances: Chances | None = None, *, shared: bool = False, verbose: bool = False
    ) -> None:
        """`shared`: users have schedulers in common, which are started again when they are killed."""
        self.random = Random(seed)
        self.sharing = Random(f"sharing {seed}")
        """Chances of its own: what is shared leaves everything else of a seed as it is."""
        self.scattering = Random(f"scattering {seed}")
        """The same for scattered objects, which jobs of one seed in four have."""
        self.scattered = self.scattering.choice([0.0, 0.0, 0.0, 0.3])
        self.rooms = Random(f"rooms {seed}")
        """The same for nodes that have no room for what jobs need; there are some in one seed of three."""
        self.narrow = self.rooms.choice([False, False, True])
        self.chances = chances or chances_of(self.random)
        self.shared = shared
        self.verbose = verbose
        self.clock = Clock()
        self.trouble = True
        """Whether things may still go wrong."""
        self.check_every = self.random.choice([1, 7, 20, 20])
        self.programs: list[SimProgram] = []
        self.recoverers: list[SimRecoverer] = []
        self.successions: list[Succession] = []
        self.machines: list[Machine] = []
        self.nodes: list[SimNode] = []
        """All that ever were."""
        self.tasks: dict[int, Task] = {}
        self._numbers = count(1)
        self._steps = 0

    def log(self, text: str) -> None:
        if self.verbose:
            print(f"{self.clock.now:10.5f} {text}")

    def checks(self) -> bool:
        """Whether the core that has just decided shall compare its tables: that costs more than all the rest."""
        self._steps += 1
        return self.verbose or self._steps % self.check_every == 0

    def number(self) -> int:
        return next(self._numbers)

    def soon(self) -> float:
        return self.clock.now + self.chances.latency * self.random.random()

    def happens(self, chance: float) -> bool:
        return chance > 0.0 and self.trouble and self.random.random() < chance

    def is_reliable(self, process: ProcessId) -> bool:
        return any(node.machine.reliable for node in self.nodes if node.process == process)

    def job_started(self, serial: int, node: SimNode) -> None:
        task = self.tasks[serial]
        task.started_at.append(self.clock.now)
        if self.verbose:
            self.log(f"task {serial}, job {task.record.job}, starts on {node.info.name}")
        assert task.again or len(task.started_at) == 1, f"task {serial} is not reentrant and started twice"
        options = task.record.options
        if options is not None:
            assert set(options.tags) <= set(node.info.tags), f"task {serial} is on a node without its tags"
            assert options.gpus <= node.info.gpus, f"task {serial} is on a node without its GPUs"
            assert options.node in ("", node.process), f"task {serial} is on another node than it asked for"

    # What there is.

    def next_number(self) -> int:
        """Of a program, or of one that recovers."""
        return len(self.programs) + len(self.recoverers) + 1

    def add(self, process: SimProgram | SimRecoverer) -> None:
        """A program begins, or one that recovers."""
        if isinstance(process, SimProgram):
            self.programs.append(process)
        else:
            self.recoverers.append(process)
        for machine in self.machines:
            process.learn(machine)

    def add_program(self, *, durable: bool = False) -> SimProgram:
        program = SimProgram(self, self.next_number())
        if durable:
            make_durable(program)
        self.add(program)
        return program

    def add_scheduler(self) -> SimScheduler:
        """A scheduler that programs share. It has its number in common with all that it becomes when it is killed."""
        scheduler = SimScheduler(self, self.next_number())
        self.add(scheduler)
        return scheduler

    def add_recoverer(self, file: RecoveryFile, *, terminate: bool = False) -> SimRecoverer:
        """Somebody comes for the results of a program that is gone."""
        recoverer = SimRecoverer(self, self.next_number(), file, terminate=terminate)
        self.add(recoverer)
        return recoverer

    def program_died(self, program: SimProgram) -> None:
        """A durable program, or a successor, for whom another one comes."""
        if program.going_on is None:
            self.successions.append(Succession(program))

    def add_machine(self, cpus: int, *, reliable: bool = False) -> Machine:
        narrow = 0.0 if reliable else self.rooms.choice([0.0, 0.5, 1.0]) * self.narrow
        machine = Machine(f"n{len(self.machines) + 1}", cpus, reliable, narrow)
        self.machines.append(machine)
        self.start_node(machine)
        for program in [*self.programs, *self.recoverers]:
            if program.alive:
                program.learn(machine)
        return machine

    def start_node(self, machine: Machine) -> None:
        """Start a node daemon there, for the first time or again."""
        machine.is_up = True
        node = machine.node = SimNode(self, machine)
        self.nodes.append(node)
        self.log(f"{machine.name} starts as {node.process[:4]}")
        for path in machine.paths.values():
            for link in list(path.links):
                if not link.node.alive:
                    link.reset()

    @property
    def living(self) -> list[SimProgram]:
        return [program for program in self.programs if program.alive]

    # What users do.

    def open(self, program: SimProgram, *, reentrant: bool, open_ended: bool = True) -> ComputationId:
        cluster = ComputationId(f"{program.number:016x}{len(program.clusters) + 1:016x}")
        program.clusters[cluster] = reentrant
        name, isolate, has_setup = (
            f"function {len(program.clusters)}",
            self.happens(0.1),
            len(program.clusters) % 3 == 0,
        )
        spec = ComputationSpec(cluster, name, "function", isolate=isolate, has_setup=has_setup)
        if program.file is not None:
            note_cluster(program, spec, reentrant=reentrant)
        user, exclusive = "", False
        if program.is_shared:
            user, exclusive = self.sharing.choice(["anna", "bert", "carl"]), self.sharing.random() < 0.15
        program.open(events.ClusterOpened(spec, reentrant, open_ended, user=user, exclusive=exclusive))
        return cluster

    def submit(self, program: SimProgram, cluster: ComputationId, durations: list[float]) -> None:
        program.hear(lambda: self._submit(program, cluster, durations))

    def submit_to(self, program: SimProgram, cluster: ComputationId, node: SimNode, duration: float) -> None:
        """Submit a job that only this node may run."""
        record = self._job(program, cluster, duration, JobOptions(node.process))
        program.hear(lambda: program.submit([record]))

    def _submit(self, program: SimProgram, cluster: ComputationId, durations: list[float]) -> None:
        records = []
        for duration in durations:
            options = None
            if self.nodes and self.happens(self.chances.pinned):
                options = JobOptions(self.random.choice(self.nodes).process)
            elif self.happens(self.chances.wishes):
                options = self.wishes()
            records.append(self._job(program, cluster, duration, options))
        program.submit(records)

    def _job(
        self, program: SimProgram, cluster: ComputationId, duration: float, options: JobOptions | None
    ) -> JobRecord:
        serial = self.number()
        args, blob = b"%d" % serial, None
        if self.happens(self.chances.large):
            args, blob = b"", BlobRef(b"%d" % serial, LARGE, False)
        if self.scattered and self.scattering.random() < self.scattered:
            options = self._with_objects(options or JobOptions())
        record = JobRecord(program.next_job(), cluster, args, blob=blob, options=options)
        program.jobs[record.job] = Told(record)
        again = program.clusters[cluster] or (options is not None and options.retries > 0)
        self.tasks[serial] = Task(program, record, duration, again)
        return record

    def _with_objects(self, options: JobOptions) -> JobOptions:
        depends = options.depends or JobDepends(())
        objects = tuple(self.scattering.sample(OBJECTS, self.scattering.randint(1, len(OBJECTS))))
        return replace(options, depends=replace(depends, objects=objects))

    def wishes(self) -> JobOptions:
        random = self.random
        depends = None
        if random.random() < 0.2:
            depends = JobDepends([FileSpec("data", BlobRef(b"data", 1, True), 0o600, 0.0)])
        return JobOptions(
            priority=random.choice([0, 0, 1, -1]),
            cpus=random.choice([1, 1, 1, 2, 3, 0]),
            memory=random.choice([0, 0, MEMORY, 3 * MEMORY]),
            gpus=random.choice([0, 0, 0, 1, 2]),
            tags=random.choice([(), (), TAGS[:1], TAGS]),
            timeout=random.choice([0.0, 0.0, 0.01, 2.0]),
            retries=random.choice([0, 0, 1, 3]),
            depends=depends,
        )

    def close(self, program: SimProgram, cluster: ComputationId, *, terminate: bool) -> None:
        program.close(cluster, terminate=terminate)

    # Time.

    def run(self, until: Callable[[], bool]) -> None:
        """Let time pass until the condition holds.

        Raises:
            AssertionError: it does not within LONGEST seconds, or nothing more happens before it does.
        """
        step, clock = self.clock.step, self.clock
        while not until():
            assert step(), f"nothing happens any more; {self.account()}"
            assert clock.now < LONGEST, f"it does not come to rest; {self.account()}"

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass."""
        over: list[bool] = []
        self.clock.at(self.clock.now + seconds, lambda: over.append(True))
        self.run(lambda: bool(over))

    def account(self) -> str:
        """What is still open, for people."""
        lines = []
        for program in self.living:
            waiting = [told.record.job for told in program.jobs.values() if not told.endings]
            lines += [
                f"program {program.number}: open jobs: {[program.core.explain(job) for job in waiting[:3]]}",
                f"closing: {program.closing - program.ended_clusters}",
                *(str(view) for view in program.core.snapshot().nodes),
            ]
        lines += [f"{node.info.name}: {node.core.snapshot()}" for node in self.nodes if node.alive]
        return "\n".join(lines)
