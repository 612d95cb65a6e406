"""What a node offers, by value."""

from __future__ import annotations

from dispy.node.offer import Idleness, Offer
from dispy.node.window import Phase, ServiceWindow


def test_a_machine_must_be_quiet_for_a_while() -> None:
    idle = Idleness(0.5)
    assert not idle.measure(0.1, 0)
    assert not idle.measure(0.1, 14)
    assert not idle.measure(0.6, 15), "a moment of work begins the wait anew"
    assert not idle.measure(0.1, 20)
    assert not idle.measure(0.4, 34)
    assert idle.measure(0.4, 35)


def test_a_quiet_machine_stays_so_until_it_is_clearly_busy() -> None:
    idle = Idleness(0.5, quiet=True)
    assert idle.measure(0.7, 0), "above the limit, and not by half"
    assert idle.measure(0.75, 5)
    assert idle.measure(0.7, 7)
    assert idle.measure(2.0, 8)
    assert not idle.measure(2.0, 13)
    assert not idle.measure(0.6, 100)


def test_what_is_offered() -> None:
    offer = Offer(4)
    assert offer.now() == (4, "")
    offer.stopped = True
    assert offer.now() == (0, "its owner has stopped it")
    offer.stopped = False
    offer.window, offer.phase = ServiceWindow(1020, 420), Phase.STOPPED
    assert offer.now() == (0, "its service window begins at 17:00")
    offer.phase = Phase.OPEN
    offer.idleness = Idleness(1.0)
    assert offer.now() == (0, "its machine is in use")
    offer.idleness.quiet = True
    assert offer.now() == (4, "")
