"""Nodes as the user's program sees them: `NodeAllocate` says which to use, `DispyNode` shows one that is used.

`parse_nodes` turns every form that `JobCluster(nodes=…)` takes into `NodeAllocate` objects.
"""

from __future__ import annotations

import fnmatch
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from msgspec import Struct

from dispy.errors import SettingsError
from dispy.hostport import host_and_port
from dispy.model import AvailInfo, NodeInfo, ProcessId

LOCAL = "local"


@dataclass(slots=True)
class DispyNodeAvailInfo:
    """What is free on a node: `cpu` per cent idle, `memory` and `disk` bytes, `swap` per cent free."""

    cpu: float
    memory: int
    disk: int
    swap: float


def available(avail: AvailInfo) -> DispyNodeAvailInfo:
    """What a node said to be free, as users see it."""
    return DispyNodeAvailInfo(avail.cpu, avail.memory, avail.disk, avail.swap)


@dataclass(slots=True, eq=False)
class DispyNode:
    """A node that a cluster uses, with what it has done for it."""

    Initialized: ClassVar[int] = 4
    Closed: ClassVar[int] = 16
    AvailInfo: ClassVar[int] = 17

    ip_addr: str
    name: str
    cpus: int
    """CPUs that the cluster uses there."""
    avail_cpus: int = 0
    """CPUs that the node offers."""
    busy: int = 0
    jobs_done: int = 0
    cpu_time: float = 0.0
    """Seconds that jobs have run there."""
    tx: int = 0
    rx: int = 0
    update_time: float = 0.0
    avail_info: DispyNodeAvailInfo | None = None
    reason: str = field(default="", repr=False)
    """Why it is not used any more, or not at all: with the traceback when setup failed."""
    process: ProcessId = field(default=ProcessId(""), repr=False)


class NodeAllocate:
    """Says which nodes a cluster uses and how many CPUs of each; override `allocate` to decide by yourself.

    Args:
        host: name or address of a node, or a pattern with `*` that its address or name must match.
        port: TCP port of the node if it is not base+1.
        cpus: 0 all CPUs, n > 0 at most n, n < 0 all but n.
        depends: files that this node gets in addition, before its setup runs.
        setup_args: arguments of the cluster's setup and cleanup functions on this node.
        oversubscribe: ask for more CPUs than the node offers.
    """

    def __init__(
        self,
        host: str,
        port: int | None = None,
        cpus: int = 0,
        depends: Sequence[str] | None = None,
        setup_args: tuple[Any, ...] = (),
        oversubscribe: bool = False,
    ) -> None:
        if not isinstance(host, str) or not host.strip():
            raise SettingsError(f"a node needs a name, an address or a pattern, not {host!r}")
        if port is not None and not (isinstance(port, int) and 0 < port < 65536):
            raise SettingsError(f"port of node {host}: a number from 1 to 65535, not {port!r}")
        if not isinstance(cpus, int) or isinstance(cpus, bool):
            raise SettingsError(f"cpus of node {host}: a whole number, not {cpus!r}")
        if not isinstance(setup_args, tuple):
            raise SettingsError(f"setup_args of node {host}: a tuple, not {type(setup_args).__name__}")
        self.host = host.strip()
        self.port = port
        self.cpus = cpus
        self.depends: list[str] = list(depends or [])
        self.setup_args = setup_args
        self.oversubscribe = oversubscribe
        self._addresses: frozenset[str] | None = None
        if self.is_pattern:
            self._addresses = frozenset()
        elif numeric := resolve(self.host, socket.AI_NUMERICHOST):
            self._addresses = numeric

    @property
    def is_pattern(self) -> bool:
        """Whether nodes that are not known yet can match."""
        return "*" in self.host

    def allocate(
        self,
        cluster: Any,
        ip_addr: str,
        name: str,
        cpus: int,
        avail_info: DispyNodeAvailInfo | None = None,
        platform: str = "",
    ) -> int:
        """How many CPUs of a node to use; 0 skips it. Called when a node was found that `matches`.

        May set `self.depends` and `self.setup_args` for this node before it returns.
        """
        return self.share_of(cpus)

    def share_of(self, cpus: int) -> int:
        """How many of a node's CPUs the `cpus` of this item mean."""
        if self.cpus > 0:
            return self.cpus if self.oversubscribe else min(self.cpus, cpus)
        return max(0, cpus + self.cpus)

    def matches(self, ip_addr: str, name: str, port: int) -> bool:
        """Whether this item is about the node at that address with that name."""
        if self.port is not None and self.port != port:
            return False
        if self.is_pattern:
            return fnmatch.fnmatchcase(ip_addr, self.host) or fnmatch.fnmatchcase(name, self.host)
        return self.host in (ip_addr, name) or ip_addr in self.addresses()

    @property
    def needs_lookup(self) -> bool:
        """Whether `matches` has to ask a name server, which may take seconds."""
        return self._addresses is None

    def addresses(self) -> frozenset[str]:
        """Addresses that the host name stands for; empty for a pattern, and when it does not resolve."""
        if self._addresses is None:
            self._addresses = resolve(self.host)
        return self._addresses

    def __repr__(self) -> str:
        return f"NodeAllocate({self.host!r}, port={self.port}, cpus={self.cpus})"


def resolve(host: str, flags: int = 0) -> frozenset[str]:
    """IP addresses of a host name; empty when it does not resolve. `flags` are those of `getaddrinfo`."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(str(entry[4][0]) for entry in found)


def parse_nodes(nodes: object) -> tuple[list[NodeAllocate], bool]:
    """The allocation items for a `nodes` argument, most specific first, and whether it asks for a local node at once.

    Raises:
        SettingsError: an item has a form that is not known; the message names it.
    """
    if nodes is None:
        return [NodeAllocate("*")], False
    if isinstance(nodes, (str, NodeAllocate, DispyNode, Mapping)):
        nodes = [nodes]
    if isinstance(nodes, tuple) and len(nodes) > 1 and not isinstance(nodes[1], str) and isinstance(nodes[0], str):
        nodes = [nodes]  # a single (host, port, …) tuple
    if not isinstance(nodes, Iterable):
        raise SettingsError(
            f"nodes: None, 'local', a host, or a list of hosts, tuples, dicts or NodeAllocate, not {nodes!r}"
        )
    listed = list(nodes)
    if not listed:
        raise SettingsError("nodes is an empty list: no node could ever run a job; leave it out to use every node")
    local = LOCAL in [item for item in listed if isinstance(item, str)]
    items = [_parse_item(item) for item in listed if not (isinstance(item, str) and item == LOCAL)]
    return by_specificity(items), local


def by_specificity(items: Iterable[NodeAllocate]) -> list[NodeAllocate]:
    """The items in the order in which they are asked; of equally specific ones the first comes first."""
    return sorted(items, key=lambda item: (item.is_pattern, -len(item.host.replace("*", ""))))


def capped(cpus: int, info: NodeInfo, *, oversubscribe: bool = False) -> int:
    """How many CPUs of a node a bound means: n at most n, -n all but n."""
    if cpus < 0:
        return max(0, info.cpus + cpus)
    return cpus if oversubscribe or info.oversubscribe else min(cpus, info.cpus)


def _parse_item(item: object) -> NodeAllocate:
    if isinstance(item, NodeAllocate):
        return item
    if isinstance(item, DispyNode):
        return NodeAllocate(item.ip_addr)
    if isinstance(item, str):
        return NodeAllocate(*host_and_port(item))
    try:
        if isinstance(item, Mapping):
            return NodeAllocate(**item)
        if isinstance(item, (tuple, list)):
            return NodeAllocate(*item)
    except TypeError as error:
        raise SettingsError(
            f"nodes: {item!r} does not fit NodeAllocate(host, port, cpus, depends, setup_args)"
        ) from error
    raise SettingsError(f"nodes: {item!r} is neither a host, nor a tuple, dict or NodeAllocate")


class NodeView(Struct):
    """What the scheduler service knows of a node for its users."""

    process: ProcessId
    info: NodeInfo
    address: str
    port: int
    avail: AvailInfo | None = None
    places: tuple[tuple[str, int], ...] = ()
    """Every host and port where it is known to be, these two among them."""
    relays: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of the relays that told of it."""

    def fits(self, item: NodeAllocate) -> bool:
        """Whether the item is about this node, by whichever of its addresses."""
        places = self.places or ((self.address, self.port),)
        return any(item.matches(host, self.info.name, port) for host, port in places)

    def is_behind(self, item: NodeAllocate) -> bool:
        """Whether the item names a relay that told of this node."""
        return not item.is_pattern and any(item.matches(host, "", port) for host, port in self.relays)


def fitting(items: Iterable[NodeAllocate], view: NodeView, *, local: bool = False) -> list[NodeAllocate]:
    """The items that are about a node (`local`: the one on this machine), or else those that name its relay."""
    listed = list(items)
    about = [item for item in listed if view.fits(item) or (local and item.host == "*")]
    return about or [item for item in listed if view.is_behind(item)]
