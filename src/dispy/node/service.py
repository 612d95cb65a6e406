"""The host of a node core: links, discovery, fork servers, files and one timer around one plain object.

It performs what the core decides and tells it what happens; it decides nothing about jobs itself. Links are in
`dispy.node.callers`, computations in `dispy.node.performing`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from dispy.errors import NodeError
from dispy.model import ProcessId
from dispy.node import cgroups, litter, vitals
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.callers import Callers
from dispy.node.core import NodeCore
from dispy.node.crowd import Crowd
from dispy.node.environments import Environments
from dispy.node.identity import identity_of
from dispy.node.parcels import Parcels
from dispy.node.performing import Performer
from dispy.node.places import NodePlaces
from dispy.node.settings import NodeSettings
from dispy.node.spool import Spool
from dispy.node.startgate import StartGate
from dispy.node.starting import dispy_folders
from dispy.node.steering import Steering
from dispy.node.upkeep import Upkeep
from dispy.node.variables import env_without_secrets
from dispy.node.venvs import VirtualEnvironments
from dispy.node.workdir import Prefix, Workdirs
from dispy.settings import flag, state_dir
from dispy.wire.blobs import BlobSources, BlobStore
from dispy.wire.interfaces import interface_addresses
from dispy.words import counted, size

logger = logging.getLogger("dispy.node")

FILE_THREADS: Final = 4
"""Threads for work on files, all started with the node: later the machine may allow no more."""
LOAD_INTERVAL: Final = 5.0
"""Seconds between two looks at the machine's load while somebody holds the node."""


class _Inbox(Struct):
    events: deque[ev.Event] = field(default_factory=deque)
    busy: bool = False


class NodeService:
    """A node daemon. `start`, then await `ended`, then `close`."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.process = ProcessId(secrets.token_hex(16))
        self._inbox = _Inbox()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._load_timer: asyncio.TimerHandle | None = None
        self._checks = flag("DISPY_CHECK")
        self._closed = False
        self._handles: set[Path] = set()

    async def start(self) -> None:
        """Take the directory, listen, announce, dial.

        Raises:
            NodeError: the directory or the port is taken, or an address cannot be listened on.
            SettingsError: an interface does not exist, or an empty secret forbids an address.
        """
        vitals.allow_files()
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(started_threads(FILE_THREADS))
        self.ended: asyncio.Future[str] = self._loop.create_future()
        settings = self.settings
        prefix = await asyncio.to_thread(Prefix.claim, settings.prefix, clean=settings.clean)
        self._prefix = prefix
        if (account := settings.account) is not None:
            try:
                prefix.let_in()
                await asyncio.to_thread(account.check, sys.executable, dispy_folders(), prefix.path / "jobs")
            except BaseException:
                prefix.release()
                raise
        environments = Environments()
        self.core = NodeCore(
            vitals.describe(self.process, settings, environments.known, identity_of(prefix.path)),
            wall_offset=time.time() - self._loop.time(),
            grace=settings.msg_timeout,
            zombie_interval=settings.zombie_interval,
            serve=settings.serve,
            notes_leases=settings.handles is not None,
            # Never a number of an earlier daemon with this directory: no daemon makes 65536 batches per ms.
            last_sequence=int(time.time() * 1000) << 16,
        )
        self._sources = BlobSources()
        self._spool = Spool(prefix.path / "spool", self._sources, self._spool_told, most=settings.spool_size)
        self._places = NodePlaces(
            prefix=prefix,
            workdirs=Workdirs(prefix, None if account is None else (account.uid, account.gid)),
            store=BlobStore(prefix.path / "blobs"),
            sources=self._sources,
            parcels=Parcels(self._sources, self.handle, settings.max_file_size),
            environments=environments,
            venvs=VirtualEnvironments(
                settings.environments or prefix.path / "environments",
                prefix.path / "own",
                env_without_secrets(),
                account,
            ),
            growth_limit=self.core.info.memory // max(1, settings.cpus),
            groups=cgroups.find(),
            names={},
            starts=StartGate(
                max(1, min(settings.cpus, vitals.usable_cpus())),
                Crowd(state_dir() / "starts", 2 * vitals.usable_cpus()),
            ),
            settings=settings,
            init=None,
            post=self.handle,
            wall=time.time,
        )
        self.upkeep = Upkeep(settings, post=self.handle, announce=self._announce_if_free, tidy=self._tidy)
        self.steering = Steering(settings, self.core, self.upkeep.offer, self.handle, self.upkeep.set_window)
        self.callers = Callers(
            settings,
            self.process,
            self._sources,
            self._places.store,
            post=self.handle,
            give_up=self._give_up,
            answer_admin=self.steering.answer,
            announce_if_free=self._announce_if_free,
        )
        self._performer = Performer(self._places, self.callers, lambda: _holder_text(self.core))
        self._performers: dict[type, Callable[[Any], None]] = {
            **self._performer.performers,
            do.WithdrawResults: self._withdraw,
            do.SpoolBatch: self._spool.write,
            do.UnspoolBatches: self._spool.remove,
            do.TrustSpool: self._trust_spool,
            do.NoteLease: self._note_lease,
            do.HangUp: self.callers.hang_up,
            do.Announce: self._announce,
            do.Exit: self._exit,
        }
        try:
            await self._load_spool()
            if settings.init is not None:
                from dispy.node.initfile import InitFile

                mark = secrets.token_hex(16)
                prefix.add_mark(mark)
                init = InitFile(settings.init, prefix.path / "init", mark)
                await init.start(env_without_secrets())
                self._places.init = init
            self.upkeep.start()
            await self.callers.start()
            # Nobody has heard the description yet: nothing else has run since the port was opened.
            where = {"addresses": self.callers.ext_hosts, "port": self.callers.port}
            self.core.info = msgspec.structs.replace(self.core.info, **where)
        except BaseException:
            await self.close()
            raise
        self._places.names = {
            "dispy_node_name": settings.name,
            "dispy_node_ip_addr": _shown_address(self.callers.hosts),
        }
        self.callers.join()

    async def close(self) -> None:
        """End everything that belongs to this node, say goodbye, leave nothing behind. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._timer, self._load_timer):
            if timer is not None:
                timer.cancel()
        await self.callers.stop_listening()
        await self.upkeep.stop()
        await self._performer.close()
        if self._places.init is not None:
            await self._places.init.close()
            self._prefix.forget_mark(self._places.init.mark)
        await self._spool.close(keep=not self.settings.remove_prefix)
        await self.callers.hang_up_all()
        self._sources.close()
        for handle in self._handles:
            handle.unlink(missing_ok=True)
        if self._places.groups is not None:
            await asyncio.to_thread(self._places.groups.close)
        await asyncio.to_thread(self._prefix.release, remove=self.settings.remove_prefix)

    def ask_exit(self, *, at_once: bool, when_fetched: bool = False) -> None:
        """Begin to end: after the jobs that are here (and when their results are fetched), or now.

        `ended` tells when it is done.
        """
        self.handle(ev.ExitAsked(at_once, when_fetched))

    def handle(self, event: ev.Event) -> None:
        """Give the core an event and perform what follows; events of these effects come after them."""
        if type(event) is ev.ComputationCleaned:
            self._performer.cleaned(event.computation)
        elif type(event) is ev.LinkOpened or type(event) is ev.ForkServerDied:
            self.core.wall_offset = time.time() - self._loop.time()  # the clock may have been set
        inbox = self._inbox
        inbox.events.append(event)
        if inbox.busy or self._closed:
            return
        inbox.busy = True
        try:
            while inbox.events:
                event = inbox.events.popleft()
                effects = self.core.handle(event, time.monotonic())  # the loop's clock
                self._perform(event, effects)
            self._arm()
        finally:
            inbox.busy = False

    def _perform(self, cause: object, effects: do.Effects) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            _trace(cause, effects)
        if self._checks:
            self.core.check()
        performers = self._performers
        for action in effects.actions:
            performers[type(action)](action)
        if effects.sends:
            self.callers.send(effects.sends)
        if self._load_timer is None and self.core.lease is not None:
            self._load_timer = self._loop.call_later(LOAD_INTERVAL / 10, self._watch_load)

    def _arm(self) -> None:
        at = self.core.next_deadline()
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if at is None else self._loop.call_at(at, self._time_has_come)

    def _time_has_come(self) -> None:
        self._timer = self._timer_at = None
        inbox = self._inbox
        inbox.busy = True
        try:
            # the loop's clock may be a hair before the deadline for which it woke us
            now = max(self._loop.time(), self.core.next_deadline() or 0.0)
            self._perform("timeout", self.core.handle_timeout(now))
        finally:
            inbox.busy = False
        if inbox.events:
            self.handle(inbox.events.popleft())
        else:
            self._arm()

    def _watch_load(self) -> None:
        self._load_timer = None
        lease = self.core.lease
        if lease is None or lease.peer is None or self._closed:
            return
        # Before the event, whose effects would start a timer of their own for the next look.
        self._load_timer = self._loop.call_later(LOAD_INTERVAL, self._watch_load)
        try:
            avail = vitals.sample(self._prefix.path)
        except OSError as error:
            logger.debug("the load cannot be measured: %s", error)
        else:
            self.handle(ev.LoadSampled(avail))

    def _withdraw(self, action: do.WithdrawResults) -> None:
        for name in action.names:
            self._sources.withdraw(name)

    async def _load_spool(self) -> None:
        try:
            leases = await asyncio.to_thread(self._spool.load, self.settings.zombie_interval)
        except OSError as error:
            raise NodeError(f"the directory {self._spool.directory} cannot be used: {error.strerror}") from error
        self._spool.offer()
        if leases or self._spool.unreadable:
            self.handle(ev.SpoolFound(leases, self._spool.unreadable))

    def _spool_told(self, event: ev.Event) -> None:
        self._tell_spool_trouble()
        self.handle(event)

    def _trust_spool(self, action: do.TrustSpool) -> None:
        self._spool.trust(action)
        self._tell_spool_trouble()

    def _tell_spool_trouble(self) -> None:
        """New work is refused as long as results could be lost with the daemon."""
        offer = self.upkeep.offer
        if offer.spool_trouble != self._spool.trouble:
            offer.spool_trouble = self._spool.trouble
            self.upkeep.tell()

    def _note_lease(self, action: do.NoteLease) -> None:
        directory = self.settings.handles
        assert directory is not None
        from dispy.node import handles  # only nodes that programs start for themselves have some

        try:
            path = handles.write(directory, action.lease, self.settings, self.process, self.callers.port)
        except OSError as error:
            logger.warning("no recover_jobs will find this node: %s: %s", directory, error.strerror)
        else:
            self._handles.add(path)

    def _announce(self, _action: do.Announce) -> None:
        logger.info("free: waiting for a program")
        self.callers.announce()

    def _announce_if_free(self) -> None:
        if self.core.lease is None and self.core.info.cpus and not self._closed:
            self.callers.announce()

    def _tidy(self) -> None:
        """In a thread: keep what the node leaves lying about within bounds."""
        node, prefix = self.settings, self._prefix
        environments = node.environments or prefix.path / "environments"
        interpreters = self._performer.interpreters()
        for python in interpreters:
            litter.stamp(environments, str(python))
        in_use = [*prefix.open_directories, *interpreters]
        gone = litter.tidy(prefix.path, in_use, time.time(), keep_size=node.keep_size, keep_seconds=node.keep_seconds)
        # Programs that end soon after their start shall not look through it each time.
        if node.environments is not None and litter.is_due(environments, time.time()):
            gone += litter.tidy_environments(
                environments, in_use, time.time(), keep_size=node.keep_size, keep_seconds=node.keep_seconds
            )
        if gone:
            things = counted(len(gone), "file or directory", "files and directories")
            logger.info("removed what was not used: %s, %s", things, size(sum(entry.size for entry in gone)))

    def _exit(self, action: do.Exit) -> None:
        self._give_up(action.reason)

    def _give_up(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)


def started_threads(count: int) -> ThreadPoolExecutor:
    """An executor whose threads run already.

    Raises:
        NodeError: this machine allows no further threads.
    """
    executor = ThreadPoolExecutor(count, thread_name_prefix="dispy-node-files")
    all_there = threading.Barrier(count + 1)
    try:
        for _ in range(count):
            executor.submit(all_there.wait)
    except RuntimeError as error:
        all_there.abort()
        executor.shutdown(wait=False)
        raise NodeError(f"a node needs {count} threads, and they cannot be started: {error}") from error
    all_there.wait()
    return executor


def _trace(cause: object, effects: do.Effects) -> None:
    """The complete story of a core: every event and everything that it caused, arguments shortened."""
    logger.debug("event %.300r", cause)
    for action in effects.actions:
        logger.debug("  action %.300r", action)
    for send in effects.sends:
        logger.debug("  send %.300r", send.message)


def _holder_text(core: NodeCore) -> str:
    if core.lease is None:
        return "nobody"
    holder = core.lease.holder
    return f"{holder.user}@{holder.host} ({holder.program}, process {holder.pid})"


def _shown_address(hosts: tuple[str, ...]) -> str:
    """The address that jobs are told; a node that listens everywhere names the one of its default route."""
    if hosts and hosts[0] not in {"0.0.0.0", "::"}:
        return hosts[0]
    found = [each.address for each in interface_addresses() if not each.is_loopback and not each.is_link_local]
    return found[0] if found else "127.0.0.1"
