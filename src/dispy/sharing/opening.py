"""Clusters are taken up, attached to their clients again, and given up."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from dispy.errors import SettingsError, TransferError
from dispy.logs import logger
from dispy.model import ComputationId, ComputationSpec
from dispy.sharing.guests import Attached, Guest
from dispy.sharing.identity import identity_of
from dispy.sharing.incoming import Giver
from dispy.sharing.pool import Pool
from dispy.sharing.staging import AGAIN_AFTER, may_pass, refs_of
from dispy.wire.datagrams import clean_name
from dispy.wire.messages import AnyMessage
from dispy.wire.sharing import ClusterDeclined, ClusterSaid, OpenCluster
from dispy.words import counted

CLUSTERS_LIMIT: Final = 1024
"""Clusters that one process may have."""
NAMED_LIMIT: Final = 10_000
TOKEN_SIZE: Final = 32
NAME_LIMIT: Final = 255


class Opener(Attached, Giver, Protocol):
    """A client that opens clusters."""

    proof: asyncio.Future[str]


class Opening:
    """All clusters, and how they come and go. In the loop's thread."""

    def __init__(self, pool: Pool, on_attached: Callable[[Guest], None]) -> None:
        """`on_attached` hears of a cluster whose client is there (again)."""
        self.guests: dict[ComputationId, Guest] = {}
        self._pool = pool
        self._on_attached = on_attached
        self._staging: dict[ComputationId, Opener] = {}
        """Clusters whose files are being fetched, and from whom."""

    async def open(self, client: Opener, message: OpenCluster) -> None:
        """Take up a cluster, or let its client go on with it."""
        try:
            await self._open(client, message)
        except Exception:
            logger.exception("a cluster could not be taken up")
            _decline(client, message.computation.id, "that failed in the scheduler; its log says how")

    async def _open(self, client: Opener, message: OpenCluster) -> None:
        id = message.computation.id
        proof = await client.proof
        guest = self.guests.get(id)
        if guest is None:
            await self._take_up(client, message, proof)
        elif not hmac.compare_digest(guest.opened.token, message.token):
            _decline(client, id, "it belongs to another program: its token is another one")
        else:
            if message.recovers:
                guest.ended_by = "`dispy recover`"
            else:
                guest.ended_by = ""
                await guest.wake()
            self._attach(client, guest, fresh=False)
            if message.recovers and not guest.incoming.waits:
                guest.close(terminate=False)

    async def _take_up(self, client: Opener, message: OpenCluster, proof: str) -> None:
        id = message.computation.id
        other = self._staging.get(id)
        if other is not None:
            if other is not client:
                _decline(client, id, "another program is just opening it")
            return  # the files are on their way: it was asked for before the link broke
        if message.recovers:
            _decline(client, id, "this scheduler does not know it, or not any more")
            return
        if reason := _why_not(message) or ("it has too many clusters" if len(client.guests) >= CLUSTERS_LIMIT else ""):
            _decline(client, id, reason)
            return
        self._staging[id] = client
        try:
            guest = await self._stage(client, message, proof)
        except (TransferError, OSError) as error:
            if not client.is_gone:
                _decline(client, id, f"what it needs cannot be fetched from the program: {error}")
            return
        finally:
            del self._staging[id]
        await self._begin(client, guest)

    async def _stage(self, client: Opener, message: OpenCluster, proof: str) -> Guest:
        spec = message.computation
        guest = Guest(self._pool, cleaned(message), identity_of(message.holder, proof), time.time())
        refs = refs_of(spec.files) + ([] if spec.code is None else [spec.code])
        said = ""
        while True:
            try:
                guest.held += await self._pool.staging.fetch(client.exchange, refs)
            except (TransferError, OSError) as error:
                if client.is_gone or not may_pass(error):
                    raise
                sentence = f"the scheduler cannot keep what {spec.name} needs, and tries again: {error}"
                if sentence != said:
                    said = sentence
                    logger.warning("%s", sentence)
                    client.send(ClusterSaid(spec.id, sentence))
                await asyncio.sleep(AGAIN_AFTER)
            else:
                return guest

    async def _begin(self, client: Opener, guest: Guest) -> None:
        self._register(guest)
        try:
            await self._pool.service.adopt_cluster(guest)
        except SettingsError as error:
            self._forget(guest)
            _decline(client, guest.id, str(error))
            return
        self._pool.keeper.cluster_opened(guest.kept)
        self._pool.service.begin_cluster(guest)
        settled = self._pool.keeper.settled()
        if settled is not None:
            await settled
        logger.info("%s was opened%s", named(guest), " exclusively" if guest.exclusive else "")
        if not client.is_gone:
            self._attach(client, guest, fresh=True)

    def restore(self, guest: Guest) -> None:
        """After a restart: a cluster whose client is not there yet."""
        self._register(guest)

    def _register(self, guest: Guest) -> None:
        self.guests[guest.id] = guest
        self._pool.door.enter(guest)
        guest.on_attached = lambda: self._on_attached(guest)
        guest.on_finished = lambda: self._forget(guest)

    def _attach(self, client: Opener, guest: Guest, *, fresh: bool) -> None:
        before = guest.client
        if before is not None and before is not client:
            _decline(before, guest.id, "another process goes on with it")
            before.guests.pop(guest.id, None)
        client.guests[guest.id] = guest
        guest.attach(client, fresh=fresh)

    def _forget(self, guest: Guest) -> None:
        if self.guests.pop(guest.id, None) is None:
            return
        self._pool.door.leave(guest)
        if guest.client is not None:
            guest.client.guests.pop(guest.id, None)
        if guest.is_over:
            seconds = self._pool.service.portal.loop.time() - guest.begun
            logger.info("%s is over after %.0f s: %s", named(guest), seconds, counted(guest.done, "job"))
        self._pool.keeper.cluster_over(guest.id)
        self._pool.spawn(self._pool.staging.drop(guest.held + guest.objects))

    def give_up_forsaken(self) -> None:
        """Clusters without jobs whose clients are away let go of nodes, and in the end are given up."""
        for guest in list(self.guests.values()):
            if guest.may_rest:
                guest.rest()
            elif guest.is_over and guest.is_forsaken:
                guest.log_loss()
                self._forget(guest)


def cleaned(message: OpenCluster) -> OpenCluster:
    """With names that can be shown."""
    spec: ComputationSpec = msgspec.structs.replace(
        message.computation, name=clean_name(message.computation.name, NAME_LIMIT)
    )
    holder = msgspec.structs.replace(
        message.holder,
        user=clean_name(message.holder.user),
        host=clean_name(message.holder.host),
        program=clean_name(message.holder.program),
    )
    return msgspec.structs.replace(message, computation=spec, holder=holder)


def _why_not(message: OpenCluster) -> str:
    """Why a cluster cannot be taken up, whoever asks."""
    if len(message.token) != TOKEN_SIZE:
        return f"its token must have {TOKEN_SIZE} bytes"
    if len(message.computation.id) != 32 or not message.computation.id.isalnum():
        return "its name is none that a program draws"
    if len(message.named) > NAMED_LIMIT:
        return f"it names more than {NAMED_LIMIT} nodes"
    return ""


def named(guest: Guest) -> str:
    """A cluster as the log names it."""
    holder = guest.opened.holder
    return (
        f"cluster {guest.spec.name} ({guest.id[:8]}) of {guest.owner}, "
        f"{holder.program}, process {holder.pid} on {holder.host},"
    )


def _decline(client: Attached, id: ComputationId, reason: str) -> None:
    message: AnyMessage = ClusterDeclined(id, reason)
    client.send(message)
