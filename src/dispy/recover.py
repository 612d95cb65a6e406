"""`recover_jobs`: the results of a program that was killed, in the hands of another one."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from collections.abc import Callable, Container, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import Struct, field

from dispy.errors import RecoveryError, SettingsError
from dispy.job import DispyJob
from dispy.logs import logger
from dispy.model import Ending, JobState, ProcessId
from dispy.portal import portal
from dispy.recovery.book import Book, JobsReturned, ResultKept
from dispy.recovery.fetching import Fetching
from dispy.recovery.file import RecoveryFile, default_folder, unfinished
from dispy.recovery.journal import load_id, load_jobs
from dispy.recovery.sorting import Fetched, as_free, sort_out, worth_asking
from dispy.resuming import resume
from dispy.scheduler.flow import SENTENCES
from dispy.scheduler.identity import this_holder
from dispy.secrets import Credentials, find_credentials
from dispy.sharing.reclaiming import Reclaimed, reclaim

T = TypeVar("T")
LATE_PATIENCE: Final = 5.0
"""Seconds for which a node is asked for results of jobs that were given up when it was lost: it may be gone."""


class Recovered(Struct):
    """What came of one recovery."""

    path: Path | None = None
    """The recovery file; None: there was none."""
    jobs: list[DispyJob] = field(default_factory=list)
    sealed: set[DispyJob] = field(default_factory=set)
    """Those of `jobs` that finished, but whose result cannot be unpickled in this process: they stay in the file."""
    is_complete: bool = True
    """Whether nothing is left to wait for, and no node has forgotten what it had."""
    returned: JobsReturned = field(default_factory=lambda: JobsReturned([]))
    """What the file will say when `jobs` are in the user's hands."""
    is_last: bool = False
    """Whether the file is of no use any more then."""


def recover_jobs(
    recover_file: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    terminate_pending: bool = False,
    *,
    secret: str | None = None,
    secret_file: str | None = None,
    certfile: str | None = None,
    keyfile: str | None = None,
    cafile: str | None = None,
) -> list[DispyJob]:
    """Fetch the results of the jobs of a program that was killed: those that have ended, then those that still run.

    What is returned is not returned again by a later call. Results are unpickled in this process; of one whose class
    cannot be found here the job is Terminated, with the reason, and stays in the file for another call.

    Args:
        recover_file: the recovery file; None takes the newest one in the user's state directory that is neither in use
            nor recovered.
        timeout: seconds after which what is there is returned; the rest stays for another call. None waits until
            every node has answered and every job has ended.
        terminate_pending: end jobs that still run.
        secret, secret_file, certfile, keyfile, cafile: as of the cluster.

    Returns:
        Jobs that have ended, in the order of their submission. `id` is the number of the submission in that program.

    Jobs of clusters made with `durable=True` that had not started run now, and are returned as well.

    Raises:
        RecoveryError: there is no such file, it is in use, is none of ours, or belongs to another secret.
        SettingsError: a parameter is not usable.
    """
    with recovering(
        recover_file,
        timeout,
        terminate_pending,
        lambda path: f"dispy.recover_jobs({str(path)!r})",
        secret=secret,
        secret_file=secret_file,
        certfile=certfile,
        keyfile=keyfile,
        cafile=cafile,
    ) as found:
        return found.jobs


@contextmanager
def recovering(
    recover_file: str | os.PathLike[str] | None,
    timeout: float | None,
    terminate: bool,
    again: Callable[[Path], str],
    *,
    secret: str | None = None,
    secret_file: str | None = None,
    certfile: str | None = None,
    keyfile: str | None = None,
    cafile: str | None = None,
) -> Iterator[Recovered]:
    """As `recover_jobs`, and tell what else came of it; jobs are marked as returned when the body has not raised.

    `again`: what to call for the rest, for people.
    """
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout < 0):
        raise SettingsError(f"timeout is a number of seconds, or None, not {timeout!r}")
    path = _newest() if recover_file is None else Path(recover_file).expanduser().absolute()
    if path is None:
        yield Recovered()
        return
    credentials = find_credentials(
        secret=secret, secret_file=secret_file, certfile=certfile, keyfile=keyfile, cafile=cafile, create=False
    )
    file, book = RecoveryFile.open(path)
    try:
        if book.is_done:
            logger.info("everything in %s has been recovered before", path)
            yield Recovered(path)
            return
        _check_secret(book, credentials, path)
        try:
            found = _recover(file, book, credentials, timeout, terminate, again)
        except OSError as error:
            raise RecoveryError(
                f"{path} cannot be written ({error.strerror}); what was fetched so far is in it, the rest is still on "
                "the nodes: make room and call again"
            ) from error
        yield found
        _mark(file, book, found)
    finally:
        file.close()


def fault_recover_jobs(*args: Any, **kwargs: Any) -> list[DispyJob]:
    """Old name of `recover_jobs`."""
    warnings.warn("fault_recover_jobs is called recover_jobs now", DeprecationWarning, stacklevel=2)
    if "fault_recover_file" in kwargs:
        kwargs["recover_file"] = kwargs.pop("fault_recover_file")
    return recover_jobs(*args, **kwargs)


def _newest() -> Path | None:
    paths = [path for path, _ in unfinished()]
    if not paths:
        logger.info("there is nothing to recover in %s", default_folder())
        return None
    if len(paths) > 1:
        others = ", ".join(str(path) for path in paths[1:])
        logger.info("recovering %s, the newest; there are also: %s", paths[0], others)
    return paths[0]


def _check_secret(book: Book, credentials: Credentials, path: Path) -> None:
    if book.program.key_id != credentials.key_id:
        raise RecoveryError(
            f"{path} was written by a program with another secret than the one found here ({credentials.source}): its "
            "nodes would not answer; give that secret (or certificates) to recover_jobs, or as DISPY_SECRET"
        )


def _recover(
    file: RecoveryFile,
    book: Book,
    credentials: Credentials,
    timeout: float | None,
    terminate: bool,
    again: Callable[[Path], str],
) -> Recovered:
    program = book.program
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(program.started_at))
    logger.info("recovering %s, which began at %s on %s", program.program, began, program.host)
    until = float("inf") if timeout is None else time.monotonic() + timeout
    written_at = load_jobs(book, file.store)
    fetched = _in_loop(_fetch(file, book, credentials, timeout, terminate))
    if book.shared:
        left = None if timeout is None else max(0.0, until - time.monotonic())
        reclaimed = _in_loop(_reclaim(file, book, credentials, left, terminate))
        fetched.waiting += reclaimed.waiting
        fetched.lost += reclaimed.lost
    sorted_out = sort_out(book, fetched, time.time() - written_at, terminate=terminate)
    ended = sorted_out.ended
    if sorted_out.runnable and time.monotonic() < until:
        file.append(as_free(sorted_out.runnable, book))
        ended |= _in_loop(resume(portal(), file, book, credentials, sorted_out.runnable, until))
        if nodes := worth_asking(book, ended):
            patience = min(LATE_PATIENCE, max(0.0, until - time.monotonic()))
            _in_loop(_fetch(file, book, credentials, patience, terminate, nodes))
    ended |= {end.job: (end.state, end.cause) for end in book.ends.values()}
    ended |= {job: _why_lost(job, node, book, fetched) for job, node in book.lost().items()}
    jobs, sealed = _in_loop(_open(book, ended, file.path))
    pending = len(book.jobs.keys() - book.results.keys() - ended.keys())
    for sentence in fetched.waiting:
        logger.warning("not all is recovered: %s", sentence)
    if not jobs and not fetched.waiting and not pending:
        logger.info("there was nothing to fetch: no node has a result of it")
    if not book.keeps_all_jobs:
        logger.info(
            "jobs that had not started when it was killed, if there were any, are gone: durable=True keeps them"
        )
    if fetched.waiting or pending:
        waiting = f"; {pending} jobs have not ended" if pending else ""
        logger.warning("call again for the rest: %s%s", again(file.path), waiting)
    return Recovered(
        file.path,
        [job for _, job in sorted(jobs.items())],
        {jobs[number] for number in sealed},
        not (fetched.waiting or pending or fetched.lost),
        JobsReturned(sorted(jobs.keys() - sealed)),
        not (fetched.waiting or pending or sealed),
    )


def _mark(file: RecoveryFile, book: Book, found: Recovered) -> None:
    """They are in the user's hands."""
    try:
        file.append([found.returned])
        file.sync()
        book.add(found.returned)
        if found.is_last:
            file.finish(book)
    except OSError as error:  # the results are here, and worth more than the mark
        logger.error("%s cannot be written (%s): a later call may return these jobs again", file.path, error.strerror)


async def _open(book: Book, ended: dict[int, tuple[JobState, str]], path: Path) -> tuple[dict[int, DispyJob], set[int]]:
    """All jobs that are to be returned, and the numbers of those whose result cannot be unpickled here.

    Not in the main thread, where nobody can tell a KeyboardInterrupt of a user's class from a Ctrl-C.
    """

    def open_all() -> tuple[dict[int, DispyJob], set[int]]:
        jobs = {number: _job_of(kept, book) for number, kept in book.results.items()}
        sealed = {number for number, job in jobs.items() if _is_sealed(job, book.results[number])}
        for number in sealed:
            jobs[number].exception += (  # type: ignore[operator]
                f"; it stays in {path}: call dispy.recover_jobs({str(path)!r}) in a program that has its class"
            )
        others = {job: how for job, how in ended.items() if not book.has_result(job)}
        return jobs | {job: _job_that_ended(job, book, *how) for job, how in others.items()}, sealed

    return await asyncio.get_running_loop().run_in_executor(None, open_all)


async def _fetch(
    file: RecoveryFile,
    book: Book,
    credentials: Credentials,
    patience: float | None,
    terminate: bool,
    only: Container[ProcessId] | None = None,
) -> Fetched:
    return await Fetching(file, book, credentials, terminate=terminate, only=only).run(patience)


async def _reclaim(
    file: RecoveryFile, book: Book, credentials: Credentials, patience: float | None, terminate: bool
) -> Reclaimed:
    return await reclaim(file, book, credentials, holder=this_holder(""), terminate=terminate, patience=patience)


def _in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in the portal's loop; when the caller is interrupted, end it before going on."""
    over = threading.Event()

    async def run() -> T:
        try:
            return await coroutine
        finally:
            over.set()

    future = asyncio.run_coroutine_threadsafe(run(), portal().loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        over.wait(5.0)
        raise


def _is_sealed(job: DispyJob, kept: ResultKept) -> bool:
    """Whether it finished, but its result cannot be unpickled here; the state shows that after an attempt."""
    return kept.done.ending == Ending.FINISHED and job.status is not JobState.Finished


def _why_lost(job: int, node: ProcessId, book: Book, fetched: Fetched) -> tuple[JobState, str]:
    if job in fetched.not_started:
        cause = "it had not started when its program was killed, and only clusters with durable=True keep such jobs"
    else:
        cause = (
            f"it ran on node {book.name_of(node)} after its program was killed, and that node ended, or was started "
            "again, before the job had ended"
        )
    return JobState.Abandoned, cause


def _job_of(kept: ResultKept, book: Book) -> DispyJob:
    done = kept.done
    job = _empty_job(done.job, book)
    ending = Ending(done.ending)
    state = JobState.Finished if ending is Ending.FINISHED else JobState.Terminated
    job.submit_time = job.submit_time or done.started_at or done.ended_at
    job._settle(state, done, kept.body, SENTENCES.get(ending), book.is_text(done.job), kept.address)
    return job


def _job_that_ended(number: int, book: Book, state: JobState, cause: str) -> DispyJob:
    job = _empty_job(number, book)
    job._settle(state, None, b"", cause, book.is_text(number), None)
    return job


def _empty_job(number: int, book: Book) -> DispyJob:
    stored = book.jobs.get(number)
    job = DispyJob(number if stored is None else load_id(stored))
    job.submit_time = 0.0 if stored is None else stored.submitted_at
    return job
