"""`scripts/mutate`: all cores; `scripts/mutate dispy.node.slots`: these modules; `--count`: only say how many there
are; `--every 5 --first 2`: each fifth mutant, from the third; `--seeds 300`: so many seeds of the simulator.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
SCHEDULER = (
    "core flow membership shares leases closing steering placement policy tables nodes clusters jobs intake places "
    "explain prospects fairness turns dispatching parking restoring keeping"
)
NODE = (
    "core leases departure computations jobs forcing returning outgoing feeding serving slots verdicts "
    "arguments conversation claims keeping results snapshot offer window"
)
WIRE = "session transfer handshake"
ROOMS = {"scheduler": SCHEDULER, "node": NODE, "wire": WIRE}
CORES = [f"dispy.{room}.{name}" for room, names in ROOMS.items() for name in names.split()]
NODE_TESTS = (
    "leases owner departure computation_desk job_desk forcing returning feeding heavy_jobs running_jobs claims "
    "node_walk serving slots offer window"
)
BY_VALUE = [
    "scheduler",
    *(f"node/test_{name}.py" for name in NODE_TESTS.split()),
    *(f"wire/test_{name}.py" for name in WIRE.split()),
]


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether the tests notice when a core decides wrongly.")
    parser.add_argument("modules", nargs="*", default=CORES)
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="where --every begins")
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--tests", nargs="*", default=BY_VALUE, help="beneath the folder of tests")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from mutations.mutants import mutants_of
    from mutations.run import in_words, run_mutants

    mutants = [mutant for module in arguments.modules for mutant in mutants_of(module)][
        arguments.first :: arguments.every
    ]
    if arguments.count:
        print(len(mutants))
        return 0
    tests = [str(TESTS / test) for test in arguments.tests]
    verdicts = run_mutants(mutants, tests, range(arguments.seeds), arguments.processes)
    print("\n".join(in_words(verdicts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
