"""Old programs that decide themselves: which node gets which file, how many jobs wait, when a long one is ended."""

import dispy
import threading


def checksum(path):
    import hashlib

    csum = hashlib.sha1()
    with open(os.path.basename(path), "rb") as fd:
        while 1:
            data = fd.read(1024000)
            if not data:
                break
            csum.update(data)
    return csum.hexdigest()


def cluster_status(status, node, job):
    if status == dispy.DispyJob.Finished:
        print("sha1sum for %s: %s" % (job.id, len(job.result)))
    elif status == dispy.DispyJob.Terminated:
        print("sha1sum for %s failed: %s" % (job.id, job.exception))
    elif status == dispy.DispyNode.Initialized:
        print("node %s with %s CPUs available" % (node.ip_addr, node.avail_cpus))
    else:
        return
    global submitted
    if submitted >= len(data_files):
        all_submitted.set()
        return
    data_file = data_files[submitted]
    new_job = cluster.submit_job_id_node(submitted, node, data_file, dispy_job_depends=[data_file])
    if new_job:
        submitted += 1


def sleeping(n):
    time.sleep(n)
    return n


def job_callback(job):
    global pending_jobs, jobs_cond
    if job.status in (
        dispy.DispyJob.Finished,
        dispy.DispyJob.Terminated,
        dispy.DispyJob.Cancelled,
        dispy.DispyJob.Abandoned,
    ):
        jobs_cond.acquire()
        if job.id:
            pending_jobs.pop(job.id, None)
            if len(pending_jobs) <= lower_bound:
                jobs_cond.notify()
        jobs_cond.release()


def fn_one(n):
    return n + 1


def fn_two(n, times=1):
    return "-".join([str(n)] * times)


def delegate(fn_name, *args, **kwargs):
    fn = globals()[fn_name]
    return fn(*args, **kwargs)


def forever(n):
    best = n
    try:
        while 1:
            time.sleep(0.01)
            best += 1
    except KeyboardInterrupt:
        return ("stopped", best > n)


def timed_out(job):
    if job.status != dispy.DispyJob.Finished:
        cluster.cancel(job)


if __name__ == "__main__":
    import sys
    import time

    data_files, submitted, all_submitted = [sys.argv[0]] * 4, 0, threading.Event()
    cluster = dispy.JobCluster(checksum, cluster_status=cluster_status)
    all_submitted.wait()
    cluster.wait()
    cluster.close()

    lower_bound, upper_bound, most = 5, 10, 0
    jobs_cond = threading.Condition()
    pending_jobs = {}
    cluster = dispy.JobCluster(sleeping, callback=job_callback)
    i = 0
    while i < 40:
        i += 1
        job = cluster.submit(0.002)
        jobs_cond.acquire()
        job.id = i
        if job.status == dispy.DispyJob.Created or job.status == dispy.DispyJob.Running:
            pending_jobs[i] = job
            most = max(most, len(pending_jobs))
            if len(pending_jobs) >= upper_bound:
                while len(pending_jobs) > lower_bound:
                    jobs_cond.wait()
        jobs_cond.release()
    cluster.wait()
    print("at most %s pending: %s" % (upper_bound, most <= upper_bound))
    cluster.close()

    cluster = dispy.JobCluster(delegate, loglevel=dispy.logger.DEBUG)
    jobs = [
        cluster.submit("fn_one", 41, dispy_job_depends=[fn_one]),
        cluster.submit("fn_two", 7, times=3, dispy_job_depends=[fn_two]),
    ]
    dispy.logger.debug("submitted %s jobs", len(jobs))
    for job in jobs:
        print("delegated: %s" % job())
    cluster.close()

    cluster = dispy.JobCluster(forever, loglevel=dispy.logger.WARNING)
    jobs = [cluster.submit(n) for n in range(2)]
    for job in jobs:
        while job.status != dispy.DispyJob.Running:
            time.sleep(0.1)
    timers = [threading.Timer(3, timed_out, (job,)) for job in jobs]
    for timer in timers:
        timer.start()
    for job in jobs:
        print("long run: %s, %s" % (job(), job.status == dispy.DispyJob.Finished))
    for timer in timers:
        timer.join()
    cluster.close()

    nodes, lock = {}, threading.Lock()

    def update_status(status, node, job):
        if status == dispy.DispyNode.Initialized:
            with lock:
                if node.ip_addr in nodes:
                    return
                nodes[node.ip_addr] = cluster.submit_node(node, "update")
                updated.set()

    updated = threading.Event()
    cluster = dispy.JobCluster("/bin/echo", cluster_status=update_status)
    while not updated.wait(0.5):
        cluster.discover_nodes(["*"])
    for ip_addr, job in nodes.items():
        job()
        print("%s: %s %s" % (ip_addr, job.result, job.stdout.decode().strip()))
    cluster.print_status()
