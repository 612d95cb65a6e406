"""The `dispynetrelay` command. Exit codes: 0 it was told to end, 1 it could not start, 2 wrong usage."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import click

from dispy import settings
from dispy.clicknumbers import WholeNumber
from dispy.commandline import comma_separated, set_up_logging, tell_manager
from dispy.errors import DispyError, SettingsError
from dispy.hostport import place_named
from dispy.masking import mask_secrets
from dispy.relay.service import Relay, RelaySettings
from dispy.secrets import find_credentials

logger = logging.getLogger("dispy.relay")

_OLD_OPTIONS = {"ip_addr": "host", "listen_port": "relay_port", "scheduler_host": "scheduler_node"}


def _of_today(name: str) -> str:
    plain = name.replace("-", "_")
    if plain in _OLD_OPTIONS:
        click.echo(f"the option --{plain} is called --{_OLD_OPTIONS[plain]} now", err=True)
    return _OLD_OPTIONS.get(plain, plain)


@click.command(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "token_normalize_func": _of_today,
    }
)
@click.option(
    *("-i", "--host"),
    multiple=True,
    metavar="HOST",
    callback=comma_separated,
    help="Interface or address of this machine on whose network nodes are asked (repeatable; DISPY_INTERFACES).",
)
@click.option(
    "--scheduler_node",
    multiple=True,
    metavar="HOST[:PORT]",
    callback=comma_separated,
    help="Dial the program or scheduler there, again and again, instead of waiting for it (repeatable).",
)
@click.option(
    *("-p", "--dispy_port", "base_port"),
    type=WholeNumber(1, 65533),
    metavar="PORT",
    help=f"Base port of nodes and programs (DISPY_PORT, default {settings.BASE_PORT}).",
)
@click.option(
    "--relay_port",
    type=WholeNumber(1, 65535),
    metavar="PORT",
    help="TCP port of this relay (default: the base port and 1, that of nodes).",
)
@click.option(
    "--scheduler_port",
    type=WholeNumber(1, 65535),
    metavar="PORT",
    help="Port at which --scheduler_node is dialled (default: the base port).",
)
@click.option(
    "--ipv4_udp_multicast", is_flag=True, help="Ask by IPv4 multicast, not by broadcast (DISPY_IPV4_UDP_MULTICAST)."
)
@click.option(
    *("-s", "--secret"), metavar="SECRET", help="The secret of nodes and programs; visible in `ps` (DISPY_SECRET)."
)
@click.option("--secret_file", metavar="FILE", help="File with the secret (DISPY_SECRET_FILE).")
@click.option("--certfile", metavar="FILE", help="Certificate, as one of a node (DISPY_CERTFILE).")
@click.option("--keyfile", metavar="FILE", help="Private key of the certificate (DISPY_KEYFILE).")
@click.option("--cafile", metavar="FILE", help="Authority of the programs' certificates (DISPY_CAFILE).")
@click.option("--group", metavar="NAME", help="Group of nodes and programs (DISPY_GROUP).")
@click.option("--name", metavar="NAME", help="Name of the relay (DISPY_NAME, default: host name).")
@click.option("--daemon", is_flag=True, help="Go on when the terminal is closed (DISPY_DAEMON).")
@click.option("--insecure", is_flag=True, help="Allow an empty secret beyond this machine (DISPY_INSECURE).")
@click.option("-d", "--debug", is_flag=True, help="Log everything that happens (DISPY_DEBUG).")
@click.version_option(settings.VERSION, prog_name="dispynetrelay")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Tell programs on other networks which nodes are on the network of this machine.

    A program that names this machine in `nodes` gets the nodes of this network, and talks to them directly.
    """
    set_up_logging(debug=options["debug"] or settings.flag("DISPY_DEBUG"))
    try:
        relay_settings = _relay_settings(options)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    mask_secrets()
    daemon = options["daemon"] or settings.flag("DISPY_DAEMON")
    try:
        asyncio.run(_serve(relay_settings, daemon=daemon))
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    except (DispyError, OSError) as error:
        logger.error("dispynetrelay cannot run: %s", error)
        context.exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the process."""
    command.main(args=None if arguments is None else list(arguments), prog_name="dispynetrelay")


def _relay_settings(options: Mapping[str, Any]) -> RelaySettings:
    base_port = settings.base_port(options["base_port"])
    interfaces = settings.names(settings.variable("DISPY_INTERFACES"))
    usual_port = options["scheduler_port"] or base_port
    group = options["group"]
    return RelaySettings(
        name=options["name"] or settings.variable("DISPY_NAME") or socket.gethostname(),
        credentials=find_credentials(
            secret=options["secret"],
            secret_file=options["secret_file"],
            certfile=options["certfile"],
            keyfile=options["keyfile"],
            cafile=options["cafile"],
            insecure=options["insecure"],
        ),
        group=(settings.variable("DISPY_GROUP") or "") if group is None else group,
        base_port=base_port,
        relay_port=options["relay_port"] or base_port + settings.NODE_PORT_OFFSET,
        hosts=options["host"] or interfaces,
        interfaces=interfaces,
        multicast=settings.multicast(options["ipv4_udp_multicast"]),
        schedulers=tuple(place_named(each, usual_port, "--scheduler_node") for each in options["scheduler_node"]),
    )


async def _serve(relay_settings: RelaySettings, *, daemon: bool) -> None:
    manager = os.environ.get("NOTIFY_SOCKET", "")
    relay, loop = Relay(relay_settings), asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, (lambda: None) if daemon else ended.set)
    await relay.start()
    try:
        logger.info("%s", _ready_line(relay))
        tell_manager(manager, "READY=1")
        await ended.wait()
        logger.info("ending")
        tell_manager(manager, "STOPPING=1")
    finally:
        await relay.close()


def _ready_line(relay: Relay) -> str:
    """What a sysadmin wants to know, in one line."""
    own = relay.settings
    parts = [
        f"relay {own.name} is ready at {', '.join(relay.listens_at)}",
        f"asks nodes on {', '.join(own.hosts) or 'all interfaces'}",
        f"secret: {own.credentials.source}",
    ]
    if own.group:
        parts.append(f"group: {own.group}")
    if own.schedulers:
        parts.append("for " + ", ".join(f"{host}:{port}" for host, port in own.schedulers))
    return "; ".join(parts)


if __name__ == "__main__":
    main()
