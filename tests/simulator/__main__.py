"""`python tests/simulator 17 18`: replay these seeds in words. `python tests/simulator 0:100000`: try all of these, on
all CPUs, and print those that fail. `shared` before them: with a scheduler that programs share and that is killed.
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


def try_seeds(first: int, last: int, *, shared: bool = False) -> list[tuple[int, str]]:
    """The seeds that fail, and why."""
    from simulator.trouble import run_seed

    failed = []
    for seed in range(first, last):
        try:
            run_seed(seed, shared=shared)
        except Exception as error:
            failed.append((seed, f"{type(error).__name__}: {error}"))
    return failed


def _try_all(first: int, last: int, shared: bool) -> int:
    began, failures = time.monotonic(), 0
    starts = range(first, last, BLOCK)
    ends = [min(start + BLOCK, last) for start in starts]
    with ProcessPoolExecutor(initializer=_prepare) as pool:
        for failed in pool.map(_try_block, starts, ends, [shared] * len(ends)):
            failures += len(failed)
            for seed, why in failed:
                print(f"seed {seed}: {why}\nreplay it: {replay(seed, shared)}", flush=True)
    print(f"{last - first} seeds, {failures} failed, {time.monotonic() - began:.0f} s on {os.cpu_count()} CPUs")
    return 1 if failures else 0


def replay(seed: int, shared: bool) -> str:
    """The command that shows a run in words."""
    return f"python tests/simulator {'shared ' if shared else ''}{seed}"


def _prepare() -> None:
    sys.path.insert(0, str(HERE.parent))


def _try_block(first: int, last: int, shared: bool) -> list[tuple[int, str]]:
    return try_seeds(first, last, shared=shared)


def main(arguments: list[str]) -> int:
    """Do what the command line says; returns the exit code."""
    _prepare()
    from simulator.trouble import run_seed

    shared = arguments[:1] == ["shared"]
    for argument in arguments[shared:]:
        first, colon, last = argument.partition(":")
        if colon:
            return _try_all(int(first), int(last), shared)
        run_seed(int(first), shared=shared, verbose=True)
    return 0


if __name__ == "__main__":
    sys.path.pop(0)  # the folder itself
    sys.exit(main(sys.argv[1:]))
