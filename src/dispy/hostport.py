"""Hosts and ports as people write them. Pure."""

from __future__ import annotations

import ipaddress

from dispy.errors import SettingsError


def place_named(text: str, usual_port: int, option: str) -> tuple[str, int]:
    """Host and port of HOST, HOST:PORT, an IPv6 address, or [IPv6]:PORT.

    Raises:
        SettingsError: it is none of these; the message has the option, or the parameter, that it was given for.
    """
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    elif ":" in text and not _is_ipv6(text):
        host = ""
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not host or (port and not is_port):
        given = f", not {port!r}" if port and not is_port else ""
        raise SettingsError(f"{option} {text!r}: give HOST or HOST:PORT; a port is a number from 1 to 65535{given}")
    return host, int(port) if port else usual_port


def host_and_port(text: str) -> tuple[str, int | None]:
    """Host and port, if it has one, of the same forms, and of patterns in place of the host; nothing is refused."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or (":" in host and not host.endswith("]")):
        return text.strip("[]"), None
    return host.strip("[]"), int(port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
