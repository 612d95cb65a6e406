"""A file of 1 GB in `depends`.

    python benchmarks/files.py                       # installs peers when they are first asked for
    python benchmarks/files.py --peers none          # dispy, and what Python brings
    python benchmarks/files.py --scratch DIR --json  # where peers are; figures for a program

Every figure is given as median (least … most) of the repeats. Absolute figures drift with the machine; the ratios hold.
"""

from __future__ import annotations

from running import main

if __name__ == "__main__":
    main(["files"], __doc__)
