"""What a program asks a shared scheduler about its jobs and nodes; what it knows itself is answered here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispy import config
from dispy.model import ComputationId, JobState, NodeInfo, ProcessId
from dispy.nodes import NodeAllocate
from dispy.scheduler.handover import Handover
from dispy.scheduler.jobs import JobRecord
from dispy.sharing.asking import Questions
from dispy.sharing.attachment import Attachment
from dispy.sharing.uplink import Uplink
from dispy.wire.inquiries import AskJobsAt, AskStandings, AskTail, ExplainSubmitted
from dispy.wire.messages import AnyMessage
from dispy.wire.pool import NodeStanding


class Inquiries:
    """The questions that clusters ask. In the loop's thread."""

    attachments: dict[ComputationId, Attachment]
    _uplink: Uplink
    _handover: Handover
    _questions: Questions

    async def explain(self, record: JobRecord) -> str:
        """Why a job is where it is."""
        self._handover.flush_now()
        attachment = self.attachments.get(record.cluster)
        if attachment is None or record.job not in attachment.jobs:
            return f"Job {record.job} has ended."
        if self._uplink.link is None:
            return f"Job {record.job} {_where_it_is(record)}: {self._uplink.why_alone()}."
        if not attachment.accepted:
            return f"Job {record.job} waits: the scheduler at {self._uplink.settings.where} is taking up its cluster."
        if record.state is JobState.Created:
            return (
                f"Job {record.job} waits here until the scheduler at {self._uplink.settings.where} has stored what was "
                "submitted before it."
            )
        try:
            answer, _ = await self._ask(lambda number: ExplainSubmitted(number, record.cluster, record.job))
        except TimeoutError:
            return f"Job {record.job} {_where_it_is(record)}: {self._uplink.why_alone()}."
        return str(answer.sentence)

    async def standings(self, cluster: ComputationId) -> list[NodeStanding]:
        """Every node that a cluster wants to use; none when the scheduler does not answer."""
        self._handover.flush_now()
        try:
            answer, _ = await self._ask(lambda number: AskStandings(number, cluster))
        except TimeoutError:
            return []
        return list(answer.standings)

    async def nodes_matching(self, item: NodeAllocate) -> list[ProcessId]:
        """Nodes of which the scheduler has told, and that an item of `nodes` is about."""
        views = {view.process: view for each in self.attachments.values() for view in each.nodes.views.values()}
        return [process for process, view in views.items() if view.fits(item) or view.is_behind(item)]

    async def uses(self, cluster: ComputationId, node: ProcessId) -> bool:
        """Whether a cluster wants to use a node, opened or not."""
        return any(standing.node == node for standing in await self.standings(cluster))

    def offered_by(self, node: ProcessId) -> NodeInfo | None:
        """What a node says of itself, as far as the scheduler has told."""
        for each in self.attachments.values():
            if node in each.nodes.views:
                return each.nodes.views[node].info
        return None

    async def jobs_at(self, cluster: ComputationId, node: ProcessId, *, from_node: bool) -> list[JobRecord]:
        """The jobs of a cluster that a node has."""
        attachment = self.attachments.get(cluster)
        if attachment is None:
            return []
        if not from_node:
            return [record for record in attachment.jobs.values() if record.node == node]
        try:
            answer, _ = await self._ask(lambda number: AskJobsAt(number, cluster, node, from_node=True))
        except TimeoutError:
            return []
        return [attachment.jobs[job] for job in answer.jobs if job in attachment.jobs]

    async def tail(self, record: JobRecord) -> tuple[bytes, bytes]:
        """The end of what a running job has printed."""
        try:
            answer, payload = await self._ask(lambda number: AskTail(number, record.cluster, record.job))
        except TimeoutError:
            return b"", b""
        both = bytes(payload)
        return both[: answer.stdout_size], both[answer.stdout_size :]

    async def _ask(
        self, question: Callable[[int], AnyMessage], limit: float | None = -1.0
    ) -> tuple[Any, bytes | memoryview]:
        def send(number: int) -> bool:
            self._uplink.send(question(number))
            return self._uplink.link is not None

        return await self._questions.ask(send, config.MsgTimeout if limit == -1.0 else limit)


def _where_it_is(record: JobRecord) -> str:
    return "waits" if record.node is None else "was with a node when that was heard last"
