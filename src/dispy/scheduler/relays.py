"""Relays of other networks: processes that tell over a link which nodes they hear. The nodes are dialled directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dispy.logs import logger
from dispy.model import NodeHeard, ProcessId
from dispy.scheduler.places import Place
from dispy.wire.datagrams import RateLimit
from dispy.wire.discovery import DIAL_INTERVAL, NodeFound
from dispy.wire.link import Link
from dispy.wire.messages import AnyMessage, NodesHeard


class Relays:
    """The links of one scheduler to relays, and who told of which node.

    Args:
        clock: seconds that only grow.
        on_found: hears of nodes, of one address at most once a second.
        on_news: hears that a node is behind a relay of which that was not known.
        on_relay: hears where a relay is, when a link to it has opened.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        on_found: Callable[[NodeFound], None],
        on_news: Callable[[ProcessId], None],
        on_relay: Callable[[Place], None],
    ) -> None:
        self._clock = clock
        self._on_found = on_found
        self._on_news = on_news
        self._on_relay = on_relay
        self._links: dict[Link, dict[Place, None]] = {}
        self._told: dict[ProcessId, dict[Place, None]] = {}
        self._limit = RateLimit(DIAL_INTERVAL)

    def opened(self, link: Link, named: Place | None) -> None:
        """A link to a relay is open; `named` is how the user called the place that was dialled."""
        places = {(link.peer.address, link.peer.port): None}
        if named is not None:
            places[named] = None
        self._links[link] = places
        logger.debug("the relay %s at %s is connected", link.peer.name, link.peer.address)
        for place in places:
            self._on_relay(place)

    def lost(self, link: Link) -> None:
        """A link has ended; what it was, if a relay's, is forgotten. The nodes behind it stay."""
        self._links.pop(link, None)

    def heard(self, link: Link, messages: Sequence[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """What came over a link that is no node's."""
        places = self._links.get(link)
        if places is None:
            return
        for message, _ in messages:
            if isinstance(message, NodesHeard):
                for node in message.nodes:
                    self._take(node, places)

    @property
    def places(self) -> set[Place]:
        """Where relays are to which there is a link now."""
        return {place for places in self._links.values() for place in places}

    def of(self, node: ProcessId) -> tuple[Place, ...]:
        """Where the relays are that told of a node."""
        return tuple(self._told.get(node, ()))

    def forget(self, node: ProcessId) -> None:
        """The node is gone."""
        self._told.pop(node, None)

    def close(self, reason: str) -> None:
        """Say goodbye."""
        for link in self._links:
            link.close(reason)
        self._links.clear()

    def _take(self, node: NodeHeard, places: dict[Place, None]) -> None:
        known = self._told.setdefault(node.process, {})
        is_news = not places.keys() <= known.keys()
        known.update(places)
        if self._limit.allows((node.address, node.port), self._clock()):
            self._on_found(NodeFound(node.process, node.name, node.address, node.port, node.others))
        if is_news:
            self._on_news(node.process)
