"""The interfaces of this machine, IPv4 and IPv6: where discovery speaks, whom it hears, where daemons listen."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from dispy.errors import SettingsError
from dispy.secrets import Credentials
from dispy.settings import USUAL_MULTICAST, Multicast

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class InterfaceAddress(Struct, frozen=True):
    """An address of an interface that is up."""

    name: str
    address: str
    """A link-local one with its interface: `fe80::1%eth0`."""
    broadcast: str
    """Where all hosts on it hear us; empty when it has no broadcast (IPv6 never has)."""
    is_loopback: bool
    network: IPNetwork
    index: int = 0
    """The number of the interface."""

    @property
    def is_ipv6(self) -> bool:
        """Whether it is an IPv6 address."""
        return self.network.version == 6

    @property
    def is_link_local(self) -> bool:
        """Whether it means something on its own interface only."""
        return self.network.is_link_local


def interface_addresses(interfaces: tuple[str, ...] = ()) -> list[InterfaceAddress]:
    """The addresses of this machine, loopback first; only those named (by interface or address), if any.

    Raises:
        SettingsError: none of the names fits an interface or address that is up.
    """
    found, unknown = _select(interfaces)
    if interfaces and not found:
        raise SettingsError(not_up(unknown))
    return found


def missing_of(interfaces: tuple[str, ...]) -> list[str]:
    """Those that are not up."""
    return _select(interfaces)[1]


def not_up(missing: Iterable[str]) -> str:
    """That none of these interfaces and addresses is up, and which are."""
    there = ", ".join(f"{each.name} ({each.address})" for each in _select(())[0]) or "none"
    return f"no interface or address {', '.join(missing)} is up on this machine; there are: {there}"


def listen_hosts(
    credentials: Credentials, *, hosts: tuple[str, ...] = (), interfaces: tuple[str, ...] = ()
) -> list[str]:
    """Where a daemon listens: on `hosts` if given, else on the addresses of `interfaces`, else everywhere.

    With an empty secret (and not `insecure`) on loopback only.

    Raises:
        SettingsError: an interface is not there, or an empty secret forbids what is asked for.
    """
    if hosts:
        wanted = list(hosts)
    elif interfaces:
        there = [each.address for each in interface_addresses(interfaces)]
        # An IPv6 address that is still being checked for duplicates cannot be used yet.
        wanted = [address for address in there if can_be_used(address)] or there
    elif loopback_only(credentials):
        wanted = ["127.0.0.1"]
    else:
        wanted = ["0.0.0.0", "::"] if has_ipv6() else ["0.0.0.0"]
    if loopback_only(credentials):
        for host in wanted:
            if not is_loopback(host):
                raise SettingsError(
                    f"with an empty secret nobody may connect but from this machine, so {host} cannot be "
                    "listened on: set a secret, or allow everybody in with --insecure"
                )
    return wanted


class Scope:
    """On which interfaces we speak, and whom we hear."""

    def __init__(
        self, interfaces: tuple[str, ...], loopback_only: bool, multicast: Multicast = USUAL_MULTICAST
    ) -> None:
        self.multicast = multicast
        self._interfaces = interfaces
        self._loopback_only = loopback_only
        self._restricted = bool(interfaces) or loopback_only
        self.addresses: list[InterfaceAddress] = []
        """All that the interfaces had when last looked at."""
        self.missing: list[str] = []
        """Of the interfaces and addresses that were asked for, those that were not up then."""

    def refresh(self, tried: list[str]) -> list[InterfaceAddress]:
        """The addresses to speak on now; sentences about those that cannot be used go to `tried`.

        For IPv6 that is one address for each interface, and none of loopback: IPv4 reaches everybody there.
        """
        try:
            found, self.missing = _select(self._interfaces)
        except OSError as error:  # no descriptor is left, for example
            found = self.addresses
            tried.append(f"the interfaces of this machine cannot be looked at: {error.strerror or error}")
        tried.extend(f"{name}: no such interface or address is up" for name in self.missing)
        if self._loopback_only:
            names = dict.fromkeys(each.name for each in found if not each.is_loopback)
            tried.extend(f"{name}: not asked, because the secret is empty" for name in names)
            found = [each for each in found if each.is_loopback]
        self.addresses = found
        ipv4 = [each for each in found if not each.is_ipv6]
        mute = [each for each in ipv4 if not each.broadcast and (each.is_loopback or not self.multicast.instead)]
        tried.extend(f"{each.name}: {each.address} has no broadcast" for each in mute)
        return [each for each in ipv4 if each not in mute] + _one_per_interface(each for each in found if each.is_ipv6)

    def contains(self, address: str) -> bool:
        """Whether a datagram from there is for us."""
        if not self._restricted:
            return True
        plain, _, interface = address.partition("%")
        source = ipaddress.ip_address(plain)
        return any(source in each.network and interface in ("", each.name) for each in self.addresses)


def loopback_only(credentials: Credentials) -> bool:
    """Whether an empty secret keeps this process to its own machine."""
    return credentials.empty and not credentials.insecure


def has_ipv6() -> bool:
    """Whether sockets of this machine can speak IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def as_asked(host: str) -> str | bytes:
    """A name or address for `getaddrinfo`, which for text of any kind loads tables of all of Unicode."""
    return host.encode() if host.isascii() else host


def can_be_used(address: str) -> bool:
    """Whether sockets of this machine can be bound to an address now."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(as_asked(address), 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(where)
    except OSError:
        return False
    return True


def address_of(sender: tuple[Any, ...]) -> str:
    """The address in what the socket module calls an address; a link-local one with its interface."""
    address = str(sender[0])
    if len(sender) > 3 and sender[3] and "%" not in address:
        with contextlib.suppress(OSError):  # the interface is gone: nobody can be reached there anyway
            return f"{address}%{socket.if_indextoname(sender[3])}"
    return address


def shown(host: str, port: int) -> str:
    """Host and port as people write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_own(host: str) -> bool:
    """Whether an address is one of this machine."""
    return is_loopback(host) or host in {each.address for each in interface_addresses()}


def is_loopback(host: str) -> bool:
    """Whether connections with this address (or `localhost`) cannot leave the machine."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):  # a name: not loopback as far as we know
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


def is_link_local(host: str) -> bool:
    """Whether an address means something on one network only."""
    with contextlib.suppress(ValueError):  # a name means the same everywhere as far as we know
        return ipaddress.ip_address(host.partition("%")[0]).is_link_local
    return False


def _one_per_interface(found: Iterable[InterfaceAddress]) -> list[InterfaceAddress]:
    """The IPv6 address of each interface that others can use best: not one that needs the interface's name."""
    chosen: dict[str, InterfaceAddress] = {}
    for each in found:
        if not each.is_loopback and (each.name not in chosen or chosen[each.name].is_link_local):
            chosen[each.name] = each
    return list(chosen.values())


def _select(interfaces: tuple[str, ...]) -> tuple[list[InterfaceAddress], list[str]]:
    """The addresses that fit, and the names that fit nothing."""
    import psutil

    states = psutil.net_if_stats()
    everything = [
        _interface_address(name, each.address, each.netmask, each.broadcast)
        for name, addresses in psutil.net_if_addrs().items()
        if name not in states or states[name].isup
        for each in addresses
        if each.family in (socket.AF_INET, socket.AF_INET6)
    ]
    everything.sort(key=lambda each: (not each.is_loopback, each.is_ipv6))
    if not interfaces:
        return everything, []
    wanted = set(interfaces)
    found = [each for each in everything if wanted & _names(each)]
    known = {name for each in found for name in _names(each)}
    return found, sorted(wanted - known)


def _names(each: InterfaceAddress) -> set[str]:
    return {each.name, each.address, each.address.partition("%")[0]}


def _interface_address(name: str, address: str, netmask: str | None, broadcast: str | None) -> InterfaceAddress:
    plain = address.partition("%")[0]
    index = 0
    with contextlib.suppress(OSError):  # the interface has just gone; using it will say so
        index = socket.if_nametoindex(name)
    if ":" in plain:
        prefix = bin(int(ipaddress.IPv6Address(netmask))).count("1") if netmask else 128
        network: IPNetwork = ipaddress.IPv6Network((plain, prefix), strict=False)
        address = f"{plain}%{name}" if network.is_link_local else plain
        return InterfaceAddress(name, address, "", network.is_loopback, network, index)
    network = ipaddress.IPv4Network((plain, netmask or "255.255.255.255"), strict=False)
    if network.is_loopback:
        # Loopback claims to have no broadcast, but this address reaches every socket of the host.
        broadcast = str(network.broadcast_address)
    return InterfaceAddress(name, address, broadcast or "", network.is_loopback, network, index)
