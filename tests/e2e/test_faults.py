"""Faults while jobs run: who is killed, stopped or interrupted, what the jobs become, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import dispy
from dispy.errors import SettingsError, ShippingError

SOON = 20.0


def ended(job: dispy.DispyJob) -> dispy.DispyJob:
    assert job.finish.wait(SOON), f"the job is still {job.status!r}"
    return job


def embedded_nodes(parent: int) -> list[psutil.Process]:
    children = psutil.Process(parent).children()
    return [child for child in children if child.status() != "zombie" and "--embedded" in child.cmdline()]


def wait_for_file(path: str) -> str:
    import pathlib

    while not pathlib.Path(path).exists():
        time.sleep(0.02)
    return path


def test_an_embedded_node_that_is_killed_is_started_again(
    clusters: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    cluster = clusters(wait_for_file, nodes="local", reentrant=True)
    gate = tmp_path / "gate"
    job = cluster.submit(str(gate))
    wait_until(lambda: job.status == dispy.DispyJob.Running)
    [node] = embedded_nodes(os.getpid())
    node.kill()
    gate.touch()
    assert ended(job).result == str(gate)
    assert node not in embedded_nodes(os.getpid())
    cluster.close()

    [node] = embedded_nodes(os.getpid())
    node.kill()  # with no cluster there it is the next one that needs a node
    wait_until(lambda: not psutil.pid_exists(node.pid))
    again = clusters(wait_for_file, nodes="local")
    assert ended(again.submit(str(gate))).result == str(gate)


def test_depends_that_can_never_be_read_to_the_end(tmp_path: Path) -> None:
    """A pipe makes `open` wait, a device has no end, and the letters of a string are not files."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for depends, sentence in [
        ([str(pipe)], "not a regular file"),
        (["/dev/zero"], "not a regular file"),
        ("/data.csv", "must be a list"),
        (5, "must be a list"),
    ]:
        with pytest.raises(ShippingError, match=sentence):
            dispy.JobCluster(abs, nodes="local", depends=depends)  # type: ignore[arg-type]


def test_without_a_home(free_base_port: int, tmp_path: Path) -> None:
    """Nothing can be kept anywhere below HOME: jobs run on this machine, and a line says why only there."""
    program = "import dispy\nwith dispy.JobCluster(abs) as cluster:\n    print('result', cluster.submit(-7)())\n"
    env = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    env |= {"HOME": "/dev/null", "TMPDIR": str(tmp_path), "DISPY_PORT": str(free_base_port)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert "result 7" in done.stdout, done.stderr
    assert "only a node on this machine can be used: no secret can be kept at /dev/null/" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_clusters_of_one_program_share_a_node_whatever_their_pulse(
    dispynode: Callable[..., Any], clusters: Callable[..., dispy.JobCluster], free_base_port: int
) -> None:
    dispynode()
    first = clusters(abs, nodes="127.0.0.1", dispy_port=free_base_port, pulse_interval=0.5)
    second = clusters(abs, nodes="127.0.0.1", dispy_port=free_base_port)
    assert ended(first.submit(-1)).result == 1
    assert ended(second.submit(-2)).result == 2


@pytest.mark.parametrize("given", [{"group": 5}, {"secret": 5}, {"dest_path": 5}, {"loglevel": "loud"}])
def test_settings_of_a_wrong_kind_are_refused_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(given))} must be"):
        dispy.JobCluster(abs, nodes="local", **given)


def test_a_callback_that_exits_does_not_end_callbacks(
    clusters: Callable[..., dispy.JobCluster], capfd: pytest.CaptureFixture[str]
) -> None:
    """`sys.exit` ends a thread; close() waits for the callbacks that come after it."""
    seen: list[int] = []

    def status(job: dispy.DispyJob) -> None:
        seen.append(job.result)
        if job.result == 1:
            sys.exit("enough")

    cluster = clusters(abs, nodes="local", job_status=status)
    for number in (-1, -2):
        ended(cluster.submit(number))
    assert cluster.close(timeout=SOON)
    assert seen == [1, 2]
    assert "a callback of this program failed" in capfd.readouterr().err


def test_settings_for_daemons_do_not_stop_a_program(
    clusters: Callable[..., dispy.JobCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPY_CPUS", "many")
    monkeypatch.setenv("DISPY_CONFIG", "/nonexistent")
    assert ended(clusters(abs, nodes="local").submit(-1)).result == 1


def test_wrong_surroundings_of_commands_are_one_sentence(free_base_port: int) -> None:
    env = {**os.environ, "DISPY_PORT": str(free_base_port)}
    for command, sentence in [
        (["env", "DISPY_INTERFACES=nonexistent", sys.executable, "-m", "dispy.node.cli"], "no interface"),
        ([sys.executable, "-m", "dispy.cli", "--local", "-a", "1", "echo"], "the output cannot be written"),
    ]:
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode in {1, 2}
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


def test_a_low_limit_of_open_files(free_base_port: int) -> None:
    """The soft limit is raised; where the hard one forbids it, a sentence says what to do."""
    program = (
        "import dispy, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[1])))\n"
        "cluster = dispy.JobCluster(abs, nodes='local')\n"
        "job = cluster.submit(-7)\n"
        "job.finish.wait(20)\n"
        "print('result', job.result, job.exception)\n"
        "cluster.close(terminate=True)\n"
    )
    for hard, result, said in (
        ("2048", "result 7", ""),
        ("64", "result None no node could be started on this machine: a process may have", "only 64 files open"),
    ):
        command = [sys.executable, "-c", program, hard]
        env = {**os.environ, "DISPY_PORT": str(free_base_port)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert result in done.stdout, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


WAITING = """
import dispy, sys, time
def stubborn(path):
    import time
    open(path, "w").close()
    while True:
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            pass
cluster = dispy.JobCluster(stubborn, nodes="127.0.0.1")
cluster.submit(sys.argv[1])
print("submitted", flush=True)
"""


def test_interrupts_at_the_end_of_a_program(
    dispynode: Callable[..., Any], start_daemon: Callable[..., Any], wait_until: Callable[..., Any], tmp_path: Path,
    free_base_port: int,
) -> None:  # fmt: skip
    """The first Ctrl-C ends jobs and says so, the second does not wait for them; who comes next gets the node."""
    dispynode()
    env = {"DISPY_PORT": str(free_base_port)}
    first = start_daemon(sys.executable, "-c", WAITING, str(tmp_path / "first"), env=env)
    wait_until((tmp_path / "first").exists, timeout=SOON)
    second = start_daemon(sys.executable, "-c", WAITING, str(tmp_path / "second"), env=env)
    line = second.wait_for("cannot be used now")
    assert f"process {first.pid}) since 20" in line
    first.wait_for("waiting for them")
    first.process.send_signal(signal.SIGINT)
    first.wait_for("interrupted: 1 job to be ended now")
    first.process.send_signal(signal.SIGINT)
    first.wait(5)  # a job that ignores its interrupt gets eight seconds
    assert "Traceback" not in first.output
    wait_until((tmp_path / "second").exists, timeout=2 * SOON)


def test_a_node_that_gets_the_right_secret_is_used(
    dispynode: Callable[..., Any],
    clusters: Callable[..., dispy.JobCluster],
    free_base_port: int,
    capfd: pytest.CaptureFixture[str],
    wait_until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program says what is wrong; when that is mended it goes on by itself."""
    monkeypatch.setattr("dispy.scheduler.targets.DISCOVERY_INTERVAL", 0.5)
    node = dispynode(env={"DISPY_SECRET": "old"})
    cluster = clusters(abs, nodes="127.0.0.1", dispy_port=free_base_port, secret="new")
    job = cluster.submit(-1)
    node.wait_for("has another secret")
    node.close()
    dispynode(env={"DISPY_SECRET": "new"})
    assert ended(job).result == 1
    assert "has another secret" in capfd.readouterr().err
    assert "secret" not in cluster.service.search.account()


def start_and_wait(folder: str, number: int) -> tuple[int, int]:
    import os
    import pathlib
    import sys
    import time

    starts = pathlib.Path(folder, f"{number}.{os.getpid()}")
    print("last words", file=sys.stderr)
    starts.touch()
    while not pathlib.Path(folder, "gate").exists():
        time.sleep(0.02)
    return number, len(list(starts.parent.glob(f"{number}.*")))


def processes_of(node: Any) -> list[psutil.Process]:
    """Guard, fork server and workers of a node with one computation, in this order."""
    found = psutil.Process(node.pid).children(recursive=True)
    return sorted(found, key=lambda process: len(process.parents()))


def started(folder: Path) -> int:
    return len(list(folder.glob("*.*")))


@pytest.mark.parametrize(("victim", "lost"), [("guard", 2), ("fork server", 2), ("worker", 1)])
def test_a_process_of_a_node_is_killed(
    dispynode: Callable[..., Any],
    clusters: Callable[..., dispy.JobCluster],
    free_base_port: int,
    tmp_path: Path,
    wait_until: Callable[..., Any],
    victim: str,
    lost: int,
) -> None:
    """What ran in it is Terminated at once and says why; what had not started runs; nothing is left."""
    node = dispynode("--cpus", "2")
    cluster = clusters(start_and_wait, nodes="127.0.0.1", dispy_port=free_base_port)
    jobs = [cluster.submit(str(tmp_path), number) for number in range(5)]
    wait_until(lambda: started(tmp_path) == 2)
    guard, fork_server, *workers = before = processes_of(node)
    {"guard": guard, "fork server": fork_server, "worker": workers[0]}[victim].kill()
    wait_until(lambda: sum(job.status == dispy.DispyJob.Terminated for job in jobs) == lost)
    assert all("SIGKILL" in str(job.exception) for job in jobs if job.status == dispy.DispyJob.Terminated)
    if victim == "worker":
        [dead] = [job for job in jobs if job.status == dispy.DispyJob.Terminated]
        assert re.search(r"SIGKILL \(killed\); it had used up to [\d.]+ [MG]B of memory", str(dead.exception))
        assert "last words" in str(dead.exception)
    else:
        psutil.wait_procs(before, timeout=SOON)
        assert not any(process.is_running() for process in before)
    (tmp_path / "gate").touch()
    states = [ended(job).status for job in jobs]
    assert states.count(dispy.DispyJob.Finished) == 5 - lost
    cluster.close()
    wait_until(lambda: not processes_of(node))


class FatalAtFirst:
    """Kills the process that loads it, as often as it is told."""

    def __init__(self, folder: Path, times: int) -> None:
        self.code = (
            "import os, pathlib\n"
            f"count = len(list(pathlib.Path({str(folder)!r}).iterdir()))\n"
            f"if count < {times}:\n"
            f"    pathlib.Path({str(folder)!r}, str(count)).touch()\n"
            "    os.kill(os.getpid(), 9)\n"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


@pytest.mark.parametrize("times", [2, 9])
def test_a_fork_server_is_killed_while_it_starts(
    local: Callable[..., dispy.JobCluster], tmp_path: Path, times: int
) -> None:
    """It is started three times in all, and the jobs wait for it."""
    fatal = FatalAtFirst(tmp_path, times)
    job = ended(local(lambda: fatal).submit())
    assert len(list(tmp_path.iterdir())) == min(times, 3)
    if times < 3:
        assert job.status == dispy.DispyJob.Finished
    else:
        assert job.status == dispy.DispyJob.Abandoned
        assert "its fork server died 3 times in a row; last: while it started, the computation's fork" in str(
            job.exception
        )


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_node_is_killed_and_started_again(
    dispynode: Callable[..., Any],
    clusters: Callable[..., dispy.JobCluster],
    free_base_port: int,
    tmp_path: Path,
    wait_until: Callable[..., Any],
    reentrant: bool,
) -> None:
    """Its processes die with it; reentrant jobs run again, others end Abandoned and whoever waits is woken."""
    node = dispynode("--cpus", "2", name="mortal")
    cluster = clusters(start_and_wait, nodes="127.0.0.1", dispy_port=free_base_port, reentrant=reentrant)
    jobs = [cluster.submit(str(tmp_path), number) for number in range(4)]
    wait_until(lambda: started(tmp_path) == 2)
    below = processes_of(node)
    node.process.kill()
    _, alive = psutil.wait_procs(below, timeout=SOON)
    assert not alive
    if not reentrant:
        wait_until(lambda: sum(job.status == dispy.DispyJob.Abandoned for job in jobs) == 2)
    (tmp_path / "gate").touch()
    dispynode("--cpus", "2", name="mortal")
    for job in jobs:
        ended(job)
    finished = [job for job in jobs if job.status == dispy.DispyJob.Finished]
    assert [job.result[0] for job in finished] == ([0, 1, 2, 3] if reentrant else [2, 3])
    assert all("may have started" in str(job.exception) for job in jobs if job not in finished)


def test_a_client_is_killed_and_the_next_one_gets_the_node(
    dispynode: Callable[..., Any],
    start_daemon: Callable[..., Any],
    clusters: Callable[..., dispy.JobCluster],
    free_base_port: int,
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    node = dispynode("--cpus", "1")
    program = (
        "import dispy\n"
        "from pathlib import Path\n"
        "def job(path):\n"
        "    Path(path).touch()\n"
        f"    while not Path({str(tmp_path / 'gate')!r}).exists():\n"
        "        pass\n"
        f"cluster = dispy.JobCluster(job, nodes='127.0.0.1', dispy_port={free_base_port})\n"
        f"jobs = [cluster.submit({str(tmp_path)!r} + f'/job.{{number}}') for number in range(3)]\n"
        "cluster.wait()\n"
    )
    client = start_daemon(sys.executable, "-c", program)
    wait_until(lambda: started(tmp_path) == 1)
    client.process.kill()
    (tmp_path / "gate").touch()
    job = clusters(abs, nodes="127.0.0.1", dispy_port=free_base_port).submit(-1)
    assert ended(job).result == 1
    assert started(tmp_path) == 1, "what had not started is dropped with its client"
    assert "Traceback" not in node.output


def test_a_node_that_is_stopped_for_a_while_loses_nothing(
    dispynode: Callable[..., Any], clusters: Callable[..., dispy.JobCluster], free_base_port: int, tmp_path: Path
) -> None:
    """Longer than a node is suspected, shorter than it is lost."""
    node = dispynode("--cpus", "2")
    cluster = clusters(start_and_wait, nodes="127.0.0.1", dispy_port=free_base_port)
    jobs = [cluster.submit(str(tmp_path), number) for number in range(6)]
    while started(tmp_path) < 2:
        time.sleep(0.01)
    node.process.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    node.process.send_signal(signal.SIGCONT)
    (tmp_path / "gate").touch()
    assert [ended(job).result for job in jobs] == [(number, 1) for number in range(6)]


BEHIND_A_CABLE = """
import sys
import dispy
def job(folder, number):
    import os, pathlib, time
    folder = pathlib.Path(folder)
    (folder / f"{number}.{dispy_node_name}").touch()
    try:
        while not (folder / "gate").exists():
            time.sleep(0.02)
    except KeyboardInterrupt:
        (folder / f"stopped-{number}").touch()
        raise
    return number
cluster = dispy.JobCluster(job, reentrant=True)
jobs = [cluster.submit(sys.argv[1], number) for number in range(int(sys.argv[2]))]
print("results", [job() for job in jobs], flush=True)
cluster.shutdown()
"""


@pytest.mark.parametrize("long", [False, True])
def test_a_cable_is_cut_and_mended(
    dispynode: Callable[..., Any],
    start_daemon: Callable[..., Any],
    netns: Any,
    tmp_path: Path,
    wait_until: Callable[..., Any],
    long: bool,
) -> None:
    """For four seconds: nothing is run again. Until the node is lost: its jobs run again, their old attempts end."""
    for name in ("n1", "n2", "n3"):
        dispynode("--cpus", "1", name=name, env=netns.env, inside=netns.inside(name), base_port=9700)
    command = (*netns.inside("client"), sys.executable, "-c", BEHIND_A_CABLE, str(tmp_path), "3")
    client = start_daemon(*command, env={**netns.env, "DISPY_PORT": "9700"})
    wait_until(lambda: started(tmp_path) == 3)
    [victim] = [path.name.partition(".")[0] for path in tmp_path.glob("*.n2")]
    netns.cut("n2")
    if long:
        spare = dispynode("--cpus", "1", name="spare", env=netns.env, inside=netns.inside("n1"), base_port=9700)
        wait_until(lambda: len(list(tmp_path.glob(f"{victim}.*"))) == 2, timeout=30)
        netns.join("n2")
        wait_until((tmp_path / f"stopped-{victim}").exists, timeout=30)
        assert "Traceback" not in spare.output
    else:
        time.sleep(4.0)
        netns.join("n2")
    (tmp_path / "gate").touch()
    client.wait_for("results [0, 1, 2]", timeout=30)
    assert client.wait() == 0
    assert started(tmp_path) == (4 if long else 3)
