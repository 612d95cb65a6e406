"""Questions of clients, and their answers. Everybody may see how everything stands; of jobs only those of clusters are
told, and cancelled, that the asker may steer: by their token, as admin, or where everybody may.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from dispy import settings
from dispy.errors import TransferError
from dispy.model import ComputationId, JobState
from dispy.scheduler.core import ClusterView, NodeView, Snapshot
from dispy.sharing.departed import Departed
from dispy.sharing.guests import Guest, number_of
from dispy.sharing.identity import Identity
from dispy.sharing.pool import Pool
from dispy.wire.blobs import BlobExchange
from dispy.wire.datagrams import clean_name
from dispy.wire.inquiries import (
    AskJobs,
    AskJobsAt,
    AskPool,
    AskStandings,
    AskTail,
    CancelFor,
    CancelTold,
    Explained,
    ExplainSubmitted,
    FilePlacedAt,
    JobsAtTold,
    JobsTold,
    PlaceFileAt,
    PoolTold,
    StandingsTold,
    TailTold,
)
from dispy.wire.messages import AnyMessage
from dispy.wire.pool import ClusterStatus, JobStatus, PoolNode, PoolStatus, UserStatus

JOBS_MOST: Final = 10_000
"""Jobs of one cluster in one answer."""
TOKENS_MOST: Final = 1024
"""Tokens that are looked at for one question."""
NOT_OPEN: Final = "this scheduler does not have that cluster open for this program"


class Asker(Protocol):
    """A client, as far as its questions need it."""

    guests: dict[ComputationId, Guest]
    exchange: BlobExchange
    name: str
    """As it says."""
    proof: asyncio.Future[str]
    """What proves who it is; empty: nothing."""

    @property
    def is_admin(self) -> bool:
        """Whether it has proved the admin secret."""

    def send(self, message: AnyMessage, payload: Sequence[bytes] = ()) -> None:
        """Send a message."""


class Questions:
    """Answers them. In the loop's thread."""

    def __init__(self, pool: Pool, guests: Mapping[ComputationId, Guest], policy: str, name: str) -> None:
        self._pool = pool
        self._guests = guests
        self._policy = policy
        self._name = name
        self._since = time.time()

    async def answer(self, client: Asker, question: AnyMessage) -> None:
        """Answer one."""
        match question:
            case AskPool():
                client.send(PoolTold(question.question, self.status(client, question.tokens)))
            case AskJobs():
                client.send(self._jobs(client, question))
            case CancelFor():
                client.send(self._cancel(client, question, await client.proof))
            case _:
                guest = client.guests.get(getattr(question, "cluster", ComputationId("")))
                await self._answer_owner(client, guest, question)

    async def _answer_owner(self, client: Asker, guest: Guest | None, question: AnyMessage) -> None:
        service = self._pool.service
        match question:
            case ExplainSubmitted(number):
                client.send(Explained(number, NOT_OPEN if guest is None else await self._explain(guest, question.job)))
            case AskStandings(number):
                client.send(StandingsTold(number, [] if guest is None else await service.standings(guest.id)))
            case AskJobsAt(number):
                records = (
                    []
                    if guest is None
                    else await service.jobs_at(guest.id, question.node, from_node=question.from_node)
                )
                client.send(JobsAtTold(number, [number_of(record) for record in records]))
            case AskTail(number):
                record = None if guest is None else guest.jobs.get(question.job)
                stdout, stderr = (b"", b"") if record is None else await service.tail(record)
                client.send(TailTold(number, len(stdout), len(stderr)), (stdout, stderr))
            case PlaceFileAt(number):
                client.send(FilePlacedAt(number, NOT_OPEN if guest is None else await self._place(client, question)))

    async def _explain(self, guest: Guest, job: int) -> str:
        sentence = await self._why(guest, job)
        problem = self._pool.keeper.problem
        return f"{problem[0].upper()}{problem[1:]}. {sentence}".rstrip() if problem else sentence

    async def _why(self, guest: Guest, job: int) -> str:
        if not job:
            held = f" Further jobs wait to be taken in: {guest.why_held()}." if guest.incoming.is_held else ""
            return f"{self._pool.service.core.explain_cluster(guest.id)}{held}".lstrip()
        record = guest.jobs.get(job)
        if record is None and guest.incoming.holds(job):
            if guest.incoming.is_held:
                return f"Job {job} waits until the scheduler takes it in: {guest.why_held()}."
            return f"Job {job} waits until the scheduler has stored what it needs."
        if record is None:
            return f"Job {job} has ended, has not been submitted yet, or is not on the scheduler's disk yet."
        sentence = await self._pool.service.explain(record)
        return re.sub(rf"\bJob {record.job}\b", f"Job {job}", sentence)

    async def _place(self, client: Asker, question: PlaceFileAt) -> str:
        staging = self._pool.staging
        try:
            held = await staging.fetch(client.exchange, [question.file.blob])
        except (TransferError, OSError) as error:
            return str(error)
        try:
            return await self._pool.service.conversation.place(question.node, question.cluster, question.file)
        finally:
            await staging.drop(held)

    # ---- the pool ----

    def _may_steer(self, client: Asker, guest: Guest, tokens: Sequence[bytes]) -> bool:
        if client.is_admin or self._pool.rules.cooperative or guest.id in client.guests:
            return True
        return any(hmac.compare_digest(token, guest.opened.token) for token in tokens[:TOKENS_MOST])

    def status(self, client: Asker | None = None, tokens: Sequence[bytes] = ()) -> PoolStatus:
        """How everything stands, for a client or for the owner of the scheduler."""
        snapshot = self._pool.service.core.snapshot()
        cpus = cpus_of_clusters(snapshot)
        views = {view.cluster: view for view in snapshot.clusters}
        return PoolStatus(
            name=self._name,
            version=settings.VERSION,
            policy=self._policy,
            since=self._since,
            now=time.time(),
            nodes=(*map(self._pool_node, snapshot.nodes), *map(_lost_node, self._pool.departed)),
            users=tuple(
                UserStatus(
                    *Identity.of_key(user.user),
                    user.clusters,
                    user.waiting,
                    user.in_flight,
                    user.cpus,
                    user.slot_seconds,
                )
                for user in snapshot.users
            ),
            clusters=tuple(
                _cluster_status(
                    guest,
                    views.get(guest.id),
                    cpus.get(guest.id, 0),
                    mine=client is None or self._may_steer(client, guest, tokens),
                )
                for guest in self._guests.values()
            ),
            problem=self._pool.keeper.problem,
        )

    def _pool_node(self, node: NodeView) -> PoolNode:
        problem = node.info.closed
        if node.holder is not None and node.state == "refused":
            problem = f"used by {node.holder.user}@{node.holder.host} ({node.holder.program})"
        elif node.state == "broken":
            problem = "no link to it; if it does not come back within some seconds, it is lost"
        seen = self._pool.service.links.view(node.node)
        return PoolNode(
            node=node.node,
            name=node.info.name,
            address=node.address,
            cpus=node.info.cpus,
            state=node.state,
            running=node.in_flight,
            done=self._pool.done[node.node],
            avail=node.avail,
            problem=problem,
            port=0 if seen is None else seen.port,
        )

    def _jobs(self, client: Asker, question: AskJobs) -> JobsTold:
        most = max(0, min(question.most, JOBS_MOST))
        told: list[JobStatus] = []
        more = 0
        for guest in self._guests.values():
            if question.cluster and guest.id != question.cluster:
                continue
            if not self._may_steer(client, guest, question.tokens):
                continue
            for number, record in guest.jobs.items():
                if len(told) >= JOBS_MOST or most <= 0:
                    break
                view = None if record.node is None else self._pool.service.links.view(record.node)
                name = "" if view is None else view.info.name
                state = JobState.Created if record.node is None else record.state
                told.append(JobStatus(guest.id, number, state, name, record.attempt, guest.since.get(number, 0.0)))
                most -= 1
            more += len(guest.jobs)
            most = max(0, min(question.most, JOBS_MOST))
        return JobsTold(question.question, told, more - len(told))

    def _cancel(self, client: Asker, question: CancelFor, proof: str) -> CancelTold:
        guest = self._guests.get(question.cluster)
        if guest is None:
            return CancelTold(question.question, 0, "this scheduler has no such cluster")
        if not self._may_steer(client, guest, question.tokens):
            return CancelTold(
                question.question,
                0,
                f"cluster {guest.spec.name} ({guest.id[:8]}) belongs to {guest.owner}: its jobs are ended from "
                "where its program was started, or by who knows the admin secret (--admin)",
            )
        who = proof or f"{clean_name(client.name)} (claimed)"
        by = f"`dispy cancel` of {who}{', an admin' if client.is_admin else ''}"
        count = guest.cancel(question.jobs or list(guest.jobs), by)
        sentence = "" if count else "none of these jobs is pending" if question.jobs else "it has no pending jobs"
        return CancelTold(question.question, count, sentence)


def _lost_node(gone: Departed) -> PoolNode:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(gone.at))
    problem = f"since {since}" + (f" ({gone.cause})" if gone.cause else "")
    return PoolNode(gone.node, gone.name, gone.address, gone.cpus, "lost", running=0, problem=problem)


def cpus_of_clusters(snapshot: Snapshot) -> dict[ComputationId, int]:
    """On how many CPUs jobs of each cluster run: as many as a node has jobs of it, at most what it uses there."""
    cpus: dict[ComputationId, int] = {}
    for node in snapshot.nodes:
        for share in node.shares:
            cpus[share.cluster] = cpus.get(share.cluster, 0) + min(share.in_flight, share.cpus)
    return cpus


def _cluster_status(guest: Guest, view: ClusterView | None, cpus: int, *, mine: bool) -> ClusterStatus:
    return ClusterStatus(
        cluster=guest.id,
        name=guest.spec.name,
        owner=guest.identity.user,
        proved=guest.identity.proved,
        claim=guest.opened.holder,
        state="over" if view is None else view.state,
        attached=guest.client is not None,
        waiting=0 if view is None else view.waiting,
        running=0 if view is None else view.in_flight,
        done=guest.done,
        unfetched=len(guest.ends),
        cpus=cpus,
        opened_at=guest.opened_at,
        exclusive=guest.exclusive,
        mine=mine,
    )
