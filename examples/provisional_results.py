#!/usr/bin/env python3
"""Jobs that tell what they have found so far: a value for pi that is better each time."""

import dispy


def estimate(seed, tries):
    import random

    random.seed(seed)
    inside = 0
    for number in range(1, tries + 1):
        inside += random.random() ** 2 + random.random() ** 2 < 1
        if number % 50_000 == 0 and number < tries:
            dispy_provisional_result((number, 4 * inside / number))  # noqa: F821 - every job finds it
    return tries, 4 * inside / tries


def status(job):
    """Called for each interim result, and when the job has ended."""
    tries, value = job.result
    kind = "so far" if job.status == dispy.DispyJob.ProvisionalResult else "result"
    print(f"job {job.id}, {kind}: {value:.4f} after {tries} tries", flush=True)


if __name__ == "__main__":
    with dispy.JobCluster(estimate, job_status=status) as cluster:
        for seed in range(2):
            cluster.submit(seed, 200_000)
