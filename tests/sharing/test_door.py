"""Who is let in when one user may have only so many jobs, by value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispy.sharing.door import Door


class Cluster:
    """One with batches that wait; each is a number of jobs."""

    def __init__(self, door: Door, user: str, *, exclusive: bool = False) -> None:
        self.door = door
        self.user = user
        self.exclusive = exclusive
        self.jobs: list[int] = []
        self.batches: list[int] = []
        door.enter(self)

    def bring(self, *batches: int) -> None:
        self.batches += batches
        self.let_in()

    def let_in(self) -> None:
        while self.batches:
            if not self.door.admits(self):
                self.door.wait(self)
                return
            self.jobs += [0] * self.batches.pop(0)

    def end(self, count: int) -> None:
        del self.jobs[:count]
        if self.door.is_waited_at(self.user):
            self.door.call(self.user)


def test_a_user_below_the_bound_is_let_in_by_whole_batches() -> None:
    door = Door(3)
    one = Cluster(door, "anna")
    one.bring(2, 2, 2)
    assert (len(one.jobs), one.batches, door.pending("anna")) == (4, [2], 4)
    one.end(1)
    assert (len(one.jobs), one.batches, door.is_shut) == (3, [2], True)
    one.end(1)
    assert (len(one.jobs), one.batches, door.is_shut) == (4, [], False)


def test_clusters_of_one_user_share_the_bound_and_take_turns_and_others_have_their_own() -> None:
    door = Door(1)
    one, two, other = Cluster(door, "anna"), Cluster(door, "anna"), Cluster(door, "bert")
    one.bring(1, 1, 1)
    two.bring(1, 1)
    other.bring(1)
    assert [len(each.jobs) for each in (one, two, other)] == [1, 0, 1]
    one.end(1)
    assert (one.batches, two.batches) == ([1], [1, 1]), "one stood there first"
    one.end(1)
    assert (one.batches, two.batches) == ([1], [1])
    two.end(1)
    assert (one.batches, two.batches) == ([], [1])
    assert not door.is_waited_at("bert")


def test_batches_are_small_where_a_user_may_have_few_jobs() -> None:
    assert [Door(most).batch_jobs for most in (0, 1, 10, 16, 1000)] == [0, 1, 1, 2, 125]


def test_no_bound() -> None:
    door = Door()
    one = Cluster(door, "anna")
    one.bring(1000, 1000)
    assert (one.batches, door.is_shut) == ([], False)


def test_an_exclusive_cluster_gets_on_while_others_of_its_user_wait_for_its_end() -> None:
    door = Door(2)
    one, alone = Cluster(door, "anna"), Cluster(door, "anna", exclusive=True)
    one.bring(2, 2)
    alone.bring(1, 1)
    assert (len(alone.jobs), alone.batches) == (1, [1])
    alone.end(1)
    assert (len(alone.jobs), alone.batches) == (1, [])


def test_what_is_over_does_not_count_and_waits_for_nothing() -> None:
    door = Door(1)
    one, two = Cluster(door, "anna"), Cluster(door, "anna")
    one.bring(1)
    two.bring(1)
    door.leave(two)
    assert not door.is_shut
    door.leave(one)
    assert door.pending("anna") == 0
    door.leave(one)


def test_why() -> None:
    door = Door(1)
    Cluster(door, "anna (as it says)").bring(1)
    assert door.why("anna (as it says)", "anna") == (
        "user anna has 1 pending job, and this scheduler takes in more of one user only while there are fewer than 1 "
        "(--max_jobs_per_user)"
    )


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["bring", "end"]), st.integers(1, 4))),
)
def test_nobody_waits_for_nothing(most: int, steps: list[tuple[int, str, int]]) -> None:
    door = Door(most)
    clusters = [Cluster(door, user, exclusive=alone) for user in ("anna", "bert") for alone in (False, True)]
    for index, what, count in steps:
        cluster = clusters[index]
        if what == "bring":
            cluster.bring(count)
        elif cluster.jobs:
            cluster.end(count)
        for each in clusters:
            assert not each.batches or not door.admits(each)
    for _ in range(1000):
        for each in clusters:
            if each.jobs:
                each.end(1)
    assert all(not each.batches and not each.jobs for each in clusters)
    assert not door.is_shut
