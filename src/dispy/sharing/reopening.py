"""What lies in the store of a shared scheduler, as its daemon and its core take it up again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from dispy.model import BlobRef, ComputationId, FileSpec, JobDone, JobOptions, JobState, NodeInfo, ProcessId
from dispy.scheduler import events
from dispy.scheduler.clusters import ClusterState
from dispy.scheduler.fairness import Charged
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.places import Place
from dispy.sharing.keeping import KeptCluster, KeptEnd, Restored
from dispy.sharing.storefile import StoreFile
from dispy.wire.pool import JobOver

PORTION: Final = 1 << 20
"""Bytes of bodies that are read at once."""


class Past(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of a job that has a history."""

    cancelled: bool = False
    cpus: int = 0
    failures: int = 0
    losses: int = 0
    astray: dict[str, ProcessId] = {}
    """By the number of the attempt (names in JSON are texts)."""


def past_of(record: JobRecord) -> str | None:
    """What is kept of a job beyond its attempt and its node; None for most."""
    if not (record.cancelled or record.cpus or record.failures or record.losses or record.astray):
        return None
    astray = {str(attempt): node for attempt, node in (record.astray or {}).items()}
    past = Past(record.cancelled, record.cpus, record.failures, record.losses, astray)
    return msgspec.json.encode(past).decode()


def opened_of(kept: KeptCluster) -> events.ClusterOpened:
    """How the core hears of a cluster, for the first time or again."""
    opened = kept.opened
    return events.ClusterOpened(
        opened.computation,
        reentrant=opened.reentrant,
        open_ended=opened.open_ended,
        named=len(opened.named),
        user=kept.user,
        exclusive=opened.exclusive,
    )


def reopen(file: StoreFile) -> Restored:
    """Read everything but how jobs ended."""
    meta = file.meta()
    clusters: list[KeptCluster] = []
    again: list[events.RestoredCluster] = []
    for kept, open_ended, forsaken in file.clusters():
        clusters.append(kept)
        if kept.state != "ended":
            opened = opened_of(msgspec.structs.replace(kept, opened=_with(kept, open_ended)))
            again.append(events.RestoredCluster(opened, ClusterState[kept.state.upper()], forsaken))
    ids = {number: id for id, number in file.writer.clusters.items()}
    nodes, places = _nodes(file)
    processes = {number: id for id, number in file.writer.nodes.items()}
    shares = [
        events.RestoredShare(ids[cluster], processes[node], *msgspec.msgpack.decode(wanted, type=_Wanted))
        for cluster, node, wanted in file.shares()
    ]
    event = events.Restored(again, _jobs(file, ids, processes), nodes, shares)
    ends: dict[ComputationId, list[int]] = {}
    for number, cluster in file.ended_numbers():
        ends.setdefault(ids[cluster], []).append(number)
    highest = {ids[cluster]: client for cluster, client in file.highest()}
    accounts = msgspec.msgpack.decode(meta.get("accounts", b"\x80"), type=dict[str, Charged])
    return Restored(meta["token"], meta["started"], clusters, ends, highest, event, places, accounts)


_Wanted = tuple[int, tuple[FileSpec, ...], bytes, bool, bool]
_Over = tuple[JobState, ProcessId | None, str | None, JobDone | None, str]
_decode_over = msgspec.msgpack.Decoder(_Over).decode


def _with(kept: KeptCluster, open_ended: bool) -> Any:
    return msgspec.structs.replace(kept.opened, open_ended=open_ended)


def _nodes(file: StoreFile) -> tuple[list[events.RestoredNode], dict[ProcessId, tuple[Place, ...]]]:
    nodes, places = [], {}
    for id, known in file.nodes():
        info, address, where = msgspec.msgpack.decode(known, type=tuple[NodeInfo, str, tuple[Place, ...]])
        nodes.append(events.RestoredNode(id, info, address))
        places[id] = where
    return nodes, places


def _jobs(file: StoreFile, clusters: dict[int, ComputationId], nodes: dict[int, ProcessId]) -> list[JobRecord]:
    decode_extra = msgspec.msgpack.Decoder(tuple[BlobRef | None, JobOptions | None]).decode
    jobs = []
    for number, cluster, client, args, extra, attempt, node, past in file.jobs():
        blob, options = (None, None) if extra is None else decode_extra(extra)
        record = JobRecord(number, clusters[cluster], args, client, blob, options, attempt)
        if node is not None:
            record.node = nodes[node]
        if past is not None:
            _remember(record, msgspec.json.decode(past, type=Past))
        jobs.append(record)
    return jobs


def _remember(record: JobRecord, past: Past) -> None:
    record.cancelled, record.cpus = past.cancelled, past.cpus
    record.failures, record.losses = past.failures, past.losses
    record.astray = {int(attempt): node for attempt, node in past.astray.items()} or None


def read_ends(file: StoreFile, jobs: Sequence[int]) -> list[KeptEnd]:
    """How these jobs (own numbers) ended: so many of the first as have bodies of `PORTION` bytes."""
    ends: list[KeptEnd] = []
    in_bodies = 0
    for number, id, client, over, body in file.ended(jobs):
        state, node, cause, done, address = _decode_over(over)
        size = 0
        if done is not None:
            done = msgspec.structs.replace(done, job=client, blob=None)
            size = done.result_size + done.stdout_size + done.stderr_size + done.error_size
        told = JobOver(client, state, node, cause, done, address)
        ends.append(KeptEnd(number, id, told, body or b"", size if body is None else len(body)))
        in_bodies += len(body or b"")
        if in_bodies >= PORTION:
            break
    return ends
