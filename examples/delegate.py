#!/usr/bin/env python3
"""One cluster for many functions: each job brings the function that is to run, by name."""


def call(name, *args):
    """What the cluster runs; the functions come with the jobs."""
    return globals()[name](*args)


def add(one, two):
    return one + two


def spell(word):
    return "-".join(word.upper())


if __name__ == "__main__":
    import dispy

    with dispy.JobCluster(call) as cluster:
        jobs = [
            cluster.submit("add", 3, 4, dispy_job_depends=[add]),
            cluster.submit("spell", "dispy", dispy_job_depends=[spell]),
        ]
        for job in jobs:
            print(job())
