"""Jobs as another user: a daemon of root, jobs of nobody."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import dispy
from dispy.errors import SettingsError
from dispy.node.account import find_account

sys.path.insert(0, str(Path(__file__).parent))
from packages import find_uv, wheel

USER = "nobody"
SOON = 20.0

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="jobs as another user need root: run the tests as root, in a container for example"
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter, which the test's own is not."""
    path = Path(tempfile.mkdtemp(prefix="dispy-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def python(place: Path) -> list[str]:
    """A command that runs this interpreter where the user may run it too."""
    entry = pwd.getpwnam(USER)
    own = os.path.realpath(sys.executable)
    tried = (
        subprocess.run([own, "-c", ""], user=entry.pw_uid, cwd="/", check=False, capture_output=True)
        if (_may_run(own))
        else None
    )
    if tried is not None and not tried.returncode:
        return [sys.executable]
    if shutil.which("unshare") is None:
        pytest.skip(f"{USER} cannot run {own}, and there is no unshare to show it elsewhere")
    # The same files at another path, seen by this daemon only.
    (place / "py").mkdir(mode=0o755)
    script = f'mount --bind {sys.base_prefix} {place}/py && exec "$0" "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", script, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here: run scripts/real-parts")
    inner = f"{place}/py/bin/{os.path.basename(own)}"
    return ["unshare", "-m", "sh", "-c", script, inner]


def _may_run(path: str) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in Path(path).parents)


@pytest.fixture
def node(
    start_daemon: Callable[..., Any], free_base_port: int, place: Path, python: list[str], monkeypatch: Any
) -> Callable[..., Any]:
    def start(*options: str, **env: str) -> Any:
        folders = [str(Path(dispy.__path__[0]).parent), *(each for each in sys.path if each.endswith("site-packages"))]
        return start_daemon(
            *(*python, "-m", "dispy.node.cli", "--daemon", "--dest_path_prefix", str(place / "node")),
            *("--cpus", "1", "--user", USER, *options),
            env={"DISPY_PORT": str(free_base_port), "PYTHONPATH": os.pathsep.join(folders), **env},
        )

    monkeypatch.setenv("DISPY_PORT", str(free_base_port))
    monkeypatch.setenv("DISPY_LOCAL", "never")
    return start


def who(paths: list[str]) -> dict[str, Any]:
    import os
    import pwd

    with open("made-here", "w") as file:
        file.write("x")
    readable = []
    for path in paths:
        try:
            with open(path, "rb") as found:
                found.read(1)
            readable.append(path)
        except OSError:
            pass
    with open("/proc/self/status") as status:
        fields = dict(line.split(":\t", 1) for line in status)
    with open("sent.txt") as sent:
        text = sent.read()
    return {
        "uids": os.getresuid(),
        "gids": os.getresgid(),
        "groups": os.getgroups(),
        "home": (os.environ["HOME"], os.environ["USER"], os.environ["LOGNAME"]),
        "confined": fields["NoNewPrivs"].strip(),
        "capabilities": int(fields["CapEff"], 16),
        "owner": pwd.getpwuid(os.stat("sent.txt").st_uid).pw_name,
        "readable": readable,
        "secret": [name for name in os.environ if "SECRET" in name],
        "text": text,
    }


@needs_root
@pytest.mark.real
def test_jobs_run_as_the_user_and_the_daemon_stays_root(
    node: Callable[..., Any], place: Path, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    daemon = node()
    daemon.wait_for("ready")
    sent = tmp_path / "sent.txt"
    sent.write_text("hello")
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    paths = [str(secret), "/etc/shadow", f"/proc/{daemon.pid}/environ", str(place / "node/lock")]
    cluster = dispy.JobCluster(who, depends=[str(sent)])
    try:
        job = cluster.submit(paths)
        assert job.finish.wait(SOON), cluster.explain(job)
        assert job.result is not None, job.exception
        entry = pwd.getpwnam(USER)
        assert job.result["uids"] == (entry.pw_uid,) * 3
        assert job.result["gids"] == (entry.pw_gid,) * 3
        assert sorted(job.result["groups"]) == sorted(os.getgrouplist(USER, entry.pw_gid))
        assert job.result["home"] == (entry.pw_dir, USER, USER)
        assert (job.result["confined"], job.result["capabilities"]) == ("1", 0)
        assert (job.result["owner"], job.result["text"]) == (USER, "hello")
        assert job.result["readable"] == []
        assert job.result["secret"] == []
        assert os.stat(f"/proc/{daemon.pid}").st_uid == 0
    finally:
        cluster.close()
        cluster.shutdown()
    wait_until(lambda: not list((place / "node/jobs").iterdir()))


def use_required() -> tuple[int, str, str, tuple[int, ...]]:
    import os
    import sys

    import dispy_test_user  # type: ignore[import-not-found]

    with open(f"{sys.prefix}/pyvenv.cfg") as config:
        return dispy_test_user.ANSWER, sys.prefix, config.read(), os.getresuid()


@needs_root
@pytest.mark.real
@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_environments_are_built_and_used_by_the_user(
    node: Callable[..., Any], place: Path, tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a directory that the user cannot enter, and without a home for uv's cache."""
    tools = place / "tools"
    tools.mkdir(mode=0o755)
    if tool == "uv":
        shutil.copy(find_uv(), tools / "uv")
    else:  # one that the user cannot run is passed over
        (tools / "uv").write_text("#!/bin/sh\nexit 1\n")
        (tools / "uv").chmod(0o755)
    packages = place / "packages"
    packages.mkdir(mode=0o755)
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    monkeypatch.chdir(hidden)
    daemon = node(PATH=os.pathsep.join((str(tools), os.environ["PATH"])))
    daemon.wait_for("ready")
    cluster = dispy.JobCluster(use_required, requirements=[wheel(packages, "dispy_test_user", "ANSWER = 45")])
    try:
        job = cluster.submit()
        assert job.finish.wait(3 * SOON), cluster.explain(job)
        assert job.result is not None, job.exception
        answer, prefix, config, uids = job.result
        uid = pwd.getpwnam(USER).pw_uid
        assert (answer, uids) == (45, (uid,) * 3)
        assert (tool == "uv") == any(line.startswith("uv = ") for line in config.splitlines())
        environment = Path(prefix)
        assert environment.parent == place / "node/environments"
        assert environment.stat().st_uid == uid
        marks = {environment / "dispy-complete", environment / ".used"}
        assert {path for path in environment.rglob("*") if path.lstat().st_uid != uid} == marks
    finally:
        cluster.close()
        cluster.shutdown()


def endless() -> None:
    import signal
    import time

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    dispy_provisional_result("begun")  # type: ignore[name-defined] # noqa: F821
    time.sleep(100)


@needs_root
@pytest.mark.real
def test_the_daemon_ends_jobs_of_the_user(node: Callable[..., Any]) -> None:
    daemon = node()
    daemon.wait_for("ready")
    cluster = dispy.JobCluster(endless)
    job = cluster.submit()
    try:
        deadline = 200
        while job.result != "begun" and deadline:
            job.finish.wait(0.1)
            deadline -= 1
        assert job.result == "begun", "it does not run"
        daemon.process.terminate()
        assert daemon.wait() == 0
    finally:
        cluster.close(terminate=True)
        cluster.shutdown()


def allow_processes(pid: int, count: str) -> None:
    """Set how many processes the user may have before this one can make no other; as the user, who may do that."""
    group = pwd.getpwnam(USER).pw_gid
    subprocess.run(["prlimit", f"--pid={pid}", f"--nproc={count}:"], user=USER, group=group, check=True)


def no_setup() -> int:
    return 0


@needs_root
@pytest.mark.real
def test_a_user_who_may_have_no_more_processes(node: Callable[..., Any], wait_until: Callable[..., Any]) -> None:
    """The node says so and tries again; when the user may have more, the job runs."""
    daemon = node()
    daemon.wait_for("ready")
    cluster = dispy.JobCluster(abs, setup=no_setup)  # so that there is a fork server before the first job
    try:
        wait_until(lambda: cluster.status().nodes, timeout=SOON)
        below = psutil.Process(daemon.pid).children(recursive=True)
        [fork_server] = [process for process in below if process.name() == "dispy-fork"]
        allow_processes(fork_server.pid, "0")
        job = cluster.submit(-7)
        daemon.wait_for("no worker could be started: no more processes or threads are allowed")
        allow_processes(fork_server.pid, "4096")
        assert job.finish.wait(SOON), cluster.explain(job)
        assert job.result == 7
        assert daemon.output.count("no worker could be started") == 1
    finally:
        cluster.close(terminate=True)
        cluster.shutdown()


@needs_root
@pytest.mark.real
def test_a_directory_that_the_user_cannot_reach_is_told(
    start_daemon: Callable[..., Any], python: list[str], tmp_path: Path, free_base_port: int
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    folders = [str(Path(dispy.__path__[0]).parent), *(each for each in sys.path if each.endswith("site-packages"))]
    daemon = start_daemon(
        *(*python, "-m", "dispy.node.cli", "--daemon", "--user", USER, "--dest_path_prefix", str(hidden / "node")),
        env={"DISPY_PORT": str(free_base_port), "PYTHONPATH": os.pathsep.join(folders)},
    )
    assert daemon.wait() == 1
    assert "the user nobody cannot work in" in daemon.output


def test_users_that_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="has no such user"):
        find_account("nobody-of-this-name")
    with pytest.raises(SettingsError, match="leave it out"):
        find_account("root")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SettingsError, match="only a node that root starts"):
        find_account(USER)
