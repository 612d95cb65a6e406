"""Durable jobs: what their program writes down, and its successors, which fetch, decide and go on.

What is written, what that adds up to, what becomes of jobs and which node is meant are the real decisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dispy.model import UNSTARTED, ComputationId, ComputationSpec, Ending, JobDone, JobState, NodeInfo, ProcessId
from dispy.recover import LATE_PATIENCE
from dispy.recovery.book import (
    AnyEntry,
    Book,
    ClusterNoted,
    ComputationStored,
    JobsHanded,
    JobsOver,
    JobsReturned,
    JobStored,
    NodeCleared,
    NodeNoted,
    ProgramBegun,
    ResultKept,
)
from dispy.recovery.sorting import Fetched, as_free, sort_out, stands_for, worth_asking
from dispy.resuming import PinnedJobs, ResumedMarks
from dispy.scheduler import events
from dispy.scheduler.durable import DurableMarks
from dispy.scheduler.effects import JobEnded
from dispy.scheduler.jobs import JobRecord
from dispy.wire import messages
from dispy.wire.blobsources import BlobSources
from simulator.network import Link
from simulator.program import SimProgram, Told
from simulator.recoverer import RecoveryFile, SimRecoverer

if TYPE_CHECKING:
    from simulator.world import World

Ended = tuple[JobState, str]


class SimFile:
    """A recovery file, and the segments with jobs beside it."""

    def __init__(self, world: World, token: bytes) -> None:
        self.token = token
        self.path = "the file"
        self._world = world
        self._entries: list[AnyEntry] = []
        self._segments: list[AnyEntry] = []
        self.written_at = 0.0
        """When a segment was."""
        self.append([ProgramBegun(token, b"", "", 0, "anna", "host", 1, "prog.py", 0.0)])

    def append(self, entries: Iterable[AnyEntry]) -> None:
        self._entries += entries

    def append_to_segment(self, entry: AnyEntry) -> None:
        self._segments.append(entry)
        self.written_at = self._world.clock.now

    def sync(self) -> None:
        """The disk has it."""

    def segments(self) -> Book:
        """What the program itself has written of its jobs."""
        return Book([self._entries[0], *self._segments])

    def book(self) -> Book:
        """What somebody reads who opens it now."""
        book = Book(self._entries)
        book.take_in(self.segments())
        return book

    def handed(self) -> set[int]:
        """Jobs that ever were handed to a node."""
        entries = [*self._entries, *self._segments]
        return {job for entry in entries if isinstance(entry, JobsHanded) and entry.node for job in entry.jobs}

    def results(self) -> set[int]:
        """Jobs whose results ever were in it."""
        return {entry.done.job for entry in self._entries if isinstance(entry, ResultKept)}


class SimJournal:
    """Writes the marks of a program: before and after each it may be killed."""

    def __init__(self, program: SimProgram, file: SimFile) -> None:
        self._program, self._file = program, file

    def _write(self, entries: Iterable[AnyEntry]) -> None:
        for entry in entries:
            self._program.effect()
            self._file.append_to_segment(entry)
        self._program.effect()

    def stored(self, jobs: Iterable[tuple[Any, object, bytes]], now: float) -> None:
        self._write(JobStored(job.job, job.cluster, b"", args, job.options) for job, _, args in jobs)

    def handed(self, node: ProcessId, jobs: list[int]) -> None:
        self._write([JobsHanded(node, jobs)])

    def kept(self, jobs: Sequence[JobEnded], address: object) -> None:
        self._write(ResultKept(ended.done, "", b"") for ended in jobs if ended.done is not None and ended.node)

    def over(self, jobs: Sequence[JobEnded], address: object) -> None:
        self._write([JobsOver([ended.job.job for ended in jobs])])

    def dropped(self, done: object, body: object, address: object) -> None:
        """The program knows that the job has ended otherwise."""

    def sync(self) -> None:
        """The disk has it."""


class SimMarks(DurableMarks):
    """The marks of one program."""

    def __init__(self, program: SimProgram, book: Book) -> None:
        super().__init__(BlobSources(), str, program.hear)
        self._program = program
        self.book = book

    def _arguments(self, record: JobRecord) -> bytes:
        return record.args if record.blob is None else record.blob.name

    def _sync_soon(self, keeper: object) -> None:
        """Only processes die here, not what they have written."""

    def node_leased(self, info: NodeInfo) -> None:
        """From now on it may hold results."""
        noted = NodeNoted(info.process, info.name, ((info.name, 1),))
        file = self._program.file
        assert file is not None
        if self.book.nodes.get(info.process) != noted:
            file.append([noted])
            self.book.add(noted)

    def end_some(self, jobs: Sequence[JobEnded]) -> None:
        """Jobs have ended; there are callbacks about some of them, which return later."""
        world, program = self._program.world, self._program
        untold = {ended.job.job for ended in jobs if program.going_on is None and world.happens(0.2)}
        self.end(jobs, untold)
        for job in untold:
            world.clock.at(world.soon() + world.random.random(), lambda job=job: program.hear(lambda: self.told(job)))


def make_durable(program: SimProgram) -> None:
    """The clusters of a program will be durable."""
    program.file = SimFile(program.world, program.token)
    program.marks = SimMarks(program, program.file.book())


def note_cluster(program: SimProgram, spec: ComputationSpec, *, reentrant: bool) -> None:
    """A durable cluster is about to be opened."""
    assert program.file is not None
    assert program.marks is not None
    program.file.append([ClusterNoted(spec.id, spec.name, spec.kind)])
    program.file.append([ComputationStored(spec, [], reentrant, False, False)])
    program.marks.add(spec.id, SimJournal(program, program.file))


class SimFetcher(SimRecoverer):
    """Fetches what the nodes of a file hold, as `Fetching` does, then says so."""

    def __init__(
        self,
        world: World,
        number: int,
        succession: Succession,
        *,
        terminate: bool,
        only: set[ProcessId] | None = None,
    ) -> None:
        """`only`: it comes late, for results of jobs that were given up, and asks these nodes."""
        super().__init__(world, number, RecoveryFile(succession.program), terminate=terminate)
        self.durable = succession.file
        self.book = succession.file.book()
        self._on_done: Callable[[SimFetcher, Fetched], None] = succession.fetched
        self.is_late = only is not None
        self._wanted = {process: noted for process, noted in self.book.nodes.items() if only is None or process in only}
        self._left: dict[ProcessId, set[tuple[int, int]]] = {}
        self._not_started: dict[ProcessId, set[int]] = {}
        self._names: dict[ProcessId, str] = {}
        self._found = Fetched()

    def begin(self) -> None:
        """It may be that no node has to be asked."""
        self._look()

    def give_up(self) -> None:
        """It has waited for long enough."""
        if not self.is_over:
            self._wanted.clear()
            self._look()

    def heard(self, link: Link, message: messages.AnyMessage, bodies: list[bytes]) -> None:
        process = link.node.process
        if self.is_over:
            return
        super().heard(link, message, bodies)
        if isinstance(message, messages.ResultsClaimed) and self.links.get(process) is link:
            self._names[process] = link.node.info.name
            self._left[process] = {(held.job, held.attempt) for held in (*message.ended, *message.running)}
            self._look()

    def _keep(self, link: Link, sequence: int, jobs: list[JobDone]) -> None:
        if self.is_over:
            return
        process = link.node.process
        self.effect()
        none = (Ending.PROVISIONAL, *UNSTARTED)
        kept = [
            ResultKept(done, "", b"")
            for done in jobs
            if Ending(done.ending) not in none and done.job not in self.book.returned
        ]
        self.durable.append(kept)
        self.effect()
        for entry in kept:
            self.book.add(entry)
        over = {(done.job, done.attempt) for done in jobs if done.ending != Ending.PROVISIONAL}
        self._left[process] = self._left.get(process, set()) - over
        unstarted = {done.job for done in jobs if done.ending in UNSTARTED}
        self._not_started.setdefault(process, set()).update(unstarted)
        self._acknowledge(link, sequence)
        self._look()

    def link_lost(self, link: Link, *, goodbye: bool, silent: bool) -> None:
        """What a node has answered holds until there is another link to it."""
        answered = set(self.answered)
        super().link_lost(link, goodbye=goodbye, silent=silent)
        self.answered |= answered

    def link_opened(self, link: Link) -> None:
        super().link_opened(link)
        self.answered.discard(link.node.process)

    def _look(self) -> None:
        """Let go of nodes that have told all they had."""
        for noted in list(self._wanted.values()):
            for process in self.answered:
                if self._left[process] or not stands_for(self.book, noted, process, self._names[process]):
                    continue
                self._found.not_started |= self._not_started.get(process, set())
                if process == noted.process:
                    self._found.answered.add(process)
                self.effect()
                self.durable.append([NodeCleared(noted.process)])
                self.book.add(NodeCleared(noted.process))
                del self._wanted[noted.process]
                break
        if not self._wanted and not self.is_over:
            if not self.is_late:
                self.leave()
            self._on_done(self, self._found)


class Succession:
    """What becomes of the durable jobs of one program that was killed: one successor after another."""

    def __init__(self, program: SimProgram) -> None:
        assert program.file is not None
        self.world, self.program, self.file = program.world, program, program.file
        self.returned: Counter[int] = Counter()
        self.states: dict[int, JobState] = {}
        self.is_done = False
        self._fetcher: SimFetcher | None = None
        self._successor: SimProgram | None = None
        self._marks: ResumedMarks | None = None
        self._ended: dict[int, Ended] = {}
        self._tend_later()

    def _tend_later(self) -> None:
        world = self.world
        world.clock.at(world.clock.now + world.random.choice([0.1, 0.5, 3.0]) * world.random.random(), self._tend)

    def _tend(self) -> None:
        """Somebody comes for the file when nobody has it; a successor whose clusters have ended hands it back."""
        successor = self._successor
        if self.is_done:
            return
        if not self.world.trouble:  # what lies on a node's disk, or may run there alone, is waited for
            for machine in self.world.machines:
                if machine.node is None or not machine.node.alive:
                    self.world.start_node(machine)
        if successor is not None and successor.alive:
            successor.hear(lambda: self._look(successor))
        elif self._fetcher is None or not self._fetcher.alive:
            self._begin()
        self._tend_later()

    def _begin(self) -> None:
        world = self.world
        fetcher = self._fetcher = SimFetcher(world, world.next_number(), self, terminate=world.happens(0.15))
        world.add(fetcher)
        if world.happens(0.4):
            fetcher.doom(world.random.randint(1, 8))
        fetcher.hear(fetcher.begin)

    def fetched(self, fetcher: SimFetcher, found: Fetched) -> None:
        """All nodes have told what they had: sort the jobs out, and run what can run; return them, if they have run."""
        if fetcher.is_late:
            self._return(fetcher, fetcher.book)
            return
        world, book = self.world, fetcher.book
        age = world.clock.now - self.file.written_at
        sorted_out = sort_out(book, found, age, terminate=fetcher.terminate)
        assert not sorted_out.undecided, "all nodes have answered, and something is not decided"
        world.log(f"of program {self.program.number} run again {[each.job for each in sorted_out.runnable]}")
        self._ended = sorted_out.ended
        self.file.append(as_free(sorted_out.runnable, book))
        world.clock.at(world.clock.now, lambda: self._go_on(book, sorted_out.runnable))

    def _go_on(self, book: Book, runnable: Sequence[JobStored]) -> None:
        world = self.world
        program = self._successor = SimProgram(world, world.next_number(), going_on=self.file)
        self._marks = ResumedMarks(self.file, book)  # type: ignore[arg-type]
        program.marks = SimMarks(program, book)

        def submit(jobs: list[JobRecord]) -> None:
            program.handle_now(events.JobsSubmitted(jobs))
            self._close_complete(program)

        program.pinned = PinnedJobs(book, submit)
        world.add(program)
        if world.happens(0.4):
            program.doom(world.random.randint(1, 20))
        by_cluster: dict[ComputationId, list[JobStored]] = {}
        for stored in runnable:
            by_cluster.setdefault(stored.cluster, []).append(stored)
        for cluster, mine in by_cluster.items():
            computation = book.computations[cluster]
            program.clusters[cluster] = computation.reentrant
            program.marks.add(cluster, self._marks)
            records = program.pinned.hold([self._record(program, stored) for stored in mine])
            program.handle(events.ClusterOpened(computation.spec, computation.reentrant, open_ended=True))
            program.handle(events.JobsSubmitted(records))
            self._close_complete(program)

    def _close_complete(self, successor: SimProgram) -> None:
        """As `resume` does: a cluster of which all jobs are submitted gets no more."""
        assert successor.pinned is not None
        for cluster in successor.clusters:
            if cluster not in successor.closing and not successor.pinned.holds(cluster):
                self.world.close(successor, cluster, terminate=False)

    def _record(self, program: SimProgram, stored: JobStored) -> JobRecord:
        task = self.world.tasks[int(stored.args)]
        args, blob = task.record.args, task.record.blob
        task.program = program
        task.record = JobRecord(stored.job, stored.cluster, args, blob=blob, options=stored.options)
        program.jobs[stored.job] = Told(task.record)
        return task.record

    def _look(self, successor: SimProgram) -> None:
        """When all its clusters have ended: ask once more where a result may lie that it has given up."""
        if successor.ended_clusters != successor.clusters.keys():
            return
        assert self._marks is not None
        world, book = self.world, self._marks.book
        self._ended |= self._marks.ended
        nodes = worth_asking(book, self._ended)
        if not nodes:
            self._return(successor, book)
            return
        successor.effect()
        successor.is_over = True
        successor.end(power=False, goodbye=True)
        late = self._fetcher = SimFetcher(world, world.next_number(), self, terminate=False, only=nodes)
        world.add(late)
        if world.happens(0.1):
            late.doom(world.random.randint(1, 4))
        world.clock.at(world.clock.now + LATE_PATIENCE, lambda: late.hear(late.give_up))
        late.hear(late.begin)

    def _return(self, process: SimProgram | SimFetcher, book: Book) -> None:
        """Everything has ended: it is marked as returned, then the user has it."""
        jobs = {job: _state(kept.done) for job, kept in book.results.items()}
        jobs |= {job: state for job, (state, _) in self._ended.items() if not book.has_result(job)}
        assert not book.jobs.keys() - jobs.keys(), "jobs are neither returned nor run"
        process.effect()
        self.file.append([JobsReturned(sorted(jobs))])
        self.returned.update(jobs.keys())
        self.states |= jobs
        self.is_done = True
        process.is_over = True
        process.end(power=False, goodbye=True)


def _state(done: JobDone) -> JobState:
    return JobState.Finished if done.ending == Ending.FINISHED else JobState.Terminated
