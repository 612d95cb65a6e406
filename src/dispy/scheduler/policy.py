"""Choices: which queue is served next, which node takes the job, how many at once, who gives back.

Nothing here changes a job or sends anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Final

from dispy.scheduler.jobs import JobQueue

if TYPE_CHECKING:
    from dispy.scheduler.nodes import Load, Share

PORTIONS: Final = 16
"""A node without an idle CPU is filled up in so many portions: one job at a time would cost a choice per job."""


class Rooms:
    """The shares of a cluster that take more jobs, the least loaded first.

    A heap that is put right when it is read: a share has at most one valid entry (`Share.entry`), with a load that is
    too low rather than too high. So whoever lowers a load must `offer` the share again; raising it needs nothing.
    """

    __slots__ = ("_heap", "_pushes", "_valid")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Share]] = []
        self._valid = 0
        self._pushes = 0
        """Tells entries of equal load apart: one of a share that is gone, another of the node's next share."""

    def __len__(self) -> int:
        return self._valid

    def __iter__(self) -> Iterator[Share]:
        """The shares that can be found, in no order."""
        return (share for noted, _, _, share in self._heap if share.entry == noted)

    def offer(self, share: Share, load: float) -> bool:
        """Note a share that takes more jobs; returns whether that is new here."""
        entry = share.entry
        if entry is not None and entry <= load:
            return False
        if entry is None:
            self._valid += 1
        share.entry = load
        self._pushes += 1
        heappush(self._heap, (load, share.node.order, self._pushes, share))
        if len(self._heap) > 64 + 4 * self._valid:
            self._heap = [item for item in self._heap if item[3].entry == item[0]]
            heapify(self._heap)
        return entry is None

    def best(self) -> tuple[Share, int] | None:
        """The least loaded share and how many jobs it takes; None when none takes any."""
        heap = self._heap
        while heap:
            noted, order, number, share = heap[0]
            if share.entry != noted:
                heappop(heap)
                continue
            room, load = share.standing()
            if room <= 0:
                share.entry = None
                self._valid -= 1
            elif load > noted:
                share.entry = load
                heapreplace(heap, (load, order, number, share))
            else:
                return share, room
        return None

    def best_with(self, share: Share, known: Load) -> tuple[Share, int] | None:
        """The same where the load of one share has fallen, which may not be noted: mostly that is the one.

        `known` is what the jobs of its node take.
        """
        room, load = share.standing(known)
        if room > 0:
            heap = self._heap
            if not heap or (load, share.node.order) < heap[0][:2]:
                return share, room
            self.offer(share, load)
        return self.best()

    def forget(self, share: Share) -> None:
        """A share that is no more."""
        if share.entry is not None:
            share.entry = None
            self._valid -= 1


def before_next(queue: JobQueue, following: tuple[int, int] | None) -> int:
    """How many jobs of the queue come before those of all others, of which the first has the rank `following`."""
    lane = queue.top()
    if following is None or following[0] != -lane.priority:
        return lane.waiting
    # ids ascend along a lane: the distance between two heads bounds the jobs in between
    return min(lane.waiting, following[1] - lane.head().job)


def portion(share: Share, room: int, waiting: int, rooms: int) -> int:
    """How many jobs the least loaded share gets at once: one per choice while CPUs are idle, then larger parts.

    `waiting` jobs shall be spread over `rooms` shares.
    """
    slots = share.slots
    if rooms <= 1:
        return min(room, waiting)
    if len(share.flight) < slots:
        return 1
    return min(room, max(1, slots * share.cluster.depth // PORTIONS), -(-waiting // rooms))


def whom_to_recall(shares: Iterable[Share]) -> Share | None:
    """Of shares with jobs that wait for a CPU: the one with most of them that can be asked now."""
    best: Share | None = None
    most = 0
    for share in shares:
        node = share.node
        if node.recall is None and not node.is_spent and share.is_usable and (excess := share.excess) > most:
            best, most = share, excess
    return best


def how_many_to_recall(excess: int, idle: int) -> int:
    """Half of what waits there, as long as that serves all `idle` CPUs: a message per job would be too slow for short
    jobs."""
    return max(min(excess, idle), excess // 2)
