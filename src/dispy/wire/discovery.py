"""Finding each other: questions and announcements by broadcast, answers to the socket that asked.

Both well-known UDP ports are shared by all processes of a host; only a broadcast reaches every one of them.
What datagrams look like and what they prove is in `dispy.wire.datagrams`. Here is IPv4 broadcast; another way
to reach many (multicast, IPv6) is another `InterfaceAddress` with its own target.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from dispy.errors import NodeError
from dispy.model import ProcessId
from dispy.secrets import Credentials
from dispy.settings import NODE_PORT_OFFSET
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
_DATAGRAMS_PER_WAKE: Final = 64


@dataclass(frozen=True, slots=True)
class NodeFound:
    """A node that knows our secret (or did once: an announcement may be old). The link proves it."""

    process: ProcessId
    name: str
    address: str
    port: int
    """TCP port to dial."""
    announced: bool


@dataclass(frozen=True, slots=True)
class DiscoveryRefused:
    """Somebody there is kept apart from us. Not authenticated: good for text only."""

    address: str
    name: str
    reason: str
    """`secret`, `group` or `protocol`: in what we differ."""


class Asker:
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
        self.tried: list[str] = []
        """Sentences about what the last question did: interface, address, port, and what went wrong."""
        self.counters: Counter[str] = Counter()
        self._identity = identity
        self._base_port = base_port
        self._name = name
        self._scope = scope
        self._on_found = on_found
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._ears: socket.socket | None = None
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
            scope=Scope(interfaces, loopback_only(credentials)),
            on_found=on_found,
            on_refused=on_refused,
        )
        asker._scope.refresh(asker.tried)
        try:
            asker._ears = _shared_socket(base_port)
        except OSError as error:
            asker._ears_problem = f"nodes that announce themselves are not heard: UDP port {base_port}: {_text(error)}"
            asker.tried.append(asker._ears_problem)
        else:
            asker._loop.add_reader(asker._ears, asker._hear, asker._ears)
        return asker

    def ask(self) -> None:
        """Send a question to all nodes on all interfaces (as they are now). Answers come to `on_found`."""
        self.tried = [self._ears_problem] if self._ears_problem else []
        port = self._base_port + NODE_PORT_OFFSET
        nonce = os.urandom(datagrams.NONCE_SIZE)
        self._nonces.append(nonce)
        self._seen.clear()
        question = datagrams.encode_question(self._identity, nonce, self._name)
        found = self._scope.refresh(self.tried)
        self._drop_sockets_except({each.address for each in found})
        for each in found:
            try:
                self._socket_for(each.address).sendto(question, (each.broadcast, port))
            except OSError as error:
                self.tried.append(f"{each.name}: {each.broadcast} could not be asked: {_text(error)}")
                self.counters["failed"] += 1
            else:
                self.tried.append(f"{each.name}: asked {each.broadcast}, UDP port {port}")
                self.counters["asked"] += 1

    def close(self) -> None:
        """Stop listening. May be called twice."""
        self._drop_sockets_except(set())
        if self._ears is not None:
            _close(self._loop, self._ears)
            self._ears = None

    def _socket_for(self, address: str) -> socket.socket:
        if address not in self._sockets:
            sock = _broadcast_socket()
            try:
                sock.bind((address, 0))
            except OSError:
                sock.close()
                raise
            self._sockets[address] = sock
            self._loop.add_reader(sock, self._hear, sock)
        return self._sockets[address]

    def _drop_sockets_except(self, addresses: set[str]) -> None:
        for address in self._sockets.keys() - addresses:
            _close(self._loop, self._sockets.pop(address))

    def _hear(self, sock: socket.socket) -> None:
        for data, address, _port in _received(sock):
            if not self._scope.contains(address):
                self.counters["outside"] += 1
                continue
            try:
                datagram = datagrams.decode(data, self._identity)
            except DatagramError:
                self.counters["garbage"] += 1
                continue
            self._take(datagram, address)

    def _take(self, datagram: datagrams.Datagram, address: str) -> None:
        match datagram:
            case Answer(nonce, process, name, port) if nonce in self._nonces:
                self.counters["answers"] += 1
                self._report(NodeFound(process, name, address, port, announced=False))
            case Announcement(process, name, port):
                self.counters["announcements"] += 1
                if self._announced.allows((address, port), self._loop.time()):
                    self._on_found(NodeFound(process, name, address, port, announced=True))
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


class Answerer:
    """The side that is looked for: answers questions, announces itself, refuses strangers in words.

    `on_refused` is called at most once a minute for one stranger.
    """

    def __init__(
        self,
        *,
        identity: DiscoveryIdentity,
        base_port: int,
        described: tuple[ProcessId, str, int],
        scope: Scope,
        listening: socket.socket,
        on_refused: Callable[[DiscoveryRefused], None],
    ) -> None:
        self.tried: list[str] = []
        """Sentences about what the last announcement did."""
        self.counters: Counter[str] = Counter()
        self._identity = identity
        self._base_port = base_port
        self._described = described
        self._scope = scope
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = listening
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
        on_refused: Callable[[DiscoveryRefused], None],
    ) -> Self:
        """An answerer on UDP base + 1, which it shares with other nodes of this host.

        Raises:
            NodeError: another program has that port for itself.
            SettingsError: none of `interfaces` is up.
        """
        interface_addresses(interfaces)
        port = base_port + NODE_PORT_OFFSET
        try:
            listening = _shared_socket(port)
        except OSError as error:
            raise NodeError(
                f"clients cannot find this node: UDP port {port} cannot be used: {_text(error)}; "
                "end the program that uses it, or choose another base port with --dispy_port"
            ) from error
        answerer = cls(
            identity=_identity(credentials, group),
            base_port=base_port,
            described=(process, name, tcp_port),
            scope=Scope(interfaces, loopback_only(credentials)),
            listening=listening,
            on_refused=on_refused,
        )
        answerer._scope.refresh(answerer.tried)
        answerer._loop.add_reader(listening, answerer._hear, listening)
        return answerer

    def announce(self) -> None:
        """Tell the clients on all interfaces (as they are now) that this node is here."""
        self.tried = []
        if self._socket is None:
            return
        nonce = os.urandom(datagrams.NONCE_SIZE)
        data = datagrams.encode_announcement(self._identity, nonce, *self._described)
        for each in self._scope.refresh(self.tried):
            try:
                self._socket.sendto(data, (each.broadcast, self._base_port))
            except OSError as error:
                self.tried.append(f"{each.name}: nothing could be announced: {_text(error)}")
                self.counters["failed"] += 1
            else:
                self.tried.append(f"{each.name}: announced to {each.broadcast}, UDP port {self._base_port}")
                self.counters["announced"] += 1

    def close(self) -> None:
        """Stop answering. May be called twice."""
        if self._socket is not None:
            _close(self._loop, self._socket)
            self._socket = None

    def _hear(self, listening: socket.socket) -> None:
        for data, address, port in _received(listening):
            if not self._scope.contains(address):
                self.counters["outside"] += 1
                continue
            try:
                datagram = datagrams.decode(data, self._identity)
            except DatagramError:
                self.counters["garbage"] += 1
                continue
            match datagram:
                case Question(nonce):
                    self.counters["questions"] += 1
                    answer = datagrams.encode_answer(self._identity, nonce, *self._described)
                    self._reply(listening, answer, (address, port))
                case Stranger(Kind.QUESTION, nonce, reason, name):
                    self.counters["strangers"] += 1
                    if self._refusals.allows(address, self._loop.time()):
                        refusal = datagrams.encode_refusal(nonce, reason, self._described[1])
                        self._reply(listening, refusal, (address, port))
                    if self._reports.allows((address, name, reason), self._loop.time()):
                        self._on_refused(DiscoveryRefused(address, name, reason))
                case _:
                    self.counters["stale"] += 1

    def _reply(self, listening: socket.socket, data: bytes, target: tuple[str, int]) -> None:
        try:
            listening.sendto(data, target)
        except OSError:
            self.counters["failed"] += 1
        else:
            self.counters["replies"] += 1


async def discover_once(
    credentials: Credentials, group: str, base_port: int, interfaces: tuple[str, ...], seconds: float
) -> tuple[list[NodeFound], list[DiscoveryRefused], list[str]]:
    """Ask three times (datagrams get lost) within `seconds`.

    Returns the nodes that answered, each once, those that refused, and sentences about what was tried.
    """
    found: list[NodeFound] = []
    refused: list[DiscoveryRefused] = []
    asker = await Asker.start(
        credentials=credentials,
        group=group,
        base_port=base_port,
        name=socket.gethostname(),
        interfaces=interfaces,
        on_found=found.append,
        on_refused=refused.append,
    )
    try:
        for _ in range(3):
            asker.ask()
            await asyncio.sleep(seconds / 3)
    finally:
        asker.close()
    once = {node.process: node for node in reversed(found)}
    return list(once.values())[::-1], list(dict.fromkeys(refused)), asker.tried


def _identity(credentials: Credentials, group: str) -> DiscoveryIdentity:
    return DiscoveryIdentity.of(credentials.derive("discovery"), credentials.key_id, group)


def _broadcast_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return sock


def _shared_socket(port: int) -> socket.socket:
    sock = _broadcast_socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "darwin":
            # There SO_REUSEADDR alone does not let several processes receive the same broadcast.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", port))
    except OSError:
        sock.close()
        raise
    return sock


def _received(sock: socket.socket) -> list[tuple[bytes, str, int]]:
    """What waits in the socket, at most so much that the loop stays responsive."""
    result = []
    for _ in range(_DATAGRAMS_PER_WAKE):
        try:
            data, (address, port) = sock.recvfrom(datagrams.DATAGRAM_LIMIT + 1)
        except OSError:
            # Nothing is left; or an earlier send was refused, which the next send reports again.
            break
        result.append((data, address, port))
    return result


def _close(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    loop.remove_reader(sock)
    sock.close()


def _text(error: OSError) -> str:
    return error.strerror or str(error)
