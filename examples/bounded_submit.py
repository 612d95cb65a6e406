#!/usr/bin/env python3
"""Never more than a few hundred jobs at a time, although there are many: for programs whose arguments are large."""

import threading

import dispy

MOST, LEAST, COUNT = 200, 100, 1000


def compute(number):
    return number, number % 7


def ended(job):
    """Runs when a job has ended, in dispy's thread: forget it, and let the main thread go on when there is room."""
    _, rest = job.result
    with room:
        rests[rest] += 1
        del pending[job.id]
        if len(pending) <= LEAST:
            room.notify()


if __name__ == "__main__":
    pending, rests, room, most = {}, [0] * 7, threading.Condition(), 0
    cluster = dispy.JobCluster(compute, job_status=ended)
    for number in range(COUNT):
        with room:
            if len(pending) >= MOST:
                room.wait_for(lambda: len(pending) <= LEAST)
            job = cluster.submit(number)
            pending[job.id] = job
            most = max(most, len(pending))
    cluster.wait()
    cluster.close()
    print(f"{sum(rests)} jobs, at most {most} at a time: {rests}")
