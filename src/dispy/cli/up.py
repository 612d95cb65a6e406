"""`dispy up HOST…` and `dispy down HOST…`: start and stop nodes on other machines over ssh."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from dispy.cli.options import NORMALIZED, Connection, connection_options, take_connection
from dispy.clicknumbers import Number, WholeNumber
from dispy.errors import SettingsError

if TYPE_CHECKING:
    from dispy.cli.remote import Outcome, Way

F = TypeVar("F", bound=Callable[..., Any])
_FAR_SHARE = 0.8
"""The part of the time for a machine that its node has to get ready or to end."""

_WAY = (
    click.option("--python", metavar="PATH", help="Python there that has dispy."),
    click.option("--command", metavar="COMMAND", help="The dispynode there: a path, or words for the shell."),
    click.option(
        "--ssh-option", multiple=True, metavar="WORDS", help="More words for ssh, as '-p 2222' (may be repeated)."
    ),
    click.option(
        *("-t", "--timeout"),
        type=Number(1, 3600),
        metavar="SECONDS",
        default=60.0,
        show_default=True,
        help="Seconds for each machine.",
    ),
    click.option(
        "--parallel",
        type=WholeNumber(1, 256),
        metavar="N",
        default=16,
        show_default=True,
        help="Machines at the same time.",
    ),
    click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object per machine."),
)


def _way_options(command: F) -> F:
    for option in reversed(_WAY):
        command = option(command)
    return command


@click.command(short_help="Start nodes on other machines by ssh.", context_settings=NORMALIZED)
@click.argument("hosts", nargs=-1, required=True, metavar="[USER@]HOST…")
@connection_options
@_way_options
@click.option("--install", metavar="PACKAGE", help="If no dispy is found there: make an environment and install this.")
@click.option(
    *("-o", "--node-option"),
    multiple=True,
    metavar="WORDS",
    help="Options for dispynode, as '--cpus 4' (may be repeated).",
)
def up(hosts: tuple[str, ...], install: str | None, node_option: tuple[str, ...], **options: Any) -> NoReturn:
    """Start a node on each HOST over ssh, with the secret of this machine, and wait until it is ready.

    It stays until `dispy down` or the end of the machine. The exit code is 0 if there is a node on every HOST, else 1.
    """
    connection = take_connection(options)
    words = _split("--node-option", node_option)
    if any(word.startswith("-s") or word.split("=")[0] == "--secret" for word in words):
        raise SettingsError("--node-option: the secret must not be on a command line; give it to `dispy up` itself")
    request = {"action": "up", **_common(connection, options), "options": words}
    request["environment"] = _environment(connection)
    if connection.credentials().empty:
        request["options"] = [*words, "--secret", ""]
    _run(hosts, request, _take_way(options, install), as_json=options["as_json"])


@click.command(short_help="Stop nodes that `dispy up` has started.", context_settings=NORMALIZED)
@click.argument("hosts", nargs=-1, required=True, metavar="[USER@]HOST…")
@click.option("--now", is_flag=True, help="End its jobs, instead of letting them finish.")
@connection_options
@_way_options
def down(hosts: tuple[str, ...], now: bool, **options: Any) -> NoReturn:
    """Stop the node on each HOST that `dispy up` has started, when its jobs are done.

    The exit code is 0 if none is left, else 1: also when jobs take longer than the time for a machine.
    """
    connection = take_connection(options)
    request = {"action": "down", **_common(connection, options), "now": now}
    _run(hosts, request, _take_way(options, None), as_json=options["as_json"])


def _common(connection: Connection, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "base_port": connection.base_port,
        "group": connection.group_name,
        "wait": _FAR_SHARE * options["timeout"],
    }


def _environment(connection: Connection) -> dict[str, str]:
    """Variables for the node: what it must have in common with the programs of this machine."""
    from dispy.secrets import show_secret

    environment = {"DISPY_PORT": str(connection.base_port)}
    if connection.group_name:
        environment["DISPY_GROUP"] = connection.group_name
    credentials = connection.credentials()
    if credentials.insecure:
        environment["DISPY_INSECURE"] = "1"
    if credentials.key is not None and not credentials.empty:
        environment["DISPY_SECRET"] = show_secret(secret=connection.secret, secret_file=connection.secret_file).text
    return environment


def _take_way(options: dict[str, Any], install: str | None) -> Way:
    from dispy.cli.remote import Way, far_command

    return Way(
        ssh_options=tuple(_split("--ssh-option", options["ssh_option"])),
        command=far_command(options["python"], options["command"], install),
        timeout=options["timeout"],
        parallel=options["parallel"],
    )


def _split(option: str, texts: Sequence[str]) -> list[str]:
    try:
        return [word for text in texts for word in shlex.split(text)]
    except ValueError as error:
        raise SettingsError(f"{option}: {error}") from error


def _run(hosts: Sequence[str], request: dict[str, Any], way: Way, *, as_json: bool) -> NoReturn:
    from dispy.cli.remote import reach_all

    for host in hosts:
        if host.startswith("-") or not host.strip():
            raise SettingsError(f"{host!r} is no name of a machine")
    outcomes = asyncio.run(reach_all(list(dict.fromkeys(hosts)), request, way, _print_json if as_json else _print_line))
    sys.exit(0 if all(outcome.ok for outcome in outcomes) else 1)


def _print_json(outcome: Outcome) -> None:
    click.echo(json.dumps(asdict(outcome)))


def _print_line(outcome: Outcome) -> None:
    click.echo(f"{outcome.host}: {outcome.text}", err=not outcome.ok)
