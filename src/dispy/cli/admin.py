"""`dispy admin`: how nodes are, and orders to them, over links that prove the admin secret."""

from __future__ import annotations

import asyncio
import getpass
import json
import secrets
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dispy import settings
from dispy.cli.options import NORMALIZED
from dispy.clicknumbers import AnyWholeNumber
from dispy.errors import LinkError, LinkLost, SettingsError
from dispy.hostport import host_and_port
from dispy.model import NodeOrder, NodeStatus, ProcessId, Role
from dispy.node.window import read_hours

if TYPE_CHECKING:
    from dispy.secrets import Credentials
    from dispy.wire.link import Link, LinkSettings
    from dispy.wire.messages import AnyMessage

ANSWER_TIMEOUT = 10.0
"""Seconds that a node has to be dialled and to answer."""
_STATUS = "status"
_ORDERS = (
    NodeOrder.STOP,
    NodeOrder.START,
    NodeOrder.CPUS,
    NodeOrder.HOURS,
    NodeOrder.RELEASE,
    NodeOrder.EXIT,
    NodeOrder.QUIT,
)
"""As the help has them."""
_WORDS = (_STATUS, *(order.value for order in _ORDERS))


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is asked of nodes; without an order, how they are."""

    hosts: tuple[str, ...]
    order: NodeOrder | None
    cpus: int = 0
    hours: str = ""


@dataclass(slots=True)
class _Told:
    """What one node told."""

    host: str
    done: bool
    sentence: str = ""
    status: NodeStatus | None = None


class _Command(click.Command):
    """`cpus -1` is a number and no option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if len(args) > 1 and args[-2] == "cpus" and args[-1].removeprefix("-").isdecimal():
            args = [*args[:-2], "--", *args[-2:]]
        return super().parse_args(ctx, args)


@click.command(
    cls=_Command, short_help="Show and steer nodes that were given an admin secret.", context_settings=NORMALIZED
)
@click.argument("words", nargs=-1, required=True, metavar="HOST[:PORT]… WORD")
@click.option("--admin_secret", metavar="TEXT", help="The admin secret of the nodes (DISPY_ADMIN_SECRET).")
@click.option("--admin-secret-file", metavar="FILE", help="File that holds it (DISPY_ADMIN_SECRET_FILE).")
@click.option("--certfile", metavar="FILE", help="Certificate, PEM (DISPY_CERTFILE).")
@click.option("--keyfile", metavar="FILE", help="Private key of the certificate, PEM (DISPY_KEYFILE).")
@click.option("--cafile", metavar="FILE", help="Authority of the nodes' certificates, PEM (DISPY_CAFILE).")
@click.option("--group", metavar="NAME", help="Group of the nodes (DISPY_GROUP).")
@click.option(
    *("-p", "--dispy_port"),
    type=AnyWholeNumber(),
    metavar="PORT",
    help="Base port; nodes listen on the next one (DISPY_PORT).",
)
@click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object per node.")
def admin(words: tuple[str, ...], as_json: bool, **options: Any) -> NoReturn:
    """Show how the nodes at HOSTs are, or give them an order; they must have been started with --admin_secret.

    \b
    status    how it is: CPUs, who uses it, jobs
    stop      start no new jobs; what has not started goes back to its program
    start     start jobs again
    cpus N    offer N CPUs (0: all, -N: all but N)
    hours START STOP [END]
              serve in these hours (HH:MM, local time of the node): no new jobs
              from STOP, jobs end at END; hours always: no limit
    release   let go of a program that is gone, without waiting for it
    exit      end when the jobs that are here have ended
    quit      end now; what has not started is given back

    Without an option, a variable or a file the admin secret is asked for at the terminal. The exit code is 0 if all
    nodes did it, else 1.
    """
    wish = _take_wish(words)
    told = asyncio.run(_ask_all(wish, _link_settings(options), settings.base_port(options["dispy_port"])))
    for each in told:
        _print_json(each) if as_json else _print_text(each)
    sys.exit(0 if all(each.done for each in told) else 1)


def _take_wish(words: Sequence[str]) -> _Wish:
    number, hours = "", ""
    if NodeOrder.HOURS in words[1:]:
        at = words.index(NodeOrder.HOURS, 1)
        words, hours = words[: at + 1], " ".join(words[at + 1 :])
        read_hours(hours)
    elif len(words) > 1 and words[-2] == "cpus":
        *words, number = words
    *hosts, word = words
    if word not in _WORDS and hosts:
        raise SettingsError(f"{word} is no order; there are {', '.join(_WORDS[:-1])} and {_WORDS[-1]}")
    if word not in _WORDS or not hosts:
        raise SettingsError(f"say which nodes and what: dispy admin HOST… {'|'.join(_WORDS)}")
    order = None if word == _STATUS else NodeOrder(word)
    if order is NodeOrder.CPUS and not number.removeprefix("-").isdecimal():
        raise SettingsError(f"cpus {number or '(nothing)'}: say how many, 0 for all or -N for all but N")
    return _Wish(tuple(hosts), order, int(number or 0), hours)


def _link_settings(options: dict[str, Any]) -> LinkSettings:
    from dispy.wire.link import LinkSettings

    group = options["group"]
    return LinkSettings(
        process=ProcessId(secrets.token_hex(16)),
        role=Role.ADMIN,
        name=f"{getpass.getuser()}@{socket.gethostname()}",
        credentials=admin_credentials(options),
        group=(settings.variable("DISPY_GROUP") or "") if group is None else group,
    )


def admin_credentials(options: dict[str, Any]) -> Credentials:
    """What the options, the environment, files or, at a terminal, whoever sits there say of the admin secret.

    Raises:
        SettingsError: nobody says it.
    """
    from dispy.secrets import find_admin_credentials

    def find(secret: str | None) -> Credentials | None:
        return find_admin_credentials(
            secret=secret,
            secret_file=options["admin_secret_file"],
            certfile=options["certfile"] or settings.variable("DISPY_CERTFILE"),
            keyfile=options["keyfile"] or settings.variable("DISPY_KEYFILE"),
            cafile=options["cafile"] or settings.variable("DISPY_CAFILE"),
        )

    secret = options["admin_secret"]
    found = find(secret)
    if found is None and secret is None and sys.stdin.isatty():
        found = find(click.prompt("Admin secret", hide_input=True, err=True))
    if found is None:
        raise SettingsError(
            "which admin secret? Name it by --admin-secret-file, DISPY_ADMIN_SECRET_FILE or DISPY_ADMIN_SECRET"
        )
    return found


class _Answered:
    """Handles a link that is there for one question."""

    def __init__(self, question: AnyMessage) -> None:
        self.answer: asyncio.Future[AnyMessage] = asyncio.get_running_loop().create_future()
        self._question = question

    def link_opened(self, link: Link) -> None:
        """Ask."""
        link.send(self._question)

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """The first message is the answer."""
        if not self.answer.done():
            self.answer.set_result(messages[0][0])

    def link_suspected(self, link: Link) -> None:
        """The time limit decides."""

    def link_recovered(self, link: Link) -> None:
        """The time limit decides."""

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """No answer will come."""
        if not self.answer.done():
            self.answer.set_exception(LinkLost(cause))


async def _ask_all(wish: _Wish, link: LinkSettings, base_port: int) -> list[_Told]:
    port = base_port + settings.NODE_PORT_OFFSET
    return await asyncio.gather(*(_ask(host, wish, link, port) for host in wish.hosts))


async def _ask(host: str, wish: _Wish, link_settings: LinkSettings, usual_port: int) -> _Told:
    from dispy.wire.link import dial
    from dispy.wire.messages import AskStatus, NodeSteered, StatusTold, SteerNode

    address, given = host_and_port(host)
    port = usual_port if given is None else given
    handler = _Answered(AskStatus() if wish.order is None else SteerNode(wish.order, wish.cpus, wish.hours))
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            link = await dial(address, port, settings=link_settings, handler=handler)
            try:
                answer = await handler.answer
            finally:
                link.close("answered")
                await link.wait_closed()
    except TimeoutError:
        return _Told(host, False, f"no answer at port {port} within {ANSWER_TIMEOUT:g} s")
    except LinkError as error:
        return _Told(host, False, str(error))
    match answer:
        case StatusTold(status):
            return _Told(host, True, status=status)
        case NodeSteered(done, sentence):
            return _Told(host, done, sentence)
    return _Told(host, False, f"it answered {type(answer).__name__}, which this version of dispy does not expect")


def _print_json(told: _Told) -> None:
    import msgspec

    shown: dict[str, object] = {"host": told.host, "done": told.done, "answer": told.sentence}
    if told.status is not None:
        shown["status"] = msgspec.to_builtins(told.status)
    click.echo(json.dumps(shown))


def _print_text(told: _Told) -> None:
    if told.status is None:
        click.echo(f"{told.host}: {told.sentence}", err=not told.done)
        return
    from rich.console import Console
    from rich.table import Table

    from dispy.node.steering import status_rows

    table = Table(show_header=False)
    for row in status_rows(told.status):
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(f"{told.status.info.name} ({told.host})", markup=False, highlight=False)
    console.print(table, markup=False, highlight=False)
