"""The tables of the scheduler core, the bookkeeping that keeps them true to each other, and effects in the making."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from dispy.model import ComputationId, Holder, JobDone, JobState, ProcessId
from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.effects import Effects, JobEnded, JobsEnded, Notice, Send
from dispy.scheduler.fairness import Account, Turns
from dispy.scheduler.jobs import JobQueue, JobRecord
from dispy.scheduler.nodes import Amount, NodeRecord, Share
from dispy.wire.messages import AnyMessage


class Outbox(Struct, eq=False, gc=False):
    """Effects in the making. Jobs that end in a row become one notice."""

    ended: list[JobEnded] = field(default_factory=list)
    """Jobs that ended since the last other notice; append here."""
    _sends: list[Send] = field(default_factory=list)
    _notices: list[Notice] = field(default_factory=list)
    _marked: list[JobRecord] = field(default_factory=list)

    def send(self, node: NodeRecord, message: AnyMessage, payload: Sequence[bytes] = ()) -> None:
        """Say something to a node."""
        self._sends.append(Send(node.id, message, payload))

    def notice(self, notice: Notice) -> None:
        """Tell the user's side."""
        if self.ended:
            self._notices.append(JobsEnded(self.ended))
            self.ended = []
        self._notices.append(notice)

    def mark(self, records: Sequence[JobRecord]) -> None:
        """Note how these jobs stand now."""
        self._marked += records

    def close(self) -> Effects:
        """All of it, in order."""
        if self.ended:
            self._notices.append(JobsEnded(self.ended))
        return Effects(self._sends, self._notices, self._marked)


class Counters(Struct):
    """What was ignored, and what was done."""

    submitted: int = 0
    ended: int = 0
    requeued: int = 0
    """Attempts that were lost with a node and whose jobs were queued again."""
    retried: int = 0
    """Attempts that failed and whose jobs were queued again."""
    returned: int = 0
    """Results of attempts that had been lost with their node and came from its disk when it was started again."""
    dropped: int = 0
    """Results of attempts that were no longer expected."""
    ignored: int = 0
    """Events and messages about what is not (or no longer) known."""


class Tables(Struct):
    """Everything that the core knows."""

    holder: Holder
    token: bytes
    grace: float
    ahead: float
    turns: Turns
    """Whose turn it is."""
    max_cpus_per_user: int = 0
    """CPUs that one user may have at once; 0: any number."""
    park_above: int = 0
    """CPUs that each cluster opens in any case, before others wait for its jobs; 0: it opens all."""
    now: float = 0.0
    """The time of the last event, for people."""
    clusters: dict[ComputationId, ClusterRecord] = field(default_factory=dict)
    nodes: dict[ProcessId, NodeRecord] = field(default_factory=dict)
    jobs: dict[int, JobRecord] = field(default_factory=dict)
    """Every job that has not ended."""
    runnable: dict[JobQueue, None] = field(default_factory=dict)
    """Queues that are to be looked at in the next dispatch pass."""
    ending: dict[JobQueue, str] = field(default_factory=dict)
    """Queues whose jobs can never run and are being ended, and why."""
    blocked: dict[JobQueue, None] = field(default_factory=dict)
    """Queues of heavy jobs for which nothing was free; they are looked at in every dispatch pass."""
    claims: dict[NodeRecord, None] = field(default_factory=dict)
    """Nodes that are kept free for jobs of these."""
    wanting: dict[ComputationId, None] = field(default_factory=dict)
    """Clusters with parked shares of which they may need some now."""
    idle: dict[NodeRecord, None] = field(default_factory=dict)
    """Where shares are parked: nodes with a CPU that nobody uses."""
    restless: dict[ComputationId, None] = field(default_factory=dict)
    """Clusters with both idle CPUs and jobs that wait for one elsewhere."""
    crowded: dict[ComputationId, None] = field(default_factory=dict)
    """Clusters with jobs that wait at nodes for a CPU."""
    deadlines: dict[ProcessId | tuple[ComputationId, ProcessId], float] = field(default_factory=dict)
    """When a node without a link is lost, and when a share is tried again that was refused for the time being."""
    closing: dict[ComputationId, None] = field(default_factory=dict)
    """Clusters that take no more jobs."""
    accounts: dict[str, Account] = field(default_factory=dict)
    """Everybody who has had a cluster."""
    fresh: dict[NodeRecord, Share | None] = field(default_factory=dict)
    """Nodes whose load fell, and the share that has ended a job there."""
    exclusives: dict[ComputationId, None] = field(default_factory=dict)
    """Clusters that run alone, or will."""
    alone: ComputationId | None = None
    """The one that does."""
    is_holding: bool = False
    """Whether a cluster may have to wait because of them."""
    counters: Counters = field(default_factory=Counters)
    joins: int = 0
    lost: str = ""
    """Which node was lost last, and why."""

    def refresh(self, node: NodeRecord) -> None:
        """The load of a node fell, or whether it can be used changed: put what is derived from that right."""
        if node not in self.fresh:
            self.fresh[node] = None
            for share in node.shares.values():
                self.runnable.update(dict.fromkeys(share.cluster.special.values()))

    def weigh(self, share: Share, together: int) -> None:
        """Note whether a share has idle CPUs, or jobs that wait for one. The jobs of its node want `together` CPUs."""
        cluster, node = share.cluster, share.node.id
        idle, excess = share.balance(together)
        if idle:
            cluster.idlers[node] = share
        else:
            cluster.idlers.pop(node, None)
        if excess:
            cluster.excesses[node] = share
            self.crowded[cluster.id] = None
        elif node in cluster.excesses:
            self._forget_excess(share)
        if cluster.idlers and cluster.excesses:
            self.restless[cluster.id] = None

    def _forget_excess(self, share: Share) -> None:
        excesses = share.cluster.excesses
        if excesses.pop(share.node.id, None) is not None and not excesses:
            del self.crowded[share.cluster.id]

    def reconsider(self, cluster: ClusterRecord) -> None:
        """What a cluster has opened has changed, or what it could open."""
        if cluster.parked:
            self.wanting[cluster.id] = None
        else:
            cluster.is_growing = False

    def release_claims(self) -> None:
        """Nothing is kept free for anybody: the next dispatch pass says anew what is."""
        for node in self.claims:
            node.claimed = Amount()
            self.refresh(node)
        self.claims.clear()
        for queue in self.blocked:
            self.runnable[queue] = None
        self.blocked.clear()

    def remove_share(self, share: Share) -> None:
        """Forget a share; nothing is in flight there."""
        cluster, node = share.cluster, share.node
        cluster.rooms.forget(share)
        node.busy.pop(share, None)
        node.over.pop(share, None)
        self.reconsider(cluster)
        cluster.parked.pop(node.id, None)
        cluster.opened.pop(node.id, None)
        cluster.idlers.pop(node.id, None)
        self._forget_excess(share)
        self.deadlines.pop((cluster.id, node.id), None)
        del cluster.shares[node.id]
        del node.shares[cluster.id]
        self.refresh(node)

    def requeue(self, out: Outbox, records: Sequence[JobRecord]) -> None:
        """Let jobs wait again that were handed to a node; they are no longer in its flight."""
        if records:
            out.mark(records)
        queues: dict[JobQueue, list[JobRecord]] = {}
        for record in records:
            record.state = JobState.Created
            record.node = None
            record.seen_at = 0.0
            queues.setdefault(self.clusters[record.cluster].queue_for(record), []).append(record)
        for queue, back in queues.items():
            queue.put_back(back)
            self.runnable[queue] = None

    def give_back(self, record: JobRecord) -> None:
        """A job is no longer in flight and has not run, or in vain; what is kept for it is not yet released."""
        self.turns.give_back(self.clusters[record.cluster], record)

    def forget_queue(self, queue: JobQueue) -> None:
        """A queue is empty: one of jobs with wishes may never have another."""
        self.runnable.pop(queue, None)
        self.ending.pop(queue, None)
        cluster = self.clusters.get(queue.cluster)
        if cluster is not None and cluster.special.get(queue.shape) is queue:
            del cluster.special[queue.shape]

    def end(
        self,
        out: Outbox,
        record: JobRecord,
        state: JobState,
        cause: str | None,
        done: JobDone | None = None,
        body: bytes | memoryview = b"",
    ) -> None:
        """End a job for good. If it waits, it leaves its queue; from a flight the caller has taken it."""
        cluster = self.clusters[record.cluster]
        was, record.state = record.state, state
        if was is JobState.Created:
            queue = cluster.queue_for(record)
            queue.discard(record)
            if not queue.waiting:
                self.forget_queue(queue)
        del self.jobs[record.job]
        cluster.jobs -= 1
        self.counters.ended += 1
        out.ended.append(JobEnded(record, state, record.node, done, body, cause))

    def end_recall(self, node: NodeRecord) -> None:
        """The recall that is under way at a node has been answered or will never be."""
        if node.recall is not None:
            cluster = self.clusters.get(node.recall[0])
            if cluster is not None:
                cluster.recalling -= node.recall[1]
                if cluster.idlers and cluster.excesses:
                    self.restless[cluster.id] = None  # what did not come back may be had from another node
            node.recall = None
