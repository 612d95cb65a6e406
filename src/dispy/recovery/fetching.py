"""Fetches what all nodes of a recovery file hold: dials them, looks for those that moved, waits, and says what it
waits for.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import stat
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from dispy import settings
from dispy.errors import AuthenticationRejected, ConnectFailed, LinkError, SettingsError
from dispy.logs import logger
from dispy.model import ProcessId, Role
from dispy.recovery.book import Book, NodeCleared, NodeNoted
from dispy.recovery.claims import Claim
from dispy.recovery.file import RecoveryFile
from dispy.recovery.sorting import Fetched, stands_for
from dispy.secrets import Credentials, credentials_from_key
from dispy.settings import DISCOVERY_INTERVAL, REDIAL_MOST
from dispy.wire.discovery import Asker, DiscoveryRefused, NodeFound
from dispy.wire.link import Dialler, Link, LinkSettings
from dispy.wire.messages import AnyMessage
from dispy.words import counted

ASK_AFTER: Final = (0.3, 0.6, 1.2)
"""Seconds after which the network is asked for nodes that do not answer where they were."""
SAY_INTERVAL: Final = 10.0
"""Seconds between two sentences about what is waited for; the first comes after a fifth of that."""


class _Wanted(Struct, eq=False):
    """A node that may hold results."""

    noted: NodeNoted
    claim: Claim | None = None
    said: str = ""
    """What went wrong last, for people."""


class Fetching:
    """One recovery under way. It handles all links; methods belong to the loop's thread."""

    def __init__(
        self,
        file: RecoveryFile,
        book: Book,
        credentials: Credentials,
        *,
        terminate: bool,
        only: Container[ProcessId] | None = None,
    ) -> None:
        """`only`: ask no other nodes of the file than these."""
        self._loop = asyncio.get_running_loop()
        self._file = file
        self._book = book
        self._terminate = terminate
        self._settings = LinkSettings(
            process=ProcessId(secrets.token_hex(16)),
            role=Role.SCHEDULER,
            name=socket.gethostname(),
            credentials=credentials,
            group=book.program.group,
        )
        self._wanted = {
            noted.process: _Wanted(noted) for noted in book.nodes.values() if only is None or noted.process in only
        }
        self._claims: dict[ProcessId, Claim] = {}
        self._diallers: dict[tuple[str, int], Dialler] = {}
        self._asker: Asker | None = None
        self._calls: list[asyncio.TimerHandle] = []
        self._news = asyncio.Event()
        self._refused: set[str] = set()
        self._fetched = Fetched()

    async def run(self, patience: float | None) -> Fetched:
        """Fetch until every node has told all it has, or the time (seconds) is over.

        Raises:
            OSError: the recovery file cannot be written.
            SettingsError: an interface of DISPY_INTERFACES is not there.
        """
        try:
            async with asyncio.timeout(patience):
                self._dial_all()
                if any(not wanted.noted.handle for wanted in self._wanted.values()):
                    await self._begin_asking()
                self._later(SAY_INTERVAL / 5, self._say)
                while self._wanted:
                    await self._news.wait()
                    self._news.clear()
                    await self._clear_done()
        except TimeoutError:
            self._fetched.waiting = [self._sentence(wanted) for wanted in self._wanted.values()]
        finally:
            self._close()
        return self._fetched

    # ---- where nodes are ----

    def _dial_all(self) -> None:
        for wanted in list(self._wanted.values()):
            if wanted.noted.handle:
                self._dial_own(wanted)
            else:
                self._dial(wanted.noted.places)
        self._news.set()

    def _dial_own(self, wanted: _Wanted) -> None:
        """A node that the program had started for itself: only on its machine is the key that it knows."""
        noted = wanted.noted
        try:
            host, port, credentials = _read_handle(Path(noted.handle))
        except FileNotFoundError:
            if self._book.program.host == socket.gethostname():
                self._give_up(wanted, "it has ended")
            else:
                wanted.said = f"it can be reached on {self._book.program.host} only: recover there"
                logger.warning("the node that the program had started for itself: %s", wanted.said)
            return
        except (OSError, ValueError, KeyError, TypeError, SettingsError) as error:
            wanted.said = f"{noted.handle} cannot be read: {error}"
            logger.warning("the node that the program had started for itself cannot be reached: %s", wanted.said)
            return
        own = msgspec.structs.replace(self._settings, credentials=credentials, group="")
        self._dial([(host, port)], own)

    def _give_up(self, wanted: _Wanted, why: str) -> None:
        sentence = f"the node that the program had started for itself cannot be asked: {why}; what it held is lost"
        if self._knew(wanted.noted):
            logger.warning("%s", sentence)
        else:
            self._lost(sentence)
        self._forget(wanted)

    def _knew(self, noted: NodeNoted) -> bool:
        """Whether it is known of each job that the node had in hand."""
        return self._book.keeps_all_jobs or noted.process in self._book.handed.values()

    def _lost(self, sentence: str) -> None:
        self._fetched.lost.append(sentence)
        logger.warning("%s", sentence)

    def _dial(self, places: Iterable[tuple[str, int]], link_settings: LinkSettings | None = None) -> None:
        for place in places:
            if place not in self._diallers:
                dialler = Dialler(
                    *place,
                    settings=link_settings or self._settings,
                    handler=self,
                    on_failure=self._failed,
                    on_closed=self._said_goodbye,
                )
                self._diallers[place] = dialler
                dialler.start()

    async def _begin_asking(self) -> None:
        self._asker = await Asker.start(
            credentials=self._settings.credentials,
            group=self._settings.group,
            base_port=self._book.program.base_port,
            name=self._settings.name,
            interfaces=settings.names(settings.variable("DISPY_INTERFACES")),
            multicast=settings.multicast(),
            on_found=self._found,
            on_refused=self._discovery_refused,
        )
        for seconds in ASK_AFTER:
            self._later(seconds, self._asker.ask)
        self._later(DISCOVERY_INTERVAL, self._ask_again)

    def _ask_again(self) -> None:
        if self._asker is not None:
            self._asker.ask()
            self._later(DISCOVERY_INTERVAL, self._ask_again)

    def _found(self, found: NodeFound) -> None:
        missing = [
            wanted.noted for wanted in self._wanted.values() if wanted.claim is None or wanted.claim.link is None
        ]
        if any(found.process == noted.process or found.name == noted.name for noted in missing):
            self._dial([(found.address, found.port), *found.others])

    def _discovery_refused(self, refused: DiscoveryRefused) -> None:
        if refused.address not in self._refused:
            self._refused.add(refused.address)
            logger.warning(
                "%s (%s) runs dispynode with another %s than the one given here",
                refused.name,
                refused.address,
                refused.reason,
            )

    # ---- what links say ----

    def link_opened(self, link: Link) -> None:
        """A node was reached; its description comes, then it is asked."""
        claim = self._claims.get(link.peer.process)
        if claim is None:
            self._claims[link.peer.process] = Claim(link, self._file, self._book, self._terminate, self._heard)
            return
        first = claim.link
        claim.link_replaced(link)
        if first is not None:  # the node lets go of the first as well; a goodbye could mean both
            first.abort("there is another link between us")
            for place, dialler in list(self._diallers.items()):
                if dialler.link is first:
                    del self._diallers[place]
                    dialler.stop()

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """Everything that one read brought."""
        claim = self._claims.get(link.peer.process)
        if claim is not None and claim.link is link:
            claim.messages_arrived(messages)

    def link_suspected(self, link: Link) -> None:
        """Patience: there is nothing else to do for us."""

    def link_recovered(self, link: Link) -> None:
        """Good."""

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """It is dialled again."""
        claim = self._claims.get(link.peer.process)
        if claim is None or claim.link is not link:
            return
        claim.link = None
        for wanted in self._wanted.values():
            if wanted.claim is claim:
                wanted.said = cause
                logger.info("the connection to node %s ended (%s); trying again", claim.name, cause)

    def _heard(self, claim: Claim) -> None:
        if claim.is_answered:
            for wanted in self._wanted.values():
                name = "" if claim.info is None else claim.info.name
                if wanted.claim is not claim and stands_for(self._book, wanted.noted, claim.process, name):
                    if wanted.claim is not None and wanted.claim.process != claim.process:
                        self._drop(wanted.claim)
                    wanted.claim = claim
        self._news.set()

    def _drop(self, claim: Claim) -> None:
        """The process is gone: another one stands in its place and holds what it held."""
        if self._claims.pop(claim.process, None) is not None:
            claim.close("the node was started again")

    def _failed(self, dialler: Dialler, error: LinkError) -> None:
        sentence = str(error)
        place = (dialler.host, dialler.port)
        for wanted in list(self._wanted.values()):
            if wanted.claim is not None and wanted.claim.link is not None:
                continue
            if wanted.noted.handle:
                if place == _place_of(wanted.noted) and isinstance(error, ConnectFailed) and error.refused:
                    self._give_up(wanted, sentence)
                    self._news.set()
            elif place in wanted.noted.places and wanted.said != sentence:
                wanted.said = sentence
                level = logger.WARNING if isinstance(error, AuthenticationRejected) else logger.INFO
                logger.log(level, "node %s: %s; trying again", wanted.noted.name, sentence)
        if isinstance(error, AuthenticationRejected):
            self._later(DISCOVERY_INTERVAL, lambda: self._dial_again(dialler))

    def _said_goodbye(self, dialler: Dialler) -> None:
        self._later(REDIAL_MOST, lambda: self._dial_again(dialler))

    def _dial_again(self, dialler: Dialler) -> None:
        if self._diallers.get((dialler.host, dialler.port)) is dialler:
            dialler.start()

    # ---- waiting ----

    async def _clear_done(self) -> None:
        """Let go of nodes that have told all they had."""
        for claim in list(self._claims.values()):
            claim.check()
        done = [wanted for wanted in self._wanted.values() if wanted.claim is not None and wanted.claim.is_done]
        if not done:
            return
        for wanted in done:
            assert wanted.claim is not None
            self._fetched.not_started |= wanted.claim.not_started
            if wanted.claim.unreadable:
                files = counted(wanted.claim.unreadable, "file")
                self._lost(
                    f"node {wanted.claim.name} has {files} with results of this program that cannot be read: damaged "
                    "on its disk, and set aside as *.unreadable in spool/ of its directory"
                )
            if wanted.claim.process == wanted.noted.process:
                self._fetched.answered.add(wanted.noted.process)
            elif not self._knew(wanted.noted):
                self._lost(
                    f"node {wanted.noted.name} was started again since: jobs that ran there when it ended are lost "
                    "without a trace (durable=True keeps track)"
                )
            self._forget(wanted)
        await self._loop.run_in_executor(None, self._file.sync)
        for claim in [claim for claim in self._claims.values() if claim.is_done]:
            if not any(wanted.claim is claim for wanted in self._wanted.values()):
                del self._claims[claim.process]
                claim.close("all results are fetched")

    def _forget(self, wanted: _Wanted) -> None:
        entry = NodeCleared(wanted.noted.process)
        self._file.append([entry])
        self._book.add(entry)
        del self._wanted[wanted.noted.process]

    def _say(self) -> None:
        for wanted in self._wanted.values():
            logger.info("waiting: %s", self._sentence(wanted))
        self._later(SAY_INTERVAL, self._say)

    def _sentence(self, wanted: _Wanted) -> str:
        claim = wanted.claim
        if claim is not None and claim.link is not None:
            return f"node {claim.name} ({claim.address}): {len(claim.left)} results are to come"
        silent = self._claims.get(wanted.noted.process)
        if silent is not None and silent.link is not None:
            return (
                f"node {silent.name} ({silent.address}) does not tell what it holds: the program is still connected to "
                "it, or a job is just being taken back"
            )
        where = ", ".join(f"{host}:{port}" for host, port in wanted.noted.places)
        return f"node {wanted.noted.name} ({where}) does not answer: {wanted.said or 'nothing heard yet'}"

    def _later(self, seconds: float, function: object) -> None:
        assert callable(function)
        self._calls.append(self._loop.call_later(seconds, function))

    def _close(self) -> None:
        for call in self._calls:
            call.cancel()
        if self._asker is not None:
            self._asker.close()
            self._asker = None
        diallers, self._diallers = self._diallers, {}
        for claim in self._claims.values():
            claim.close("the recovery is over")
        self._claims.clear()
        for dialler in diallers.values():
            dialler.stop("the recovery is over")


def _read_handle(path: Path) -> tuple[str, int, Credentials]:
    """Where a node is that a program had started for itself, and the key by which it knows us."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid not in {0, os.geteuid()} or not stat.S_ISREG(status.st_mode):
            raise ValueError("it belongs to somebody else")
        given = json.loads(file.read(4096))
    return str(given["host"]), int(given["port"]), credentials_from_key(bytes.fromhex(given["key"]))


def _place_of(noted: NodeNoted) -> tuple[str, int] | None:
    """The place of such a node; it has one."""
    return noted.places[0] if noted.places else None
