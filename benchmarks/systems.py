"""dispy and its peers behind one small face, so that all of them are measured by the same code.

Imported by `driver.py` in the environment of one system: the standard library here, everything else where it is used.
Every system has the same number of worker processes, and speaks on loopback only.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

READY_TIMEOUT = 60.0


class System:
    """One system: `prepare` starts what a user would have running already, `open` is what a program does."""

    runs_programs = False
    """Whether a program can be opened in place of a function."""
    is_lasting = True
    """Whether there can be further jobs when the first have ended."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.workers = workers
        self.ends = contextlib.ExitStack()

    def prepare(self) -> None:
        """Start daemons."""

    def open(self, function: Any) -> None:
        """Make what jobs are submitted to."""

    def submit(self, *arguments: Any) -> Any:
        """One job."""
        raise NotImplementedError

    def result(self, handle: Any) -> Any:
        """Wait for its result."""
        return handle.result()

    def map(self, values: Iterable[Any]) -> list[Any]:
        """Call the function for all values, as is best for many short calls."""
        raise NotImplementedError

    def close(self) -> None:
        """End what `open` has made."""

    def end(self) -> None:
        """End what `prepare` has started."""
        self.ends.close()


class Dispy(System):
    """A cluster on one node of this machine."""

    runs_programs = True
    scheduler = False
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def prepare(self) -> None:
        base = free_base_port()
        os.environ.update(DISPY_INTERFACES="lo", DISPY_SECRET=secrets.token_hex(16), DISPY_PORT=str(base))
        for name in ("STATE", "CACHE", "CONFIG", "DATA"):
            os.environ[f"XDG_{name}_HOME"] = str(self.folder / name.lower())
        node = ["-m", "dispy.node", "--daemon", "-c", str(self.workers)]
        self._daemon(*node, "--dest_path_prefix", str(self.folder / "node"))
        if self.scheduler:
            scheduler = ["-m", "dispy.sharing.cli", "--daemon", "--node", "127.0.0.1"]
            self._daemon(*scheduler, "--dest_path_prefix", str(self.folder / "scheduler"))

    def _daemon(self, *arguments: str) -> None:
        log = self.folder / f"{arguments[1]}.log"
        start(self.ends, [sys.executable, *arguments], log, "ready")

    def open(self, function: Any, **others: Any) -> None:
        import dispy

        if self.scheduler:
            self.cluster: Any = dispy.SharedJobCluster(function, **self.settings, **others)
        else:
            self.cluster = dispy.JobCluster(function, nodes=["127.0.0.1"], **self.settings, **others)

    def submit(self, *arguments: Any) -> Any:
        return self.cluster.submit(*arguments)

    def result(self, handle: Any) -> Any:
        result = handle()
        if handle.exception is not None:
            raise SystemExit(f"a job failed: {handle.exception}")
        return result

    def map(self, values: Iterable[Any]) -> list[Any]:
        return list(self.cluster.map(values))

    def close(self) -> None:
        self.cluster.close(terminate=True)
        self.cluster.shutdown()


class DurableDispy(Dispy):
    """The same, whose jobs survive the program."""

    settings = {"durable": True}  # noqa: RUF012 - never changed


class SharedDispy(Dispy):
    """The same through `dispyscheduler`, where all jobs are on the disk."""

    scheduler = True


class Executor(System):
    """`concurrent.futures.ProcessPoolExecutor`."""

    def open(self, function: Any) -> None:
        self.function, self.pool = function, ProcessPoolExecutor(self.workers)

    def submit(self, *arguments: Any) -> Any:
        return self.pool.submit(self.function, *arguments)

    def map(self, values: Iterable[Any]) -> list[Any]:
        return list(self.pool.map(self.function, values, chunksize=10_000))

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class Pool(System):
    """`multiprocessing.Pool`."""

    def open(self, function: Any) -> None:
        self.function, self.pool = function, multiprocessing.Pool(self.workers)

    def submit(self, *arguments: Any) -> Any:
        return self.pool.apply_async(self.function, arguments)

    def result(self, handle: Any) -> Any:
        return handle.get()

    def map(self, values: Iterable[Any]) -> list[Any]:
        return self.pool.map(self.function, values, chunksize=10_000)  # the best of 100 to 250,000 here

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


class Xargs(System):
    """`xargs -P`, which runs programs."""

    runs_programs = True
    is_lasting = False

    def open(self, function: Any) -> None:
        command = ["xargs", "-P", str(self.workers), "-n", "1", function]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    def submit(self, *arguments: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{arguments[0]}\n")

    def result(self, handle: Any) -> Any:
        """Of all of them together."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        return self.process.wait()


class Dask(System):
    """`dask.distributed` with a scheduler and workers that run already."""

    def prepare(self) -> None:
        from distributed import LocalCluster

        self.cluster = LocalCluster(
            n_workers=self.workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        )
        self.ends.callback(self.cluster.close)

    def open(self, function: Any) -> None:
        from distributed import Client

        self.function, self.client = function, Client(self.cluster.scheduler_address)

    def submit(self, *arguments: Any) -> Any:
        return self.client.submit(self.function, *arguments, pure=False)

    def map(self, values: Iterable[Any]) -> list[Any]:
        return self.client.gather(self.client.map(self.function, list(values), pure=False, batch_size=1000))

    def close(self) -> None:
        self.client.close()


class Ray(System):
    """Ray with a head node that runs already."""

    def prepare(self) -> None:
        os.environ.update(RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_DEDUP_LOGS="0")
        self.port = free_base_port()
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
        command += ["--node-ip-address=127.0.0.1", f"--port={self.port}", f"--num-cpus={self.workers}"]
        command += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={self.folder}/ray"]
        start(self.ends, command, self.folder / "ray.log", "--block")

    def open(self, function: Any) -> None:
        import ray

        self.ray = ray
        ray.init(f"127.0.0.1:{self.port}", logging_level="error", log_to_driver=False)
        self.remote = ray.remote(function)

    def submit(self, *arguments: Any) -> Any:
        return self.remote.remote(*arguments)

    def result(self, handle: Any) -> Any:
        return self.ray.get(handle)

    def map(self, values: Iterable[Any]) -> list[Any]:
        return self.ray.get([self.remote.remote(value) for value in values])

    def close(self) -> None:
        self.ray.shutdown()


class IPyParallel(System):
    """ipyparallel with a controller and engines that run already."""

    def prepare(self) -> None:
        import ipyparallel

        os.environ["IPYTHONDIR"] = str(self.folder / "ipython")
        self.cluster = ipyparallel.Cluster(n=self.workers, log_level=40)
        self.cluster.start_cluster_sync()
        self.ends.callback(self.cluster.stop_cluster_sync)

    def open(self, function: Any) -> None:
        self.function, self.client = function, self.cluster.connect_client_sync()
        self.client.wait_for_engines(self.workers, timeout=READY_TIMEOUT, interactive=False)
        self.view = self.client.load_balanced_view()

    def submit(self, *arguments: Any) -> Any:
        return self.view.apply_async(self.function, *arguments)

    def result(self, handle: Any) -> Any:
        return handle.get()

    def map(self, values: Iterable[Any]) -> list[Any]:
        return list(self.view.map_sync(self.function, list(values), chunksize=10_000))

    def close(self) -> None:
        self.client.close()


class Original(System):
    """dispy 4.15 from PyPI."""

    runs_programs = True

    def prepare(self) -> None:
        binary, self.port = Path(sys.executable).parent, free_base_port()
        command = [sys.executable, "-u", str(binary / "dispynode.py"), "-d", "-i", "127.0.0.1", "-c", str(self.workers)]
        command += ["--daemon", "--clean", "--dest_path_prefix", str(self.folder / "node")]
        command += ["--dispy_port", str(self.port)]
        start(self.ends, command, self.folder / "node.log", "TCP server")

    def open(self, function: Any, **others: Any) -> None:
        import dispy

        self.cluster: Any = dispy.JobCluster(
            function,
            nodes=["127.0.0.1"],
            host="127.0.0.1",
            dispy_port=self.port,
            loglevel=dispy.logger.CRITICAL,
            **others,
        )

    def submit(self, *arguments: Any) -> Any:
        return self.cluster.submit(*arguments)

    def result(self, handle: Any) -> Any:
        result = handle()
        if handle.exception is not None:
            raise SystemExit(f"a job failed: {handle.exception}")
        return result

    def close(self) -> None:
        self.cluster.close(terminate=True)


SYSTEMS: dict[str, Callable[[Path, int], System]] = {
    "dispy": Dispy,
    "dispy, durable": DurableDispy,
    "dispyscheduler": SharedDispy,
    "ProcessPoolExecutor": Executor,
    "multiprocessing.Pool": Pool,
    "xargs": Xargs,
    "dask.distributed": Dask,
    "Ray": Ray,
    "ipyparallel": IPyParallel,
    "dispy 4.15": Original,
}


@contextlib.contextmanager
def prepared(name: str, folder: Path, workers: int) -> Iterator[System]:
    """A system that can be opened."""
    system = SYSTEMS[name](folder, workers)
    try:
        system.prepare()
        yield system
    finally:
        system.end()


def start(ends: contextlib.ExitStack, command: list[str], log: Path, word: str) -> None:
    """Start a daemon in a process group of its own, and wait until its output has a word."""
    with log.open("w") as output:
        process = subprocess.Popen(
            # no session of its own: kernels share CPUs out among these, and workers of most peers have none either
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    ends.callback(_stop, process)
    deadline = time.monotonic() + READY_TIMEOUT
    while word not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{' '.join(command)} was not ready: {log.read_text(errors='replace')[-300:]}")
        time.sleep(0.01)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):  # some hang on their way out
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_base_port() -> int:
    """A port that is free together with the two above it."""
    while True:
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            one.bind(("127.0.0.1", 0))
            base: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", base + 1))
                three.bind(("127.0.0.1", base + 2))
            except (OSError, OverflowError):
                continue
            return base
