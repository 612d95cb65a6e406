#!/usr/bin/env python3
"""Data in the memory of nodes is replaced while the cluster is open: each node is set up anew with a later edition."""

import threading

import dispy

EDITIONS = 3


class Edition(dispy.NodeAllocate):
    """Gives a node another edition each time it is asked: when the node is found, and when it is set up anew."""

    def __init__(self, host):
        super().__init__(host)
        self.given = {}

    def allocate(self, cluster, ip_addr, name, cpus, avail_info=None, platform=""):
        self.given[name] = self.given.get(name, 0) + 1
        self.setup_args = (self.given[name],)
        return cpus


def load(edition):
    global DATA
    DATA = f"edition {edition}"
    return 0


def unload(edition):
    global DATA
    del DATA


def look(number):
    return number, dispy_node_name, DATA  # noqa: F821


def status(kind, node, job):
    """A node is ready, for the first time or again: it gets three jobs, and then the next edition."""
    if kind == dispy.DispyNode.Initialized:
        editions[node.name] = editions.get(node.name, 0) + 1
        jobs.extend(cluster.submit_node(node, number) for number in range(3))
        if editions[node.name] < EDITIONS:
            cluster.resetup_node(node)
        elif all(edition == EDITIONS for edition in editions.values()):
            done.set()


if __name__ == "__main__":
    jobs, editions, done = [], {}, threading.Event()
    cluster = dispy.JobCluster(look, nodes=[Edition("*")], setup=load, cleanup=unload, cluster_status=status)
    done.wait()
    cluster.wait()
    for job in jobs:
        print("job {} on {} saw {}".format(*job.result))
    cluster.close()
