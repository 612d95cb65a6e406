"""The IPv4 interfaces of this machine: where discovery speaks, whom it hears, where daemons listen."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from dataclasses import dataclass

from dispy.errors import SettingsError
from dispy.secrets import Credentials


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An IPv4 address of an interface that is up."""

    name: str
    address: str
    broadcast: str
    """Where all hosts on it hear us; empty when it has no broadcast."""
    is_loopback: bool
    network: ipaddress.IPv4Network


def interface_addresses(interfaces: tuple[str, ...] = ()) -> list[InterfaceAddress]:
    """The IPv4 addresses of this machine, loopback first; only those named (by interface or address), if any.

    Raises:
        SettingsError: none of the names fits an interface or address that is up.
    """
    found, unknown = _select(interfaces)
    if interfaces and not found:
        there = ", ".join(f"{each.name} ({each.address})" for each in _select(())[0]) or "none"
        raise SettingsError(
            f"no interface or IPv4 address {', '.join(unknown)} is up on this machine; there are: {there}"
        )
    return found


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
        wanted = [each.address for each in interface_addresses(interfaces)]
    else:
        wanted = ["127.0.0.1" if loopback_only(credentials) else "0.0.0.0"]
    if loopback_only(credentials):
        for host in wanted:
            if not _is_loopback(host):
                raise SettingsError(
                    f"with an empty secret nobody may connect but from this machine, so {host} cannot be "
                    "listened on: set a secret, or allow everybody in with --insecure"
                )
    return wanted


class Scope:
    """On which interfaces we speak, and whom we hear."""

    def __init__(self, interfaces: tuple[str, ...], loopback_only: bool) -> None:
        self._interfaces = interfaces
        self._loopback_only = loopback_only
        self._networks: list[ipaddress.IPv4Network] | None = [] if interfaces or loopback_only else None

    def refresh(self, tried: list[str]) -> list[InterfaceAddress]:
        """The addresses to speak on now; sentences about those that cannot be used go to `tried`."""
        found, unknown = _select(self._interfaces)
        tried.extend(f"{name}: no such interface or IPv4 address is up" for name in unknown)
        if self._loopback_only:
            tried.extend(
                f"{each.name}: not asked, because the secret is empty" for each in found if not each.is_loopback
            )
            found = [each for each in found if each.is_loopback]
        if self._networks is not None:
            self._networks = [each.network for each in found]
        tried.extend(f"{each.name}: {each.address} has no broadcast" for each in found if not each.broadcast)
        return [each for each in found if each.broadcast]

    def contains(self, address: str) -> bool:
        """Whether a datagram from there is for us."""
        if self._networks is None:
            return True
        source = ipaddress.IPv4Address(address)
        return any(source in network for network in self._networks)


def loopback_only(credentials: Credentials) -> bool:
    """Whether an empty secret keeps this process to its own machine."""
    return credentials.empty and not credentials.insecure


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):  # a name: not loopback as far as we know
        return ipaddress.ip_address(host).is_loopback
    return False


def _select(interfaces: tuple[str, ...]) -> tuple[list[InterfaceAddress], list[str]]:
    """The addresses that fit, loopback first, and the names that fit nothing."""
    import psutil

    states = psutil.net_if_stats()
    everything = [
        _interface_address(name, each.address, each.netmask, each.broadcast)
        for name, addresses in psutil.net_if_addrs().items()
        if name not in states or states[name].isup
        for each in addresses
        if each.family == socket.AF_INET
    ]
    everything.sort(key=lambda each: not each.is_loopback)
    if not interfaces:
        return everything, []
    wanted = set(interfaces)
    found = [each for each in everything if each.name in wanted or each.address in wanted]
    known = {each.name for each in found} | {each.address for each in found}
    return found, sorted(wanted - known)


def _interface_address(name: str, address: str, netmask: str | None, broadcast: str | None) -> InterfaceAddress:
    network = ipaddress.IPv4Network((address, netmask or "255.255.255.255"), strict=False)
    if network.is_loopback:
        # Loopback claims to have no broadcast, but this address reaches every socket of the host.
        broadcast = str(network.broadcast_address)
    return InterfaceAddress(name, address, broadcast or "", network.is_loopback, network)
