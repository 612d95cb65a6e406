"""Numbers as people write them; pure."""

from __future__ import annotations

from collections.abc import Iterable

_DECIMAL = ("B", "kB", "MB", "GB", "TB")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_MIB = 1 << 20


def counted(number: int, word: str, many: str = "") -> str:
    """A number of things: `1 CPU`, `2 CPUs`.

    Args:
        number: how many; 0 is written as `no`.
        word: one of them.
        many: several of them, where that is not the word with an s.
    """
    return f"{number} {word}" if number == 1 else f"{number or 'no'} {many or word + 's'}"


def listed(parts: Iterable[str], most: int = 5) -> str:
    """Parts of a sentence, and how many more there are: `a; b; c; d; e; and 15 others`."""
    every = list(parts)
    more = len(every) - most
    return "; ".join([*every[:most], f"and {counted(more, 'other')}"] if more > 0 else every)


def size(count: float, like: float | None = None) -> str:
    """A number of bytes.

    Args:
        count: how many.
        like: another size of which the same sentence speaks: its units are taken. Sizes that are whole MiB were given
            in such and are written so, all others in powers of 1000.
    """
    whole = count if like is None else like
    binary = whole > 0 and whole % _MIB == 0
    base, units = (1024, _BINARY) if binary else (1000, _DECIMAL)
    value, power = float(count), 0
    while round(value) >= base and power < len(units) - 1:
        value /= base
        power += 1
    exact = not power or (value >= 10 and power < 3) or (binary and power < 3 and value == round(value))
    return f"{value:.0f} {units[power]}" if exact else f"{value:.1f} {units[power]}"


def lasting(seconds: float) -> str:
    """A duration: `3.2 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 100:
        return f"{max(0.0, seconds):.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
