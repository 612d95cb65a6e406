"""The daemon's side of a computation's fork server and workers: start them, feed them, read them, bury them.

Never touches user code and decides nothing: the handler (the node service) is told what happened, in an order that
makes clear for every job whether it was answered, running, or not started.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import cloudpickle

import dispy
from dispy.node import channel, limits, linux
from dispy.node.burial import Burial
from dispy.node.cgroups import ROOM, Group, Groups
from dispy.node.channel import (
    CANCEL,
    FLAG_RETIRE,
    MEMORY_AT_FORK,
    PROVISIONAL,
    REPLY,
    RUNNING,
    STDERR_AT,
    STDOUT_AT,
)
from dispy.node.deaths import cause_of_death, exit_words
from dispy.node.forkserver import FRESH
from dispy.node.hygiene import read_output
from dispy.node.leftovers import MARK
from dispy.node.outbox import Outbox
from dispy.node.replies import ForkServerHandler, ForkServerSpec, Reply, SetupFailed, WorkerDeath
from dispy.node.watch import Watch, WorkerRecord, open_record
from dispy.node.worker import CLEANUP_FAILED, SETUP_FAILED, SHUTDOWN_ASKED, UNSENDABLE

logger = logging.getLogger("dispy.node")

_BOOT: Final = (
    "import sys; sys.path[:0] = sys.argv[3:]; from dispy.node.forkserver import main; "
    "del sys.path[: len(sys.argv) - 3]; sys.path += sys.argv[3:]; main(int(sys.argv[1]), int(sys.argv[2]))"
)
"""Our own folders come first while we import from them, and last when user code is loaded."""
ANSWER_TIMEOUT: Final = 10.0
"""Seconds within which a fork server answers what takes it milliseconds; one that does not is ended."""
_END_TIMEOUT: Final = 5.0
_TAIL_SIZE: Final = 64 << 10
_BUFFER_SIZE: Final = 1 << 20


def dispy_folders() -> list[str]:
    """What must be on the path of a process that imports dispy and cloudpickle."""
    return list(dict.fromkeys(str(Path(module.__path__[0]).parent) for module in (dispy, cloudpickle)))


class ForkServer:
    """One computation's fork server. All methods are to be called on the event loop's thread."""

    def __init__(self, spec: ForkServerSpec, handler: ForkServerHandler) -> None:
        self._spec = spec
        self._handler = handler
        self._workers: dict[int, WorkerRecord] = {}
        self._reader = channel.ControlReader()
        self._buffer = bytearray(_BUFFER_SIZE)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.mark = uuid.uuid4().hex
        """In the environment of every process of this fork server: tells its orphans from others."""
        self._pids: set[int] = set()
        self._watch = Watch(self._workers, spec.output_limit, self.signal)
        self._ended: asyncio.Future[None] | None = None
        self._unanswered: deque[float] = deque()
        """When it was asked what it has not answered yet; it answers in order."""
        self._patience: asyncio.TimerHandle | None = None
        self._verdict = ""
        """Why it was ended; empty: it ended by itself."""
        self._emptied: asyncio.Future[None] | None = None
        self._cleanup_trace = ""
        self._said = ""
        self.pid = 0
        """Process id of the fork server, and of its guard as long as it has not reported."""
        self.shutdown_asked = False
        """Its cleanup function has asked the node to end."""
        self.setup_in = "node"
        """`worker` when every worker runs setup itself, as asked or because setup left threads or used a GPU."""

    async def start(self) -> None:
        """Start the process, load the code, run setup; returns when workers can be forked.

        Raises:
            SetupFailed: it did not get that far; nothing of it is left.
        """
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._cleaned: asyncio.Future[str] = self._loop.create_future()
        self._ended = self._loop.create_future()
        linux.become_subreaper()
        ours, theirs = socket.socketpair()
        try:
            self._process = self._popen(theirs)
        except OSError as error:
            ours.close()
            why = linux.exhaustion(error)
            raise SetupFailed(f"{self._spec.python} cannot be started: {why or error}", final=not why) from error
        finally:
            theirs.close()
        self.pid = self._process.pid
        ours.setblocking(False)
        self._control = ours
        self._outbox = Outbox(ours, self._loop)
        self._loop.add_reader(ours, self._on_control)
        code = self._spec.code or b""
        info = {
            "kind": self._spec.kind,
            "name": self._spec.name,
            "cwd": str(self._spec.cwd),
            "program": self._program(),
            "interpreter": self._spec.interpreter,
            "job_names": dict(self._spec.job_names),
            "output_limit": self._spec.output_limit,
            "isolate": self._spec.isolate,
            "setup_in": self._spec.setup_in,
            "nice": self._spec.nice,
            "made_by_init": self._spec.made_by_init,
            "confined": self._spec.account is not None,
            "client_shutdown": self._spec.client_shutdown,
            "growth_limit": self._spec.growth_limit,
            "code_size": len(code),
        }
        self._outbox.send(channel.control_frame(channel.LOAD, info, code + self._spec.setup_args))
        try:
            await self._loaded
        except BaseException:
            self.kill()
            await self.wait_ended()
            raise

    def _popen(self, control: socket.socket) -> subprocess.Popen[bytes]:
        # PDEATHSIG follows the thread that starts a process: this is the loop's, never an executor's.
        fd = control.fileno()
        env = {name: value for name, value in self._spec.env.items() if not name.startswith("DISPY_SECRET")}
        account = self._spec.account
        if account is not None:
            env = account.environment(env)
        return subprocess.Popen(
            [self._spec.python, "-P", "-c", _BOOT, str(fd), str(FRESH), *(self._spec.folders or dispy_folders())],
            stdin=subprocess.DEVNULL,
            stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else None,
            cwd=self._spec.cwd,
            env={**env, MARK: self.mark},
            pass_fds=(fd,),
            start_new_session=True,
            **(account.start() if account is not None else {}),
        )

    def _program(self) -> str:
        return str(self._spec.cwd / self._spec.program) if self._spec.kind == "program" else ""

    async def cleanup(self) -> str:
        """Run the computation's cleanup function where setup ran; returns the traceback if it failed, else nothing.

        To be called when no job is left. A fork server that is gone has nothing to clean up.
        """
        if self._control is None:
            return ""
        if self.setup_in == "worker" and self._workers:
            self._emptied = self._loop.create_future()
            self.retire_all()
            await self._emptied
            return self._cleanup_trace
        self._outbox.send(channel.control_frame(channel.CLEANUP, {}))
        return await self._cleaned or self._cleanup_trace

    def kill(self) -> None:
        """End the fork server and everything below it; the handler hears nothing more."""
        if self._control is None:
            return
        self._loop.remove_reader(self._control)
        self._outbox.close()
        self._control.close()  # the guard and the fork server see it and end all
        self._control = None
        self._watch.stop()
        if self._patience is not None:
            self._patience.cancel()
        for worker in list(self._workers.values()):
            self._forget(worker)
        for future in (self._loaded, self._cleaned, self._emptied):
            if future is not None and not future.done():
                future.cancel()
        while self._reader.fds:
            os.close(self._reader.fds.popleft())
        assert self._process is not None
        Burial(self._process, self.mark, self._pids, self._on_buried).begin()

    async def wait_ended(self) -> None:
        """Return when no process of this fork server is left (after `kill` or its own end)."""
        if self._ended is not None:
            await self._ended

    def _on_buried(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def fork(self, worker: int) -> None:
        """Ask for a worker; `worker_forked` (or `worker_died`) tells. A number is used once."""
        if self._control is None:
            return
        try:
            new, theirs = open_record(worker, self._loop)
        except OSError as error:
            cause = f"no worker could be started: {linux.exhaustion(error) or error}"
            self._say_once(cause)
            self._handler.worker_died(worker, WorkerDeath(0, cause, exhausted=True))
            return
        self._workers[worker] = new
        self._outbox.send(channel.control_frame(channel.FORK, {"worker": worker}), (*theirs, *new.outputs))
        for fd in theirs:
            os.close(fd)
        self._expect_answer()
        self._loop.add_reader(new.socket, self._on_readable, new)

    def _say_once(self, cause: str) -> None:
        """The owner of the node reads why workers are missing, once until one can be started again."""
        if self._said != cause:
            self._said = cause
            logger.warning("%s: %s; what runs goes on, and it is tried again", self._spec.name, cause)

    def feed(
        self,
        worker: int,
        jobs: Sequence[tuple[int, bytes | memoryview | int]],
        extras: Mapping[int, Mapping[str, object]] | None = None,
    ) -> None:
        """Give a worker jobs: (sequence, arguments), where an int is a memfd with them, which stays the caller's.

        `extras` say by sequence what a job needs beyond its arguments (see `channel`).
        """
        to = self._workers.get(worker)
        if to is None:
            return
        if extras:
            self._limit_memory(to, extras)
        pack = channel.JOB.pack
        parts: list[bytes | memoryview] = []
        extra = b""
        for sequence, arguments in jobs:
            if extras:
                extra = json.dumps(extras[sequence]).encode() if sequence in extras else b""
            if isinstance(arguments, int):
                if parts:
                    to.outbox.send(b"".join(parts))
                    parts = []
                to.outbox.send(pack(sequence, len(extra), len(extra), 1) + extra, (arguments,))
            else:
                parts.append(pack(sequence, len(extra) + len(arguments), len(extra), 0))
                if extra:
                    parts.append(extra)
                parts.append(arguments)
        if parts:
            to.outbox.send(b"".join(parts))
        if jobs:
            if not to.open:
                to.fed_at = time.time()
            to.fed = jobs[-1][0]
            to.open += len(jobs)
        self._watch.wake()

    def _limit_memory(self, worker: WorkerRecord, extras: Mapping[int, Mapping[str, object]]) -> None:
        for sequence, wanted in extras.items():
            memory = wanted.get("memory")
            if not isinstance(memory, int):
                continue
            worker.memory_limits[sequence] = memory
            # Before it hears of the job, so that all that the job starts is in the group. Such a job runs alone.
            if self._spec.groups is not None and worker.pid and not worker.open:
                self._group(worker, self._spec.groups, memory)

    def _group(self, worker: WorkerRecord, groups: Groups, memory: int) -> None:
        """Put the kernel behind the sampling; where it refuses, sampling is all there is."""
        # Not every worker has measured itself yet; what it has then, it has from the fork server.
        at_fork = worker.cell[MEMORY_AT_FORK] or linux.private_memory(self.pid)
        try:
            if worker.group is None:
                worker.group = groups.make()
                worker.group.take(worker.pid)
            worker.group.limit(memory + at_fork + 2 * self._spec.output_limit + ROOM)
        except OSError as error:
            logger.debug("the kernel does not watch the memory of worker %d: %s", worker.number, error)

    def recall(self, worker: int, before: int) -> None:
        """Take back the jobs below `before` that have not started; `jobs_recalled` names them (perhaps none)."""
        self._ask(channel.RECALL, worker=worker, before=before)
        self._expect_answer()

    def cancel(self, worker: int, sequence: int) -> None:
        """Interrupt a job when it runs, or keep it from starting; nothing happens if it has been answered."""
        to = self._workers.get(worker)
        if to is None or sequence <= to.answered or sequence in to.cancels:
            return
        bisect.insort(to.cancels, sequence)  # the cell holds one: the job that is, or will be, running first
        if to.cancels[0] == sequence:
            self._interrupt(to)

    def _interrupt(self, worker: WorkerRecord) -> None:
        sequence = worker.cancels[0]
        worker.cell[CANCEL] = sequence
        self.signal(worker.number, sequence, signal.SIGINT)

    def signal(self, worker: int, sequence: int, signum: int) -> None:
        """Send a signal to the process group of a job, only if that job is the one that runs."""
        self._ask(channel.SIGNAL, worker=worker, sequence=sequence, signal=int(signum))
        if signum == signal.SIGKILL and self._control is not None:
            self._loop.call_later(_END_TIMEOUT, self._end_senseless, worker, sequence)

    def _end_senseless(self, worker: int, sequence: int) -> None:
        """A job can spoil its worker so far that it runs nothing and answers nothing: then no signal finds the job."""
        to = self._workers.get(worker)
        if to is not None and to.pid and to.answered < sequence <= to.fed and not to.cell[RUNNING]:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(to.pid, signal.SIGKILL)

    def retire(self, worker: int) -> None:
        """Let a worker end after the jobs that it has."""
        to = self._workers.get(worker)
        if to is not None:
            to.expected = True
            to.socket.shutdown(socket.SHUT_WR)

    def retire_all(self) -> None:
        """Let every worker end after the jobs that it has."""
        for number in self._workers:
            self.retire(number)

    def _ask(self, kind: int, **info: object) -> None:
        if self._control is not None:
            self._outbox.send(channel.control_frame(kind, info))

    def _expect_answer(self) -> None:
        if self._control is None:
            return
        self._unanswered.append(self._loop.time())
        if self._patience is None:
            self._patience = self._loop.call_later(ANSWER_TIMEOUT, self._look_for_answer)

    def _look_for_answer(self) -> None:
        """A job can stop its fork server (SIGSTOP) or spoil it; a node that waited for it would hang."""
        self._patience = None
        if not self._unanswered:
            return
        left = self._unanswered[0] + ANSWER_TIMEOUT - self._loop.time()
        if left > 0:
            self._patience = self._loop.call_later(left, self._look_for_answer)
            return
        stopped = "it was stopped (SIGSTOP) and" if linux.is_stopped(self.pid) else "it"
        self._verdict = f"{stopped} answered nothing for {ANSWER_TIMEOUT:g} s"
        with contextlib.suppress(ProcessLookupError):  # its guard tells its end
            os.kill(self.pid, signal.SIGKILL)

    def tail(self, worker: int, sequence: int) -> tuple[bytes, bytes]:
        """The last of what a job has written so far, if it is running: stdout, stderr."""
        of = self._workers.get(worker)
        if of is None or of.cell[RUNNING] != sequence:
            return b"", b""
        return self._written(of, STDOUT_AT, _TAIL_SIZE), self._written(of, STDERR_AT, _TAIL_SIZE)

    def _written(self, worker: WorkerRecord, word: int, most: int) -> bytes:
        fd = worker.outputs[word - STDOUT_AT]
        end = os.fstat(fd).st_size
        at = max(worker.cell[word], end - most)
        return os.pread(fd, end - at, at)

    def _on_control(self) -> None:
        control = self._control
        assert control is not None
        try:
            data, ancillary, _, _ = control.recvmsg(64 << 10, channel.ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, ancillary = b"", []
        self._reader.fds.extend(channel.descriptors(ancillary))
        if not data:
            self._on_death()
            return
        for kind, info, _ in self._reader.feed(data):
            self._on_report(kind, info)

    def _on_report(self, kind: int, info: dict[str, Any]) -> None:
        if self._unanswered and (kind in (channel.FORKED, channel.RECALLED) or _tells_no_fork(kind, info)):
            self._unanswered.popleft()
        if kind == channel.FORKED:
            worker = self._workers.get(info["worker"])
            if worker is not None:
                worker.pid = info["pid"]
                self._pids.add(worker.pid)
                worker.forked_at = time.monotonic()
                self._said = ""
                self._watch.wake()
                self._handler.worker_forked(worker.number, worker.pid)
                self._deliver(worker, worker.early)
        elif kind == channel.DIED:
            worker = self._workers.get(info["worker"])
            if worker is not None:
                self._pids.discard(worker.pid)
                self._on_worker_death(worker, _cause(info), info["status"], exhausted=info["status"] is None)
        elif kind == channel.RECALLED:
            worker = self._workers.get(info["worker"])
            if worker is not None:
                # Answers to jobs before the recalled ones are read first: they came first.
                worker.open -= info["before"] - info["first"]
                self._uncancel(worker, info["first"], info["before"])
                self._handler.jobs_recalled(worker.number, info["first"], info["before"])
        elif kind == channel.LOADED:
            self.pid = info["pid"]
            self._pids.add(self.pid)
            self.setup_in = self._watch.setup_in = info["setup_in"]
            if not self._loaded.done():
                self._loaded.set_result(None)
        elif kind == channel.FAILED:
            if not self._loaded.done():
                self._loaded.set_exception(SetupFailed(info["reason"], info["trace"], final=info["final"]))
        elif kind == channel.CLEANED and not self._cleaned.done():
            self.shutdown_asked = info["shutdown"]
            self._cleaned.set_result(info["trace"])

    def _on_worker_death(
        self, worker: WorkerRecord, cause: str, status: int | None, *, exhausted: bool = False
    ) -> None:
        self._drain(worker)
        if worker.number not in self._workers:
            return  # the handler has killed the fork server while it was told of the last answers
        running = worker.cell[RUNNING] if worker.open else 0
        death = WorkerDeath(running, cause, exhausted=exhausted)
        if exhausted:
            self._say_once(cause)
        limit = self._spec.output_limit
        death.stdout = read_output(*self._extent(worker, STDOUT_AT), limit)
        death.stderr = read_output(*self._extent(worker, STDERR_AT), limit)
        if running:
            death.started = worker.begun_at if worker.seen == running else worker.fed_at
            verdict = worker.limited[1] if worker.limited[0] == running else _kernel_verdict(worker, running, death)
            if verdict:
                death.cause = verdict
                death.limited = True
        code = os.waitstatus_to_exitcode(status) if status is not None else None
        death.expected = not running and code in (0, SHUTDOWN_ASKED)
        death.setup_failed = not running and code == SETUP_FAILED and self.setup_in == "worker"
        if not running and code == CLEANUP_FAILED:
            self._cleanup_trace = death.stderr.decode("utf-8", "replace")
        if not running and code == SHUTDOWN_ASKED:
            self.shutdown_asked = True
        self._forget(worker)
        self._handler.worker_died(worker.number, death)

    def _extent(self, worker: WorkerRecord, word: int) -> tuple[int, int, int]:
        fd = worker.outputs[word - STDOUT_AT]
        return fd, worker.cell[word], os.fstat(fd).st_size

    def _on_death(self) -> None:
        """The control channel has ended: the guard has ended everything, or is about to."""
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_TIMEOUT)
        cause = f"the computation's fork server ended: {self._verdict or exit_words(process.returncode)}"
        for worker in list(self._workers.values()):
            self._on_worker_death(worker, cause, None)
        if self._control is None:
            return
        loading = not self._loaded.done()
        if loading:
            self._loaded.set_exception(SetupFailed(f"while it was set up, {cause}"))
        if not self._cleaned.done():
            self._cleaned.set_result("" if loading else cause)
        self.kill()
        if not loading:
            self._handler.fork_server_died(cause)

    def _forget(self, worker: WorkerRecord) -> None:
        self._workers.pop(worker.number, None)
        if self._emptied is not None and not self._workers and not self._emptied.done():
            self._emptied.set_result(None)
        self._loop.remove_reader(worker.socket)
        worker.outbox.close()
        worker.socket.close()
        worker.cell.release()
        worker.cell_map.close()
        for fd in (*worker.outputs, *worker.fds):
            os.close(fd)
        if worker.group is not None and self._spec.groups is not None:
            self._spec.groups.remove(worker.group)

    def _on_readable(self, worker: WorkerRecord) -> None:
        replies: list[Reply] = []
        more = self._read(worker, replies)
        if not more:
            self._loop.remove_reader(worker.socket)  # death is what the fork server says, never the end of the stream
        self._deliver(worker, replies)

    def _drain(self, worker: WorkerRecord) -> None:
        """Read all that a dead worker had sent."""
        replies: list[Reply] = []
        before = -1
        while before != (before := len(replies)) or worker.rest:
            if not self._read(worker, replies):
                break
        self._deliver(worker, replies)

    def _read(self, worker: WorkerRecord, replies: list[Reply]) -> bool:
        """One read; False when nothing more can be there."""
        buffer = self._buffer
        try:
            size, ancillary, flags, _ = worker.socket.recvmsg_into([buffer], channel.ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, ConnectionResetError):
            return False
        if not size:
            return False
        data: bytes | memoryview = memoryview(buffer)[:size]
        if worker.rest:
            data = worker.rest + data
        fds = worker.fds
        if ancillary:
            fds += channel.whole_descriptors(ancillary, flags)
        unpack, header = REPLY.unpack_from, REPLY.size
        at, total = 0, len(data)
        gone = False
        while total - at >= header:
            sequence, ending, count, marks, result, stdout, stderr, error, started, ended = unpack(data, at)
            if ending >= PROVISIONAL:
                worker.speaks = True
            if marks > FLAG_RETIRE:
                gone = True
            if count > len(fds):
                at += header if count == 1 else header + result + stdout + stderr + error
                if ending < PROVISIONAL:
                    replies.append(_lost_reply(sequence, started, ended))
                continue
            if count == 1:
                at += header
                replies.append(Reply(sequence, ending, started, ended, result, stdout, stderr, error, b"", fds.pop(0)))
                continue
            end = at + header + result + stdout + stderr + error
            if end > total:
                break
            body = bytes(data[at + header : end])
            replies.append(Reply(sequence, ending, started, ended, result, stdout, stderr, error, body))
            if count:
                replies[-1].fd, replies[-1].answer = fds.pop(0), fds.pop(0)
            at = end
        worker.rest = bytes(data[at:])
        if gone:
            self._handler.directory_gone()
        return True

    def _uncancel(self, worker: WorkerRecord, first: int, before: int) -> None:
        """Recalled jobs need no interrupt; whoever is next in line gets it."""
        stands = worker.cancels[:1]
        worker.cancels = [sequence for sequence in worker.cancels if not first <= sequence < before]
        if worker.cancels and worker.cancels[:1] != stands:
            self._interrupt(worker)

    def _deliver(self, worker: WorkerRecord, replies: list[Reply]) -> None:
        if not worker.pid:
            worker.early = worker.early + replies
            return
        if worker.speaks:
            worker.speaks = False
            self._deliver_apart(worker, replies)
            return
        if not replies:
            return
        worker.open -= len(replies)
        worker.fed_at = replies[-1].ended_at or worker.fed_at
        worker.answered = replies[-1].sequence
        if worker.group is not None:
            self._ungroup(worker, worker.group)
        if worker.cancels:
            self._uncancel(worker, 0, worker.answered + 1)
        self._handler.worker_answered(worker.number, replies)

    def _ungroup(self, worker: WorkerRecord, group: Group) -> None:
        """The job with the limit has ended: the next one of this worker has none."""
        try:
            group.lift()
        except OSError:  # better no worker than one with the limit of another job
            self.retire(worker.number)

    def _deliver_apart(self, worker: WorkerRecord, replies: list[Reply]) -> None:
        """Deliver in order what ends jobs and what does not."""
        ends: list[Reply] = []
        for reply in replies:
            if reply.ending < PROVISIONAL:
                ends.append(reply)
                continue
            self._deliver(worker, ends)
            ends = []
            self._handler.worker_spoke(worker.number, reply)
        self._deliver(worker, ends)


def _lost_reply(sequence: int, started: float, ended: float) -> Reply:
    """What is told of a job whose large result came when this process had no descriptor left for it."""
    text = f"its result cannot be taken over by the node: {linux.exhaustion(OSError(errno.EMFILE, ''))}".encode()
    return Reply(sequence, UNSENDABLE, started, ended, 0, 0, 0, len(text), text)


def _kernel_verdict(worker: WorkerRecord, running: int, death: WorkerDeath) -> str:
    """The words for a job that the kernel has ended in its group; nothing if it did not."""
    limit = worker.memory_limits.get(running)
    if limit is None or worker.group is None or not worker.group.has_killed():
        return ""
    at_fork = worker.cell[MEMORY_AT_FORK]
    return limits.memory_verdict(worker.pid, at_fork, limit, worker.group, max(0.0, time.time() - death.started))


def _tells_no_fork(kind: int, info: dict[str, Any]) -> bool:
    """Whether a report says that a worker which was asked for could not be started."""
    return kind == channel.DIED and info["status"] is None


def _cause(info: dict[str, Any]) -> str:
    if info["status"] is None:
        return str(info["error"])
    return cause_of_death(info["status"], info["memory"])
