"""What a client wants of its cluster's jobs, in its order.

A batch whose arguments or files are still to be fetched lets all that comes after it wait, and so does one for which
its user has too many jobs (see `Door`); a large one may have to wait for its turn (see `Portions`). A cluster whose
jobs are to be ended takes in no more: its client ends what is not stored.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec

from dispy.errors import RemoteProtocolError, TransferError
from dispy.model import BlobRef, ComputationId, JobOptions, JobSpec
from dispy.scheduler.jobs import JobRecord
from dispy.sharing.books import BatchBook
from dispy.sharing.pool import Pool
from dispy.sharing.staging import AGAIN_AFTER, may_pass
from dispy.sharing.submitting import BATCH_JOBS
from dispy.wire.blobs import BlobExchange
from dispy.wire.messages import AnyMessage
from dispy.wire.sharing import CancelSubmitted, CloseCluster, JobsStored, KeepObjects, SubmitJobs

UNSTORED_LIMIT: Final = 128 << 20
"""Bytes that a client may send of one cluster before they are stored. It keeps to the half of that by itself."""
AT_ONCE: Final = 16
"""Jobs of a batch whose arguments and files are fetched, and written to the disk, at once."""
LARGEST: Final = 1 << 53
"""Numbers in options of jobs."""


class Giver(Protocol):
    """Whoever sent something."""

    exchange: BlobExchange
    is_gone: bool
    """It does not come back: what was to be fetched from it cannot be."""


class Taker(Protocol):
    """The cluster that it is about (see `Guest`)."""

    batches: BatchBook
    user: str
    exclusive: bool
    jobs: dict[int, JobRecord]
    objects: list[BlobRef]
    """What is kept for jobs that will need it."""
    is_over: bool

    @property
    def id(self) -> ComputationId:
        """Of the cluster."""

    def send(self, message: AnyMessage, payload: Sequence[bytes] = ()) -> None:
        """Send to the client."""

    def say(self, sentence: str) -> None:
        """Tell the user something."""

    def let_in(self) -> None:
        """Let what waits go on."""

    def say_held(self) -> None:
        """Tell the user, once, that jobs are not taken in yet."""

    def submit(self, sequence: int, jobs: Sequence[JobRecord]) -> None:
        """Queue the jobs of a batch."""

    def cancel(self, jobs: Iterable[int]) -> int:
        """End jobs."""

    def close(self, *, terminate: bool) -> None:
        """No more jobs come."""


class Incoming:
    """The line of one guest."""

    def __init__(self, pool: Pool, guest: Taker) -> None:
        self._pool = pool
        self._guest = guest
        self._line: deque[tuple[AnyMessage, bytes | memoryview, Giver]] = deque()
        self._unstored: deque[tuple[int, int]] = deque()
        """Batches that are not stored, and their sizes."""
        self._unstored_size = 0
        self._unwanted: set[int] = set()
        """Jobs in the line that are to be cancelled."""
        self._is_staging = False
        """What its first batch needs is being fetched."""
        self._has_turn = True
        """Else it goes on in a later turn of the loop."""
        self._is_ending = False
        """Its jobs are to be ended."""
        self._lack_said = False
        """The user knows that what jobs of this batch need cannot be kept for now."""

    @property
    def waits(self) -> bool:
        """Whether something is in the line."""
        return bool(self._line)

    @property
    def is_held(self) -> bool:
        """Whether it waits for the end of other jobs of its user."""
        return bool(self._line) and self._has_turn and not self._is_staging

    def holds(self, job: int) -> bool:
        """Whether a job is not taken in yet."""
        return any(isinstance(message, SubmitJobs) and _has(message.jobs, job) for message, *_ in self._line)

    def put(self, message: AnyMessage, payload: bytes | memoryview, giver: Giver) -> None:
        """Take a message.

        Raises:
            RemoteProtocolError: it contradicts what came before it, or itself, or is too much.
        """
        match message:
            case SubmitJobs():
                if self._is_ending or not self._is_new(message, payload):
                    return
            case CancelSubmitted() if self._line:
                self._unwanted.update(job for job in message.jobs if job > self._guest.batches.highest)
                self._guest.cancel(message.jobs)
                self.go_on()
                return
            case CloseCluster(terminate=True):
                self._is_ending = True
        self._line.append((message, payload, giver))
        self.go_on()

    def go_on(self) -> None:
        """Do what can be done now."""
        line = self._line
        while line and self._has_turn and not self._is_staging:
            message, payload, giver = line[0]
            if isinstance(message, SubmitJobs):
                if self._is_ending:
                    line.popleft()
                    continue
                if not self._is_admitted(message):
                    self._pool.door.wait(self._guest)
                    self._guest.say_held()
                    return
                if _refs(message.jobs):
                    self._is_staging = True
                    self._pool.spawn(self._stage_first(message, payload, giver))
                    return
                if not self._pool.portions.take(len(message.jobs)):
                    self._has_turn = False
                    self._pool.portions.wait(self._go_on_now)
                    return
            elif isinstance(message, KeepObjects):
                self._is_staging = True
                self._pool.spawn(self._keep_first(message, giver))
                return
            try:
                self._obey(message, payload)
            finally:
                line.popleft()
        if not line:
            self._unwanted.clear()

    def _go_on_now(self) -> None:
        self._has_turn = True
        self.go_on()

    def _is_admitted(self, message: SubmitJobs) -> bool:
        unwanted = self._unwanted
        return self._pool.door.admits(self._guest) or all(spec.job in unwanted for spec in message.jobs)

    def drop(self) -> None:
        """Its client has no link: on the next one it says all of it again that was not stored."""
        kept = self._line[0] if self._is_staging else None
        rest = list(self._line)[self._is_staging :]
        first = next((message for message, *_ in rest if isinstance(message, SubmitJobs)), None)
        if first is not None:
            self._guest.batches.taken = first.sequence - 1
            while self._unstored and self._unstored[-1][0] >= first.sequence:
                self._unstored_size -= self._unstored.pop()[1]
        self._line.clear()
        if kept is None:
            self._unwanted.clear()
        else:
            self._line.append(kept)
        self._pool.door.forget(self._guest)

    def _is_new(self, message: SubmitJobs, payload: bytes | memoryview) -> bool:
        batches = self._guest.batches
        if len(message.jobs) > BATCH_JOBS:
            raise RemoteProtocolError(
                f"it submits {len(message.jobs)} jobs in one batch, and {BATCH_JOBS} are the most"
            )
        if not batches.take(message.sequence):
            if message.sequence <= batches.stored:
                self._guest.send(JobsStored(message.cluster, batches.stored))
            return False
        if any(spec.size < 0 for spec in message.jobs) or sum(spec.size for spec in message.jobs) != len(payload):
            raise RemoteProtocolError("a batch of jobs does not have the size that it says")
        for spec in message.jobs:
            if spec.options is not None and (reason := why_unusable(spec.options)):
                raise RemoteProtocolError(f"it submits a job with {reason}")
        while self._unstored and self._unstored[0][0] <= batches.stored:
            self._unstored_size -= self._unstored.popleft()[1]
        self._unstored.append((message.sequence, len(payload)))
        self._unstored_size += len(payload)
        if self._unstored_size > UNSTORED_LIMIT:
            raise RemoteProtocolError("it sends more jobs than can be stored")
        return True

    async def _stage_first(self, message: SubmitJobs, payload: bytes | memoryview, giver: Giver) -> None:
        staged = await self._stage(message, giver)
        self._is_staging = False
        if staged is None:  # it comes again, and all that came after it
            self.drop()
            return
        self._obey(staged, payload)
        self._line.popleft()
        self.go_on()

    async def _keep_first(self, message: KeepObjects, giver: Giver) -> None:
        await self._keep(message, giver)
        self._is_staging = False
        self._line.popleft()
        self.go_on()

    async def _keep(self, message: KeepObjects, giver: Giver) -> None:
        """Fetch objects before the jobs that need them, and let go of those that no further job will need."""
        guest, staging = self._guest, self._pool.staging
        for ref in message.objects:
            while ref not in guest.objects:
                try:
                    guest.objects += await staging.fetch(giver.exchange, [ref])
                except (TransferError, OSError) as error:
                    if giver.is_gone or not may_pass(error):
                        break  # jobs that need it will say so
                    guest.say(f"the scheduler cannot keep a scattered object, and tries again: {error}")
                    await asyncio.sleep(AGAIN_AFTER)
        wanted = set() if guest.is_over else set(message.objects)
        unneeded = [ref for ref in guest.objects if ref not in wanted]
        guest.objects = [ref for ref in guest.objects if ref in wanted]
        await staging.drop(unneeded)

    async def _stage(self, message: SubmitJobs, giver: Giver) -> SubmitJobs | None:
        """Fetch what the jobs of a batch need; None when its client is gone."""
        jobs = list(message.jobs)
        wanting = [place for place, spec in enumerate(jobs) if _refs([spec])]
        for start in range(0, len(wanting), AT_ONCE):
            places = wanting[start : start + AT_ONCE]
            for place, staged in zip(
                places, await asyncio.gather(*(self._stage_one(jobs[place], giver) for place in places)), strict=True
            ):
                if staged is None:
                    return None
                jobs[place] = staged
        self._lack_said = False
        return SubmitJobs(message.cluster, message.sequence, jobs)

    async def _stage_one(self, spec: JobSpec, giver: Giver) -> JobSpec | None:
        """Fetch what one job needs; None when its client is gone."""
        while True:
            try:
                return msgspec.structs.replace(spec, blob=await self._fetch(spec, giver))
            except (TransferError, OSError) as error:
                if giver.is_gone:
                    return None
                if not may_pass(error):
                    # Its node cannot fetch it either, and says so of this job.
                    self._guest.say(f"what job {spec.job} needs cannot be fetched from the program: {error}")
                    return spec
                if not self._lack_said:
                    self._lack_said = True
                    text = f"the scheduler cannot keep what job {spec.job} needs (others may wait with it)"
                    self._guest.say(f"{text}, and tries again: {error}")
            await asyncio.sleep(AGAIN_AFTER)

    async def _fetch(self, spec: JobSpec, giver: Giver) -> BlobRef | None:
        """Files and arguments of one job; returns where nodes find the arguments, if not in the batch."""
        staging = self._pool.staging
        held: list[BlobRef] = []
        if spec.options is not None and spec.options.depends is not None:
            held = await staging.fetch(giver.exchange, spec.options.depends.contents)
        try:
            return None if spec.blob is None else await staging.fetch_arguments(giver.exchange, spec.blob)
        except BaseException:
            await staging.drop(held)
            raise

    def _obey(self, message: AnyMessage, payload: bytes | memoryview) -> None:
        guest = self._guest
        match message:
            case SubmitJobs():
                guest.submit(message.sequence, self._records(message, payload))
                if self._unwanted:
                    guest.cancel(spec.job for spec in message.jobs if spec.job in self._unwanted)
            case CancelSubmitted():
                guest.cancel(message.jobs)
            case CloseCluster():
                guest.close(terminate=message.terminate)

    def _records(self, message: SubmitJobs, payload: bytes | memoryview) -> list[JobRecord]:
        records: list[JobRecord] = []
        number = self._pool.keeper.numbers(len(message.jobs))
        view, at = memoryview(payload), 0
        for spec in message.jobs:
            end = at + spec.size
            if self._guest.batches.use(spec.job):
                arguments = bytes(view[at:end])
                records.append(JobRecord(number, self._guest.id, arguments, spec.job, spec.blob, spec.options))
            number += 1
            at = end
        return records


def why_unusable(options: JobOptions) -> str:
    """What of a job's options no program of ours sends, because nobody could obey it; empty: nothing. Pure."""
    for name in ("cpus", "memory", "gpus", "retries", "timeout"):
        value = getattr(options, name)
        if not 0 <= value <= LARGEST:
            return f"{name} {value}"
    if abs(options.priority) > LARGEST:
        return f"priority {options.priority}"
    return ""


def _refs(jobs: list[JobSpec]) -> list[BlobRef]:
    """What must be fetched for jobs."""
    refs = [spec.blob for spec in jobs if spec.blob is not None]
    for spec in jobs:
        if spec.options is not None and spec.options.depends is not None:
            refs += spec.options.depends.contents
    return refs


def _has(jobs: list[JobSpec], job: int) -> bool:
    """Whether one of these, which ascend, is the job."""
    return bool(jobs) and jobs[0].job <= job <= jobs[-1].job
