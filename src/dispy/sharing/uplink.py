"""The link of a program to a shared scheduler: dialled as long as clusters need it, and what is said meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct

from dispy.errors import AuthenticationRejected, LinkError, TransferError
from dispy.logs import logger
from dispy.model import BlobRef, ProcessId, Role
from dispy.secrets import Credentials
from dispy.settings import EXPLAIN_AFTER
from dispy.wire.blobs import BlobExchange
from dispy.wire.blobsources import BlobSources
from dispy.wire.handshake import HandshakeRejected, Refusal
from dispy.wire.link import Dialler, Link, LinkSettings
from dispy.wire.messages import AnyMessage
from dispy.words import counted

REFUSED_AGAIN: Final = 10.0
"""Seconds between dials of a scheduler that refuses us."""
FIRST_WORD: Final = 20.0
"""Seconds for which the end of the first dial is waited for: each of its steps has a time limit, this is for all."""
CLOSED_AGAIN: Final = 0.2
"""Seconds after which a scheduler that said goodbye is dialled again: it may be restarting."""


class SharedSettings(Struct, frozen=True):
    """What clusters must have in common to share a link to a scheduler."""

    credentials: Credentials
    group: str
    host: str
    port: int
    ext_host: str = ""

    @property
    def where(self) -> str:
        """For sentences."""
        return f"{self.host}:{self.port}"


class Client(Protocol):
    """Who uses the link."""

    @property
    def pending(self) -> int:
        """Jobs that have not ended."""

    def there(self) -> None:
        """There is a new link."""

    def said(self, message: AnyMessage, payload: bytes | memoryview) -> None:
        """The scheduler says something that is not about blobs."""

    def all_said(self) -> None:
        """That was all that one read brought."""

    def gone(self) -> None:
        """The link broke."""

    def refused(self, refusal: str) -> bool:
        """The scheduler does not want this program; returns whether somebody was told."""


class Uplink:
    """Keeps the link. In the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: SharedSettings, client: Client) -> None:
        self.settings = settings
        self.sources = BlobSources()
        self.link: Link | None = None
        self.exchange: BlobExchange | None = None
        self.alone_since = 0.0
        """When the link was lost, or first dialled; by the loop's clock."""
        self._loop = loop
        self._client = client
        self._link_settings = LinkSettings(
            process=ProcessId(secrets.token_hex(16)),
            role=Role.CLIENT,
            name=socket.gethostname(),
            credentials=settings.credentials,
            group=settings.group,
        )
        self._heard = asyncio.Event()
        """The first dial has come to its end."""
        self._dialler: Dialler | None = None
        self._trouble = ""
        """Why there is no link, as the last dial has shown."""
        self._is_said = False
        self._stopped = False

    def begin(self) -> None:
        """Dial, unless that has begun."""
        if self._dialler is not None:
            return
        self.alone_since = self._loop.time()
        self._dialler = Dialler(
            self.settings.host,
            self.settings.port,
            settings=self._link_settings,
            handler=self,
            on_failure=self._not_reached,
            on_closed=lambda dialler: self._dial_again(CLOSED_AGAIN),
        )
        self._dialler.start()
        self._loop.call_later(EXPLAIN_AFTER, self._say_if_alone)

    def _dial_again(self, seconds: float) -> None:
        def dial() -> None:
            if self._dialler is not None and not self._stopped:
                self._dialler.start()

        self._loop.call_later(seconds, dial)

    def _not_reached(self, dialler: Dialler, error: LinkError) -> None:
        self._trouble = str(error).removeprefix(f"{self.settings.where}: ")
        self._heard.set()
        if not isinstance(error, AuthenticationRejected):
            return
        refusal = f"the scheduler at {self.settings.where} refuses this program: {self._why_refused(error)}"
        if not self._client.refused(refusal):
            logger.error("%s; it is tried again every %g s", refusal, REFUSED_AGAIN)
        self._dial_again(REFUSED_AGAIN)

    def _why_refused(self, error: LinkError) -> str:
        if not isinstance(error, HandshakeRejected):
            return str(error)
        if error.reason == Refusal.CERTIFICATE and self.settings.credentials.certfile is None:
            return (
                "it wants certificates of programs, and this one has none; give one of its authority (`dispy cert "
                "client NAME` makes it) by certfile=, keyfile= and cafile=, or by DISPY_CERTFILE, DISPY_KEYFILE and "
                "DISPY_CAFILE"
            )
        if error.reason != Refusal.SECRET:
            return str(error)
        return (
            f"its secret for programs is another one than that of this program ({self.settings.credentials.source}); "
            "give the secret of its --cluster_secret or --cluster_secret_file (else that of whoever started it; that "
            "of nodes does not do) by secret_file= or DISPY_SECRET_FILE"
        )

    def _say_if_alone(self) -> None:
        if self.link is not None or self._stopped or self._is_said:
            return
        if self._loop.time() < self.alone_since + EXPLAIN_AFTER:
            return  # it was there meanwhile, and another call follows
        self._is_said = True
        pending = self._client.pending
        waiting = f"; {counted(pending, 'job')} pending here" if pending else ""
        logger.warning("%s%s", self.why_alone(), waiting)

    def patience(self) -> float:
        """Seconds that a word of the scheduler is worth waiting for: fewer where it has been away for a while."""
        away = 0.0 if self.link is not None else self._loop.time() - self.alone_since
        return max(0.0, EXPLAIN_AFTER - away)

    async def first_word(self) -> None:
        """Wait until it is known whether the scheduler is there and wants this program; a busy machine is slow."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_WORD):
                await self._heard.wait()

    def stop(self, reason: str) -> None:
        """Say goodbye, and dial no more."""
        self._stopped = True
        if self.exchange is not None:
            self.exchange.close(reason)
        if self._dialler is not None:
            self._dialler.stop(reason)
        self.link = None

    def send(self, message: AnyMessage, payload: Sequence[bytes] = ()) -> None:
        """Send a message; without a link it goes nowhere."""
        if self.link is not None:
            self.link.send(message, payload)

    async def fetch(self, ref: BlobRef) -> memoryview:
        """A content that the scheduler offers.

        Raises:
            TransferError: it does not have it.
        """
        if self.exchange is None:
            raise TransferError("there is no link to the scheduler")
        return await self.exchange.fetch_memory(ref)

    def silence(self) -> str:
        """That the scheduler does not answer, for one who need not wait for it; empty while there is a link."""
        if self.link is not None:
            return ""
        trouble = f" ({self._trouble})" if self._trouble else ""
        return f"the scheduler at {self.settings.where} does not answer{trouble}"

    def why_alone(self) -> str:
        """Why nothing is heard of the scheduler, in words."""
        if self.link is not None:
            return f"the scheduler at {self.settings.where} does not answer"
        trouble = f" ({self._trouble})" if self._trouble else ""
        return f"there is no link to the scheduler at {self.settings.where}{trouble}; it is dialled again and again"

    def link_opened(self, link: Link) -> None:
        """The scheduler is there."""
        self.link = link
        self._heard.set()
        if self.exchange is None:
            self.exchange = BlobExchange(link, self.sources)
        else:
            self.exchange.link_replaced(link)
        if self._is_said:
            self._is_said = False
            logger.info("the scheduler at %s answers", self.settings.where)
        self._client.there()

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """Everything that one read brought."""
        if link is not self.link or self.exchange is None:
            return
        for message, payload in messages:
            if not self.exchange.message_arrived(message, payload):
                self._client.said(message, payload)
        self._client.all_said()

    def link_suspected(self, link: Link) -> None:
        """The dialler makes another."""

    def link_recovered(self, link: Link) -> None:
        """It spoke again."""

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """The link ended; it is dialled again."""
        if link is not self.link:
            return
        self.link = None
        self._trouble = cause
        self.alone_since = self._loop.time()
        self._client.gone()
        if not self._stopped:
            self._loop.call_later(EXPLAIN_AFTER, self._say_if_alone)
