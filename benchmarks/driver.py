"""Measures one thing of one system, in the environment of that system; `tables.py` says what there is to measure.

    python benchmarks/driver.py SYSTEM MEASURE '{"workers": 2, "repeats": 3, …}' FILE

writes the figures of each repeat into FILE: a JSON list of objects; times in seconds, sizes in bytes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from systems import System, prepared


def nothing(number):
    return number


def square(number):
    return number * number


def length(data):
    return len(data)


def make_bytes(size):
    return b"r" * size


def size_of_file(name):
    import os

    return os.path.getsize(name)


def gated(what):
    """Wait for a file, or return at once."""
    import os
    import time

    while isinstance(what, str) and not os.path.exists(what):
        time.sleep(0.01)
    return what


def run_program(number):
    import subprocess

    return subprocess.call(["/bin/true", str(number)])


def jobs(system: System, *, jobs: int, trips: int, **_: Any) -> dict[str, float]:
    """Jobs a second, submitted one by one; the round trip of one; from opening to the first result."""
    began = time.perf_counter()
    system.open(nothing)
    system.result(system.submit(0))
    start = time.perf_counter() - began
    _all(system, min(jobs // 5, 2000))
    rate = jobs / _all(system, jobs)
    times = []
    for number in range(trips):
        began = time.perf_counter()
        system.result(system.submit(number))
        times.append(time.perf_counter() - began)
    times.sort()
    quantiles = {"p50": times[len(times) // 2], "p99": times[int(len(times) * 0.99)]}
    return {"jobs_per_second": rate, **quantiles, "start": start}


def _all(system: System, count: int) -> float:
    began = time.perf_counter()
    results = _results(system, [system.submit(number) for number in range(count)])
    seconds = time.perf_counter() - began
    if results != list(range(count)):
        raise SystemExit("a result is wrong")
    return seconds


def _results(system: System, handles: list[Any]) -> list[Any]:
    return [system.result(handle) for handle in handles]


def data(system: System, *, size: int, tries: int, **_: Any) -> dict[str, float]:
    """A large argument and its length back; a large result."""
    argument, result = [], []
    large = os.urandom(size)
    for function, value, times in ((length, large, argument), (make_bytes, size, result)):
        system.open(function)
        system.result(system.submit(b"" if function is length else 1))
        for _ in range(tries):
            began = time.perf_counter()
            got = system.result(system.submit(value))
            times.append(time.perf_counter() - began)
            if (got if function is length else len(got)) != size:
                raise SystemExit("a result is wrong")
        if function is length:
            system.close()
    return {"argument": min(argument), "result": min(result)}


def map_calls(system: System, *, calls: int, **_: Any) -> dict[str, float]:
    """Calls of a function that takes next to nothing."""
    system.open(square)
    system.map(range(min(calls, 1000)))
    began = time.perf_counter()
    results = system.map(range(calls))
    seconds = time.perf_counter() - began
    if results[-1] != (calls - 1) ** 2 or len(results) != calls:
        raise SystemExit("a result is wrong")
    return {"calls_per_second": calls / seconds}


def programs(system: System, *, programs: int, **_: Any) -> dict[str, float]:
    """Runs of /bin/true."""
    system.open("/bin/true" if system.runs_programs else run_program)
    if system.is_lasting:
        _results(system, [system.submit(number) for number in range(system.workers * 4)])
    began = time.perf_counter()
    codes = _results(system, [system.submit(number) for number in range(programs)])
    seconds = time.perf_counter() - began
    if any(codes):
        raise SystemExit("a program failed")
    return {"programs_per_second": programs / seconds}


def files(system: System, *, size: int, folder: str, **_: Any) -> dict[str, float]:
    """A file in `depends`, until a job has seen it; the same file for the second cluster."""
    path = Path(folder) / "large"
    with path.open("wb") as file:
        for _ in range(max(size >> 20, 1)):
            file.write(os.urandom(min(size, 1 << 20)))
    size = path.stat().st_size
    os.chdir(folder)
    times = []
    for number in range(2):
        if number:
            system.close()
        began = time.perf_counter()
        system.open(size_of_file, depends=[str(path)])  # type: ignore[call-arg]
        if system.result(system.submit("large")) != size:
            raise SystemExit("the file is not there")
        times.append(time.perf_counter() - began)
    return {"bytes_per_second": size / times[0], "second_cluster": times[1]}


def memory(system: System, *, jobs: int, folder: str, **_: Any) -> dict[str, float]:
    """Memory of this process for each queued job, and the time to submit one, while all workers are busy."""
    gate = str(Path(folder) / f"gate{time.monotonic_ns()}")
    system.open(gated)
    system.result(system.submit(0))
    held = [system.submit(gate) for _ in range(system.workers * 2)]
    before, began = _memory(), time.perf_counter()
    queued = [system.submit(number) for number in range(jobs)]
    seconds = time.perf_counter() - began
    time.sleep(0.5)  # what was submitted is on its way through the threads
    used = _memory() - before
    Path(gate).touch()
    began = time.perf_counter()
    _results(system, [*held, *queued])
    return {
        "bytes_per_job": used / jobs,
        "submit": seconds / jobs,
        "end": (time.perf_counter() - began) / jobs,
    }


def growth(system: System, *, counts: list[int], warm: int, part: float, **_: Any) -> dict[str, float]:
    """Seconds for each job where so many (of the counts, this part) are queued at once."""
    system.open(nothing)
    _all(system, warm)
    amounts = {count: max(int(count * part), 1) for count in counts}
    return {f"at_{count}": _all(system, amount) / amount for count, amount in amounts.items()}


def _memory() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


MEASURES = {
    "jobs": jobs,
    "data": data,
    "map": map_calls,
    "programs": programs,
    "files": files,
    "memory": memory,
    "growth": growth,
}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    name, measure, given, path = sys.argv[1:]
    options = json.loads(given)
    with tempfile.TemporaryDirectory(prefix="dispy-benchmark-", ignore_cleanup_errors=True) as folder:
        repeats, runs = options.pop("repeats"), []
        with prepared(name, Path(folder), options.pop("workers")) as system:
            for _ in range(repeats):
                runs.append(MEASURES[measure](system, folder=folder, **options))
                system.close()
        Path(path).write_text(json.dumps(runs))


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # threads of some systems do not end
