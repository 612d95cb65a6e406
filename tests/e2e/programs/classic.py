"""Programs as their users have written them for years: ids of one's own, objects, interim results with `callback=`."""


class Task(object):
    def __init__(self, number, seconds):
        self.number = number
        self.seconds = seconds
        self.where = None

    def run(self):
        import time

        time.sleep(self.seconds)
        self.where = socket.gethostname()
        print("task %s took %s" % (self.number, self.seconds))


def compute(n):
    import socket
    import time

    time.sleep(n)
    host = socket.gethostname()
    return (host, n)


def run_task(task):
    global socket
    import socket

    task.run()
    return task


def guess(tries):
    import random
    import socket

    host, best = socket.gethostname(), 1
    random.seed(tries)
    for _ in range(tries):
        number = random.uniform(0, 1)
        if number <= best:
            best = number
            dispy_provisional_result((host, number))
        time.sleep(0.01)
    return (host, best)


def job_callback(job):
    if job.status == dispy.DispyJob.ProvisionalResult:
        if job.result[1] < 0.3:
            for each in jobs:
                if each.status in [
                    dispy.DispyJob.Created,
                    dispy.DispyJob.Running,
                    dispy.DispyJob.ProvisionalResult,
                ]:
                    cluster.cancel(each)


if __name__ == "__main__":
    import random

    import dispy

    cluster = dispy.JobCluster(compute)
    jobs = []
    for i in range(5):
        job = cluster.submit(random.uniform(0.01, 0.03))
        job.id = i
        jobs.append(job)
    for job in jobs:
        host, n = job()
        print("%s executed job %s at %s with %.2f" % (host, job.id, job.start_time, n))
    cluster.print_status()
    cluster.close()

    cluster = dispy.JobCluster(run_task, depends=[Task])
    jobs = [cluster.submit(Task(i, 0.01)) for i in range(3)]
    for job in jobs:
        task = job()
        print("%s ran %s: %s" % (task.where == host, task.number, job.stdout.strip()))
    cluster.close()

    cluster = dispy.JobCluster(guess, callback=job_callback)
    jobs = []
    for i in range(3):
        job = cluster.submit(10000 + i)
        if job is None:
            print("creating job %s failed!" % i)
            continue
        job.id = i
        jobs.append(job)
    cluster.wait()
    ended = [dispy.DispyJob.Finished, dispy.DispyJob.Terminated, dispy.DispyJob.Cancelled]
    print("guessing has ended: %s" % all(job.status in ended for job in jobs))
    print("before its time: %s" % (min(job.end_time for job in jobs) - jobs[0].submit_time < 60))
    cluster.stats()
    cluster.shutdown()
