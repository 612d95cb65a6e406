"""The process of a node, as the command `dispynode` and `python -m dispy.node` start it."""

from __future__ import annotations

import gc
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Load what the command needs, and run it; ends the process."""
    # What modules make stays as long as the process: looking through it takes a tenth of the start, and time later.
    gc.disable()
    from dispy.node.cli import main as command

    gc.freeze()
    gc.enable()
    command(arguments)


if __name__ == "__main__":
    main()
