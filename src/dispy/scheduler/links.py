"""Links from a scheduler to nodes: finds them, accepts those that join, and turns what happens to a link into events of
the core. Which addresses are dialled is in `targets`, how results come in is in `intake`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Protocol

from msgspec import Struct

from dispy.errors import NodeError, SettingsError
from dispy.logs import logger
from dispy.model import NodeInfo, ProcessId, Role
from dispy.nodes import NodeView
from dispy.scheduler.effects import Send
from dispy.scheduler.events import (
    Event,
    LinkBroken,
    LinkResumed,
    NodeJoined,
    NodeLost,
    NodeRecovered,
    NodeSaid,
    NodeSuspected,
)
from dispy.scheduler.intake import ResultIntake
from dispy.scheduler.passing import BlobPassing
from dispy.scheduler.places import KnownPlaces, Place
from dispy.scheduler.predecessors import Predecessors
from dispy.scheduler.relays import Relays
from dispy.scheduler.room import Room
from dispy.scheduler.targets import Targets
from dispy.settings import NODE_PORT_OFFSET, USUAL_MULTICAST, Multicast
from dispy.wire.blobs import BlobExchange, BlobSources
from dispy.wire.discovery import Asker, DiscoveryRefused, NodeFound, listen_hosts
from dispy.wire.link import BROKEN_OFF, Dialler, Link, LinkSettings, Listener, better_link
from dispy.wire.messages import (
    AnyMessage,
    FileOffered,
    FilePlaced,
    JobsDone,
    JobsListed,
    JobTail,
    LeaseGranted,
    NodeDescribed,
)

CONVERSATION = frozenset({FileOffered, FilePlaced, JobTail, JobsListed})
"""What nodes say beside the running of jobs."""
ASK_AFTER_BREAK = 1.0
"""Seconds between two questions that broken links cause."""
SECOND_LINK = "there is another link between us"
RESTARTED = "it was restarted"


class Reached(Struct, eq=False):
    """A node that we have, or had a moment ago, a link to."""

    process: ProcessId
    address: str
    port: int
    exchange: BlobExchange
    intake: ResultIntake
    link: Link | None
    dialler: Dialler | None
    info: NodeInfo | None = None
    local: bool = False


class Talk(Protocol):
    """Who hears what is said beside the running of jobs."""

    def heard(self, reached: Reached, message: AnyMessage, payload: bytes | memoryview) -> None:
        """One of CONVERSATION."""

    def link_gone(self, node: ProcessId) -> None:
        """The link to this node ended, perhaps for a while."""


class NodeLinks:
    """Keeps the links of one scheduler."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: LinkSettings,
        *,
        base_port: int,
        client_port: int,
        interfaces: tuple[str, ...],
        multicast: Multicast = USUAL_MULTICAST,
        on_event: Callable[[Event], None],
        talk: Talk,
        on_known_elsewhere: Callable[[ProcessId], None],
        on_leased: Callable[[Reached], None],
        on_relay: Callable[[Place], None],
        after: Callable[[Callable[[], object]], None] | None = None,
        room: Room | None = None,
    ) -> None:
        """`after` lets messages to nodes wait until it is safe; `room` is for large results (see `Hosting`)."""
        self.settings = settings
        self.base_port = base_port
        self.client_port = client_port
        self.interfaces = interfaces
        self.multicast = multicast
        self.sources = BlobSources()
        self.nodes: dict[ProcessId, Reached] = {}
        self.heard: set[str] = set()
        """Nodes of our secret and group that have said anything."""
        self.refusals: dict[str, str] = {}
        """Address → why that machine's node and we cannot work together."""
        self.places = KnownPlaces()
        self._predecessors = Predecessors()
        self.targets = Targets(loop, self, self.places, self.refusals)
        self.relays = Relays(loop.time, on_found=self._found, on_news=self.known_elsewhere, on_relay=on_relay)
        self._on_event = on_event
        self._talk = talk
        self._on_known_elsewhere = on_known_elsewhere
        self._on_leased = on_leased
        self._after = after
        self._room = room
        self._asker: Asker | None = None
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = loop
        self._asked_at = 0.0
        self._passing = BlobPassing(loop, self.sources, self.nodes, self.places)

    async def start_discovery(self) -> None:
        """Begin to ask for nodes and to hear their announcements."""
        if self._asker is None:
            self._asker = await Asker.start(
                credentials=self.settings.credentials,
                group=self.settings.group,
                base_port=self.base_port,
                name=self.settings.name,
                interfaces=self.interfaces,
                multicast=self.multicast,
                on_found=self._found,
                on_refused=self._discovery_refused,
            )

    async def listen(self) -> None:
        """Accept nodes that join, unless another program on this machine does."""
        try:
            await self.listen_at(listen_hosts(self.settings.credentials, interfaces=self.interfaces))
        except (NodeError, SettingsError) as error:
            logger.debug("nodes cannot join this program: %s", error)

    async def listen_at(self, hosts: Sequence[str]) -> None:
        """Accept nodes that join at these addresses, unless it does so at others.

        Raises:
            NodeError: the port is taken, or an address cannot be listened at.
            SettingsError: a certificate file cannot be used.
        """
        if self._listener is None:
            self._listener = await Listener.start(
                hosts,
                self.client_port,
                settings=self.settings,
                handler=self,
                accept=frozenset({Role.NODE, Role.PEER}),
                on_refused=self._refused,
                expects_links=False,  # only nodes that join, and there are none as a rule
            )

    def ask(self) -> None:
        """Ask the network for nodes."""
        if self._asker is not None:
            self._asked_at = self._loop.time()
            self._asker.ask()
            self.targets.asked()

    @property
    def tried(self) -> list[str]:
        """Sentences that say where nodes were looked for."""
        return self.targets.tried + (list(self._asker.tried) if self._asker is not None else [])

    @property
    def node_port(self) -> int:
        """The usual port of nodes."""
        return self.base_port + NODE_PORT_OFFSET

    @property
    def missing_interfaces(self) -> list[str]:
        """Interfaces and addresses that this program was told to use and that are not up."""
        return [] if self._asker is None else self._asker.missing

    def remember(self, node: ProcessId, info: NodeInfo, places: Iterable[Place]) -> None:
        """Dial a node that the process before this one had, where it was reached then."""
        self.places.learn(node, places)
        self._predecessors.remember(node, info, self.places.of(node))
        self.targets.look_for(node)

    def _came_instead(self, was: ProcessId | None) -> None:
        """Another daemon has the place of this one, or its directory."""
        if was is None or self.has_link(was):
            return
        if was in self.nodes:
            self.lose(was, RESTARTED)
        else:  # the process before this one had it
            self.places.forget(was)
            self._on_event(NodeLost(was, RESTARTED))

    def give_up(self, host: str, port: int, cause: str) -> None:
        """Nothing will answer at that address again: its node is lost, and it is not dialled any more."""
        process = self.targets.process_at(host, port)
        if process is not None:
            self.heard.discard(process)
            self.lose(process, cause)
        self.targets.forget(host, port)

    def send(self, sends: Iterable[Send]) -> None:
        """Send to nodes; without a link a message is dropped, as the resume of a link tells what is missing."""
        for node, group in groupby(sends, attrgetter("node")):
            reached = self.nodes.get(node)
            if reached is not None and reached.link is not None:
                messages = [(send.message, send.payload) for send in group]
                if self._after is None:
                    reached.link.send_now(reached.intake.acknowledging(messages))
                else:  # by then the link may have ended: it sends nothing more
                    self._after(partial(reached.link.send_now, messages))

    def view(self, node: ProcessId) -> NodeView | None:
        """What users may know of a node."""
        reached = self.nodes.get(node)
        if reached is None or reached.info is None:
            return None
        info, places, relays = reached.info, self.places.of(node), self.relays.of(node)
        return NodeView(node, info, reached.address, reached.port, places=places, relays=relays)

    async def close(self, reason: str, *, returns: bool = False) -> None:
        """Stop, and say goodbye to all; if it `returns`, nodes go on with what they have."""
        self._passing.close()
        if self._asker is not None:
            self._asker.close()
            self._asker = None
        if returns:  # before those that dial say goodbye for ever
            for reached in self.nodes.values():
                if reached.link is not None:
                    reached.link.close(reason, returns=True)
        self.targets.close(reason)
        self.relays.close(reason)
        for reached in self.nodes.values():
            if reached.link is not None:
                reached.intake.tell()
                reached.link.close(reason)
            reached.intake.close()
            reached.exchange.close(reason)
        self.nodes.clear()
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What those that dial need to know.

    def has_link(self, node: ProcessId) -> bool:
        """Whether there is a link to this node now."""
        reached = self.nodes.get(node)
        return reached is not None and reached.link is not None

    def knows(self, node: ProcessId) -> bool:
        """Whether there is a link to this node, or was one a moment ago."""
        return node in self.nodes

    def name_unknown(self) -> None:
        """A name was given that is none of a machine: ask who has it. Called again with every dial."""
        self._spawn(self._ask_for_name())

    async def _ask_for_name(self) -> None:
        try:
            await self.start_discovery()
        except (NodeError, SettingsError) as error:
            logger.warning("the network cannot be asked for nodes: %s", error)
        else:
            self.ask()

    def known_elsewhere(self, node: ProcessId) -> None:
        """A place became known at which this node is reached as well."""
        reached = self.nodes.get(node)
        if reached is not None and reached.info is not None:
            self._on_known_elsewhere(node)

    # What discovery says.

    def _found(self, found: NodeFound) -> None:
        self.heard.add(found.process)
        place = (found.address, found.port)
        self.places.learn(found.process, (place, *found.others))
        reached = self.nodes.get(found.process)
        if reached is not None and reached.link is not None:
            return
        if reached is not None:  # its link is broken, and perhaps its address is a new one
            self.targets.dial(*place, named=False, expected=found.process)
        else:
            self.targets.look_for(found.process)

    def _discovery_refused(self, refused: DiscoveryRefused) -> None:
        if refused.address not in self.refusals:
            level = logger.DEBUG if self._after is None else logger.WARNING  # a program says it when it waits
            said = "%s (%s) refused the question for nodes: %s"
            logger.log(level, said, refused.name, refused.address, refused.reason)
        self.refusals[refused.address] = refused.reason

    def _refused(self, address: str, reason: str) -> None:
        if reason.startswith(BROKEN_OFF):
            logger.debug("%s: %s", address, reason)
            return
        if self.refusals.get(address) != reason:
            logger.warning("a connection from %s was refused: %s", address, reason)
        self.refusals[address] = reason

    # What links say.

    def link_opened(self, link: Link) -> None:
        """A link is authenticated: a new node, or one that came back."""
        process = link.peer.process
        self.refusals.pop(link.peer.address, None)
        target = self.targets.opened(link)
        if link.dialled:
            place = (link.peer.address, link.peer.port) if target is None else target.place
            self._came_instead(self._predecessors.reached(process, place))
        if link.peer.role is Role.PEER:
            self.relays.opened(link, target.place if target is not None else None)
            return
        self.heard.add(process)
        reached = self.nodes.get(process)
        if reached is None:
            dialler = target.dialler if target is not None else None
            exchange = self._passing.exchange(link)
            local = target is not None and target.local
            intake = ResultIntake(
                process, exchange, self._on_event, self._spawn, self._loop.call_later, self._after, self._room
            )
            intake.link = link
            address, port = link.peer.address, link.peer.port
            self.nodes[process] = Reached(process, address, port, exchange, intake, link, dialler, local=local)
            return
        if reached.link is not None:
            if better_link(reached.link, link) is not link:
                link.close(SECOND_LINK)
                return
            self._drop_first(reached, reached.link)
            self._on_event(LinkBroken(process))
        reached.link = reached.intake.link = link
        if target is not None:
            reached.dialler = target.dialler
        reached.exchange.link_replaced(link)
        if reached.info is not None:
            self._on_event(LinkResumed(process))

    def _drop_first(self, reached: Reached, old: Link) -> None:
        reached.link = reached.intake.link = None
        target = self.targets.of(old)
        # Without a goodbye, which could overtake the news of the other link and would mean that we are gone.
        old.abort(SECOND_LINK)
        if target is not None:
            self.targets.leave(target)

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """Everything that one read brought."""
        reached = self.nodes.get(link.peer.process)
        if reached is None or reached.link is not link:
            self.relays.heard(link, messages)
            return
        for message, payload in messages:
            if type(message) is JobsDone:
                reached.intake.arrived(message, payload)
            elif reached.exchange.message_arrived(message, payload):
                continue
            elif type(message) is NodeDescribed and reached.info is None:
                reached.info = message.info
                self.places.learn(reached.process, message.info.addresses)
                self._came_instead(self._predecessors.lives(reached.process, message.info))
                self._on_event(NodeJoined(reached.process, message.info, reached.address))
            elif type(message) in CONVERSATION:
                self._talk.heard(reached, message, payload)
            else:
                if type(message) is NodeDescribed:
                    reached.info = message.info
                elif type(message) is LeaseGranted:
                    self._on_leased(reached)
                self._on_event(NodeSaid(reached.process, message))
        reached.intake.acknowledge()

    def link_suspected(self, link: Link) -> None:
        """Nothing was heard for a while."""
        if link.peer.process in self.nodes:
            self._on_event(NodeSuspected(link.peer.process))

    def link_recovered(self, link: Link) -> None:
        """It spoke again."""
        if link.peer.process in self.nodes:
            self._on_event(NodeRecovered(link.peer.process))

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """The link ended; without a goodbye it may come back."""
        reached = self.nodes.get(link.peer.process)
        if reached is None or reached.link is not link:
            self.relays.lost(link)
            return
        reached.link = reached.intake.link = None
        self._talk.link_gone(reached.process)
        if goodbye or reached.info is None or link.silent_for >= self.settings.grace_timeout:
            self.lose(reached.process, cause)
        else:
            logger.info("the link to node %s at %s is gone: %s", reached.info.name, reached.address, cause)
            self._on_event(LinkBroken(reached.process, link.silent_for, link.patience))
            if self._loop.time() > self._asked_at + ASK_AFTER_BREAK:
                self.ask()  # it may have moved to another address

    def forget_node(self, node: ProcessId) -> None:
        """The core has given the node up (grace is over); if it comes back it is a new one."""
        reached = self.nodes.pop(node, None)
        self.places.forget(node)
        self.relays.forget(node)
        if reached is None:
            return
        self._passing.gone(node)
        if reached.info is not None:
            self._predecessors.forget(node, reached.info)
        reached.intake.close()
        reached.exchange.close("the node was lost")
        if reached.link is not None:
            reached.link.abort("the node was given up")

    def lose(self, node: ProcessId, cause: str) -> None:
        """The node is gone for good."""
        reached = self.nodes.pop(node, None)
        if reached is None:
            return
        self._passing.gone(node)
        reached.intake.close()
        self.places.forget(node)
        self.relays.forget(node)
        reached.exchange.close(cause)
        if reached.info is not None:
            self._predecessors.forget(node, reached.info)
            self._on_event(NodeLost(node, cause))

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
