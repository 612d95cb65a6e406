"""The SQLite file of a shared scheduler: made and opened, a batch to a transaction, read again. Used by one thread."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec

from dispy.errors import StoreError
from dispy.model import ComputationId, ProcessId
from dispy.settings import INLINE_SIZE
from dispy.sharing.keeping import KeptCluster
from dispy.sharing.storewriting import Batch, BatchWriter, numbers

VERSION: Final = 1
"""Of the tables. A file of another one is not touched."""
APPLICATION: Final = 0x64697370
FILE: Final = "jobs.sqlite"
RESULTS: Final = "results"
PAGE_SIZE: Final = 4096
"""Bytes; SQLite's default."""
CHECKPOINT_PAGES: Final = 4096
"""Pages (16 MiB) in the journal before they are copied into the file: each copy costs two more syncs."""
SPARE_PAGES: Final = 1024
"""Pages (4 MiB) that the file may have beyond what it needs."""
SHRINK_PAGES: Final = 1024
"""Pages (4 MiB) that are given back at once."""
WRITERS: Final = 8
"""Files of large results that are written at once: the disk syncs many in the time of one."""
TABLES: Final = """
create table meta(name text primary key, value blob) without rowid;
create table clusters(number integer primary key, id text unique, kept blob, stored integer, state text,
    open_ended integer, forsaken text);
create table nodes(number integer primary key, id text unique, known blob);
create table shares(cluster integer, node integer, wanted blob, primary key(cluster, node)) without rowid;
create table jobs(number integer primary key, cluster integer, client integer, args blob, extra blob,
    attempt integer, node integer, past text);
create table ended(number integer primary key, cluster integer, client integer, over blob, body blob);
"""

# The joins keep the order of what was asked for, and nothing is sorted: rows are large.
_ENDED: Final = """
select ended.number, clusters.id, client, over, body from json_each(?1) as asked
cross join ended on ended.number = asked.value cross join clusters on clusters.number = ended.cluster"""


class StoreFile:
    """The open file. Every method may block."""

    def __init__(self, directory: Path) -> None:
        """Open the file of this directory, or make it.

        Raises:
            StoreError: it is damaged, of another version, or in use.
            OSError: the directory cannot be written.
        """
        self.path = directory / FILE
        self.results = directory / RESULTS
        self.results.mkdir(mode=0o700, exist_ok=True)
        self._writers = ThreadPoolExecutor(WRITERS, "dispy-results")
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        self.db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=1.0)
        self.writer = BatchWriter(self.db)
        try:
            self._prepare()
        except sqlite3.Error as error:
            self.db.close()
            raise StoreError(self._why_unusable(error)) from error
        except StoreError:
            self.db.close()
            raise

    def _prepare(self) -> None:
        db = self.db
        db.execute("pragma locking_mode = exclusive")
        version, application = _one(db, "pragma user_version"), _one(db, "pragma application_id")
        is_new = not version and not _one(db, "select count(*) from sqlite_schema")
        if not is_new and (version, application) != (VERSION, APPLICATION):
            raise StoreError(
                f"{self.path} was written by another version of dispy (its tables have version {version}, this one "
                f"knows version {VERSION}): start that version, or use another directory (--dest_path_prefix)"
            )
        if is_new:
            db.execute("pragma auto_vacuum = incremental")
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
        db.execute(f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}")
        db.execute(f"pragma journal_size_limit = {CHECKPOINT_PAGES * PAGE_SIZE}")
        if is_new:
            with self._transaction():
                for statement in TABLES.split(";"):
                    db.execute(statement)
                db.execute(f"pragma application_id = {APPLICATION}")
                db.execute(f"pragma user_version = {VERSION}")
                rows = {"token": secrets.token_bytes(32), "started": time.time(), "next": 1}
                db.executemany("insert into meta values(?, ?)", rows.items())
        elif (said := _one(db, "pragma quick_check(1)")) != "ok":
            raise StoreError(self.damaged(said))

    def damaged(self, said: object) -> str:
        """What to do about a file whose content is not what was written, as a sentence."""
        return (
            f"{self.path} is damaged ({said}): put a copy in its place, or move it and the files beside it ({FILE}-*) "
            "away; then the jobs in it are lost, and the scheduler starts with none"
        )

    def _why_unusable(self, error: sqlite3.Error) -> str:
        name = getattr(error, "sqlite_errorname", "")
        if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return f"{self.path} is in use by another dispyscheduler: end that, or choose another --dest_path_prefix"
        if is_damage(error):
            return self.damaged(error)
        return f"{self.path} cannot be used: {error}"

    def meta(self) -> dict[str, Any]:
        """token (bytes), started (wall clock), next (number of a job)."""
        return dict(self.db.execute("select name, value from meta"))

    # ---- reading ----

    def counts(self) -> tuple[int, int, int]:
        """Clusters, jobs that have not ended, jobs whose ends were not acknowledged."""
        clusters, jobs, ended = (
            _one(self.db, f"select count(*) from {name}") for name in ("clusters", "jobs", "ended")
        )
        return clusters, jobs, ended

    def clusters(self) -> Iterable[tuple[KeptCluster, bool, str]]:
        """Each with whether it is open-ended, and why no node can come for it."""
        rows = self.db.execute("select number, id, kept, stored, state, open_ended, forsaken from clusters order by 1")
        for number, id, kept, stored, state, open_ended, forsaken in rows:
            self.writer.clusters[id] = number
            cluster = msgspec.msgpack.decode(kept, type=KeptCluster)
            yield msgspec.structs.replace(cluster, stored=stored, state=state), bool(open_ended), forsaken

    def nodes(self) -> Iterable[tuple[ProcessId, bytes]]:
        """Each with what is known of it."""
        for number, id, known in self.db.execute("select number, id, known from nodes order by 1"):
            self.writer.nodes[id] = number
            yield id, known

    def shares(self) -> Iterable[tuple[int, int, bytes]]:
        """Number of the cluster, number of the node, what the cluster wants of it."""
        return self.db.execute("select cluster, node, wanted from shares order by 1, 2")

    def jobs(self) -> Iterable[tuple[int, int, int, bytes, bytes | None, int, int | None, str | None]]:
        """Their columns, in the order of their numbers."""
        return self.db.execute("select * from jobs order by number")

    def ended_numbers(self) -> Iterable[tuple[int, int]]:
        """Numbers of jobs that have ended, and of their clusters, in order."""
        return self.db.execute("select number, cluster from ended order by number")

    def ended(self, jobs: Sequence[int]) -> Iterable[tuple[int, ComputationId, int, bytes, bytes | None]]:
        """Number, cluster, the client's number, how it ended, and the body unless it is in a file; in this order."""
        return self.db.execute(_ENDED, (numbers(jobs),))

    def highest(self) -> Iterable[tuple[int, int]]:
        """Numbers of clusters that have jobs, and the highest of the client's numbers of these."""
        both = "select cluster, client from jobs union all select cluster, client from ended"
        return self.db.execute(f"select cluster, max(client) from ({both}) group by cluster")

    # ---- writing ----

    def write(self, batch: Batch) -> None:
        """Store a batch.

        Raises:
            sqlite3.Error, OSError: nothing of it is stored; it may be tried again.
        """
        large = [job for job, end in batch.ends.items() if len(end.ended.body) > INLINE_SIZE]
        if large:
            bodies = ((self.results / str(job), batch.ends[job].ended.body) for job in large)
            list(self._writers.map(_write_durably, *zip(*bodies, strict=True)))
            _sync_directory(self.results)
        clusters, nodes = dict(self.writer.clusters), dict(self.writer.nodes)
        try:
            with self._transaction():
                gone = self.writer.write(batch)
        except BaseException:
            self.writer.clusters, self.writer.nodes = clusters, nodes
            raise
        self._remove(gone)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self.db.execute("begin immediate")
        try:
            yield
            self.db.execute("commit")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("rollback")
            raise

    def shrink(self) -> bool:
        """Give some pages that are not needed back to the disk; returns whether there are more.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        spare = _one(self.db, "pragma freelist_count")
        if spare <= SPARE_PAGES:
            return False
        # As a script: it takes a step per page, and `execute` takes only the first.
        self.db.executescript(f"pragma incremental_vacuum({min(SHRINK_PAGES, spare - SPARE_PAGES)})")
        left: int = _one(self.db, "pragma freelist_count")
        if SPARE_PAGES < left < spare:
            return True
        self.db.execute("pragma wal_checkpoint(truncate)")
        return False

    def remove_leftovers(self) -> None:
        """Remove files of results that no row names: written, or taken, just before a kill."""
        rows = self.db.execute("select number from ended where body is null")
        named = {str(number) for (number,) in rows}
        self._remove(name for name in os.listdir(self.results) if name.isdigit() and name not in named)

    def _remove(self, names: Iterable[object]) -> None:
        for name in names:
            with contextlib.suppress(OSError):  # it takes space until the next start, and that is all
                (self.results / str(name)).unlink(missing_ok=True)

    def close(self) -> None:
        """Close it."""
        self._writers.shutdown()
        self.db.close()


def is_damage(error: Exception) -> bool:
    """Whether the content of the file is not what was written."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT"))


def _one(db: sqlite3.Connection, statement: str) -> Any:
    return db.execute(statement).fetchone()[0]


def _write_durably(path: Path, data: bytes | memoryview) -> None:
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
