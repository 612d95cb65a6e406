"""Who a client is: what proves it, and what it only says."""

from __future__ import annotations

import contextlib
import ipaddress
import pwd
import socket
from pathlib import Path
from typing import Final, NamedTuple

from dispy.model import Holder
from dispy.wire.datagrams import clean_name

_CLAIM: Final = " (as it says)"
_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


class Identity(NamedTuple):
    """Who a cluster belongs to."""

    user: str
    """user@host, or the name in a certificate."""
    proved: bool

    @property
    def key(self) -> str:
        """By what shares and bounds are counted: somebody who only says to be a user is not counted as that one."""
        return self.user if self.proved else f"{self.user}{_CLAIM}"

    @classmethod
    def of_key(cls, key: str) -> Identity:
        """The one that has this key."""
        return cls(key.removesuffix(_CLAIM), not key.endswith(_CLAIM))


def whose(user: str, claim: Holder, *, proved: bool) -> str:
    """Whose a cluster is, for people: who is proved, and what its program says where that is something else."""
    if not proved:
        return f"{user} (claimed)"
    said = f"{clean_name(claim.user)}@{clean_name(claim.host)}"
    return user if said == user else f"{user} (says {said})"


def identity_of(holder: Holder, proof: str) -> Identity:
    """Who a client is that says it is `holder`; `proof` is what is known of that (empty: nothing)."""
    if proof:
        return Identity(clean_name(proof), True)
    return Identity(f"{clean_name(holder.user)}@{clean_name(holder.host)}", False)


def prove_by_uid(address: str, port: int, own_port: int) -> str:
    """Whose socket on this machine a connection comes from, as user@host; empty where that cannot be seen.

    Reads files of the kernel.

    Args:
        address: of the other side.
        port: of the other side.
        own_port: at which the connection was accepted.

    Raises:
        OSError: they cannot be read now.
    """
    for table in _TABLES:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # another system, or one that hides it
            uid = uid_of(table.read_text(encoding="ascii"), address, port, own_port)
            if uid is not None:
                return f"{_name_of(uid)}@{socket.gethostname()}"
    return ""


def uid_of(table: str, address: str, port: int, peer_port: int) -> int | None:
    """The owner of the socket at `address` and `port` that is connected to `peer_port`, by /proc/net/tcp. Pure."""
    there = f":{port:04X} "
    for line in table.splitlines()[1:]:
        if there not in line:  # a machine with a crowd on it has thousands of lines
            continue
        words = line.split()
        local, _, local_port = words[1].partition(":")
        _, _, remote_port = words[2].partition(":")
        if int(local_port, 16) == port and int(remote_port, 16) == peer_port and _same(_address(local), address):
            return int(words[7])
    return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """What the kernel writes: 32-bit words of the machine's order, in hexadecimal digits."""
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    return ipaddress.ip_address(b"".join(words))


def _same(first: ipaddress.IPv4Address | ipaddress.IPv6Address, text: str) -> bool:
    second = ipaddress.ip_address(text.partition("%")[0])
    return _plain(first) == _plain(second)


def _plain(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
