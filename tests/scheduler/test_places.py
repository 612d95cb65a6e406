"""Which place of a node is tried next."""

from __future__ import annotations

from dispy.model import ProcessId
from dispy.scheduler.places import PLACES_OF_A_NODE, KnownPlaces

NODE, OTHER = ProcessId("a" * 32), ProcessId("b" * 32)
FIRST, SECOND, THIRD = ("10.0.0.1", 9701), ("fd77::1", 9701), ("gate", 9811)


def test_places_are_tried_once_a_round_in_the_order_in_which_they_were_learned() -> None:
    places = KnownPlaces()
    assert places.learn(NODE, [FIRST, SECOND])
    places.begin(NODE)
    assert places.next(NODE) == FIRST
    assert places.learn(NODE, [THIRD, FIRST])
    assert not places.learn(NODE, [SECOND])
    assert [places.next(NODE), places.next(NODE), places.next(NODE)] == [SECOND, THIRD, None]
    places.begin(NODE)
    assert places.next(NODE) == FIRST
    assert places.of(NODE) == (FIRST, SECOND, THIRD)


def test_what_is_known_of_a_node_is_bounded_and_forgotten() -> None:
    places = KnownPlaces()
    assert places.next(OTHER) is None
    places.learn(NODE, [("10.0.0.1", port) for port in range(1, 100)])
    assert len(places.of(NODE)) == PLACES_OF_A_NODE
    places.forget(NODE)
    assert places.of(NODE) == ()
    assert places.next(NODE) is None


def test_a_node_that_was_forgotten_may_be_tried_again_everywhere() -> None:
    places = KnownPlaces()
    places.learn(NODE, [FIRST])
    assert places.next(NODE) == FIRST
    places.forget(NODE)
    places.learn(NODE, [FIRST])
    assert places.next(NODE) == FIRST
