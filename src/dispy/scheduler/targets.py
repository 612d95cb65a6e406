"""The addresses that a scheduler dials: named by the user, or heard of and tried one after the other."""

from __future__ import annotations

import asyncio
from typing import Protocol

from msgspec import Struct

from dispy.errors import AuthenticationRejected, LinkError
from dispy.logs import logger
from dispy.model import ProcessId, Role
from dispy.scheduler.places import KnownPlaces
from dispy.settings import DISCOVERY_INTERVAL, REDIAL_MOST
from dispy.wire.link import Dialler, Link, LinkHandler, LinkSettings

DIALS_OF_FOUND_NODE = 5
"""Failed dials of a discovered node before it has to be discovered again."""
FALLBACK_AFTER = 1.0
"""Seconds that a node has to answer at one address before the next is dialled as well."""
DIFFERENCES = frozenset({"secret", "group", "protocol"})
"""Reasons to keep apart that discovery knows as well: for one and the same node they are told once."""
QUESTIONS_KEPT = 3
"""Questions for nodes after which it is forgotten that no link to one opens that was heard of before them."""

A_RELAY = "a relay, which tells of the nodes that it hears"


class Target(Struct, eq=False):
    """An address that is dialled."""

    dialler: Dialler
    named: bool
    """The user named it: it is dialled for ever. Else it was discovered."""
    local: bool
    expected: ProcessId | None = None
    """The node that discovery found there."""
    failures: int = 0
    said: str = ""
    is_unknown: bool = False
    """No machine is known by that name; a node that is called so may be found."""
    process: ProcessId | None = None

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        return self.dialler.host, self.dialler.port


class Host(LinkHandler, Protocol):
    """Who keeps the links."""

    settings: LinkSettings

    def has_link(self, node: ProcessId) -> bool:
        """Whether there is a link to this node now."""

    def knows(self, node: ProcessId) -> bool:
        """Whether there is a link to this node, or was one a moment ago."""

    def lose(self, node: ProcessId, cause: str) -> None:
        """The node is gone for good."""

    def name_unknown(self) -> None:
        """A name was given that is none of a machine: it may be that of a node."""

    def known_elsewhere(self, node: ProcessId) -> None:
        """A place became known at which this node is reached as well."""


class Targets:
    """Dials for one scheduler, and knows why what it dials does not answer."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, host: Host, places: KnownPlaces, refusals: dict[str, str]
    ) -> None:
        self._loop = loop
        self._host = host
        self._places = places
        self._refusals = refusals
        self._targets: dict[tuple[str, int], Target] = {}
        self._unreachable: dict[tuple[str, int], tuple[int, str]] = {}
        """Host and port of nodes that were heard of → the number of the last question, why no link to them opens."""
        self._questions = 0
        self._is_over = False

    @property
    def tried(self) -> list[str]:
        """Sentences that say which addresses the user named."""
        return [
            f"{host}:{port} ({target.said or 'no answer yet'})"
            for (host, port), target in self._targets.items()
            if target.named and not target.is_unknown and host not in self._refusals
        ]

    @property
    def unknown(self) -> list[tuple[str, str]]:
        """Names that the user gave and that no machine has, and that in a sentence."""
        return [(target.dialler.host, target.said) for target in self._targets.values() if target.is_unknown]

    @property
    def told(self) -> frozenset[str]:
        """Hosts that the user named and of which the log has said what is wrong."""
        return frozenset(target.dialler.host for target in self._targets.values() if target.named and target.said)

    @property
    def unreachable(self) -> list[tuple[str, int, str]]:
        """Host and port of nodes that were heard of lately and to which no link opens, and why."""
        return [(*place, why) for place, (_, why) in self._unreachable.items()]

    def asked(self) -> None:
        """The network was asked for nodes: those that do not answer any more are forgotten after a while."""
        self._questions += 1
        oldest = self._questions - QUESTIONS_KEPT
        for place in [place for place, (number, _) in self._unreachable.items() if number < oldest]:
            del self._unreachable[place]

    def dial(
        self,
        host: str,
        port: int,
        *,
        named: bool,
        settings: LinkSettings | None = None,
        expected: ProcessId | None = None,
    ) -> None:
        """Keep a link to that address, where the node `expected` is said to be."""
        key = (host, port)
        target = self._targets.get(key)
        if target is not None:
            target.named = target.named or named
            return
        dialler = Dialler(
            host,
            port,
            settings=settings or self._host.settings,
            handler=self._host,
            on_failure=self._failed,
            on_closed=self._closed,
        )
        self._targets[key] = Target(dialler, named, local=settings is not None, expected=expected)
        dialler.start()

    def process_at(self, host: str, port: int) -> ProcessId | None:
        """The node that was last reached at that address."""
        target = self._targets.get((host, port))
        return None if target is None else target.process

    def forget(self, host: str, port: int) -> None:
        """Nothing will answer at that address again: it is not dialled any more."""
        target = self._targets.get((host, port))
        if target is not None:
            self._forget(target)

    def look_for(self, node: ProcessId) -> None:
        """Dial a node that was heard of, unless that is being done."""
        if not self._dialled_for(node):
            self._places.begin(node)
            self._dial_next(node)

    def opened(self, link: Link) -> Target | None:
        """A link is open: what is known of its address and of other addresses of that node changes."""
        process = link.peer.process
        target = self.of(link)
        places = [(link.peer.address, link.peer.port)]
        if target is not None:
            self._refusals.pop(target.dialler.host, None)
            target.failures, target.is_unknown = 0, False
            target.said = A_RELAY if link.peer.role is Role.PEER else ""
            if target.process not in (None, process):
                self._host.lose(target.process, "it was restarted")
            target.process = process
            places.append(target.place)
        news = self._places.learn(process, places)
        for other in self._dialled_for(process):
            if other is not target and other.dialler.link is None:
                self._forget(other)
        if news:
            self._host.known_elsewhere(process)
        for place in self._places.of(process):
            self._unreachable.pop(place, None)
        return target

    def of(self, link: Link) -> Target | None:
        """The address that was dialled for a link."""
        if not link.dialled:
            return None
        for target in self._targets.values():
            if target.dialler.link is link:
                return target
        return self._targets.get((link.peer.address, link.peer.port))

    def leave(self, target: Target) -> None:
        """There is another link to the same node: this address is of no use now."""
        target.dialler.stop()
        self._closed(target.dialler)

    def close(self, reason: str) -> None:
        """Say goodbye at all of them and stop."""
        self._is_over = True
        for target in self._targets.values():
            target.dialler.stop(reason)
        self._targets.clear()

    def _dialled_for(self, process: ProcessId) -> list[Target]:
        return [target for target in self._targets.values() if target.expected == process and not target.named]

    def _dial_next(self, process: ProcessId) -> None:
        """Dial a node at the next place where it is said to be; soon also at the one after that, if no link opens."""
        if self._is_over or self._host.has_link(process):
            return
        place = self._places.next(process)
        if place is not None:
            self.dial(*place, named=False, expected=process)
            self._loop.call_later(FALLBACK_AFTER, self._dial_next, process)

    def _failed(self, dialler: Dialler, error: LinkError) -> None:
        target = self._targets.get((dialler.host, dialler.port))
        if target is None:
            return
        target.failures += 1
        sentence, process = str(error), target.process
        reason = getattr(error, "reason", "")
        target.is_unknown = target.named and reason == "name"
        if target.is_unknown:
            sentence += "; a node that is called so is looked for"
            self._host.name_unknown()
        if target.named and target.said != sentence:
            logger.warning("%s", sentence)
        target.said = sentence
        if target.expected is not None and not target.named:
            self._unreachable[target.place] = (self._questions, sentence)
            if target.failures == 1:
                self._dial_next(target.expected)
        refused = bool(getattr(error, "refused", False))
        if process is not None and refused and not self._host.has_link(process):
            self._host.lose(process, "nothing answers at its port any more")
        if isinstance(error, AuthenticationRejected):
            self._refusals[dialler.host] = reason if reason in DIFFERENCES else sentence
            if target.named:  # whoever reads the sentence mends the node, and the program goes on
                self._loop.call_later(DISCOVERY_INTERVAL, self._revive, target)
            else:
                self._forget(target)
        elif (
            not target.named
            and (refused or target.failures >= DIALS_OF_FOUND_NODE)
            and not (process is not None and self._host.knows(process))
        ):
            self._forget(target)

    def _closed(self, dialler: Dialler) -> None:
        """A goodbye. A node that the user named may be started again; another is found again."""
        target = self._targets.get((dialler.host, dialler.port))
        if target is None:
            return
        if target.named and not target.local:
            self._loop.call_later(REDIAL_MOST, self._revive, target)
        else:
            self._forget(target)

    def _revive(self, target: Target) -> None:
        if self._targets.get(target.place) is not target:
            return
        if target.process is not None and self._host.knows(target.process):  # there is another link to the same node
            self._loop.call_later(REDIAL_MOST, self._revive, target)
        else:
            target.dialler.start()

    def _forget(self, target: Target) -> None:
        self._targets.pop(target.place, None)
        target.dialler.stop()
