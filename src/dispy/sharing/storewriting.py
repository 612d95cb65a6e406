"""Batches of changes as rows of the SQLite file. Used by the thread of the store.

However many jobs a batch has, it is written by few statements: with one for each row this thread and the event loop
would take the interpreter from each other thousands of times a second. Rows are bound as they are, many to a statement,
and whole numbers that rows have in common are no columns of theirs: SQLite takes far longer to read rows out of JSON.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from dispy.model import ComputationId, ProcessId
from dispy.scheduler.effects import JobEnded
from dispy.scheduler.events import RestoredNode, RestoredShare
from dispy.scheduler.fairness import Charged
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.keeping import ClusterMark
from dispy.scheduler.places import Place
from dispy.settings import INLINE_SIZE
from dispy.sharing.keeping import KeptCluster

MOST_ROWS: Final = 4096
"""Rows that are bound to one statement: SQLite takes 32,766 values. Others have 2,048, 1,024 … rows: few statements are
prepared."""
_MARK_JOBS: Final = """
update jobs set attempt = ?2, node = ?3, past = ?4 where number in (select value from json_each(?1))"""
_DELETE: Final = "delete from {} where number in (select value from json_each(?))"

_encode = msgspec.msgpack.encode


@lru_cache
def insert_jobs(rows: int) -> str:
    """The statement for so many jobs that have not been handed to a node."""
    return "insert into jobs values " + ", ".join(["(?, ?, ?, ?, ?, 0, null, null)"] * rows)


@lru_cache
def insert_ended(rows: int) -> str:
    """The statement for so many jobs that have ended."""
    return "insert or replace into ended values " + ", ".join(["(?, ?, ?, ?, ?)"] * rows)


class Mark(msgspec.Struct):
    """How a job stands that has not ended."""

    attempt: int
    node: ProcessId | None
    past: str | None
    """What is not the same for all jobs, as JSON; None: nothing happened to it yet."""


class End(msgspec.Struct):
    """How a job has ended."""

    ended: JobEnded
    address: str


class Batch(msgspec.Struct):
    """What is written in one transaction, in the order of these fields. Of a job its last mark counts."""

    number: int
    next_job: int | None = None
    clusters: list[KeptCluster] = []
    cluster_marks: list[ClusterMark] = []
    nodes: list[tuple[RestoredNode, tuple[Place, ...]]] = []
    known: frozenset[ProcessId] | None = None
    """If set: all other nodes are gone."""
    shares: list[RestoredShare] = []
    submitted: dict[int, JobRecord] = {}
    """Only what never changes of them may be read."""
    marks: dict[int, Mark] = {}
    ends: dict[int, End] = {}
    taken: list[int] = []
    """Ends that nobody needs any more, also of this batch."""
    stored: dict[ComputationId, int] = {}
    over: list[ComputationId] = []
    accounts: dict[str, Charged] | None = None
    """What users have been charged; None: as it was."""


class BatchWriter:
    """Writes batches, each within a transaction of the caller's."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.clusters: dict[ComputationId, int] = {}
        """Their numbers in the tables."""
        self.nodes: dict[ProcessId, int] = {}
        self._db = db

    def write(self, batch: Batch) -> list[int]:
        """Write a batch; returns the jobs whose large results nobody needs any more."""
        if batch.next_job is not None:
            self._db.execute("update meta set value = ? where name = 'next'", (batch.next_job,))
        if batch.accounts is not None:
            self._db.execute("insert or replace into meta values('accounts', ?)", (_encode(batch.accounts),))
        self._write_clusters(batch)
        self._write_nodes(batch)
        self._write_jobs(batch)
        for cluster, sequence in batch.stored.items():
            self._db.execute("update clusters set stored = ? where id = ?", (sequence, cluster))
        gone = self._take([job for job in batch.taken if job not in batch.ends] if batch.ends else batch.taken)
        for id in batch.over:
            gone += self._forget(id)
        return gone

    def _write_clusters(self, batch: Batch) -> None:
        for cluster in batch.clusters:
            opened = cluster.opened
            row = (opened.computation.id, _encode(cluster), cluster.stored, cluster.state, opened.open_ended)
            added = self._db.execute(
                "insert into clusters(id, kept, stored, state, open_ended, forsaken) values(?, ?, ?, ?, ?, '')", row
            )
            assert added.lastrowid is not None
            self.clusters[opened.computation.id] = added.lastrowid
        for mark in batch.cluster_marks:
            now = (mark.state, mark.is_open_ended, mark.forsaken, mark.cluster)
            self._db.execute("update clusters set state = ?, open_ended = ?, forsaken = ? where id = ?", now)

    def _write_nodes(self, batch: Batch) -> None:
        db = self._db
        for node, places in batch.nodes:
            known = _encode((node.info, node.address, places))
            number = self.nodes.get(node.node)
            if number is None:
                self.nodes[node.node] = number = max(self.nodes.values(), default=0) + 1
            db.execute("insert or replace into nodes values(?, ?, ?)", (number, node.node, known))
        for share in batch.shares:
            cluster, number = self.clusters.get(share.cluster), self.nodes.get(share.node)
            if cluster is not None and number is not None:
                wanted = (share.cpus, share.files, share.setup_args, share.oversubscribe, share.is_paused)
                db.execute("insert or replace into shares values(?, ?, ?)", (cluster, number, _encode(wanted)))
        if batch.known is not None:
            for id in self.nodes.keys() - batch.known:
                number = self.nodes.pop(id)
                db.execute("delete from nodes where number = ?", (number,))
                db.execute("delete from shares where node = ?", (number,))

    def _write_jobs(self, batch: Batch) -> None:
        submitted, marks, ends = batch.submitted, batch.marks, batch.ends
        fresh = [record for job, record in submitted.items() if job not in ends]
        self._insert(insert_jobs, [self._job_row(record) for record in fresh])
        alike: dict[tuple[int, int | None, str | None], list[int]] = {}
        for job, mark in marks.items():
            if job not in ends:
                alike.setdefault((mark.attempt, self._node(mark.node), mark.past), []).append(job)
        for stands, jobs in alike.items():
            self._db.execute(_MARK_JOBS, (numbers(jobs), *stands))
        if ends:
            taken = set(batch.taken)
            self._insert(insert_ended, [self._ended_row(job, end) for job, end in ends.items() if job not in taken])
            self._db.execute(_DELETE.format("jobs"), (numbers([job for job in ends if job not in submitted]),))

    def _job_row(self, record: JobRecord) -> tuple[Any, ...]:
        extra = None if record.blob is None and record.options is None else _encode((record.blob, record.options))
        return record.job, self.clusters[record.cluster], record.handle, record.args, extra

    def _ended_row(self, job: int, end: End) -> tuple[Any, ...]:
        ended = end.ended
        over = _encode((ended.state, ended.node, ended.cause, ended.done, end.address))
        body = ended.body if len(ended.body) <= INLINE_SIZE else None
        return job, self.clusters[ended.job.cluster], ended.job.handle, over, body

    def _insert(self, statement: Callable[[int], str], rows: Sequence[tuple[Any, ...]]) -> None:
        at, many = 0, MOST_ROWS
        while at < len(rows):
            while many > len(rows) - at:
                many //= 2
            values = [value for each in rows[at : at + many] for value in each]
            self._db.execute(statement(many), values)
            at += many

    def _take(self, jobs: list[int]) -> list[int]:
        if not jobs:
            return []
        text = numbers(jobs)
        rows = self._db.execute(
            "select number from ended where body is null and number in (select value from json_each(?))", (text,)
        )
        large = [number for (number,) in rows]
        self._db.execute(_DELETE.format("ended"), (text,))
        return large

    def _forget(self, id: ComputationId) -> list[int]:
        cluster = self.clusters.pop(id, None)
        rows = self._db.execute("select number from ended where body is null and cluster = ?", (cluster,))
        large = [number for (number,) in rows]
        for table in ("shares", "jobs", "ended"):
            self._db.execute(f"delete from {table} where cluster = ?", (cluster,))
        self._db.execute("delete from clusters where number = ?", (cluster,))
        return large

    def _node(self, id: ProcessId | None) -> int | None:
        return None if id is None else self.nodes[id]


def numbers(jobs: Iterable[int]) -> str:
    """Numbers of jobs as SQLite reads them again (`json_each`)."""
    return msgspec.json.encode(list(jobs)).decode()
