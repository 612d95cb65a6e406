"""What the scheduler keeps of a job, and the queues of jobs that wait."""

from __future__ import annotations

from dataclasses import dataclass

from dispy.model import BlobRef, ComputationId, JobOptions, JobState, ProcessId


@dataclass(slots=True, eq=False)
class JobRecord:
    """One submitted job. Its submitter makes it and hands it over; from then on only the core changes it."""

    job: int
    cluster: ComputationId
    args: bytes
    """Pickled arguments, opaque; empty with `blob`."""
    handle: object = None
    """Whatever the submitter wants back in notices; never looked at by the core."""
    blob: BlobRef | None = None
    options: JobOptions | None = None
    attempt: int = 0
    state: JobState = JobState.Created
    node: ProcessId | None = None
