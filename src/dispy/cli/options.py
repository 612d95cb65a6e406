"""Options that several commands share, with the same meaning as the variables in `dispy.settings`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dispy import settings
from dispy.clicknumbers import AnyWholeNumber

if TYPE_CHECKING:
    from dispy.secrets import Credentials

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach nodes and by what to be known to them."""

    secret: str | None
    secret_file: str | None
    certfile: str | None
    keyfile: str | None
    cafile: str | None
    group: str | None
    dispy_port: int | None
    insecure: bool

    def credentials(self) -> Credentials:
        """The credentials that these options, the environment and files give.

        Raises:
            SecretError: they give none that is usable.
        """
        from dispy.secrets import find_credentials

        return find_credentials(
            secret=self.secret,
            secret_file=self.secret_file,
            certfile=self.certfile,
            keyfile=self.keyfile,
            cafile=self.cafile,
            insecure=self.insecure,
        )

    @property
    def group_name(self) -> str:
        """The group, empty for none."""
        return (settings.variable("DISPY_GROUP") or "") if self.group is None else self.group

    @property
    def base_port(self) -> int:
        """The base port."""
        return settings.base_port(self.dispy_port)


_CONNECTION = (
    click.option("-s", "--secret", metavar="TEXT", help="Secret that nodes must share (DISPY_SECRET)."),
    click.option("--secret-file", metavar="FILE", help="File that holds the secret (DISPY_SECRET_FILE)."),
    click.option("--certfile", metavar="FILE", help="Certificate, PEM (DISPY_CERTFILE)."),
    click.option("--keyfile", metavar="FILE", help="Private key of the certificate, PEM (DISPY_KEYFILE)."),
    click.option("--cafile", metavar="FILE", help="Authority of the nodes' certificates, PEM (DISPY_CAFILE)."),
    click.option("--group", metavar="NAME", help="Only nodes of this group (DISPY_GROUP)."),
    click.option(
        "-p",
        "--dispy_port",
        type=AnyWholeNumber(),
        metavar="PORT",
        help="Base port; nodes listen on the next one (DISPY_PORT).",
    ),
    click.option("--insecure", is_flag=True, help="Allow an empty secret beyond this machine (DISPY_INSECURE)."),
)


def credential_options(command: F) -> F:
    """Add only those that say by what this process is known; they arrive as keywords of the same names."""
    for option in reversed(_CONNECTION[:5]):
        command = option(command)
    return command


def connection_options(command: F) -> F:
    """Add the options of `Connection` to a command; they arrive as keywords of the same names."""
    for option in reversed(_CONNECTION):
        command = option(command)
    return command


def take_connection(options: dict[str, Any]) -> Connection:
    """Take the connection options out of a command's keywords."""
    return Connection(**{name: options.pop(name) for name in Connection.__dataclass_fields__})


def _either_dash(name: str) -> str:
    """Let `--dispy-port` stand for `--dispy_port` and the other way round."""
    return name.replace("-", "_")


NORMALIZED: dict[str, Any] = {"help_option_names": ["-h", "--help"], "token_normalize_func": _either_dash}
"""Context settings of every command that has options."""
