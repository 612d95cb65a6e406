"""The `dispynode` command: its options, and what becomes of them. `dispy.node.running` does the rest.

Exit codes: 0 the node was told to end, 1 it could not start or go on (one sentence says why), 2 wrong usage.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from dispy import settings
from dispy.clicknumbers import AnyWholeNumber, WholeNumber
from dispy.commandline import comma_separated, set_up_logging
from dispy.configfile import read_config, save_config
from dispy.errors import SettingsError
from dispy.hostport import place_named
from dispy.masking import mask_secrets
from dispy.node.options import owner_options, owner_settings
from dispy.node.running import run
from dispy.node.settings import NodeSettings
from dispy.parameters import option_of_today
from dispy.secrets import Credentials, find_admin_credentials, find_credentials

logger = logging.getLogger("dispy.node")

_SETUP_PLACE: Final = (
    "the setup function of a program runs in a process from which the workers of its jobs are forked, so that they "
    "have all that it made; the node's own process runs no code of programs"
)
_NOT_SAVED: Final = {"config", "save_config", "embedded", "launch", "secret", "admin_secret", "clean"}
"""Secrets stay out of files that others may read; `clean` is for one start."""


def _no_node_port(_context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        less = f": --dispy_port {int(value) - 1}" if value.isdecimal() else ""
        raise click.BadParameter(f"say --dispy_port instead, the base port, which is one less than {value}{less}")


@click.command(
    "dispynode",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "token_normalize_func": option_of_today,
    },
)
@click.option(
    *("-c", "--cpus"),
    type=AnyWholeNumber(),
    default=0,
    envvar="DISPY_CPUS",
    metavar="N",
    help="CPUs for jobs: 0 all, N that many, -N all but N.",
)
@click.option(
    *("-i", "--host"),
    multiple=True,
    envvar="DISPY_HOST",
    metavar="HOST",
    callback=comma_separated,
    help="Address or name to listen on (repeatable; default: all, or what DISPY_INTERFACES says).",
)
@click.option(
    *("--ext_host", "--ext-host"),
    multiple=True,
    envvar="DISPY_EXT_HOST",
    metavar="HOST[:PORT]",
    callback=comma_separated,
    help="Where others reach this node if not at its own addresses, behind NAT or a tunnel (repeatable).",
)
@click.option(
    *("--ipv4_udp_multicast", "--ipv4-udp-multicast"),
    is_flag=True,
    envvar="DISPY_IPV4_UDP_MULTICAST",
    help="Announce this node by IPv4 multicast instead of broadcast (it answers to both).",
)
@click.option(
    *("-p", "--dispy_port", "--dispy-port", "base_port"),
    type=WholeNumber(1, 65533),
    envvar="DISPY_PORT",
    metavar="PORT",
    help=f"Base port (default {settings.BASE_PORT}); the node listens on the next one, UDP and TCP.",
)
@click.option("--name", envvar="DISPY_NAME", metavar="NAME", help="Name that clients show (default: host name).")
@click.option(
    *("-s", "--secret"),
    envvar="DISPY_SECRET",
    metavar="SECRET",
    help="The secret that clients must know. Other users may see it in `ps`: a file is better.",
)
@click.option(
    "--secret-file", "--secret_file", envvar="DISPY_SECRET_FILE", metavar="FILE", help="File with the secret."
)
@click.option("--certfile", envvar="DISPY_CERTFILE", metavar="FILE", help="Certificate of this node (PEM).")
@click.option("--keyfile", envvar="DISPY_KEYFILE", metavar="FILE", help="Private key of the certificate (PEM).")
@click.option(
    "--cafile", envvar="DISPY_CAFILE", metavar="FILE", help="Authority that clients' certificates come from (PEM)."
)
@click.option(
    "--group",
    envvar="DISPY_GROUP",
    default="",
    metavar="NAME",
    help="Separates environments on one network: clients and nodes of other groups do not meet.",
)
@click.option(
    "--join",
    multiple=True,
    envvar="DISPY_JOIN",
    metavar="HOST[:PORT]",
    callback=comma_separated,
    help="Dial this client or scheduler (base port if none is given), again and again (repeatable).",
)
@click.option(
    *("--dest_path_prefix", "--dest-path-prefix"),
    envvar="DISPY_DEST_PATH_PREFIX",
    metavar="DIR",
    help="Directory for files of jobs (default: in the user's cache directory).",
)
@click.option(
    "--clean",
    is_flag=True,
    envvar="DISPY_CLEAN",
    help="End the node that uses the directory, if any, and remove what nodes keep there first.",
)
@click.option(
    "--daemon",
    is_flag=True,
    envvar="DISPY_DAEMON",
    help="Go on when the terminal is closed, without a console.",
)
@owner_options
@click.option("--insecure", is_flag=True, envvar="DISPY_INSECURE", help="Allow an empty secret beyond this machine.")
@click.option("-d", "--debug", is_flag=True, envvar="DISPY_DEBUG", help="Log everything that happens.")
@click.option(
    "--config",
    envvar="DISPY_CONFIG",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="INI file whose section [DEFAULT] has long option names; the command line and variables go before it.",
)
@click.option("--save_config", "--save-config", metavar="FILE", help="Write the options to this file and end.")
@click.option("--embedded", type=int, hidden=True)
@click.option("--node_port", hidden=True, expose_value=False, callback=_no_node_port)
@click.option("--launch", is_flag=True, hidden=True, help="Serve `dispy up` and `dispy down` by standard input.")
@click.version_option(settings.VERSION, prog_name="dispynode")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Offer the CPUs of this machine to programs that use dispy.

    The node waits for clients that know its secret, runs their functions and programs, and is free again when they
    are done. SIGINT (Ctrl-C) finishes the jobs that are here first, SIGTERM ends at once. Every option can be given
    by an environment variable as well (DISPY_CPUS, DISPY_HOST, ...).
    """
    set_up_logging(debug=options["debug"])
    try:
        if options["launch"]:
            from dispy.node.launch import launch  # few nodes are started so

            context.exit(launch())
        if options["embedded"] is not None:
            from dispy.node.embedded import run_embedded

            context.exit(run_embedded(options["embedded"]))
        if options["save_config"]:
            save_config(options["save_config"], options, _NOT_SAVED)
            return
        credentials = find_credentials(
            secret=options["secret"],
            secret_file=options["secret_file"],
            certfile=options["certfile"],
            keyfile=options["keyfile"],
            cafile=options["cafile"],
            insecure=options["insecure"],
        )
        node_settings = _node_settings(options, credentials)
        mask_secrets()
        if options["unsafe_setup"]:
            logger.warning("--unsafe_setup has no effect: %s", _SETUP_PLACE)
        context.exit(run(node_settings, daemon=options["daemon"]))
    except SettingsError as error:
        raise click.UsageError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the process."""
    command.main(args=None if arguments is None else list(arguments), prog_name="dispynode")


def _node_settings(options: Mapping[str, Any], credentials: Credentials) -> NodeSettings:
    base_port = settings.base_port(options["base_port"])
    prefix = options["dest_path_prefix"]
    return NodeSettings(
        name=options["name"] or socket.gethostname(),
        prefix=Path(prefix).expanduser() if prefix else _default_prefix(options["user"]),
        credentials=credentials,
        admin=find_admin_credentials(
            credentials, secret=options["admin_secret"], secret_file=options["admin_secret_file"]
        ),
        group=options["group"],
        hosts=options["host"],
        interfaces=settings.names(settings.variable("DISPY_INTERFACES")),
        base_port=base_port,
        insist_on_port=_was_typed("base_port"),
        multicast=settings.multicast(options["ipv4_udp_multicast"]),
        ext_hosts=tuple(place_named(each, 0, "--ext_host") for each in options["ext_host"]),
        joins=tuple(place_named(each, base_port, "--join") for each in options["join"]),
        clean=options["clean"],
        **owner_settings(options),
    )


def _default_prefix(user: str | None) -> Path:
    """Another user cannot enter root's cache directory."""
    return Path("/var/cache/dispy") / user if user else settings.default_prefix()


def _was_typed(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


if __name__ == "__main__":
    main()
