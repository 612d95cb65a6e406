"""Data in the memory of nodes, as old programs have it: a partial as setup, `cleanup` without arguments, a lock and a
number of ctypes, and an allocation that gives each node its own files."""


def setup(data_file):
    global data, algorithms
    import hashlib

    with open(data_file) as fd:
        data = fd.read().encode()
    os.remove(data_file)
    algorithms = sorted(hashlib.algorithms_guaranteed & {"sha1", "sha256", "md5"})
    globals()["hashlib"] = hashlib
    return 0


def cleanup():
    global data, algorithms
    del data, algorithms


def compute(n):
    alg = algorithms[n % len(algorithms)]
    csum = getattr(hashlib, alg)()
    csum.update(data)
    return (dispy_node_ip_addr, alg, csum.hexdigest())


def share():
    import multiprocessing
    import multiprocessing.sharedctypes

    global shvar
    lock = multiprocessing.RLock()
    shvar = multiprocessing.sharedctypes.Value("i", 1, lock=lock)
    return 0


def unshare():
    del globals()["shvar"]


def add(n):
    global shvar
    with shvar.get_lock():
        shvar.value += n
        return shvar.value


def load(file_name, number):
    global text
    with open(file_name) as fd:
        text = fd.read()
    return 2


def unload(file_name, number):
    global text
    del text


def look(n):
    return (n, text)


def status_cb(status, node, job):
    global version
    if status == dispy.DispyNode.Initialized:
        print("node %s is ready with %s CPUs for %s" % (node.name, node.avail_cpus, version))
        initialized.set()
    elif status == dispy.DispyJob.Finished:
        dispy.logger.debug("job %s: %s", job.id, job.result)


if __name__ == "__main__":
    import functools
    import os
    import sys
    import tempfile
    import threading

    import dispy

    class NodeAllocate(dispy.NodeAllocate):
        def allocate(self, cluster, ip_addr, name, cpus, avail_info=None, platform="*"):
            print("Allocate %s cpus on %s" % (cpus, name))
            self.depends = [os.path.join(folder, version)]
            self.setup_args = (version, 1)
            return max(1, cpus)

    data_file = sys.argv[1] if len(sys.argv) > 1 else sys.argv[0]
    cluster = dispy.JobCluster(
        compute,
        depends=[data_file],
        setup=functools.partial(setup, os.path.basename(data_file)),
        cleanup=cleanup,
    )
    jobs = []
    for n in range(6):
        job = cluster.submit(n)
        job.id = n
        jobs.append(job)
    for job in jobs:
        job()
        if job.status == dispy.DispyJob.Finished:
            print("%s: %s : %s" % job.result)
        else:
            print(job.exception)
    cluster.close()

    cluster = dispy.JobCluster(add, setup=share, cleanup=unshare)
    print("shared: %s" % max(job() for job in [cluster.submit(n) for n in range(10)]))
    cluster.close()

    folder, version, initialized = tempfile.mkdtemp(), "one", threading.Event()
    for name in ("one", "two"):
        with open(os.path.join(folder, name), "w") as fd:
            fd.write("text of " + name)
    cluster = dispy.JobCluster(look, [NodeAllocate("*")], [], None, status_cb, setup=load, cleanup=unload)
    for name in ("one", "two"):
        version = name
        if name == "two":
            initialized.clear()
            cluster.resetup_node(cluster.status().nodes[0])
        initialized.wait()
        jobs = [cluster.submit(n) for n in range(3)]
        cluster.wait()
        print("after %s: %s" % (name, [job.result for job in jobs]))
    cluster.print_status()
    cluster.close()
    for name in ("one", "two"):
        os.remove(os.path.join(folder, name))
    os.rmdir(folder)
