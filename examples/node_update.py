#!/usr/bin/env python3
"""One job on every node there is, also on those that come while the program runs: to update them, for example."""

import time

import dispy


def update():
    import platform

    return f"{dispy_node_name} runs {platform.system()} {platform.release()}"  # noqa: F821


def status(kind, node, job):
    if kind == dispy.DispyNode.Initialized and node.name not in seen:
        seen.add(node.name)
        jobs.append(cluster.submit_node(node))


if __name__ == "__main__":
    seen, jobs = set(), []
    cluster = dispy.JobCluster(update, cluster_status=status)
    for _ in range(3):  # a service would do this for ever
        cluster.discover_nodes("*")
        time.sleep(0.5)
    while not jobs:  # a node on this machine takes a second to start
        time.sleep(0.1)
    for job in jobs:
        print(job())
    cluster.close()
