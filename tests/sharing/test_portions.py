"""How many jobs are taken in at once, and who comes next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dispy.sharing.portions import FEW, Portions

LARGE = FEW + 1


class Turns:
    """A loop that turns when it is told to, and clusters with batches of one size."""

    def __init__(self, most: int) -> None:
        self.soon: list[Callable[[], object]] = []
        self.portions = Portions(self.soon.append, most)
        self.taken: list[str] = []

    def turn(self) -> list[str]:
        """What is taken in during the next turn."""
        self.taken.clear()
        calls = self.soon[:]
        self.soon.clear()
        for call in calls:
            call()
        return self.taken[:]

    def give(self, name: str, batches: int) -> None:
        line = deque([name] * batches)

        def go_on() -> None:
            while line:
                if not self.portions.take(LARGE):
                    self.portions.wait(go_on)
                    return
                self.taken.append(line.popleft())

        go_on()


def test_what_is_more_than_one_turn_takes_waits_for_the_next_and_everybody_comes_to_his_turn() -> None:
    turns = Turns(2 * LARGE)
    turns.give("a", 5)
    turns.give("b", 2)
    turns.give("c", 1)
    assert turns.taken == ["a", "a"]
    assert [turns.turn() for _ in range(4)] == [["a", "a"], ["b", "b"], ["c", "a"], []]
    assert turns.soon == []


def test_one_batch_is_taken_in_however_large_it_is() -> None:
    portions = Portions([].append, 1000)
    assert portions.take(5000)
    assert not portions.take(LARGE)


def test_a_few_jobs_never_wait() -> None:
    soon: list[Callable[[], object]] = []
    portions = Portions(soon.append, LARGE)
    assert portions.take(FEW)
    assert not soon
    assert portions.take(LARGE)
    assert portions.take(FEW)
    assert len(soon) == 1
