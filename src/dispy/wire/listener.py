"""Accepts links. Strangers get little: few connections, few seconds, few bytes; each refusal is counted and told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from msgspec import Struct

from dispy.errors import ConnectFailed, NodeError, PortInUse
from dispy.model import ProcessId, Role
from dispy.settings import HANDSHAKE_TIMEOUT
from dispy.wire.connection import Approach, Link, LinkHandler
from dispy.wire.handshake import HandshakeRejected
from dispy.wire.interfaces import address_of, as_asked, can_be_used, is_loopback, shown
from dispy.wire.parties import LinkSettings
from dispy.wire.sockets import tune
from dispy.wire.strangers import Limits, Strangers
from dispy.wire.tls import ListenerTls
from dispy.wire.tlsstream import secure

_BACKLOG: Final = 1024
"""Connections that the kernel keeps while this process is busy, if it is allowed as many; what it drops dials again
after a second."""
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_EXHAUSTED_PAUSE: Final = 0.1
BROKEN_OFF: Final = "it broke the connection off before it was known who it is"
"""How the sentence begins about a connection that nobody refused: its other side went away."""
_PORT_TRIES: Final = 20


class _Visitor(Struct, eq=False):
    """A connection that has just come."""

    connection: socket.socket
    host: str
    port: int


class Listener:
    """Listens at one TCP port of some addresses. Links that it opened outlive it.

    A second link from the same process in the same role replaces the first, which is reported lost before the new
    one is reported open: its dialler knows that the old one is dead.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        tls: ListenerTls,
        settings: LinkSettings,
        handler: LinkHandler,
        accept: frozenset[Role],
        on_refused: Callable[[str, str], None],
        limits: Limits,
    ) -> None:
        self.port = int(sockets[0].getsockname()[1])
        self.refused: Counter[str] = Counter()
        """Reasons (one word each) and how often links were refused for them."""
        self._tls = tls
        self._settings = settings
        self._handler = handler
        self._accept = accept
        self._on_refused = on_refused
        self._strangers = Strangers[_Visitor](limits)
        self._links: dict[tuple[ProcessId, Role], Link] = {}
        loop = asyncio.get_running_loop()
        self._accepting = {sock: loop.create_task(self._accept_at(sock), name="accept links") for sock in sockets}
        self._admitting: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(
        cls,
        hosts: Sequence[str],
        port: int,
        *,
        settings: LinkSettings,
        handler: LinkHandler,
        accept: frozenset[Role],
        on_refused: Callable[[str, str], None],
        expects_links: bool = True,
        names_owner: bool = True,
        limits: Limits | None = None,
    ) -> Listener:
        """Listen at these addresses; port 0 takes one that is free at all of them.

        `on_refused(address, sentence)` hears of every connection that did not become a link. Where links are expected,
        all that the first one needs is made at once. With `names_owner` the processes of this machine are looked
        through for the one that has the port.

        Raises:
            PortInUse: another process listens there; the sentence names it if it can be found.
            NodeError: an address is not one of this machine, or the port is not allowed.
            SettingsError: a certificate file cannot be used.
        """
        tls = ListenerTls(settings.credentials)
        if expects_links:
            tls.certificate_hash()
        return cls(
            _listen(hosts, port, names_owner=names_owner),
            tls,
            settings,
            handler,
            accept,
            on_refused,
            limits or Limits(),
        )

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses at which it listens now."""
        return tuple(address_of(sock.getsockname()) for sock in self._accepting)

    async def close(self) -> None:
        """Stop to listen and drop connections that are not authenticated; open links stay."""
        tasks = [*self._accepting.values(), *self._admitting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for visitor in self._strangers.drop_waiting():
            visitor.connection.close()
        for sock in self._accepting:
            sock.close()

    def move(self, hosts: Sequence[str]) -> None:
        """Listen at these addresses from now on, at the same port; those that cannot be had are left out."""
        for sock in [sock for sock in self._accepting if address_of(sock.getsockname()) not in hosts]:
            self._accepting.pop(sock).cancel()
            sock.close()
        for host in [host for host in hosts if host not in self.hosts]:
            with contextlib.suppress(NodeError):  # in use or gone: the next look at the interfaces tries again
                for sock in _listen([host], self.port, names_owner=False):
                    task = asyncio.get_running_loop().create_task(self._accept_at(sock), name="accept links")
                    self._accepting[sock] = task

    async def _accept_at(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(sock)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._refuse(
                        "a connection", "exhausted", f"{error.strerror}: nothing is accepted until that has changed"
                    )
                    await asyncio.sleep(_EXHAUSTED_PAUSE)
                continue
            self._arrived(connection, address)

    def _arrived(self, connection: socket.socket, address: tuple[Any, ...]) -> None:
        visitor = _Visitor(connection, address_of(address), int(address[1]))
        credentials = self._settings.credentials
        if credentials.empty and not credentials.insecure and not is_loopback(visitor.host):
            connection.close()
            sentence = "this side has an empty secret, which is good on its own machine only"
            self._refuse(visitor.host, "empty", sentence)
            return
        too_much = self._strangers.arrive(visitor.host, visitor)
        if too_much is not None:
            too_much.connection.close()
            self._refuse(too_much.host, "busy", "too many connections that have not proved themselves wait already")
        self._serve()

    def _serve(self) -> None:
        """Begin with as many of those that wait as there are places."""
        while (visitor := self._strangers.next()) is not None:
            if _has_left(visitor.connection):
                visitor.connection.close()
                self._strangers.leave(visitor.host)
                self._refuse(visitor.host, "eof", f"{BROKEN_OFF} (it did not wait for its turn)")
                continue
            task = asyncio.get_running_loop().create_task(self._admit(visitor))
            self._admitting.add(task)
            task.add_done_callback(partial(self._admitted, visitor.host))

    def _admitted(self, host: str, task: asyncio.Task[None]) -> None:
        self._admitting.discard(task)
        self._strangers.leave(host)
        if not task.cancelled():
            self._serve()
            # What is no refusal is a bug: let the loop tell.
            task.result()

    async def _admit(self, visitor: _Visitor) -> None:
        connection, host = visitor.connection, visitor.host
        approach = Approach(
            dialled=False,
            address=host,
            port=visitor.port,
            certificate_hash=self._tls.certificate_hash(),
            accept=self._accept,
            opening=self._opening,
        )
        link = Link(self._settings, self._handler, approach)
        try:
            tune(connection)
            await secure(connection, self._tls.context, link, server_side=True)
            await link.opened
        except HandshakeRejected as error:
            self._refuse(host, error.reason, str(error))
        except ConnectFailed as error:
            self._refuse(host, error.reason, str(error))
        except ssl.SSLCertVerificationError as error:
            self._refuse(host, "certificate", f"its certificate could not be verified: {error.verify_message}")
        except ssl.SSLError as error:
            self._refuse_tls(host, error)
        except TimeoutError:
            self._refuse(host, "timeout", f"TLS was not set up within {HANDSHAKE_TIMEOUT:g} s")
        except OSError as error:
            self._refuse(host, "eof", f"{BROKEN_OFF} ({_why(error)})")
        finally:
            if not link.opened.done():
                link.abort("not admitted")
                connection.close()

    def _refuse_tls(self, host: str, error: ssl.SSLError) -> None:
        why = (error.reason or str(error)).replace("_", " ").lower()
        if "certificate" in why:
            self._refuse(host, "certificate", f"it shows no certificate that could be verified ({why})")
        else:
            self._refuse(host, "tls", f"what it sent is no TLS 1.3 ({why})")

    def _refuse(self, host: str, reason: str, sentence: str) -> None:
        self.refused[reason] += 1
        self._on_refused(host, sentence)

    def _opening(self, link: Link) -> None:
        key = (link.peer.process, link.peer.role)
        old = self._links.get(key)
        self._links[key] = link
        link.ended.add_done_callback(partial(self._forget, key, link))
        if old is not None:
            old.replace("the other side dialled again")

    def _forget(self, key: tuple[ProcessId, Role], link: Link, ended: asyncio.Future[str]) -> None:
        if self._links.get(key) is link:
            del self._links[key]


def _has_left(connection: socket.socket) -> bool:
    """Whether the other side has closed already (where the system tells that without reading)."""
    hung_up = getattr(select, "POLLRDHUP", 0)
    poll = select.poll()
    poll.register(connection, hung_up)
    return any(event & (hung_up | select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def _why(error: OSError) -> str:
    return error.strerror or str(error) or "it may have given up waiting, or has ended"


def _listen(hosts: Sequence[str], port: int, *, names_owner: bool) -> list[socket.socket]:
    for left in reversed(range(_PORT_TRIES)):
        with contextlib.ExitStack() as on_error:
            sockets: list[socket.socket] = []
            try:
                for address in _addresses(hosts):
                    chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
                    sockets.append(_bind(*address, chosen, names_owner=names_owner))
                    on_error.callback(sockets[-1].close)
            except PortInUse:
                # A port that was free at the first address is taken at another one.
                if port or not left:
                    raise
                continue
            on_error.pop_all()
            return sockets
    raise NodeError("no free TCP port was found")


def _addresses(hosts: Sequence[str]) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """All addresses that these hosts have, each once."""
    found = {}
    for host in hosts:
        try:
            entries = socket.getaddrinfo(as_asked(host), 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise NodeError(f"{host!r} is no address of this machine to listen at: {error.strerror}") from error
        there = [(family, address) for family, _, _, _, address in entries]
        # A name such as localhost may have addresses of a family that the machine does not speak.
        found.update(dict.fromkeys([each for each in there if can_be_used(address_of(each[1]))] or there))
    return list(found)


def _bind(family: socket.AddressFamily, address: tuple[Any, ...], port: int, *, names_owner: bool) -> socket.socket:
    host = address_of(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((address[0], port, *address[2:]))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"TCP port {port} of {host} is in use{_owner(port) if names_owner else ''}; "
                "choose another one or end that process",
                port,
            ) from error
        raise NodeError(f"cannot listen at {shown(host, port)}: {error.strerror}") from error
    return sock


def _owner(port: int) -> str:
    """Who listens at a port, as far as this user may know."""
    # Only needed for a sentence that ends the program; costs 25 ms.
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                with contextlib.suppress(psutil.Error):
                    return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
                return f" by process {connection.pid}"
    return ""
