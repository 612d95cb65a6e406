"""The relay: asks its network for nodes and tells them over links to schedulers. No job and no result passes here.

It answers no datagram, tells only who has proved the secret, and hears nodes only, never another relay: nothing can
be amplified, and nothing goes in circles.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from dispy.errors import AuthenticationRejected, LinkError, NodeError, PortInUse
from dispy.model import NodeHeard, ProcessId, Role
from dispy.secrets import Credentials
from dispy.settings import DISCOVERY_INTERVAL, USUAL_MULTICAST, Multicast
from dispy.wire.datagrams import RateLimit
from dispy.wire.discovery import Asker, DiscoveryRefused, NodeFound, listen_hosts
from dispy.wire.interfaces import is_link_local, is_loopback, shown
from dispy.wire.link import BROKEN_OFF, Dialler, Link, LinkSettings, Listener
from dispy.wire.messages import AnyMessage, NodesHeard

logger = logging.getLogger("dispy.relay")

FIRST_QUESTIONS: Final = (0.0, 0.2, 0.6)
"""Seconds after a new link at which nodes are asked; datagrams get lost."""
QUESTION_INTERVAL: Final = 0.1
"""Seconds between two questions, whoever causes them."""
GATHER: Final = 0.01
"""Seconds for which what is heard is gathered into one message."""
NODES_IN_MESSAGE: Final = 512
TELL_INTERVAL: Final = 3600.0
"""Seconds until one refusal is told again."""
REJECTED_INTERVAL: Final = 10.0
"""Seconds until a scheduler that refused us is dialled again: whoever reads why may have mended it."""
CLOSE_TIMEOUT: Final = 2.0
"""Seconds that the last words of a link may take to leave."""


class RelaySettings(Struct, frozen=True):
    """How a relay is to be run."""

    name: str
    credentials: Credentials
    group: str
    base_port: int
    relay_port: int
    hosts: tuple[str, ...] = ()
    """Interfaces or addresses where nodes are asked; empty: all."""
    interfaces: tuple[str, ...] = ()
    """Where schedulers are listened for; empty: everywhere."""
    multicast: Multicast = USUAL_MULTICAST
    schedulers: tuple[tuple[str, int], ...] = ()
    """Programs and schedulers to dial."""


class Relay:
    """Passes on what nodes of this network say of themselves."""

    def __init__(self, settings: RelaySettings) -> None:
        self.settings = settings
        self.listens_at: tuple[str, ...] = ()
        self._links: set[Link] = set()
        self._heard: dict[NodeHeard, None] = {}
        self._calls: set[asyncio.TimerHandle] = set()
        self._asked_at = float("-inf")
        self._is_asking = False
        self._told = RateLimit(TELL_INTERVAL)
        self._failures: dict[Dialler, str] = {}
        self._diallers: list[Dialler] = []
        self._link_settings = LinkSettings(
            process=ProcessId(secrets.token_hex(16)),
            role=Role.PEER,
            name=settings.name,
            credentials=settings.credentials,
            group=settings.group,
        )

    async def start(self) -> None:
        """Listen for schedulers, hear announcements of nodes, and dial those that the settings name.

        Raises:
            NodeError: the port is taken, or an address cannot be listened on.
            SettingsError: an interface does not exist, or an empty secret forbids an address.
        """
        self._loop = asyncio.get_running_loop()
        settings = self.settings
        hosts = listen_hosts(settings.credentials, interfaces=settings.interfaces)
        try:
            self._listener = await Listener.start(
                hosts,
                settings.relay_port,
                settings=self._link_settings,
                handler=self,
                accept=frozenset({Role.SCHEDULER, Role.CLIENT}),
                on_refused=self._refused,
            )
        except PortInUse as error:
            raise NodeError(
                f"{error}; with a dispynode on this machine choose another by --relay_port, and name the relay by "
                "(host, port) in the programs"
            ) from error
        self.listens_at = tuple(shown(host, self._listener.port) for host in self._listener.hosts)
        self._asker = await Asker.start(
            credentials=settings.credentials,
            group=settings.group,
            base_port=settings.base_port,
            name=settings.name,
            interfaces=settings.hosts,
            multicast=settings.multicast,
            on_found=self._found,
            on_refused=self._stranger,
        )
        for sentence in self._asker.tried:
            logger.warning("%s", sentence)
        for host, port in settings.schedulers:
            dialler = Dialler(
                host,
                port,
                settings=self._link_settings,
                handler=self,
                on_failure=self._dial_failed,
                on_closed=self._said_goodbye,
            )
            self._diallers.append(dialler)
            dialler.start()

    async def close(self) -> None:
        """Say goodbye to all and stop."""
        for call in self._calls:
            call.cancel()
        self._calls.clear()
        links = list(self._links)
        for dialler in self._diallers:
            dialler.stop("the relay is ending")
        self._diallers.clear()
        for link in links:
            link.close("the relay is ending")
        self._asker.close()
        await self._listener.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.gather(*(link.wait_closed() for link in links))
        except TimeoutError:
            logger.debug("a link took more than %g s to close", CLOSE_TIMEOUT)

    # What links say.

    def link_opened(self, link: Link) -> None:
        """A scheduler is there: ask for it."""
        self._links.add(link)
        logger.info("%s at %s is connected", link.peer.name or "a scheduler", link.peer.address)
        for seconds in FIRST_QUESTIONS:
            self._later(seconds, self._ask)
        if not self._is_asking:
            self._is_asking = True
            self._later(DISCOVERY_INTERVAL, self._ask_again)

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """Schedulers have nothing to say to a relay."""
        link.close(f"a relay takes no {type(messages[0][0]).__name__}")

    def link_suspected(self, link: Link) -> None:
        """Silence; the link says when it is lost."""

    def link_recovered(self, link: Link) -> None:
        """The silence was nothing."""

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """A scheduler is gone, perhaps for a while."""
        self._links.discard(link)
        logger.info("the link to %s at %s ended: %s", link.peer.name, link.peer.address, cause)

    def _refused(self, address: str, sentence: str) -> None:
        if sentence.startswith(BROKEN_OFF):
            logger.debug("%s: %s", address, sentence)
        elif self._told.allows((address, sentence), self._loop.time()):
            logger.warning("%s was refused: %s", address, sentence)

    def _dial_failed(self, dialler: Dialler, error: LinkError) -> None:
        sentence = str(error)
        if self._failures.get(dialler) != sentence:
            self._failures[dialler] = sentence
            logger.warning("%s; trying again", sentence)
        if isinstance(error, AuthenticationRejected):
            self._later(REJECTED_INTERVAL, dialler.start)

    def _said_goodbye(self, dialler: Dialler) -> None:
        self._failures.pop(dialler, None)
        self._later(1.0, dialler.start)

    # What nodes say.

    def _ask_again(self) -> None:
        self._is_asking = bool(self._links)
        if self._links:
            self._ask()
            self._later(DISCOVERY_INTERVAL, self._ask_again)

    def _ask(self) -> None:
        now = self._loop.time()
        if now - self._asked_at >= QUESTION_INTERVAL:
            self._asked_at = now
            self._asker.ask()

    def _found(self, found: NodeFound) -> None:
        if not self._links:
            return
        if not self._heard:
            self._later(GATHER, self._tell)
        node = NodeHeard(found.process, found.name, found.address, found.port, found.others)
        self._heard[node] = None

    def _tell(self) -> None:
        heard, self._heard = list(self._heard), {}
        for link in list(self._links):
            nodes = reachable(heard, from_here=is_loopback(link.peer.address))
            for start in range(0, len(nodes), NODES_IN_MESSAGE):
                link.send(NodesHeard(nodes[start : start + NODES_IN_MESSAGE]))

    def _stranger(self, refused: DiscoveryRefused) -> None:
        if self._told.allows((refused.address, refused.name, refused.reason), self._loop.time()):
            logger.info("%s at %s is a node with another %s", refused.name, refused.address, refused.reason)

    def _later(self, seconds: float, function: Callable[[], object]) -> None:
        def run() -> None:
            self._calls.discard(handle)
            function()

        handle = self._loop.call_later(seconds, run)
        self._calls.add(handle)


def reachable(nodes: Iterable[NodeHeard], *, from_here: bool) -> list[NodeHeard]:
    """The nodes whose address means the same to a scheduler elsewhere, or (`from_here`) on this machine."""
    return [each for each in nodes if from_here or not (is_loopback(each.address) or is_link_local(each.address))]
