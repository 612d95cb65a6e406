"""Jobs of every kind on a real node of this machine: what they return, print, raise, and how they die."""

from __future__ import annotations

import functools
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy.errors import ClosedError, SettingsError, ShippingError

SOON = 20.0
"""Ten times the two seconds that are promised for a job that dies."""


def ended(job: dispy.DispyJob) -> dispy.DispyJob:
    assert job.finish.wait(SOON), f"the job is still {job.status!r}"
    return job


def square(number: int) -> int:
    return number * number


def shout(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def shouting(*args: Any) -> str:
        return f"{function(*args)}!"

    return shouting


@shout
def decorated(word: str) -> str:
    return word.upper()


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def times(self, number: int) -> int:
        return self.factor * number


def test_every_kind_of_function(local: Callable[..., dispy.JobCluster]) -> None:
    offset = 7

    def nested(number: int) -> int:
        return square(number) + offset

    kinds: list[tuple[Any, tuple[Any, ...], Any]] = [
        (square, (5,), 25),
        (lambda number: number + 1, (5,), 6),
        (nested, (3,), 16),
        (decorated, ("ho",), "HO!"),
        (Scale(3).times, (5,), 15),
        (functools.partial(pow, 2), (10,), 1024),
    ]
    for computation, args, expected in kinds:
        job = local(computation).submit(*args)
        assert job() == expected, job.exception


def test_the_fields_of_a_job(local: Callable[..., dispy.JobCluster]) -> None:
    def talk(word: str, *, error: str) -> str:
        print(word)
        print(error, file=sys.stderr)
        return word * 2

    cluster = local(talk)
    before = time.time()
    job = ended(cluster.submit("one", error="two"))
    assert job.status == dispy.DispyJob.Finished
    assert (job.result, job.stdout, job.stderr, job.exception) == ("oneone", "one\n", "two\n", None)
    assert job.ip_addr == job.host == "127.0.0.1"
    assert before <= job.submit_time <= job.end_time  # type: ignore[operator]
    assert before - 1 <= job.start_time <= job.end_time  # type: ignore[operator]
    assert job() == "oneone"
    named = cluster.submit_job_id("mine", "a", error="b")
    assert named.id == "mine"
    assert named() == "aa"


def test_a_job_that_raises_shows_its_traceback(local: Callable[..., dispy.JobCluster]) -> None:
    def divide(number: int) -> float:
        return 1 / number

    job = ended(local(divide).submit(0))
    assert job.status == dispy.DispyJob.Terminated
    assert job.result is None
    assert "ZeroDivisionError" in job.exception  # type: ignore[operator]
    assert job.execution_trace == job.exception


@pytest.mark.parametrize(
    ("death", "expected"),
    [
        (lambda: os._exit(3), "exit code 3"),
        (lambda: sys.exit(4), "4"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: threading.Lock(), "lock"),
    ],
    ids=["os._exit", "sys.exit", "segfault", "killed", "unpicklable"],
)
def test_a_job_that_dies_ends_with_the_cause(
    local: Callable[..., dispy.JobCluster], death: Callable[[], Any], expected: str
) -> None:
    def dying() -> Any:
        print("last words", file=sys.stderr, flush=True)
        return death()

    cluster = local(dying)
    job = ended(cluster.submit())
    assert job.status == dispy.DispyJob.Terminated
    assert expected in job.exception  # type: ignore[operator]
    assert "last words" in f"{job.exception} {job.stderr}"
    assert job() is None


def test_a_worker_that_died_is_replaced(local: Callable[..., dispy.JobCluster]) -> None:
    def perhaps(number: int) -> int:
        if number % 10 == 3:
            os._exit(1)
        return number

    cluster = local(perhaps)
    jobs = [cluster.submit(number) for number in range(60)]
    results = [job() for job in jobs]
    assert results == [None if number % 10 == 3 else number for number in range(60)]


def test_a_job_that_prints_a_hundred_megabytes_ends(local: Callable[..., dispy.JobCluster]) -> None:
    def flood() -> str:
        line = "x" * 9999 + "\n"
        for _ in range(10_000):
            sys.stdout.write(line)
        return "done"

    job = ended(local(flood).submit())
    assert job.status in (dispy.DispyJob.Finished, dispy.DispyJob.Terminated)
    assert len(job.stdout) < 40 << 20
    assert job.stdout.startswith("xxx")


def test_large_arguments_and_results(local: Callable[..., dispy.JobCluster]) -> None:
    def double(data: bytes) -> bytes:
        return data + data

    data = os.urandom(5 << 20)
    cluster = local(double)
    jobs = [cluster.submit(data) for _ in range(3)]
    for job in jobs:
        assert job() == data + data, job.exception


def test_many_short_jobs(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(square)
    jobs = [cluster.submit(number) for number in range(5000)]
    assert [job() for job in jobs] == [number * number for number in range(5000)]
    assert cluster.status().jobs_pending == 0
    assert sum(node.jobs_done for node in cluster.status().nodes) == 5000


def test_programs(local: Callable[..., dispy.JobCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("from the file\n")
    program = Path("program.py")
    program.write_text(
        textwrap.dedent("""
        import sys
        print(open("words.txt").read().strip(), sys.argv[1:])
        print("oops", file=sys.stderr)
        sys.exit(int(sys.argv[1]))
        """)
    )
    cluster = local(str(program), depends=["words.txt"])
    jobs = [cluster.submit(code, "two words") for code in (0, 3)]
    for code, job in zip((0, 3), jobs, strict=True):
        ended(job)
        assert (job.status, job.result) == (dispy.DispyJob.Finished, code), job.exception
        assert job.stdout == f"from the file ['{code}', 'two words']\n".encode()
        assert job.stderr == b"oops\n"


def test_everything_in_depends_travels(
    local: Callable[..., dispy.JobCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/numbers.txt").write_text("1 2 3")
    Path("travelling_module.py").write_text("ANSWER = 42\n")
    package = Path("travelling_package")
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from travelling_package.inner import deep\n")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "deep.py").write_text("def value():\n    return 'deep'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import travelling_module  # type: ignore[import-not-found]
    import travelling_package  # type: ignore[import-not-found]

    def gather(scale: Any) -> list[Any]:
        import travelling_module
        import travelling_package

        with open("data/numbers.txt") as file:
            numbers = file.read()
        return [numbers, travelling_module.ANSWER, travelling_package.deep.value(), scale.times(2)]

    cluster = local(gather, depends=["data/numbers.txt", travelling_module, travelling_package, Scale, Scale(1)])
    job = cluster.submit(Scale(4))
    assert job() == ["1 2 3", 42, "deep", 8], job.exception


def test_cancel(local: Callable[..., dispy.JobCluster], tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    def endless(path: str) -> None:
        Path(path).touch()
        while True:
            time.sleep(0.01)

    cluster = local(endless)
    running = cluster.submit(str(tmp_path / "running"))
    wait_until((tmp_path / "running").exists, timeout=SOON)
    waiting = [cluster.submit(str(tmp_path / f"waiting{number}")) for number in range(40)]
    assert cluster.cancel(waiting[-1]) == 0
    assert ended(waiting[-1]).status == dispy.DispyJob.Cancelled
    assert cluster.cancel(running) == 0
    assert ended(running).status == dispy.DispyJob.Terminated
    assert cluster.cancel(running) == -1
    assert cluster.close(timeout=0.01) is False
    assert cluster.close(terminate=True) is True
    assert all(job.status in (dispy.DispyJob.Cancelled, dispy.DispyJob.Terminated) for job in waiting)
    assert cluster.close() is None
    with pytest.raises(ClosedError, match="closed"):
        cluster.submit("x")


def test_callbacks_see_every_job_in_order(local: Callable[..., dispy.JobCluster]) -> None:
    seen: list[tuple[Any, Any]] = []
    events: list[int] = []
    threads: set[int] = set()
    copies: list[dispy.DispyJob] = []

    def told(job: dispy.DispyJob) -> None:
        threads.add(threading.get_ident())
        copies.append(job)
        seen.append((job.id, job()))

    def happened(status: int, node: Any, job: Any) -> None:
        threads.add(threading.get_ident())
        events.append(status)

    cluster = local(square, job_status=told, cluster_status=happened)
    jobs = [cluster.submit_job_id(number, number) for number in range(20)]
    cluster.close()
    assert sorted(seen) == [(number, number * number) for number in range(20)]
    assert [job.result for job in jobs] == [number * number for number in range(20)]
    assert events.count(dispy.DispyJob.Created) == events.count(dispy.DispyJob.Finished) == 20
    assert dispy.DispyNode.Initialized in events
    assert not {id(copy) for copy in copies} & {id(job) for job in jobs}
    assert len(threads - {threading.get_ident()}) == len(threads) == 1


def test_two_clusters_share_a_node(local: Callable[..., dispy.JobCluster]) -> None:
    mapper, reducer = local(lambda text: len(text.split())), local(lambda counts: sum(counts))
    counts = [mapper.submit("some words here") for _ in range(10)]
    assert reducer.submit([job() for job in counts])() == 30
    nodes = {node.process for cluster in (mapper, reducer) for node in cluster.status().nodes}
    assert len(nodes) == 1


def test_an_exception_leaves_the_with_block(local: Callable[..., dispy.JobCluster]) -> None:
    jobs = []

    def block() -> None:
        with cluster:
            jobs.append(cluster.submit(3))
            raise KeyError("mine")

    cluster = local(square)
    with pytest.raises(KeyError, match="mine"):
        block()
    assert jobs[0]() == 9
    assert cluster.is_closed


def test_setup_and_cleanup(local: Callable[..., dispy.JobCluster], tmp_path: Path) -> None:
    def prepare() -> int:
        global prepared
        prepared = {"value": 11}
        return 0

    def use(number: int) -> int:
        return prepared["value"] + number  # type: ignore[name-defined]

    target = str(tmp_path / "cleaned")

    def tidy() -> None:
        Path(target).touch()

    cluster = local(use, setup=prepare, cleanup=tidy)
    job = cluster.submit(1)
    assert job() == 12, job.exception
    cluster.close()
    assert Path(target).exists()


def test_what_cannot_travel_is_named(local: Callable[..., dispy.JobCluster], tmp_path: Path) -> None:
    cluster = local(square)
    with pytest.raises(ShippingError, match="lock"):
        cluster.submit({"deep": [threading.Lock()]})
    with pytest.raises(ShippingError, match="nowhere"):
        local(square, depends=[str(tmp_path / "nowhere")])
    with pytest.raises(SettingsError, match="pulse_interval"):
        local(square, pulse_interval=0.001)
    with pytest.raises(SettingsError, match="dispy_nonsense"):
        cluster.submit(3, dispy_nonsense=1)
    assert cluster.submit(3)() == 9


def test_a_forked_child_cannot_use_the_cluster(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(square)
    assert cluster.submit(2)() == 4
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            cluster.submit(3)
            words = "nothing was said"
        except ClosedError as error:
            words = str(error)
        os.write(writer, words.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        words = pipe.read()
    os.waitpid(child, 0)
    assert f"process {os.getpid()}" in words
    assert cluster.submit(5)() == 25


def test_the_report(local: Callable[..., dispy.JobCluster], capsys: pytest.CaptureFixture[str]) -> None:
    cluster = local(square)
    for number in range(3):
        cluster.submit(number)()
    cluster.print_status()
    printed = capsys.readouterr().out
    assert "127.0.0.1" in printed
    assert "Sec/Job" in printed
    cluster.stats()
    assert capsys.readouterr().out.count("127.0.0.1") == 1
    cluster.print_status(wall_time=1234)
    assert "wall time: 1234.000 sec" in capsys.readouterr().out
