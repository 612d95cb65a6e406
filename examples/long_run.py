#!/usr/bin/env python3
"""Jobs that would run for ever: they are cancelled when the result is good enough, and return the best they have."""

import dispy


def search(seed):
    """Look for a small number. KeyboardInterrupt is what a cancelled job sees; what it returns then counts."""
    import random
    import time

    random.seed(seed)
    best = 1.0
    try:
        while True:
            time.sleep(0.02)
            number = random.random()
            if number < best:
                best = number
                dispy_provisional_result(best)  # noqa: F821
    except KeyboardInterrupt:
        return best


def status(job):
    if job.status == dispy.DispyJob.ProvisionalResult and job.result < 0.1:
        for other in jobs:
            cluster.cancel(other)


if __name__ == "__main__":
    jobs = []
    cluster = dispy.JobCluster(search, job_status=status)
    jobs.extend(cluster.submit(seed) for seed in range(2))
    cluster.wait()
    found = [job.result for job in jobs if job.status == dispy.DispyJob.Finished]
    print(f"the best of {len(found)} searches: {min(found):.3f}")
    cluster.close()
