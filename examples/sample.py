#!/usr/bin/env python3
"""The classic: jobs that take a while, each with an id of one's own, and what every job tells when it has ended."""


def compute(seconds):
    import time

    time.sleep(seconds)
    return dispy_node_name, seconds  # noqa: F821 - every job finds this name


if __name__ == "__main__":
    import random

    import dispy

    cluster = dispy.JobCluster(compute)
    jobs = []
    for number in range(10):
        job = cluster.submit(random.uniform(0.01, 0.2))
        job.id = f"nap {number}"  # an id can be anything, and be set when the job is under way
        jobs.append(job)
    for job in jobs:
        node, seconds = job()  # waits for the job and returns its result
        print(f"{job.id}: {seconds:.2f} s on {node}, from {job.start_time:.3f} to {job.end_time:.3f}")
    cluster.print_status()
