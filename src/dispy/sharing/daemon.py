"""The shared scheduler: one scheduler service, its listeners for nodes and for clients, and its store."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

import msgspec

from dispy import owndirectory
from dispy.errors import DispyError, NodeError, PortInUse, SettingsError, StoreError
from dispy.hostport import place_named
from dispy.logs import logger
from dispy.model import SHARED_SCHEDULER, ComputationId, ProcessId, Role
from dispy.nodes import NodeAllocate
from dispy.owndirectory import SCHEDULER
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import Effects, NodeVanished
from dispy.scheduler.events import Event, NodeJoined, NodeLost
from dispy.scheduler.fairness import Charged
from dispy.scheduler.hosting import Hosting
from dispy.scheduler.identity import ServiceSettings, this_holder
from dispy.scheduler.links import Reached
from dispy.scheduler.places import Place
from dispy.scheduler.room import Room
from dispy.scheduler.service import SchedulerService
from dispy.settings import GRACE_TIMEOUT, HEARTBEAT_INTERVAL, SHARED_AHEAD_SECONDS, SMALL_POOL, SUSPECT_TIMEOUT
from dispy.sharing.clients import ClientLinks
from dispy.sharing.door import Door
from dispy.sharing.goingon import go_on, in_words
from dispy.sharing.keeping import Restored
from dispy.sharing.opening import Opening
from dispy.sharing.passing import FilePassing
from dispy.sharing.pool import Pool, Rules
from dispy.sharing.questions import Questions
from dispy.sharing.settings import SharingSettings
from dispy.sharing.staging import Staging
from dispy.sharing.store import open_store
from dispy.sharing.storefile import FILE, StoreFile
from dispy.sharing.watch import LOOK_INTERVAL, WaitingWatch
from dispy.wire.discovery import listen_hosts
from dispy.wire.link import BROKEN_OFF, LinkSettings, Listener
from dispy.wire.messages import FileOffered
from dispy.wire.pool import PoolStatus
from dispy.words import counted

LISTEN_AGAIN: Final = 5.0
"""Seconds between attempts to listen for nodes while another program does so at that port."""
UNSTORED_RESULTS: Final = 64 << 20
"""Bytes of large results that are fetched from nodes before they are on the disk; others wait at their nodes."""
ACCOUNTS_INTERVAL: Final = 5.0
"""Seconds after which what users were charged is stored again; so much of it may be lost with this process."""
ENDS: Final = "the scheduler ends"


class LoopHere:
    """The running loop, for the service (a `LoopHost`)."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Run a function in the loop soon; from any thread."""
        self.loop.call_soon_threadsafe(function, *args)

    def wake(self, function: Callable[[], object]) -> None:
        """Run a function in the loop soon; from any thread."""
        self.loop.call_soon_threadsafe(function)


class SharedScheduler:
    """The daemon. `start`, wait for `ended`, then `close`."""

    def __init__(self, settings: SharingSettings) -> None:
        self.settings = settings
        self.name = settings.name or socket.gethostname()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Why it is to end."""
        self.has_failed = False
        """It cannot go on."""
        self.port_notice = ""
        """Why nodes cannot join it now; empty when they can."""
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = -1
        self._is_open = False
        """There is a store."""
        self._is_built = False
        """All of the rest is there."""
        self._watching: asyncio.TimerHandle | None = None
        self._clients_listener: Listener | None = None
        self._waits_for_end = False
        self._refusals: dict[str, str] = {}
        self._accounts_at = 0.0
        self._accounts: dict[str, Charged] = {}

    # ---- the beginning ----

    async def start(self) -> None:
        """Take up what was left, listen, look for nodes.

        Raises:
            SettingsError: a setting cannot be used, or the directory is in use.
            StoreError: what lies in the directory cannot be used.
            NodeError: the port for clients is taken.
        """
        settings = self.settings
        await asyncio.to_thread(self._take_directory)
        items = await asyncio.to_thread(_items, settings.use)
        self.store, restored = await open_store(settings.prefix)
        self._is_open = True
        self._build(restored, items)
        self._is_built = True
        go_on(self.pool, self.opening, restored)
        await self.pool.staging.sweep()
        await self._listen_to_clients()
        await self._listen_to_nodes()
        for owner in list(self.service.owners.values()):
            await self.service.search.look_for(owner)
        await self.service.search.look(self.pool.rules.named, asks=self.pool.rules.discovers)
        self._watching = self._loop.call_later(LOOK_INTERVAL, self._look)
        self.spawn(WaitingWatch(self._why_waits).watch(self.opening.guests.values))

    def _take_directory(self) -> None:
        prefix = self.settings.prefix
        try:
            _check_ours(prefix)
            prefix.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(prefix / owndirectory.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check_ours(prefix)  # another daemon may have been quicker, and have ended
            owndirectory.mark(prefix, SCHEDULER)
            if prefix.stat().st_uid == os.getuid():
                prefix.chmod(0o700)
            if self.settings.clean:
                if (prefix / FILE).exists() and (what := _what_lies_in(prefix)):
                    logger.warning("--clean: this scheduler forgets %s", what)
                owndirectory.empty(prefix, SCHEDULER)
        except BlockingIOError:
            raise SettingsError(
                f"{prefix} is in use by another dispyscheduler; end that one, or give --dest_path_prefix"
            ) from None
        except OSError as error:
            raise SettingsError(f"{prefix} cannot be used: {error.strerror}") from error

    def _build(self, restored: Restored, items: list[NodeAllocate]) -> None:
        settings = self.settings
        core = SchedulerCore(
            holder=msgspec.structs.replace(this_holder(settings.ext_host), program=SHARED_SCHEDULER),
            token=restored.token,
            grace=5 * settings.pulse_interval,
            policy=settings.policy,
            max_cpus_per_user=settings.max_cpus_per_user,
            ahead=SHARED_AHEAD_SECONDS,
            park_above=SMALL_POOL,
        )
        self.service = service = SchedulerService(
            LoopHere(),
            ServiceSettings(
                credentials=settings.nodes,
                group=settings.group,
                base_port=settings.base_port,
                client_port=settings.base_port,
                interfaces=settings.interfaces,
                pulse_interval=settings.pulse_interval,
                multicast=settings.multicast,
                ext_host=settings.ext_host,
            ),
            hosting=Hosting(core, restored.token, self._note, self.store.after, self._deliver, Room(UNSTORED_RESULTS)),
        )
        rules = Rules(
            items,
            settings.cooperative,
            settings.cleanup_nodes,
            settings.ping_interval,
            settings.zombie_interval,
        )
        staging = Staging(settings.prefix, service.links.sources, service.offers.held, settings.max_file_size)
        self.pool = Pool(service, self.store, staging, rules, self.spawn, Door(settings.max_jobs_per_user))
        self.passing = FilePassing(
            staging.passing, lambda id: self.opening.guests.get(id), core.record_of, settings.max_file_size
        )
        self.opening = Opening(self.pool, self.passing.attached)
        self.questions = questions = Questions(self.pool, self.opening.guests, settings.policy.value, self.name)
        self.clients = ClientLinks(self.pool, self.opening, questions, self.passing, lambda: settings.client_port)
        self.store.places_of = self._places_of
        self.store.address_of = lambda node: service.links.nodes[node].address if node in service.links.nodes else ""
        self.store.on_problem = self._store_has_problem
        self.store.on_broken = self._fail

    def _note(self, event: Event | None, effects: Effects) -> None:
        self.store.note(self.service.core, event, effects)
        if event is None:
            for notice in effects.notices:
                if type(notice) is NodeVanished:
                    self.pool.departed.vanished(notice.node, notice.cause)
        elif type(event) is NodeLost:
            self.pool.departed.vanished(event.node, event.cause)
        elif type(event) is NodeJoined:
            self.pool.departed.joined(event.node, event.info.name, event.address, event.info.cpus)
            view = self.service.links.view(event.node)
            unused = "" if view is None or self.pool.rules.allow(view) else ", and is not used: --node names others"
            offers = counted(event.info.cpus, "CPU")
            logger.info("node %s (%s) with %s is there%s", event.info.name, event.address, offers, unused)

    async def _deliver(self, reached: Reached, offer: FileOffered) -> str:
        return await self.passing.deliver(reached, offer)

    def _places_of(self, node: ProcessId) -> tuple[Place, ...]:
        reached = self.service.links.nodes.get(node)
        return self.service.links.places.of(node) or (() if reached is None else ((reached.address, reached.port),))

    def _why_waits(self, cluster: ComputationId) -> str | None:
        """Why jobs of a cluster wait that will not get their turn; where there is no node at all, why that is so."""
        sentence = self.service.core.why_cluster_waits(cluster)
        return (
            f"{sentence} {self.service.search.account()}".rstrip()
            if sentence and not self.service.core.nodes
            else sentence
        )

    def _store_has_problem(self, sentence: str) -> None:
        for guest in self.opening.guests.values():
            guest.say(sentence or "the scheduler can store jobs again")

    async def _listen_to_clients(self) -> None:
        settings = self.settings
        pulse = settings.pulse_interval / (GRACE_TIMEOUT / 5)
        self._clients_listener = await Listener.start(
            listen_hosts(settings.clients, hosts=settings.hosts, interfaces=settings.interfaces),
            settings.client_port,
            settings=LinkSettings(
                process=self.service.process,
                role=Role.SCHEDULER,
                name=self.name,
                credentials=settings.clients,
                group=settings.group,
                admin=settings.admin,
                heartbeat_interval=HEARTBEAT_INTERVAL * pulse,
                suspect_timeout=SUSPECT_TIMEOUT * pulse,
                grace_timeout=GRACE_TIMEOUT * pulse,
            ),
            handler=self.clients,
            accept=frozenset({Role.CLIENT, Role.ADMIN}),
            on_refused=self._client_refused,
        )

    def _client_refused(self, address: str, reason: str) -> None:
        level = (
            logger.debug if reason.startswith(BROKEN_OFF) or self._refusals.get(address) == reason else logger.warning
        )
        level("a program at %s was refused: %s", address, reason)
        self._refusals[address] = reason

    async def _listen_to_nodes(self) -> None:
        settings = self.settings
        hosts = listen_hosts(settings.nodes, hosts=settings.hosts, interfaces=settings.interfaces)
        try:
            await self.service.links.listen_at(hosts)
        except PortInUse as error:
            self.port_notice = f"nodes cannot join this scheduler until that has ended: {error}"
            self.spawn(self._listen_again(hosts))

    async def _listen_again(self, hosts: list[str]) -> None:
        while self.port_notice:
            await asyncio.sleep(LISTEN_AGAIN)
            try:
                await self.service.links.listen_at(hosts)
            except PortInUse:
                continue
            except NodeError as error:
                logger.warning("nodes cannot join this scheduler: %s", error)
                return
            self.port_notice = ""
            logger.info("nodes can join this scheduler now")

    @property
    def where(self) -> list[tuple[str, int]]:
        """Where clients dial."""
        listener = self._clients_listener
        return [] if listener is None else [(host, listener.port) for host in listener.hosts]

    # ---- the end ----

    def _fail(self, sentence: str) -> None:
        self.has_failed = True
        self.end(sentence)

    def end(self, reason: str) -> None:
        """End now."""
        if not self.ended.done():
            self.ended.set_result(reason)

    def end_when_idle(self) -> None:
        """End when no job is pending."""
        self._waits_for_end = True

    @property
    def pending(self) -> int:
        """Jobs that have not ended."""
        return sum(len(guest.jobs) for guest in self.opening.guests.values())

    def load(self) -> int:
        """Jobs that have not ended, and results that nobody has taken."""
        return self.pending + sum(len(guest.ends) for guest in self.opening.guests.values())

    def status(self) -> PoolStatus:
        """How everything stands."""
        return self.questions.status()

    def left(self) -> str:
        """What is left for the next start, in words; empty when nothing is."""
        guests = self.opening.guests.values()
        if not guests:
            return ""
        what = in_words(len(guests), self.pending, sum(len(guest.ends) for guest in guests))
        return f"for the next start there are in {self.settings.prefix}: {what}"

    async def close(self) -> None:
        """End all links and close the store. Nodes go on with what they have, if anything is left to be done."""
        if self._watching is not None:
            self._watching.cancel()
        if self._clients_listener is not None:
            await self._clients_listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._is_built:
            returns = bool(self.opening.guests)
            self.clients.close(ENDS, returns=returns)
            await self.service.stop(ENDS, returns=returns)
            self._keep_accounts()
        if self._is_open:
            await self.store.close()
        if self._lock >= 0:
            os.close(self._lock)

    # ---- by the clock ----

    def _look(self) -> None:
        self._watching = self._loop.call_later(LOOK_INTERVAL, self._look)
        self.opening.give_up_forsaken()
        self.pool.departed.look(self.service.core.nodes, time.time())
        self.clients.drop_those_that_do_not_read()
        if self._loop.time() >= self._accounts_at:
            self._keep_accounts()
        if self._waits_for_end and not (self.pending or self.pool.door.is_shut):
            self.end("no job is pending any more")

    def _keep_accounts(self) -> None:
        """What users have been charged is no matter of a single job: it is kept now and then."""
        self._accounts_at = self._loop.time() + ACCOUNTS_INTERVAL
        accounts = self.service.core.accounts()
        if accounts != self._accounts:
            self._accounts = accounts
            self.store.accounts_stand(accounts)

    def spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        """Do something beside."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, DispyError):
            logger.warning("%s", error)
        elif error is not None:
            logger.error("an internal task failed", exc_info=error)


def _check_ours(prefix: Path) -> None:
    if why := owndirectory.refusal(prefix, SCHEDULER):
        raise SettingsError(why)


def _what_lies_in(prefix: Path) -> str:
    """What a scheduler would go on with; empty: nothing."""
    try:
        file = StoreFile(prefix)
    except StoreError as error:
        return f"what cannot be read ({error})"
    try:
        counts = file.counts()
        return in_words(*counts) if any(counts) else ""
    finally:
        file.close()


def _items(use: tuple[str, ...]) -> list[NodeAllocate]:
    """In a thread: names are looked up."""
    items = []
    for text in use:
        if "*" in text:
            item = NodeAllocate(text)
        else:
            host, port = place_named(text, 0, "--node")
            item = NodeAllocate(host, port or None)
        item.addresses()
        items.append(item)
    return items
