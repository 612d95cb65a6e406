"""All tables in one go, in some ten minutes: the figures of docs/performance.md.

    python benchmarks/all.py --json results.json && python benchmarks/report.py results.json
    python benchmarks/all.py --only jobs,map --peers none
    python benchmarks/all.py --quick --peers none         # tiny amounts: whether everything works

Every figure is given as median (least … most) of the repeats. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

from running import main
from tables import TABLES

if __name__ == "__main__":
    main(list(TABLES), __doc__)
