"""Options of `dispynode` about what it offers, when, to whom, and what it keeps; where it listens is in `cli`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from dispy import settings, words
from dispy.clicknumbers import Number, WholeNumber
from dispy.commandline import comma_separated
from dispy.errors import SettingsError
from dispy.node import vitals
from dispy.node.account import find_account
from dispy.node.window import service_window

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_IDLE_LOAD: Final = 0.5
"""Load of others, in CPUs, below which `--idle-only` works."""


def _option(name: str, help: str, **more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option with its variable, under both spellings."""
    names = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    return click.option(
        *names, name.replace("-", "_"), envvar=f"DISPY_{name.replace('-', '_').upper()}", help=help, **more
    )


_OPTIONS: Final = (
    _option("oversubscribe", "Allow --cpus to be more than this machine has.", is_flag=True),
    _option(
        "tag",
        "Word that jobs can ask for (repeatable).",
        multiple=True,
        metavar="TAG",
        callback=comma_separated,
    ),
    _option("memory", "Memory that jobs may reserve together (default: all).", metavar="SIZE"),
    _option("gpus", "GPUs for jobs (default: auto, as many as are found).", metavar="N|auto", default="auto"),
    _option("nice", "Run jobs at this niceness (1 to 19).", type=WholeNumber(0, 19), default=0, metavar="N"),
    _option(
        "idle-only",
        f"Work only while the load of others is below LOAD CPUs (default {_IDLE_LOAD}).",
        is_flag=False,
        flag_value=str(_IDLE_LOAD),
        type=Number(0, min_open=True),
        metavar="[LOAD]",
    ),
    _option("service_start", "Time of day from which jobs are accepted.", metavar="HH:MM"),
    _option("service_stop", "Time of day from which no new jobs start.", metavar="HH:MM"),
    _option("service_end", "Time of day at which jobs are ended.", metavar="HH:MM"),
    _option("serve", "End after so many programs (-1: never).", type=WholeNumber(-1), default=-1, metavar="N"),
    _option("client_shutdown", "Let cleanup functions end the node by dispynode_shutdown().", is_flag=True),
    _option(
        "zombie_interval",
        "Minutes after which a program that vanished is given up, its results too (0: never).",
        type=Number(0),
        default=settings.ZOMBIE_INTERVAL / 60,
        metavar="MIN",
    ),
    _option(
        "ping_interval",
        "Seconds between announcements while the node is free (0: one).",
        type=Number(0),
        default=0.0,
        metavar="S",
    ),
    _option(
        "msg_timeout",
        "Seconds of silence after which a program's link is lost.",
        type=Number(1),
        default=settings.GRACE_TIMEOUT,
        metavar="S",
    ),
    _option("max_file_size", "Refuse larger files of programs (default 0: no limit).", default="0", metavar="SIZE"),
    _option("force_cleanup", "Remove files of jobs also where the program wants to keep them.", is_flag=True),
    _option(
        "keep_size",
        "Most that fetched files, environments and kept directories may take (0: no limit).",
        default="10g",
        metavar="SIZE",
    ),
    _option(
        "keep_days",
        "Days after which what was not used is removed (0: never).",
        type=Number(0),
        default=30.0,
        metavar="N",
    ),
    _option(
        "spool_size",
        "Most that results on the disk may take before new work is refused (0: no limit).",
        default="4g",
        metavar="SIZE",
    ),
    _option("user", "Run jobs as this user (the node must be started by root).", metavar="NAME"),
    _option("init", "Python file whose init() runs at the start and close() at the end.", metavar="FILE"),
    click.option(
        *("--unsafe_setup", "--unsafe-setup"),
        is_flag=True,
        help="Accepted for the scripts of the original: setup runs once for each node as it is, never in the daemon.",
    ),
    _option("admin_secret", "Accept orders of `dispy admin` that prove this secret.", metavar="SECRET"),
    _option("admin-secret-file", "File with the admin secret.", metavar="FILE"),
)


def owner_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command all of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def owner_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """What they say, as fields of `NodeSettings`.

    Raises:
        SettingsError: a value is not usable.
    """
    minutes, days = options["zombie_interval"], options["keep_days"]
    return {
        "cpus": vitals.offered_cpus(options["cpus"], oversubscribe=options["oversubscribe"]),
        "oversubscribe": options["oversubscribe"],
        "tags": options["tag"],
        "memory": _memory(options["memory"]),
        "gpus": _gpus(options["gpus"]),
        "nice": options["nice"],
        "idle_only": options["idle_only"],
        "window": service_window(options["service_start"], options["service_stop"], options["service_end"]),
        "serve": None if options["serve"] < 1 else options["serve"],
        "client_shutdown": options["client_shutdown"],
        "zombie_interval": minutes * 60 or float("inf"),
        "ping_interval": options["ping_interval"],
        "msg_timeout": options["msg_timeout"],
        "max_file_size": size("--max_file_size", options["max_file_size"]),
        "force_cleanup": options["force_cleanup"],
        "keep_size": size("--keep_size", options["keep_size"]) or None,
        "keep_seconds": days * 86400 or None,
        "spool_size": size("--spool_size", options["spool_size"]) or None,
        "account": find_account(options["user"]) if options["user"] else None,
        "init": _file(options["init"]),
    }


def size(option: str, text: str) -> int:
    """Bytes of `N`, `Nk`, `Nm`, `Ng` or `Nt` (powers of 1024).

    Raises:
        SettingsError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.strip().lower())
    if match is None:
        raise SettingsError(f"{option} {text!r}: give a number of bytes, or one with k, m, g or t behind it")
    return int(float(match[1]) * _UNITS[match[2]])


def _memory(text: str | None) -> int:
    there = vitals.main_memory()
    if text is None:
        return there
    asked = size("--memory", text)
    if not 0 < asked <= there:
        raise SettingsError(f"--memory {text}: this machine has {words.size(there, like=asked)}")
    return asked


def _gpus(text: str) -> int:
    if text.strip().lower() == "auto":
        return vitals.count_gpus()
    if not text.strip().isdigit():
        raise SettingsError(f"--gpus {text!r}: give a number, or auto")
    return int(text)


def _file(name: str | None) -> Path | None:
    if not name:
        return None
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise SettingsError(f"--init {name}: there is no such file")
    return path
