"""What is measured: one table for each question, with its systems, amounts and columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OURS = "dispy"
PEERS = ("ProcessPoolExecutor", "Ray", "dask.distributed", "ipyparallel", "dispy 4.15")
WORKERS = 2


@dataclass(frozen=True)
class Column:
    """One quantity."""

    key: str
    label: str
    scale: float = 1.0
    digits: int = 0
    more_is_better: bool = False


@dataclass(frozen=True)
class Table:
    """One question."""

    title: str
    what: str
    """In a sentence, for people."""
    columns: tuple[Column, ...]
    systems: tuple[str, ...]
    measure: str = ""
    """Of `driver.py`; empty: another program of this directory measures."""
    amounts: dict[str, Any] = field(default_factory=dict)
    of_system: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Amounts of single systems: what is slow is asked for less."""
    quick: dict[str, Any] = field(default_factory=dict)
    """Amounts that only show that it works."""
    repeats: int = 3


SLOW = {"ProcessPoolExecutor": 10_000, "multiprocessing.Pool": 10_000, "Ray": 3000, "dask.distributed": 1000}
SLOW |= {"ipyparallel": 1000, "dispy 4.15": 300}


def _fewer(key: str, of: float = 1.0, **others: Any) -> dict[str, dict[str, Any]]:
    return {name: {key: int(count * of), **others} for name, count in SLOW.items()}


JOBS = (
    Column("jobs_per_second", "jobs/s", 1, 0, True),
    Column("p50", "round trip p50, ms", 1e3, 2),
    Column("p99", "p99, ms", 1e3, 2),
    Column("start", "first result, s", 1, 3),
)
TABLES = {
    "jobs": Table(
        "Jobs",
        "A function that returns its argument, each job submitted by itself: jobs a second, the round trip of one, and "
        "the time from making the cluster (executor, client) to the first result, with daemons running.",
        JOBS,
        (OURS, *PEERS),
        "jobs",
        {"jobs": 50_000, "trips": 1000},
        _fewer("jobs", trips=200),
        {"jobs": 20, "trips": 3},
    ),
    "durable": Table(
        "Jobs that survive",
        "The same jobs where they are on the disk: with `durable=True` those of the program, with `dispyscheduler` "
        "those of all programs. None of the peers keeps jobs by default.",
        JOBS,
        (OURS, "dispy, durable", "dispyscheduler"),
        "jobs",
        {"jobs": 50_000, "trips": 500},
        {},
        {"jobs": 20, "trips": 3},
    ),
    "map": Table(
        "Many short calls",
        "`map` of `n * n` over a million numbers; systems with a chunk size get 10,000, dispy finds its own, Ray and "
        "dask have none and get fewer calls.",
        (Column("calls_per_second", "calls/s", 1, 0, True),),
        (OURS, "multiprocessing.Pool", *PEERS[:-1]),
        "map",
        {"calls": 1_000_000},
        {"Ray": {"calls": 5000}, "dask.distributed": {"calls": 2000}},
        {"calls": 200},
    ),
    "data": Table(
        "Large arguments and results",
        "64 MiB of bytes to a job that returns their length; a job that returns as many. The best of three.",
        (Column("argument", "argument, s", 1, 3), Column("result", "result, s", 1, 3)),
        (OURS, *PEERS),
        "data",
        {"size": 64 << 20, "tries": 3},
        {"dispy 4.15": {"tries": 1}},
        {"size": 1 << 17, "tries": 1},
    ),
    "files": Table(
        "Files",
        "A file of 1 GB in `depends`, from making the cluster to the result of a job that has seen it; then the same "
        "file with a second cluster, which sends nothing. The other peers have nothing like it.",
        (
            Column("bytes_per_second", "first cluster, MB/s", 1e-6, 0, True),
            Column("second_cluster", "second cluster, s", 1, 2),
        ),
        (OURS, "dispy 4.15"),
        "files",
        {"size": 1 << 30},
        {"dispy 4.15": {"size": 256 << 20}},
        {"size": 1 << 20},
        2,
    ),
    "programs": Table(
        "Programs",
        "Runs of `/bin/true`, by `submit`; of peers without programs, by a function that calls it. `xargs -P` as well.",
        (Column("programs_per_second", "programs/s", 1, 0, True),),
        (OURS, "xargs", *PEERS),
        "programs",
        {"programs": 2000},
        _fewer("programs", 0.3),
        {"programs": 5},
    ),
    "memory": Table(
        "Memory of queued jobs",
        "Resident memory of the program for each job that waits because all workers are busy; what `submit` takes, and "
        "the end of all when the workers are free.",
        (
            Column("bytes_per_job", "bytes/job"),
            Column("submit", "submit, µs", 1e6, 1),
            Column("end", "until all have ended, µs/job", 1e6, 1),
        ),
        (OURS, *PEERS),
        "memory",
        {"jobs": 200_000},
        _fewer("jobs") | {"ProcessPoolExecutor": {"jobs": 50_000}},
        {"jobs": 100},
        2,
    ),
    "growth": Table(
        "Cost from a thousand to a million queued jobs",
        "Microseconds for each job when so many are submitted at once.",
        tuple(Column(f"at_{count}", f"{count:,}, µs/job", 1e6, 1) for count in (1_000, 10_000, 100_000, 1_000_000)),
        (OURS, "ProcessPoolExecutor"),
        "growth",
        {"counts": [1_000, 10_000, 100_000, 1_000_000], "warm": 1000, "part": 1.0},
        {"ProcessPoolExecutor": {"counts": [1_000, 10_000, 100_000]}},
        {"warm": 10, "part": 1e-4},
        1,
    ),
    "decisions": Table(
        "Decisions of a shared scheduler",
        "The real core with 1,000 nodes of 4 CPUs, 50 users and 100,000 waiting jobs; each decision is about one CPU "
        "that has become free (`benchmarks/decisions.py`).",
        (Column("decisions_a_second", "decisions/s", 1, 0, True), Column("microseconds", "µs", 1, 1)),
        ("fair", "fair_cluster", "fifo"),
    ),
    "join": Table(
        "A crowd",
        "200 nodes of one CPU that join one `dispyscheduler`, all on this machine, and 10 programs with 20,000 jobs "
        "(`benchmarks/scale.py`).",
        (
            Column("joining", "200 daemons joined, s", 1, 1),
            Column("jobs_per_second", "jobs/s", 1, 0, True),
            Column("bytes_per_queued_job", "bytes/queued job"),
            Column("longest_wait_while_joining", "longest wait for an answer, s", 1, 2),
        ),
        ("dispyscheduler",),
    ),
}
