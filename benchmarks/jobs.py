"""Jobs a second, round trip of one job, and start-up: dispy beside its peers.

    python benchmarks/jobs.py                       # installs peers when they are first asked for
    python benchmarks/jobs.py --peers none          # dispy, and what Python brings
    python benchmarks/jobs.py --scratch DIR --json  # where peers are; figures for a program

Every figure is given as median (least … most) of the repeats. Absolute figures drift with the machine; the ratios hold.
"""

from __future__ import annotations

from running import main

if __name__ == "__main__":
    main(["jobs"], __doc__)
