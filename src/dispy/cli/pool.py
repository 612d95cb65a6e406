"""Questions to a shared scheduler: where it is, by what this user is known to it, one link for one command."""

from __future__ import annotations

import asyncio
import getpass
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from dispy import settings
from dispy.cli.admin import admin_credentials
from dispy.cli.options import Connection, connection_options, take_connection
from dispy.errors import ConnectFailed, LinkError, LinkLost, SettingsError

if TYPE_CHECKING:
    from dispy.model import ComputationId
    from dispy.wire.link import Link, LinkSettings
    from dispy.wire.messages import AnyMessage
    from dispy.wire.pool import ClusterStatus, PoolStatus

F = TypeVar("F", bound=Callable[..., Any])

ANSWER_TIMEOUT = 10.0
"""Seconds that a scheduler has to be dialled, and again to answer."""

_OPTIONS = (
    click.option("--scheduler", metavar="HOST[:PORT]", help="The scheduler (DISPY_SCHEDULER; default: this machine)."),
    click.option("--admin", is_flag=True, help="As admin, who may read and end everything: prove the admin secret."),
    click.option("--admin_secret", metavar="TEXT", help="The admin secret (DISPY_ADMIN_SECRET); means --admin."),
    click.option("--admin-secret-file", metavar="FILE", help="File that holds it (DISPY_ADMIN_SECRET_FILE)."),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A scheduler and how to come to it."""

    host: str
    port: int
    connection: Connection
    admin: dict[str, Any] | None
    """The options by which the admin secret is found; None: as the user that one is."""

    @property
    def where(self) -> str:
        """For sentences."""
        from dispy.wire.interfaces import shown

        return shown(self.host, self.port)

    def link_settings(self) -> LinkSettings:
        """Who this process is on the link.

        Raises:
            SettingsError: there is no usable secret.
        """
        from dispy.model import ProcessId, Role
        from dispy.wire.link import LinkSettings

        return LinkSettings(
            process=ProcessId(secrets.token_hex(16)),
            role=Role.CLIENT if self.admin is None else Role.ADMIN,
            name=f"{getpass.getuser()}@{socket.gethostname()}",
            credentials=self.connection.credentials() if self.admin is None else admin_credentials(self.admin),
            group=self.connection.group_name,
        )


def scheduler_options(command: F) -> F:
    """Add the options by which a scheduler is reached; `take_target` takes them."""
    command = connection_options(command)
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_target(options: dict[str, Any]) -> Target:
    """Take these options out of a command's keywords.

    Raises:
        SettingsError: one of them is not usable.
    """
    from dispy.sharedcluster import scheduler_place

    connection = take_connection(options)
    given = options.pop("scheduler") or settings.variable("DISPY_SCHEDULER")
    admin = {name: options.pop(name) for name in ("admin_secret", "admin_secret_file")}
    wanted = options.pop("admin") or any(value is not None for value in admin.values())
    admin |= {name: getattr(connection, name) for name in ("certfile", "keyfile", "cafile")}
    return Target(*scheduler_place(given, connection.base_port), connection, admin if wanted else None)


class PoolLink:
    """A link to a scheduler; each question is answered by the message with its number."""

    def __init__(self, where: str) -> None:
        self.link: Link | None = None
        self._where = where
        self._number = 0
        self._waiting: dict[int, asyncio.Future[AnyMessage]] = {}

    async def ask(self, question: Callable[[int], AnyMessage]) -> Any:
        """Send what `question` makes of a number, and wait for the answer.

        Raises:
            LinkError: the link ends or is silent before.
        """
        assert self.link is not None
        self._number += 1
        answer = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        self.link.send(question(self._number))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await answer
        except TimeoutError:
            raise LinkLost(f"the scheduler at {self._where} did not answer within {ANSWER_TIMEOUT:g} s") from None
        finally:
            self._waiting.pop(self._number, None)

    def link_opened(self, link: Link) -> None:
        """Questions may be asked."""
        self.link = link

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """Answers have the number of their question."""
        for message, _ in messages:
            waiting = self._waiting.get(getattr(message, "question", 0))
            if waiting is not None and not waiting.done():
                waiting.set_result(message)

    def link_suspected(self, link: Link) -> None:
        """The time limit decides."""

    def link_recovered(self, link: Link) -> None:
        """The time limit decides."""

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """No answer will come."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(LinkLost(f"the link to the scheduler at {self._where} ended: {cause}"))


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[PoolLink]:
    """A link to the scheduler for as long as the block runs.

    Raises:
        LinkError: nobody is there, it is no scheduler, or it refuses us; the message says which.
    """
    from dispy.model import Role
    from dispy.wire.link import dial

    asking = PoolLink(target.where)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            link = await dial(target.host, target.port, settings=target.link_settings(), handler=asking)
    except TimeoutError:
        raise _nobody(target, ConnectFailed(f"no answer within {ANSWER_TIMEOUT:g} s")) from None
    except ConnectFailed as error:
        raise _nobody(target, error) from error
    try:
        if link.peer.role is not Role.SCHEDULER:
            raise ConnectFailed(
                f"what listens at {target.where} is node {link.peer.name}, not a scheduler: dispyscheduler listens one "
                "port above its nodes (9702 by default); `dispy nodes` shows what nodes do"
            )
        yield asking
    finally:
        link.close("answered")
        await link.wait_closed()


def _nobody(target: Target, error: ConnectFailed) -> LinkError:
    why = "nothing listens there" if error.refused else str(error).removeprefix(f"{target.where}: ")
    if error.reason in {"eof", "tls"}:  # something is there
        return ConnectFailed(f"what listens at {target.where} takes no link of this command: {why}")
    return ConnectFailed(
        f"no scheduler answers at {target.where}: {why}; start dispyscheduler there, or name its machine by "
        "--scheduler or DISPY_SCHEDULER"
    )


def own_tokens(target: Target) -> tuple[bytes, ...]:
    """What proves to this scheduler, and is told to no other, which clusters this user's programs have there."""
    from dispy.recovery.tokens import shared_clusters

    here: dict[str, bool] = {}

    def is_there(host: str) -> bool:
        if host not in here:
            here[host] = host == target.host or bool(_addresses(host) & _addresses(target.host))
        return here[host]

    return tuple(each.token for each in shared_clusters() if each.port == target.port and is_there(each.host))


def _addresses(host: str) -> frozenset[str]:
    """The addresses of a host; all that are of this machine count as one."""
    from dispy.nodes import resolve
    from dispy.wire.interfaces import is_own

    return frozenset("this machine" if is_own(each) else each for each in resolve(host))


async def take_status(asking: PoolLink, tokens: Iterable[bytes]) -> PoolStatus:
    """How everything stands.

    Raises:
        LinkError: the scheduler does not tell.
    """
    from dispy.wire.inquiries import AskPool, PoolTold

    told = await asking.ask(lambda number: AskPool(number, tuple(tokens)))
    if not isinstance(told, PoolTold):
        raise LinkLost(f"the scheduler answered {type(told).__name__}, which this version of dispy does not expect")
    return told.status


def find_cluster(status: PoolStatus, wanted: str) -> ComputationId:
    """The one cluster whose number begins so, or whose name is that; one's own go before others of the same name.

    Raises:
        SettingsError: there is none, or there are several.
    """
    found = [each for each in status.clusters if each.cluster.startswith(wanted.lower())]
    if not found:
        named = [each for each in status.clusters if each.name == wanted]
        found = [each for each in named if each.mine] or named
    if len(found) == 1:
        return found[0].cluster
    if found:
        listed = ", ".join(f"{short(each.cluster)} ({each.name}, of {owner_of(each)})" for each in found)
        raise SettingsError(f"{wanted!r} may mean several clusters: {listed}; say more of the number")
    raise SettingsError(f"the scheduler has no cluster {wanted!r}; `dispy status` shows those that it has")


def short(cluster: ComputationId) -> str:
    """The number of a cluster as people are shown it; it may be typed so."""
    return cast("str", cluster)[:8]


def owner_of(cluster: ClusterStatus) -> str:
    """Whose a cluster is, for people."""
    from dispy.sharing.identity import whose

    return whose(cluster.owner, cluster.claim, proved=cluster.proved)


def person(user: str, *, proved: bool) -> str:
    """A user for people: plainly if it is proved who it is, else as what they say."""
    return user if proved else f"{user} (claimed)"
