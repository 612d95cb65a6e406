"""Asks the owners of clusters how much of a node they want, and tells the core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dispy.logs import logger
from dispy.model import ComputationId, FileSpec, ProcessId
from dispy.nodes import NodeView
from dispy.scheduler.effects import AskAllocation
from dispy.scheduler.events import Event, NodeAllocated
from dispy.scheduler.links import NodeLinks
from dispy.scheduler.offers import FileOffers
from dispy.scheduler.owner import Allocation, ClusterOwner


class Allocating:
    """Asks, and remembers the answers. In the loop's thread; an owner that is slow is asked in another."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        links: NodeLinks,
        owners: Mapping[ComputationId, ClusterOwner],
        offers: FileOffers,
        on_event: Callable[[Event], None],
    ) -> None:
        self._loop = loop
        self._links = links
        self._owners = owners
        self._offers = offers
        self._on_event = on_event
        self._answers: dict[tuple[ComputationId, ProcessId], int] = {}
        """CPUs of a node that a cluster uses, as its owner has said."""
        self._lock = asyncio.Lock()

    def note(self, cluster: ComputationId, node: ProcessId, cpus: int) -> None:
        """The user has said how many CPUs of a node a cluster uses."""
        self._answers[cluster, node] = cpus

    def cpus(self, cluster: ComputationId, node: NodeView) -> int:
        """How many CPUs of a node a cluster uses."""
        return self._answers.get((cluster, node.process), node.info.cpus)

    def declined(self, node: ProcessId) -> Iterator[AskAllocation]:
        """The questions about a node to which the answer was that it is not used."""
        reached = self._links.nodes[node]
        assert reached.info is not None
        for cluster in self._owners:
            if self._answers.get((cluster, node)) == 0:
                yield AskAllocation(cluster, node, reached.info, reached.address)

    async def ask(self, asked: AskAllocation) -> None:
        """Ask an owner; a question that fails is answered with: not used."""
        owner = self._owners.get(asked.cluster)
        reached = self._links.nodes.get(asked.node)
        if owner is None or reached is None:
            return
        places = self._links.places.of(asked.node)
        relays = self._links.relays.of(asked.node)
        view = NodeView(asked.node, asked.info, asked.address, reached.port, asked.avail, places, relays)
        allocation: Allocation | None = Allocation(0)
        files: tuple[FileSpec, ...] = ()
        try:
            if owner.allocates_slowly:
                # not in the callback thread: a callback may wait for a job that waits for this node
                async with self._lock:
                    allocation = await self._loop.run_in_executor(None, owner.allocate, view, reached.local)
            else:
                allocation = owner.allocate(view, reached.local)
            if allocation is None:
                return
            if allocation.cpus > 0:
                files = await self._offers.offer([(Path(name), Path(name).name) for name in allocation.depends])
        except Exception:
            logger.exception("node %s is not used: its allocation failed", asked.info.name)
            allocation = Allocation(0)
        self.answer(
            NodeAllocated(
                asked.cluster, asked.node, allocation.cpus, files, allocation.setup_args, allocation.oversubscribe
            )
        )

    def answer(self, allocated: NodeAllocated) -> None:
        """An owner has said how much of a node it wants."""
        self._answers[allocated.cluster, allocated.node] = allocated.cpus
        self._on_event(allocated)
