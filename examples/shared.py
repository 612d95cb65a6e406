#!/usr/bin/env python3
"""Two programs share nodes through a scheduler: who comes later with a few jobs does not wait for the others' many.

All of it runs on this machine: the scheduler, a node, and both programs, which are this file with a name behind it.
"""

import contextlib
import os
import subprocess
import sys
import tempfile

MANY, FEW = 5000, 10


def work(seconds):
    import time

    time.sleep(seconds)


def anna():
    """Has a lot to do, until somebody says that it is enough."""
    import dispy

    cluster = dispy.SharedJobCluster(work)
    jobs = [cluster.submit(0.05) for _ in range(MANY)]
    jobs[0]()
    print(f"anna has {MANY} jobs, and the first has ended", flush=True)
    sys.stdin.read()
    waiting = sum(job.status == dispy.DispyJob.Created for job in jobs)
    print(f"most of anna's jobs still wait: {waiting > MANY // 2}", flush=True)
    cluster.close(terminate=True)


def bob():
    """Comes later, with little."""
    import dispy

    with dispy.SharedJobCluster(work) as cluster:
        jobs = [cluster.submit(0.05) for _ in range(FEW)]
        for job in jobs:
            job()
    print(f"bob's {FEW} jobs have ended", flush=True)


@contextlib.contextmanager
def daemon(module, *options):
    """One of dispy's daemons for as long as the block runs, which begins when it is ready."""
    command = [sys.executable, "-m", module, "--daemon", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if "ready" in line:
                    break
            yield
        finally:
            process.terminate()
            process.communicate()


def program(name):
    return subprocess.Popen([sys.executable, __file__, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def main():
    os.environ["DISPY_INTERFACES"] = "lo"
    with (
        tempfile.TemporaryDirectory() as folder,
        # between users the scheduler is fair by itself, but here one user has both programs
        daemon("dispy.sharing.cli", "--fair_cluster_scheduler", "--dest_path_prefix", f"{folder}/scheduler"),
        daemon("dispy.node.cli", "--cpus", "2", "--dest_path_prefix", f"{folder}/node"),
        program("anna") as first,
    ):
        print(first.stdout.readline(), end="")
        with program("bob") as second:
            print(second.communicate()[0], end="")
        print(first.communicate()[0], end="")


if __name__ == "__main__":
    {"anna": anna, "bob": bob}.get(sys.argv[-1], main)()
