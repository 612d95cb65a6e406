"""A fork server with one recorder as its handler, for tests that run real jobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dispy.node import linux
from dispy.node.cgroups import Groups
from dispy.node.replies import ForkServerSpec, Reply, WorkerDeath
from dispy.node.workers import ForkServer
from dispy.shipping import dumps_arguments, pack

DEADLINE = 30.0


class Recorder:
    """Notes what it is told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.forked: dict[int, int] = {}
        self.replies: dict[int, Reply] = {}
        self.order: list[str] = []
        self.deaths: list[WorkerDeath] = []
        self.recalled: list[tuple[int, int]] = []
        self.server_death = ""
        self.directories_gone = 0
        self._changed = asyncio.Event()

    def worker_forked(self, worker: int, pid: int) -> None:
        self.forked[worker] = pid
        self._changed.set()

    def worker_answered(self, worker: int, replies: list[Reply]) -> None:
        for reply in replies:
            assert reply.sequence not in self.replies, "answered twice"
            self.replies[reply.sequence] = reply
        self.order.append("answered")
        self._changed.set()

    def worker_died(self, worker: int, death: WorkerDeath) -> None:
        self.deaths.append(death)
        self.order.append("died")
        self._changed.set()

    def jobs_recalled(self, worker: int, first: int, before: int) -> None:
        self.recalled.append((first, before))
        self._changed.set()

    def directory_gone(self) -> None:
        self.directories_gone += 1

    def fork_server_died(self, cause: str) -> None:
        self.server_death = cause
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


class Running:
    """A computation being served; worker 1 is there, others can be forked."""

    def __init__(self, server: ForkServer, seen: Recorder, shipment: Any) -> None:
        self.server = server
        self.seen = seen
        self.shipment = shipment
        self.sequence = 0
        self.worker = 1

    def submit(self, *args: object, **kwargs: object) -> int:
        return self.submit_with(None, *args, **kwargs)

    def submit_with(self, extra: dict[str, object] | None, *args: object, **kwargs: object) -> int:
        """Submit with what the job needs beyond its arguments."""
        self.sequence += 1
        extras = {} if extra is None else {self.sequence: extra}
        self.server.feed(self.worker, [(self.sequence, dumps_arguments(self.shipment, args, kwargs))], extras)
        return self.sequence

    async def reply(self, sequence: int) -> Reply:
        await self.seen.until(lambda: sequence in self.seen.replies or bool(self.seen.deaths))
        assert sequence in self.seen.replies, self.seen.deaths
        return self.seen.replies[sequence]

    async def run(self, *args: object, **kwargs: object) -> Reply:
        return await self.reply(self.submit(*args, **kwargs))

    async def death(self) -> WorkerDeath:
        await self.seen.until(lambda: bool(self.seen.deaths))
        return self.seen.deaths[0]


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    computation: Any,
    *,
    python: str = sys.executable,
    limit: int = 1 << 20,
    workers: int = 1,
    growth: int = 0,
    groups: Groups | None = None,
    **options: Any,
) -> AsyncIterator[Running]:
    """Serve a function or program in a folder; everything is gone afterwards."""
    shipment = pack(computation, (), **options)
    for file in shipment.files:
        target = folder / file.dest
        if target != file.path:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.path.read_bytes())
            target.chmod(file.path.stat().st_mode)
    spec = ForkServerSpec(
        python=python,
        cwd=folder,
        env=dict(os.environ),
        kind=shipment.kind,
        name=shipment.name,
        code=shipment.code,
        program=shipment.program,
        job_names={"dispy_node_name": "here", "dispy_job_path": str(folder)},
        output_limit=limit,
        growth_limit=growth,
        has_setup="setup" in options,
        groups=groups,
    )
    seen = Recorder()
    server = ForkServer(spec, seen)
    async with asyncio.timeout(DEADLINE):
        await server.start()
    try:
        for number in range(1, workers + 1):
            server.fork(number)
        await seen.until(lambda: len(seen.forked) == workers)
        yield Running(server, seen, shipment)
    finally:
        server.kill()
        async with asyncio.timeout(DEADLINE):
            await server.wait_ended()


def result(reply: Reply) -> Any:
    assert reply.ending == 0, text(reply, "error")
    return pickle.loads(whole(reply)[: reply.result_size])


def whole(reply: Reply) -> bytes:
    if reply.fd is None:
        return reply.body
    size = os.fstat(reply.fd).st_size
    data = os.pread(reply.fd, size, 0)
    os.close(reply.fd)
    reply.fd, reply.body = None, data
    return data


def text(reply: Reply, part: str) -> str:
    body = whole(reply)
    at = 0
    for name in ("result", "stdout", "stderr", "error"):
        size = getattr(reply, f"{name}_size")
        if name == part:
            return body[at : at + size].decode(errors="replace")
        at += size
    raise AssertionError(part)


async def when(holds: Callable[[], bool], pause: float = 0.002) -> None:
    """Return when something in another process holds."""
    async with asyncio.timeout(DEADLINE):
        while True:
            if holds():
                return
            await asyncio.sleep(pause)


async def gone(*pids: int) -> None:
    """Return when none of these processes runs; a zombie does not run."""
    await when(lambda: all(map(linux.is_gone, pids)))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def other_python(version: str) -> str:
    """A working interpreter of this version, else the test is skipped."""
    found = shutil.which(f"python{version}")
    if found is None:
        pytest.skip(f"no python{version} on PATH")
    shown = subprocess.run(
        [found, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, check=False
    )
    if shown.returncode:
        pytest.skip(f"{found} does not run: {shown.stderr.strip()}")
    return shown.stdout.strip()
