"""What users of the original know and no other test is about, row by row, on one node of this machine."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing.sharedctypes
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

import dispy
import dispy.cli
from dispy.errors import ShippingError

SOON = 20.0


@pytest.fixture
def local() -> Iterator[Callable[..., dispy.JobCluster]]:
    """`local(computation, …)`: a cluster on a node that is started for the test."""
    clusters: list[dispy.JobCluster] = []

    def make(computation: Any, **settings: Any) -> dispy.JobCluster:
        clusters.append(dispy.JobCluster(computation, **{"nodes": "local"} | settings))
        return clusters[-1]

    yield make
    for cluster in clusters:
        if not cluster.is_closed:
            cluster.close(terminate=True)
    for cluster in clusters:
        cluster.shutdown()


def here(*arguments: Any) -> dispy.NodeAllocate:
    return dispy.NodeAllocate("*", setup_args=arguments)


def ended(job: dispy.DispyJob) -> dispy.DispyJob:
    assert job.finish.wait(SOON), f"the job is still {job.status!r}"
    return job


def echo(value: Any = None, seconds: float = 0.0, begun: str = "") -> Any:
    if begun:
        Path(begun).touch()
    time.sleep(seconds)
    return value


NEVER = [
    ({"dispy_gpus": 99}, "GPU"),
    ({"dispy_cpus": 4096}, "not 4096"),
    ({"dispy_memory": "4096TB"}, "of memory"),
    ({"dispy_tags": ["lake"]}, "does not have the tag lake"),
]


def test_jobs_that_this_machine_can_never_run(local: Callable[..., dispy.JobCluster]) -> None:
    heard: list[tuple[int, Any]] = []
    told: list[Any] = []
    cluster = local(
        echo,
        job_status=lambda job: told.append(job.result),
        cluster_status=lambda status, node, job: heard.append((int(status), job and job.id)),
    )
    jobs = [(cluster.submit(1, **options), cause) for options, cause in NEVER]
    for job, cause in jobs:
        assert ended(job).status == dispy.DispyJob.Abandoned
        assert "no node can run it" in (job.exception or "")
        assert cause in (job.exception or "")
    assert cluster.submit(2)() == 2, "others run"
    cluster.close()
    assert told == [2], "job_status does not hear of abandoned jobs"
    assert {(int(dispy.DispyJob.Abandoned), job.id) for job, _ in jobs} <= set(heard)


def test_attributes_of_a_cluster(local: Callable[..., dispy.JobCluster]) -> None:
    before = time.time()
    cluster = local(echo, ping_interval=30, pulse_interval=1, poll_interval=5)
    assert (cluster.ping_interval, cluster.pulse_interval, cluster.poll_interval) == (30, 1, 5)
    assert (cluster.name, cluster.pending, cluster.cpu_time, cluster.end_time) == ("echo", 0, 0.0, None)
    assert before <= cluster.start_time <= time.time()
    cluster.submit(1, 0.05)()
    assert cluster.cpu_time >= 0.05
    assert cluster.close() is True
    assert cluster.start_time <= (cluster.end_time or 0) <= time.time()


def test_the_ways_to_submit_and_to_wait(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(echo)
    plain = cluster.submit(1)
    assert plain() == 1
    (node,) = cluster.status().nodes
    for where in (node, node.ip_addr, node.name):
        job = cluster.submit_job_id_node(("mine", 7), where, "there")
        assert job is not None
        assert (job(), job.id) == ("there", ("mine", 7))
    assert cluster.submit_job_id_node("x", "192.0.2.7", 1) is None
    assert cluster.submit_node("192.0.2.7", 1) is None
    slow = cluster.submit("slow", 0.3)
    assert cluster.wait(timeout=0.01) is False
    assert cluster() is None  # type: ignore[func-returns-value]
    assert slow.finish.is_set()
    assert cluster.wait() is True


def test_a_node_says_how_it_stands(
    local: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    heard: list[int] = []
    cluster = local(echo, cluster_status=lambda status, node, job: heard.append(status))
    begun = tmp_path / "begun"
    job = cluster.submit(1, 30, str(begun))
    wait_until(begun.exists, timeout=SOON)
    status = cluster.status()
    assert isinstance(status, dispy.ClusterStatus)
    assert status.jobs_pending == 1
    (node,) = status.nodes
    assert node.busy == 1
    assert 0 < node.cpus <= node.avail_cpus
    wait_until(lambda: dispy.DispyNode.AvailInfo in heard)
    info = node.avail_info
    assert info is not None
    assert 0 <= info.cpu <= 100
    assert 0 <= info.swap <= 100
    assert info.memory > 0
    assert info.disk > 0
    assert abs(time.time() - node.update_time) < 60
    assert cluster.cancel(job) == 0
    assert ended(job).status == dispy.DispyJob.Terminated
    assert cluster.status().nodes[0].busy == 0
    assert dispy.DispyJob.Created in heard
    assert dispy.DispyNode.Initialized in heard


def test_what_a_node_has_got_and_given(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(echo)
    small, large = bytes(2000), bytes(300_000)
    assert (cluster.submit(small)(), cluster.submit(large)()) == (small, large)
    (node,) = cluster.status().nodes
    assert 302_000 < node.tx < 303_000
    assert 302_000 < node.rx < 303_000
    assert node.jobs_done == 2
    assert 0 < node.cpu_time == cluster.cpu_time


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


def test_arguments_are_shown_until_the_job_has_ended(
    local: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    seen: list[Any] = []
    cluster = local(echo, job_status=lambda job: seen.append((job._args, job._kwargs)))
    begun = tmp_path / "begun"
    blocker = cluster.submit("blocks", 30, str(begun), dispy_cpus="all")
    wait_until(begun.exists, timeout=SOON)
    assert (blocker._args, blocker._kwargs) == (("blocks", 30, str(begun)), {})
    by_name = cluster.submit(value=[Point(1, 2)], seconds=0.0)
    assert (by_name._args, by_name._kwargs) == ((), {"value": [Point(1, 2)], "seconds": 0.0})
    large = cluster.submit(bytes(100_000))
    assert large._args == (bytes(100_000),)
    here = 5
    code = cluster.submit(lambda: (here, Point, echo))
    ((function,), named) = code._args, code._kwargs
    assert (function(), named) == ((5, Point, echo), {})
    alone = cluster.submit(Point(3), dispy_job_depends=[here_alone])
    assert (alone._args, alone._kwargs) == ((Point(3),), {})
    assert cluster.cancel(blocker) == 0
    for job in (blocker, by_name, large, code, alone):
        ended(job)
        assert (job._args, job._kwargs) == ((), {})
    cluster.wait()
    wait_until(lambda: len(seen) == 5)
    assert seen == [((), {})] * 5


def here_alone() -> None: ...


class Brought:
    """Something that a job brings by name."""


def found_by_name(name: str) -> str:
    found = vars(sys.modules["__main__"]).get(name)
    return f"nothing of {name}" if found is None else str(found.__name__)


def test_what_a_job_alone_can_bring(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(found_by_name)
    assert cluster.submit("Brought", dispy_job_depends=[Brought])() == "Brought"
    assert cluster.submit("Brought", dispy_job_depends=[Brought()])() == "Brought"
    assert cluster.submit("here_alone", dispy_job_depends=[functools.partial(here_alone)])() == "here_alone"
    assert cluster.submit("here_alone")() == "nothing of here_alone"
    with pytest.raises(ShippingError, match="neither a file, function, class"):
        cluster.submit("here_alone", dispy_job_depends=[5])


def talking(path: str) -> tuple[int, ...]:
    with open(path, "w") as file:
        file.write("sent")
    return (
        dispy_provisional_result("so far", True, 5),  # type: ignore[name-defined]  # noqa: F821
        dispy_send_file(path, relay=True, timeout=5),  # type: ignore[name-defined]  # noqa: F821
        dispy_send_file(path, False, None),  # type: ignore[name-defined]  # noqa: F821
    )


def test_parameters_of_the_functions_in_a_job(
    local: Callable[..., dispy.JobCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cluster = local(talking)
    job = ended(cluster.submit("answer.txt"))
    assert job.result == (0, 0, 0), job.exception
    assert (tmp_path / "answer.txt").read_text() == "sent"
    (node,) = cluster.status().nodes
    assert cluster.send_file("answer.txt", node, relay=True) == 0


def test_programs_of_java_are_run_by_the_command_of_the_settings(
    local: Callable[..., dispy.JobCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Hello.java").write_text("class Hello {}\n")
    java = tmp_path / "java"
    java.write_text('#!/bin/sh\necho "$(cat $1) ${1##*/} $2 $PWD $dispy_job_path ${PATH%%:*}"\nexit 3\n')
    java.chmod(0o755)
    monkeypatch.setitem(vars(dispy.config)["_chosen"], "Java", str(java))
    job = ended(local(str(tmp_path / "Hello.java")).submit("word"))
    *said, here, path, first = job.stdout.split()
    assert (job.result, said) == (3, [b"class", b"Hello", b"{}", b"Hello.java", b"word"])
    assert here == path == first
    java.unlink()
    job = ended(local(str(tmp_path / "Hello.java")).submit("word"))
    assert job.status == dispy.DispyJob.Terminated
    assert f"Hello.java cannot be executed: {java}, which shall run it: No such file" in (job.exception or "")


# ---- the ends of a connection ----


def made_certificates(folder: Path) -> list[list[str]]:
    """Options of dispynode, and of its users, with certificates of one authority."""
    for words in (["ca"], ["node", "one"], ["client", "me"]):
        done = click.testing.CliRunner().invoke(dispy.cli.main, ["cert", *words, "-o", str(folder)])
        assert done.exit_code == 0, done.output
    authority = ("--cafile", str(folder / "ca.pem"))
    return [
        ["--certfile", str(folder / f"{name}.pem"), "--keyfile", str(folder / f"{name}.key"), *authority]
        for name in ("node-one", "client-me")
    ]


def test_certificates_on_both_command_lines(
    dispynode: Callable[..., Any], free_base_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPY_LOCAL", "never")
    for_node, for_client = made_certificates(tmp_path / "certificates")
    node = dispynode(*for_node, "--debug", "--host", "127.0.0.1", name="one")
    assert f"one is ready at 127.0.0.1:{free_base_port + 1}; " in node.output, "nowhere but at --host"
    words = ["-p", str(free_base_port), *for_client, "-n", "127.0.0.1", "-a", "through", "echo"]
    done = subprocess.run(
        [sys.executable, "-m", "dispy.cli", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "through\n"), done.stderr
    named = dict(zip((option.removeprefix("--") for option in for_client[::2]), for_client[1::2], strict=True))
    both = tmp_path / "both.pem"
    both.write_text(Path(named["keyfile"]).read_text() + Path(named["certfile"]).read_text())
    both.chmod(0o600)
    for credentials in (named, {"certfile": str(both), "cafile": named["cafile"]}):
        cluster = dispy.JobCluster(echo, ["127.0.0.1"], dispy_port=free_base_port, **credentials)  # type: ignore[arg-type]
        assert cluster.submit("typed")() == "typed"
        cluster.shutdown()
    assert "DEBUG   event " in node.output, "of --debug"
    stranger = dispy.JobCluster(echo, nodes=["127.0.0.1"], dispy_port=free_base_port, secret="some other words here")
    job = stranger.submit(1)
    deadline = time.monotonic() + SOON
    while "certificate" not in (why := stranger.explain(job)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "certificate" in why
    stranger.close(terminate=True)
    stranger.shutdown()


# ---- setup ----


def counting() -> None:
    global total
    total = multiprocessing.sharedctypes.Value("i", 0)


def add(number: int) -> int:
    with total.get_lock():  # type: ignore[attr-defined]
        total.value += number
        return total.value


def test_jobs_of_a_node_share_values(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(add, setup=counting)
    assert max(job() for job in [cluster.submit(1) for _ in range(20)]) == 20


def answering(answer: Any) -> Any:
    global given
    given = answer
    return answer


def what_was_given() -> Any:
    return given


def test_what_setup_returns(local: Callable[..., dispy.JobCluster]) -> None:
    for answer in (None, 0, 1, 2):
        cluster = local(what_was_given, nodes=["local", here(answer)], setup=answering)
        assert cluster.submit()() == answer
    for answer in (3, "no"):
        cluster = local(what_was_given, nodes=["local", here(answer)], setup=answering)
        job = cluster.submit()
        deadline = time.monotonic() + SOON
        while "setup returned" not in (text := cluster.explain(job)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert f"setup returned {answer!r}" in text
        assert cluster.cancel(job) == 0
