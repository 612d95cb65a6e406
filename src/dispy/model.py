"""The vocabulary that all rooms share: identities, states, and the structs that travel in messages.

Structs without behaviour. Those that exist once per job (`JobSpec`, `JobDone`) are arrays on the wire and are not
tracked by the garbage collector: they are what a run of a million jobs is made of.
"""

# No `from __future__ import annotations`: msgspec would compile each of these strings when it makes a decoder.
from enum import IntEnum, StrEnum
from typing import Final, NewType

import msgspec

ProcessId = NewType("ProcessId", str)
"""32 hexadecimal digits, drawn anew at every start of a process. That of a node daemon is its boot id."""
ComputationId = NewType("ComputationId", str)
"""32 hexadecimal digits, drawn by the client for each cluster."""
OUTPUT_LIMIT: Final = 16 << 20
"""Bytes that are kept of what a job writes to each of stdout and stderr."""


class Role(StrEnum):
    """What a process is on a link."""

    CLIENT = "client"
    SCHEDULER = "scheduler"
    NODE = "node"
    PEER = "peer"
    ADMIN = "admin"


class JobState(IntEnum):
    """Public states of a job, with the numbers that users of the original know."""

    Created = 5
    Running = 6
    ProvisionalResult = 7
    Cancelled = 8
    Terminated = 9
    Abandoned = 10
    Finished = 11


class Ending(IntEnum):
    """How an attempt ended, as the node tells it."""

    FINISHED = 0
    """The function returned, or the program exited (with any code)."""
    RAISED = 1
    """The function raised; the error text is the traceback."""
    DIED = 2
    """The worker process ended under the job; the error text names exit code or signal and the last stderr."""
    NOT_STARTED = 3
    """Cancelled before it had started."""
    INTERRUPTED = 4
    """Cancelled while it ran."""
    LIMITED = 5
    """A limit (time, memory, output) bit; the error text has the figures."""
    UNSENDABLE = 6
    """The function returned what cannot be pickled; the error text says what."""
    PROVISIONAL = 7
    """Not an end: an interim result of a job that goes on."""
    NO_ROOM = 9
    """It did not start: the node cannot store what it needs; the error text says what and why."""


UNSTARTED: Final = frozenset({Ending.NOT_STARTED, Ending.NO_ROOM})
"""Endings of attempts that have not begun: the job may run elsewhere."""


class BlobRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Names a content that can be fetched from the other side of a link."""

    name: bytes
    """32 bytes: the SHA-256 of the content if `hashed`, else random."""
    size: int
    hashed: bool = True


class BlobPlace(msgspec.Struct, frozen=True, array_like=True):
    """A node that has a blob or fetches it, and where it listens."""

    process: ProcessId
    places: tuple[tuple[str, int], ...]


class FileSpec(msgspec.Struct, frozen=True, array_like=True):
    """A file that a computation needs in its working directory."""

    path: str
    """Relative POSIX path below the computation's directory; never absolute, no `..`."""
    blob: BlobRef
    mode: int = 0o644
    mtime: float = 0.0


class ComputationSpec(msgspec.Struct, frozen=True):
    """All that a node must know to run jobs of a cluster."""

    id: ComputationId
    name: str
    """What people read: the function's or the program's name."""
    kind: str
    """`function` or `program`."""
    python: str = ""
    """Implementation and minor version that functions need, as `cpython-3.11`; empty for programs."""
    code: BlobRef | None = None
    """The pickled namespace (see `dispy.shipping`); None for programs."""
    program: str = ""
    """For programs: path relative to the working directory, or absolute when it is expected on the node."""
    files: tuple[FileSpec, ...] = ()
    dest_path: str = ""
    """Name of the working directory below the node's prefix; empty = a fresh one."""
    keep_files: bool = False
    """cleanup=False of the original: leave the files when the computation is closed."""
    output_limit: int = OUTPUT_LIMIT
    """Bytes of stdout and of stderr kept per job; the middle of longer output is cut out."""
    isolate: bool = False
    """Every job gets a worker process of its own."""
    setup_in: str = "auto"
    """Where setup runs: `node` (once, workers are forked from it), `worker` (in each), or `auto`."""
    requirements: tuple[str, ...] = ()
    """Packages, as pip names them, that a virtual environment on the node must have."""
    interpreter: str = ""
    """For programs: the command on the node that runs it; empty: itself, or for `*.py` the node's Python."""
    has_setup: bool = False
    """For functions: their code has a setup function, which may take long."""
    user: str = ""
    """Whose it is, for people, as a shared scheduler knows; empty: of whoever holds the node."""


class JobDepends(msgspec.Struct, frozen=True, array_like=True):
    """What one job needs beyond its computation and its arguments. Code that it alone needs travels with these."""

    files: tuple[FileSpec, ...] = ()
    """In the computation's directory; removed when it has ended."""
    objects: tuple[BlobRef, ...] = ()
    """Scattered objects that its arguments name."""

    @property
    def contents(self) -> list[BlobRef]:
        """All that is to be fetched for it."""
        return [*(file.blob for file in self.files), *self.objects]


class JobOptions(msgspec.Struct, frozen=True, array_like=True):
    """What a job asks for beyond the defaults."""

    node: str = ""
    """Process id of the only node that may run it."""
    priority: int = 0
    """Higher first."""
    cpus: int = 1
    """CPUs that it occupies; 0: all of the node."""
    memory: int = 0
    """Bytes that are reserved for it and that it may not exceed; 0: no limit."""
    gpus: int = 0
    tags: tuple[str, ...] = ()
    """The node must have all of them."""
    timeout: float = 0.0
    """Seconds that it may run, from its start on the worker; 0: no limit."""
    retries: int = 0
    """Further attempts after a failure or a lost node."""
    depends: JobDepends | None = None


class JobSpec(msgspec.Struct, array_like=True, gc=False):
    """One attempt at one job, as a node receives it. Arguments are in the payload of the batch or in a blob."""

    job: int
    attempt: int
    size: int
    """Bytes of the payload that are this job's arguments (0 with `blob`)."""
    blob: BlobRef | None = None
    options: JobOptions | None = None


class JobDone(msgspec.Struct, array_like=True, gc=False):
    """How one attempt ended. The body is result, stdout, stderr and error text, one after another."""

    job: int
    attempt: int
    ending: int
    started_at: float
    """Wall clock of the node, seconds since the epoch; 0 if it never started."""
    ended_at: float
    result_size: int
    stdout_size: int
    stderr_size: int
    error_size: int
    blob: BlobRef | None = None
    """Where the body is when it is too large for the batch (then nothing of it is in the payload)."""


SHARED_SCHEDULER: Final = "dispyscheduler"
"""The program of holders that are shared schedulers."""


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lease, as far as they say (a claim, shown as such)."""

    user: str
    host: str
    pid: int
    program: str
    since: float = 0.0
    """Wall clock of the node when the lease was granted."""
    gone: bool = False
    """Its link ended and nobody came back in time; said by the node, as what follows."""
    results: int = 0
    """Results that wait for whoever recovers them, when it is gone."""
    running: int = 0
    """Jobs that still run for it, when it is gone."""

    @property
    def absence(self) -> str:
        """What to know when it is gone, as a sentence; empty when it is not."""
        if not self.gone:
            return ""
        waits = f"{self.results} result{' waits' if self.results == 1 else 's wait'}"
        still = f", {self.running} job{' still runs' if self.running == 1 else 's still run'}" if self.running else ""
        if self.program == SHARED_SCHEDULER:
            return f"that scheduler is away or cut off, {waits} there for its next start{still}"
        return f"that program is gone or cut off, {waits} for `dispy recover` there{still}"


class NodeInfo(msgspec.Struct, frozen=True):
    """What a node says of itself."""

    process: ProcessId
    name: str
    cpus: int
    platform: str
    pythons: tuple[str, ...]
    """Interpreters known to be there, as `cpython-3.11`; the first is the daemon's own."""
    memory: int = 0
    """Bytes of main memory."""
    version: str = ""
    oversubscribe: bool = False
    holder: Holder | None = None
    """Who holds the lease at the time of the description, for people; LeaseRefused is what decides."""
    tags: tuple[str, ...] = ()
    """What jobs can ask for by `dispy_tags`."""
    gpus: int = 0
    closed: str = ""
    """Why it offers no CPU now, for people; empty when it does."""
    addresses: tuple[tuple[str, int], ...] = ()
    """Hosts and ports, beyond those where it listens, where it says that it can be reached (`--ext_host`)."""
    port: int = 0
    """TCP port at which it listens."""
    home: str = ""
    """Names its directory, which only one daemon at a time has: another one with it has come in place of this."""


class AvailInfo(msgspec.Struct, frozen=True):
    """What is free on a node's machine."""

    cpu: float
    """Per cent idle."""
    memory: int
    """Bytes available."""
    disk: int
    """Bytes free below the node's prefix."""
    swap: float
    """Per cent free."""


class NodeOrder(StrEnum):
    """What the owner of a node can order, at its terminal or over an admin link."""

    QUIT = "quit"
    """End now; what has not started is given back."""
    EXIT = "exit"
    """End when the jobs that are here have ended."""
    STOP = "stop"
    """Start no new jobs; what has not started is given back."""
    START = "start"
    """Start jobs again."""
    CPUS = "cpus"
    """Offer so many CPUs: 0 all, -N all but N."""
    HOURS = "hours"
    """Serve in these hours, or always."""
    RELEASE = "release"
    """Let go of a program that is gone, without waiting for it."""


class NodeStatus(msgspec.Struct, frozen=True):
    """How a node is, for its owner."""

    info: NodeInfo
    cpus: int
    """CPUs that it offers when nothing speaks against it."""
    window: str = ""
    """The hours in which it serves, for people."""
    waiting: int = 0
    """Programs that stand in line."""
    computations: tuple[tuple[str, str], ...] = ()
    """Name and state of each."""
    queued: int = 0
    given: int = 0
    """Jobs that workers have in hand."""
    workers: int = 0
    unacknowledged: int = 0
    """Jobs whose results the program has not fetched."""
    done: int = 0
    served: int = 0
    """Programs that it has served."""
    avail: AvailInfo | None = None
    now: float = 0.0
    """The node's wall clock."""


class NodeHeard(msgspec.Struct, frozen=True, array_like=True):
    """A node that a relay has heard of on its network. It may be gone: all that this may cause is a dial."""

    process: ProcessId
    name: str
    address: str
    port: int
    """TCP port to dial."""
    others: tuple[tuple[str, int], ...] = ()
    """Further hosts and ports where it says that it can be reached."""


class HeldAttempt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An attempt that a node has in hand when a link resumes."""

    job: int
    attempt: int
