"""Looking for nodes: when to ask the network, when to start a node here, and what to say while nothing can run.

What answers is dealt with in `links`; who runs what is not decided here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Final

import msgspec

from dispy.errors import NodeError
from dispy.logs import logger
from dispy.model import ComputationId
from dispy.scheduler.embedded import EmbeddedNode, NodeSilent, start_embedded
from dispy.scheduler.links import NodeLinks
from dispy.scheduler.owner import ClusterOwner
from dispy.scheduler.prospects import Soundings, account, refusal_sentences
from dispy.settings import DISCOVERY_INTERVAL, EMBEDDED_AFTER, EXPLAIN_AFTER
from dispy.wire.interfaces import is_own, not_up, shown

FIRST_QUESTIONS: Final = (0.0, 0.2, 0.6)
"""Seconds at which the first questions for nodes are asked; datagrams get lost."""
LISTEN_AFTER: Final = 1.0
"""Seconds until nodes can join this program: short programs do not pay for a certificate."""
KILLED: Final = "it was killed"
"""Why the node on this machine is lost."""
EMBEDDED_LIVES: Final = 3
"""Starts of a node on this machine that is killed again and again."""
_COUNT: Final = re.compile(r"\b\d+ jobs?( of \d+ clusters)? waits?\b| since \d+ s\b")
"""That more or fewer jobs wait, or for longer, is no other reason."""
LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at whether anything moves."""
STARTING_PATIENCE: Final = 10.0
"""Seconds that a node which is being started on this machine may take before people are told what is waited for."""
CHANGING_PATIENCE: Final = 20.0
"""Seconds after which people are told what is waited for, even if that changes all the time."""


class NodeSearch:
    """Looks for the nodes of all clusters of a service.

    Args:
        links: what dials and listens.
        owners: the open clusters, at any time.
        why_waiting: why jobs wait that will not get their turn; None when there are none.
        on_forsaken: hears of clusters for which no node can come, and why.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        links: NodeLinks,
        owners: Callable[[], Iterable[ClusterOwner]],
        why_waiting: Callable[[], str | None],
        on_forsaken: Callable[[ComputationId, str], None],
    ) -> None:
        self._loop = loop
        self._links = links
        self._owners = owners
        self._why_waiting = why_waiting
        self._on_forsaken = on_forsaken
        self._calls: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._embedded: EmbeddedNode | None = None
        self._not_embedded = ""
        """Why no node runs on this machine although one should."""
        self._asking = False
        self._looking = False
        self._stuck_for = 0.0
        self._same_for = 0.0
        """Seconds for which jobs have waited for one and the same reason."""
        self._reason = ""
        self._said = ""

    async def look_for(self, owner: ClusterOwner) -> None:
        """Begin to look for the nodes of a cluster.

        Raises:
            SettingsError: an interface does not exist.
        """
        await self.look(owner.named_nodes(), asks=owner.wants_discovery)
        if owner.wants_discovery and not self._asking:
            self._asking = True
            self._later(owner.interval or DISCOVERY_INTERVAL, self._ask_again)
        if owner.may_embed:
            self._later(0.0 if owner.wants_local else EMBEDDED_AFTER, lambda: self._embed_for(owner))
        if not self._looking:
            self._looking = True
            self._later(LISTEN_AFTER, lambda: self._spawn(self._links.listen()))
            self._later(LOOK_INTERVAL, self._look)

    async def look(self, named: Iterable[tuple[str, int]], *, asks: bool) -> None:
        """Dial hosts (port 0: that of nodes), and ask the network if `asks`.

        Raises:
            SettingsError: an interface does not exist.
        """
        for host, port in named:
            self._links.targets.dial(host, port or self._links.node_port, named=True)
        if asks:
            await self._links.start_discovery()
            for seconds in FIRST_QUESTIONS:
                self._later(seconds, self._links.ask)

    async def stop(self, *, hurried: bool = False) -> None:
        """End what is under way, and the embedded node; `hurried`: its jobs are killed."""
        for call in self._calls:
            call.cancel()
        self._calls.clear()
        self._asking = self._looking = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._embedded is not None:
            await self._embedded.stop(hurried=hurried)
            self._embedded = None

    def abandon(self) -> None:
        """In a forked child: the embedded node is tied to the parent alone."""
        if self._embedded is not None:
            self._embedded.untie()

    def account(self, *, news: bool = False) -> str:
        """Where nodes were looked for, who refused, and why none was started here; with `news` what was not logged."""
        local = self._not_embedded
        starting = self._is_starting and not local
        if starting:
            local = "a node is being started on this machine"
        links = self._links
        told = links.targets.told if news else frozenset[str]()
        refusals = {address: reason for address, reason in links.refusals.items() if address not in told}
        sentences = account(
            Soundings(
                tried=links.tried,
                port=links.node_port,
                answered=bool(links.nodes),
                missing=self._missing(),
                unreachable=[(shown(host, port), why) for host, port, why in links.targets.unreachable],
                unknown=[why for host, why in links.targets.unknown if host not in told],
                is_explained=bool(links.refusals or links.targets.unknown),
                refusals=refusals,
                own=_own(refusals),
                by_certificate=links.settings.credentials.key is None,
                local=local,
                starting=starting,
            )
        )
        return " ".join(sentences)

    @property
    def _is_starting(self) -> bool:
        """Whether a node is being started on this machine, or has not been reached yet."""
        return (self._embedded is None or not self._links.nodes) and self._tasks_named("embed")

    def _missing(self) -> str:
        missing = self._links.missing_interfaces
        return not_up(missing) if missing else ""

    def _ask_again(self) -> None:
        intervals = [owner.interval for owner in self._owners() if owner.wants_discovery]
        if not intervals:
            self._asking = False
            return
        if self._why_waiting() is not None or any(intervals):
            self._links.ask()
        self._later(min(interval or DISCOVERY_INTERVAL for interval in intervals), self._ask_again)

    def _embed_for(self, owner: ClusterOwner) -> None:
        alone = not self._links.heard and not self._links.nodes
        if (alone or owner.wants_local) and self._embedded is None and not self._tasks_named("embed"):
            self._spawn(self._embed(), "embed")

    async def _embed(self) -> None:
        self._not_embedded = failure = ""
        for left in reversed(range(EMBEDDED_LIVES)):
            try:
                self._embedded = node = await start_embedded()
            except NodeSilent as error:
                failure = str(error)
                logger.warning("%s; %s", failure, "it is tried again" if left else f"{EMBEDDED_LIVES} tries were made")
                continue
            except NodeError as error:
                logger.error("%s", error)
                self._forsake(str(error))
                return
            why = "no node was found: " if self._links.tried else ""
            logger.info("%sstarted one on this machine for this program (%s:%s)", why, node.host, node.port)
            if why:
                self._say_why_alone()
            settings = msgspec.structs.replace(self._links.settings, credentials=node.credentials, group="")
            self._links.targets.dial(node.host, node.port, named=True, settings=settings)
            await node.ended()
            self._embedded = None
            self._links.give_up(node.host, node.port, KILLED)
            logger.warning("the node that was started on this machine for this program has ended; was it killed?")
            if not any(owner.may_embed for owner in self._owners()):
                return
            failure = f"the node that was started on this machine for this program ended {EMBEDDED_LIVES} times"
        logger.error("no other node is started on this machine")
        self._forsake(failure)

    def _say_why_alone(self) -> None:
        if missing := self._missing():
            logger.warning("where this program was told to look for nodes: %s", missing)
        links = self._links
        by_certificate = links.settings.credentials.key is None
        for sentence in refusal_sentences(links.refusals, by_certificate=by_certificate, own=_own(links.refusals)):
            logger.info("%s", sentence)

    def _forsake(self, why: str) -> None:
        """No node will run here; jobs of clusters that wanted no other end with the reason."""
        self._not_embedded = why
        for owner in list(self._owners()):
            if owner.wants_local and not owner.wants_discovery and not list(owner.named_nodes()):
                self._on_forsaken(owner.spec.id, why)

    def _look(self) -> None:
        """Say why nothing runs when that has been so for a while, and again when the reason changes."""
        sentence = self._why_waiting()
        reason = _COUNT.sub("", sentence or "")
        self._stuck_for = self._stuck_for + LOOK_INTERVAL if reason else 0.0
        # what waits for one short step after the other is on its way
        self._same_for = self._same_for + LOOK_INTERVAL if reason and reason == self._reason else 0.0
        self._reason = reason
        patience = STARTING_PATIENCE if self._is_starting else EXPLAIN_AFTER
        if self._same_for + LOOK_INTERVAL >= patience or self._stuck_for >= CHANGING_PATIENCE:
            full = f"{reason} {self.account()}"
            if full != self._said:
                logger.warning("%s", f"{sentence} {self.account(news=True)}".strip())
            self._said = full
        self._looking = any(True for _ in self._owners())
        if self._looking:
            self._later(LOOK_INTERVAL, self._look)

    def _later(self, seconds: float, function: Callable[[], object]) -> None:
        def run() -> None:
            self._calls.discard(handle)
            function()

        handle = self._loop.call_later(seconds, run)
        self._calls.add(handle)

    def _tasks_named(self, name: str) -> bool:
        return any(task.get_name() == name for task in self._tasks)

    def _spawn(self, coroutine: Coroutine[None, None, None], name: str | None = None) -> None:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("looking for nodes failed", exc_info=task.exception())


def _own(addresses: Iterable[str]) -> set[str]:
    return {address for address in addresses if is_own(address)}
