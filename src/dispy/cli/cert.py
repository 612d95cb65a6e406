"""`dispy cert`: a small certificate authority, and certificates for nodes, clients, schedulers and admins."""

from __future__ import annotations

from pathlib import Path

import click

from dispy.cli.options import NORMALIZED

DIRECTORY = "dispy-certificates"
_SIDES = {"scheduler": (("cluster_", " towards programs"), ("node_", " towards nodes"))}
"""Processes whose options say towards whom."""

_directory = click.option(
    "-o",
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=DIRECTORY,
    show_default=True,
    help="Where the authority and its certificates are.",
)


@click.group(short_help="Make a certificate authority and certificates.", context_settings=NORMALIZED)
def cert() -> None:
    """Make a certificate authority, and certificates for nodes, clients, schedulers and admins.

    Copy its ca.pem and a certificate with its key to each machine, and start nodes and clients with --certfile,
    --keyfile and --cafile. Certificates then stand in place of the secret.
    """


@cert.command(context_settings=NORMALIZED)
@_directory
@click.option("--name", default="dispy authority", show_default=True, help="Name that the certificate carries.")
def ca(directory: Path, name: str) -> None:
    """Make the authority: ca.pem for every machine, ca.key for nobody but you."""
    from dispy.certificates import make_ca

    files = make_ca(directory, name)
    click.echo(f"{files.certfile}\n{files.keyfile}  (keep this key to yourself)")


def _make(role: str, summary: str) -> None:
    @cert.command(role, help=summary, context_settings=NORMALIZED)
    @click.argument("name")
    @_directory
    def make(name: str, directory: Path) -> None:
        from dispy.certificates import make_certificate

        files = make_certificate(directory, role, name)
        click.echo(f"{files.certfile}\n{files.keyfile}")
        for side, whom in _SIDES.get(role, (("", ""),)):
            words = ("certfile", files.certfile.name), ("keyfile", files.keyfile.name), ("cafile", "ca.pem")
            use = " ".join(f"--{side}{option} {file}" for option, file in words)
            click.echo(f"use them{whom} with: {use}", err=True)


_make("scheduler", "Make certificate and key for a machine that runs dispyscheduler.")
_make("node", "Make certificate and key for a machine that runs dispynode.")
_make("client", "Make certificate and key for a user or program that submits jobs.")
_make("admin", "Make certificate and key for who steers nodes by `dispy admin`.")


@cert.command(context_settings=NORMALIZED)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def show(file: Path) -> None:
    """Say what a certificate is for, who made it and when it ends."""
    from dispy.certificates import describe_certificate

    info = describe_certificate(file)
    use = "authority" if info.authority else (info.role.value if info.role else "no role of dispy")
    click.echo(f"name        {info.name}")
    click.echo(f"use         {use}")
    click.echo(f"issued by   {info.issuer}")
    click.echo(f"ends        {info.expires_at:%Y-%m-%d %H:%M} UTC")
    click.echo(f"SHA-256     {info.fingerprint}")
