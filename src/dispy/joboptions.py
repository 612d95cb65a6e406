"""The options of one job: keyword arguments of `submit` that begin with `dispy_`, checked and told apart.

All other keyword arguments belong to the function.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from dispy.errors import SettingsError
from dispy.model import JobOptions
from dispy.settings import is_sendable

PREFIX: Final = "dispy_"
DEPENDS: Final = "dispy_job_depends"
"""The option that is taken before the others: what it names is sent."""
_UNITS: Final[Mapping[str, int]] = {
    "": 1,
    "b": 1,
    **{f"{unit}b": 1000**power for power, unit in enumerate("kmgt", 1)},
    **{f"{unit}ib": 1024**power for power, unit in enumerate("kmgt", 1)},
}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_MOST_PRIORITY: Final = 1_000_000


def take_options(kwargs: dict[str, Any], node: str = "", asked: str = "submit") -> JobOptions | None:
    """Take the options out of the keyword arguments of a submit; None when nothing is asked for.

    Args:
        kwargs: loses every name that begins with `dispy_`.
        node: process id of the only node that may run the job.
        asked: the method that was called.

    Raises:
        SettingsError: an option is not known, or its value is not in the allowed range.
    """
    given: dict[str, Any] = {}
    for name in [name for name in kwargs if name.startswith(PREFIX)]:
        try:
            given[name.removeprefix(PREFIX)] = _CHECKS.get(name, _unknown)(name, kwargs.pop(name))
        except SettingsError as refusal:
            raise SettingsError(f"{asked}: {refusal}") from None
    if not given and not node:
        return None
    options = JobOptions(node=node, **given)
    return None if options == JobOptions() else options


def _unknown(name: str, _value: Any) -> Any:
    known = ", ".join(sorted([*_CHECKS, DEPENDS]))
    raise SettingsError(f"{name} is not a job option; names that begin with {PREFIX} are kept for options: {known}")


def _number(least: int, most: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise SettingsError(f"{name} must be a whole number from {least} to {most}, not {value!r}")

    return check


def _timeout(name: str, value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return float(value)
    raise SettingsError(f"{name} must be a number of seconds above 0, or None for no limit, not {value!r}")


def _cpus(name: str, value: Any) -> int:
    if value == "all":
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65536:
        return value
    raise SettingsError(f"{name} must be a whole number from 1 to 65536, or 'all', not {value!r}")


def _memory(name: str, value: Any) -> int:
    size = -1.0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)) and match[2].lower() in _UNITS:
        size = float(match[1]) * _UNITS[match[2].lower()]
    if 1 << 20 <= size < 1 << 60:
        return int(size)
    raise SettingsError(
        f"{name} must be at least 1 MiB, as a number of bytes or with a unit ('4GB', '512MiB'), not {value!r}"
    )


def _tags(name: str, value: Any) -> tuple[str, ...]:
    tags = (value,) if isinstance(value, str) else value
    if isinstance(tags, (list, tuple, set, frozenset)) and all(map(_is_tag, tags)):
        return tuple(sorted({tag.strip() for tag in tags}))
    raise SettingsError(
        f"{name} must be a tag or a list of tags (strings of Unicode that are not empty), not {value!r}"
    )


def _is_tag(tag: object) -> bool:
    return isinstance(tag, str) and bool(tag.strip()) and is_sendable(tag)


_CHECKS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "dispy_timeout": _timeout,
    "dispy_priority": _number(-_MOST_PRIORITY, _MOST_PRIORITY),
    "dispy_cpus": _cpus,
    "dispy_memory": _memory,
    "dispy_gpus": _number(0, 1024),
    "dispy_tags": _tags,
    "dispy_retries": _number(0, 1000),
}
