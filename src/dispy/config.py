"""`dispy.config`: the original's module of numbers. Set them before the first cluster: `dispy.config.DispyPort = 9800`.

Ports that are not set follow `DispyPort`, which itself follows the variable DISPY_PORT. A name that is not one of these
is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from dispy import settings
from dispy.errors import SettingsError

DispyPort: int
"""Base port (9700)."""
ClientPort: int
"""TCP port at which this program accepts nodes that join it (the base port)."""
NodePort: int
"""TCP and UDP port of nodes (base + 1); setting it moves the base port with it."""
SharedSchedulerPort: int
HTTPServerPort: int
MsgTimeout: float
"""Seconds that a call waits for the answer of a node (10)."""
MaxFileSize: int
"""Bytes that a file may have which travels to nodes or comes from jobs; 0: no limit."""
IPv4MulticastGroup: str
IPv6MulticastGroup: str
"""Addresses at which discovery speaks and hears; nodes have theirs from variables of the same meaning."""
Java: str
"""What runs programs `*.java`, on the nodes."""

_DEFAULTS: Final[dict[str, Callable[[], Any]]] = {
    "DispyPort": lambda: _chosen["NodePort"] - settings.NODE_PORT_OFFSET if "NodePort" in _chosen else _base_port(),
    "ClientPort": lambda: _value("DispyPort"),
    "NodePort": lambda: _value("DispyPort") + settings.NODE_PORT_OFFSET,
    "SharedSchedulerPort": lambda: _value("DispyPort") + 2,
    "HTTPServerPort": lambda: 8181,
    "MsgTimeout": lambda: 10.0,
    "MaxFileSize": lambda: 0,
    "IPv4MulticastGroup": lambda: settings.multicast().ipv4_group,
    "IPv6MulticastGroup": lambda: settings.multicast().ipv6_group,
    "Java": lambda: "/usr/bin/java",
}
_chosen: dict[str, Any] = {}


def _base_port() -> int:
    return settings.base_port()


def _value(name: str) -> Any:
    return _chosen[name] if name in _chosen else _DEFAULTS[name]()


def _check(name: str, value: object) -> None:
    if name.endswith("Port"):
        if type(value) is not int or not 0 < value < 65534:
            raise SettingsError(f"dispy.config.{name} must be a number from 1 to 65533, not {value!r}")
        other = {"NodePort": "DispyPort", "DispyPort": "NodePort"}.get(name, "")
        if other in _chosen and abs(value - _chosen[other]) != settings.NODE_PORT_OFFSET:
            raise SettingsError(f"dispy.config.{name} = {value}: NodePort is DispyPort + 1; set one of the two")
    elif name == "MsgTimeout":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
            raise SettingsError(f"dispy.config.MsgTimeout must be a number of seconds above 0, not {value!r}")
    elif name == "MaxFileSize":
        if type(value) is not int or value < 0:
            raise SettingsError(f"dispy.config.MaxFileSize must be a number of bytes, 0 for no limit, not {value!r}")
    elif name.endswith("Group"):
        settings.multicast_group(f"dispy.config.{name}", value, int(name[3]))
    elif not isinstance(value, str) or not value:
        raise SettingsError(f"dispy.config.{name} must be a string, not {value!r}")


class _Config(ModuleType):
    """A module whose assignments are checked."""

    def __getattr__(self, name: str) -> Any:
        if name not in _DEFAULTS:
            raise AttributeError(f"module 'dispy.config' has no attribute {name!r}")
        return _value(name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in _DEFAULTS:
            _check(name, value)
            _chosen[name] = value
        elif name.startswith("_"):
            super().__setattr__(name, value)
        else:
            from difflib import get_close_matches  # few mistype a name

            near = get_close_matches(name, _DEFAULTS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"dispy.config has no setting {name}{hint}")

    def __delattr__(self, name: str) -> None:
        """Back to the default."""
        if name in _DEFAULTS:
            _chosen.pop(name, None)
        else:
            super().__delattr__(name)


sys.modules[__name__].__class__ = _Config
