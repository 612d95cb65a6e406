"""Which pieces of a blob to ask for next, and of whom: the receiver pulls, and what it has asked for and not got is the
credit.

Chunks are small until a source has shown that it moves a large one quickly, so that other messages never wait long;
the window follows what the source delivers in its shortest round trip. The origin has the whole blob. Where others
fetch it at the same time, each asks the origin for its own share of the pieces, and gets the others' shares of them.
Knows nothing of links, files and clocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from msgspec import Struct, field

SMALL_CHUNK: Final = 64 << 10
LARGE_CHUNK: Final = 1 << 20
"""Also the most that may be asked for at once."""
LARGE_CHUNK_TIME: Final = 0.05
"""Seconds in which the measured rate must move a large chunk before large ones are asked for."""
WINDOW_CHUNKS: Final = 4
WINDOW_LIMIT: Final = 16 << 20
SHARED_WINDOW: Final = 2 << 20
"""The same where others fetch the blob too: what two have asked for when the shares change comes twice."""
PIECE: Final = LARGE_CHUNK
"""What is passed on: a piece is asked of one source at a time, and given to others when all of it is here."""
PEER_PATIENCE: Final = 3.0
"""Seconds without a chunk after which a source that owes some is given up, unless it is the origin: so one that is not
silent either, but brings less than some 20 kB/s."""
STALL_TIMEOUT: Final = 1.0
"""Seconds without a byte from anywhere after which the origin is asked for pieces of others' shares: for one, and each
time for twice as many, because a machine may just be busy."""
STALL_PIECES: Final = 8.0
"""The same in times of the mean time of a piece: where all are slow nothing is asked for twice."""
ORIGIN: Final = ""
_RATE_WEIGHT: Final = 0.5

Range = tuple[int, int]
"""First and number."""


class _Asked(Struct):
    size: int
    at: float
    received_then: int


class _Flow(Struct):
    """One source."""

    outstanding: int = 0
    received: int = 0
    heard_at: float = 0.0
    """When it owed nothing, or brought something."""
    rate: float = 0.0
    round_trip: float = 0.0
    asked: dict[int, _Asked] = {}
    rest: list[Range] = []
    """Parts of pieces that it has begun to bring, the next one last."""
    held: set[int] = set()
    """Pieces that it has; the origin has all."""
    queue: deque[int] = field(default_factory=deque)
    """Those of them that may be asked of it, in order, and some that are no longer free."""

    @property
    def chunk_size(self) -> int:
        return LARGE_CHUNK if self.rate * LARGE_CHUNK_TIME >= LARGE_CHUNK else SMALL_CHUNK

    def window(self, limit: int) -> int:
        # Twice what fits in the shortest round trip: a link that can do more shows it, and the window grows.
        return min(max(WINDOW_CHUNKS * self.chunk_size, int(2 * self.rate * self.round_trip)), limit)

    def measure(self, asked: _Asked, now: float) -> None:
        elapsed = max(now - asked.at, 1e-6)
        rate = (self.received - asked.received_then) / elapsed
        self.rate = rate if not self.rate else self.rate + _RATE_WEIGHT * (rate - self.rate)
        self.round_trip = min(self.round_trip or elapsed, elapsed)

    def unfinished(self) -> list[Range]:
        """What was to come of it and has not; forgotten here."""
        ranges = self.rest + [(offset, asked.size) for offset, asked in self.asked.items()]
        self.asked.clear()
        self.outstanding = 0
        self.rest = []
        return sorted(ranges, reverse=True)


class Download:
    """The state of one blob that is being fetched."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.received = 0
        """Bytes that have arrived."""
        self.share, self.shares = 0, 1
        self._count = -(-size // PIECE)
        self._held: set[int] = set()
        """Pieces that are written. Nothing here is as large as a blob is said to be before it has come."""
        self._left: dict[int, int] = {}
        """Pieces that are begun → bytes of them that are not written."""
        self._turn = 0
        """The piece with which we begin: where all begin elsewhere, few ask the origin for the same at a time."""
        self._at = 0
        """None of so many pieces from there on is for us to ask the origin for."""
        self._again: list[Range] = []
        """Parts of pieces that somebody has begun to bring and does not."""
        self._flows: dict[str, _Flow] = {ORIGIN: _Flow()}
        self._elsewhere: dict[int, int] = {}
        """Piece → how many sources beside the origin have it."""
        self._of_peers: set[int] = set()
        """Pieces of which a byte came from somebody else than the origin."""
        self.from_others = 0
        """Bytes that came from somebody else than the origin."""
        self._began_at = -1.0
        self._moved_at = 0.0
        self._stalls = 0
        self._allowed = 0
        """Pieces of others' shares that the origin may be asked for."""

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.received == self.size

    @property
    def requests(self) -> int:
        """How many requests to the origin have not been answered."""
        return len(self._flows[ORIGIN].asked)

    @property
    def outstanding(self) -> int:
        """Bytes that were asked of the origin and have not arrived."""
        return self._flows[ORIGIN].outstanding

    @property
    def chunk_size(self) -> int:
        """Bytes that one request asks of the origin now."""
        return self._flows[ORIGIN].chunk_size

    @property
    def window(self) -> int:
        """Bytes that the origin may owe now."""
        return self._flows[ORIGIN].window(self._limit)

    @property
    def sources(self) -> list[str]:
        """Everybody who can be asked, the origin first."""
        return list(self._flows)

    @property
    def has_shared(self) -> bool:
        """Whether something came from somebody else than the origin."""
        return bool(self._of_peers)

    @property
    def _limit(self) -> int:
        return WINDOW_LIMIT if self.shares == 1 and len(self._flows) == 1 else SHARED_WINDOW

    def next_requests(self, now: float, backlog: int = 0, source: str = ORIGIN) -> list[Range]:
        """Offsets and sizes to ask of a source now; `backlog` are bytes that arrived and are not yet written."""
        flow = self._flows[source]
        if self._began_at < 0:
            self._began_at = self._moved_at = now
        requests: list[Range] = []
        window, chunk = flow.window(self._limit), flow.chunk_size
        while flow.outstanding + backlog < window:
            found = self._next_range(flow, source)
            if found is None:
                break
            offset, size = found
            if size > chunk:
                flow.rest.append((offset + chunk, size - chunk))
                size = chunk
            if not flow.outstanding:
                flow.heard_at = now
            flow.asked[offset] = _Asked(size, now, flow.received)
            flow.outstanding += size
            requests.append((offset, size))
        return requests

    def arrived(self, offset: int, size: int, now: float, source: str = ORIGIN) -> int:
        """How many of `size` bytes that a source sent for `offset` are to be kept; 0: they were not asked of it.

        What is missing of a chunk is asked for again.
        """
        flow = self._flows.get(source)
        asked = None if flow is None else flow.asked.get(offset)
        if flow is None or asked is None or size <= 0:
            return 0
        del flow.asked[offset]
        flow.outstanding -= asked.size
        kept = min(size, asked.size)
        if kept < asked.size:
            flow.rest.append((offset + kept, asked.size - kept))
        self.received += kept
        flow.received += kept
        flow.heard_at = self._moved_at = now
        if source != ORIGIN:
            self._of_peers.add(offset // PIECE)
            self.from_others += kept
        flow.measure(asked, now)
        return kept

    def written(self, offset: int, size: int) -> int | None:
        """This is on the disk; the number of its piece if that is whole now."""
        piece = offset // PIECE
        self._left[piece] -= size
        if self._left[piece]:
            return None
        del self._left[piece]
        self._held.add(piece)
        return piece

    def held(self) -> list[Range]:
        """The pieces that are whole on the disk."""
        ranges: list[Range] = []
        for piece in sorted(self._held):
            if ranges and sum(ranges[-1]) == piece:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
            else:
                ranges.append((piece, 1))
        return ranges

    def restart(self) -> None:
        """Forget what the origin owes (its link broke): it will be asked for again."""
        rest = self._flows[ORIGIN].unfinished()
        self._flows[ORIGIN] = _Flow(rest=rest)

    # Others that fetch the same.

    def take_share(self, share: int, shares: int) -> None:
        """So many fetch it now, and this is our number among them (from 0): whose turn each piece is changes."""
        if self.shares == 1:
            self._turn = self._count * share // shares
        self.share, self.shares = share, shares
        self._at = 0
        origin = self._flows[ORIGIN]
        self._again = sorted(self._again + origin.rest, reverse=True)
        origin.rest = []

    def add_source(self, source: str) -> None:
        """Somebody else can be asked for what it says that it has (`source_has`)."""
        self._flows.setdefault(source, _Flow())

    def source_has(self, source: str, ranges: Iterable[Range]) -> None:
        """It has these pieces now; numbers beyond the blob mean nothing."""
        flow = self._flows.get(source)
        if flow is None:
            return
        new: list[int] = []
        for first, number in ranges:
            new += [each for each in range(max(first, 0), min(first + number, self._count)) if each not in flow.held]
        flow.held.update(new)
        for piece in new:
            self._elsewhere[piece] = self._elsewhere.get(piece, 0) + 1
        # Everybody begins elsewhere, so that they have something to give to each other.
        turn = len(new) * self.share // self.shares
        flow.queue.extend(new[turn:] + new[:turn])

    def drop_source(self, source: str) -> None:
        """It is not asked any more; what it owes is asked of others."""
        flow = self._flows.pop(source, None)
        if flow is None:
            return
        for piece in flow.held:
            self._elsewhere[piece] -= 1
            if not self._elsewhere[piece]:
                del self._elsewhere[piece]
        self._again = sorted(self._again + flow.unfinished(), reverse=True)
        self._at = 0

    def expect_less(self) -> None:
        """Somebody whose share it is cannot be asked by us: the next time that nothing moves, more is taken."""
        self._stalls = min(self._stalls + 3, 16)

    def look(self, now: float) -> list[str]:
        """Sources that owe something and are silent, to be dropped; notices when nothing comes from anywhere."""
        if self._began_at >= 0:
            pieces = max(self.received / PIECE, 1.0)
            patience = max(STALL_TIMEOUT, STALL_PIECES * (self._moved_at - self._began_at) / pieces)
            if now - self._moved_at > patience:
                self._allowed = 1 << self._stalls
                self._stalls = min(self._stalls + 1, 16)
                self._moved_at = now
        return [
            source
            for source, flow in self._flows.items()
            if source != ORIGIN and flow.outstanding and now - flow.heard_at > PEER_PATIENCE
        ]

    def distrust(self) -> None:
        """The content is not right: everything that did not come from the origin is asked of it, and of nobody else."""
        for source in self.sources[1:]:
            self.drop_source(source)
        self.take_share(0, 1)
        for piece in self._of_peers:
            self.received -= self._size_of(piece)
        self._held -= self._of_peers
        self._of_peers.clear()
        self.from_others = 0

    def _size_of(self, piece: int) -> int:
        return min(PIECE, self.size - piece * PIECE)

    def _next_range(self, flow: _Flow, source: str) -> Range | None:
        if flow.rest:
            return flow.rest.pop()
        is_origin = source == ORIGIN
        for number in range(len(self._again) - 1, -1, -1):
            piece = self._again[number][0] // PIECE
            if self._is_for_origin(piece) if is_origin else piece in flow.held:
                return self._again.pop(number)
        new = self._next_of_origin() if is_origin else self._next_of_peer(flow)
        if new is None:
            return self._stolen() if is_origin and self._allowed else None
        return self._begin(new)

    def _begin(self, piece: int) -> Range:
        self._left[piece] = self._size_of(piece)
        return piece * PIECE, self._left[piece]

    def _is_free(self, piece: int) -> bool:
        return piece not in self._held and piece not in self._left

    def _is_for_origin(self, piece: int) -> bool:
        return piece % self.shares == self.share and piece not in self._elsewhere

    def _next_of_origin(self) -> int | None:
        """Our own share, as far as nobody else has it."""
        while self._at < self._count:
            piece = (self._turn + self._at) % self._count
            if self._is_free(piece) and self._is_for_origin(piece):
                return piece
            self._at += 1
        return None

    def _stolen(self) -> Range | None:
        """Something of others' shares that nobody has."""
        for number in range(len(self._again) - 1, -1, -1):
            if self._again[number][0] // PIECE not in self._elsewhere:
                self._allowed -= 1
                return self._again.pop(number)
        for at in range(self._count):
            piece = (self._turn + at) % self._count
            if self._is_free(piece) and piece not in self._elsewhere:
                self._allowed -= 1
                return self._begin(piece)
        return None

    def _next_of_peer(self, flow: _Flow) -> int | None:
        while flow.queue:
            piece = flow.queue.popleft()
            if self._is_free(piece):
                return piece
        return None
