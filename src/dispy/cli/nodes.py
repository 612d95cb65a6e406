"""`dispy nodes`: which nodes answer, what they have, and which ones refuse us and why."""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dispy import settings
from dispy.cli.options import NORMALIZED, Connection, connection_options, take_connection
from dispy.clicknumbers import Number
from dispy.hostport import host_and_port
from dispy.words import counted, size

if TYPE_CHECKING:
    from dispy.model import NodeHeard, NodeInfo
    from dispy.wire.link import Link
    from dispy.wire.messages import AnyMessage

DESCRIBE_TIMEOUT = 3.0
"""Seconds that a node has to be dialled and to describe itself."""
RELAY_WAIT = 1.0
"""Seconds for which a relay is listened to."""


@dataclass(slots=True)
class NodeSeen:
    """A node that answered, with what it said of itself (None: it could not be asked, `problem` says why)."""

    name: str
    address: str
    port: int
    info: NodeInfo | None = None
    problem: str = ""
    others: list[tuple[str, int]] = field(default_factory=list)
    """Further hosts and ports where it is known to be."""
    relay: tuple[str, int] | None = None
    """Host and port of the relay that told of it."""
    behind: list[NodeHeard] | None = None
    """It is a relay itself, and told of these."""

    @property
    def addresses(self) -> list[str]:
        """Everywhere it is known to be, the place where it was reached first."""
        from dispy.wire.interfaces import shown

        told = list(self.info.addresses) if self.info else []
        return [shown(*place) for place in dict.fromkeys([(self.address, self.port), *self.others, *told])]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A machine whose node keeps apart from us: in `secret`, `group` or `protocol` we differ."""

    name: str
    address: str
    reason: str


@dataclass(slots=True)
class Survey:
    """What one look at the network brought."""

    nodes: list[NodeSeen]
    refusals: list[Refusal]
    tried: list[str] = field(default_factory=list)
    missing: str = ""
    """That interfaces which were asked for are not up, and which are."""
    relays: list[NodeSeen] = field(default_factory=list)


@click.command(short_help="List the nodes that answer, and those that refuse.", context_settings=NORMALIZED)
@click.argument("hosts", nargs=-1, metavar="[HOST[:PORT]]…")
@connection_options
@click.option(
    "-w", "--wait", type=Number(0.1, 60), metavar="SECONDS", default=1.0, show_default=True, help="Seconds to listen."
)
@click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object per node.")
def nodes(hosts: tuple[str, ...], wait: float, as_json: bool, **options: Any) -> NoReturn:
    """List the nodes that answer on this network (and at HOSTs), and those that refuse, with the reason.

    The exit code is 0 if at least one node can be used, else 1.
    """
    survey = asyncio.run(take_survey(take_connection(options), hosts, wait))
    if as_json:
        _print_json(survey)
    else:
        _print_table(survey)
    sys.exit(0 if any(node.info for node in survey.nodes) else 1)


async def take_survey(connection: Connection, hosts: Iterable[str], wait: float) -> Survey:
    """Ask the network for nodes during `wait` seconds, then ask each of them and each of `hosts` what it is."""
    from dispy.wire.discovery import discover_once

    credentials = connection.credentials()
    interfaces = settings.names(settings.variable("DISPY_INTERFACES"))
    found, refused, tried = await discover_once(
        credentials,
        connection.group_name,
        connection.base_port,
        interfaces,
        wait,
        multicast=settings.multicast(),
    )
    seen = [NodeSeen(node.name, node.address, node.port, others=list(node.others)) for node in found]
    seen += [_named(host, connection.base_port + settings.NODE_PORT_OFFSET) for host in hosts]
    await asyncio.gather(*(_describe(node, connection) for node in seen))
    relays = [node for node in seen if node.behind is not None]
    behind = [_behind(relay, heard) for relay in relays for heard in relay.behind or ()]
    await asyncio.gather(*(_describe(node, connection) for node in behind))
    seen = [node for node in seen if node.behind is None] + behind
    refusals = [Refusal(each.name, each.address, each.reason) for each in refused]
    nodes = sorted(_once(seen), key=lambda node: (node.name, node.address))
    return Survey(nodes, refusals, tried, _missing(interfaces), relays)


def _missing(interfaces: tuple[str, ...]) -> str:
    from dispy.wire.interfaces import missing_of, not_up

    missing = missing_of(interfaces)
    return not_up(missing) if missing else ""


def _named(text: str, port: int) -> NodeSeen:
    host, given = host_and_port(text)
    return NodeSeen(host, host, port if given is None else given)


def _behind(relay: NodeSeen, heard: NodeHeard) -> NodeSeen:
    return NodeSeen(heard.name, heard.address, heard.port, others=list(heard.others), relay=(relay.address, relay.port))


def _once(nodes: Iterable[NodeSeen]) -> list[NodeSeen]:
    """Each node process once, at the address where it was seen first."""
    once: dict[object, NodeSeen] = {}
    for node in nodes:
        first = once.setdefault(node.info.process if node.info else (node.address, node.port), node)
        if first is not node:
            first.others += [(node.address, node.port), *node.others]
            first.relay = first.relay or node.relay
    return list(once.values())


class _Listening:
    """Handles a link that is there for one message: the node's description of itself, or what a relay tells."""

    def __init__(self) -> None:
        self.behind: dict[tuple[str, int], NodeHeard] = {}
        self.info: asyncio.Future[NodeInfo] = asyncio.get_running_loop().create_future()

    def link_opened(self, link: Link) -> None:
        """The description comes unasked."""

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        """Take the description; the rest is for schedulers."""
        from dispy.wire.messages import NodeDescribed, NodesHeard

        for message, _ in messages:
            if isinstance(message, NodesHeard):
                self.behind.update({(each.address, each.port): each for each in message.nodes})
            if isinstance(message, NodeDescribed) and not self.info.done():
                self.info.set_result(message.info)

    def link_suspected(self, link: Link) -> None:
        """The time limit decides."""

    def link_recovered(self, link: Link) -> None:
        """The time limit decides."""

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        """No description will come."""
        from dispy.errors import LinkLost

        if not self.info.done():
            self.info.set_exception(LinkLost(cause))


async def _describe(node: NodeSeen, connection: Connection) -> None:
    """Dial a node at one address after another until it describes itself."""
    first = (node.address, node.port)
    for place in dict.fromkeys([first, *node.others]):
        problem = await _describe_at(node, *place, connection)
        if not problem:
            node.others = [other for other in dict.fromkeys([first, *node.others]) if other != place]
            node.address, node.port, node.problem = *place, ""
            return
        node.problem = node.problem or problem


async def _describe_at(node: NodeSeen, host: str, port: int, connection: Connection) -> str:
    """Dial a node and let it describe itself; what went wrong, in words."""
    from dispy.errors import LinkError
    from dispy.model import ProcessId, Role
    from dispy.wire.link import LinkSettings, dial

    link_settings = LinkSettings(
        process=ProcessId(secrets.token_hex(16)),
        role=Role.SCHEDULER,
        name=socket.gethostname(),
        credentials=connection.credentials(),
        group=connection.group_name,
    )
    handler = _Listening()
    try:
        async with asyncio.timeout(DESCRIBE_TIMEOUT):
            link = await dial(host, port, settings=link_settings, handler=handler)
            try:
                if link.peer.role is Role.PEER:
                    node.name = link.peer.name
                    await asyncio.sleep(RELAY_WAIT)
                    node.behind = list(handler.behind.values())
                    return ""
                node.info = await handler.info
                node.name = node.info.name
            finally:
                link.close("only looked")
    except TimeoutError:
        return f"no answer at port {port} within {DESCRIBE_TIMEOUT:g} s"
    except LinkError as error:
        return str(error)
    return ""


def _print_json(survey: Survey) -> None:
    import json

    for node in survey.nodes:
        shown: dict[str, object] = {"name": node.name, "address": node.address, "port": node.port}
        shown["addresses"] = node.addresses
        if node.info is None:
            shown |= {"state": "unusable", "problem": node.problem}
        else:
            info = node.info
            shown |= {"state": _state(info), "cpus": info.cpus, "memory": info.memory, "platform": info.platform}
            shown |= {"pythons": list(info.pythons), "version": info.version, "process": info.process}
            shown |= {"tags": list(info.tags), "gpus": info.gpus, "holder": _holder(info)}
            shown |= {"closed": info.closed}
        if node.relay is not None:
            shown |= {"relay": list(node.relay)}
        click.echo(json.dumps(shown))
    for relay in survey.relays:
        behind = len(relay.behind or ())
        shown = {"name": relay.name, "address": relay.address, "port": relay.port, "state": "relay", "nodes": behind}
        click.echo(json.dumps(shown))
    for refusal in survey.refusals:
        click.echo(
            json.dumps(
                {"name": refusal.name, "address": refusal.address, "state": "refused", "problem": refusal.reason}
            )
        )


def _holder(info: NodeInfo) -> dict[str, object] | None:
    import msgspec

    return None if info.holder is None else msgspec.structs.asdict(info.holder)


def _state(info: NodeInfo) -> str:
    if info.cpus == 0:
        return "closed"
    return "busy" if info.holder else "free"


def _print_table(survey: Survey) -> None:
    from rich.console import Console
    from rich.table import Table

    usable = [node for node in survey.nodes if node.info]
    if usable:
        table = Table(box=None, pad_edge=False, header_style="bold")
        tagged = any(node.info and node.info.tags for node in usable)
        headings = ("Name", "Address", "CPUs", "Memory", "Python", *(("Tags",) if tagged else ()), "State")
        for heading in headings:
            right = heading in {"CPUs", "Memory"}
            table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "State")
        for node in usable:
            assert node.info is not None
            info, holder = node.info, node.info.holder
            away = f"; {holder.absence}" if holder and holder.gone else ""
            by = f" ({holder.user}@{holder.host}: {holder.program}{away})" if holder else ""
            by = f": {info.closed}{by}" if info.closed else by
            gpus = f" + {counted(info.gpus, 'GPU')}" if info.gpus else ""
            table.add_row(
                *(node.name, "\n".join(node.addresses), f"{info.cpus}{gpus}", size(info.memory)),
                *(", ".join(info.pythons), *((", ".join(info.tags),) if tagged else ()), _state(info) + by),
            )
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)
        console.print(table, markup=False, highlight=False)
    else:
        click.echo("No node answers.")
        for sentence in survey.tried:
            click.echo(f"  {sentence}")
        if survey.refusals:
            click.echo("Programs run on this machine alone as long as that is so.")
        else:
            click.echo("Start dispynode on a machine of this network; without any, programs run on this machine alone.")
    for relay in survey.relays:
        told = len({each.process for each in relay.behind or ()})
        hears = counted(told, "node") if told else "no node"
        click.echo(f"{relay.name} ({relay.address}): a relay, which hears {hears} on its network")
    refused = {refusal.address for refusal in survey.refusals}
    for node in survey.nodes:
        if not node.info and node.address not in refused:  # else it is told below, with what helps
            click.echo(f"{node.name} ({node.address}): {node.problem}")
    for reason in dict.fromkeys(refusal.reason for refusal in survey.refusals):
        machines = [each for each in survey.refusals if each.reason == reason]
        click.echo(_refusal_text(reason, machines))


def _refusal_text(reason: str, machines: list[Refusal]) -> str:
    from dispy.scheduler.prospects import other_secret_here
    from dispy.wire.interfaces import is_own

    count = f"{len(machines)} machine{' runs' if len(machines) == 1 else 's run'} dispynode"
    names = ", ".join(sorted({f"{each.name} ({each.address})" for each in machines}))
    if reason == "secret" and all(is_own(each.address) for each in machines):
        sentence = other_secret_here(names)
        return f"{sentence[:1].upper()}{sentence[1:]}."
    if reason == "secret":
        hosts = sorted({each.address for each in machines})
        if len(hosts) == 1:
            command = f"dispy secret show | ssh {hosts[0]} dispy secret set   (then restart it)"
        else:
            loop = f"for host in {' '.join(hosts)}; do dispy secret show | ssh $host dispy secret set; done"
            command = f"{loop}   (then restart them)"
        return f"{count} with another secret: {names}\n  Make it equal with:  {command}"
    if reason == "group":
        return f"{count} in another group: {names}\n  Choose its group with --group NAME or DISPY_GROUP."
    if reason == "protocol":
        return f"{count} of another version of dispy: {names}\n  Install the same version here and there."
    return f"{count} and refused: {names} ({reason})"
