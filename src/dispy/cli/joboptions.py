"""Options of jobs on the command line: those that `submit` takes as `dispy_…`, with the same ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from dispy import settings
from dispy.errors import SettingsError
from dispy.joboptions import PREFIX, take_options

F = TypeVar("F", bound=Callable[..., Any])


def _number(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return text


def _seconds(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _words(text: str) -> object:
    return settings.names(text) or ("",)  # which is refused


_OPTIONS: Final[Mapping[str, tuple[str, Callable[[str], object], str, str]]] = {
    "timeout": ("timeout", _seconds, "SECONDS", "End each job after so many seconds."),
    "memory": ("memory", _number, "SIZE", "Memory kept for each job, and its limit: 512MiB, 4GB."),
    "job_cpus": ("cpus", _number, "N|all", "CPUs that each job occupies."),
    "gpus": ("gpus", _number, "N", "GPUs that each job occupies."),
    "tags": ("tags", _words, "TAG,…", "Only nodes with all of these tags."),
    "priority": ("priority", _number, "N", "Before jobs with a lower number of the same scheduler."),
    "retries": ("retries", _number, "N", "Further attempts when a job fails or its node is lost."),
}
"""Option → name behind `dispy_`, how its text becomes a value, what the help calls it and says."""


def job_options(command: F) -> F:
    """Add the options to a command; they arrive as keywords of the same names."""
    for name, (_, _, metavar, text) in reversed(list(_OPTIONS.items())):
        command = click.option(f"--{name.replace('_', '-')}", name, metavar=metavar, callback=_value, help=text)(
            command
        )
    return command


def take_job_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take them out of a command's keywords; returns those that were given, as keywords of `submit`."""
    taken = {what: options.pop(name) for name, (what, *_) in _OPTIONS.items()}
    return {PREFIX + what: value for what, value in taken.items() if value is not None}


def _value(_context: click.Context, parameter: click.Parameter, text: str | None) -> object:
    if text is None:
        return None
    what, convert, *_ = _OPTIONS[str(parameter.name)]
    value = convert(text)
    try:
        take_options({PREFIX + what: value})
    except SettingsError as error:
        raise click.BadParameter(str(error).removeprefix(f"submit: {PREFIX}{what} ")) from error
    return value
