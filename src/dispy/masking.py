"""Secrets in the arguments of this process, which every user of the machine can list, are overwritten."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from typing import Final

_OPTION: Final = re.compile(rb"(?:-d*s|--(?:[a-z]+[-_])?secret=)(?=.)|(?:-d*s|--(?:[a-z]+[-_])?secret)\Z")
"""Up to where an argument has an option that takes a secret; `-d`, a flag, may stand in one argument with `-s`."""


def mask_secrets() -> None:
    """Overwrite them where the system keeps what `ps` shows. Nothing depends on it: the help tells what is visible."""
    if not sys.platform.startswith("linux") or len(sys.argv) < 2:
        return
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", "rb") as file:
            numbers = file.read().rpartition(b")")[2].split()
        start, end = int(numbers[45]), int(numbers[46])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            *arguments, rest = memory.read(end - start).split(b"\0")
            ours = len(arguments) - (len(sys.argv) - 1)  # before them are the interpreter's own
            masked = masked_arguments(arguments[ours:])
            memory.seek(start)
            memory.write(b"\0".join([*arguments[:ours], *masked, rest]))


def masked_arguments(arguments: Sequence[bytes]) -> list[bytes]:
    """The arguments of a command with stars in place of the secrets: as long as before, all else as it was. Pure."""
    masked: list[bytes] = []
    is_secret = False
    for argument in arguments:
        option = None if is_secret else _OPTION.match(argument)
        shown = 0 if is_secret else len(argument) if option is None else option.end()
        masked.append(argument[:shown] + b"*" * (len(argument) - shown))
        is_secret = option is not None and shown == len(argument) and not argument.endswith(b"=")
    return masked
