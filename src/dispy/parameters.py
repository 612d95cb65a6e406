"""Whether what a user gives to a cluster can be used: old names, ranges, callables. Errors name the parameter."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from dispy.errors import SettingsError
from dispy.logs import logger
from dispy.settings import is_sendable, names, variable

OLD_NAMES: Final[Mapping[str, str]] = {
    "callback": "job_status",
    "ip_addr": "host",
    "ext_ip_addr": "ext_host",
    "transfer_dest": "dest_path",
    "resubmit": "reentrant",
    "fault_recover": "recover_file",
    "port": "dispy_port",
}
"""Parameters of earlier versions of the original, and what they are called now."""
OLD_OPTIONS: Final[Mapping[str, str]] = {"ip_addr": "host", "ext_ip_addr": "ext_host", "scheduler_host": "join"}
"""Options of commands in earlier versions, without the dashes before them."""
OF_SCHEDULER: Final = frozenset({"ipv4_udp_multicast", "ping_interval", "pulse_interval"})
"""Parameters of `JobCluster` that are options of a shared scheduler instead."""
OLD_NODE_PORT: Final = "node_port"
"""It was the port of nodes, which is one above the base port."""


def renamed(
    given: Mapping[str, Any], old: Mapping[str, Any], known: Iterable[str], of: str = "JobCluster"
) -> dict[str, Any]:
    """Values for the names of today, from what was given under old ones; warns once for each.

    Args:
        given: values under names of today, for the names that have an old one.
        old: values under other names.
        known: all names of today.
        of: the class, for sentences.

    Raises:
        SettingsError: a name is neither new nor old, or both the old and the new one were given.
    """
    values = dict(given)
    named = {name: name for name in given}
    for name, value in old.items():
        if name == OLD_NODE_PORT:
            new, hint = "dispy_port", "dispy_port (the port of nodes less one)"
            value = value - 1 if isinstance(value, int) else value
        elif name in OLD_NAMES:
            new = hint = OLD_NAMES[name]
        else:
            if of == "SharedJobCluster" and name in OF_SCHEDULER:
                raise SettingsError(
                    f"{of} has no parameter {name!r}: that is for the scheduler to know (dispyscheduler --{name})"
                )
            raise SettingsError(f"{of} has no parameter {name!r}{_nearest(name, known)}")
        if values.get(new) is not None and values[new] is not False:
            _check_same_port(named[new], name, new, fits=new == "dispy_port" and values[new] == value)
        warnings.warn(f"the parameter {name} is called {hint} now", DeprecationWarning, stacklevel=3)
        values[new], named[new] = value, name
    return values


def _check_same_port(name: str, other: str, new: str, *, fits: bool) -> None:
    """Two names were given for one parameter; that is right for a base port and the node port that belongs to it."""
    if fits:
        return
    if OLD_NODE_PORT in (name, other):
        raise SettingsError(f"{name} and {other} do not fit together (the port of nodes is one more): give one of them")
    if name == new:
        raise SettingsError(f"{other} is the old name of {new}: give one of them, not both")
    raise SettingsError(f"{name} and {other} are both old names of {new}: give one of them")


def option_of_today(name: str) -> str:
    """What an option of a command (without the dashes before it) is called now; says so when it has another name."""
    name_then = name.replace("-", "_")
    new = OLD_OPTIONS.get(name_then)
    if new is None:
        return name
    sys.stderr.write(f"the option --{name_then} is called --{new} now\n")
    return new


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib  # few mistype a name

    near = difflib.get_close_matches(name, [*known], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def interval(name: str, value: float | None, least: float, most: float) -> float | None:
    """Seconds within a range, or None."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most):
        return value
    raise SettingsError(f"{name} must be a number of seconds from {least:g} to {most:g}, not {value!r}")


def truth(name: str, value: object) -> bool:
    """True or False, nothing like it."""
    if isinstance(value, bool):
        return value
    raise SettingsError(f"{name} must be True or False, not {value!r}")


def called(name: str, function: Any) -> Any:
    """Something that can be called, or None."""
    if function is not None and not callable(function):
        raise SettingsError(f"{name} must be something that can be called, not {function!r}")
    return function


def fitting(name: str, function: Any, *arguments: str) -> Any:
    """Something that can be called with these positional arguments, or None.

    Raises:
        SettingsError: it cannot; the message names the arguments.
    """
    if called(name, function) is None:
        return None
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # callables of C need not say what they take
        return function
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise SettingsError(
            f"{name} is called with ({', '.join(arguments)}), but {_label(function)}{signature} cannot be: {error}"
        ) from None
    return function


def _label(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__


def loglevel(explicit: int | None) -> int | str:
    """A level for the logger: the argument, else DISPY_LOGLEVEL."""
    if explicit is not None:
        if explicit not in (*logging.getLevelNamesMapping(), *range(logging.CRITICAL + 1)):
            raise SettingsError(f"loglevel must be a level of the module logging, not {explicit!r}")
        return explicit
    name = str(variable("DISPY_LOGLEVEL")).upper()
    if name not in logging.getLevelNamesMapping():
        raise SettingsError(f"DISPY_LOGLEVEL={name.lower()!r}: use debug, info, warning, error or critical")
    return name


def interfaces(host: str | Sequence[str] | None) -> tuple[str, ...]:
    """Interfaces or addresses of this machine to use; empty: all."""
    if isinstance(host, str):
        return names(host)
    if host:
        return tuple(host)
    return names(variable("DISPY_INTERFACES")) or names(variable("DISPY_HOST"))


def text(name: str, value: object) -> str | None:
    """Text that can be sent, or None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise SettingsError(f"{name} must be a string, not {value!r}")
    if not is_sendable(value):
        raise SettingsError(f"{name}={value!r} cannot be sent: it is not Unicode text (bytes that are not UTF-8?)")
    return value


def first_host(ext_host: str | Sequence[str] | None) -> str:
    """The name or address by which others know this machine: the argument, else DISPY_EXT_HOST; empty for none."""
    if ext_host is None:
        given: Sequence[str] = names(variable("DISPY_EXT_HOST"))
    else:
        given = [ext_host] if isinstance(ext_host, str) else ext_host
    return (text("ext_host", str(given[0])) or "").strip() if given else ""


def directory(name: str, value: str | None) -> str:
    """A relative path below the node's directory; empty when none is given. As in the original, a leading separator
    is left out with a warning.

    Raises:
        SettingsError: it leads outside.
    """
    if not value:
        return ""
    path = value.replace("\\", "/")
    if path.startswith("/"):
        logger.warning("%s=%r: nodes keep it below their own directory, as %r", name, value, path.strip("/"))
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise SettingsError(f"{name} must be a relative path without '..', below the node's directory, not {value!r}")
    return "/".join(parts)


def recover_file(value: object) -> str | os.PathLike[str] | Literal[False] | None:
    """Where the recovery file is: a path, None for the default place (also for True, as in the original), or False.

    Raises:
        SettingsError: it is something else.
    """
    if value is False:
        return False
    if value is None or value is True:
        return None
    if isinstance(value, str | os.PathLike) and os.fspath(value):
        return value
    raise SettingsError(f"recover_file must be a path, True or False, not {value!r}")
