"""The options of the sockets on which links run."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

NOTSENT_LOWAT: Final = 128 << 10
"""Bytes that may wait in the kernel: what is sent next (a heartbeat) is not long behind a file."""
KEEPALIVE_IDLE: Final = 30
KEEPALIVE_INTERVAL: Final = 10


def tune(sock: socket.socket) -> None:
    """Socket options of links: small messages at once, little waiting in the kernel, dead peers noticed."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_NOTSENT_LOWAT", NOTSENT_LOWAT),
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            # An optimisation; a kernel that knows the name may still refuse the value.
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
