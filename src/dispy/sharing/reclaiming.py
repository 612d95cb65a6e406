"""What shared schedulers hold for a program that is gone, fetched by its successor and acknowledged batch by batch.

Who has the token of a cluster takes it over. What comes is in the recovery file, on disk, before the scheduler may
forget it.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Iterable
from typing import Final

from msgspec import Struct, field

from dispy.errors import AuthenticationRejected, LinkError, TransferError
from dispy.logs import logger
from dispy.model import ComputationId, ComputationSpec, Holder, JobState, ProcessId, Role
from dispy.recovery.book import AnyEntry, Book, ClusterOver, ClusterShared, EndKept, ResultKept
from dispy.recovery.file import RecoveryFile
from dispy.secrets import Credentials
from dispy.wire.blobs import BlobExchange
from dispy.wire.blobsources import BlobSources
from dispy.wire.link import Dialler, Link, LinkSettings
from dispy.wire.messages import AnyMessage
from dispy.wire.sharing import AckOver, CloseCluster, ClusterAccepted, ClusterDeclined, JobsOver, OpenCluster
from dispy.wire.sharing import ClusterOver as ClusterIsOver

SAY_INTERVAL: Final = 10.0
"""Seconds between two sentences about what is waited for; the first comes after a fifth of that."""
CLOSED_AGAIN: Final = 0.2
"""Seconds after which a scheduler that said goodbye is dialled again."""


class Reclaimed(Struct):
    """What became of it."""

    waiting: list[str] = field(default_factory=list)
    """Sentences about schedulers that may hold something more."""
    lost: list[str] = field(default_factory=list)
    """Sentences about clusters that their scheduler does not know any more."""


async def reclaim(
    file: RecoveryFile, book: Book, credentials: Credentials, *, holder: Holder, terminate: bool, patience: float | None
) -> Reclaimed:
    """Fetch all ends of the clusters of a file, until every job has ended or the time (seconds) is over.

    Raises:
        OSError: the recovery file cannot be written.
    """
    by_place: dict[tuple[str, int], list[ClusterShared]] = {}
    for shared in book.shared.values():
        by_place.setdefault((shared.host, shared.port), []).append(shared)
    reclaimed = Reclaimed()
    there = [
        _Scheduler(host, port, clusters, file, book, credentials, holder, terminate, reclaimed)
        for (host, port), clusters in by_place.items()
    ]
    try:
        async with asyncio.timeout(patience):
            await asyncio.gather(*(scheduler.run() for scheduler in there))
    except TimeoutError:
        reclaimed.waiting += [scheduler.sentence() for scheduler in there if scheduler.clusters]
    finally:
        for scheduler in there:
            scheduler.close()
    return reclaimed


class _Scheduler:
    """One scheduler that holds clusters of that program."""

    def __init__(
        self,
        host: str,
        port: int,
        clusters: Iterable[ClusterShared],
        file: RecoveryFile,
        book: Book,
        credentials: Credentials,
        holder: Holder,
        terminate: bool,
        reclaimed: Reclaimed,
    ) -> None:
        self.clusters = {shared.id: shared for shared in clusters}
        """Those that are not over."""
        self._where = f"{host}:{port}"
        self._file = file
        self._book = book
        self._holder = holder
        self._terminate = terminate
        self._reclaimed = reclaimed
        self._link: Link | None = None
        self._trouble = ""
        self._exchange: BlobExchange | None = None
        self._said: asyncio.Queue[tuple[Link, AnyMessage, bytes]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        settings = LinkSettings(
            process=ProcessId(secrets.token_hex(16)),
            role=Role.CLIENT,
            name=socket.gethostname(),
            credentials=credentials,
            group=book.program.group,
        )
        self._dialler = Dialler(
            host,
            port,
            settings=settings,
            handler=self,
            on_failure=self._not_reached,
            on_closed=lambda dialler: self._dial_again(),
        )
        self._saying = self._loop.call_later(SAY_INTERVAL / 5, self._say)

    async def run(self) -> None:
        """Take what comes until nothing can come any more."""
        self._dialler.start()
        while self.clusters:
            link, message, payload = await self._said.get()
            await self._take(link, message, payload)

    def close(self) -> None:
        """Let go of the scheduler; what was not acknowledged stays there."""
        self._saying.cancel()
        if self._exchange is not None:
            self._exchange.close("the recovery is over")
        self._dialler.stop("the recovery is over")

    def sentence(self) -> str:
        """What is waited for."""
        if self._link is None:
            trouble = f" ({self._trouble})" if self._trouble else ""
            return f"the scheduler at {self._where} does not answer{trouble}"
        names = ", ".join(self._name_of(cluster) for cluster in self.clusters)
        return f"jobs of {names} have not ended at the scheduler at {self._where}"

    def _say(self) -> None:
        if self.clusters:
            logger.info("waiting: %s", self.sentence())
            self._saying = self._loop.call_later(SAY_INTERVAL, self._say)

    def _name_of(self, cluster: ComputationId) -> str:
        noted = self._book.clusters.get(cluster)
        return cluster if noted is None else noted.name

    # ---- the link ----

    def _not_reached(self, dialler: Dialler, error: LinkError) -> None:
        if str(error) != self._trouble:
            logger.info("the scheduler at %s cannot be reached: %s", self._where, error)
        self._trouble = str(error)
        if isinstance(error, AuthenticationRejected):
            self._dial_again(SAY_INTERVAL)

    def _dial_again(self, seconds: float = CLOSED_AGAIN) -> None:
        self._loop.call_later(seconds, lambda: self._dialler.start() if self.clusters else None)

    def link_opened(self, link: Link) -> None:
        """The scheduler is there."""
        self._link = link
        if self._exchange is None:
            self._exchange = BlobExchange(link, BlobSources())
        else:
            self._exchange.link_replaced(link)
        for shared in self.clusters.values():
            noted = self._book.clusters.get(shared.id)
            kind = "function" if noted is None else noted.kind
            spec = ComputationSpec(shared.id, self._name_of(shared.id), kind)
            link.send(OpenCluster(spec, shared.token, self._holder, recovers=True))

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """Everything that one read brought."""
        for message, payload in messages:
            if self._exchange is not None and not self._exchange.message_arrived(message, payload):
                self._said.put_nowait((link, message, bytes(payload)))

    def link_suspected(self, link: Link) -> None:
        """The dialler makes another."""

    def link_recovered(self, link: Link) -> None:
        """It spoke again."""

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """It is dialled again, and tells again what was not acknowledged."""
        if self._link is link:
            self._link, self._trouble = None, cause

    # ---- what it says ----

    async def _take(self, link: Link, message: AnyMessage, payload: bytes) -> None:
        match message:
            case ClusterAccepted(cluster) if cluster in self.clusters:
                link.send(CloseCluster(cluster, self._terminate or cluster in self._book.left))
            case JobsOver(cluster, sequence) if cluster in self.clusters and link is self._link:
                kept = await self._with_bodies(message, payload)
                if link is self._link:  # else it is told again, perhaps by another process under other names
                    await self._write(kept)
                    link.send(AckOver(cluster, sequence))
            case ClusterIsOver(cluster) if cluster in self.clusters:
                await self._over(cluster)
            case ClusterDeclined(cluster, reason) if cluster in self.clusters:
                sentence = f"the scheduler at {self._where} has nothing of {self._name_of(cluster)}: {reason}"
                logger.warning("%s", sentence)
                self._reclaimed.lost.append(sentence)
                await self._over(cluster)

    async def _with_bodies(self, message: JobsOver, payload: bytes) -> list[AnyEntry]:
        kept: list[AnyEntry] = []
        at = 0
        for over in message.jobs:
            done, body = over.done, b""
            if done is not None and done.blob is None:
                end = at + done.result_size + done.stdout_size + done.stderr_size + done.error_size
                body, at = payload[at:end], end
            if not self._book.is_wanted(message.cluster, over.job):
                continue
            if done is None:
                kept.append(EndKept(over.job, over.state, over.cause or ""))
                continue
            if done.blob is not None and self._exchange is not None:
                try:
                    body = await self._exchange.fetch_bytes(done.blob)
                except TransferError as error:
                    cause = f"the result could not be fetched from the scheduler: {error}"
                    kept.append(EndKept(over.job, JobState.Terminated, cause))
                    continue
            kept.append(ResultKept(done, over.address, body))
        return kept

    async def _over(self, cluster: ComputationId) -> None:
        del self.clusters[cluster]
        await self._write([ClusterOver(cluster)])

    async def _write(self, entries: list[AnyEntry]) -> None:
        self._file.append(entries)
        await self._loop.run_in_executor(None, self._file.sync)
        for entry in entries:
            self._book.add(entry)
