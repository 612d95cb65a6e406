"""What a running job and its client say to each other, with a real node of this machine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import DispyJob

SOON = 20.0

Local = Callable[..., dispy.JobCluster]


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Local]:
    """`local(computation, …)`: a cluster on a node that is started for the test; the program is in `tmp_path/here`."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    clusters: list[dispy.JobCluster] = []

    def make(computation: Any, **settings: Any) -> dispy.JobCluster:
        clusters.append(dispy.JobCluster(computation, nodes="local", **settings))
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.close(terminate=True)
    for cluster in clusters:
        cluster.shutdown()


def ended(job: Any) -> Any:
    assert job.finish.wait(SOON), f"the job is still {job.status!r}"
    return job


class Seen:
    """Collects what callbacks are given."""

    def __init__(self) -> None:
        self.jobs: list[tuple[int, Any]] = []
        self.events: list[tuple[int, Any]] = []

    def job(self, job: DispyJob) -> None:
        self.jobs.append((job.status, job.result))

    def cluster(self, status: int, node: Any, job: Any) -> None:
        if job is not None:
            assert node is not None or status in (DispyJob.Created, DispyJob.Running)
            self.events.append((status, job.result))


# Provisional results


def test_interim_results_come_in_order_and_before_the_end(local: Local) -> None:
    def search(size: int) -> str:
        for number in range(5):
            dispy_provisional_result((number, bytes(size)))  # type: ignore[name-defined] # noqa: F821
        return "end"

    for size in (3, 300_000):
        seen = Seen()
        cluster = local(search, job_status=seen.job, cluster_status=seen.cluster)
        job = cluster.submit(size)
        assert job() == "end", job.exception
        assert job.status == DispyJob.Finished
        cluster.close()
        interim = [(DispyJob.ProvisionalResult, (number, bytes(size))) for number in range(5)]
        assert seen.jobs == [*interim, (DispyJob.Finished, "end")]
        assert seen.events[2:] == seen.jobs
        assert cluster.cpu_time < SOON


def test_a_job_waits_for_its_end_whatever_it_says(local: Local, wait_until: Callable[..., Any]) -> None:
    def improve(path: str) -> int:
        print("looking")
        assert dispy_provisional_result([1, 2]) == 0  # type: ignore[name-defined] # noqa: F821
        while not os.path.exists(path):  # type: ignore[name-defined] # noqa: F821
            time.sleep(0.01)
        return 3

    cluster = local(improve)
    job = cluster.submit(str(Path("go").absolute()))
    wait_until(lambda: job.status == DispyJob.ProvisionalResult, timeout=SOON)
    assert (job.result, job.stdout, job.end_time) == ([1, 2], None, None)
    assert not job.finish.is_set()
    Path("go").touch()
    assert job() == 3


def test_the_best_so_far_when_it_is_cancelled(local: Local) -> None:
    """The original's example of a long run: the client ends it when the interim result is good enough."""

    def halve(goal: float) -> float:
        best = goal
        try:
            while True:
                best /= 2
                dispy_provisional_result(best)  # type: ignore[name-defined] # noqa: F821
                time.sleep(0.005)
        except KeyboardInterrupt:
            return best

    def judge(job: DispyJob) -> None:
        if job.status == DispyJob.ProvisionalResult and job.result < 1:
            cluster.cancel(job)

    cluster = local(halve, job_status=judge)
    job = ended(cluster.submit(100.0))
    assert job.status == DispyJob.Finished, job.exception
    assert 0 < job.result < 1


def test_interim_results_of_a_job_that_fails(local: Local) -> None:
    def fail() -> None:
        dispy_provisional_result("promising")  # type: ignore[name-defined] # noqa: F821
        raise ValueError("no")

    def unsendable() -> None:
        dispy_provisional_result({"deep": [threading.Lock()]})  # type: ignore[name-defined] # noqa: F821

    job = ended(local(fail).submit())
    assert (job.status, job.result) == (DispyJob.Terminated, None)
    assert "ValueError: no" in job.exception
    job = ended(local(unsendable).submit())
    assert job.status == DispyJob.Terminated
    assert "['deep'][0] (a _thread.lock) cannot be pickled" in job.exception


def test_threads_of_a_job_speak_and_its_children_do_not(local: Local) -> None:
    def many() -> list[int]:
        said: list[int] = []

        def speak(first: int) -> None:
            for number in range(50):
                answer = dispy_provisional_result(bytes([first]) * (number * 3000))  # type: ignore[name-defined] # noqa: F821
                said.append(answer)

        threads = [threading.Thread(target=speak, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(1) as pool:
            return [*said, pool.apply(dispy_provisional_result, ("child",))]  # type: ignore[name-defined] # noqa: F821

    seen = Seen()
    cluster = local(many, job_status=seen.job)
    job = cluster.submit()
    assert job() == [0] * 150 + [-1], job.exception
    cluster.close()
    sizes: dict[int, list[int]] = {first: [] for first in range(3)}
    for _, result in seen.jobs[:-1]:
        for first in sizes:
            if result and result[0] == first:
                sizes[first].append(len(result))
    assert len(seen.jobs) == 151
    assert sizes == {first: [number * 3000 for number in range(1, 50)] for first in range(3)}


def test_a_setup_has_nobody_to_tell(local: Local) -> None:
    def prepare() -> int:
        global said
        said = dispy_provisional_result("x")  # type: ignore[name-defined] # noqa: F821
        return 0

    assert local(lambda: said, setup=prepare).submit()() == -1  # type: ignore[name-defined]


# Files of jobs


def test_files_of_jobs_arrive_where_the_program_runs(local: Local, tmp_path: Path) -> None:
    """The original's example: every job writes a file and sends it back."""

    def report(number: int, size: int) -> list[int]:
        os.makedirs("out", exist_ok=True)  # type: ignore[name-defined] # noqa: F821
        name = f"out/report{number}.txt"
        with open(name, "w") as file:
            file.write(str(number) * size)
        os.chmod(name, 0o640)  # type: ignore[name-defined] # noqa: F821
        os.chdir("out")  # type: ignore[name-defined] # noqa: F821
        relative = dispy_send_file(f"report{number}.txt")  # type: ignore[name-defined] # noqa: F821
        with open(f"/tmp/dispy-test-{os.getpid()}-{number}", "w") as file:  # type: ignore[name-defined] # noqa: F821
            file.write("elsewhere")
        try:
            outside = dispy_send_file(file.name)  # type: ignore[name-defined] # noqa: F821
        finally:
            os.unlink(file.name)  # type: ignore[name-defined] # noqa: F821
        return [relative, outside, dispy_send_file("nothing"), dispy_send_file(".")]  # type: ignore[name-defined] # noqa: F821

    cluster = local(report)
    jobs = [cluster.submit(number, size) for number, size in enumerate([1, 3_000_000, 5, 5])]
    for number, job in enumerate(jobs):
        assert job() == [0, 0, -1, -1], job.exception
        path = Path(f"out/report{number}.txt")
        assert path.read_text() == str(number) * [1, 3_000_000, 5, 5][number]
        assert path.stat().st_mode & 0o777 == 0o640
    names = sorted(path.name for path in Path().iterdir())
    assert len(names) == 5
    assert all(name == "out" or name.startswith("dispy-test-") for name in names)
    assert len(list(Path("out").iterdir())) == 4


def test_a_file_leaves_the_directory_of_the_program_by_no_way(local: Local, tmp_path: Path) -> None:
    def send() -> int:
        os.makedirs("link")  # type: ignore[name-defined] # noqa: F821
        with open("link/file", "w") as file:
            file.write("x")
        return int(dispy_send_file("link/file"))  # type: ignore[name-defined] # noqa: F821

    (tmp_path / "elsewhere").mkdir()
    Path("link").symlink_to(tmp_path / "elsewhere")
    assert local(send).submit()() == -1
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_that_is_too_large_does_not_come(local: Local) -> None:
    def send(size: int) -> int:
        with open("data", "wb") as file:
            file.write(bytes(size))
        return int(dispy_send_file("data"))  # type: ignore[name-defined] # noqa: F821

    cluster = local(send)
    dispy.config.MaxFileSize = 1000
    try:
        assert [cluster.submit(size)() for size in (1000, 1001)] == [0, -1]
    finally:
        dispy.config.MaxFileSize = 0
    assert Path("data").stat().st_size == 1000


# Files to nodes, output and jobs of running nodes


def test_a_file_is_placed_on_a_node(local: Local) -> None:
    def read() -> str:
        with open("given/words.txt") as file:
            return file.read()

    cluster = local(read)
    assert ended(cluster.submit()).status == DispyJob.Terminated
    node = cluster.status().nodes[0]
    Path("given").mkdir()
    for words in ("one", "two"):
        Path("given/words.txt").write_text(words)
        assert cluster.send_file("given/words.txt", node) == 0
        assert cluster.submit()() == words
    assert cluster.send_file("given/words.txt", "10.9.8.7") == -1
    with pytest.raises(dispy.DispyError, match="nowhere"):
        cluster.send_file("nowhere", node)


def test_the_output_and_the_list_of_running_jobs(local: Local, wait_until: Callable[..., Any]) -> None:
    def talk(path: str) -> None:
        print("first line")
        print("x" * 100_000)
        print("last line")
        while not os.path.exists(path):  # type: ignore[name-defined] # noqa: F821
            time.sleep(0.01)
        print("end")

    cluster = local(talk)
    waiting = Path("go").absolute()
    jobs = [cluster.submit(str(waiting)) for _ in range(40)]
    wait_until(lambda: jobs[0].tail()[0].endswith("last line\n"), timeout=SOON)
    out, err = jobs[0].tail()
    assert (len(out), err) == (64 << 10, "")
    assert jobs[-1].tail() == ("", "")
    node = cluster.status().nodes[0]
    running = cluster.node_jobs(node, from_node=True)
    assert jobs[0] in running
    assert len(running) <= node.avail_cpus
    assert set(running) <= set(cluster.node_jobs(node)) <= set(jobs)
    assert jobs[-1] not in running
    assert cluster.node_jobs("10.9.8.7") == []
    waiting.touch()
    assert ended(jobs[0]).tail()[0].startswith("first line\n")
    assert jobs[0].tail()[0].endswith("end\n")
    cluster.wait()
    assert cluster.node_jobs(node, from_node=True) == cluster.node_jobs(node) == []


def test_the_output_of_a_running_program(local: Local, wait_until: Callable[..., Any]) -> None:
    program = Path("program.sh")
    program.write_text(
        '#!/bin/sh\necho "$dispy_node_name $dispy_job_path"; pwd; while [ ! -e "$1" ]; do sleep 0.02; done\n'
    )
    program.chmod(0o755)
    cluster = local(str(program))
    go = Path("go").absolute()
    job = cluster.submit(str(go))
    wait_until(lambda: job.tail()[0].count(b"\n") == 2, timeout=SOON)
    name, path, directory = job.tail()[0].split()
    assert (name.decode(), path) == (cluster.status().nodes[0].name, directory)
    go.touch()
    assert job() == 0


def test_the_names_that_a_job_finds(local: Local) -> None:
    def names() -> list[Any]:
        dispynode_logger.info("a job says hello")  # type: ignore[name-defined] # noqa: F821
        return [dispy_node_name, dispy_node_ip_addr, dispy_job_path, os.getcwd()]  # type: ignore[name-defined] # noqa: F821

    cluster = local(names)
    name, address, path, directory = cluster.submit()()
    node = cluster.status().nodes[0]
    assert (name, address) == (node.name, node.ip_addr)
    assert path == directory


# What single jobs bring


DELEGATE = """
import dispy, math

def delegate(name, *args):
    found = globals().get(name)
    return f"no {name}" if found is None else found(*args)

def prepare():
    global kept
    kept = lambda: "setup"
    return 0

if __name__ == "__main__":
    cluster = dispy.JobCluster(delegate, nodes="local", setup=prepare)
    unit = 10

    def add(a, b):
        return a + b + unit + math.floor(0.5)

    class Point:
        def __init__(self, x):
            self.x = x

    def shift(point, by):
        assert isinstance(point, Point)
        return Point(point.x + by).x

    def first():
        return "first"

    def second():
        return "second"

    def kept():
        return "job"

    first.__name__ = second.__name__ = "work"
    submit = cluster.submit
    for _ in range(15):
        jobs = [
            submit("add", 1, 2, dispy_job_depends=[add]),
            submit("add"),
            submit("work", dispy_job_depends=[first]),
            submit("work", dispy_job_depends=[second]),
            submit("work"),
            submit("shift", Point(3), 4, dispy_job_depends=[shift, Point]),
            submit("shift"),
            submit("kept", dispy_job_depends=[kept]),
            submit("kept"),
            submit("unit"),
        ]
        results = [job() for job in jobs]
        expected = [13, "no add", "first", "second", "no work", 7, "no shift", "job", "setup", "no unit"]
        assert results == expected, (results, [job.exception for job in jobs if job.exception])
    print("done")
"""


def test_a_function_that_a_job_brings_is_called_by_name(tmp_path: Path) -> None:
    """The original's delegate example: one computation, any function."""
    program = tmp_path / "delegate.py"
    program.write_text(DELEGATE)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr


def test_files_and_modules_of_a_job_are_there_for_it_alone(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> Any:
        try:
            with open("own/data.txt") as file:
                text = file.read()
        except FileNotFoundError:
            text = ""
        try:
            import brought_module  # type: ignore[import-not-found]
        except ImportError:
            return text, 0
        return text, brought_module.VALUE

    cluster = local(look)
    Path("own").mkdir()
    assert cluster.submit()() == ("", 0)
    for version in (1, 2):
        Path("own/data.txt").write_text("x" * version * 100_000)
        Path("brought_module.py").write_text(f"VALUE = {version}{'0' * version}\n")
        depends = ["own/data.txt", "brought_module.py"]
        jobs = [cluster.submit(dispy_job_depends=depends) for _ in range(12)]
        for job in jobs:
            assert job() == ("x" * version * 100_000, int(f"{version}{'0' * version}")), job.exception
        assert cluster.submit()() == ("", 0)
    with pytest.raises(dispy.DispyError, match="nowhere"):
        cluster.submit(dispy_job_depends=["nowhere"])
    assert list(cluster.service.offers.held) == []


def test_files_of_jobs_that_never_run_are_removed(local: Local, wait_until: Callable[..., Any]) -> None:
    def either(path: str) -> list[str]:
        while path and not os.path.exists(path):  # type: ignore[name-defined] # noqa: F821
            time.sleep(0.01)
        return sorted(os.listdir())  # type: ignore[name-defined] # noqa: F821

    cluster = local(either)
    Path("mine").write_text("mine")
    go = Path("go").absolute()
    busy = [cluster.submit(str(go)) for _ in range(4)]
    jobs = [cluster.submit("", dispy_job_depends=["mine"]) for _ in range(6)]
    wait_until(lambda: busy[0].status == DispyJob.Running, timeout=SOON)
    for job in jobs[:5]:
        cluster.cancel(job)
    go.touch()
    assert "mine" in ended(jobs[5]).result
    cluster.wait()
    assert "mine" not in cluster.submit("")()


def test_a_program_brings_files(local: Local) -> None:
    program = Path("show.sh")
    program.write_text("#!/bin/sh\ncat words.txt\n")
    program.chmod(0o755)
    Path("words.txt").write_text("hello")
    cluster = local(str(program))
    job = ended(cluster.submit(dispy_job_depends=["words.txt"]))
    assert (job.result, job.stdout) == (0, b"hello")
    assert ended(cluster.submit()).result == 1
    with pytest.raises(dispy.DispyError, match="files"):
        cluster.submit(dispy_job_depends=[len])


def test_what_a_job_says_while_the_link_is_broken_arrives(local: Local, wait_until: Callable[..., Any]) -> None:
    def speak(path: str) -> list[int]:
        answers = []
        for number in range(200):
            dispy_provisional_result(number)  # type: ignore[name-defined] # noqa: F821
            if number % 20 == 0:
                with open(f"file{number}", "w") as file:
                    file.write(str(number) * 100_000)
                answers.append(dispy_send_file(f"file{number}"))  # type: ignore[name-defined] # noqa: F821
        return answers

    seen = Seen()
    cluster = local(speak, job_status=seen.job)
    job = cluster.submit("")

    def cut() -> None:
        for reached in cluster.service.links.nodes.values():
            if reached.link is not None:
                reached.link.abort("cut by the test")

    for text in ("file20", "file80", "file120"):
        wait_until(lambda name=text: Path(name).exists() or job.finish.is_set(), timeout=SOON)
        cluster._portal.post(cut)
    assert job() == [0] * 10, job.exception
    cluster.close()
    assert [result for _, result in seen.jobs[:-1]] == list(range(200))
    assert all(Path(f"file{number}").read_text() == str(number) * 100_000 for number in range(0, 200, 20))
