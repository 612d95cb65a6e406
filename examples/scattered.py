#!/usr/bin/env python3
"""An object that many jobs need: `scatter` sends it to each node once, and jobs get it where its handle stands."""


def find(primes, number):
    """How many primes are not above a number, and the largest of them."""
    import bisect

    count = bisect.bisect_right(primes, number)
    return number, count, primes[count - 1]


def primes_below(limit):
    """The primes below a limit, by the sieve of Eratosthenes."""
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit, number)))
    return [number for number in range(limit) if sieve[number]]


if __name__ == "__main__":
    import dispy

    with dispy.JobCluster(find) as cluster:
        table = primes_below(1_000_000)
        with cluster.scatter(table) as primes:
            print(f"{len(table)} primes, {primes.size} bytes for each node")
            jobs = [cluster.submit(primes, number) for number in range(100_000, 1_000_000, 100_000)]
            for job in jobs:
                number, count, largest = job()
                print(f"{count} primes up to {number}, the largest is {largest}")
