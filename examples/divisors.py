#!/usr/bin/env python3
"""Compute divisors (rather inefficiently) of fifty numbers, one job each, on every CPU that answers."""


def divisors(n):
    import math

    res = []
    for i in range(2, int(math.sqrt(n)) + 1):
        if n % i == 0:
            res.append(i)
    return (n, res)


if __name__ == "__main__":
    import dispy

    cluster = dispy.JobCluster(divisors)
    jobs = []
    start = 1 + 10**13
    for n in range(start, start + 100, 2):
        jobs.append(cluster.submit(n))
    for job in jobs:
        n, factors = job()
        print(n, factors)
    cluster.stats()
