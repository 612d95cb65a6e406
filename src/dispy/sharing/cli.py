"""The `dispyscheduler` command: its options, and what becomes of them. `dispy.sharing.running` does the rest.

Exit codes: 0 it was told to end, 1 it could not start or go on (one sentence says why), 2 wrong usage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from dispy import settings
from dispy.certificates import describe_certificate
from dispy.clicknumbers import Number, WholeNumber
from dispy.commandline import comma_separated, set_up_logging
from dispy.configfile import read_config, save_config
from dispy.errors import SettingsError
from dispy.logs import logger
from dispy.masking import mask_secrets
from dispy.model import Role
from dispy.node.options import size
from dispy.parameters import option_of_today
from dispy.scheduler.fairness import Policy
from dispy.secrets import Credentials, find_admin_credentials, find_credentials
from dispy.sharing.running import run
from dispy.sharing.settings import SharingSettings

_NOT_SAVED: Final = {"config", "save_config", "node_secret", "cluster_secret", "admin_secret", "clean"}
"""Secrets stay out of files that others may read; `clean` is for one start."""
_POLICIES: Final = {
    "fair_cluster_scheduler": Policy.FAIR_CLUSTER,
    "early_cluster_scheduler": Policy.EARLY_CLUSTER,
    "fifo_cluster_scheduler": Policy.FIFO,
}
_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _option(*names: str, envvar: str | None, help: str, **more: Any) -> _Decorator:
    """An option, under both spellings of its long names."""
    spellings = dict.fromkeys(
        each for name in names for each in ((name, name.replace("_", "-")) if name.startswith("--") else (name,))
    )
    return click.option(*spellings, envvar=envvar, help=help, **more)


def _no_monitor(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        raise click.UsageError(
            "--httpd: the web monitor is not in this release; `dispy status`, `dispy jobs` and `dispy top` show what "
            "it showed"
        )


def _credential_options(side: str, whom: str) -> list[_Decorator]:
    """The options for one side's secret and certificates."""
    variable = f"DISPY_{side.upper()}"
    return [
        _option(
            f"--{side}_secret",
            envvar=f"{variable}_SECRET",
            metavar="SECRET",
            help=f"The secret between this scheduler and {whom} (default: as of every program of this user). Other "
            "users may see it in `ps`: a file is better.",
        ),
        _option(
            f"--{side}_secret_file",
            envvar=f"{variable}_SECRET_FILE",
            metavar="FILE",
            help=f"File with the secret between this scheduler and {whom}.",
        ),
        _option(
            f"--{side}_certfile",
            envvar=f"{variable}_CERTFILE",
            metavar="FILE",
            help=f"Certificate of this scheduler towards {whom} (PEM).",
        ),
        _option(
            f"--{side}_keyfile",
            envvar=f"{variable}_KEYFILE",
            metavar="FILE",
            help="Private key of that certificate (PEM).",
        ),
        _option(
            f"--{side}_cafile",
            envvar=f"{variable}_CAFILE",
            metavar="FILE",
            help=f"Authority that certificates of {whom} come from (PEM).",
        ),
    ]


_OPTIONS: Final[Sequence[_Decorator]] = (
    _option(
        "-n",
        "--node",
        "--nodes",
        envvar="DISPY_NODES",
        multiple=True,
        default=("*",),
        metavar="HOST",
        callback=comma_separated,
        help="Node that may be used: HOST, HOST:PORT or a pattern with * (repeatable; default: all that answer).",
    ),
    _option(
        "-i",
        "--host",
        envvar="DISPY_HOST",
        multiple=True,
        metavar="HOST",
        callback=comma_separated,
        help="Address or name to listen on (repeatable; default: all, or what DISPY_INTERFACES says).",
    ),
    _option(
        "--ext_host",
        envvar="DISPY_EXT_HOST",
        default="",
        metavar="HOST",
        help="Where others reach this machine, behind NAT for example: nodes show it for who holds them.",
    ),
    click.option(
        *("-p", "--dispy_port", "--dispy-port", "--port", "base_port"),
        type=WholeNumber(1, 65533),
        envvar="DISPY_PORT",
        metavar="PORT",
        help=f"Base port (default {settings.BASE_PORT}): nodes that join dial it, programs the one two above.",
    ),
    _option(
        "--ipv4_udp_multicast",
        envvar="DISPY_IPV4_UDP_MULTICAST",
        is_flag=True,
        help="Ask for nodes by IPv4 multicast instead of broadcast.",
    ),
    _option("--name", envvar="DISPY_NAME", default="", metavar="NAME", help="Name to show (default: host name)."),
    _option(
        "--group",
        envvar="DISPY_GROUP",
        default="",
        metavar="NAME",
        help="Separates environments on one network: programs and nodes of other groups do not meet.",
    ),
    *_credential_options("node", "nodes"),
    *_credential_options("cluster", "programs"),
    _option(
        "--admin_secret",
        envvar="DISPY_ADMIN_SECRET",
        metavar="SECRET",
        help="Let those steer every cluster that prove this secret.",
    ),
    _option("--admin_secret_file", envvar="DISPY_ADMIN_SECRET_FILE", metavar="FILE", help="File with that secret."),
    _option(
        "--pulse_interval",
        envvar="DISPY_PULSE_INTERVAL",
        type=Number(0.1, 1000),
        metavar="S",
        help="Seconds between heartbeats; nodes and programs are lost after five (default: msg_timeout / 5).",
    ),
    _option(
        "--ping_interval",
        envvar="DISPY_PING_INTERVAL",
        type=Number(0, 1000),
        default=0.0,
        metavar="S",
        help="Seconds between questions for nodes (default 0: now and then, while jobs wait).",
    ),
    _option(
        "--msg_timeout",
        envvar="DISPY_MSG_TIMEOUT",
        type=Number(1),
        default=settings.GRACE_TIMEOUT,
        metavar="S",
        help="Seconds of silence after which a link is lost.",
    ),
    _option(
        "--zombie_interval",
        envvar="DISPY_ZOMBIE_INTERVAL",
        type=Number(0),
        default=settings.ZOMBIE_INTERVAL / 60,
        metavar="MIN",
        help="Minutes after which the cluster of a program that is gone is given up, its results too, once it has no "
        "pending jobs (0: never).",
    ),
    _option(
        "--dest_path_prefix",
        envvar="DISPY_SCHEDULER_DIR",
        metavar="DIR",
        help="Directory for all that the scheduler keeps (default: in the user's state directory).",
    ),
    _option(
        "--max_file_size",
        envvar="DISPY_MAX_FILE_SIZE",
        default="0",
        metavar="SIZE",
        help="Refuse larger files (default 0: no limit).",
    ),
    _option(
        "--clean",
        envvar=None,
        is_flag=True,
        help="Forget everything: remove what schedulers keep in the directory first.",
    ),
    _option(
        "--fair_cluster_scheduler",
        envvar="DISPY_FAIR_CLUSTER_SCHEDULER",
        is_flag=True,
        help="Serve the cluster that was not served for longest (default: fair between users).",
    ),
    _option(
        "--early_cluster_scheduler",
        envvar="DISPY_EARLY_CLUSTER_SCHEDULER",
        is_flag=True,
        help="Serve the cluster that was made first.",
    ),
    _option(
        "--fifo_cluster_scheduler",
        envvar="DISPY_FIFO_CLUSTER_SCHEDULER",
        is_flag=True,
        help="Serve jobs in the order of their priority and submission, whosesoever they are.",
    ),
    _option(
        "--max_cpus_per_user",
        envvar="DISPY_MAX_CPUS_PER_USER",
        type=WholeNumber(0),
        default=0,
        metavar="N",
        help="CPUs that the jobs of one user may occupy at once (default 0: no limit).",
    ),
    _option(
        "--max_jobs_per_user",
        envvar="DISPY_MAX_JOBS_PER_USER",
        type=WholeNumber(0),
        default=0,
        metavar="N",
        help="Jobs that one user may have pending; further ones wait in their programs (default 0: no limit).",
    ),
    _option(
        "--cooperative",
        envvar="DISPY_COOPERATIVE",
        is_flag=True,
        help="Programs trust each other: each may steer every cluster, and use more CPUs of a node than it offers.",
    ),
    _option(
        "--cleanup_nodes",
        envvar="DISPY_CLEANUP_NODES",
        is_flag=True,
        help="Let nodes remove files of jobs also where the program wants to keep them.",
    ),
    click.option("--httpd", is_flag=True, expose_value=False, hidden=True, callback=_no_monitor),
    _option(
        "--daemon",
        envvar="DISPY_DAEMON",
        is_flag=True,
        help="Go on when the terminal is closed, without a console.",
    ),
    _option("--insecure", envvar="DISPY_INSECURE", is_flag=True, help="Allow an empty secret beyond this machine."),
    _option("-d", "--debug", envvar="DISPY_DEBUG", is_flag=True, help="Log everything that happens."),
    _option(
        "--config",
        envvar="DISPY_SCHEDULER_CONFIG",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=read_config,
        help="INI file whose section [DEFAULT] has long option names; the command line and variables go before it.",
    ),
    _option("--save_config", envvar=None, metavar="FILE", help="Write the options to this file and end."),
)


def _with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(
    "dispyscheduler",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "token_normalize_func": option_of_today,
    },
)
@_with_options
@click.version_option(settings.VERSION, prog_name="dispyscheduler")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Share nodes between many programs.

    Programs with a SharedJobCluster give their jobs to this scheduler, which runs them on its nodes: fairly between
    users, and whatever happens to programs, nodes or itself. SIGINT (Ctrl-C) and SIGTERM end it; what is left is on
    its disk for the next start. Every option can be given by an environment variable as well.
    """
    set_up_logging(debug=options["debug"])
    try:
        if options["save_config"]:
            save_config(options["save_config"], options, _NOT_SAVED)
            return
        _log_alike()
        sharing = sharing_settings(options)
        mask_secrets()
        context.exit(run(sharing, daemon=options["daemon"]))
    except SettingsError as error:
        raise click.UsageError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the process."""
    command.main(args=None if arguments is None else list(arguments), prog_name="dispyscheduler")


def sharing_settings(options: Mapping[str, Any]) -> SharingSettings:
    """What the options say.

    Raises:
        SettingsError: a value is not usable, or two exclude each other.
    """
    nodes, clients = _credentials(options, "node"), _credentials(options, "cluster")
    prefix = options["dest_path_prefix"]
    pulse = options["pulse_interval"] or options["msg_timeout"] / 5
    return SharingSettings(
        prefix=Path(prefix).expanduser().absolute() if prefix else settings.scheduler_dir(),
        nodes=nodes,
        clients=clients,
        admin=find_admin_credentials(clients, secret=options["admin_secret"], secret_file=options["admin_secret_file"]),
        name=options["name"],
        group=options["group"],
        hosts=options["host"],
        interfaces=settings.names(settings.variable("DISPY_INTERFACES")),
        ext_host=options["ext_host"],
        base_port=settings.base_port(options["base_port"]),
        multicast=settings.multicast(options["ipv4_udp_multicast"]),
        use=options["node"],
        pulse_interval=pulse,
        ping_interval=options["ping_interval"] or None,
        zombie_interval=options["zombie_interval"] * 60 or float("inf"),
        max_file_size=size("--max_file_size", options["max_file_size"]),
        policy=_policy(options),
        max_cpus_per_user=options["max_cpus_per_user"],
        max_jobs_per_user=options["max_jobs_per_user"],
        cooperative=options["cooperative"],
        cleanup_nodes=options["cleanup_nodes"],
        clean=options["clean"],
    )


def _log_alike() -> None:
    """What the rooms that are the programs' as well have to say is told as a daemon tells things."""
    root = logging.getLogger(logger.name)
    logger.handlers[:] = root.handlers
    logger.setLevel(root.level)


def _policy(options: Mapping[str, Any]) -> Policy:
    wanted = [name for name in _POLICIES if options[name]]
    if len(wanted) > 1:
        raise SettingsError(f"--{wanted[0]} and --{wanted[1]} exclude each other: give one of them")
    return _POLICIES[wanted[0]] if wanted else Policy.FAIR


def _credentials(options: Mapping[str, Any], side: str) -> Credentials:
    if certfile := options[f"{side}_certfile"]:
        _check_kind(certfile, side)
    return find_credentials(
        secret=options[f"{side}_secret"],
        secret_file=options[f"{side}_secret_file"],
        certfile=options[f"{side}_certfile"],
        keyfile=options[f"{side}_keyfile"],
        cafile=options[f"{side}_cafile"],
        insecure=options["insecure"],
    )


def _check_kind(certfile: str, side: str) -> None:
    """Nodes serve whoever may schedule; programs trust only what was made for a scheduler, not a user's certificate.

    Raises:
        SettingsError: it is for something else.
    """
    role = describe_certificate(Path(certfile)).role
    fitting = {None, Role.SCHEDULER} if side == "cluster" else {None, Role.SCHEDULER, Role.CLIENT, Role.ADMIN}
    if role not in fitting:
        whom = "programs" if side == "cluster" else "nodes"
        raise SettingsError(
            f"--{side}_certfile {certfile} was made for a {role}; {whom} do not take it for a scheduler's: "
            "`dispy cert scheduler NAME` makes one"
        )


if __name__ == "__main__":
    main()
