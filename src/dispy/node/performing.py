"""Carries out what the core decides about computations: their processes, what their jobs need, what they share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from dispy.errors import NodeError, TransferError
from dispy.model import BlobRef, ProcessId
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.callers import Callers
from dispy.node.freememory import has_room
from dispy.node.hosting import HostedComputation
from dispy.node.places import NodePlaces, lacks_room
from dispy.node.variables import told_of

logger = logging.getLogger("dispy.node")


class _Shared(Struct):
    """Arguments that are being fetched or lie in a memfd, or in a file without a name; or a scattered object."""

    peer: ProcessId
    size: int
    task: asyncio.Task[None] | None
    descriptor: int | None = None


class Performer:
    """The computations that are hosted, and the arguments and objects that their jobs share."""

    def __init__(self, places: NodePlaces, callers: Callers, holder: Callable[[], str]) -> None:
        self._places = places
        self._callers = callers
        self._holder = holder
        self._loop = asyncio.get_running_loop()
        self._hosted: dict[str, HostedComputation] = {}
        self._arguments: dict[bytes, _Shared] = {}
        self._objects: dict[bytes, _Shared] = {}
        self.performers: Mapping[type, Callable[[Any], None]] = {
            do.PrepareComputation: self._prepare,
            do.StartForkServer: self._start,
            do.CleanComputation: self._clean,
            do.ForkWorker: self._fork,
            do.FeedWorker: self._feed,
            do.RecallFromWorker: self._recall,
            do.CancelInWorker: self._cancel,
            do.SignalWorker: self._signal,
            do.RetireWorker: self._retire,
            do.ReadTail: self._read_tail,
            do.StoreFile: self._store_file,
            do.LendFiles: self._lend_files,
            do.ReturnFiles: self._return_files,
            do.AnswerParcel: places.parcels.answer,
            do.FetchArguments: self._fetch_arguments,
            do.ForgetArguments: self._forget_arguments,
            do.FetchObject: self._fetch_object,
            do.ForgetObject: self._forget_object,
        }

    async def close(self) -> None:
        """End every computation and let its files go."""
        for name in list(self._arguments):
            self._forget_arguments(do.ForgetArguments(name))
        for name in list(self._objects):
            self._forget_object(do.ForgetObject(name))
        await asyncio.gather(*(hosted.end() for hosted in self._hosted.values()))
        self._places.parcels.close()

    def interpreters(self) -> list[Path]:
        """Those that computations use."""
        return [Path(hosted.python) for hosted in tuple(self._hosted.values()) if hosted.python]

    def cleaned(self, computation: str) -> None:
        """It is gone from here."""
        self._hosted.pop(computation, None)

    def _prepare(self, action: do.PrepareComputation) -> None:
        spec = action.computation
        hosted = HostedComputation(spec, action.setup_args, self._callers.exchange(action.peer), self._places)
        self._hosted[spec.id] = hosted
        of = f" of {spec.user}" if spec.user else ""
        logger.info("preparing %s%s for %s", spec.name, of, self._holder())
        hosted.prepare()

    def _start(self, action: do.StartForkServer) -> None:
        self._hosted[action.computation].start()

    def _clean(self, action: do.CleanComputation) -> None:
        self._hosted[action.computation].clean(run_cleanup=action.run_cleanup)

    def _fork(self, action: do.ForkWorker) -> None:
        if (server := self._hosted[action.computation].server) is not None:
            server.fork(action.worker)

    def _feed(self, action: do.FeedWorker) -> None:
        if (server := self._hosted[action.computation].server) is not None:
            extra = action.extra
            extras = None if extra is None else {action.jobs[0][0]: told_of(extra)}
            server.feed(action.worker, action.jobs, extras, action.objects)

    def _recall(self, action: do.RecallFromWorker) -> None:
        if (server := self._hosted[action.computation].server) is not None:
            server.recall(action.worker, action.before)

    def _cancel(self, action: do.CancelInWorker) -> None:
        if (server := self._hosted[action.computation].server) is not None:
            server.cancel(action.worker, action.sequence)

    def _signal(self, action: do.SignalWorker) -> None:
        if (server := self._hosted[action.computation].server) is not None:
            server.signal(action.worker, action.sequence, action.signal)

    def _retire(self, action: do.RetireWorker) -> None:
        if (server := self._hosted[action.computation].server) is not None:
            server.retire(action.worker)

    def _read_tail(self, action: do.ReadTail) -> None:
        if (server := self._hosted[action.computation].server) is not None:
            stdout, stderr = server.tail(action.worker, action.sequence)
            self._places.post(ev.TailRead(action.peer, action.job, stdout, stderr))

    def _lend_files(self, action: do.LendFiles) -> None:
        self._hosted[action.computation].lend(action)

    def _return_files(self, action: do.ReturnFiles) -> None:
        self._hosted[action.computation].take_back(action)

    def _store_file(self, action: do.StoreFile) -> None:
        self._hosted[action.computation].store(action.file)

    def _fetch_arguments(self, action: do.FetchArguments) -> None:
        name = action.blob.name
        shared = self._arguments.get(name)
        if shared is not None and shared.peer == action.peer:
            return
        _let_go(self._arguments.pop(name, None))
        task = self._loop.create_task(self._fetch(action), name="fetch arguments")
        self._arguments[name] = _Shared(action.peer, action.blob.size, task)

    async def _fetch(self, action: do.FetchArguments) -> None:
        name = action.blob.name
        arriving = sum(each.size for each in self._arguments.values() if each.task is not None) - action.blob.size
        try:
            exchange = self._callers.exchange(action.peer)
            # What lies in memory already is not free; what is on its way will not be.
            if has_room(action.blob.size, arriving):
                descriptor = await exchange.fetch_memfd(action.blob)
            else:
                descriptor = await exchange.fetch_aside(action.blob, self._places.store.directory)
        except (TransferError, NodeError, OSError) as error:
            self._arguments.pop(name, None)
            self._places.post(ev.ArgumentsFailed(name, str(error), lacks_room(error)))
            return
        shared = self._arguments[name]
        shared.task, shared.descriptor = None, descriptor
        self._places.post(ev.ArgumentsFetched(name, descriptor))

    def _forget_arguments(self, action: do.ForgetArguments) -> None:
        _let_go(self._arguments.pop(action.name, None))

    def _fetch_object(self, action: do.FetchObject) -> None:
        name = action.blob.name
        shared = self._objects.get(name)
        if shared is not None and shared.peer == action.peer:
            return
        _let_go(self._objects.pop(name, None))
        task = self._loop.create_task(self._keep_object(action), name="fetch a scattered object")
        self._objects[name] = _Shared(action.peer, action.blob.size, task)

    async def _keep_object(self, action: do.FetchObject) -> None:
        blob = action.blob
        try:
            self._places.check_object(blob)
            descriptor = await self._open_object(action.peer, blob)
        except (TransferError, NodeError, OSError) as error:
            self._objects.pop(blob.name, None)
            self._places.post(ev.ObjectFailed(blob.name, str(error), lacks_room(error)))
            return
        shared = self._objects[blob.name]
        shared.task, shared.descriptor = None, descriptor
        self._places.post(ev.ObjectFetched(blob.name, descriptor))

    async def _open_object(self, peer: ProcessId, blob: BlobRef) -> int:
        while True:
            path = await self._callers.exchange(peer).fetch_file(blob, self._places.store)
            # It may have been lent or tidied away a moment ago; once it is open, its content stays whatever comes.
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _forget_object(self, action: do.ForgetObject) -> None:
        _let_go(self._objects.pop(action.name, None))
        for hosted in self._hosted.values():
            if hosted.server is not None:
                hosted.server.forget_object(action.name)


def _let_go(shared: _Shared | None) -> None:
    if shared is None:
        return
    if shared.task is not None:
        shared.task.cancel()
    if shared.descriptor is not None:
        os.close(shared.descriptor)
