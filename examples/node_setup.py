#!/usr/bin/env python3
"""Data is read once on each node, before its first job, and all jobs there find it in memory."""

WORDS = "a node reads this file once and every job that runs there finds what it says in memory already"


def load(name, least):
    """Runs once on a node. What it makes global is there for all jobs of the node."""
    global TEXT, LEAST

    with open(name) as file:  # the cluster's files are in the working directory
        TEXT = file.read().split()
    LEAST = least
    return 0


def forget(name, least):
    """Runs on the node at the end, with the arguments that `load` had."""
    global TEXT
    del TEXT


def count(letter):
    return letter, sum(word.count(letter) for word in TEXT if len(word) >= LEAST)


if __name__ == "__main__":
    import pathlib
    import tempfile

    import dispy

    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder, "words.txt")
        data.write_text(WORDS)
        # for all nodes; several such items can give different nodes different files and arguments
        nodes = [dispy.NodeAllocate("*", depends=[str(data)], setup_args=(data.name, 4))]
        with dispy.JobCluster(count, nodes=nodes, setup=load, cleanup=forget) as cluster:
            for job in [cluster.submit(letter) for letter in "aeiou"]:
                letter, number = job()
                print(f"{letter} occurs {number} times in words of four letters and more")
