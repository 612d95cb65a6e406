#!/usr/bin/env python3
"""A number in memory that all jobs of a node share: each adds to it, under its lock."""


def prepare():
    """Runs once on each node; jobs run in processes that are forked from this one."""
    import multiprocessing.sharedctypes

    global TOTAL
    TOTAL = multiprocessing.sharedctypes.Value("i", 0)
    return 0


def add(number):
    with TOTAL.get_lock():
        TOTAL.value += number
        return dispy_node_name, TOTAL.value  # noqa: F821


if __name__ == "__main__":
    import dispy

    with dispy.JobCluster(add, setup=prepare) as cluster:
        totals = {}
        for job in dispy.as_completed([cluster.submit(number) for number in range(1, 51)]):
            node, total = job.result
            totals[node] = max(total, totals.get(node, 0))
        for node, total in totals.items():
            print(f"jobs on {node} have added up {total}")
        print(f"in all: {sum(totals.values())}")
