#!/usr/bin/env python3
"""One function for many values, also endless ones: `map` sends many calls as one job and gives results in order."""


def collatz(number):
    """Steps of the Collatz sequence from a number down to 1."""
    steps = 0
    while number != 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        steps += 1
    return steps


if __name__ == "__main__":
    import itertools

    import dispy

    with dispy.JobCluster(collatz) as cluster:
        steps = list(cluster.map(range(1, 10_000)))
        print(f"longest below 10000: {max(steps)} steps, from {steps.index(max(steps)) + 1}")

        for number, taken in zip(itertools.count(1), cluster.map(itertools.count(1))):
            if taken > 200:
                print(f"the first with more than 200 steps is {number}")
                break  # what is under way is cancelled
