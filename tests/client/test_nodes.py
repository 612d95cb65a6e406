"""Every form of `nodes=`, and which nodes an item means."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dispy.errors import SettingsError
from dispy.nodes import DispyNode, NodeAllocate, parse_nodes


@pytest.mark.parametrize(
    ("nodes", "hosts", "local"),
    [
        (None, ["*"], False),
        ("local", [], True),
        ("node1", ["node1"], False),
        (["local", "node1"], ["node1"], True),
        (["*", "10.0.0.*", "10.0.0.1"], ["10.0.0.1", "10.0.0.*", "*"], False),
        (("10.0.0.1", 9801, 2), ["10.0.0.1"], False),
        ([("10.0.0.1", 9801), ["10.0.0.2", None, -1]], ["10.0.0.1", "10.0.0.2"], False),
        ({"host": "a", "cpus": 3}, ["a"], False),
        ([{"host": "a"}, NodeAllocate("b")], ["a", "b"], False),
        (NodeAllocate("b"), ["b"], False),
        (DispyNode("10.0.0.9", "n9", 1), ["10.0.0.9"], False),
        (("a", "b"), ["a", "b"], False),
    ],
)
def test_forms(nodes: Any, hosts: list[str], local: bool) -> None:
    items, wants_local = parse_nodes(nodes)
    assert [item.host for item in items] == hosts
    assert wants_local is local


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("n1", "n1", None),
        ("10.0.0.*", "10.0.0.*", None),
        ("n1:9801", "n1", 9801),
        ("fe80::1", "fe80::1", None),
        ("[fe80::1]", "fe80::1", None),
        ("[fe80::1]:9801", "fe80::1", 9801),
    ],
)
def test_a_text_names_a_host_with_or_without_port(text: str, host: str, port: int | None) -> None:
    for nodes in (text, [text]):
        [item], _ = parse_nodes(nodes)
        assert (item.host, item.port) == (host, port)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([], "empty list"),
        (7, "not 7"),
        ([7], "7 is neither"),
        ([{"hostname": "a"}], "hostname"),
        ([("a", "port")], "port of node a"),
        ([("a", 0)], "port of node a"),
        ("a:70000", "port of node a"),
        ([("a", 1, "many")], "cpus of node a"),
        ([""], "needs a name"),
        ([("a", 1, 1, [], [1])], "setup_args of node a"),
    ],
)
def test_bad_forms_are_named(nodes: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        parse_nodes(nodes)


@pytest.mark.parametrize(("cpus", "share"), [(0, 8), (3, 3), (20, 8), (-2, 6), (-9, 0)])
def test_cpus(cpus: int, share: int) -> None:
    assert NodeAllocate("*", cpus=cpus).allocate(None, "10.0.0.1", "n", 8) == share


def test_matching() -> None:
    assert NodeAllocate("10.0.*").matches("10.0.0.1", "n1", 9701)
    assert NodeAllocate("n*").matches("10.0.0.1", "n1", 9701)
    assert not NodeAllocate("10.1.*").matches("10.0.0.1", "n1", 9701)
    assert NodeAllocate("n1").matches("10.0.0.1", "n1", 9701)
    assert not NodeAllocate("n1", port=9801).matches("10.0.0.1", "n1", 9701)
    assert NodeAllocate("localhost").matches("127.0.0.1", "other", 9701)
    assert not NodeAllocate("name.invalid").matches("10.0.0.1", "n1", 9701)


@pytest.mark.parametrize(
    ("host", "needed"), [("*", False), ("n*", False), ("10.0.0.1", False), ("::1", False), ("n1", True)]
)
def test_only_names_need_a_lookup(host: str, needed: bool) -> None:
    item = NodeAllocate(host)
    assert item.needs_lookup == needed
    if needed:
        item.addresses()
        assert not item.needs_lookup


def test_lists_are_not_shared_between_items() -> None:
    one, two = NodeAllocate("a"), NodeAllocate("b")
    one.depends.append("file")
    assert two.depends == []
