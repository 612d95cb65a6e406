"""What the store of a shared scheduler costs: inserted, handed out, ended and acknowledged jobs, in commits of many.

    python benchmarks/store.py [jobs] [jobs in a commit]

The processor time is that of the thread that writes; the time includes the syncs of this disk.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from dispy.model import ComputationId, ComputationSpec, Holder, JobDone, JobState, NodeInfo, ProcessId
from dispy.scheduler.effects import JobEnded
from dispy.scheduler.events import RestoredNode
from dispy.scheduler.jobs import JobRecord
from dispy.sharing.keeping import KeptCluster
from dispy.sharing.storefile import StoreFile
from dispy.sharing.storewriting import Batch, End, Mark
from dispy.wire.sharing import OpenCluster

CLUSTER, NODE = ComputationId("c" * 32), ProcessId("1" * 32)
ARGS, BODY = b"a" * 60, b"r" * 80


def main(count: int, portion: int) -> None:
    """Four commits for each portion: that is the most; under load a commit has jobs in all four steps."""
    with tempfile.TemporaryDirectory(dir=".") as directory:
        file = StoreFile(Path(directory))
        opened = OpenCluster(ComputationSpec(CLUSTER, "f", "function"), b"t" * 32, Holder("u", "h", 1, "p"))
        node = RestoredNode(NODE, NodeInfo(NODE, "n", 8, "linux", ()), "10.0.0.1")
        file.write(Batch(1, clusters=[KeptCluster(opened, "u@h", True, 0.0)], nodes=[(node, ())]))
        began, used, commits = time.perf_counter(), time.thread_time(), 0
        for first in range(1, count + 1, portion):
            records = {job: JobRecord(job, CLUSTER, ARGS, job) for job in range(first, first + portion)}
            ends = {}
            for job, record in records.items():
                done = JobDone(job, 1, 0, 1.0, 2.0, len(BODY), 0, 0, 0)
                ends[job] = End(JobEnded(record, JobState.Finished, NODE, done, BODY), "10.0.0.1")
            for batch in (
                Batch(2, submitted=records),
                Batch(3, marks={job: Mark(1, NODE, None) for job in records}),
                Batch(4, ends=ends),
                Batch(5, taken=list(records)),
            ):
                file.write(batch)
                commits += 1
        seconds, busy = time.perf_counter() - began, time.thread_time() - used
        file.close()
    print(f"{count} jobs, {portion} in a commit: {busy / count * 1e6:.1f} us of the processor per job, ", end="")
    print(f"{seconds / count * 1e6:.1f} us in all, {seconds / commits * 1e3:.1f} ms per commit")


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(given + [20480, 256][len(given) :]))
