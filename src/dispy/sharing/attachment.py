"""One cluster of this program at a shared scheduler: what is owed to it there, and what its owner here is told.

The scheduler may be restarted and the link may break at any time: on every new link the cluster is opened again with
its token, and what was not stored, closed, cancelled or acknowledged is said again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Final

from dispy.errors import SettingsError, TransferError
from dispy.logs import logger
from dispy.model import BlobRef, ComputationId, JobState
from dispy.scheduler.effects import JobEnded, JobRequeued, JobSpoke
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.owner import ClusterOwner
from dispy.sharing.doings import Doings
from dispy.sharing.lateness import LateLine
from dispy.sharing.settling import SafeBatches
from dispy.sharing.sightings import Sightings
from dispy.sharing.submitting import Batch, SubmitLine
from dispy.wire.messages import AnyMessage
from dispy.wire.pool import JobOver
from dispy.wire.sharing import (
    AckOver,
    CancelSubmitted,
    CloseCluster,
    ClusterAccepted,
    ClusterDeclined,
    ClusterOver,
    ClusterSaid,
    JobSaid,
    JobsHanded,
    JobsOver,
    JobsStored,
    JobWaitsAgain,
    KeepObjects,
    NarrowCluster,
    OpenCluster,
    SubmitJobs,
)
from dispy.words import counted

FORGOTTEN: Final = (
    "the scheduler does not know this job any more (was it started with another directory, or with --clean?), and it "
    "may have run"
)
CANCELLED: Final = "cancelled before it had been sent to the scheduler"
UNSTORED: Final = "cancelled: the scheduler had not stored it when its cluster was ended"


class Attachment:
    """One cluster at the scheduler. In the loop's thread."""

    def __init__(self, owner: ClusterOwner, opening: OpenCluster, doings: Doings) -> None:
        self.owner = owner
        self.opening = opening
        self.id: ComputationId = owner.spec.id
        self.nodes = Sightings(owner)
        self.jobs: dict[int, JobRecord] = {}
        """Those that were submitted and have not ended. In state Running the scheduler may have them."""
        self.accepted = False
        """On the link that there is now."""
        self.closing: bool | None = None
        """Whether its jobs are to be ended, when it is being closed."""
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the scheduler has taken it up, or fails with what speaks against it."""
        self._doings = doings
        self._line = SubmitLine()
        self._asked = False
        """The scheduler may have heard of it."""
        self._known = False
        """It has been accepted once."""
        self._declined = ""
        self._is_over = False
        self._is_stuck = False
        """It was ended and the scheduler does not store its jobs: its last job is its end."""
        self._close_said: bool | None = None
        """What has been said of its end on this link."""
        self._cancelled: set[int] = set()
        self._lasting: list[AnyMessage] = []
        """What is said on every link."""
        self._objects: Counter[BlobRef] = Counter()
        """What the program has scattered; each as often as it did."""
        self._objects_told = False
        """The scheduler may keep some."""
        self._unsaid: list[AnyMessage] = []
        """What is said on the next link."""
        self._safe = SafeBatches()
        self._untold: dict[int, tuple[SafeBatches, int]] = {}
        """Jobs whose callbacks have not returned, with the batches in which they ended."""
        self._late = LateLine(doings.spawn, doings.fetch, self.jobs.__contains__)

    # ---- what the program wants ----

    def submit(self, records: Iterable[JobRecord]) -> None:
        """Queue jobs."""
        records = list(records)
        self.jobs.update((record.job, record) for record in records)
        if self._declined:
            self._end_here(records, JobState.Abandoned, self._declined)
            return
        self._line.add(records)
        self._flush()

    def cancel(self, record: JobRecord) -> None:
        """End a job."""
        if record.job not in self.jobs:
            return
        if record.state is JobState.Created:
            self._end_here([record], JobState.Cancelled, CANCELLED)
            return
        self._cancelled.add(record.job)
        if self.accepted:
            self._send(CancelSubmitted(self.id, [record.job]))

    def close(self, terminate: bool) -> None:
        """Finish or end its jobs; what was not sent is ended here."""
        self.closing = terminate or bool(self.closing)
        if terminate:
            waiting = [record for record in self.jobs.values() if record.state is JobState.Created]
            self._end_here(waiting, JobState.Cancelled, CANCELLED)
            self._line.keep_sent()
        if self._declined or not (self._asked or self.jobs):
            self.end()
        else:
            self._flush()

    def narrow(self) -> None:
        """Wait for no nodes that are not known yet."""
        self.say(NarrowCluster(self.id))

    def say(self, message: AnyMessage, *, lasting: bool = False) -> None:
        """Say something of this cluster, on the next link if there is none; `lasting`: on every link."""
        if lasting:
            self._lasting.append(message)
        if self.accepted:
            self._send(message)
        elif not lasting:
            self._unsaid.append(message)

    def keep_object(self, blob: BlobRef) -> None:
        """The program has scattered it: jobs will need it."""
        self._objects[blob] += 1
        self._tell_objects()

    def drop_object(self, blob: BlobRef) -> None:
        """No further job will need it."""
        self._objects[blob] -= 1
        if not self._objects[blob]:
            del self._objects[blob]
        self._tell_objects()

    def _tell_objects(self) -> None:
        if self.accepted:
            self._objects_told = True
            self._send(KeepObjects(self.id, tuple(self._objects)))

    def told(self, job: int) -> None:
        """The callbacks about the end of a job have returned."""
        safe, sequence = self._untold.pop(job, (None, 0))
        if safe is not None:
            safe.safe(sequence)
            self.acknowledge()

    # ---- the link ----

    def open(self) -> None:
        """There is a new link."""
        self._asked = True
        self._safe = SafeBatches()
        self._send(self.opening)

    def link_gone(self) -> None:
        """It broke."""
        self.accepted = False
        self._close_said = None

    def give_up(self, cause: str) -> None:
        """Nobody answers, and it is being closed: leave what it has there to the scheduler."""
        if not self._known:
            self.end()
            return
        self._end_here(list(self.jobs.values()), JobState.Abandoned, cause)
        self._finish()

    def end_unstored(self) -> None:
        """Its jobs were to be ended, and there was time to store them: those that are not stored run nowhere."""
        unstored = self._line.unstored_jobs()
        left = [self.jobs[job] for job in unstored if job in self.jobs and self.jobs[job].node is None]
        self._is_stuck = bool(unstored)
        self._end_here(left, JobState.Cancelled, UNSTORED)

    @property
    def may_be_left(self) -> bool:
        """Whether it is being closed, and no result of a job that was to finish would be missed."""
        return bool(self.closing) or (self.closing is not None and not self.jobs)

    @property
    def is_untold(self) -> bool:
        """Whether the scheduler knows of the cluster but perhaps not of its end, and nobody was told so."""
        return self._known and self._close_said != self.closing and not self._is_over

    def acknowledge(self) -> None:
        """Say what the scheduler may forget."""
        sequence = self._safe.news()
        if sequence is not None and self.accepted:
            self._send(AckOver(self.id, sequence))

    def heard(self, message: AnyMessage, payload: bytes | memoryview) -> None:
        """The scheduler says something of this cluster."""
        match message:
            case JobsOver():
                self._jobs_over(message, payload)
            case JobsHanded(_, node, jobs, address):
                records = [self.jobs[job] for job in jobs if job in self.jobs]
                for record in records:
                    record.node = node
                self.owner.jobs_started(self.nodes.view(node, address), records)
            case JobsStored(_, sequence):
                self._line.stored(sequence)
                self._flush()
            case JobSaid():
                self._job_said(message, payload)
            case JobWaitsAgain(_, job, node, cause):
                if (known := self.jobs.get(job)) is not None:
                    known.node = None
                    self.owner.job_requeued(JobRequeued(known, node, cause), self.nodes.view(node))
            case ClusterAccepted():
                self._accepted(message)
            case ClusterDeclined(_, reason):
                self._decline(reason)
            case ClusterSaid(_, sentence):
                logger.warning("%s", sentence)
            case ClusterOver() if self.closing is None:
                self._decline("it has been closed there")
            case ClusterOver():
                self.end()
            case _:
                self.nodes.heard(message)

    def _accepted(self, message: ClusterAccepted) -> None:
        self._close_said = None
        forgotten = message.fresh and self._known and self._line.had_stored > 0
        self.accepted = True
        self._line.limit(message.batch_jobs)
        if not self._known:
            self._known = True
            self._doings.accepted()
            if not self.decided.done():
                self.decided.set_result(None)
        if forgotten:
            self._begin_anew()
        else:
            for batch in self._line.resume(message.stored):
                self._send_batch(batch)
        self.nodes.begin_anew()
        if self._objects or self._objects_told:
            self._tell_objects()
        asked = [job for job in self._cancelled if job in self.jobs]
        self._cancelled = set(asked)
        if asked:
            self._send(CancelSubmitted(self.id, asked))
        unsaid, self._unsaid = self._unsaid, []
        for each in (*self._lasting, *unsaid):
            self._send(each)
        self._flush()

    def _begin_anew(self) -> None:
        unstored = self._line.unstored_jobs()
        sent = [record for record in self.jobs.values() if record.state is JobState.Running]
        again = [record for record in sent if self.owner.reentrant or (record.job in unstored and record.node is None)]
        for record in again:
            record.state, record.node = JobState.Created, None
        self._line.begin_anew(again)
        lost = [record for record in sent if record.state is JobState.Running]
        if lost:
            logger.error("%s: the scheduler does not know %s any more", self.owner.spec.name, counted(len(lost), "job"))
        self._end_here(lost, JobState.Abandoned, FORGOTTEN)

    def _decline(self, reason: str) -> None:
        self._declined = f"the scheduler does not take up cluster {self.owner.spec.name}: {reason}"
        self.accepted = False
        if not self.decided.done():
            self.decided.set_exception(SettingsError(self._declined))
            return
        logger.error("%s", self._declined)
        self._line.drain()
        self._end_here(list(self.jobs.values()), JobState.Abandoned, self._declined)
        if self.closing is not None:
            self.end()

    def end(self) -> None:
        """Everything of it is done; what was to be ended before it was stored has not been taken in."""
        if self.closing:
            unstored = self._line.unstored_jobs()
            left = [record for record in self.jobs.values() if record.job in unstored]
            self._end_here(left, JobState.Cancelled, UNSTORED)
        self._end_here(list(self.jobs.values()), JobState.Abandoned, FORGOTTEN)
        self._doings.over()
        self._finish()

    def _finish(self) -> None:
        if not self._is_over:
            self._is_over = True
            self.owner.ended()

    # ---- jobs on their way there ----

    def _flush(self) -> None:
        if not self.accepted:
            return
        for batch in self._line.take():
            for spec in batch.jobs:
                self.jobs[spec.job].state = JobState.Running
            self._send_batch(batch)
        if self.closing != self._close_said and not self._line.has_unsent:
            self._close_said = self.closing
            self._send(CloseCluster(self.id, bool(self.closing)))

    def _send_batch(self, batch: Batch) -> None:
        self._doings.send(SubmitJobs(self.id, batch.sequence, batch.jobs), batch.payload)

    def _send(self, message: AnyMessage) -> None:
        self._doings.send(message, ())

    # ---- how jobs end ----

    def _jobs_over(self, message: JobsOver, payload: bytes | memoryview) -> None:
        view, at, safe, sequence = memoryview(payload), 0, self._safe, message.sequence
        pending = 0
        for over in message.jobs:
            done = over.done
            end = at
            if done is not None and done.blob is None:
                end = at + done.result_size + done.stdout_size + done.stderr_size + done.error_size
            if (done is not None and done.blob is not None) or over.job in self._late:
                pending += 1
                ref = None if done is None else done.blob
                self._late.add(over.job, ref, partial(self._take_late, over, bytes(view[at:end]), safe, sequence))
            elif self._end(over, bytes(view[at:end])):
                pending += 1
                self._untold[over.job] = (safe, sequence)
            at = end
        safe.arrived(sequence, pending)
        self._batch_ended()

    def _end(self, over: JobOver, body: bytes | memoryview) -> bool:
        """Tell the end of a job, unless it has been told; returns whether `told` will be called."""
        record = self.jobs.pop(over.job, None)
        if record is None:
            return False
        record.state = over.state
        ended = JobEnded(record, over.state, over.node, over.done, body, over.cause)
        return self._tell(ended, over.address)

    def _tell(self, ended: JobEnded, address: str = "") -> bool:
        record = ended.job
        if record.blob is not None or record.options is not None:
            self._doings.take_back(record)
        self._cancelled.discard(record.job)
        try:
            view = None if ended.node is None else self.nodes.view(ended.node, address)
            return self.owner.job_ended(ended, view)
        except BaseException:  # other jobs have ended as well
            logger.exception("the end of job %s could not be told; dispy goes on", record.job)
            return False

    def _end_here(self, records: Iterable[JobRecord], state: JobState, cause: str) -> None:
        for record in records:
            if self.jobs.pop(record.job, None) is not None:
                record.state = state
                self._tell(JobEnded(record, state, cause=cause))
        self._batch_ended()

    def _batch_ended(self) -> None:
        try:
            self.owner.batch_ended()
        except BaseException:
            logger.exception("the end of jobs of %s could not be told; dispy goes on", self.owner.spec.name)
        if self._is_stuck and not self.jobs:
            self._finish()

    # ---- large bodies ----

    def _job_said(self, said: JobSaid, payload: bytes | memoryview) -> None:
        if said.blob is None and said.job not in self._late:
            self._speak(said, bytes(payload))
        else:
            self._late.add(said.job, said.blob, partial(self._speak_late, said, bytes(payload)))

    def _speak(self, said: JobSaid, body: bytes | memoryview) -> None:
        if (record := self.jobs.get(said.job)) is not None:
            self.owner.job_spoke(JobSpoke(record, said.node, body), self.nodes.view(said.node))

    def _speak_late(self, said: JobSaid, body: bytes, fetched: memoryview | TransferError | None) -> None:
        if isinstance(fetched, TransferError):
            logger.warning("an interim result could not be fetched from the scheduler: %s", fetched)
        elif fetched is not None or said.blob is None:
            self._speak(said, body if fetched is None else fetched)

    def _take_late(
        self, over: JobOver, body: bytes, safe: SafeBatches, sequence: int, fetched: memoryview | TransferError | None
    ) -> None:
        data: bytes | memoryview = body
        if isinstance(fetched, TransferError):
            if safe is not self._safe or not self.accepted:
                return  # it is told again on the next link
            cause = f"the result could not be fetched from the scheduler: {fetched}"
            over.done, over.state, over.cause = None, JobState.Terminated, cause
        elif fetched is not None:
            data = fetched
        if self._end(over, data):
            self._untold[over.job] = (safe, sequence)
        else:
            safe.safe(sequence)
        self._batch_ended()
        self.acknowledge()
