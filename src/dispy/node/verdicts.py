"""What is told of a job that did not end by itself, in words, with the end of what it had written."""

from __future__ import annotations

from typing import Final

LAST_LINES: Final = 20
LAST_BYTES: Final = 2048
"""How much of a dead worker's stderr stands in the error text."""
DEATH_OUTPUT: Final = 256 << 10
"""Bytes of stdout and of stderr that are told of a job whose worker died."""


def clip(output: bytes, limit: int = DEATH_OUTPUT) -> bytes:
    """The output, with its middle cut out when it is longer than `limit` bytes."""
    if len(output) <= limit:
        return output
    note = b"\n[dispy: %d bytes of output left out here]\n" % (len(output) - limit)
    return output[: limit // 2] + note + output[-(limit // 2) :]


def over_time(seconds: float, limit: float) -> str:
    """The verdict on a job that ran too long."""
    ran = max(seconds, limit)
    return f"time: it ran {f'{ran:.1f}' if ran >= 1 else f'{ran:.2g}'} s, its limit was {limit:g} s"


def last_lines(stderr: bytes) -> str:
    """The end of a stderr for an error text: at most LAST_LINES lines and LAST_BYTES bytes."""
    text = stderr[-LAST_BYTES:].decode("utf-8", "replace")
    lines = text.rstrip().splitlines()[-LAST_LINES:]
    return "\n".join(lines)


def death_text(cause: str, stderr: bytes) -> str:
    """What people read of a job whose worker died."""
    tail = last_lines(stderr)
    return f"{cause}\nThe last lines of its stderr:\n{tail}" if tail else cause
