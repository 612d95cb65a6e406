"""Nodes that are gone are shown for some hours, until they come back."""

from __future__ import annotations

from dispy.model import ProcessId
from dispy.sharing.departed import MOST, SHOWN_FOR, DepartedNodes

A, B, C = (ProcessId(letter * 32) for letter in "abc")


def names(nodes: DepartedNodes) -> list[str]:
    return [each.name for each in nodes]


def test_a_node_that_is_lost_is_shown_with_its_cause_until_it_is_back() -> None:
    nodes = DepartedNodes()
    nodes.joined(A, "n1", "10.0.0.1", 2)
    nodes.joined(B, "n2", "10.0.0.2", 4)
    nodes.look({A, B}, 1.0)
    assert names(nodes) == []
    nodes.vanished(B, "nothing answers at its port any more")
    nodes.look({A}, 2.0)
    (gone,) = nodes
    assert (gone.name, gone.cpus, gone.at, gone.cause) == ("n2", 4, 2.0, "nothing answers at its port any more")
    nodes.look({A}, 3.0)
    assert [each.at for each in nodes] == [2.0]
    nodes.joined(C, "n2", "10.0.0.2", 4)
    nodes.look({A, C}, 4.0)
    assert names(nodes) == []


def test_one_that_is_back_before_it_was_missed_is_not_shown() -> None:
    nodes = DepartedNodes()
    nodes.joined(A, "n1", "10.0.0.1", 2)
    nodes.joined(B, "n1", "10.0.0.1", 2)
    nodes.look({B}, 1.0)
    assert names(nodes) == []


def test_they_are_shown_for_some_time_and_not_too_many() -> None:
    nodes = DepartedNodes()
    for number in range(10 * MOST):
        nodes.joined(ProcessId(f"{number:032x}"), f"n{number}", "10.0.0.1", 1)
    nodes.look((), 0.0)
    assert len(names(nodes)) == MOST
    assert names(nodes)[-1] == f"n{10 * MOST - 1}"
    nodes.look((), SHOWN_FOR - 1)
    assert len(names(nodes)) == MOST
    nodes.look((), SHOWN_FOR)
    assert names(nodes) == []
