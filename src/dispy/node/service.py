"""The host of a node core: links, discovery, fork servers, files and one timer around one plain object.

It performs what the core decides and tells it what happens; it decides nothing about jobs itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dispy.errors import AuthenticationRejected, LinkError, NodeError, PortInUse, TransferError
from dispy.model import ProcessId, Role
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node import vitals
from dispy.node.core import NodeCore
from dispy.node.environments import Environments
from dispy.node.hosting import HostedComputation, NodePlaces
from dispy.node.workdir import Prefix, Workdirs
from dispy.secrets import Credentials
from dispy.settings import BASE_PORT, GRACE_TIMEOUT, NODE_PORT_OFFSET, flag
from dispy.wire.blobs import BlobExchange, BlobSources, BlobStore
from dispy.wire.discovery import Answerer, DiscoveryRefused, listen_hosts
from dispy.wire.link import Dialler, Link, LinkSettings, Listener, better_link
from dispy.wire.messages import AnyMessage

logger = logging.getLogger("dispy.node")

LOAD_INTERVAL: Final = 5.0
"""Seconds between two looks at the machine's load while somebody holds the node."""
CLOSE_TIMEOUT: Final = 2.0
"""Seconds that the last words of a link may take to leave."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """How a node is to be run."""

    name: str
    cpus: int
    prefix: Path
    credentials: Credentials
    group: str = ""
    hosts: tuple[str, ...] = ()
    """Addresses or names to listen on; empty: as `interfaces` say."""
    interfaces: tuple[str, ...] = ()
    base_port: int = BASE_PORT
    insist_on_port: bool = False
    """The user named the port: do not take another one."""
    ephemeral: bool = False
    """Listen on any free port and take no part in discovery (the embedded node)."""
    joins: tuple[tuple[str, int], ...] = ()
    clean: bool = False
    remove_prefix: bool = False
    """Remove the directory at the end."""
    oversubscribe: bool = False


@dataclass(slots=True)
class _Caller:
    """A scheduler process as the service knows it."""

    link: Link | None
    exchange: BlobExchange
    forgetting: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _SharedArguments:
    """Arguments that are being fetched or lie in a memfd."""

    peer: ProcessId
    task: asyncio.Task[None] | None
    descriptor: int | None = None


@dataclass(slots=True)
class _Inbox:
    events: deque[ev.Event] = field(default_factory=deque)
    busy: bool = False


class NodeService:
    """A node daemon. `start`, then await `ended`, then `close`."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.process = ProcessId(secrets.token_hex(16))
        self.port = 0
        self.hosts: tuple[str, ...] = ()
        self.port_notice = ""
        """Why the node does not listen at its usual port; empty if it does."""
        self._inbox = _Inbox()
        self._callers: dict[ProcessId, _Caller] = {}
        self._hosted: dict[str, HostedComputation] = {}
        self._arguments: dict[bytes, _SharedArguments] = {}
        self._diallers: list[Dialler] = []
        self._listener: Listener | None = None
        self._answerer: Answerer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._load_timer: asyncio.TimerHandle | None = None
        self._last_failure: dict[Dialler, str] = {}
        self._seconds: dict[Dialler, ProcessId] = {}
        """Diallers that reached a process to which there is another link."""
        self._checks = flag("DISPY_CHECK")
        self._closed = False

    # ---- life ----

    async def start(self) -> None:
        """Take the directory, listen, announce, dial.

        Raises:
            NodeError: the directory or the port is taken, or an address cannot be listened on.
            SettingsError: an interface does not exist, or an empty secret forbids an address.
        """
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        settings = self.settings
        prefix = await asyncio.to_thread(Prefix.claim, settings.prefix, clean=settings.clean)
        self._prefix = prefix
        environments = Environments()
        info = vitals.describe(self.process, settings.name, settings.cpus, environments.known, settings.oversubscribe)
        self.core = NodeCore(info, wall_offset=time.time() - self._loop.time())
        self._sources = BlobSources()
        self._places = NodePlaces(
            prefix=prefix,
            workdirs=Workdirs(prefix),
            store=BlobStore(prefix.path / "blobs"),
            sources=self._sources,
            environments=environments,
            names={},
            post=self.handle,
            wall=time.time,
        )
        self._link_settings = LinkSettings(
            process=self.process,
            role=Role.NODE,
            name=settings.name,
            credentials=settings.credentials,
            group=settings.group,
        )
        try:
            await self._listen()
            await self._answer()
        except BaseException:
            await self.close()
            raise
        self._places.names = {
            "dispy_node_name": settings.name,
            "dispy_node_ip_addr": _shown_address(self.hosts),
        }
        for host, port in settings.joins:
            self._join(host, port)

    async def _listen(self) -> None:
        settings = self.settings
        hosts = listen_hosts(settings.credentials, hosts=settings.hosts, interfaces=settings.interfaces)
        port = 0 if settings.ephemeral else settings.base_port + NODE_PORT_OFFSET
        try:
            self._listener = await self._listen_at(hosts, port)
        except PortInUse as error:
            if settings.insist_on_port:
                raise
            self._listener = await self._listen_at(hosts, 0)
            self.port_notice = f"{error}; this node listens at {self._listener.port} instead"
        self.port = self._listener.port
        self.hosts = self._listener.hosts

    async def _listen_at(self, hosts: list[str], port: int) -> Listener:
        return await Listener.start(
            hosts,
            port,
            settings=self._link_settings,
            handler=self,
            accept=frozenset({Role.CLIENT, Role.SCHEDULER}),
            on_refused=self._refused,
        )

    async def _answer(self) -> None:
        settings = self.settings
        if settings.ephemeral:
            return
        self._answerer = await Answerer.start(
            credentials=settings.credentials,
            group=settings.group,
            base_port=settings.base_port,
            name=settings.name,
            process=self.process,
            tcp_port=self.port,
            interfaces=settings.interfaces,
            on_refused=self._stranger,
        )
        self._answerer.announce()

    def _join(self, host: str, port: int) -> None:
        dialler = Dialler(
            host,
            port,
            settings=self._link_settings,
            handler=self,
            on_failure=self._join_failed,
            on_closed=self._join_closed,
        )
        self._diallers.append(dialler)
        dialler.start()

    async def close(self) -> None:
        """End everything that belongs to this node, say goodbye, leave nothing behind. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._timer, self._load_timer):
            if timer is not None:
                timer.cancel()
        for dialler in self._diallers:
            dialler.stop("the node is ending")
        if self._answerer is not None:
            self._answerer.close()
        if self._listener is not None:
            await self._listener.close()
        for name in list(self._arguments):
            self._forget_arguments(do.ForgetArguments(name))
        await asyncio.gather(*(hosted.end() for hosted in self._hosted.values()))
        await self._hang_up_all()
        self._sources.close()
        await asyncio.to_thread(self._prefix.release, remove=self.settings.remove_prefix)

    async def _hang_up_all(self) -> None:
        links = []
        for caller in self._callers.values():
            caller.exchange.close("the node is ending")
            if caller.forgetting is not None:
                caller.forgetting.cancel()
            if caller.link is not None:
                caller.link.close("the node is ending")
                links.append(caller.link)
        self._callers.clear()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.gather(*(link.wait_closed() for link in links))
        except TimeoutError:
            logger.debug("a link took more than %g s to close", CLOSE_TIMEOUT)

    def ask_exit(self, *, at_once: bool) -> None:
        """Begin to end: after the jobs that are here, or now. `ended` tells when it is done."""
        self.handle(ev.ExitAsked(at_once))

    # ---- the core and its timer ----

    def handle(self, event: ev.Event) -> None:
        """Give the core an event and perform what follows; events of these effects come after them."""
        if type(event) is ev.ComputationCleaned:
            self._hosted.pop(event.computation, None)
        inbox = self._inbox
        inbox.events.append(event)
        if inbox.busy or self._closed:
            return
        inbox.busy = True
        try:
            while inbox.events:
                event = inbox.events.popleft()
                effects = self.core.handle(event, self._loop.time())
                self._perform(event, effects)
            self._arm()
        finally:
            inbox.busy = False

    def _perform(self, cause: object, effects: do.Effects) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            _trace(cause, effects)
        if self._checks:
            self.core.check()
        for action in effects.actions:
            _PERFORMERS[type(action)](self, action)
        callers = self._callers
        for send in effects.sends:
            caller = callers.get(send.peer)
            if caller is not None and caller.link is not None:
                caller.link.send(send.message, send.payload)

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
        try:
            avail = vitals.sample(self._prefix.path)
        except OSError as error:
            logger.debug("the load cannot be measured: %s", error)
        else:
            self.handle(ev.LoadSampled(avail))
        self._load_timer = self._loop.call_later(LOAD_INTERVAL, self._watch_load)

    # ---- links (see LinkHandler) ----

    def link_opened(self, link: Link) -> None:
        """A scheduler is there, whoever dialled."""
        peer = link.peer
        caller = self._callers.get(peer.process)
        if caller is None:
            self._callers[peer.process] = _Caller(link, BlobExchange(link, self._sources))
        else:
            if caller.link is not None:
                if better_link(caller.link, link) is not link:
                    self._drop_second(link)
                    return
                self._drop_second(caller.link)
            if caller.forgetting is not None:
                caller.forgetting.cancel()
            caller.link, caller.forgetting = link, None
        logger.info("%s at %s is connected", peer.name or peer.role.value, peer.address)
        self.handle(ev.LinkOpened(peer.process))
        if caller is not None:
            caller.exchange.link_replaced(link)
        if self._load_timer is None:
            self._load_timer = self._loop.call_later(LOAD_INTERVAL / 10, self._watch_load)

    def _drop_second(self, link: Link) -> None:
        """Close one of two links to a process; its dialler waits for the end of the other one."""
        for dialler in self._diallers:
            if dialler.link is link:
                self._seconds[dialler] = link.peer.process
        link.close("there is another link between us")

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """What one read brought."""
        process = link.peer.process
        caller = self._callers.get(process)
        if caller is None or caller.link is not link:
            return
        for message, payload in messages:
            if not caller.exchange.message_arrived(message, payload):
                self.handle(ev.SchedulerSaid(process, message, payload))
        if self._load_timer is None and self.core.lease is not None:
            self._load_timer = self._loop.call_later(LOAD_INTERVAL, self._watch_load)

    def link_suspected(self, link: Link) -> None:
        """Silence; the link says when it is lost."""
        logger.debug("nothing is heard of %s at %s", link.peer.name, link.peer.address)

    def link_recovered(self, link: Link) -> None:
        """The silence was nothing."""
        logger.debug("%s at %s is heard again", link.peer.name, link.peer.address)

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """A scheduler is gone, perhaps for a while."""
        process = link.peer.process
        caller = self._callers.get(process)
        if caller is None or caller.link is not link:
            return
        logger.info("the link to %s at %s ended: %s", link.peer.name, link.peer.address, cause)
        caller.link = None
        if goodbye:
            self._forget_caller(process, cause)
        else:
            wait = GRACE_TIMEOUT + 1.0
            caller.forgetting = self._loop.call_later(wait, self._forget_caller, process, cause)
        self.handle(ev.LinkLost(process, goodbye))

    def _forget_caller(self, process: ProcessId, cause: str) -> None:
        caller = self._callers.pop(process, None)
        if caller is not None:
            caller.exchange.close(cause)

    def _refused(self, address: str, sentence: str) -> None:
        logger.warning("%s was refused: %s", address, sentence)

    def _stranger(self, refused: DiscoveryRefused) -> None:
        command = "`dispy secret show | ssh HOST dispy secret set`"
        if refused.reason == "secret":
            logger.warning(
                "%s at %s looks for nodes with another secret; if it shall use this node, make the secrets "
                "equal with %s",
                refused.name,
                refused.address,
                command,
            )
        else:
            logger.info("%s at %s looks for nodes of another %s", refused.name, refused.address, refused.reason)

    def _join_failed(self, dialler: Dialler, error: LinkError) -> None:
        text = str(error)
        if self._last_failure.get(dialler) != text:
            self._last_failure[dialler] = text
            final = isinstance(error, AuthenticationRejected)
            logger.warning("cannot join: %s%s", text, "" if final else "; trying again")
        if isinstance(error, AuthenticationRejected):
            self._diallers.remove(dialler)
            if not self._diallers and self._answerer is None and not self.ended.done():
                self.ended.set_result(f"cannot join: {text}")

    def _join_closed(self, dialler: Dialler) -> None:
        if self._closed:
            return
        if dialler not in self._seconds:
            logger.info("%s:%d said goodbye; waiting for the next program there", dialler.host, dialler.port)
        self._last_failure.pop(dialler, None)
        self._loop.call_later(1.0, self._dial_again, dialler)

    def _dial_again(self, dialler: Dialler) -> None:
        if self._closed or dialler not in self._diallers:
            return
        other = self._callers.get(self._seconds[dialler]) if dialler in self._seconds else None
        if other is not None and other.link is not None:
            self._loop.call_later(1.0, self._dial_again, dialler)
            return
        self._seconds.pop(dialler, None)
        dialler.start()

    # ---- actions ----

    def _prepare(self, action: do.PrepareComputation) -> None:
        spec = action.computation
        caller = self._callers[action.peer]
        hosted = HostedComputation(spec, action.setup_args, caller.exchange, self._places)
        self._hosted[spec.id] = hosted
        logger.info("preparing %s for %s", spec.name, _holder_text(self.core))
        hosted.prepare()

    def _restart(self, action: do.RestartComputation) -> None:
        logger.warning("the fork server of %s died; starting it again", self._hosted[action.computation].spec.name)
        self._hosted[action.computation].restart()

    def _clean(self, action: do.CleanComputation) -> None:
        self._hosted[action.computation].clean(run_cleanup=action.run_cleanup)

    def _fork(self, action: do.ForkWorker) -> None:
        if (server := self._hosted[action.computation].server) is not None:
            server.fork(action.worker)

    def _feed(self, action: do.FeedWorker) -> None:
        if (server := self._hosted[action.computation].server) is not None:
            server.feed(action.worker, action.jobs)

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

    def _fetch_arguments(self, action: do.FetchArguments) -> None:
        name = action.blob.name
        shared = self._arguments.get(name)
        if shared is not None and shared.peer == action.peer:
            return
        if shared is not None:
            self._forget_arguments(do.ForgetArguments(name))
        task = self._loop.create_task(self._fetch(action), name="fetch arguments")
        self._arguments[name] = _SharedArguments(action.peer, task)

    async def _fetch(self, action: do.FetchArguments) -> None:
        name = action.blob.name
        try:
            descriptor = await self._callers[action.peer].exchange.fetch_memfd(action.blob)
        except (TransferError, NodeError) as error:
            self._arguments.pop(name, None)
            self.handle(ev.ArgumentsFailed(name, str(error)))
            return
        shared = self._arguments[name]
        shared.task, shared.descriptor = None, descriptor
        self.handle(ev.ArgumentsFetched(name, descriptor))

    def _forget_arguments(self, action: do.ForgetArguments) -> None:
        shared = self._arguments.pop(action.name, None)
        if shared is None:
            return
        if shared.task is not None:
            shared.task.cancel()
        if shared.descriptor is not None:
            os.close(shared.descriptor)

    def _withdraw(self, action: do.WithdrawResults) -> None:
        for name in action.names:
            self._sources.withdraw(name)

    def _hang_up(self, action: do.HangUp) -> None:
        caller = self._callers.get(action.peer)
        if caller is not None and caller.link is not None:
            logger.warning("ending the link to %s: %s", caller.link.peer.name, action.reason)
            link, caller.link = caller.link, None
            link.close(action.reason)
            self._forget_caller(action.peer, action.reason)

    def _announce(self, _action: do.Announce) -> None:
        logger.info("free")
        if self._answerer is not None:
            self._answerer.announce()

    def _exit(self, action: do.Exit) -> None:
        if not self.ended.done():
            self.ended.set_result(action.reason)


_PERFORMERS: Final[dict[type, Callable[[NodeService, Any], None]]] = {
    do.PrepareComputation: NodeService._prepare,
    do.RestartComputation: NodeService._restart,
    do.CleanComputation: NodeService._clean,
    do.ForkWorker: NodeService._fork,
    do.FeedWorker: NodeService._feed,
    do.RecallFromWorker: NodeService._recall,
    do.CancelInWorker: NodeService._cancel,
    do.SignalWorker: NodeService._signal,
    do.RetireWorker: NodeService._retire,
    do.FetchArguments: NodeService._fetch_arguments,
    do.ForgetArguments: NodeService._forget_arguments,
    do.WithdrawResults: NodeService._withdraw,
    do.HangUp: NodeService._hang_up,
    do.Announce: NodeService._announce,
    do.Exit: NodeService._exit,
}


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
    from dispy.wire.discovery import interface_addresses

    found = [each.address for each in interface_addresses() if not each.is_loopback]
    return found[0] if found else "127.0.0.1"
