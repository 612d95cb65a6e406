#!/usr/bin/env python3
"""The program itself decides which node gets which job: another one as soon as one of a node has ended."""

import threading

import dispy


def compute(number):
    return number, dispy_node_name  # noqa: F821


def give(node):
    """The next piece of work for a node, if any is left."""
    with lock:
        if work and (job := cluster.submit_node(node, work[-1])) is not None:
            work.pop()
            jobs.append(job)
        if not work:
            nothing_left.set()


def status(kind, node, job):
    if kind == dispy.DispyNode.Initialized:
        print(f"{node.name} offers {node.cpus} CPUs")
        for _ in range(node.cpus):
            give(node)
    elif kind == dispy.DispyJob.Finished:
        give(node)


if __name__ == "__main__":
    work, jobs, lock, nothing_left = list(range(20)), [], threading.RLock(), threading.Event()
    cluster = dispy.JobCluster(compute, cluster_status=status)
    nothing_left.wait()
    cluster.wait()
    for job in jobs:
        print("{} was computed on {}".format(*job.result))
    cluster.close()
