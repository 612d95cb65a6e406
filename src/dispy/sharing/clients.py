"""Links to the clients of a shared scheduler: who is there, which clusters each may speak for, and who hears what.

A client is one process. What it does wrong ends its link, and is no matter of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Final

from dispy.errors import RemoteProtocolError, TransferError
from dispy.logs import logger
from dispy.model import ComputationId, ProcessId, Role
from dispy.scheduler.events import ClusterNarrowed, ClusterWidened, NodeAllocated, Steering
from dispy.sharing.guests import Guest
from dispy.sharing.identity import prove_by_uid
from dispy.sharing.opening import Opening
from dispy.sharing.passing import FilePassing
from dispy.sharing.pool import Pool
from dispy.sharing.questions import Questions
from dispy.sharing.staging import AGAIN_AFTER, refs_of
from dispy.wire.blobs import BlobExchange
from dispy.wire.blobsources import BlobSources
from dispy.wire.inquiries import (
    AskJobs,
    AskJobsAt,
    AskPool,
    AskStandings,
    AskTail,
    CancelFor,
    ExplainSubmitted,
    PlaceFileAt,
)
from dispy.wire.interfaces import is_own, shown
from dispy.wire.link import Link
from dispy.wire.messages import AnyMessage, FileTaken
from dispy.wire.sharing import (
    AckOver,
    AnswerAllocation,
    CancelSubmitted,
    CloseCluster,
    KeepObjects,
    NarrowCluster,
    OpenCluster,
    SteerShare,
    SubmitJobs,
    WidenCluster,
)

COMES_BACK: Final = 60.0
"""Seconds for which a client without a link is expected back: what is being fetched from it waits so long."""
WORKS_LIMIT: Final = 256
"""Questions and the like of one client that may be under way."""
BACKLOG_LIMIT: Final = 256 << 20
"""Bytes that may wait to be sent to a client; one that does not read loses its link."""
IN_LINE: Final = frozenset({SubmitJobs, CancelSubmitted, CloseCluster})
QUESTIONS: Final = frozenset(
    {ExplainSubmitted, AskStandings, AskJobsAt, AskTail, PlaceFileAt, AskPool, AskJobs, CancelFor}
)


class Client:
    """A process that has, or had a moment ago, a link to us."""

    def __init__(self, link: Link) -> None:
        self.process: ProcessId = link.peer.process
        self.role = link.peer.role
        self.name = link.peer.name
        self.address = link.peer.address
        self.link: Link | None = link
        self.sources = BlobSources()
        self.exchange = BlobExchange(link, self.sources)
        self.guests: dict[ComputationId, Guest] = {}
        self.proof: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """What proves who it is; empty: nothing."""
        self.is_gone = False
        self.works = 0

    @property
    def is_admin(self) -> bool:
        """Whether it has proved the admin secret."""
        return self.role is Role.ADMIN

    def send(self, message: AnyMessage, payload: Sequence[bytes] = ()) -> None:
        """Send a message; without a link it is dropped."""
        if self.link is not None:
            self.link.send(message, payload)


class ClientLinks:
    """All clients (a `LinkHandler`)."""

    def __init__(
        self, pool: Pool, opening: Opening, questions: Questions, passing: FilePassing, port: Callable[[], int]
    ) -> None:
        """`port` is where clients dial."""
        self.clients: dict[tuple[ProcessId, Role], Client] = {}
        self._pool = pool
        self._opening = opening
        self._questions = questions
        self._passing = passing
        self._port = port
        self._loop = asyncio.get_running_loop()

    # ---- links ----

    def link_opened(self, link: Link) -> None:
        """See `LinkHandler`."""
        client = self.clients.get(_key(link))
        if client is None:
            client = self.clients[_key(link)] = Client(link)
            self._pool.spawn(self._prove(client, link))
            logger.debug("a program of %s (%s) is there", client.name, client.address)
            return
        client.link = link
        client.exchange.link_replaced(link)

    async def _prove(self, client: Client, link: Link) -> None:
        proof, place = link.certified_name, (client.address, link.peer.port)
        while not (proof or client.is_gone):
            try:
                if is_own(client.address):
                    proof = await asyncio.to_thread(prove_by_uid, *place, self._port())
                break
            except OSError as error:
                logger.warning(
                    "whose program is at %s cannot be seen now, and is tried again: %s", shown(*place), error
                )
                await asyncio.sleep(AGAIN_AFTER)
        client.proof.set_result(proof)

    def link_suspected(self, link: Link) -> None:
        """See `LinkHandler`: what it is told waits in its link."""

    def link_recovered(self, link: Link) -> None:
        """See `LinkHandler`."""

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """See `LinkHandler`. Its clusters go on."""
        client = self.clients.get(_key(link))
        if not goodbye:
            left = "; its jobs go on" if client is not None and client.link is link and client.guests else ""
            who = f"{link.peer.name} ({link.peer.address})"
            logger.info("the link to a program of %s is gone: %s%s", who, cause, left)
        if client is None or client.link is not link:
            return
        client.link = None
        for guest in client.guests.values():
            guest.detach(self._loop.time())
        client.guests.clear()  # it opens them again, when it is back
        if goodbye:
            self._forget(client, cause)
        else:
            self._loop.call_later(COMES_BACK, self._forget_if_away, client)

    def _forget_if_away(self, client: Client) -> None:
        if client.link is None and not client.is_gone:
            self._forget(client, f"the program did not come back within {COMES_BACK:g} s")

    def _forget(self, client: Client, cause: str) -> None:
        client.is_gone = True
        if self.clients.get((client.process, client.role)) is client:
            del self.clients[client.process, client.role]
        client.exchange.close(cause)
        client.sources.close()
        client.guests.clear()

    def close(self, reason: str, *, returns: bool) -> None:
        """Say goodbye to all; `returns`: their clusters go on at its next start."""
        for client in list(self.clients.values()):
            if client.link is not None:
                client.link.close(reason, returns=returns)
                client.link = None
            self._forget(client, reason)

    def drop_those_that_do_not_read(self) -> None:
        """A client for which too much waits loses its link: it is told anew what it has not taken."""
        for client in self.clients.values():
            if client.link is not None and client.link.backlog > BACKLOG_LIMIT:
                self._break(client.link, "it does not read what it is told")

    # ---- messages ----

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """See `LinkHandler`."""
        client = self.clients.get(_key(link))
        if client is None or client.link is not link:
            return
        for message, payload in messages:
            try:
                self._take(client, message, payload)
            except RemoteProtocolError as error:
                self._break(link, str(error))
                return

    def _break(self, link: Link, cause: str) -> None:
        logger.warning("the link to a program of %s (%s) is broken off: %s", link.peer.name, link.peer.address, cause)
        link.abort(cause)

    def _take(self, client: Client, message: AnyMessage, payload: bytes | memoryview) -> None:
        if client.exchange.message_arrived(message, payload):
            return
        if isinstance(message, FileTaken):
            self._passing.taken(client.guests, message)
        elif isinstance(message, OpenCluster):
            self._work(client, self._opening.open(client, message))
        elif type(message) in QUESTIONS:
            self._work(client, self._questions.answer(client, message))
        else:
            guest = client.guests.get(getattr(message, "cluster", ComputationId("")))
            if guest is not None:
                self._of_guest(client, guest, message, payload)

    def _of_guest(self, client: Client, guest: Guest, message: AnyMessage, payload: bytes | memoryview) -> None:
        service = self._pool.service
        match message:
            case SubmitJobs() | CancelSubmitted() | CloseCluster() | KeepObjects():
                guest.incoming.put(message, payload, client)
            case AckOver():
                guest.ends.acknowledge(message.sequence)
            case NarrowCluster():
                service.handle(ClusterNarrowed(guest.id))
            case WidenCluster():
                self._work(client, self._widen(guest, message))
            case AnswerAllocation():
                self._work(client, self._allocated(client, guest, message))
            case SteerShare():
                _steer(self._pool, guest, message)

    async def _widen(self, guest: Guest, message: WidenCluster) -> None:
        rules, service = self._pool.rules, self._pool.service
        if message.open_ended and rules.discovers:
            service.handle(ClusterWidened(guest.id))
        named = [place for place in message.named if rules.allow_host(place[0])]
        await service.search.look(named, asks=message.discovers and rules.discovers)

    async def _allocated(self, client: Client, guest: Guest, message: AnswerAllocation) -> None:
        cpus = max(0, message.cpus)
        if message.files:
            try:
                guest.held += await self._pool.staging.fetch(client.exchange, refs_of(message.files))
            except (TransferError, OSError) as error:
                guest.say(f"a node is not used: its files cannot be fetched from the program: {error}")
                cpus = 0
        guest.allocated(
            NodeAllocated(guest.id, message.node, cpus, message.files, message.setup_args, message.oversubscribe)
        )

    def _work(self, client: Client, coroutine: Coroutine[None, None, None]) -> None:
        """Do something that takes its time."""
        if client.works >= WORKS_LIMIT:
            coroutine.close()
            raise RemoteProtocolError(f"it wants more than {WORKS_LIMIT} things at once")
        client.works += 1
        self._pool.spawn(self._counted(client, coroutine))

    async def _counted(self, client: Client, coroutine: Coroutine[None, None, None]) -> None:
        try:
            await coroutine
        finally:
            client.works -= 1


def _key(link: Link) -> tuple[ProcessId, Role]:
    return link.peer.process, link.peer.role


def _steer(pool: Pool, guest: Guest, message: SteerShare) -> None:
    try:
        how = Steering[message.how.upper()]
    except KeyError:
        raise RemoteProtocolError(f"nodes are not steered by {message.how!r}") from None
    cpus = max(0, message.cpus)
    info = pool.service.offered_by(message.node)
    if how is Steering.CAP and info is not None and not (guest.may_exceed or info.oversubscribe):
        cpus = min(cpus, info.cpus)
    pool.service.steer(guest.id, message.node, how, cpus=cpus, terminate=message.terminate)
