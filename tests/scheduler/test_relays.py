"""What relays tell: who is dialled, which items of `nodes` are about a node behind a relay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dispy.model import NodeHeard, NodeInfo, ProcessId
from dispy.nodes import NodeAllocate, NodeView, fitting, parse_nodes
from dispy.scheduler.relays import Relays
from dispy.wire.discovery import NodeFound
from dispy.wire.messages import Heartbeat, NodesHeard

NODE, OTHER = ProcessId("a" * 32), ProcessId("b" * 32)


class Link:
    def __init__(self, address: str, port: int) -> None:
        self.peer = SimpleNamespace(address=address, port=port, name="far")
        self.closed = ""

    def close(self, reason: str) -> None:
        self.closed = reason


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.found: list[NodeFound] = []
        self.news: list[ProcessId] = []
        self.there: list[tuple[str, int]] = []
        self.relays = Relays(
            lambda: self.now,
            on_found=self.found.append,
            on_news=self.news.append,
            on_relay=self.there.append,
        )

    def link(self, address: str = "10.1.0.1", port: int = 9701) -> Any:
        return Link(address, port)


@pytest.fixture
def world() -> World:
    return World()


def test_nodes_that_a_relay_tells_are_found_once_a_second(world: World) -> None:
    link = world.link()
    world.relays.opened(link, ("relay.example.org", 9701))
    assert world.there == [("10.1.0.1", 9701), ("relay.example.org", 9701)]
    assert world.relays.places == set(world.there)
    said = NodesHeard([NodeHeard(NODE, "n1", "10.1.0.7", 9701, (("gate", 80),))])
    for world.now in (0.0, 0.5, 0.9, 1.1):
        world.relays.heard(link, [(said, b"")])
    assert world.found == [NodeFound(NODE, "n1", "10.1.0.7", 9701, others=(("gate", 80),))] * 2
    assert world.news == [NODE]
    assert world.relays.of(NODE) == (("10.1.0.1", 9701), ("relay.example.org", 9701))
    world.relays.forget(NODE)
    assert world.relays.of(NODE) == ()


def test_only_links_to_relays_are_believed(world: World) -> None:
    said = NodesHeard([NodeHeard(NODE, "n1", "10.1.0.7", 9701)])
    link = world.link()
    world.relays.heard(link, [(said, b"")])
    world.relays.opened(link, None)
    world.relays.lost(link)
    world.relays.heard(link, [(said, b"")])
    assert world.found == []
    world.relays.opened(link, None)
    world.relays.heard(link, [(Heartbeat(), b""), (NodesHeard([]), b"")])
    assert world.found == []
    world.relays.close("done")
    assert link.closed == "done"
    assert world.relays.places == set()


def test_a_second_relay_is_news_but_no_second_dial(world: World) -> None:
    first, second = world.link(), world.link("10.2.0.1")
    world.relays.opened(first, None)
    world.relays.opened(second, None)
    said = NodesHeard([NodeHeard(NODE, "n1", "10.1.0.7", 9701)])
    world.relays.heard(first, [(said, b"")])
    world.relays.heard(second, [(said, b"")])
    assert len(world.found) == 1
    assert world.news == [NODE, NODE]
    assert world.relays.of(NODE) == (("10.1.0.1", 9701), ("10.2.0.1", 9701))


def view(*relays: tuple[str, int], address: str = "10.1.0.7") -> NodeView:
    info = NodeInfo(NODE, "n1", 4, "", (), 0)
    return NodeView(NODE, info, address, 9701, relays=relays)


def chosen(nodes: object, seen: NodeView) -> list[str]:
    return [item.host for item in fitting(parse_nodes(nodes)[0], seen)]


def test_who_names_the_relay_gets_the_nodes_behind_it() -> None:
    behind = view(("10.9.9.9", 9711), ("relay", 9711))
    assert chosen(["relay"], behind) == ["relay"]
    assert chosen(["10.9.9.9"], behind) == ["10.9.9.9"]
    assert chosen([("relay", 9711)], behind) == ["relay"]
    assert chosen([("relay", 9701)], behind) == []
    assert chosen(["relay"], view()) == []


def test_an_item_about_the_node_itself_goes_before_its_relay() -> None:
    behind = view(("10.9.9.9", 9701))
    assert chosen(["10.9.9.9", NodeAllocate("10.1.*", cpus=2)], behind) == ["10.1.*"]
    assert chosen(["10.9.9.9", "10.1.0.7"], behind) == ["10.1.0.7"]


def test_a_pattern_that_fits_the_relay_is_not_about_nodes_behind_it() -> None:
    assert chosen(["10.9.*"], view(("10.9.9.9", 9701))) == []
