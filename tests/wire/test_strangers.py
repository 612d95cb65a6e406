"""Who is served of those that have not proved themselves: by value."""

from __future__ import annotations

from dispy.wire.strangers import Limits, Strangers

HERE = "127.0.0.1"


def served(strangers: Strangers[str]) -> list[str]:
    """All that are served from now on."""
    return list(iter(strangers.next, None))


def arrive(strangers: Strangers[str], host: str, *names: str) -> list[str]:
    """Let them come one after another; returns those for which there was no room."""
    return [gone for name in names if (gone := strangers.arrive(host, name)) is not None]


def test_as_many_as_there_are_places_and_then_one_after_another() -> None:
    strangers = Strangers[str](Limits(own=2, own_waiting=3))
    assert arrive(strangers, HERE, "a", "b", "c") == []
    assert served(strangers) == ["a", "b"]
    strangers.leave(HERE)
    assert served(strangers) == ["c"]
    assert arrive(strangers, HERE, "d", "e", "f", "g") == ["g"], "three may wait"
    strangers.leave(HERE)
    strangers.leave(HERE)
    assert served(strangers) == ["d", "e"]
    assert strangers.drop_waiting() == ["f"]
    strangers.leave(HERE)
    assert served(strangers) == []


def test_all_loopback_addresses_are_this_machine() -> None:
    strangers = Strangers[str](Limits(own=2))
    for host in ("127.0.0.1", "::1", "127.0.0.2"):
        arrive(strangers, host, host)
    assert served(strangers) == ["127.0.0.1", "::1"]


def test_addresses_take_turns() -> None:
    strangers = Strangers[str](Limits(address=2, others=3))
    arrive(strangers, "10.0.0.1", "a1", "a2", "a3", "a4")
    arrive(strangers, "10.0.0.2", "b1", "b2", "b3")
    assert served(strangers) == ["a1", "b1", "a2"]
    strangers.leave("10.0.0.1")
    assert served(strangers) == ["b2"]
    strangers.leave("10.0.0.1")
    assert served(strangers) == ["a3"], "the other address has its two"
    strangers.leave("10.0.0.2")
    assert served(strangers) == ["b3"]


def test_others_keep_no_place_from_this_machine_nor_it_from_them() -> None:
    strangers = Strangers[str](Limits(own=1, address=1, others=2, own_waiting=1, others_waiting=1))
    for number in range(50):
        arrive(strangers, f"10.0.0.{number}", f"stranger {number}")
        served(strangers)
    assert arrive(strangers, HERE, "own") == []
    assert served(strangers) == ["own"]
    assert arrive(strangers, HERE, "second", "third") == ["third"]
    strangers.leave("10.0.0.0")
    assert served(strangers) == ["stranger 2"]


def test_a_flood_sends_itself_away() -> None:
    strangers = Strangers[str](Limits(address=1, others=1, address_waiting=10, others_waiting=12))
    flood = [f"f{number}" for number in range(100)]
    assert arrive(strangers, "10.6.6.6", *flood) == flood[10:], "one address does not fill all that may wait"
    assert arrive(strangers, "10.0.0.1", "a", "b") == []
    assert arrive(strangers, "10.0.0.2", "c") == ["f9"], "the last of the longest line"
    assert arrive(strangers, "10.6.6.6", "f100") == ["f100"]
    assert served(strangers) == ["f0"]
    strangers.leave("10.6.6.6")
    assert served(strangers) == ["a"]
    strangers.leave("10.0.0.1")
    assert served(strangers) == ["c"]
