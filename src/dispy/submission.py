"""The methods of a cluster by which jobs are submitted and cancelled, and by which it says where one is."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from dispy.buffers import Readable
from dispy.errors import ClosedError, SettingsError, ShippingError, TransferError
from dispy.job import DispyJob
from dispy.joboptions import DEPENDS, take_options
from dispy.model import JobDepends, JobOptions, JobState
from dispy.scattered import naming
from dispy.scattering import ObjectScattering
from dispy.scheduler.jobs import JobRecord
from dispy.settings import INLINE_SIZE
from dispy.shipping import dumps_arguments, dumps_for_job

_record_numbers = iter(range(1, 1 << 62))


class JobSubmission(ObjectScattering):
    """What a cluster does with jobs."""

    def submit(self, *args: Any, **kwargs: Any) -> DispyJob:
        """Queue a job with these arguments.

        Keyword arguments that begin with `dispy_` are options of the job and not given to the function:
        `dispy_timeout` (seconds that it may run), `dispy_priority` (higher first), `dispy_cpus` (a number, or 'all'),
        `dispy_memory` (bytes, or '4GB': kept for it, and its limit), `dispy_gpus`, `dispy_tags` (its node has all of
        them), `dispy_retries` (further attempts after a failure or a lost node).

        Raises:
            SettingsError: an option is not known, or its value is not in the allowed range.
            ShippingError: an argument cannot be pickled; the message names the path to it.
            ClosedError: the cluster is closed, or belongs to the parent of this process.
        """
        return self._submit(None, "", args, kwargs)

    def submit_job_id(self, job_id: Any, /, *args: Any, **kwargs: Any) -> DispyJob:
        """Like `submit`, with the job's `id` given."""
        return self._submit(job_id, "", args, kwargs)

    def submit_node(self, node: Any, /, *args: Any, **kwargs: Any) -> DispyJob | None:
        """Like `submit`, but only that node (DispyNode, address or name) may run it; None if it is unknown."""
        return self.submit_job_id_node(None, node, *args, **kwargs)

    def submit_job_id_node(self, job_id: Any, node: Any, /, *args: Any, **kwargs: Any) -> DispyJob | None:
        """Both `submit_job_id` and `submit_node`."""
        found = None if node is None else self._ledger.find_node(node)
        if found is None:
            return None
        return self._submit(job_id, found.process, args, kwargs)

    def _submit(self, job_id: Any, node: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DispyJob:
        if self.is_closed or self._ledger.is_sealed or os.getpid() != self.pid:
            self._check_submission()
        options, depends = None, None
        data: bytes | list[Readable] | None = None
        if kwargs or node:
            depends = kwargs.pop(DEPENDS, None)
            options = take_options(kwargs, node)
        if not depends and self._scattered is None:
            try:
                data = dumps_arguments(self._shipment, args, kwargs)
            except ShippingError:  # it is told below, which also tells apart what another cluster has scattered
                data = None
        if data is None:
            data, options = self._with_needs(options, depends, args, kwargs)
        job = DispyJob(job_id)
        self._enqueue(job, data, options)
        return job

    def _enqueue(self, job: DispyJob, data: bytes | list[Readable], options: JobOptions | None) -> None:
        """Hand a job with its pickled arguments over.

        Raises:
            ClosedError: the cluster takes no more jobs.
        """
        blob = None
        if isinstance(data, list):
            blob, data = self.service.offer_arguments(data), b""
        elif len(data) > INLINE_SIZE:
            blob, data = self.service.offer_arguments([data]), b""
        record = JobRecord(next(_record_numbers), self._id, data, job, blob, options)
        job._record = record
        try:
            self._ledger.accept(record, self.service.submit)
        except ClosedError:  # it was closed since we looked
            self._portal.post(self.service.take_back, record)
            raise

    def _check_submission(self) -> None:
        self._check_open()
        if self._ledger.is_sealed:
            raise ClosedError(f"cluster {self.name} is being closed; make another {type(self).__name__}")

    def _with_needs(
        self, options: JobOptions | None, depends: Sequence[Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bytes | list[Readable], JobOptions | None]:
        """The arguments of a job that may need more than these, and its options, which say what."""
        data: bytes | list[Readable]
        with naming(self._id) as named:
            if depends:
                data, options = self._with_depends(options or JobOptions(), depends, args, kwargs)
            else:
                data = dumps_arguments(self._shipment, args, kwargs)
        return data, self._needing(named.values(), options) if named else options

    def _with_depends(
        self, options: JobOptions, depends: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bytes, JobOptions]:
        if isinstance(depends, str):
            raise ShippingError(f"dispy_job_depends is a list, not {depends!r}: put it into brackets")
        data, files = dumps_for_job(self._shipment, depends, args, kwargs)
        if not files:
            return data, options
        try:
            specs = self._portal.call(self.service.offer_for_job([(file.path, file.dest) for file in files]))
        except TransferError as error:
            raise ShippingError(f"dispy_job_depends: {error}") from error
        if self._journal is not None:
            for file, kept in zip(files, specs, strict=True):
                self._journal.keep_file(kept.blob.name, file.path)
        return data, msgspec.structs.replace(options, depends=JobDepends(specs))

    def cancel(self, job: DispyJob) -> int:
        """Cancel a job: a waiting one ends Cancelled; a running one sees KeyboardInterrupt and ends Terminated.

        Returns:
            0, or -1 when it has ended already or is not a job of this cluster.

        Raises:
            SettingsError: that is no job.
            ClosedError: the cluster is closed, or belongs to the parent of this process.
        """
        _check_job("cancel", job)
        self._check_open()
        record = job._record
        if record is None or record.cluster != self._id:
            return -1
        self.service.cancel(record)
        return 0

    def explain(self, job: DispyJob) -> str:
        """Say in a sentence why a job is where it is, or how it has ended; the latter also when the cluster is closed.

        Raises:
            SettingsError: that is no job.
            ClosedError: the job has not ended, and the cluster is closed or belongs to the parent of this process.
        """
        _check_job("explain", job)
        record = job._record
        if record is None:
            return _how_it_ended(job)
        self._check_open()
        sentence = self._portal.call(self.service.explain(record))
        if job._record is None:  # by what was asked just before, for example `cancel`
            return _how_it_ended(job)
        return re.sub(rf"\bJob {record.job}\b", lambda _: f"Job {job.id}", sentence, count=1)


def _check_job(method: str, job: object) -> None:
    if not isinstance(job, DispyJob):
        raise SettingsError(f"{method}: give the job itself, as submit returned it, not {job!r}")


def _how_it_ended(job: DispyJob) -> str:
    if job.status == JobState.Created:
        return f"Job {job.id} was never submitted."
    # of a traceback the last line says it; other causes begin with their sentence
    line = -1 if job.status == JobState.Terminated else 0
    why = f" ({job.exception.strip().splitlines()[line]})" if job.exception else ""
    return f"Job {job.id} has ended: {job.status.name}{why}."
