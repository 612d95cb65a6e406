"""`cluster.map`: calls of the cluster's function with what iterables give, and their results as an iterator.

Each chunk of calls is one job (`dispy.node.chunk`), submitted like others; how large chunks are is in
`dispy.chunking`. The iterables are read in the thread that takes the results, a bounded number of chunks ahead.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, Final, cast

from dispy import buffers
from dispy.chunking import Chunking
from dispy.errors import ClosedError, JobFailed, SettingsError, ShippingError
from dispy.job import DispyJob
from dispy.joboptions import DEPENDS, PREFIX, take_options
from dispy.model import JobDone, JobOptions, JobState, ProcessId
from dispy.scattered import naming
from dispy.shipping import dumps_arguments, dumps_calls, loads_result
from dispy.submission import JobSubmission

_ALONE: Final = ("dispy_timeout", "dispy_retries")
"""Options that are about a single call."""


class ChunkJob(DispyJob):
    """The job that carries a chunk."""

    __slots__ = ("calls", "first", "is_known", "node", "outcome", "received", "sent", "weight")

    def __init__(self, first: int, calls: int, sent: int) -> None:
        super().__init__()
        self.first = first
        """The number of its first call, from 0."""
        self.calls = calls
        self.sent = sent
        """Bytes of its arguments."""
        self.received = 0
        """Bytes of what it brought."""
        self.weight = 0
        self.outcome = b""
        """What it brings besides its error text when one call has failed."""
        self.node: ProcessId | None = None
        """Where one has failed, if that is known."""
        self.is_known = False
        """The feed knows that it has ended."""

    def _take(self, state: JobState, done: JobDone, body: bytes | memoryview, cause: str | None, text: bool) -> None:
        super()._take(state, done, body, cause, text)
        self.received = len(body)
        if state is not JobState.Finished:
            self.outcome = bytes(body[: done.result_size])
            self.node = self._record.node if self._record is not None else None


class CallMapping(JobSubmission):
    """The method of a cluster that calls its function for all that iterables give."""

    def map(
        self,
        iterable: Iterable[Any],
        /,
        *iterables: Iterable[Any],
        chunk_size: int | None = None,
        ordered: bool = True,
        **options: Any,
    ) -> Iterator[Any]:
        """Call the function with the items of iterables, as `map` of Python does, on all nodes.

        Args:
            iterable: first arguments; may be endless: it is read as results are taken, some chunks ahead.
            iterables: further arguments, one iterable for each; the shortest one ends it.
            chunk_size: calls that travel as one job; None finds out by itself what is best.
            ordered: results come in the order of the calls; else as they come.
            options: options of jobs (`dispy_priority` …). With `dispy_timeout` or `dispy_retries`, which are about
                one call, and in clusters with `isolate=True`, each call is a job.

        Returns:
            An iterator of results. An exception of a call is raised in its place, with a note that names the call,
            and ends the iterator; so does what an iterable raises. `close()` of it, or that it is forgotten, cancels
            what has not ended. What calls print is printed when their results are taken.

        Raises:
            SettingsError: the cluster runs a program, or an option is not usable.
            ClosedError: the cluster is closed, or belongs to the parent of this process.

        Example:
            >>> for square in cluster.map(range(1_000_000)):
            ...     total += square
        """
        self._check_open()
        sources = (iterable, *iterables)
        size = self._check_map(sources, chunk_size, options)
        lengths = [len(source) for source in sources if isinstance(source, Sized)]
        chunking = Chunking(min(lengths) if len(lengths) == len(sources) else None, size)
        feed = _Feed(self, [iter(source) for source in sources], chunking, take_options(options, asked="map"))
        results = _results(feed, ordered=ordered)
        next(results)  # it has begun: from here on `close` and the collection of garbage end it
        return results

    def _check_map(self, sources: Sequence[object], size: int | None, options: dict[str, Any]) -> int | None:
        spec = self._ledger.spec
        if spec.kind != "function":
            raise SettingsError(
                f"map calls a function, and this cluster runs the program {spec.name}: submit a job for each run of it"
            )
        for name in options:
            if not name.startswith(PREFIX) or name == DEPENDS:
                raise SettingsError(
                    f"map: {name} is no option of it; what the function is called with comes from the iterables"
                )
        for source in sources:
            if not isinstance(source, Iterable):
                raise SettingsError(f"map: {source!r} is not iterable")
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise SettingsError(f"map: chunk_size must be a whole number of calls from 1 on, not {size!r}")
        alone = [name for name in _ALONE if name in options] + ["isolate"] * spec.isolate
        if alone and size not in (None, 1):
            raise SettingsError(f"map: with {alone[0]} each call is a job of its own: leave out chunk_size={size}")
        return 1 if alone else size


class _Feed:
    """Submits chunks, and knows which have not been taken. Jobs refer to it; nobody refers to who takes the results."""

    def __init__(
        self, cluster: CallMapping, sources: list[Iterator[Any]], chunking: Chunking, options: JobOptions | None
    ) -> None:
        self._cluster = cluster
        self._sources = sources
        self._chunking = chunking
        self._options = options
        self._next = 0
        self._weight = 0
        self._waiting: OrderedDict[int, ChunkJob] = OrderedDict()
        """Those that were submitted and not taken, by the number of their first call."""
        self._news: deque[DispyJob] = deque()
        """Those that have ended; added to in the loop's thread."""
        self._woken = threading.Event()
        self._ready: deque[ChunkJob] = deque()
        """Those that have ended, and were not taken, in the order of their ends."""
        self._exhausted = False
        self.failure: BaseException | None = None
        """Why there are no further calls, if that is not the end of the iterables."""

    def top_up(self) -> None:
        """Submit as many chunks as there is room for."""
        slots = sum(node.cpus for node in list(self._cluster._ledger.nodes.values()))
        while not self._exhausted and self._chunking.has_room(slots, len(self._waiting), self._weight):
            columns = self._read(self._chunking.next_size(slots))
            if columns:
                try:
                    self._submit(columns)
                except ClosedError as error:
                    note = f"The calls of map from number {self._next} on (the first is 0) were not made"
                    # else it is an object that was scattered
                    if self._cluster.is_closed or self._cluster._ledger.is_sealed:
                        note += ": take all results before the cluster is closed, within its with block"
                    error.add_note(f"{note}.")
                    self._end(error)

    def _end(self, failure: BaseException) -> None:
        self._exhausted = True
        if self.failure is None:
            self.failure = failure

    def _read(self, size: int) -> list[list[Any]]:
        """Values for so many calls, a list for each parameter; fewer at the end, and none after it."""
        sources = self._sources
        rows: list[Any] = []
        try:
            rows.extend(islice(sources[0] if len(sources) == 1 else zip(*sources, strict=False), size))
        except Exception as error:  # of the user's iterable: what it gave before stays
            self._end(error)
        if len(rows) < size:
            self._exhausted = True
        if not rows:
            return []
        return [rows] if len(sources) == 1 else list(map(list, zip(*rows, strict=True)))

    def _submit(self, columns: list[list[Any]]) -> None:
        cluster, calls = self._cluster, len(columns[0])
        with naming(cluster._id) as named:
            try:
                data = dumps_calls(cluster._shipment, columns)
            except Exception as refusal:
                calls = self._up_to_culprit(columns, refusal)
                if not calls:
                    return
                data = dumps_calls(cluster._shipment, [column[:calls] for column in columns])
        job = ChunkJob(self._next, calls, buffers.size(data))
        job.weight = self._chunking.weight(calls, job.sent)
        job._when_ended(self._heard)
        cluster._check_submission()
        cluster._enqueue(job, data, cluster._needing(named.values(), self._options) if named else self._options)
        self._waiting[job.first] = job
        self._weight += job.weight
        self._next += calls
        self._chunking.submitted(calls)

    def _up_to_culprit(self, columns: list[list[Any]], refusal: Exception) -> int:
        """How many calls come before the one whose arguments cannot travel; that is the end."""
        for number, args in enumerate(zip(*columns, strict=True)):
            try:
                dumps_arguments(self._cluster._shipment, args, {})
            except ShippingError as error:
                error.add_note(f"This was call {self._next + number} of map (the first is 0).")
                self._end(error)
                return number
        self._end(refusal)
        return 0

    def _heard(self, job: DispyJob) -> None:
        """In the thread in which the job ended; it may come twice."""
        self._news.append(job)
        self._woken.set()

    def _learn(self) -> None:
        while self._news:
            job = cast("ChunkJob", self._news.popleft())
            if job.is_known:
                continue
            job.is_known = True
            self._ready.append(job)
            if job.status == JobState.Finished and job.start_time and job.end_time:
                self._chunking.learn(job.calls, job.end_time - job.start_time, job.sent, job.received)

    def take(self, *, ordered: bool) -> ChunkJob | None:
        """Wait for the next chunk, or any; None when there are no more."""
        while True:
            self._woken.clear()
            self._learn()
            self.top_up()
            if not self._waiting:
                return None
            job = next(iter(self._waiting.values())) if ordered else (self._ready or (None,))[0]
            if job is not None and job.is_known:
                break
            self._woken.wait()
        if ordered:
            self._ready.remove(job)
        else:
            self._ready.popleft()
        del self._waiting[job.first]
        self._weight -= job.weight
        return job

    def place_of(self, job: ChunkJob) -> str:
        """The node that ran it, by its name where that is known."""
        ledger = self._cluster._ledger
        node = ledger.nodes.get(job.node) or ledger.gone.get(job.node) if job.node else None
        return f"node {job.ip_addr}" if node is None else f"node {node.name} ({node.ip_addr})"

    def cancel(self) -> None:
        """End what has not ended: nobody wants it."""
        self._exhausted = True
        cluster = self._cluster
        for job in self._waiting.values():
            record = job._record
            if record is not None and not cluster.is_closed and os.getpid() == cluster.pid:
                cluster.service.cancel(record)
        self._waiting.clear()


def _results(feed: _Feed, *, ordered: bool) -> Generator[Any, None, None]:
    """All results, after one `None` for its beginning."""
    try:
        feed.top_up()
        yield None
        while (job := feed.take(ordered=ordered)) is not None:
            if job.stdout:
                sys.stdout.write(job.stdout)
            if job.stderr:
                sys.stderr.write(job.stderr)
            if job.status == JobState.Finished:
                yield from job.result
                continue
            values, failure = _failed(job, feed.place_of(job))
            yield from values
            raise failure
        if feed.failure is not None:
            raise feed.failure
    finally:
        feed.cancel()


def _failed(job: ChunkJob, place: str) -> tuple[list[Any], Exception]:
    """The results before the call that failed, and what is raised for that."""
    cause = job.exception or job.status.name
    try:
        body, carried, called_with = pickle.loads(job.outcome)
        values: list[Any] = loads_result(body)  # type: ignore[assignment]
    except Exception:  # its worker died, its node was lost, or its results are of a class that is not known here
        last = job.first + job.calls - 1
        which = f"call {last}" if job.calls == 1 else f"one of the calls {job.first} to {last}"
        return [], JobFailed(f"{which} of map (the first is 0) did not finish: {cause}", job)
    which = f"call {job.first + len(values)} of map (the first is 0), with {called_with}, on {place}"
    if carried is None:
        return values, JobFailed(f"{which}: {cause}", job)
    try:
        error = loads_result(carried)
        if not isinstance(error, Exception):
            raise TypeError(f"it becomes {error!r}, no exception")
    except Exception as refusal:
        why = f"its exception cannot be made here again, {type(refusal).__name__}: {refusal}"
        return values, JobFailed(f"{which}; {why}. There:\n{cause}", job)
    error.add_note(f"This was {which}. There:\n{cause.rstrip()}")
    return values, error
