"""A crowd at one dispyscheduler: many nodes that join, many programs, many jobs, all on this machine.

    python benchmarks/scale.py                              # 200 nodes of one CPU, 50 programs, 100,000 jobs
    python benchmarks/scale.py --nodes 20 --clients 5 --jobs 10000
    python benchmarks/scale.py --join                       # 200 nodes that join one program, nothing else
    python benchmarks/scale.py --quick                      # tiny amounts: whether it works
    python benchmarks/scale.py --json                       # figures for a program

What is printed stands in the order of time: jobs are queued where no node is, their program ends them, nodes join,
programs run their jobs. The longest callback is the CPU time of the longest turn of one thing in the scheduler's event
loop, with the garbage collections in it: others are not heard for so long (0: none took 10 ms). A link that does
nothing else asks the scheduler a small question again and again: the longest wait for an answer bounds how long its
event loop was busy with other things (or the machine had no CPU for it). The memory of a queued job is that of the
scheduler with all jobs queued and no node there, less that with none, divided by their number.

With --join the daemons dial a program with one JobCluster: seconds from the first one's start until the last has link
and lease and the computation is open there, the CPU time of a daemon until then, and the processes below them (a fork
server starts with the first job); then one job for each CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from running import NO_FIGURES

from dispy.model import ComputationId, ProcessId, Role
from dispy.secrets import find_credentials, new_secret
from dispy.wire.inquiries import AskPool, Explained, ExplainSubmitted, PoolTold
from dispy.wire.link import Dialler, Link, LinkSettings
from dispy.wire.messages import AnyMessage

PROGRAM = """
import sys, time
import dispy
def nothing(number):
    return number
jobs = int(sys.argv[1])
cluster = dispy.SharedJobCluster(nothing, scheduler_host="127.0.0.1")
submitted = [cluster.submit(number) for number in range(jobs)]
assert sum(job() for job in submitted) == jobs * (jobs - 1) // 2, "a result is wrong"
cluster.close()
"""
QUEUER = """
import sys, time
import dispy
def nothing(number):
    return number
cluster = dispy.SharedJobCluster(nothing, scheduler_host="127.0.0.1")
for number in range(int(sys.argv[1])):
    cluster.submit(number)
sys.stdin.readline()
cluster.close(terminate=True)
"""
JOINED = """
import json, sys, time
import dispy
def nothing(number):
    return number
nodes = int(sys.argv[1])
cluster = dispy.JobCluster(nothing)
print("listening", flush=True)
began = time.perf_counter()
while len(cluster.status().nodes) < nodes:
    time.sleep(0.02)
print(time.perf_counter() - began, flush=True)
sys.stdin.readline()
began = time.perf_counter()
assert sum(job() for job in [cluster.submit(number) for number in range(nodes)]) == nodes * (nodes - 1) // 2
print(time.perf_counter() - began, flush=True)
cluster.close(terminate=True)
"""
METERED = """
import asyncio, sys, time
from dispy.sharing.cli import main
run, told = asyncio.Handle._run, open(sys.argv.pop(1), "w", buffering=1)
def metered(handle):
    what, began = handle._callback, time.thread_time()
    try:
        return run(handle)
    finally:
        seconds = time.thread_time() - began
        if seconds > 0.01:
            task = getattr(what, "__self__", None)
            name = task.get_coro().__qualname__ if isinstance(task, asyncio.Task) else what
            print(f"{seconds:.3f} {name}", file=told)
asyncio.Handle._run = metered
sys.exit(main())
"""
"""A scheduler that tells what kept its loop for more than 10 ms."""
QUESTION_INTERVAL = 0.02
START_TIMEOUT = 60.0
SCHEDULER = "scheduler"
BUGS = re.compile(r"Traceback \(most recent call last\):|exception was never retrieved")
"""What no log should have in it."""
TAIL = 20
"""Lines that are shown of a log."""
UNITS = {
    "bytes_per_queued_job": ("bytes", 0),
    "jobs_per_second": ("jobs/s", 0),
    "failed_programs": ("", 0),
    "lost_nodes": ("", 0),
    "lost_links": ("", 0),
    "tracebacks": ("", 0),
    "processes_below_daemons": ("", 0),
}
"""Of figures that are no seconds, with their digits."""
QUICK = {"nodes": 2, "clients": 1, "jobs": 20}
"""Amounts that only show that it works."""


class Watcher:
    """A link that asks the scheduler small questions, and what it has found out."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.longest = 0.0
        self.lost_links = 0
        self.opened = asyncio.Event()
        self._answers: asyncio.Queue[AnyMessage | None] = asyncio.Queue()

    def link_opened(self, link: Link) -> None:
        self.link = link
        self.opened.set()

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        for message, _ in messages:
            if isinstance(message, (Explained, PoolTold)):
                self._answers.put_nowait(message)

    def link_suspected(self, link: Link) -> None:
        print("the scheduler has been silent for a while", file=sys.stderr)

    def link_recovered(self, link: Link) -> None:
        pass

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        print(f"the link to the scheduler was lost: {cause}", file=sys.stderr)
        self.lost_links += 1
        self.opened.clear()
        self._answers.put_nowait(None)

    async def ask(self, question: AnyMessage) -> Any:
        """Ask until there is an answer, and note how long it took; a link that is lost is dialled again meanwhile."""
        began = time.perf_counter()
        answer = None
        while answer is None:
            assert self.link is not None
            self.link.send(question)
            answer = await self._answers.get()
            await self.opened.wait()
        self.longest = max(self.longest, time.perf_counter() - began)
        return answer

    async def watch(self, over: Any) -> float:
        """Ask until `over()`; returns the longest wait of that time."""
        self.longest = 0.0
        while not over():
            await self.ask(ExplainSubmitted(1, ComputationId("0" * 32), 0))
            await asyncio.sleep(QUESTION_INTERVAL)
        return self.longest


class Crowd:
    """The processes on this machine."""

    def __init__(self, folder: Path, logs: Path | None = None) -> None:
        """`logs` is where they are kept."""
        self.folder = folder
        self.base = _free_ports()
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("DISPY_")} | {
            "DISPY_INTERFACES": "lo",
            "DISPY_PORT": str(self.base),
            "DISPY_SECRET": new_secret(),
            "DISPY_LOCAL": "never",
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_CONFIG_HOME": str(folder / "config"),
        }
        self.processes: list[subprocess.Popen[str]] = []
        self.told = folder / "callbacks"
        self.logs = logs or folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._read = 0

    def start(
        self, name: str, *command: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        """A process in a session of its own, as services and shells are: kernels share CPUs out among sessions.

        What it writes to its standard error goes to a file of that name in `logs`.
        """
        with (self.logs / name).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=self.environment,
                stdin=stdin,
                stdout=stdout,
                stderr=log,
                text=True,
                start_new_session=True,
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    def scheduler(self) -> subprocess.Popen[str]:
        """The scheduler."""
        folder = str(self.folder / "scheduler")
        return self.start(SCHEDULER, "-c", METERED, str(self.told), "--daemon", "--dest_path_prefix", folder)

    def tail(self, name: str) -> str:
        """The last lines of what a process wrote to its standard error."""
        return "\n".join((self.logs / name).read_text(errors="replace").splitlines()[-TAIL:])

    def tracebacks(self) -> int:
        """How many tracebacks are in all logs; one of each kind is shown."""
        count, shown = 0, set[str]()
        for log in sorted(self.logs.iterdir()):
            text = log.read_text(errors="replace")
            for found in BUGS.finditer(text):
                count += 1
                lines = text[found.start() :].splitlines()[:TAIL]
                last = next((line for line in lines[1:] if not line.startswith(" ")), "")
                if last not in shown:
                    shown.add(last)
                    print(f"{log.name}:", *lines, sep="\n", file=sys.stderr)
        return count

    def longest_callback(self) -> float:
        """CPU seconds of the longest callback of the scheduler's loop since it was asked last; 0: none was long."""
        with self.told.open() as file:
            file.seek(self._read)
            lines = file.read().splitlines()
            self._read = file.tell()
        seconds, _, what = max((line.partition(" ") for line in lines), default=("0", "", ""))
        if what:
            print(f"a callback of the scheduler's loop took {seconds} s: {what}", file=sys.stderr)
        return float(seconds)

    def node(self, number: int) -> subprocess.Popen[str]:
        """A node of one CPU that joins."""
        folder, join = str(self.folder / f"node{number}"), f"127.0.0.1:{self.base}"
        name = f"node{number}"
        command = ("-m", "dispy.node", "--daemon", "-c", "1", "--name", name, "--join", join)
        return self.start(name, *command, "--dest_path_prefix", folder)

    def end(self) -> None:
        """End all of them, the youngest first."""
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def measure(crowd: Crowd, nodes: int, clients: int, jobs: int) -> dict[str, float]:
    """All figures; times in seconds, memory in bytes."""
    figures: dict[str, float] = {}
    scheduler = crowd.scheduler()
    watcher = Watcher()
    dialler = await _dial(crowd, watcher)
    memory = psutil.Process(scheduler.pid).memory_info
    queuer = crowd.start("queuer", "-c", QUEUER, str(jobs), stdin=subprocess.PIPE)
    empty = memory().rss
    crowd.longest_callback()  # it has started
    longest, began = 0.0, time.perf_counter()
    while True:
        told: PoolTold = await watcher.ask(AskPool(1))
        if sum(cluster.waiting for cluster in told.status.clusters) >= jobs:
            break
        longest = max(longest, await watcher.watch(_for(0.2)))
    figures["queuing"] = time.perf_counter() - began
    figures["bytes_per_queued_job"] = (memory().rss - empty) / jobs
    figures["longest_wait_while_queuing"] = longest
    figures["longest_callback_while_queuing"] = crowd.longest_callback()
    assert queuer.stdin is not None
    queuer.stdin.write("\n")
    queuer.stdin.close()
    figures["longest_wait_while_ending_jobs"] = await watcher.watch(lambda: queuer.poll() is not None)
    figures["longest_callback_while_ending_jobs"] = crowd.longest_callback()

    longest, began = 0.0, time.perf_counter()
    # not in this loop's thread: the watcher would be silent meanwhile, and be taken for dead
    starting = asyncio.create_task(asyncio.to_thread(lambda: [crowd.node(number) for number in range(nodes)]))
    while True:
        told = await watcher.ask(AskPool(1))
        if sum(node.state != "lost" for node in told.status.nodes) >= nodes:
            break
        longest = max(longest, await watcher.watch(_for(0.5)))
    await starting
    figures["joining"] = time.perf_counter() - began
    figures["longest_wait_while_joining"] = longest
    figures["longest_callback_while_joining"] = crowd.longest_callback()

    began = time.perf_counter()
    programs: list[subprocess.Popen[str]] = []

    def start(number: int) -> None:
        programs.append(crowd.start(f"program{number}", "-c", PROGRAM, str(jobs // clients)))

    starting = asyncio.create_task(asyncio.to_thread(lambda: [start(number) for number in range(clients)]))
    longest = await watcher.watch(lambda: starting.done() and all(each.poll() is not None for each in programs))
    figures["running"] = time.perf_counter() - began
    figures["jobs_per_second"] = jobs // clients * clients / figures["running"]
    figures["longest_wait_while_running"] = longest
    figures["longest_callback_while_running"] = crowd.longest_callback()
    failed = [number for number, program in enumerate(programs) if program.returncode]
    for number in failed[:1]:
        print(f"program {number} failed; its last words:", crowd.tail(f"program{number}"), sep="\n", file=sys.stderr)
    told = await watcher.ask(AskPool(1))
    figures["failed_programs"] = len(failed)
    figures["lost_nodes"] = sum(node.state == "lost" for node in told.status.nodes)
    figures["tracebacks"] = crowd.tracebacks()
    figures["lost_links"] = watcher.lost_links
    dialler.stop("measured")
    return figures


def measure_joining(crowd: Crowd, nodes: int) -> dict[str, float]:
    """What nodes cost that join a program and have nothing to do yet."""
    program = crowd.start("joined", "-c", JOINED, str(nodes), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdout.readline()
    daemons = [psutil.Process(crowd.node(number).pid) for number in range(nodes)]
    figures = {"until_all_have_link_and_lease": float(program.stdout.readline())}
    times = [sum(each.cpu_times()[:2]) for each in daemons]
    figures["cpu_seconds_of_a_daemon"] = sum(times) / nodes
    figures["processes_below_daemons"] = sum(len(each.children(recursive=True)) for each in daemons)
    program.stdin.write("\n")
    program.stdin.flush()
    figures["a_job_on_each_cpu"] = float(program.stdout.readline())
    return figures


def _for(seconds: float) -> Any:
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() > until


async def _dial(crowd: Crowd, watcher: Watcher) -> Dialler:
    credentials = find_credentials(secret=crowd.environment["DISPY_SECRET"])
    settings = LinkSettings(ProcessId(secrets.token_hex(16)), Role.CLIENT, "benchmark", credentials)
    failed: list[Exception] = []
    dialler = Dialler(
        "127.0.0.1",
        crowd.base + 2,
        settings=settings,
        handler=watcher,
        on_failure=lambda dialler, error: failed.append(error),
    )
    dialler.start()
    try:
        async with asyncio.timeout(START_TIMEOUT):
            await watcher.opened.wait()
    except TimeoutError:
        raise SystemExit(f"no scheduler: {failed[-1]}") from None
    return dialler


def _free_ports() -> int:
    for base in range(21000, 60000, 7):
        try:
            for port in (base, base + 1, base + 2):
                with socket.socket() as sock:
                    sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise SystemExit("no free ports")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--join", action="store_true", help="only nodes that join one program")
    parser.add_argument("--quick", action="store_true", help="tiny amounts, which only show that it works")
    parser.add_argument("--logs", type=Path, help="keep the logs of all processes in this directory")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
        print(NO_FIGURES, file=sys.stderr)
    compileall.compile_dir(
        Path(__file__).resolve().parents[1] / "src", quiet=1
    )  # else each daemon may compile it again
    with tempfile.TemporaryDirectory(prefix="dispy-scale-") as folder:
        crowd = Crowd(Path(folder), options.logs)
        try:
            if options.join:
                figures = measure_joining(crowd, options.nodes)
            else:
                figures = asyncio.run(measure(crowd, options.nodes, options.clients, options.jobs))
        except BaseException:
            for name in (log.name for log in crowd.logs.iterdir() if log.name in (SCHEDULER, "joined")):
                print(f"the last words of the {name}:", crowd.tail(name), sep="\n", file=sys.stderr)
            raise
        finally:
            crowd.end()
    if options.json:
        print(json.dumps({**vars(options), **figures}, default=str))
        return
    programs = "one program" if options.join else f"{options.clients} programs, {options.jobs:,} jobs"
    print(f"{options.nodes} nodes, {programs}")
    for name, value in figures.items():
        unit, digits = UNITS.get(name, ("s", 3))
        print(f"{name.replace('_', ' '):36} {value:12,.{digits}f} {unit}".rstrip())


if __name__ == "__main__":
    main()
