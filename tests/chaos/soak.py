"""A soak: jobs without pause for ten minutes or ten million jobs, then whether anything in client and node has grown.

Run by `scripts/soak`, not by the tests. What grows is told by the slope of a line through the samples of the last two
thirds, per 100,000 jobs. Ends with 1 when a slope is not about zero, or a result was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

import dispy

WINDOW: Final = 20_000
"""Jobs that are pending at most."""
SAMPLE_INTERVAL: Final = 1.0
PER: Final = 100_000
BOUNDS: Final = {"memory": 256.0, "descriptors": 0.5, "threads": 0.5, "files": 0.5}
"""What may come with 100,000 jobs: memory in KiB, the others in pieces; a leak of one reference per job is 800 KiB."""


def work(number: int) -> Any:
    """Mostly nothing; some jobs print, raise or return what travels as a blob."""
    if number % 1000 == 1:
        print("output of", number)
    if number % 1000 == 2:
        raise ValueError(number)
    if number % 5000 == 3:
        return number, bytes(100_000)
    return number


@dataclass(slots=True)
class Tally:
    """What has come back. Only `seen` is called, by the thread of callbacks."""

    ended: int = 0
    wrong: int = 0
    room: threading.Semaphore = None  # type: ignore[assignment]

    def seen(self, job: dispy.DispyJob) -> None:
        number = job.id
        kind = number % 5000
        if number % 1000 == 2:
            right = "ValueError" in str(job.exception)
        else:
            right = job.result == ((number, bytes(100_000)) if kind == 3 else number)
        self.wrong += not right
        self.ended += 1
        self.room.release()


@dataclass(slots=True)
class Sample:
    """One look at a process: what is in BOUNDS, and how many jobs had ended."""

    ended: int
    memory: float
    descriptors: float
    threads: float
    files: float


def look(process: psutil.Process, folder: Path, ended: int) -> Sample:
    files = sum(1 for _, _, names in os.walk(folder) for _ in names)
    memory = process.memory_full_info().uss / 1024
    return Sample(ended, memory, process.num_fds(), process.num_threads(), files)


def slope(points: list[tuple[float, float]]) -> float:
    """Least squares, per job."""
    count = len(points)
    x_mean, y_mean = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0


def table(samples: dict[str, list[Sample]]) -> bool:
    """Print it; whether all slopes are about zero."""
    flat = True
    print(f"{'process':<8} {'what':<14} {'first':>10} {'last':>10} {'per 100,000 jobs':>18}")
    for name, taken in samples.items():
        late = taken[len(taken) // 3 :]
        for what, bound in BOUNDS.items():
            values = [(float(each.ended), float(getattr(each, what))) for each in late]
            grows = slope(values) * PER
            verdict = "" if grows <= bound else f"  GROWS (at most {bound:g})"
            flat = flat and not verdict
            unit = " KiB" if what == "memory" else ""
            print(f"{name:<8} {what + unit:<14} {values[0][1]:>10.0f} {values[-1][1]:>10.0f} {grows:>18.2f}{verdict}")
    return flat


def start_node(folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    prefix = folder / "prefix"
    command = [sys.executable, "-m", "dispy.node.cli", "--daemon", "--name", "soak", "--cpus", str(os.cpu_count() or 1)]
    with open(folder / "node.log", "wb") as log:
        node = subprocess.Popen([*command, "--dest_path_prefix", str(prefix)], stdout=log, stderr=log)
    while b"ready" not in (folder / "node.log").read_bytes():
        if node.poll() is not None:
            sys.exit((folder / "node.log").read_text())
        time.sleep(0.05)
    return node, prefix


def soak(folder: Path, seconds: float, jobs: int) -> bool:
    node, prefix = start_node(folder)
    tally = Tally(room=threading.Semaphore(WINDOW))
    here, there = psutil.Process(), psutil.Process(node.pid)
    samples: dict[str, list[Sample]] = {"client": [], "node": []}
    try:
        with dispy.JobCluster(work, nodes="127.0.0.1", job_status=tally.seen) as cluster:
            started = sampled = time.monotonic()
            for number in range(jobs):
                tally.room.acquire()
                cluster.submit_job_id(number, number)
                if number % 100 == 0 and (now := time.monotonic()) >= sampled + SAMPLE_INTERVAL:
                    sampled = now
                    gc.collect()
                    samples["client"].append(look(here, folder / "home", tally.ended))
                    samples["node"].append(look(there, prefix, tally.ended))
                    if len(samples["node"]) % 60 == 0:
                        print(f"{now - started:.0f} s, {tally.ended:,} jobs", flush=True)
                    if now - started > seconds:
                        break
            submitted = number + 1
        took = time.monotonic() - started
        cluster.shutdown()
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(30)
    print(f"{tally.ended:,} jobs in {took:.0f} s, {tally.ended / took:,.0f} a second; {tally.wrong} wrong results")
    if len(samples["node"]) < 10:
        print("too short for a slope: give it at least 10 s")
        return False
    return table(samples) and tally.wrong == 0 and tally.ended == submitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--jobs", type=int, default=10_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dispy-soak-") as name:
        folder = Path(name)
        for variable in [each for each in os.environ if each.startswith(("DISPY_", "XDG_"))]:
            del os.environ[variable]
        os.environ |= {
            "HOME": str(folder / "home"),
            "DISPY_INTERFACES": "lo",
            "DISPY_LOCAL": "never",
            "DISPY_PORT": str(20000 + secrets.randbelow(6000) * 2),
        }
        with contextlib.suppress(KeyboardInterrupt):
            sys.exit(0 if soak(folder, given.seconds, given.jobs) else 1)


if __name__ == "__main__":
    main()
