"""Which connections that have not proved themselves are served, and which wait for that. Pure.

Few are served at a time: each costs a TLS handshake, and whoever is silent holds a place for seconds. Those that find
no place wait in the line of their address, which costs a descriptor each, so that hundreds of nodes that dial at once
come in one after another instead of being refused and dialling again. Places and lines of this machine are apart from
those of all others, and addresses take turns: a flood from one of them keeps only that one waiting.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final, Generic, TypeVar

from msgspec import Struct

from dispy.wire.interfaces import is_loopback

OWN: Final = "this machine"
"""All loopback addresses are one."""

T = TypeVar("T")


class Limits(Struct, frozen=True):
    """How many connections that have not proved themselves there may be."""

    own: int = 16
    """Served at a time, of this machine."""
    address: int = 8
    """Served at a time, of another address."""
    others: int = 48
    """Served at a time, of all other addresses."""
    own_waiting: int = 512
    address_waiting: int = 64
    others_waiting: int = 256


class Strangers(Generic[T]):
    """Connections (of any type) that have not proved themselves, by the address that they come from."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._served: Counter[str] = Counter()
        self._lines: dict[str, deque[T]] = {}
        """By address; the first one's turn is next."""

    def arrive(self, host: str, connection: T) -> T | None:
        """Take a connection in; `next` says who is served. Returns one for which no room is left, if there is one.

        With all room to wait taken, the last one of the longest line goes: a flood sends itself away.
        """
        address = _address(host)
        limits = self._limits
        line = self._lines.setdefault(address, deque())
        line.append(connection)
        if len(line) > (limits.own_waiting if address == OWN else limits.address_waiting):
            return line.pop()
        if address == OWN or sum(map(len, self._others().values())) <= limits.others_waiting:
            return None
        longest = max(self._others().values(), key=len)
        return line.pop() if len(longest) <= len(line) else longest.pop()

    def next(self) -> T | None:
        """One that is served from now on, until its place is given back by `leave`."""
        for address, line in self._lines.items():
            if self._has_place(address):
                connection = line.popleft()
                del self._lines[address]
                if line:  # the others first
                    self._lines[address] = line
                self._served[address] += 1
                return connection
        return None

    def leave(self, host: str) -> None:
        """One that was served has proved itself, or is gone."""
        address = _address(host)
        self._served[address] -= 1
        if not self._served[address]:
            del self._served[address]

    def drop_waiting(self) -> list[T]:
        """All that wait; they are forgotten."""
        waiting = [connection for line in self._lines.values() for connection in line]
        self._lines.clear()
        return waiting

    def _has_place(self, address: str) -> bool:
        served, limits = self._served, self._limits
        if address == OWN:
            return served[OWN] < limits.own
        return served[address] < limits.address and served.total() - served[OWN] < limits.others

    def _others(self) -> dict[str, deque[T]]:
        return {address: line for address, line in self._lines.items() if address != OWN}


def _address(host: str) -> str:
    return OWN if is_loopback(host) else host
