"""Runs of `/bin/true` a second.

    python benchmarks/programs.py                       # installs peers when they are first asked for
    python benchmarks/programs.py --peers none          # dispy, and what Python brings
    python benchmarks/programs.py --scratch DIR --json  # where peers are; figures for a program

Every figure is given as median (least … most) of the repeats. Absolute figures drift with the machine; the ratios hold.
"""

from __future__ import annotations

from running import main

if __name__ == "__main__":
    main(["programs"], __doc__)
