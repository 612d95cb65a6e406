"""The hours in which a node serves: start, stop (no new jobs) and end (jobs are ended), every day; pure.

All times are local wall clock, so that a day when clocks change has the same window as any other. A window may lie
over midnight (17:00 to 07:00).
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo
from enum import Enum

from msgspec import Struct

from dispy.errors import SettingsError

_MINUTES = 24 * 60


class Phase(Enum):
    """What the hour means for the node."""

    OPEN = "open"
    STOPPED = "stopped"
    """Jobs that are here go on, no new ones start."""
    CLOSED = "closed"


class ServiceWindow(Struct, frozen=True):
    """Minutes after midnight. Without `end` jobs that run at `stop` may take their time."""

    start: int
    stop: int
    end: int | None = None

    def phase(self, local: datetime) -> Phase:
        """What holds at this local time."""
        since = (local.hour * 60 + local.minute - self.start) % _MINUTES
        if since < (self.stop - self.start) % _MINUTES:
            return Phase.OPEN
        if self.end is None or since < (self.end - self.start) % _MINUTES:
            return Phase.STOPPED
        return Phase.CLOSED

    def next_change(self, now: float, zone: tzinfo | None = None) -> float:
        """The next instant (seconds since the epoch) at which the phase changes, in this zone or the machine's."""
        minute = timedelta(minutes=1)
        local = datetime.fromtimestamp(now, zone)
        phase = self.phase(local)
        # Instants, not local times, are counted: an hour that is skipped or comes twice needs no rule of its own.
        at = now - (local.second + local.microsecond / 1e6)
        for _ in range(2 * _MINUTES):
            at += minute.total_seconds()
            if self.phase(datetime.fromtimestamp(at, zone)) is not phase:
                return at
        raise AssertionError("a window without a change")  # its three times differ

    def text(self, phase: Phase) -> str:
        """Why no job starts in this phase, for people; empty when jobs do."""
        if phase is Phase.OPEN:
            return ""
        return f"its service window begins at {clock_text(self.start)}"


def service_window(start: str | None, stop: str | None, end: str | None) -> ServiceWindow | None:
    """The window of three options, or None when none is given.

    Raises:
        SettingsError: a time is no HH:MM, one is missing, or their order is wrong.
    """
    if start is None and stop is None and end is None:
        return None
    names = ("--service_start", "--service_stop", "--service_end")
    for name, text in zip(names, (start, stop, end), strict=True):
        if text is not None:
            _minutes(name, text)
    stops = end if stop is None else stop
    if start is None or stops is None:
        raise SettingsError("a service window needs --service_start and --service_stop or --service_end (or both)")
    return _window(start, stops, end, names)


def read_hours(text: str) -> ServiceWindow | None:
    """The window of `START STOP` or `START STOP END`; None for `always`.

    Raises:
        SettingsError: it is neither, a time is no HH:MM, or their order is wrong.
    """
    words = text.split()
    if words == ["always"]:
        return None
    if len(words) not in {2, 3}:
        raise SettingsError(f"hours {text or '(nothing)'}: say START STOP or START STOP END, HH:MM each, or always")
    return _window(words[0], words[1], words[2] if len(words) > 2 else None, ("START", "STOP", "END"))


def _window(start: str, stop: str, end: str | None, names: tuple[str, str, str]) -> ServiceWindow:
    begins, stops = _minutes(names[0], start), _minutes(names[1], stop)
    ends = None if end is None else _minutes(names[2], end)
    if stops == begins or ends == begins:
        raise SettingsError("a service window that ends when it starts has no time in it")
    if ends is not None and (ends - begins) % _MINUTES < (stops - begins) % _MINUTES:
        raise SettingsError(f"{names[2]} {end} comes before {names[1]} {stop}, seen from {names[0]} {start}")
    return ServiceWindow(begins, stops, ends)


def clock_text(minutes: int) -> str:
    """HH:MM."""
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _minutes(option: str, text: str) -> int:
    match = re.fullmatch(r"(\d{1,2}):(\d\d)", text.strip())
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        raise SettingsError(f"{option} {text!r}: give a time of day as HH:MM, from 00:00 to 23:59")
    return int(match[1]) * 60 + int(match[2])
