"""What the scheduler asks of running jobs, and the files that they send: the node core's part of both.

A file that a job sends is a *parcel* as long as somebody waits for it: offered over every link that speaks for the
lease until the scheduler has it, or the job has given up. Pure: tables and effects.
"""

from __future__ import annotations

from dispy.model import HeldAttempt
from dispy.node import events as ev
from dispy.node.effects import AnswerParcel, Effects, ReadTail, Send, StoreFile
from dispy.node.feeding import Feeder
from dispy.node.serving import ComputationState, HeldJob, Lease
from dispy.wire import messages as msg

Question = msg.FileTaken | msg.PlaceFile | msg.TailJob | msg.ListJobs


def asked(lease: Lease, message: Question, effects: Effects) -> None:
    """Answer the scheduler, or begin to."""
    assert lease.peer is not None
    match message:
        case msg.TailJob(number):
            job = lease.jobs.get(number)
            if job is None or not _runs(job) or job.worker is None:
                effects.sends.append(Send(lease.peer, msg.JobTail(number)))
            else:
                worker = job.worker
                effects.actions.append(ReadTail(lease.peer, worker.computation, worker.id, job.sequence, number))
        case msg.ListJobs(key):
            running = [job for job in lease.jobs.values() if job.computation.id == key and _runs(job)]
            held = [HeldAttempt(job.job, job.attempt) for job in running]
            effects.sends.append(Send(lease.peer, msg.JobsListed(key, held)))
        case msg.PlaceFile(key, file):
            computation = lease.computations.get(key)
            if computation is None or computation.state is not ComputationState.READY:
                reason = "the node has not set up this computation"
                effects.sends.append(Send(lease.peer, msg.FilePlaced(key, file.path, reason)))
            else:
                effects.actions.append(StoreFile(key, file))
        case msg.FileTaken():
            for number, offer in list(lease.parcels.items()):
                if (offer.job, offer.file.blob.name, offer.file.path) == (message.job, message.name, message.path):
                    del lease.parcels[number]
                    effects.actions.append(AnswerParcel(number, not message.reason))


def _runs(job: HeldJob) -> bool:
    return job.worker is not None and job.worker.head() is job


def file_sent(lease: Lease | None, feeder: Feeder, event: ev.FileSent, effects: Effects) -> None:
    """Offer what a running job sends."""
    worker = feeder.workers.get(event.worker)
    job = None if worker is None else worker.jobs.get(event.sequence)
    if lease is None or job is None or job in lease.superseded or lease.expired:
        effects.actions.append(AnswerParcel(event.parcel, False))
        return
    lease.parcels[event.parcel] = offer = msg.FileOffered(job.job, job.attempt, event.file)
    if lease.peer is not None:
        effects.sends.append(Send(lease.peer, offer))


def parcel_dropped(lease: Lease | None, event: ev.ParcelDropped) -> None:
    """The job waits for it no longer."""
    if lease is not None:
        lease.parcels.pop(event.parcel, None)


def answered(lease: Lease | None, event: ev.TailRead | ev.FileStored, effects: Effects) -> None:
    """Pass on what was found out, if the one who asked is still there."""
    if lease is None or lease.peer is None:
        return
    if isinstance(event, ev.FileStored):
        effects.sends.append(Send(lease.peer, msg.FilePlaced(event.computation, event.path, event.reason)))
    elif event.peer == lease.peer:
        tail = msg.JobTail(event.job, len(event.stdout), len(event.stderr))
        effects.sends.append(Send(lease.peer, tail, [event.stdout, event.stderr]))
