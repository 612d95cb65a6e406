"""What a node's directory is called, so that schedulers see which daemon has come in place of which."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Final

FILE: Final = "identity"
_DIGITS: Final = 32


def identity_of(directory: Path) -> str:
    """The name of a directory that this daemon has: 32 hexadecimal digits, drawn when it is first used."""
    path = directory / FILE
    with contextlib.suppress(OSError, ValueError):
        kept = path.read_text().strip()
        if len(kept) == _DIGITS and int(kept, 16) >= 0:
            return kept
    drawn = secrets.token_hex(_DIGITS // 2)
    # Where it cannot be written the node works all the same: it is only missed by those that wait for the one before.
    with contextlib.suppress(OSError):
        path.write_text(f"{drawn}\n")
    return drawn
