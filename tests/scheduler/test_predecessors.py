"""Which daemon is seen to have come in place of which."""

from __future__ import annotations

import pytest

from dispy.model import NodeInfo, ProcessId
from dispy.scheduler.predecessors import Predecessors

OLD, NEW, OTHER = (ProcessId(letter * 32) for letter in "abc")
PLACE = ("10.0.0.1", 9701)


def info(node: ProcessId, name: str = "n", home: str = "h" * 32) -> NodeInfo:
    return NodeInfo(node, name, 1, "x", (), home=home)


def test_a_daemon_with_the_directory_of_another_has_come_in_its_place() -> None:
    known = Predecessors()
    assert known.lives(OLD, info(OLD)) is None
    assert known.lives(OLD, info(OLD)) is None
    assert known.lives(NEW, info(NEW)) == OLD
    known.forget(OLD, info(OLD))
    assert known.lives(OTHER, info(OTHER)) == NEW
    known.forget(OTHER, info(OTHER))
    assert known.lives(OLD, info(OLD)) is None


@pytest.mark.parametrize("changed", [{"name": "m"}, {"home": "i" * 32}], ids=repr)
def test_one_with_another_name_or_directory_has_not(changed: dict[str, str]) -> None:
    known = Predecessors()
    known.lives(OLD, info(OLD))
    assert known.lives(NEW, info(NEW, **changed)) is None


def test_nodes_that_do_not_say_which_directory_they_have_are_none_of_each_other() -> None:
    known = Predecessors()
    known.lives(OLD, info(OLD, home=""))
    assert known.lives(NEW, info(NEW, home="")) is None


def test_one_at_the_place_of_another_has_come_in_its_place() -> None:
    known = Predecessors()
    known.remember(OLD, info(OLD), [PLACE, ("fd77::1", 9701)])
    assert known.reached(OTHER, ("10.0.0.2", 9701)) is None
    assert known.reached(NEW, PLACE) == OLD
    assert known.reached(OTHER, PLACE) is None
    assert known.lives(OTHER, info(OTHER)) == OLD


def test_one_that_came_back_itself_is_looked_for_no_more() -> None:
    known = Predecessors()
    known.remember(OLD, info(OLD), [PLACE])
    assert known.reached(OLD, PLACE) is None
    assert known.reached(NEW, PLACE) is None
