"""Finding each other: questions and announcements to everybody, answers to the socket that asked.

What datagrams look like and what they prove is in `dispy.wire.datagrams`, how everybody is reached (broadcast,
multicast, IPv6) in `dispy.wire.multicast`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from msgspec import Struct
from msgspec.structs import replace

from dispy.errors import NodeError
from dispy.model import ProcessId
from dispy.secrets import Credentials
from dispy.settings import NODE_PORT_OFFSET, USUAL_MULTICAST, Multicast
from dispy.wire import datagrams
from dispy.wire.datagrams import (
    Announcement,
    Answer,
    DatagramError,
    DiscoveryIdentity,
    Kind,
    Question,
    RateLimit,
    RefusedDiscovery,
    Stranger,
)
from dispy.wire.interfaces import (
    InterfaceAddress,
    Scope,
    interface_addresses,
    listen_hosts,
    loopback_only,
)
from dispy.wire.multicast import Ears, error_text, everybody, received, speaking_socket

__all__ = [
    "Answerer",
    "Asker",
    "DiscoveryRefused",
    "InterfaceAddress",
    "NodeFound",
    "discover_once",
    "interface_addresses",
    "listen_hosts",
]

REFUSAL_INTERVAL: Final = 1.0
"""Seconds between two refusals to one address."""
DIAL_INTERVAL: Final = 1.0
"""Seconds between two reports of one announced address."""
REPORT_INTERVAL: Final = 60.0
"""Seconds between two reports of one stranger."""
_NONCES_KEPT: Final = 16


class NodeFound(Struct, frozen=True):
    """A node that knows our secret (or did once: an announcement may be old). The link proves it."""

    process: ProcessId
    name: str
    address: str
    port: int
    """TCP port to dial."""
    others: tuple[tuple[str, int], ...] = ()
    """Further hosts and ports where it says that it can be reached (`--ext_host`)."""


class DiscoveryRefused(Struct, frozen=True):
    """Somebody there is kept apart from us. Not authenticated: good for text only."""

    address: str
    name: str
    reason: str
    """`secret`, `group` or `protocol`: in what we differ."""


class _Hearer:
    """What both sides share: they take datagrams of their scope that can be read, and count the others."""

    def __init__(self, identity: DiscoveryIdentity, base_port: int, scope: Scope) -> None:
        self.tried: list[str] = []
        """Sentences about what was sent last: interface, address, port, and what went wrong."""
        self.counters: Counter[str] = Counter()
        self._identity = identity
        self._base_port = base_port
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        self._ears: Ears | None = None

    def _understood(self, sock: socket.socket) -> Iterator[tuple[datagrams.Datagram, str, tuple[Any, ...]]]:
        """Every datagram that waits in `sock`, with the address it came from and where an answer goes."""
        for data, address, sender in received(sock, datagrams.DATAGRAM_LIMIT + 1):
            if not self._scope.contains(address):
                self.counters["outside"] += 1
                continue
            try:
                datagram = datagrams.decode(data, self._identity)
            except DatagramError:
                self.counters["garbage"] += 1
            else:
                yield datagram, address, sender

    def close(self) -> None:
        """Stop listening. May be called twice."""
        if self._ears is not None:
            for sock in self._ears.sockets:
                self._loop.remove_reader(sock)
            self._ears.close()
            self._ears = None


class Asker(_Hearer):
    """The side that looks for nodes: asks by broadcast, collects answers and announcements.

    `on_found` is called once per question and address of a node, and for announcements once per address and
    second; the same process may be found at several addresses. `on_refused` is called once per question and
    address.
    """

    def __init__(
        self,
        *,
        identity: DiscoveryIdentity,
        base_port: int,
        name: str,
        scope: Scope,
        on_found: Callable[[NodeFound], None],
        on_refused: Callable[[DiscoveryRefused], None],
    ) -> None:
        super().__init__(identity, base_port, scope)
        self._name = name
        self._on_found = on_found
        self._on_refused = on_refused
        self._ears_problem = ""
        self._sockets: dict[str, socket.socket] = {}
        self._nonces: deque[bytes] = deque(maxlen=_NONCES_KEPT)
        self._seen: set[NodeFound | DiscoveryRefused] = set()
        self._announced = RateLimit(DIAL_INTERVAL)

    @classmethod
    async def start(
        cls,
        *,
        credentials: Credentials,
        group: str,
        base_port: int,
        name: str,
        interfaces: tuple[str, ...],
        multicast: Multicast = USUAL_MULTICAST,
        on_found: Callable[[NodeFound], None],
        on_refused: Callable[[DiscoveryRefused], None],
    ) -> Self:
        """An asker that listens for announcements; it asks only when told to.

        That the port of announcements is in use by another program is no error but a sentence in `tried`.
        """
        asker = cls(
            identity=_identity(credentials, group),
            base_port=base_port,
            name=name,
            scope=Scope(interfaces, loopback_only(credentials), multicast),
            on_found=on_found,
            on_refused=on_refused,
        )
        asker._scope.refresh(asker.tried)
        try:
            asker._ears = Ears(base_port, multicast)
        except OSError as error:
            asker._ears_problem = (
                f"nodes that announce themselves are not heard: UDP port {base_port}: {error_text(error)}"
            )
            asker.tried.append(asker._ears_problem)
        else:
            asker.tried.extend(asker._ears.join(asker._scope.addresses))
            for sock in asker._ears.sockets:
                asker._loop.add_reader(sock, asker._hear, sock)
        return asker

    @property
    def missing(self) -> list[str]:
        """Interfaces and addresses that were asked for and are not up."""
        return self._scope.missing

    def ask(self) -> None:
        """Send a question to all nodes on all interfaces (as they are now). Answers come to `on_found`."""
        self.tried = [self._ears_problem] if self._ears_problem else []
        port = self._base_port + NODE_PORT_OFFSET
        nonce = os.urandom(datagrams.NONCE_SIZE)
        self._nonces.append(nonce)
        self._seen.clear()
        question = datagrams.encode_question(self._identity, nonce, self._name)
        found = self._scope.refresh(self.tried)
        if self._ears is not None:
            self.tried.extend(self._ears.join(self._scope.addresses))
        self._drop_sockets_except({each.address for each in found})
        for each in found:
            target = everybody(each, port, self._scope.multicast)
            try:
                self._socket_for(each).sendto(question, target)
            except OSError as error:
                self.tried.append(f"{each.name}: {target[0]} could not be asked: {error_text(error)}")
                self.counters["failed"] += 1
            else:
                self.tried.append(f"{each.name}: asked {target[0]}, UDP port {port}")
                self.counters["asked"] += 1

    def close(self) -> None:
        """Stop listening. May be called twice."""
        self._drop_sockets_except(set())
        super().close()

    def _socket_for(self, each: InterfaceAddress) -> socket.socket:
        if each.address not in self._sockets:
            sock = self._sockets[each.address] = speaking_socket(each)
            self._loop.add_reader(sock, self._hear, sock)
        return self._sockets[each.address]

    def _drop_sockets_except(self, addresses: set[str]) -> None:
        for address in self._sockets.keys() - addresses:
            sock = self._sockets.pop(address)
            self._loop.remove_reader(sock)
            sock.close()

    def _hear(self, sock: socket.socket) -> None:
        for datagram, address, _ in self._understood(sock):
            self._take(datagram, address)

    def _take(self, datagram: datagrams.Datagram, address: str) -> None:
        match datagram:
            case Answer(nonce, process, name, port, others) if nonce in self._nonces:
                self.counters["answers"] += 1
                self._report(NodeFound(process, name, address, port, others=others))
            case Announcement(process, name, port, others):
                self.counters["announcements"] += 1
                if self._announced.allows((address, port), self._loop.time()):
                    self._on_found(NodeFound(process, name, address, port, others=others))
            case RefusedDiscovery(nonce, reason, name) if nonce in self._nonces:
                self.counters["refusals"] += 1
                self._report(DiscoveryRefused(address, name, reason))
            case Stranger(Kind.ANNOUNCEMENT, _, reason, name):
                self.counters["strangers"] += 1
                self._report(DiscoveryRefused(address, name, reason))
            case _:
                self.counters["stale"] += 1

    def _report(self, what: NodeFound | DiscoveryRefused) -> None:
        # Bounded, because refusals and strangers' announcements can be forged without end.
        if what in self._seen or len(self._seen) >= datagrams.RATE_TABLE_LIMIT:
            return
        self._seen.add(what)
        if isinstance(what, NodeFound):
            self._on_found(what)
        else:
            self._on_refused(what)


class Answerer(_Hearer):
    """The side that is looked for: answers questions, announces itself, refuses strangers in words.

    `on_refused` is called at most once a minute for one stranger.
    """

    def __init__(
        self,
        *,
        identity: DiscoveryIdentity,
        base_port: int,
        described: _Described,
        scope: Scope,
        ears: Ears,
        on_refused: Callable[[DiscoveryRefused], None],
    ) -> None:
        super().__init__(identity, base_port, scope)
        self._ears = ears
        self._described = described
        self._on_refused = on_refused
        self.silent = False
        """Nothing is announced and no question answered for the time being."""
        self._spoken: list[InterfaceAddress] = []
        self._refusals = RateLimit(REFUSAL_INTERVAL)
        self._reports = RateLimit(REPORT_INTERVAL)

    @classmethod
    async def start(
        cls,
        *,
        credentials: Credentials,
        group: str,
        base_port: int,
        name: str,
        process: ProcessId,
        tcp_port: int,
        interfaces: tuple[str, ...],
        multicast: Multicast = USUAL_MULTICAST,
        others: tuple[tuple[str, int], ...] = (),
        on_refused: Callable[[DiscoveryRefused], None],
    ) -> Self:
        """An answerer on UDP base + 1, which it shares with other nodes of this host.

        It hears broadcasts and multicasts alike; `multicast` says where its announcements go.
        `others` are further hosts and ports where the node can be reached.

        Raises:
            NodeError: another program has that port for itself.
            SettingsError: none of `interfaces` is up.
        """
        interface_addresses(interfaces)
        port = base_port + NODE_PORT_OFFSET
        try:
            ears = Ears(port, multicast)
        except OSError as error:
            raise NodeError(
                f"clients cannot find this node: UDP port {port} cannot be used: {error_text(error)}; "
                "end the program that uses it, or choose another base port with --dispy_port"
            ) from error
        answerer = cls(
            identity=_identity(credentials, group),
            base_port=base_port,
            described=(process, name, tcp_port, others),
            scope=Scope(interfaces, loopback_only(credentials), multicast),
            ears=ears,
            on_refused=on_refused,
        )
        answerer.refresh()
        for sock in ears.sockets:
            answerer._loop.add_reader(sock, answerer._hear, sock)
        return answerer

    def refresh(self) -> bool:
        """Look at the interfaces again and listen on those that are new; True when something has changed."""
        if self._ears is None:
            return False
        before = self._scope.addresses
        self.tried = [self._ears.problem] if self._ears.problem else []
        self._spoken = self._scope.refresh(self.tried)
        self.tried.extend(self._ears.join(self._scope.addresses))
        return self._scope.addresses != before

    def announce(self) -> None:
        """Tell the clients on all interfaces (as they are now) that this node is here."""
        if self._ears is None or self.silent:
            return
        self.refresh()
        nonce = os.urandom(datagrams.NONCE_SIZE)
        data = datagrams.encode_announcement(self._identity, nonce, *self._described)
        for each in self._spoken:
            try:
                target = self._ears.send(data, each, self._base_port)
            except OSError as error:
                self.tried.append(f"{each.name}: nothing could be announced: {error_text(error)}")
                self.counters["failed"] += 1
            else:
                self.tried.append(f"{each.name}: announced to {target}, UDP port {self._base_port}")
                self.counters["announced"] += 1

    def _hear(self, listening: socket.socket) -> None:
        for datagram, address, sender in self._understood(listening):
            match datagram:
                case Question() if self.silent:
                    self.counters["silent"] += 1
                case Question(nonce):
                    self.counters["questions"] += 1
                    answer = datagrams.encode_answer(self._identity, nonce, *self._described)
                    self._reply(listening, answer, sender)
                case Stranger(Kind.QUESTION, nonce, reason, name):
                    self.counters["strangers"] += 1
                    if self._refusals.allows(address, self._loop.time()):
                        refusal = datagrams.encode_refusal(nonce, reason, self._described[1])
                        self._reply(listening, refusal, sender)
                    if self._reports.allows((address, name, reason), self._loop.time()):
                        self._on_refused(DiscoveryRefused(address, name, reason))
                case _:
                    self.counters["stale"] += 1

    def _reply(self, listening: socket.socket, data: bytes, target: tuple[Any, ...]) -> None:
        try:
            listening.sendto(data, target)
        except OSError:
            self.counters["failed"] += 1
        else:
            self.counters["replies"] += 1


async def discover_once(
    credentials: Credentials,
    group: str,
    base_port: int,
    interfaces: tuple[str, ...],
    seconds: float,
    *,
    multicast: Multicast = USUAL_MULTICAST,
) -> tuple[list[NodeFound], list[DiscoveryRefused], list[str]]:
    """Ask three times (datagrams get lost) within `seconds`.

    Returns the nodes that answered, each once (with the other addresses from which it answered among `others`),
    those that refused, and sentences about what was tried.
    """
    found: list[NodeFound] = []
    refused: list[DiscoveryRefused] = []
    asker = await Asker.start(
        credentials=credentials,
        group=group,
        base_port=base_port,
        name=socket.gethostname(),
        interfaces=interfaces,
        multicast=multicast,
        on_found=found.append,
        on_refused=refused.append,
    )
    try:
        for _ in range(3):
            asker.ask()
            await asyncio.sleep(seconds / 3)
    finally:
        asker.close()
    return _merged(found), list(dict.fromkeys(refused)), asker.tried


def _merged(found: list[NodeFound]) -> list[NodeFound]:
    once: dict[ProcessId, NodeFound] = {}
    places: dict[ProcessId, dict[tuple[str, int], None]] = {}
    for node in found:
        once.setdefault(node.process, node)
        places.setdefault(node.process, {})[node.address, node.port] = None
    for node in found:
        places[node.process].update(dict.fromkeys(node.others))
    return [replace(node, others=tuple(places[node.process])[1:]) for node in once.values()]


_Described = tuple[ProcessId, str, int, tuple[tuple[str, int], ...]]
"""Process, name, TCP port and further places of a node."""


def _identity(credentials: Credentials, group: str) -> DiscoveryIdentity:
    return DiscoveryIdentity.of(credentials.derive("discovery"), credentials.key_id, group)
