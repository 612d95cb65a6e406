"""`python tests/simulator 17 18`: replay these seeds in words. `python tests/simulator 0:100000`: try all of these, on
all CPUs, and print those that fail.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
BLOCK = 100
"""Seeds that a process takes at once."""


def try_seeds(first: int, last: int) -> list[tuple[int, str]]:
    """The seeds that fail, and why."""
    from simulator.trouble import run_seed

    failed = []
    for seed in range(first, last):
        try:
            run_seed(seed)
        except Exception as error:
            failed.append((seed, f"{type(error).__name__}: {error}"))
    return failed


def _try_all(first: int, last: int) -> int:
    began, failures = time.monotonic(), 0
    starts = range(first, last, BLOCK)
    ends = [min(start + BLOCK, last) for start in starts]
    with ProcessPoolExecutor(initializer=_prepare) as pool:
        for failed in pool.map(_try_block, starts, ends):
            failures += len(failed)
            for seed, why in failed:
                print(f"seed {seed}: {why}\nreplay it: python tests/simulator {seed}", flush=True)
    print(f"{last - first} seeds, {failures} failed, {time.monotonic() - began:.0f} s on {os.cpu_count()} CPUs")
    return 1 if failures else 0


def _prepare() -> None:
    sys.path.insert(0, str(HERE.parent))


def _try_block(first: int, last: int) -> list[tuple[int, str]]:
    return try_seeds(first, last)


def main(arguments: list[str]) -> int:
    """Do what the command line says; returns the exit code."""
    _prepare()
    from simulator.trouble import run_seed

    for argument in arguments:
        first, colon, last = argument.partition(":")
        if colon:
            return _try_all(int(first), int(last))
        run_seed(int(first), verbose=True)
    return 0


if __name__ == "__main__":
    sys.path.pop(0)  # the folder itself
    sys.exit(main(sys.argv[1:]))
