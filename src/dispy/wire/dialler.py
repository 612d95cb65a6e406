"""Makes links by dialling: once (`dial`), or again and again (`Dialler`)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from dispy.errors import AuthenticationRejected, ConnectFailed, LinkError, SettingsError
from dispy.settings import HANDSHAKE_TIMEOUT, REDIAL_FIRST, REDIAL_HURRY, REDIAL_MOST
from dispy.wire.connection import Approach, Link, LinkHandler
from dispy.wire.handshake import HandshakeRejected
from dispy.wire.interfaces import address_of, as_asked, is_loopback
from dispy.wire.parties import LinkSettings
from dispy.wire.sockets import tune
from dispy.wire.tls import dialler_context
from dispy.wire.tlsstream import secure

_SHORT_LIFE: Final = 1.0
"""A link that lived shorter (seconds) does not end the waiting between dials: something is wrong with it."""


async def dial(host: str, port: int, *, settings: LinkSettings, handler: LinkHandler) -> Link:
    """Open a link to a name or address. `handler.link_opened` is called before this returns.

    Raises:
        ConnectFailed: nobody is there (`refused`: its machine says so), or it is no process of dispy.
        AuthenticationRejected: secret, certificate, group, role or protocol do not fit.
    """
    return await _dial(host, port, settings, lambda where: Link(settings, handler, where))


class Dialler:
    """Keeps a link to one address: dials, and dials again when the link is lost without a goodbye.

    A link that is suspected is given up for a new connection: after some lost packets the kernel sends again only
    after seconds, while the packets of a new connection may come through at once. Waits 0.1 to 2 s (with jitter)
    between attempts, and hurries during the grace time after the loss of a link that worked. Ends by `stop()`, by a
    goodbye or by this side's `Link.close()` (`on_closed`), and by AuthenticationRejected.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        settings: LinkSettings,
        handler: LinkHandler,
        on_failure: Callable[[Dialler, LinkError], None],
        on_closed: Callable[[Dialler], None] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.link: Link | None = None
        """The open link, also while the handler hears that it opened."""
        self._settings = settings
        self._handler = handler
        self._on_failure = on_failure
        self._on_closed = on_closed
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to dial."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"dial {self.host}:{self.port}")

    def stop(self, reason: str = "closing") -> None:
        """Do not dial any more, and close the link. Nobody is told."""
        if self._task is not None:
            self._task.cancel()
        if self.link is not None:
            self.link.close(reason)
            self.link = None

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        wait = REDIAL_FIRST
        hurry_until = -math.inf
        while True:
            hurry = loop.time() < hurry_until
            try:
                link = await _dial(
                    self.host, self.port, self._settings, self._link, again=REDIAL_HURRY if hurry else None
                )
            except LinkError as error:
                self._on_failure(self, error)
                if isinstance(error, AuthenticationRejected):
                    return
            else:
                opened_at = loop.time()
                how = await link.ended
                self.link = None
                if how != "lost":
                    if self._on_closed is not None:
                        self._on_closed(self)
                    return
                if loop.time() - opened_at > _SHORT_LIFE:
                    wait = REDIAL_FIRST
                    hurry_until = loop.time() + self._settings.grace_timeout
                    continue
            await asyncio.sleep(wait * random.uniform(0.75, 1.25))
            wait = min(2 * wait, REDIAL_HURRY if hurry else REDIAL_MOST)

    def _link(self, approach: Approach) -> Link:
        approach = replace(approach, opening=self._opening, suspected=Link.abandon)
        return Link(self._settings, self._handler, approach)

    def _opening(self, link: Link) -> None:
        self.link = link


async def _dial(
    host: str,
    port: int,
    settings: LinkSettings,
    link: Callable[[Approach], Link],
    *,
    again: float | None = None,
) -> Link:
    try:
        context = dialler_context(settings.credentials)
    except SettingsError as error:
        raise AuthenticationRejected(str(error)) from error
    failures: list[ConnectFailed] = []
    for family, address in await _resolve(host, port):
        approach = Approach(dialled=True, address=address_of(address), port=port)
        _check_empty_secret(settings, approach)
        try:
            sock = await _connect(family, address, approach.where, again)
            return await _authenticate(sock, context, link(approach))
        except ConnectFailed as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise ConnectFailed(
        f"{host}:{port}: " + "; ".join(str(failure) for failure in failures),
        refused=all(failure.refused for failure in failures),
    )


async def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        # An address needs neither a thread nor a name server.
        found = socket.getaddrinfo(as_asked(host), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise ConnectFailed(
                f"{host!r} is no address, and no machine of that name is known ({why or error})",
                reason="name",
            ) from error
    return [(family, address) for family, _, _, _, address in found]


async def _connect(
    family: socket.AddressFamily, address: tuple[Any, ...], where: str, again: float | None
) -> socket.socket:
    """A connection; with `again` one more attempt is made each time that so many seconds have gone by."""
    attempts: set[asyncio.Task[socket.socket]] = set()
    try:
        while True:
            attempts.add(asyncio.create_task(_attempt(family, address, where)))
            done, _ = await asyncio.wait(attempts, timeout=again, return_when=asyncio.FIRST_COMPLETED)
            if done:
                # The others are closed below; two that arrive in the same turn of the loop differ in nothing.
                first = done.pop()
                attempts.discard(first)
                return first.result()
    finally:
        for attempt in attempts:
            attempt.cancel()
        for ended in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(ended, socket.socket):
                ended.close()


async def _attempt(family: socket.AddressFamily, address: tuple[Any, ...], where: str) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectFailed(f"{where} cannot be dialled: {error.strerror}") from error
    with contextlib.ExitStack() as on_error:
        on_error.callback(sock.close)
        try:
            tune(sock)
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await asyncio.get_running_loop().sock_connect(sock, address)
        except ConnectionRefusedError as error:
            raise ConnectFailed(
                f"nothing listens at {where} (connection refused)", refused=True, reason="refused"
            ) from error
        except TimeoutError as error:
            raise ConnectFailed(f"{where} did not answer within {HANDSHAKE_TIMEOUT:g} s", reason="timeout") from error
        except OSError as error:
            raise ConnectFailed(f"{where} cannot be reached: {error.strerror or error}") from error
        on_error.pop_all()
    return sock


async def _authenticate(sock: socket.socket, context: ssl.SSLContext, link: Link) -> Link:
    where = link.where
    try:
        await secure(sock, context, link, server_side=False)
        await link.opened
    except HandshakeRejected:
        # Whoever is refused may end at once, and its last words must have left by then.
        await link.wait_closed()
        raise
    except ssl.SSLCertVerificationError as error:
        raise AuthenticationRejected(
            f"{where} shows a certificate that this side does not accept ({error.verify_message}); "
            "give both sides certificates of one authority with --certfile and --cafile"
        ) from error
    except ssl.SSLError as error:
        if "certificate" in str(error).lower():
            raise AuthenticationRejected(f"{where} does not accept this side's certificate ({error.reason})") from error
        raise ConnectFailed(
            f"what listens at {where} is no process of dispy: it does not speak TLS 1.3 ({error.reason})",
            reason="tls",
        ) from error
    except (ConnectionResetError, BrokenPipeError) as error:
        raise ConnectFailed(
            f"{where} broke the connection while TLS was set up: it ends, or takes no more connections from this "
            "address for some seconds, as too many from here have not proved themselves (its log says which)",
            reason="eof",
        ) from error
    except OSError as error:
        raise ConnectFailed(
            f"{where} broke the connection while TLS was set up ({error.strerror or str(error) or 'without a word'})",
            reason="eof",
        ) from error
    except asyncio.CancelledError:
        link.abort("dialling was stopped")
        raise
    return link


def _check_empty_secret(settings: LinkSettings, approach: Approach) -> None:
    credentials = settings.credentials
    if credentials.empty and not credentials.insecure and not is_loopback(approach.address):
        raise AuthenticationRejected(
            f"an empty secret is good for links on one machine only, and {approach.where} is another one; "
            "give both a secret (or, on a network that you trust, --insecure)"
        )
