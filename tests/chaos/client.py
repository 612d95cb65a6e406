"""The program of the chaos suite: `client.py FOLDER PORT…`, PORT being those of proxies before nodes.

It submits jobs until FOLDER/stop is there, writes what comes back to FOLDER/results and ends with 0. It may be killed
at any moment and started again: then it goes on with the jobs of which no result was written.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import dispy
from dispy.recovery.file import unfinished

WINDOW: Final = 60
"""Jobs pending at most in the cluster whose jobs may run again."""
ONCE_WINDOW: Final = 12
SHORTEST, LONGEST = 0.0002, 0.2
"""Seconds of a job, between which the logarithm is spread evenly."""
ENDS: Final = {
    dispy.DispyJob.Finished,
    dispy.DispyJob.Terminated,
    dispy.DispyJob.Cancelled,
    dispy.DispyJob.Abandoned,
}
RECOVERY, LAST_RECOVERY = 3.0, 60.0
"""Seconds for results of programs that were killed, before the jobs and after them, when all nodes can be reached."""
EXPLAIN_AFTER: Final = 30.0
LARGE: Final = 100_000
"""Bytes of arguments and results that travel as blobs."""


def seconds_of(number: int) -> float:
    """How long a job takes."""
    return SHORTEST * math.exp(Random(number).random() * math.log(LONGEST / SHORTEST))


def again(number: int, seconds: float, ballast: bytes) -> tuple[int, bytes]:
    """A job that may run more than once; it reads a file that travels with it."""
    import time

    time.sleep(seconds)
    with open("one") as file:
        one = int(file.read())
    return 3 * number + one, ballast[::-1]


def once(number: str, seconds: float, starts: str) -> str:
    """A job that may run once at most: it leaves a line when it starts."""
    import os
    import time

    fd = os.open(starts, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{number}\n".encode())
    os.close(fd)
    time.sleep(seconds)
    return number


def ballast_of(number: int) -> bytes:
    """Most jobs bring nothing, some what travels as a blob."""
    return number.to_bytes(4, "big") * (LARGE // 4) if number % 50 == 7 else b""


class Log:
    """Whole lines, appended at once; they survive this process."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *words: object) -> None:
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())


class Program:
    """Two clusters, their jobs, and what came back."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self._folder = folder
        self._log = Log(folder / "results")
        self._wrong: list[str] = []
        self._told: set[tuple[str, Any]] = set()
        lines = (folder / "results").read_text().splitlines()
        done = {int(line.split()[1]) for line in lines if line.startswith("again ")}
        self._next = max(done, default=-1) + 1
        self._repeat = sorted(set(range(self._next)) - done, reverse=True)
        """Jobs of the reentrant cluster that have to be given again."""
        self._pending = {"again": 0, "once": 0}
        self._once_submitted = 0
        self._jobs: dict[tuple[str, Any], dispy.DispyJob] = {}
        self._ended: queue.SimpleQueue[tuple[str, dispy.DispyJob]] = queue.SimpleQueue()
        nodes = [("127.0.0.1", port) for port in ports]
        self._again = dispy.JobCluster(
            again, nodes=nodes, reentrant=True, depends=[str(folder / "one")], cluster_status=self._hears("again")
        )
        self._once = dispy.JobCluster(once, nodes=nodes, cluster_status=self._hears("once"))

    def _hears(self, kind: str) -> Callable[[int, dispy.DispyNode | None, dispy.DispyJob | None], None]:
        """A callback; `job_status` would not hear of abandoned jobs."""

        def heard(status: int, _node: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
            if job is not None and status == job.status and status in ENDS:
                self._ended.put((kind, job))

        return heard

    def run(self) -> list[str]:
        """Until FOLDER/stop is there and all jobs have ended; what was wrong."""
        explain_at = None
        while True:
            goes_on = not (self._folder / "stop").exists()
            if not goes_on and explain_at is None:
                explain_at = time.monotonic() + EXPLAIN_AFTER
            if explain_at is not None and time.monotonic() > explain_at:
                explain_at += EXPLAIN_AFTER
                self._explain()
            self._submit(goes_on)
            if not goes_on and not any(self._pending.values()) and not self._repeat:
                break
            with contextlib.suppress(queue.Empty):
                self._take(*self._ended.get(timeout=0.05))
                while True:
                    self._take(*self._ended.get_nowait())
        for cluster in (self._again, self._once):
            cluster.close()
        if not self._ended.empty():
            self._wrong.append("jobs were told that had ended before")
        return self._wrong

    def _explain(self) -> None:
        """Say why jobs have not ended, for whoever looks for the cause."""
        for kind, job in list(self._jobs.items()):
            cluster = self._again if kind[0] == "again" else self._once
            print("not ended:", kind, job.status.name, cluster.explain(job), flush=True)

    def _submit(self, goes_on: bool) -> None:
        while self._pending["again"] < WINDOW and (goes_on or self._repeat):
            if self._repeat:
                number = self._repeat.pop()
            else:
                number, self._next = self._next, self._next + 1
            self._pending["again"] += 1
            self._jobs["again", number] = self._again.submit_job_id(
                number, number, seconds_of(number), ballast_of(number), dispy_retries=1000
            )
        while self._pending["once"] < ONCE_WINDOW and goes_on:
            name = f"{os.getpid()}-{self._once_submitted}"
            self._pending["once"] += 1
            seconds = seconds_of(self._once_submitted)
            job = self._once.submit_job_id(name, name, seconds, str(self._folder / "starts"))
            self._jobs["once", name] = job
            self._once_submitted += 1

    def _take(self, kind: str, job: dispy.DispyJob) -> None:
        self._pending[kind] -= 1
        self._jobs.pop((kind, job.id), None)
        why = str(job.exception)
        if kind == "again" and job.status == dispy.DispyJob.Terminated and "nodes in a row" in why:
            self._repeat.append(job.id)
            return
        if (kind, job.id) in self._told:
            self._wrong.append(f"{kind} {job.id} was told twice")
        self._told.add((kind, job.id))
        if job.status == dispy.DispyJob.Finished:
            right = (3 * job.id + 1, ballast_of(job.id)[::-1]) if kind == "again" else job.id
            if job.result != right:
                self._wrong.append(f"{kind} {job.id} has a wrong result: {str(job.result)[:100]}")
            self._log.write(kind, job.id, job.result[0] if kind == "again" else "finished")
        elif kind == "once" and any(words in why for words in FAULTS):
            self._log.write(kind, job.id, job.status.name)
        else:
            self._wrong.append(f"{kind} {job.id} is {job.status.name}: {why}")


FAULTS: Final = ("may have started", "SIGKILL")
"""What the end of a job says that was killed, or whose node was lost."""


def recover(folder: Path, seconds: float) -> list[str]:
    """Write down what nodes have for programs that were killed, as far as they had not; what was wrong."""
    log, wrong = Log(folder / "results"), []
    known = {tuple(line.split()[:2]) for line in (folder / "results").read_text().splitlines()}
    until = time.monotonic() + seconds
    for file, _ in list(unfinished()):
        recovered = dispy.recover_jobs(file, timeout=max(0.1, until - time.monotonic()))
        for job in recovered:
            if job.status != dispy.DispyJob.Finished:
                continue  # killed with its worker; the jobs that may run again do so
            if isinstance(job.result, str):
                words = ("once", job.result, "finished")
            else:
                number = (job.result[0] - 1) // 3
                words = ("again", str(number), str(job.result[0]))
                if job.result != (3 * number + 1, ballast_of(number)[::-1]):
                    wrong.append(f"job {number} was recovered with a wrong result")
            if words[:2] not in known:  # else it was killed after it had written and before it had acknowledged
                known.add(words[:2])
                log.write(*words)
        twice = {job.id for job in recovered} & {job.id for job in dispy.recover_jobs(file, timeout=0.1)}
        wrong += [f"the job with the id {each} was recovered twice" for each in twice]
    return wrong


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "results").touch()
    (folder / "one").write_text("1")
    wrong = recover(folder, RECOVERY)
    wrong += Program(folder, [int(port) for port in sys.argv[2:]]).run()
    wrong += recover(folder, LAST_RECOVERY)
    print("wrong:" if wrong else "all is right", *wrong[:10], sep="\n", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
