"""What the commands of the daemons share: lists, logging, and what they say to a service manager."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import Sequence
from typing import Final

import click

from dispy import settings

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")


def comma_separated(_context: click.Context, _parameter: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    """Several values by repeating an option or by commas."""
    return tuple(part for each in value for part in settings.names(each))


def set_up_logging(*, debug: bool) -> None:
    """Let everything that dispy says go to standard error, with time and level.

    Raises:
        click.UsageError: DISPY_LOGLEVEL is no level.
    """
    word = settings.variable("DISPY_LOGLEVEL") or "info"
    if word.lower() not in _LEVELS:
        raise click.UsageError(f"DISPY_LOGLEVEL={word!r}: use one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger("dispy")
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.propagate = False
    root.setLevel(logging.DEBUG if debug else word.upper())


def tell_manager(address: str, state: str) -> None:
    """The notification protocol of service managers, where one listens (`address`: its NOTIFY_SOCKET)."""
    if not address:
        return
    # A manager that does not listen must not stop the daemon.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())
