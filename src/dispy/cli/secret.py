"""`dispy secret`: show, set and make the secret that processes of one user share."""

from __future__ import annotations

import sys

import click

from dispy.cli.options import NORMALIZED


@click.group(context_settings=NORMALIZED)
def secret() -> None:
    """Show, set or make the secret that clients and nodes share.

    To make another machine's secret equal to this one's:  dispy secret show | ssh HOST dispy secret set
    """


@secret.command(context_settings=NORMALIZED)
def show() -> None:
    """Print the secret (made now if there is none); where it comes from goes to standard error."""
    from dispy.secrets import show_secret

    found = show_secret()
    click.echo(f"from {found.source}", err=True)
    click.echo(found.text)


@secret.command("set", context_settings=NORMALIZED)
def set_() -> None:
    """Read a secret from standard input and keep it in your file, in place of the one that is there."""
    from dispy.secrets import store_secret

    text = click.prompt("Secret", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
    stored = store_secret(text)
    click.echo(f"kept in {stored.path}", err=True)
    _warn(stored.overridden_by)


@secret.command(context_settings=NORMALIZED)
@click.option(
    "--replace", is_flag=True, help="Make a new one although there is one: who has the old one is locked out."
)
def make(replace: bool) -> None:
    """Make a random secret in your file."""
    from dispy.secrets import make_secret

    stored = make_secret(replace=replace)
    click.echo(f"made {stored.path}", err=True)
    _warn(stored.overridden_by)


def _warn(overridden_by: str | None) -> None:
    if overridden_by:
        click.echo(f"not used as things are: {overridden_by} goes before it", err=True)
