"""The daemon's side of a computation's fork server and workers: start them, feed them, read them, bury them.

Never touches user code and decides nothing: the handler (the node service) is told what happened, in an order that
makes clear for every job whether it was answered, running, or not started.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dispy.node import channel, linux
from dispy.node.autopsy import examine, told_cause
from dispy.node.burial import Burial
from dispy.node.channel import (
    CANCEL,
    PROVISIONAL,
    RUNNING,
    STDERR_AT,
    STDOUT_AT,
)
from dispy.node.deaths import exit_words
from dispy.node.jobstream import ReplyReader, send_forgetting, send_jobs, send_object
from dispy.node.memorybounds import MemoryBounds
from dispy.node.outbox import Outbox
from dispy.node.patience import Patience
from dispy.node.replies import ForkServerHandler, ForkServerSpec, Reply, SetupFailed, WorkerDeath
from dispy.node.starting import load_frame, start_process
from dispy.node.watch import Watch
from dispy.node.workerrecord import WorkerRecord, open_record

logger = logging.getLogger("dispy.node")

_END_TIMEOUT: Final = 5.0
_NO_WORKER: Final = -1
"""Asked for jobs of this one, a fork server answers that there are none."""


class ForkServer:
    """One computation's fork server. All methods are to be called on the event loop's thread."""

    def __init__(self, spec: ForkServerSpec, handler: ForkServerHandler) -> None:
        self._spec = spec
        self._handler = handler
        self._workers: dict[int, WorkerRecord] = {}
        self._reader = channel.ControlReader()
        self._replies = ReplyReader(handler)
        self._memory = MemoryBounds(spec.groups, spec.output_limit)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.mark = os.urandom(16).hex()
        """In the environment of every process of this fork server: tells its orphans from others."""
        self._pids: set[int] = set()
        self._watch = Watch(self._workers, spec.output_limit, self.signal)
        self._ended: asyncio.Future[None] | None = None
        self._patience = Patience(self._end_silent)
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
            self._process = start_process(self._spec, self.mark, theirs)
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
        self._outbox.send(load_frame(self._spec))
        try:
            await self._loaded
        except BaseException:
            self.kill()
            await self.wait_ended()
            raise

    async def cleanup(self) -> str:
        """Run the computation's cleanup function where setup ran; returns the traceback if it failed, else nothing.

        To be called when no job is left. A fork server that is gone has nothing to clean up.
        """
        if self._control is None:
            return ""
        # The function may take its time; whether anybody is there to call it is seen in front of it.
        self.recall(_NO_WORKER, 0)
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
        self._patience.stop()
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
        self._patience.asked()
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
        objects: Mapping[bytes, int] | None = None,
    ) -> None:
        """Give a worker jobs: (sequence, arguments), where an int is a memfd with them, which stays the caller's.

        `extras` say by sequence what a job needs beyond its arguments (see `channel`); `objects` are the names and
        descriptors of what was scattered, which stay the caller's.
        """
        to = self._workers.get(worker)
        if to is None:
            return
        if extras:
            self._memory.expect(to, extras, self.pid)
        if objects:
            for name in objects.keys() - to.objects:
                to.objects.add(name)
                send_object(to.outbox, name, objects[name])
        send_jobs(to.outbox, jobs, extras)
        if jobs:
            if not to.open:
                to.fed_at = time.time()
            to.fed = jobs[-1][0]
            to.open += len(jobs)
        self._watch.wake()

    def forget_object(self, name: bytes) -> None:
        """Let the workers that have this object let go of it."""
        for worker in self._workers.values():
            if name in worker.objects:
                worker.objects.discard(name)
                send_forgetting(worker.outbox, name)

    def recall(self, worker: int, before: int) -> None:
        """Take back the jobs below `before` that have not started; `jobs_recalled` names them (perhaps none)."""
        if self._control is not None:
            self._ask(channel.RECALL, worker=worker, before=before)
            self._patience.asked()

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
        if to is None or not to.pid or not to.answered < sequence <= to.fed:
            return
        if not to.answered < to.cell[RUNNING] <= to.fed:
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

    def _end_silent(self, seconds: float) -> None:
        """A job can stop its fork server (SIGSTOP) or spoil it; a node that waited for it would hang."""
        stopped = "it was stopped (SIGSTOP) and" if linux.is_stopped(self.pid) else "it"
        self._verdict = f"{stopped} answered nothing for {seconds:.3g} s"
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)  # its guard, which tells its end, may have been stopped too
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def tail(self, worker: int, sequence: int) -> tuple[bytes, bytes]:
        """The last of what a job has written so far, if it is running: stdout, stderr."""
        of = self._workers.get(worker)
        if of is None or of.running() != sequence:
            return b"", b""
        return of.tail(STDOUT_AT), of.tail(STDERR_AT)

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
        try:
            for kind, info, _ in self._reader.feed(data):
                self._on_report(kind, info)
        except Exception as error:
            # The loop would call this again and again, for ever, and nobody would hear of the computation any more.
            logger.exception("%s: its fork server cannot be followed any more and is ended", self._spec.name)
            self._verdict = f"the node cannot follow it any more ({type(error).__name__}: {error})"
            if self._process is not None:
                self._process.kill()
            self._on_death()

    def _on_report(self, kind: int, info: dict[str, Any]) -> None:
        if kind in (channel.FORKED, channel.RECALLED) or _tells_no_fork(kind, info):
            self._patience.answered()
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
                self._on_worker_death(worker, told_cause(info), info["status"], exhausted=info["status"] is None)
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
        if not worker.broken:
            try:
                self._deliver(worker, self._replies.read_all(worker))
            except Exception as error:
                self._break_with(worker, error)
        cause = worker.broken or cause
        if worker.number not in self._workers:
            return  # the handler has killed the fork server while it was told of the last answers
        found = examine(worker, cause, status, self._spec.output_limit, exhausted=exhausted)
        death = found.death
        if exhausted:
            self._say_once(cause)
        if found.failed_in == "setup":
            death.setup_failed = self.setup_in == "worker"
        elif found.failed_in == "cleanup":
            self._cleanup_trace = death.stderr.decode("utf-8", "replace")
        self.shutdown_asked |= found.shutdown_asked
        self._forget(worker)
        self._handler.worker_died(worker.number, death)

    def _on_death(self) -> None:
        """The control channel has ended: the guard has ended everything, or is about to."""
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_TIMEOUT)
        cause = f"the computation's fork server ended: {self._verdict or exit_words(process.returncode)}"
        for worker in list(self._workers.values()):
            try:
                self._on_worker_death(worker, cause, None)
            except Exception:  # a worker that cannot be examined; all the others shall be
                logger.exception("%s: the end of worker %d is not understood", self._spec.name, worker.number)
                self._forget(worker)
        if self._control is None:
            return
        loading = not self._loaded.done()
        if loading:
            doing = "was set up" if self._spec.has_setup else "started"
            killed = process.returncode is not None and process.returncode < 0
            self._loaded.set_exception(SetupFailed(f"while it {doing}, {cause}", killed=killed))
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
        worker.close()
        self._memory.forget(worker)

    def _on_readable(self, worker: WorkerRecord) -> None:
        replies: list[Reply] = []
        try:
            if not self._replies.read(worker, replies):
                self._loop.remove_reader(worker.socket)  # the fork server tells of deaths, not the end of the stream
            self._deliver(worker, replies)
        except Exception as error:
            self._break_with(worker, error)

    def _break_with(self, worker: WorkerRecord, error: Exception) -> None:
        """A job has written where only its worker writes: nothing more is read from it, and it is ended."""
        logger.exception("%s: what worker %d sent makes no sense; it is ended", self._spec.name, worker.number)
        worker.broken = f"what it sent to the node makes no sense ({type(error).__name__}: {error})"
        if worker.number in self._workers:
            self._loop.remove_reader(worker.socket)
            self.signal(worker.number, 0, signal.SIGKILL)

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
        last = replies[-1]
        if not worker.answered < last.sequence <= worker.fed:
            raise ValueError(f"an answer to job {last.sequence}, which it was not given")
        worker.open = max(0, worker.open - len(replies))
        if 0.0 < last.ended_at < math.inf:
            worker.fed_at = last.ended_at
        worker.answered = last.sequence
        if worker.group is not None and not self._memory.lift(worker):
            self.retire(worker.number)  # better no worker than one with the limit of another job
        if worker.cancels:
            self._uncancel(worker, 0, worker.answered + 1)
        self._handler.worker_answered(worker.number, replies)

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


def _tells_no_fork(kind: int, info: dict[str, Any]) -> bool:
    """Whether a report says that a worker which was asked for could not be started."""
    return kind == channel.DIED and info["status"] is None
