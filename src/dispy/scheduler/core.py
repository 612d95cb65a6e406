"""The scheduler's decisions as a pure object: events and the time go in, effects come out.

`flow` moves jobs, `membership` nodes, `shares` what a cluster has of a node, `closing` clusters; `policy` chooses,
`tables` holds what is known. No socket, clock, file or log here; the same events at the same times always have the same
effects.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import assert_never

from msgspec import Struct

from dispy.model import AvailInfo, ComputationId, Holder, NodeInfo, ProcessId
from dispy.scheduler import closing, events, flow, membership, parking, restoring, shares, steering, turns
from dispy.scheduler.admission import admit
from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.effects import Effects
from dispy.scheduler.explain import (
    explain_all_stuck,
    explain_cluster,
    explain_job,
    explain_stuck,
    lacks_nodes,
    standings,
)
from dispy.scheduler.fairness import Account, Charged, Policy, Turns
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.keeping import Changes, changes_of
from dispy.scheduler.nodes import NodeRecord
from dispy.scheduler.tables import Counters, Outbox, Tables
from dispy.settings import AHEAD_SECONDS, GRACE_TIMEOUT
from dispy.wire import messages
from dispy.wire.pool import NodeStanding


class ShareView(Struct, frozen=True):
    """What one cluster has of one node."""

    cluster: ComputationId
    state: str
    """wanted, parked, opening, ready, refused or closing."""
    cpus: int
    in_flight: int
    reason: str


class NodeView(Struct, frozen=True):
    """A node as it stands."""

    node: ProcessId
    info: NodeInfo
    address: str
    state: str
    """joined, free, asked, leased or refused; broken without a link, suspect when silent."""
    in_flight: int
    avail: AvailInfo | None
    holder: Holder | None
    shares: tuple[ShareView, ...]


class ClusterView(Struct, frozen=True):
    """A cluster as it stands."""

    cluster: ComputationId
    name: str
    state: str
    """open, draining, terminating; or waiting, for another to have run alone, or to run alone itself."""
    waiting: int
    in_flight: int
    mean: float | None
    """Measured seconds per job."""
    user: str
    exclusive: bool


class UserView(Struct, frozen=True):
    """A user as it stands."""

    user: str
    clusters: int
    waiting: int
    in_flight: int
    cpus: int
    """CPUs that jobs in flight have, or will have in their turn."""
    slot_seconds: float
    """What its ended jobs took, since the scheduler began."""


class Snapshot(Struct, frozen=True):
    """Everything that a monitor shows."""

    clusters: tuple[ClusterView, ...]
    nodes: tuple[NodeView, ...]
    users: tuple[UserView, ...]
    counters: dict[str, int]


class SchedulerCore:
    """Who runs what, when.

    Whatever the event, the state is then looked at as a whole: no job waits that a node could run.
    """

    def __init__(
        self,
        *,
        holder: Holder,
        token: bytes,
        grace: float = GRACE_TIMEOUT,
        ahead: float = AHEAD_SECONDS,
        policy: Policy = Policy.FIFO,
        max_cpus_per_user: int = 0,
        park_above: int = 0,
    ) -> None:
        """Make an empty core.

        `holder` and `token` name and prove its leases; a node without a link is lost after `grace` seconds; `ahead`
        seconds of work are sent ahead to each CPU. `policy` says whose turn it is; one user may have at most
        `max_cpus_per_user` CPUs at once (0: no bound). A cluster opens `park_above` CPUs, or twice its part of all, and
        more when its jobs need them (0: all nodes at once).
        """
        self._tables = Tables(holder, token, grace, ahead, Turns(policy), max_cpus_per_user, park_above)

    @property
    def counters(self) -> Counters:
        """What was done and what was ignored so far."""
        return self._tables.counters

    def handle(self, event: events.Event, now: float) -> Effects:
        """Take in what has happened at `now` (monotonic seconds) and say what is to be done.

        Raises:
            InvalidTransition: the host broke the rules (a job or a cluster submitted twice).
        """
        tables, out = self._tables, Outbox()
        tables.now = now
        if isinstance(event, events.NodeSaid):
            self._node_said(out, event, now)
            return self._settle(out)
        match event:
            case events.Restored():
                restoring.restore(tables, out, event, now)
            case events.JobsSubmitted():
                flow.submit(tables, out, event.jobs)
            case events.CancelAsked():
                flow.cancel(tables, out, event.jobs, event.cause)
            case events.ClusterOpened():
                closing.open_cluster(tables, out, event)
            case events.ClusterWidened():
                steering.widen(tables, event)
            case events.ClusterNarrowed():
                steering.narrow(tables, out, event)
            case events.ClusterClosing():
                closing.close_cluster(tables, out, event)
            case events.NodeJoined():
                membership.join(tables, out, event)
            case events.NodeAllocated():
                shares.allocate(tables, out, event)
            case events.NodeSteered():
                steering.steer(tables, out, event)
            case (
                events.NodeSuspected()
                | events.NodeRecovered()
                | events.LinkBroken()
                | events.LinkResumed()
                | events.NodeLost()
            ):
                self._link_changed(out, event, now)
            case _:
                assert_never(event)
        return self._settle(out)

    def next_deadline(self) -> float | None:
        """When `handle_timeout` is to be called at the latest; None: no need."""
        tables = self._tables
        if tables.ending:
            return tables.now
        deadline = min(tables.deadlines.values(), default=None)
        look = turns.next_look(tables)
        if look is None or deadline is None:
            return deadline if look is None else look
        return min(look, deadline)

    def handle_timeout(self, now: float) -> Effects:
        """Do what is due at `now`: nodes that did not come back are lost, refused computations are tried again."""
        tables, out = self._tables, Outbox()
        tables.now = now
        flow.end_further(tables, out)
        for key in [key for key, at in tables.deadlines.items() if at <= now]:
            if tables.deadlines.pop(key, None) is None:
                continue
            if isinstance(key, tuple):
                shares.try_again(tables, out, tables.clusters[key[0]].shares[key[1]])
            else:
                node = tables.nodes[key]
                cause = f"its link broke and did not come back within {node.grace:.3g} s"
                if node.is_restored:
                    cause = "it did not come back when the scheduler was started again"
                elif node.is_silent:
                    cause = f"nothing was heard of it for {node.grace:.3g} s"
                membership.lose_node(tables, out, node, cause)
        return self._settle(out)

    @property
    def nodes(self) -> Collection[ProcessId]:
        """Nodes that have joined and are not lost: only their next link is a `LinkResumed`."""
        return self._tables.nodes.keys()

    def record_of(self, job: int) -> JobRecord | None:
        """A job that has not ended."""
        return self._tables.jobs.get(job)

    def runs(self, node: ProcessId, job: int, attempt: int) -> bool:
        """Whether a node has this attempt of a job."""
        record = self._tables.jobs.get(job)
        return record is not None and (record.node, record.attempt) == (node, attempt)

    def jobs_at(self, node: ProcessId, cluster: ComputationId) -> list[JobRecord]:
        """The jobs of a cluster that a node has."""
        record = self._tables.nodes.get(node)
        share = None if record is None else record.shares.get(cluster)
        return [] if share is None else list(share.flight.values())

    @property
    def has_one_job(self) -> bool:
        """Whether a single job has not ended."""
        return len(self._tables.jobs) == 1

    @property
    def waiting(self) -> int:
        """Jobs that no node has."""
        return sum(cluster.waiting for cluster in self._tables.clusters.values())

    def lacks_nodes(self, job: int) -> bool:
        """Whether a job waits for want of nodes."""
        return lacks_nodes(self._tables, job)

    def uses(self, cluster: ComputationId, node: ProcessId) -> bool:
        """Whether a cluster has a share of a node, opened or not."""
        known = self._tables.clusters.get(cluster)
        return known is not None and node in known.shares

    def standings(self, cluster: ComputationId, now: float | None = None) -> list[NodeStanding]:
        """Every node that a cluster wants to use, and what keeps it from being given work."""
        if now is not None:
            self._tables.now = now
        return standings(self._tables, cluster)

    def explain(self, job: int, now: float | None = None) -> str:
        """One sentence: why this job is where it is."""
        if now is not None:
            self._tables.now = now
        return explain_job(self._tables, job)

    def explain_cluster(self, cluster: ComputationId) -> str:
        """One sentence: why jobs of this cluster wait; empty when none does."""
        return explain_cluster(self._tables, cluster)

    def why_waiting(self) -> str | None:
        """Why jobs wait that will not get their turn: nothing of their cluster runs, or no known node can run them.

        None when there are no such jobs.
        """
        return explain_all_stuck(self._tables) or None

    def why_cluster_waits(self, cluster: ComputationId) -> str | None:
        """The same for one cluster."""
        return explain_stuck(self._tables, cluster) or None

    def changes(self, event: events.Event | None, effects: Effects) -> Changes:
        """What must survive this process of an event (None: of a timeout) that was just handled, and its effects."""
        return changes_of(self._tables, event, effects)

    def accounts(self) -> dict[str, Charged]:
        """What each user has been charged."""
        return {user: Charged(account.used, account.due) for user, account in self._tables.accounts.items()}

    def restore_accounts(self, charged: Mapping[str, Charged]) -> None:
        """Give users back what they were charged by the process before this one, once its clusters are here."""
        for user, was in charged.items():
            account = self._tables.accounts.get(user)
            if account is not None:
                self._tables.turns.restore(account, was)

    def snapshot(self) -> Snapshot:
        """Everything that a monitor shows; it does not change afterwards."""
        tables = self._tables
        counters = tables.counters
        return Snapshot(
            tuple(_cluster_view(cluster) for cluster in tables.clusters.values()),
            tuple(_node_view(node) for node in tables.nodes.values()),
            tuple(_user_view(account) for account in tables.accounts.values()),
            {name: getattr(counters, name) for name in Counters.__struct_fields__},
        )

    def check(self) -> None:
        """Compute every table anew from the others.

        Raises:
            InvalidTransition: two of them differ: a bug of ours.
        """
        from dispy.scheduler.invariants import check_tables  # for tests

        check_tables(self._tables)

    def _settle(self, out: Outbox) -> Effects:
        tables = self._tables
        if tables.runnable:
            flow.end_hopeless(tables, out, tables.runnable)
        if tables.closing:
            closing.finish_closing(tables, out)
        if tables.exclusives or tables.is_holding:
            admit(tables, out)
        turns.dispatch(tables, out)
        if tables.wanting:
            parking.open_needed(tables, out)
        return out.close()

    def _link_changed(
        self,
        out: Outbox,
        event: events.NodeSuspected | events.NodeRecovered | events.LinkBroken | events.LinkResumed | events.NodeLost,
        now: float,
    ) -> None:
        tables = self._tables
        node = tables.nodes.get(event.node)
        if node is None:
            tables.counters.ignored += 1
            return
        match event:
            case events.NodeSuspected():
                membership.suspect(tables, node, is_suspect=True)
            case events.NodeRecovered():
                membership.suspect(tables, node, is_suspect=False)
            case events.LinkBroken(_, silent_for, patience):
                node.grace = tables.grace * patience
                membership.break_link(tables, node, now - silent_for, is_silent=silent_for > 0)
            case events.LinkResumed():
                membership.resume(tables, out, node)
            case events.NodeLost():
                membership.lose_node(tables, out, node, event.cause)
            case _:
                assert_never(event)

    def _node_said(self, out: Outbox, event: events.NodeSaid, now: float) -> None:
        tables = self._tables
        node = tables.nodes.get(event.node)
        # results may come late, as their bodies are fetched first; everything else the node repeats on its next link
        if node is None or (node.broken_until is not None and type(event.message) is not messages.JobsDone):
            tables.counters.ignored += 1
            return
        message = event.message
        if type(message) is messages.JobsDone:
            for touched in flow.take_results(tables, out, node, message, event.bodies):
                if touched.over:
                    shares.settle_node(tables, out, touched)
            return
        match message:
            case messages.JobsRecalled(jobs):
                flow.take_recalled(tables, out, node, jobs)
                shares.settle_node(tables, out, node)
            case messages.NodeDescribed(info):
                membership.describe(tables, out, node, info)
            case messages.LoadMeasured(avail):
                membership.measure(node, out, avail)
            case messages.LeaseGranted():
                membership.lease_granted(tables, out, node, message)
            case messages.LeaseRefused(holder):
                membership.lease_refused(tables, out, node, holder)
            case messages.ComputationAdvanced(computation, step):
                shares.computation_advanced(tables, node, computation, step, now)
            case messages.ComputationReady(computation):
                shares.computation_ready(tables, out, node, computation)
            case messages.ComputationRefused():
                shares.computation_refused(tables, out, node, message, now)
            case messages.ComputationClosed(computation, trace):
                shares.computation_closed(tables, out, node, computation, trace)
            case _:
                tables.counters.ignored += 1


def _cluster_view(cluster: ClusterRecord) -> ClusterView:
    waiting = cluster.waiting
    return ClusterView(
        cluster.id,
        cluster.computation.name,
        "waiting" if cluster.is_held else cluster.state.name.lower(),
        waiting,
        cluster.jobs - waiting,
        cluster.mean,
        cluster.account.user,
        cluster.is_exclusive,
    )


def _user_view(account: Account) -> UserView:
    clusters = account.clusters.values()
    waiting = sum(cluster.waiting for cluster in clusters)
    cpus = sum(share.wanted for cluster in clusters for share in cluster.shares.values())
    return UserView(account.user, len(clusters), waiting, account.jobs - waiting, cpus, account.used)


def _node_view(node: NodeRecord) -> NodeView:
    state = node.state.name.lower()
    if node.broken_until is not None:
        state = "broken"
    elif node.is_suspect:
        state = "suspect"
    shares: Sequence[ShareView] = [
        ShareView(share.cluster.id, share.state.name.lower(), share.cpus, len(share.flight), share.reason)
        for share in node.shares.values()
    ]
    return NodeView(node.id, node.info, node.address, state, node.in_flight, node.avail, node.holder, tuple(shares))
