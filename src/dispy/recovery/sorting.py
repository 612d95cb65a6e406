"""What becomes of the durable jobs of a program that was killed, once its nodes were asked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct, field

from dispy.model import JobState, ProcessId
from dispy.recovery.book import Book, JobsHanded, JobStored, NodeNoted

FORGETS_AFTER: Final = 60.0
"""Seconds for which a node that answers certainly remembers what it had: `--zombie_interval` is longer."""


class Fetched(Struct):
    """What the nodes of a recovery file have said."""

    waiting: list[str] = field(default_factory=list)
    """Sentences about nodes that hold, or may hold, something more."""
    answered: set[ProcessId] = field(default_factory=set)
    """Node processes that told all they had."""
    not_started: set[int] = field(default_factory=set)
    """Jobs of which nodes said that they had not started."""
    lost: list[str] = field(default_factory=list)
    """Sentences about nodes that forgot jobs, nobody knows which."""


class Sorted(Struct):
    """What becomes of the durable jobs of which no result was found."""

    runnable: list[JobStored] = field(default_factory=list)
    ended: dict[int, tuple[JobState, str]] = field(default_factory=dict)
    """Those that end without having run, or perhaps in the midst of it, with the reason."""
    undecided: int = 0
    """Those that a node may have which has not answered."""


def sort_out(book: Book, fetched: Fetched, age: float, *, terminate: bool) -> Sorted:
    """Decide about the durable jobs.

    Args:
        book: the file, with results fetched.
        fetched: what the nodes said.
        age: seconds since the program was killed, at most.
        terminate: no job shall run any more.
    """
    result = Sorted()
    for job, stored in sorted(book.jobs.items()):
        computation = book.computations.get(stored.cluster)
        if book.has_result(job):
            continue
        if computation is None:
            cause = (
                "its cluster was closed, so it had ended without a result and the program was just being told of that; "
                "or the recovery file is damaged"
            )
            result.ended[job] = (JobState.Abandoned, cause)
            continue
        node = book.handed.get(job)
        again = computation.reentrant or (stored.options is not None and stored.options.retries > 0)
        free = job in fetched.not_started or (node in fetched.answered and age < FORGETS_AFTER)
        if node is not None and not free and node in book.nodes:
            result.undecided += 1
        elif not (node is None or free or again):
            cause = (
                f"it had been handed to node {book.name_of(node)} when its program was killed, and no node knows of it "
                "any more: it may have started, and is not reentrant"
            )
            result.ended[job] = (JobState.Abandoned, cause)
        elif terminate:
            cause = "cancelled: it waited when its program was killed, and what was pending was to be ended"
            result.ended[job] = (JobState.Cancelled, cause)
        elif _died_with_its_program(book, stored):
            cause = "it could only run on the node that its program had started for itself, and that is gone"
            result.ended[job] = (JobState.Abandoned, cause)
        else:
            result.runnable.append(stored)
    return result


def worth_asking(book: Book, ended: Mapping[int, tuple[JobState, str]]) -> set[ProcessId]:
    """The nodes on whose disk the result of a job may lie that was given up when the run that goes on lost its node.

    Args:
        book: the file, as that run has left it.
        ended: the jobs that ended without a result.
    """
    given_up = {job for job, (state, _) in ended.items() if state is JobState.Abandoned and not book.has_result(job)}
    return {node for job, node in book.handed.items() if job in given_up and node in book.nodes}


def _died_with_its_program(book: Book, stored: JobStored) -> bool:
    """Whether only a node may run it that ends with the program."""
    noted = None if stored.options is None else book.noted.get(ProcessId(stored.options.node))
    return noted is not None and bool(noted.handle)


def stands_for(book: Book, noted: NodeNoted, process: ProcessId, name: str) -> bool:
    """Whether a node process with this name is the one that was noted, perhaps started again."""
    if process == noted.process:
        return True
    if noted.handle or name != noted.name:
        return False
    known = book.noted.get(process)
    return known is None or bool(set(known.places) & set(noted.places))


def as_free(jobs: Iterable[JobStored], book: Book) -> list[JobsHanded]:
    """What is to be written of jobs that can run, so that a later call knows it as well."""
    numbers = [stored.job for stored in jobs if stored.job in book.handed]
    return [JobsHanded(ProcessId(""), numbers)] if numbers else []
