"""What a fork server is started with, what it and its workers answer, and who is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from msgspec import Struct, field

from dispy.errors import DispyError
from dispy.model import OUTPUT_LIMIT
from dispy.node.account import Account
from dispy.node.cgroups import Groups


class SetupFailed(DispyError):
    """A computation could not be loaded, or its setup failed."""

    def __init__(self, reason: str, trace: str = "", *, final: bool = True, killed: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.trace = trace
        self.final = final
        """Whether it would fail again; else the machine had not enough of something."""
        self.killed = killed
        """Whether a signal has ended its process, which says nothing of how the next start goes."""


class ForkServerSpec(Struct, frozen=True):
    """What a fork server is started with."""

    python: str
    """Path of the interpreter."""
    cwd: Path
    """The computation's directory."""
    env: Mapping[str, str]
    kind: str
    """`function` or `program`."""
    name: str
    code: bytes | None = None
    program: str = ""
    """Relative to `cwd`, or absolute."""
    interpreter: str = ""
    """Command that runs the program; empty: itself, or for `*.py` this Python."""
    setup_args: bytes = b""
    job_names: Mapping[str, str] = field(default_factory=dict)
    output_limit: int = OUTPUT_LIMIT
    has_setup: bool = False
    isolate: bool = False
    """A worker runs one job and ends."""
    folders: tuple[str, ...] = ()
    """Where dispy and cloudpickle are found; empty: where this process has them."""
    setup_in: str = "auto"
    """`node`, `worker`, or `auto`: as `node`, but in workers where the process could not be forked after setup."""
    nice: int = 0
    """Niceness of everything below it."""
    account: Account | None = None
    """Who it runs as; None: as the daemon."""
    made_by_init: str = ""
    """File with what the node owner's init file made for jobs; empty: none."""
    client_shutdown: bool = False
    """Whether its cleanup function may end the node."""
    growth_limit: int = 0
    """Bytes by which the memory of a worker may have grown between two jobs before it is replaced; 0: any."""
    groups: Groups | None = None
    """Where workers of jobs with a memory limit are put; None: they are only sampled."""


class Reply(Struct):
    """How a worker's attempt ended; the body is result, stdout, stderr and error text, one after another."""

    sequence: int
    ending: int
    started_at: float
    ended_at: float
    result_size: int
    stdout_size: int
    stderr_size: int
    error_size: int
    body: bytes
    fd: int | None = None
    """A memfd with the body instead, when it is large, or the file that a job sends; the receiver closes it."""
    answer: int | None = None
    """With a file: the socket over which the job waits for an answer; the receiver closes it."""


class WorkerDeath(Struct):
    """A worker has ended; all that it had answered was delivered before."""

    running: int
    """Sequence of the job that it had claimed and not answered; 0 = none. Jobs behind it have not started."""
    cause: str
    """For people: `exit code 3`, `killed by SIGSEGV (segmentation fault)`, …"""
    stdout: bytes = b""
    stderr: bytes = b""
    """What the running job had written, or the worker itself before its first one."""
    started: float = 0.0
    """Wall clock at which the job was seen running, or at which the worker was fed it; 0 without one."""
    limited: bool = False
    """A limit on output or memory ended it: the attempt's ending is LIMITED, not DIED."""
    expected: bool = False
    """It ended as it was asked to, or because a job left it unfit for another: nothing went wrong."""
    setup_failed: bool = False
    """Its own run of setup failed; stderr has the traceback."""
    exhausted: bool = False
    """It was never started, as the machine had nothing left for it."""


class ForkServerHandler(Protocol):
    """Who is told; every method is called on the event loop."""

    def worker_forked(self, worker: int, pid: int) -> None:
        """It runs and takes jobs."""

    def worker_answered(self, worker: int, replies: list[Reply]) -> None:
        """All that one read brought, in order."""

    def worker_spoke(self, worker: int, reply: Reply) -> None:
        """Its running job has said something (PROVISIONAL, SENT_FILE) and goes on."""

    def worker_died(self, worker: int, death: WorkerDeath) -> None:
        """It is gone, with everything that it had started."""

    def jobs_recalled(self, worker: int, first: int, before: int) -> None:
        """The jobs first <= sequence < before have not started and will not."""

    def directory_gone(self) -> None:
        """A job has removed the directory; told before the job's answer is."""

    def fork_server_died(self, cause: str) -> None:
        """It is gone, with everything below it; `worker_died` was called for each worker before."""
