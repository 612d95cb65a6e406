"""`dispy up` and `dispy down`: with a stub of ssh that runs things here, and once over a real sshd."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dispy.cli.remote import far_command, outcome_of
from dispy.node.launch import MARK

STUB = """#!/bin/sh
echo "$@" >> {directory}/ssh-calls
while [ "$1" != -- ]; do shift; done
host=$2
shift 2
case $host in
  dead) echo "Warning: Permanently added 'dead'." >&2
    echo "ssh: connect to host dead port 22: Connection refused" >&2
    exit 255;;
  slow) sleep 60;;
esac
XDG_STATE_HOME={directory}/$host/state XDG_CACHE_HOME={directory}/$host/cache XDG_CONFIG_HOME={directory}/$host/config
DISPY_NAME=$host
export XDG_STATE_HOME XDG_CACHE_HOME XDG_CONFIG_HOME DISPY_NAME
echo "welcome to $host"
exec sh -c "$*"
"""
SECRET = "sesame-of-the-test"


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stub of ssh on the PATH; the file with its calls."""
    stub = tmp_path / "bin" / "ssh"
    stub.parent.mkdir()
    stub.write_text(STUB.format(directory=tmp_path))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    return tmp_path / "ssh-calls"


@pytest.fixture
def dispy(free_base_port: int, tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """`dispy(*words)`: runs the command; nodes that it leaves are ended after the test."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "DISPY_PORT": str(free_base_port), "DISPY_SECRET": SECRET}
        command = [sys.executable, "-m", "dispy.cli", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    yield run
    for record in tmp_path.rglob("dispy/nodes/*.json"):
        known = json.loads(record.read_text())
        if psutil.pid_exists(known["pid"]):
            process = psutil.Process(known["pid"])
            process.terminate()
            process.wait(10)


def names_found(dispy: Any) -> list[str]:
    return sorted(json.loads(line)["name"] for line in dispy("nodes", "--json").stdout.splitlines())


def test_nodes_are_started_found_and_stopped(ssh: Path, dispy: Any, tmp_path: Path) -> None:
    up = dispy("up", "n1", "me@n2", "--node-option", "--cpus 1")
    assert up.returncode == 0, up.stderr
    assert sorted(line.split(":")[0] for line in up.stdout.splitlines()) == ["me@n2", "n1"]
    assert "is ready at" in up.stdout
    assert names_found(dispy) == ["me@n2", "n1"]
    again = dispy("up", "n1", "--json")
    assert again.returncode == 0
    answer = json.loads(again.stdout)
    assert (answer["host"], answer["ok"]) == ("n1", True)
    assert "runs already" in answer["text"]
    assert "is ready" in Path(answer["log"]).read_text()
    stopped = dispy("down", "n1", "me@n2")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.count("has ended") == 2
    assert names_found(dispy) == []
    assert "no node runs there" in dispy("down", "n1").stdout
    assert SECRET not in ssh.read_text(), "the secret must be on no command line"


def test_each_failure_is_told_by_its_first_line_and_the_others_go_on(ssh: Path, dispy: Any) -> None:
    began = time.monotonic()
    up = dispy("up", "dead", "slow", "n1", "--timeout", "15", "--node-option", "--cpus 1", "--json")
    assert time.monotonic() - began < 40
    assert up.returncode == 1
    answers = {answer["host"]: answer for answer in map(json.loads, up.stdout.splitlines())}
    assert answers["n1"]["ok"]
    assert answers["dead"]["text"] == "ssh: connect to host dead port 22: Connection refused"
    assert answers["slow"]["text"] == "nothing came back within 15 s"
    assert dispy("down", "n1", "--now").returncode == 0


def test_a_node_that_cannot_start_says_why(ssh: Path, dispy: Any) -> None:
    up = dispy("up", "n1", "--node-option", "--cpus 4096")
    assert up.returncode == 1
    assert "this machine has" in up.stderr
    assert "not 4096" in up.stderr


def test_what_is_run_there_can_be_named(ssh: Path, dispy: Any, tmp_path: Path) -> None:
    assert dispy("up", "n1", "--python", sys.executable, "-o", "--cpus 1").returncode == 0
    assert dispy("down", "n1", "--command", f"{sys.executable} -m dispy.node.cli").returncode == 0
    nothing = dispy("up", "n1", "--python", "/no/such/python")
    assert nothing.returncode == 1
    assert "/no/such/python" in nothing.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("up",), "Missing argument"),
        (("up", "--", "-oProxyCommand=x"), "is no name of a machine"),
        (("up", "n1", "-o", "--secret x"), "must not be on a command line"),
        (("up", "n1", "--ssh-option", "'open"), "--ssh-option: No closing quotation"),
    ],
)
def test_wrong_use_ends_with_2(ssh: Path, dispy: Any, words: tuple[str, ...], message: str) -> None:
    done = dispy(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not ssh.exists()


def test_options_for_ssh_are_passed_on(ssh: Path, dispy: Any) -> None:
    dispy("up", "dead", "--ssh-option", "-p 2222", "--ssh-option", "-i '/a key'")
    call = ssh.read_text()
    assert "-o BatchMode=yes" in call
    assert "-p 2222 -i /a key -- dead" in call


def test_answers_are_found_among_greetings() -> None:
    answer = MARK + json.dumps({"ok": True, "text": "fine", "pid": 7, "log": "/l"})
    found = outcome_of("n1", f"hello\n{answer}\n", "", 0)
    assert (found.ok, found.text, found.pid) == (True, "fine", 7)
    assert outcome_of("n1", "", "\n", 3).text == "ssh ended with 3 and said nothing"
    assert not outcome_of("n1", MARK + "{half", "cut off\n", 255).ok


def test_without_dispy_there_an_environment_can_be_made(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    python = tmp_path / "bin/python3"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n[ "$1" = -c ] && exit 1\nmkdir -p "$3/bin"\n'
        f'printf \'#!/bin/sh\\necho pip "$@" >> {calls}\\n\' > "$3/bin/pip"\n'
        f'printf \'#!/bin/sh\\necho node "$@" >> {calls}\\n\' > "$3/bin/python"\nchmod +x "$3/bin"/*\n'
    )
    python.chmod(0o755)
    for name in ("mkdir", "chmod", "sh"):
        (python.parent / name).symlink_to(str(shutil.which(name)))
    command = far_command(None, None, "dispy==5").replace(sys.executable, "/no/python")
    env = {"HOME": str(tmp_path / "home"), "PATH": str(python.parent)}
    sh = str(shutil.which("sh"))
    done = subprocess.run([sh, "-c", command], env=env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    told = calls.read_text()
    assert "pip install -q dispy==5" in told
    assert "node -m dispy.node.cli --launch" in told
    nothing = far_command(None, None, None).replace(sys.executable, "/no/python")
    env["HOME"] = str(tmp_path)
    done = subprocess.run([sh, "-c", nothing], env=env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 127
    assert done.stderr.startswith("no dispy was found there")


@pytest.mark.real
def test_over_a_real_sshd(dispy: Any, start_daemon: Callable[..., Any], tmp_path: Path, wait_until: Any) -> None:
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd: run scripts/real-parts")
    if os.geteuid() != 0:
        pytest.skip("sshd lets its own user in only where it runs as root")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    state = tmp_path / "far"
    environment = " ".join(f"{name}={state}" for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"))
    environment += f" PYTHONPATH={os.environ.get('PYTHONPATH', '')} DISPY_INTERFACES=lo DISPY_NAME=far"
    config = tmp_path / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        f"StrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\nSetEnv {environment}\n"
    )
    daemon = start_daemon(sshd, "-D", "-e", "-f", str(config))
    daemon.wait_for("Server listening")
    ssh_options = f"-p {port} -i {tmp_path}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -F none"
    words = ("--ssh-option", ssh_options, "--python", sys.executable)
    up = dispy("up", "127.0.0.1", *words, "--node-option", "--cpus 1")
    try:
        assert up.returncode == 0, up.stdout + up.stderr + daemon.output
        assert names_found(dispy) == ["far"]
    finally:
        down = dispy("down", "127.0.0.1", *words)
    assert down.returncode == 0, down.stderr
    assert names_found(dispy) == []
    refused = dispy("up", "127.0.0.1", "--ssh-option", ssh_options.replace("/user", "/host"))
    assert refused.returncode == 1
    assert "Permission denied" in refused.stderr
