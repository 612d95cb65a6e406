"""Sockets that reach many: IPv4 broadcast and multicast, IPv6 multicast. What is said over them is in `discovery`.

The well-known UDP ports are shared by all processes of a host; only what goes to many reaches every one of them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from dispy.settings import Multicast
from dispy.wire.interfaces import InterfaceAddress, address_of, has_ipv6

HOPS: Final = 1
"""Multicasts stay on their network."""
_DATAGRAMS_PER_WAKE: Final = 64


class Received(NamedTuple):
    """A datagram and who sent it."""

    data: bytes
    address: str
    sender: tuple[Any, ...]
    """What to send a reply to."""


class Ears:
    """The sockets at one shared UDP port, one for IPv4 and one for IPv6, which hear what goes to everybody."""

    def __init__(self, port: int, multicast: Multicast) -> None:
        """Open the sockets; without IPv6 one will do.

        Raises:
            OSError: another program has the port for itself.
        """
        self._multicast = multicast
        self.sockets = [_shared_socket(socket.AF_INET, port)]
        self.problem = ""
        """Why nothing is heard over IPv6 although this machine has it."""
        if has_ipv6():
            try:
                self.sockets.append(_shared_socket(socket.AF_INET6, port))
            except OSError as error:
                self.problem = f"nothing is heard over IPv6: UDP port {port}: {error_text(error)}"
        self._joined: list[InterfaceAddress] = []

    def join(self, addresses: Iterable[InterfaceAddress]) -> list[str]:
        """Hear the multicasts of these interfaces, and of no others; returns sentences about what failed."""
        # By interface, because an interface can be joined once only, however many addresses it has.
        by_interface = {(each.name, each.is_ipv6): each for each in addresses if not each.is_loopback}
        wanted = list(by_interface.values())
        if wanted == self._joined:
            return []
        for each in self._joined:
            with contextlib.suppress(OSError):  # its interface may be gone, and the membership with it
                self._change_membership(each, join=False)
        failed = []
        for each in wanted:
            try:
                self._change_membership(each, join=True)
            except OSError as error:
                failed.append(f"{each.name}: multicasts are not heard at {each.address}: {error_text(error)}")
        self._joined = wanted
        return failed

    def _change_membership(self, each: InterfaceAddress, *, join: bool) -> None:
        if not each.is_ipv6:
            membership = socket.inet_aton(self._multicast.ipv4_group) + socket.inet_aton(each.address)
            option = socket.IP_ADD_MEMBERSHIP if join else socket.IP_DROP_MEMBERSHIP
            self.sockets[0].setsockopt(socket.IPPROTO_IP, option, membership)
        elif len(self.sockets) > 1:
            membership = socket.inet_pton(socket.AF_INET6, self._multicast.ipv6_group) + struct.pack("@I", each.index)
            option = socket.IPV6_JOIN_GROUP if join else socket.IPV6_LEAVE_GROUP
            self.sockets[1].setsockopt(socket.IPPROTO_IPV6, option, membership)

    def send(self, data: bytes, each: InterfaceAddress, port: int) -> str:
        """Send to all on the network of an interface; returns the address that this was.

        Raises:
            OSError: it cannot be sent there.
        """
        target = everybody(each, port, self._multicast)
        if each.is_ipv6:
            if len(self.sockets) < 2:
                raise OSError(self.problem)
            self.sockets[1].sendto(data, target)
        else:
            _speak_on(self.sockets[0], each)
            self.sockets[0].sendto(data, target)
        return str(target[0])

    def close(self) -> None:
        """Close the sockets."""
        for sock in self.sockets:
            sock.close()


def everybody(each: InterfaceAddress, port: int, multicast: Multicast) -> tuple[Any, ...]:
    """Where all on the network of an interface hear us."""
    if each.is_ipv6:
        return (multicast.ipv6_group, port, 0, each.index)
    return (multicast.ipv4_group if multicast.instead and not each.is_loopback else each.broadcast, port)


def speaking_socket(each: InterfaceAddress) -> socket.socket:
    """A socket that speaks from an address and gets the replies.

    Raises:
        OSError: the address is not one of this machine (any more).
    """
    sock = _datagram_socket(socket.AF_INET6 if each.is_ipv6 else socket.AF_INET)
    try:
        _speak_on(sock, each)
        plain = each.address.partition("%")[0]
        sock.bind((plain, 0, 0, each.index if each.is_link_local else 0) if each.is_ipv6 else (plain, 0))
    except OSError:
        sock.close()
        raise
    return sock


def received(sock: socket.socket, limit: int) -> list[Received]:
    """What waits in the socket, at most so much that the loop stays responsive."""
    result = []
    for _ in range(_DATAGRAMS_PER_WAKE):
        try:
            data, sender = sock.recvfrom(limit)
        except OSError:
            # Nothing is left; or an earlier send was refused, which the next send reports again.
            break
        result.append(Received(data, address_of(sender), sender))
    return result


def error_text(error: OSError) -> str:
    """What went wrong, in words."""
    return error.strerror or str(error)


def _speak_on(sock: socket.socket, each: InterfaceAddress) -> None:
    if each.is_ipv6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, each.index)
    elif not each.is_loopback:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, ipaddress.IPv4Address(each.address).packed)


def _datagram_socket(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOPS)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, HOPS)
    return sock


def _shared_socket(family: socket.AddressFamily, port: int) -> socket.socket:
    sock = _datagram_socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "darwin":
            # There SO_REUSEADDR alone does not let several processes receive the same broadcast.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", port))
    except OSError:
        sock.close()
        raise
    return sock
