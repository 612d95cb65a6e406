"""How a shared scheduler, its nodes, users and clusters look to people: tables made of what it told."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dispy.cli.pool import owner_of, person, short
from dispy.wire.interfaces import shown
from dispy.wire.pool import ClusterStatus, JobStatus, PoolNode, PoolStatus, UserStatus
from dispy.words import lasting, size

T = TypeVar("T")

_RIGHT = frozenset({"CPUs", "In use", "Running", "Waiting", "Done", "Unfetched", "Clusters", "CPU time", "Job", "Try"})


NODE_STATES = {
    "joined": "joining",
    "free": "free",
    "asked": "asked for",
    "leased": "in use",
    "refused": "used by others",
    "suspect": "silent",
    "broken": "away, may come back",
    "lost": "lost",
}
"""What the states of nodes mean, for people."""


def pool_view(status: PoolStatus, *, most: int | None = None) -> RenderableType:
    """Everything: the scheduler in a line, its nodes, users and clusters (of each at most so many)."""
    parts: list[RenderableType] = [Text(headline(status))]
    if status.problem:
        parts.append(Text(f"{status.problem[0].upper()}{status.problem[1:]}.", style="bold red"))
    if status.nodes:
        parts += ["", node_table(_some(status.nodes, most)), *_left_out(status.nodes, most)]
    else:
        parts += ["", Text("No node is connected.")]
    if status.users:
        parts += ["", user_table(_some(status.users, most)), *_left_out(status.users, most)]
    if status.clusters:
        clusters = sorted(status.clusters, key=lambda each: (not each.mine, each.opened_at))
        parts += ["", cluster_table(_some(clusters, most)), *_left_out(clusters, most)]
    else:
        parts += ["", Text("No cluster is open.")]
    return Group(*parts)


def headline(status: PoolStatus) -> str:
    """The scheduler in a line."""
    there = [node for node in status.nodes if node.state not in ("broken", "lost")]
    cpus = sum(node.cpus for node in there)
    lost = sum(node.state == "lost" for node in status.nodes)
    broken = len(status.nodes) - len(there) - lost
    missing = ", ".join(f"{count} {what}" for count, what in ((broken, "away"), (lost, "lost")) if count)
    away = f" (and {missing})" if missing else ""
    running = sum(cluster.running for cluster in status.clusters)
    waiting = sum(cluster.waiting for cluster in status.clusters)
    return (
        f"{status.name}: dispyscheduler {status.version}, policy {status.policy}, up "
        f"{lasting(status.now - status.since)}; nodes: {len(there)}{away}, CPUs: {cpus}, jobs with nodes: {running}, "
        f"waiting: {waiting}"
    )


def node_table(nodes: Iterable[PoolNode]) -> Table:
    """The nodes, by name."""
    table = _table("Node", "Address", "CPUs", "Running", "Done", "Load", "Memory free", "State")
    for node in sorted(nodes, key=lambda each: (each.name, each.address)):
        avail = node.avail
        table.add_row(
            node.name,
            shown(node.address, node.port) if node.port else node.address,
            *(str(node.cpus), str(node.running), str(node.done)),
            f"{100 - avail.cpu:.0f} %" if avail else "",
            size(avail.memory) if avail else "",
            node_state(node),
        )
    return table


def node_state(node: PoolNode) -> str:
    """What there is to know of its state, in a few words."""
    state = NODE_STATES.get(node.state, node.state)
    return f"{state}: {node.problem}" if node.problem else state


def user_table(users: Iterable[UserStatus]) -> Table:
    """The users, who has most of the pool first."""
    table = _table("User", "Clusters", "CPUs", "Running", "Waiting", "CPU time")
    for user in sorted(users, key=lambda each: (-each.cpus, -each.slot_seconds, each.user)):
        numbers = (user.clusters, user.cpus, user.running, user.waiting)
        table.add_row(person(user.user, proved=user.proved), *map(str, numbers), lasting(user.slot_seconds))
    return table


def cluster_table(clusters: Iterable[ClusterStatus]) -> Table:
    """The clusters as they come; one's own are marked."""
    table = _table("Cluster", "Name", "Owner", "CPUs", "Running", "Waiting", "Done", "Unfetched", "State")
    for each in clusters:
        table.add_row(
            short(each.cluster) + ("*" if each.mine else ""),
            each.name,
            owner_of(each),
            *(str(each.cpus), str(each.running), str(each.waiting), str(each.done), str(each.unfetched)),
            cluster_state(each),
        )
    return table


def cluster_state(cluster: ClusterStatus) -> str:
    """What there is to know of its state, in a few words."""
    state = "waiting for its turn" if cluster.state == "waiting" else cluster.state
    words = [state, *(["exclusive"] if cluster.exclusive else []), *([] if cluster.attached else ["program away"])]
    return ", ".join(words)


def job_table(jobs: Sequence[JobStatus], names: dict[str, str]) -> Table:
    """Jobs, with the names of their clusters."""
    table = _table("Cluster", "Name", "Job", "State", "Node", "Try", "Since")
    for job in jobs:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.since)) if job.since else ""
        attempt = str(job.attempt) if job.attempt else ""
        name = names.get(job.cluster, "")
        table.add_row(short(job.cluster), name, str(job.job), job.state.name, job.node, attempt, since)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in _RIGHT else "left", no_wrap=heading != "State")
    return table


def _some(listed: Iterable[T], most: int | None) -> list[T]:
    return list(listed)[:most]


def _left_out(listed: Sequence[object], most: int | None) -> list[RenderableType]:
    left = 0 if most is None else len(listed) - most
    return [Text(f"and {left} more", style="dim")] if left > 0 else []
