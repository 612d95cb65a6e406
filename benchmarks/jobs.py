"""Jobs per second, round trip of one job, and start-up: dispy beside ProcessPoolExecutor and, where it can be
installed, the original dispy from PyPI, all in one run on this machine.

    python benchmarks/jobs.py                     # dispy, dispy with durable=True, and ProcessPoolExecutor
    python benchmarks/jobs.py --original DIR      # also the original, in a virtual environment made in DIR
    python benchmarks/jobs.py --shared            # also one program through dispyscheduler, whose jobs are durable
    python benchmarks/jobs.py --json              # figures for a program

Every figure is given as median (least … most) of the repeats. Absolute figures drift with the machine; the ratios hold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

WORKERS = 2


def nothing(number):
    return number


def of_dispy(jobs: int, trips: int, *, durable: bool = False, shared: bool = False) -> dict[str, float]:
    import dispy

    began = time.perf_counter()
    if shared:
        cluster = dispy.SharedJobCluster(nothing)
    else:
        cluster = dispy.JobCluster(nothing, nodes=["127.0.0.1"], durable=durable)
    cluster.submit(0)()
    start = time.perf_counter() - began
    for job in [cluster.submit(number) for number in range(2000)]:
        job()
    began = time.perf_counter()
    results = [job() for job in [cluster.submit(number) for number in range(jobs)]]
    rate = jobs / (time.perf_counter() - began)
    assert results == list(range(jobs))
    times = []
    for number in range(trips):
        began = time.perf_counter()
        cluster.submit(number)()
        times.append(time.perf_counter() - began)
    cluster.close()
    cluster.shutdown()
    return {"start": start, "jobs_per_second": rate, **_quantiles(times)}


def of_executor(jobs: int, trips: int) -> dict[str, float]:
    began = time.perf_counter()
    with ProcessPoolExecutor(WORKERS) as pool:
        pool.submit(nothing, 0).result()
        start = time.perf_counter() - began
        for future in [pool.submit(nothing, number) for number in range(1000)]:
            future.result()
        began = time.perf_counter()
        results = [future.result() for future in [pool.submit(nothing, number) for number in range(jobs)]]
        rate = jobs / (time.perf_counter() - began)
        assert results == list(range(jobs))
        times = []
        for number in range(trips):
            began = time.perf_counter()
            pool.submit(nothing, number).result()
            times.append(time.perf_counter() - began)
    return {"start": start, "jobs_per_second": rate, **_quantiles(times)}


ORIGINAL = """
import json, sys, time
import dispy
def nothing(number):
    return number
if __name__ != "__main__":
    sys.exit()
jobs, trips = int(sys.argv[1]), int(sys.argv[2])
began = time.perf_counter()
cluster = dispy.JobCluster(nothing, nodes=["127.0.0.1"], host="127.0.0.1", loglevel=dispy.logger.CRITICAL)
cluster.submit(0)()
start = time.perf_counter() - began
began = time.perf_counter()
results = [job() for job in [cluster.submit(number) for number in range(jobs)]]
rate = jobs / (time.perf_counter() - began)
times = []
for number in range(trips):
    began = time.perf_counter()
    cluster.submit(number)()
    times.append(time.perf_counter() - began)
cluster.close()
times.sort()
p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
print(json.dumps({"start": start, "jobs_per_second": rate, "p50": p50, "p99": p99}))
"""


def of_original(directory: Path, jobs: int, trips: int) -> dict[str, float]:
    python = directory / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "dispy==4.15.2", "psutil"], check=True)
    script = directory / "original.py"  # it ships source text, so it wants a file
    script.write_text(ORIGINAL)
    command = [str(python), "-u", str(directory / "bin" / "dispynode.py")]
    log = directory / "node.log"
    with open(log, "w") as output:
        node = subprocess.Popen(
            [*command, "-d", "-i", "127.0.0.1", "-c", str(WORKERS), "--daemon", "--clean", "--dest_path_prefix", "."],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
        )
    try:
        while "TCP server" not in log.read_text() and node.poll() is None:
            time.sleep(0.1)
        run = subprocess.run(
            [str(python), str(script), str(jobs), str(trips)],
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
            check=True,
            cwd=directory,
        )
    finally:
        node.kill()  # it can hang on its way out
        node.wait()
    return json.loads(run.stdout.strip().splitlines()[-1])


def _quantiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[int(len(ordered) * 0.99)]}


class Daemon:
    """A daemon on loopback with a directory of its own, and with the ports of all others."""

    def __init__(self, module: str, *options: str) -> None:
        self.command = [sys.executable, "-m", module, "--daemon", *options]

    def __enter__(self) -> Daemon:
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "ready" in line:
                break
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()


def _free_base_port() -> int:
    import socket

    while True:
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            one.bind(("127.0.0.1", 0))
            try:
                two.bind(("127.0.0.1", one.getsockname()[1] + 1))
                three.bind(("127.0.0.1", one.getsockname()[1] + 2))
            except OSError:
                continue
            return one.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--trips", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--original", type=Path, metavar="DIR")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    import tempfile

    figures: dict[str, list[dict[str, float]]] = {"dispy": [], "dispy, durable": [], "ProcessPoolExecutor": []}
    os.environ.update(DISPY_INTERFACES="lo", DISPY_SECRET="benchmark", DISPY_PORT=str(_free_base_port()))
    with tempfile.TemporaryDirectory() as directory:
        node = Daemon("dispy.node.cli", "-c", str(WORKERS), "--dest_path_prefix", f"{directory}/node")
        scheduler = Daemon("dispy.sharing.cli", "--node", "127.0.0.1", "--dest_path_prefix", f"{directory}/scheduler")
        with node:
            for _ in range(options.repeats):
                figures["dispy"].append(of_dispy(options.jobs, options.trips))
                figures["dispy, durable"].append(of_dispy(options.jobs, options.trips, durable=True))
                figures["ProcessPoolExecutor"].append(of_executor(options.jobs // 5, options.trips))
            if options.shared:
                with scheduler:
                    figures["dispyscheduler"] = [
                        of_dispy(options.jobs, options.trips, shared=True) for _ in range(options.repeats)
                    ]
    if options.original is not None:
        figures["original dispy"] = [of_original(options.original, 300, 100) for _ in range(options.repeats)]
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print_table(figures)


def print_table(figures: dict[str, list[dict[str, float]]]) -> None:
    columns = [
        ("jobs/s", "jobs_per_second", 1, 0),
        ("p50 ms", "p50", 1e3, 2),
        ("p99 ms", "p99", 1e3, 2),
        ("start s", "start", 1, 3),
    ]
    print(f"{'':22}" + "".join(f"{name:>30}" for name, *_ in columns))
    base = statistics.median(run["jobs_per_second"] for run in figures["dispy"])
    for system, runs in figures.items():
        cells = []
        for _, key, scale, digits in columns:
            values = sorted(run[key] * scale for run in runs)
            middle = statistics.median(values)
            cells.append(f"{middle:,.{digits}f} ({values[0]:,.{digits}f} … {values[-1]:,.{digits}f})".rjust(30))
        ratio = base / statistics.median(run["jobs_per_second"] for run in runs)
        print(f"{system:22}" + "".join(cells) + (f"   dispy is {ratio:.1f} × as fast" if ratio != 1 else ""))


if __name__ == "__main__":
    main()
