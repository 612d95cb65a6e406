"""The links of this node, whoever dialled: listening, discovery, joining, goodbyes.

What schedulers say goes to the core by the events that `post` takes; nothing here reads more of it than blobs. What
admins say is answered at once by `answer_admin`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import attrgetter
from typing import Final

from msgspec import Struct, structs

from dispy.errors import AuthenticationRejected, LinkError, PortInUse, SettingsError
from dispy.model import ProcessId, Role
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.settings import NodeSettings
from dispy.settings import GRACE_TIMEOUT, HEARTBEAT_INTERVAL, NODE_PORT_OFFSET, SUSPECT_TIMEOUT
from dispy.wire.blobs import BlobExchange, BlobSources, BlobStore
from dispy.wire.datagrams import RateLimit
from dispy.wire.discovery import Answerer, DiscoveryRefused, listen_hosts
from dispy.wire.interfaces import is_own
from dispy.wire.link import BROKEN_OFF, Dialler, Link, LinkSettings, Listener, better_link
from dispy.wire.messages import AnyMessage, BlobShared
from dispy.wire.peers import PeerLinks

logger = logging.getLogger("dispy.node")

INTERFACE_INTERVAL: Final = 5.0
"""Seconds between two looks at the machine's addresses."""
TELL_INTERVAL: Final = 3600.0
"""Seconds until the refusal of one peer for one cause is told again."""
JOINED_TIMEOUT: Final = 2.0
"""Seconds that a program has for taking a node that joined it, before the network hears of that node."""
CLOSE_TIMEOUT: Final = 2.0
"""Seconds that the last words of a link may take to leave."""


class _Caller(Struct):
    """A scheduler process as the service knows it."""

    link: Link | None
    exchange: BlobExchange
    forgetting: asyncio.TimerHandle | None = None


class Callers:
    """All links of a node: `start`, then `stop_listening` and `hang_up_all`. `give_up` hears that no link can come."""

    def __init__(
        self,
        settings: NodeSettings,
        process: ProcessId,
        sources: BlobSources,
        store: BlobStore,
        *,
        post: Callable[[ev.Event], None],
        give_up: Callable[[str], None],
        answer_admin: Callable[[AnyMessage, str], AnyMessage | None],
        announce_if_free: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._process = process
        self._sources = sources
        self._post = post
        self._give_up = give_up
        self._answer_admin = answer_admin
        self._announce_if_free = announce_if_free
        self._admins: set[Link] = set()
        self.port = 0
        self.ext_hosts: tuple[tuple[str, int], ...] = ()
        """Hosts and ports where others reach it."""
        self.port_notice = ""
        """Why the node does not listen at its usual port; empty if it does."""
        self._callers: dict[ProcessId, _Caller] = {}
        self._diallers: list[Dialler] = []
        self._listener: Listener | None = None
        self._answerer: Answerer | None = None
        self._last_failure: dict[Dialler, str] = {}
        self._seconds: dict[Dialler, ProcessId] = {}
        """Diallers that reached a process to which there is another link."""
        self._interface_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._told = RateLimit(TELL_INTERVAL)
        self._link_settings = LinkSettings(
            process=process,
            role=Role.NODE,
            name=settings.name,
            credentials=settings.credentials,
            group=settings.group,
            admin=settings.admin,
            heartbeat_interval=HEARTBEAT_INTERVAL * settings.msg_timeout / GRACE_TIMEOUT,
            suspect_timeout=SUSPECT_TIMEOUT * settings.msg_timeout / GRACE_TIMEOUT,
            grace_timeout=settings.msg_timeout,
        )
        self._peers = PeerLinks(structs.replace(self._link_settings, role=Role.PEER), store)

    async def start(self) -> None:
        """Listen and take part in discovery.

        Raises:
            NodeError: the port is taken, or an address cannot be listened on.
            SettingsError: an interface does not exist, or an empty secret forbids an address.
        """
        self._loop = asyncio.get_running_loop()
        await self._listen()
        await self._answer()
        self._watch_interfaces()

    def join(self) -> None:
        """Begin to dial the programs that the settings name."""
        for host, port in self._settings.joins:
            self._join(host, port)

    async def _listen(self) -> None:
        settings = self._settings
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
        self.ext_hosts = tuple((host, port or self.port) for host, port in settings.ext_hosts)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses at which it listens now."""
        return self._listener.hosts if self._listener is not None else ()

    def _watch_interfaces(self) -> None:
        """Follow addresses and interfaces that come and go."""
        settings = self._settings
        if self._closed or self._answerer is None or self._listener is None:
            return
        if self._answerer.refresh():
            if settings.interfaces and not settings.hosts:
                with contextlib.suppress(SettingsError):  # none of them is up: they may come back
                    self._listener.move(listen_hosts(settings.credentials, interfaces=settings.interfaces))
            self._answerer.announce()
        self._interface_timer = self._loop.call_later(INTERFACE_INTERVAL, self._watch_interfaces)

    async def _listen_at(self, hosts: list[str], port: int) -> Listener:
        return await Listener.start(
            hosts,
            port,
            settings=self._link_settings,
            handler=self,
            accept=frozenset({Role.CLIENT, Role.SCHEDULER, Role.PEER, Role.ADMIN}),
            on_refused=self._refused,
            # One that dials is not dialled as a rule; who has its usual port is nothing to it, and costs a look at
            # every process, of which there may be hundreds like it.
            expects_links=not self._settings.joins,
            names_owner=not self._settings.joins or self._settings.insist_on_port,
        )

    async def _answer(self) -> None:
        settings = self._settings
        if settings.ephemeral:
            return
        self._answerer = await Answerer.start(
            credentials=settings.credentials,
            group=settings.group,
            base_port=settings.base_port,
            name=settings.name,
            process=self._process,
            tcp_port=self.port,
            interfaces=settings.interfaces,
            multicast=settings.multicast,
            others=self.ext_hosts,
            on_refused=self._stranger,
        )
        # One that dials is not found meanwhile: who finds it would dial as well, and both would pay for two links.
        self._answerer.silent = bool(settings.joins)
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

    async def stop_listening(self) -> None:
        """Take no new links, dial nobody."""
        self._closed = True
        if self._interface_timer is not None:
            self._interface_timer.cancel()
        for dialler in self._diallers:
            dialler.stop("the node is ending")
        if self._answerer is not None:
            self._answerer.close()
        if self._listener is not None:
            await self._listener.close()

    async def hang_up_all(self) -> None:
        """Say goodbye to everybody."""
        links = list(self._admins)
        for link in links:
            link.close("the node is ending")
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
                await self._peers.close()
                await asyncio.gather(*(link.wait_closed() for link in links))
        except TimeoutError:
            logger.debug("a link took more than %g s to close", CLOSE_TIMEOUT)

    def exchange(self, process: ProcessId) -> BlobExchange:
        """The blobs that travel between this node and a scheduler; KeyError for one that is forgotten."""
        return self._callers[process].exchange

    def send(self, sends: Iterable[do.Send]) -> None:
        """Give messages to their links; those to somebody without one are dropped, as the core expects."""
        for peer, group in groupby(sends, attrgetter("peer")):
            caller = self._callers.get(peer)
            if caller is not None and caller.link is not None:
                caller.link.send_now((send.message, send.payload) for send in group)

    def announce(self) -> None:
        """Tell the network that the node is free."""
        if self._answerer is not None:
            self._answerer.announce()

    def _end_silence(self, announce_after: float) -> None:
        """The first dial has come to an end, whatever came of it."""
        if self._answerer is not None and self._answerer.silent:
            self._answerer.silent = False
            self._loop.call_later(announce_after, self._announce_if_free)

    def hang_up(self, action: do.HangUp) -> None:
        """End one link."""
        caller = self._callers.get(action.peer)
        if caller is not None and caller.link is not None:
            logger.warning("ending the link to %s: %s", caller.link.peer.name, action.reason)
            link, caller.link = caller.link, None
            link.close(action.reason)
            self._forget_caller(action.peer, action.reason)

    def link_opened(self, link: Link) -> None:
        """A scheduler is there, whoever dialled, or an admin."""
        peer = link.peer
        if link.dialled:
            self._end_silence(JOINED_TIMEOUT)
        if peer.role is Role.ADMIN:
            self._admins.add(link)
            link.ended.add_done_callback(lambda _: self._admins.discard(link))
            return
        if peer.role is Role.PEER:
            self._peers.link_opened(link)
            return
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
        logger.debug("%s at %s is connected", peer.name or peer.role.value, peer.address)
        self._post(ev.LinkOpened(peer.process))
        if caller is not None:
            caller.exchange.link_replaced(link)

    def _drop_second(self, link: Link) -> None:
        """Close one of two links to a process; its dialler waits for the end of the other one."""
        for dialler in self._diallers:
            if dialler.link is link:
                self._seconds[dialler] = link.peer.process
        link.close("there is another link between us")

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """What one read brought."""
        if link in self._admins:
            self._obey(link, messages)
            return
        if link.peer.role is Role.PEER:
            self._peers.messages_arrived(link, messages)
            return
        process = link.peer.process
        caller = self._callers.get(process)
        if caller is None or caller.link is not link:
            return
        for message, payload in messages:
            if type(message) is BlobShared:
                self._peers.told(process, message)
            elif not caller.exchange.message_arrived(message, payload):
                self._post(ev.SchedulerSaid(process, message, payload))

    def _obey(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        by = f"{link.peer.name} at {link.peer.address}"
        for message, _ in messages:
            answer = self._answer_admin(message, by)
            if answer is None:
                logger.warning("ending the link to admin %s: it sent %s", by, type(message).__name__)
                link.close(f"an admin does not send {type(message).__name__} to a node")
                return
            link.send(answer)

    def link_suspected(self, link: Link) -> None:
        """Silence; the link says when it is lost."""
        if link.peer.role is Role.PEER:
            self._peers.link_suspected(link)
        logger.debug("nothing is heard of %s at %s", link.peer.name, link.peer.address)

    def link_recovered(self, link: Link) -> None:
        """The silence was nothing."""
        if link.peer.role is Role.PEER:
            self._peers.link_recovered(link)
        logger.debug("%s at %s is heard again", link.peer.name, link.peer.address)

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """A scheduler is gone, perhaps for a while."""
        process = link.peer.process
        if link.peer.role is Role.PEER:
            self._peers.link_lost(link, cause, goodbye)
            return
        caller = self._callers.get(process)
        if caller is None or caller.link is not link:
            return
        level = logging.DEBUG if goodbye and not link.returns else logging.INFO
        after = ", and means to come back" if link.returns else ""
        logger.log(level, "the link to %s at %s ended: %s%s", link.peer.name, link.peer.address, cause, after)
        caller.link = None
        is_final = goodbye and not link.returns
        if is_final:
            self._forget_caller(process, cause)
        else:
            wait = self._settings.msg_timeout + 1.0
            caller.forgetting = self._loop.call_later(wait, self._forget_caller, process, cause)
        self._post(ev.LinkLost(process, is_final))

    def _forget_caller(self, process: ProcessId, cause: str) -> None:
        caller = self._callers.pop(process, None)
        self._peers.forget(process)
        if caller is not None:
            caller.exchange.close(cause)

    def _refused(self, address: str, sentence: str) -> None:
        if sentence.startswith(BROKEN_OFF):
            logger.debug("%s: %s", address, sentence)
            return
        level = logging.WARNING if self._told.allows((address, sentence), self._loop.time()) else logging.DEBUG
        logger.log(level, "%s was refused: %s", address, sentence)

    def _stranger(self, refused: DiscoveryRefused) -> None:
        command = "`dispy secret show | ssh HOST dispy secret set`"
        if refused.reason == "secret" and is_own(refused.address):
            logger.warning(
                "a program on this machine looks for nodes with another secret; if it shall use this node, start both "
                "with the same"
            )
        elif refused.reason == "secret":
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
        self._end_silence(0.0)
        if self._last_failure.get(dialler) != text:
            self._last_failure[dialler] = text
            final = isinstance(error, AuthenticationRejected)
            logger.warning("cannot join: %s%s", text, "" if final else "; trying again")
        if isinstance(error, AuthenticationRejected):
            self._diallers.remove(dialler)
            if not self._diallers and self._answerer is None:
                self._give_up(f"cannot join: {text}")

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
