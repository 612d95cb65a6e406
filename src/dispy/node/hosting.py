"""One computation on a node: its files, its fork server, and their end.

What is in here takes time and can fail; the core is told how it went by the events that `post` takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from dispy.errors import NodeError, TransferError
from dispy.model import BlobRef, ComputationId, ComputationSpec, FileSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node import litter
from dispy.node.channel import SENT_FILE
from dispy.node.environments import own_python
from dispy.node.linux import exhaustion
from dispy.node.loans import Loans
from dispy.node.places import NodePlaces, lacks_room
from dispy.node.replies import ForkServerSpec, Reply, SetupFailed, WorkerDeath
from dispy.node.variables import environment_of_fork_server
from dispy.node.workdir import DirectoryGone, Workdir
from dispy.node.workers import ForkServer
from dispy.wire.blobs import BlobExchange
from dispy.wire.blobstore import ContentLost

logger = logging.getLogger("dispy.node")

T = TypeVar("T")

CLEANUP_TIMEOUT: Final = 60.0
"""Seconds that a cleanup function may take; a node must not stay locked by one that hangs."""


class HostedComputation:
    """Prepares a computation, stands between its fork server and the core, and clears it away."""

    def __init__(self, spec: ComputationSpec, setup_args: bytes, exchange: BlobExchange, places: NodePlaces) -> None:
        self.spec = spec
        self.server: ForkServer | None = None
        self._setup_args = setup_args
        self._exchange = exchange
        self._places = places
        self._python = ""
        self._code: bytes | None = None
        self._workdir: Workdir | None = None
        self._task: asyncio.Task[None] | None = None
        self._storing: set[asyncio.Task[None]] = set()
        self._loans: asyncio.Future[Loans] = asyncio.get_running_loop().create_future()
        self._lending: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._lent: dict[tuple[int, int], list[str]] = {}
        """Paths that stand in the directory for an attempt."""
        self._restoring: list[ev.WorkerDied] | None = None
        """While files are put back into a directory that a job has removed: ends of workers that are told then."""
        self._cleaning: asyncio.Task[None] | None = None
        self._removing: asyncio.Task[None] | None = None

    @property
    def id(self) -> ComputationId:
        """The client's name for it."""
        return self.spec.id

    @property
    def python(self) -> str:
        """The interpreter that runs it; empty until it is found."""
        return self._python

    def prepare(self) -> None:
        """Begin to fetch what it needs; ComputationPrepared or ComputationFailed is posted."""
        self._begin(self._fetch(), ev.ComputationPrepared(self.id))

    def start(self) -> None:
        """Begin to start the fork server; ForkServerStarted, ForkServerDied or ComputationFailed is posted."""
        if self.spec.kind == "function":  # before its turn: jobs that are sent meanwhile cannot run
            step = "setup still running" if self.spec.has_setup else "its code is being loaded"
            self._places.post(ev.ComputationAdvanced(self.id, step))
        self._begin(self._places.starts.take(self._start), ev.ForkServerStarted(self.id))

    def _begin(self, work: Coroutine[Any, Any, None], success: ev.Event) -> None:
        task = self._told(work, success)
        self._task = asyncio.get_running_loop().create_task(task, name=f"prepare {self.spec.name}")

    def clean(self, *, run_cleanup: bool) -> None:
        """Begin to clear it away; ComputationCleaned is posted."""
        self._cleaning = asyncio.get_running_loop().create_task(self._clean(run_cleanup), name="clean")

    def store(self, file: FileSpec) -> None:
        """Begin to fetch a file into the directory; FileStored is posted."""
        task = asyncio.get_running_loop().create_task(self._store(file), name=f"store {file.path}")
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _store(self, file: FileSpec) -> None:
        reason = ""
        try:
            await self._fetch_file(file)
        except (NodeError, TransferError, OSError) as error:
            reason = str(error)
        self._places.post(ev.FileStored(self.id, file.path, reason))

    def lend(self, action: do.LendFiles) -> None:
        """Begin to put the files of a job into the directory; FilesLent is posted."""
        key = action.job, action.attempt
        task = asyncio.get_running_loop().create_task(self._lend(key, action.files), name="lend files")
        self._lending[key] = task
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _lend(self, key: tuple[int, int], files: tuple[FileSpec, ...]) -> None:
        held: list[str] = []
        reason, no_room = "", False
        loans = await asyncio.shield(self._loans)
        try:
            await loans.lend(files, held)
        except (NodeError, TransferError, OSError) as error:
            reason, no_room = str(error), lacks_room(error)
            loans.give_back(held)
        except asyncio.CancelledError:
            loans.give_back(held)
            raise
        else:
            self._lent[key] = held
        self._places.post(ev.FilesLent(*key, reason, no_room))

    def take_back(self, action: do.ReturnFiles) -> None:
        """A job needs its files no more."""
        key = action.job, action.attempt
        task = self._lending.pop(key, None)
        if task is not None:
            task.cancel()
        if key in self._lent:
            self._loans.result().give_back(self._lent.pop(key))

    async def _fetch_file(self, file: FileSpec) -> None:
        places = self._places
        assert self._workdir is not None
        places.check_size(file)
        is_placed = False
        while not is_placed:  # another computation may have taken it from under our hands
            await self._exchange.fetch_file(file.blob, places.store)
            is_placed = await _to_the_end(asyncio.to_thread(places.workdirs.place, self._workdir, file, places.store))

    async def end(self) -> None:
        """Clear it away now: no cleanup function, no event."""
        if self._cleaning is not None:
            self._cleaning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._cleaning
        await self._stop_preparing()
        await self._remove_once()

    async def _told(self, work: Coroutine[Any, Any, None], success: ev.Event) -> None:
        """Await the work and post how it went."""
        post = self._places.post
        try:
            await work
        except SetupFailed as error:
            if error.killed:
                logger.warning("the fork server of %s died: %s", self.spec.name, error.reason)
                post(ev.ForkServerDied(self.id, error.reason))
            else:
                self._failed(error.reason, error.trace, final=error.final)
        except DirectoryGone as error:
            self._failed(str(error), final=False)
        except NodeError as error:
            # what the machine lacks now it may have later
            cause = error.__cause__
            self._failed(str(error), final=not (isinstance(cause, OSError) and exhaustion(cause)))
        except TransferError as error:
            lost = isinstance(error, ContentLost)
            self._failed(str(error), final=lost, lost=lost)
        except OSError as error:
            self._failed(f"the node cannot prepare it: {exhaustion(error) or error}", final=False)
        else:
            post(success)

    def _failed(self, reason: str, trace: str = "", *, final: bool = True, lost: bool = False) -> None:
        if not final:  # of what cannot be otherwise only the program's user is told
            self._places.say(f"{self.spec.name} is refused for now: {reason}")
        self._places.post(ev.ComputationFailed(self.id, reason, trace, final, lost))

    async def _fetch(self) -> None:
        places, spec = self._places, self.spec
        self._python = await places.environments.find(spec.python)
        self._workdir = places.workdirs.open(spec)
        self._loans.set_result(Loans(self._workdir, places.store, self._fetch_file))
        if spec.requirements:
            places.post(ev.ComputationAdvanced(self.id, "its environment is being built"))
            self._python = await places.venvs.provide(self._python, spec.requirements)
        for file in spec.files:
            await self._fetch_file(file)
        if spec.code is not None:
            self._code = await self._exchange.fetch_bytes(spec.code)

    async def _start(self) -> None:
        server = ForkServer(self._fork_server_spec(), self)
        prefix = self._places.prefix
        litter.stamp(self._places.venvs.root, self._python)
        prefix.add_mark(server.mark)
        try:
            await server.start()
        except BaseException:
            prefix.forget_mark(server.mark)
            raise
        self.server = server
        prefix.add_process(server.pid)

    def _fork_server_spec(self) -> ForkServerSpec:
        assert self._workdir is not None
        spec, places = self.spec, self._places
        settings, init = places.settings, places.init
        path = self._workdir.path
        of_init = init.environment if init is not None and spec.kind == "program" else {}
        # Code of another Python cannot be loaded.
        made_by_init = str(init.made) if init is not None and spec.python == own_python() else ""
        return ForkServerSpec(
            python=self._python,
            cwd=path,
            env=environment_of_fork_server(self._python, is_virtual=bool(spec.requirements), of_init=of_init),
            kind=spec.kind,
            name=spec.name,
            code=self._code,
            program=spec.program,
            interpreter=spec.interpreter,
            setup_args=self._setup_args,
            has_setup=spec.has_setup,
            job_names={**places.names, "dispy_job_path": str(path)},
            output_limit=spec.output_limit,
            growth_limit=places.growth_limit,
            groups=places.groups,
            isolate=spec.isolate,
            folders=() if self._python == sys.executable else (str(places.venvs.own_folder()),),
            setup_in=spec.setup_in,
            nice=settings.nice,
            account=settings.account,
            made_by_init=made_by_init,
            client_shutdown=settings.client_shutdown,
        )

    async def _clean(self, run_cleanup: bool) -> None:
        await self._stop_preparing()
        trace, shutdown = "", False
        if run_cleanup and (server := self.server) is not None:
            try:
                async with asyncio.timeout(CLEANUP_TIMEOUT):
                    trace = await server.cleanup()
                shutdown = server.shutdown_asked
            except TimeoutError:
                trace = f"cleanup did not end within {CLEANUP_TIMEOUT:.0f} s and was killed"
        await self._remove_once()
        self._places.post(ev.ComputationCleaned(self.id, trace, shutdown))

    async def _stop_preparing(self) -> None:
        for task in list(self._storing):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _remove_once(self) -> None:
        if self._removing is None:
            self._removing = asyncio.get_running_loop().create_task(self._remove(), name="remove")
        # whoever waits may be told to hurry; the removal goes on to its end
        await asyncio.shield(self._removing)

    async def _remove(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.kill()
            await server.wait_ended()
            self._places.prefix.forget_process(server.pid)
            self._places.prefix.forget_mark(server.mark)
        workdir, self._workdir = self._workdir, None
        if workdir is not None:
            keep = self.spec.keep_files and not self._places.settings.force_cleanup
            await asyncio.to_thread(self._places.workdirs.close, workdir, self._places.store, keep=keep)

    def worker_forked(self, worker: int, pid: int) -> None:
        """A worker stands."""
        self._places.post(ev.WorkerForked(worker))

    def worker_answered(self, worker: int, replies: list[Reply]) -> None:
        """Replies as one read brought them; large bodies become blobs that the scheduler fetches."""
        blobs: dict[int, BlobRef] = {}
        for reply in replies:
            if reply.fd is not None:
                size = reply.result_size + reply.stdout_size + reply.stderr_size + reply.error_size
                blobs[reply.sequence] = self._places.sources.offer_fd(reply.fd, size)
        self._places.post(ev.WorkerAnswered(worker, replies, blobs))

    def worker_spoke(self, worker: int, reply: Reply) -> None:
        """A running job has an interim result, or sends a file."""
        if reply.ending == SENT_FILE:
            self._places.parcels.take(worker, reply)
            return
        blob = None if reply.fd is None else self._places.sources.offer_fd(reply.fd, reply.result_size)
        self._places.post(ev.WorkerSpoke(worker, reply, blob))

    def worker_died(self, worker: int, death: WorkerDeath) -> None:
        """A worker is gone."""
        event = ev.WorkerDied(
            worker,
            death.running,
            death.cause,
            death.stdout,
            death.stderr,
            death.started,
            self._places.wall(),
            death.limited,
            death.expected,
            death.setup_failed,
            death.exhausted,
        )
        if self._restoring is None:
            self._places.post(event)
        else:
            self._restoring.append(event)

    def directory_gone(self) -> None:
        """A job has removed the directory: make it again, with its files, before another worker is asked for."""
        workdir, name = self._workdir, self.spec.name
        if workdir is None or self.server is None or self._restoring is not None:
            return
        try:
            if not self._places.workdirs.make_again(workdir):
                return
        except NodeError as error:
            logger.warning("a job of %s has removed its directory: %s", name, error)
            return
        logger.warning("a job of %s has removed or moved the directory %s; it is made again", name, workdir.path)
        self.server.retire_all()  # they are still in the one that is gone
        self._restoring = []
        task = asyncio.get_running_loop().create_task(self._restore_files(), name="restore files")
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _restore_files(self) -> None:
        try:
            for file in self.spec.files:
                await self._fetch_file(file)
        except (NodeError, TransferError) as error:
            logger.warning("a file of %s that a job has removed cannot be restored: %s", self.spec.name, error)
        self._tell_held_back()

    def _tell_held_back(self) -> None:
        events, self._restoring = self._restoring or (), None
        for event in events:
            self._places.post(event)

    def jobs_recalled(self, worker: int, first: int, before: int) -> None:
        """A worker gave jobs back."""
        self._places.post(ev.WorkerRecalled(worker, first, before))

    def fork_server_died(self, cause: str) -> None:
        """The fork server is gone."""
        logger.warning("the fork server of %s died: %s", self.spec.name, cause)
        if self.server is not None:
            self._places.prefix.forget_process(self.server.pid)
            self._places.prefix.forget_mark(self.server.mark)
            self.server = None
        self._tell_held_back()
        self._places.post(ev.ForkServerDied(self.id, cause))


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await work in a thread, also when we are cancelled: what it writes must not appear after we have removed it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
