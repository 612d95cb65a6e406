"""Choices of the scheduler: queues by priority and submission, nodes by load, portions, recalls."""

from __future__ import annotations

from dispy.model import ComputationId, ComputationSpec, JobOptions, JobState, NodeInfo, ProcessId
from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.jobs import JobQueue, JobRecord
from dispy.scheduler.nodes import NodeRecord, NodeState, Share, ShareState
from dispy.scheduler.policy import before_next, how_many_to_recall, portion, whom_to_recall

MAP, REDUCE = ComputationId("1" * 32), ComputationId("2" * 32)


def job(number: int, cluster: ComputationId = MAP, priority: int = 0) -> JobRecord:
    return JobRecord(number, cluster, b"", options=JobOptions(priority=priority) if priority else None)


def queue(*numbers: int, priority: int = 0) -> JobQueue:
    made = JobQueue(MAP)
    for number in numbers:
        made.append(job(number, priority=priority))
    return made


def taken(some: JobQueue) -> list[int]:
    return [some.take(1)[0].job for _ in range(some.waiting)]


def cluster(ahead: float = 0.01) -> ClusterRecord:
    return ClusterRecord(ComputationSpec(MAP, "f", "function"), False, True, ahead)


def share(of: ClusterRecord, name: str, cpus: int, flight: int = 0) -> Share:
    id = ProcessId(name)
    node = NodeRecord(id, NodeInfo(id, name, cpus, "x", ()), "", len(of.shares), state=NodeState.LEASED)
    made = Share(of, node, cpus, state=ShareState.READY)
    node.shares[of.id] = of.shares[id] = made
    made.flight = {number: job(number) for number in range(flight)}
    node.busy[made] = None
    return made


# ---- queues ----


def test_queue_gives_the_oldest_first() -> None:
    some = queue(1, 2, 3)
    assert [record.job for record in some.take(2)] == [1, 2]
    assert taken(some) == [3]
    assert some.waiting == 0


def test_jobs_that_come_back_stand_where_they_belong() -> None:
    some = queue(5, 6)
    some.put_back([job(3), job(1)])
    some.put_back([job(2), job(7), job(9, priority=1)])
    assert taken(some) == [9, 1, 2, 3, 5, 6, 7]


def test_cancelled_jobs_are_passed_over() -> None:
    some = queue(1, 2, 3)
    first = next(iter(some))
    first.state = JobState.Cancelled
    some.discard(first)
    assert some.waiting == 2
    assert some.rank == (0, 2)
    assert taken(some) == [2, 3]


def test_a_queue_of_cancelled_jobs_keeps_none() -> None:
    some = queue(1)
    (first,) = some
    first.state = JobState.Cancelled
    some.discard(first)
    assert not list(some)
    some.append(job(2))
    assert taken(some) == [2]


def test_higher_priority_first_then_submission() -> None:
    some = queue(1, 2)
    for number, priority in [(3, 5), (4, -1), (5, 5), (6, 0)]:
        some.append(job(number, priority=priority))
    assert some.rank == (-5, 3)
    assert [record.job for record in some.take(2)] == [3, 5]
    assert some.rank == (0, 1)
    assert taken(some) == [1, 2, 6, 4]


def test_submission_decides_between_queues_and_how_far() -> None:
    first, second = queue(1, 2, 3, 9), queue(4, 5)
    assert first.rank < second.rank
    assert before_next(first, second.rank) == 3
    assert before_next(second, None) == 2


def test_priority_comes_before_submission() -> None:
    early, urgent = queue(1, 2), queue(8, 9, priority=5)
    assert urgent.rank < early.rank
    assert before_next(urgent, early.rank) == 2


# ---- nodes ----


def test_least_loaded_share_first_and_none_without_room() -> None:
    owner = cluster()
    full, half, empty = share(owner, "a", 2, 2), share(owner, "b", 4, 2), share(owner, "c", 1)
    for each in (full, half, empty):
        owner.rooms.offer(each, 0.0)
    assert owner.rooms.best() == (empty, 1)
    empty.flight = {1: job(1)}
    assert owner.rooms.best() == (half, 2)
    half.flight.update({number: job(number) for number in range(10, 12)})
    assert owner.rooms.best() is None
    assert len(owner.rooms) == 0


def test_equal_loads_go_in_the_order_of_joining() -> None:
    owner = cluster()
    first, second = share(owner, "z", 1), share(owner, "a", 1)
    owner.rooms.offer(second, 0.0)
    owner.rooms.offer(first, 0.0)
    assert owner.rooms.best() == (first, 1)


def test_a_share_that_is_forgotten_is_not_offered() -> None:
    owner = cluster()
    only = share(owner, "a", 1)
    owner.rooms.offer(only, 0.0)
    owner.rooms.forget(only)
    again = share(owner, "a", 1)
    again.node.order = only.node.order
    owner.rooms.offer(again, 0.0)
    assert owner.rooms.best() == (again, 1)


def test_the_heap_does_not_grow_with_offers() -> None:
    owner = cluster()
    only = share(owner, "a", 1)
    for number in range(10_000):
        owner.rooms.offer(only, -float(number))
    assert len(owner.rooms._heap) < 100


def test_portions() -> None:
    owner = cluster()
    owner.measure(0.001, 1)
    some = share(owner, "a", 4, 0)
    assert portion(some, 44, 1000, 3) == 1, "an idle CPU gets one job at a time"
    some.flight = {number: job(number) for number in range(4)}
    assert portion(some, 40, 1000, 3) == 2, "a sixteenth of the depth"
    assert portion(some, 40, 2, 3) == 1, "what is left is spread"
    assert portion(some, 40, 1000, 1) == 40, "nobody else can take them"


def test_work_of_several_clusters_weighs_by_depth() -> None:
    short, long = cluster(), ClusterRecord(ComputationSpec(REDUCE, "g", "function"), False, True, 0.01)
    short.measure(0.001, 1)
    mine = share(short, "a", 2, 10)
    other = Share(long, mine.node, 2, state=ShareState.READY)
    mine.node.shares[REDUCE] = other
    room, load = other.standing()
    assert room == 2, "ten short jobs do not keep out long ones"
    assert 0 < load < 0.5
    other.flight = {100: job(100), 101: job(101)}
    other.node.busy[other] = None
    assert mine.standing()[0] <= 0, "two long jobs keep out short ones"
    assert mine.excess == 10


def test_recalls_go_to_the_fullest_that_can_be_asked() -> None:
    owner = cluster()
    some, most, asked = share(owner, "a", 1, 3), share(owner, "b", 1, 5), share(owner, "c", 1, 9)
    asked.node.recall = (MAP, 4)
    assert whom_to_recall([some, most, asked]) is most
    most.node.is_spent = True
    some.node.is_suspect = True
    assert whom_to_recall([some, most, asked]) is None


def test_recalls_take_half_or_enough_for_the_idle() -> None:
    assert how_many_to_recall(excess=10, idle=1) == 5
    assert how_many_to_recall(excess=3, idle=8) == 3
    assert how_many_to_recall(excess=1, idle=1) == 1


def test_duration_follows_what_is_measured() -> None:
    owner = cluster()
    owner.measure(1.0, 1000)
    assert owner.depth == 11
    owner.measure(10.0, 1)
    assert owner.depth == 1
    owner.measure(0.0, 100_000_000)
    assert 1000 < owner.depth <= 2001


def test_rooms_keep_few_entries_of_shares_whose_load_falls_again_and_again() -> None:
    of = cluster()
    idle, busy = share(of, "a", 1), share(of, "b", 1, flight=1)
    of.rooms.offer(busy, 5.0)
    for step in range(1000):
        of.rooms.offer(idle, 1000.0 - step)
    assert len(of.rooms) == 2
    assert len(of.rooms._heap) < 100
    assert of.rooms.best() == (idle, 1), "putting them in order again has lost one"


def test_an_offer_that_says_nothing_new_is_noted_once() -> None:
    of = cluster()
    only = share(of, "a", 4)
    assert of.rooms.offer(only, 0.5)
    assert not of.rooms.offer(only, 0.5)
    assert not of.rooms.offer(only, 0.7), "a load that rises needs nothing"
    assert (list(of.rooms), len(of.rooms), only.entry) == ([only], 1, 0.5)
    assert not of.rooms.offer(only, 0.2)
    assert (list(of.rooms), len(of.rooms), only.entry) == ([only], 1, 0.2)


def test_a_share_without_room_is_found_again_when_it_is_offered() -> None:
    of = cluster()
    only = share(of, "a", 1, flight=1)
    of.rooms.offer(only, 0.0)
    assert of.rooms.best() is None
    assert (list(of.rooms), len(of.rooms), only.entry) == ([], 0, None)
    only.flight.clear()
    assert of.rooms.offer(only, 0.0), "it is new here"
    assert of.rooms.best() == (only, 1)


def test_a_share_that_is_fuller_than_was_noted_stands_behind_others_from_then_on() -> None:
    of = cluster()
    fuller, other = share(of, "a", 4, flight=3), share(of, "b", 4, flight=1)
    for each in (fuller, other):
        of.rooms.offer(each, 0.0)
    assert of.rooms.best() == (other, 3)
    assert (fuller.entry, other.entry) == (0.75, 0.25)


def test_a_share_that_is_forgotten_twice_is_counted_once() -> None:
    of = cluster()
    gone, stays = share(of, "a", 1), share(of, "b", 1)
    for each in (gone, stays):
        of.rooms.offer(each, 0.0)
    of.rooms.forget(gone)
    of.rooms.forget(gone)
    assert (list(of.rooms), len(of.rooms)) == ([stays], 1)


def test_what_stands_behind_a_share_that_is_gone_is_put_in_order_when_that_is_cleared_away() -> None:
    of = cluster()
    gone, fuller, emptier, busy = (share(of, name, 1) for name in "abcd")
    for each, load in ((gone, 0.0), (fuller, 5.0), (emptier, 1.0)):
        of.rooms.offer(each, load)
    of.rooms.forget(gone)
    for step in range(100):
        of.rooms.offer(busy, 1000.0 - step)
    assert len(of.rooms._heap) < 100
    assert of.rooms.best() == (emptier, 1)


def test_how_far_a_queue_goes_on_before_others() -> None:
    first = queue(1, 2, 3)
    assert before_next(first, (0, 2)) == 1
    assert before_next(first, (0, 9)) == 3, "it has no more"
    assert before_next(first, (5, 2)) == 3, "another of lower priority"


def test_portions_at_their_bounds() -> None:
    owner = cluster(0.032)
    owner.measure(0.001, 1)
    some = share(owner, "a", 4, 3)
    assert portion(some, 99, 1000, 2) == 1, "a CPU is idle"
    some.flight[3] = job(3)
    assert portion(some, 99, 1000, 2) == 4 * 33 // 16
    assert portion(some, 5, 1000, 2) == 5, "more has no room"
    assert portion(some, 99, 9, 2) == 5, "rounded up"
    assert portion(some, 99, 9, 1) == 9
    assert portion(some, 7, 9, 0) == 7
    owner.depth = 1
    assert portion(some, 99, 1000, 2) == 1


def test_nobody_is_asked_for_jobs_who_has_none_too_many_and_the_first_of_equals_is() -> None:
    owner = cluster()
    full, first, second = share(owner, "a", 1, 1), share(owner, "b", 1, 3), share(owner, "c", 1, 3)
    assert whom_to_recall([full]) is None
    assert whom_to_recall([full, first, second]) is first
    assert whom_to_recall([second, first]) is second
    first.is_paused = True
    assert whom_to_recall([first]) is None


def test_recalls_at_their_bounds() -> None:
    assert how_many_to_recall(excess=10, idle=5) == 5
    assert how_many_to_recall(excess=10, idle=6) == 6
    assert how_many_to_recall(excess=10, idle=11) == 10
