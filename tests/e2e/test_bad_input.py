"""Bad input of every kind meets a sentence (or a counted refusal), and everything else goes on."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATAGRAMS = 10_000
CONNECTIONS = 200

PROGRAM = """
import sys
import dispy

def double(number):
    return 2 * number

if __name__ == "__main__":
    cluster = dispy.JobCluster(double, {arguments})
    jobs = [cluster.submit(number) for number in range(100)]
    assert [job() for job in jobs] == [2 * number for number in range(100)]
    print("all right", flush=True)
    if len(sys.argv) > 1:
        sys.stdin.readline()
        jobs = [cluster.submit(number) for number in range(100)]
        assert [job() for job in jobs] == [2 * number for number in range(100)]
        print("still right", flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., list[str]]:
    """`program("nodes=…")`: the command line of a program that runs a hundred jobs."""

    def make(arguments: str = "") -> list[str]:
        script = tmp_path / "program.py"
        script.write_text(PROGRAM.format(arguments=arguments))
        return [sys.executable, str(script)]

    return make


def run(command: list[str], base_port: int, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "DISPY_PORT": str(base_port), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_file_in_depends_that_is_not_there(program: Callable[..., list[str]], free_base_port: int) -> None:
    done = run(program("nodes='local', depends=['/nowhere/data.txt']"), free_base_port)
    assert done.returncode == 1
    assert "ShippingError" in done.stderr
    assert "/nowhere/data.txt" in done.stderr


def test_a_node_name_that_does_not_resolve(
    program: Callable[..., list[str]], dispynode: Callable[..., Any], free_base_port: int
) -> None:
    dispynode()
    done = run(program("nodes=['no-such-machine.invalid', '127.0.0.1']"), free_base_port)
    assert "all right" in done.stdout, done.stderr
    assert done.stderr.count("no-such-machine.invalid") == 1


def test_a_port_that_is_taken(dispynode: Callable[..., Any], free_base_port: int) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", free_base_port + 1))
        owner.listen()
        refused = dispynode("--dispy_port", str(free_base_port), ready=False)
        assert refused.wait() == 1
        assert str(os.getpid()) in refused.output
        assert str(free_base_port + 1) in refused.output
        elsewhere = dispynode()  # no port is asked for: another one does
        assert "Traceback" not in refused.output + elsewhere.output


def test_a_secret_file_that_others_can_read(
    program: Callable[..., list[str]], dispynode: Callable[..., Any], free_base_port: int, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("for everybody")
    secret.chmod(0o644)
    node = dispynode("--secret-file", str(secret), ready=False)
    assert node.wait() != 0
    assert "chmod 600" in node.output
    assert "Traceback" not in node.output
    done = run(program("nodes='local'"), free_base_port, DISPY_SECRET_FILE=str(secret))
    assert "chmod 600" in done.stderr


def test_two_nodes_with_one_directory(dispynode: Callable[..., Any]) -> None:
    first = dispynode(name="same")
    second = dispynode(name="same", ready=False)
    assert second.wait() == 1
    assert str(first.pid) in second.output


def test_garbage_is_counted_and_work_goes_on(
    program: Callable[..., list[str]], dispynode: Callable[..., Any], free_base_port: int
) -> None:
    node = dispynode()
    command = [*program("nodes=['*']"), "twice"]
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    client = subprocess.Popen(
        command,
        env={**os.environ, "DISPY_PORT": str(free_base_port)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert client.stdout is not None
        assert client.stdin is not None
        assert client.stdout.readline() == "all right\n", f"seed {seed}"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(DATAGRAMS):
                port = free_base_port + number % 2
                sender.sendto(_garbage(chance), ("127.0.0.1", port))
        for _ in range(CONNECTIONS):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", free_base_port + 1), 5) as sock:
                sock.sendall(_garbage(chance))
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "still right\n", f"seed {seed}; {node.output}"
        assert client.wait(30) == 0
    finally:
        client.kill()
        client.wait()
        for stream in (client.stdin, client.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what was not written to a process that is gone
                stream.close()
    assert node.process.poll() is None
    assert "Traceback" not in node.output


class Bomb:
    def __reduce__(self) -> Any:
        return (os._exit, (66,))


def _garbage(chance: random.Random) -> bytes:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 1400))
    if kind == 1:
        return b"PING:" + pickle.dumps(Bomb())
    if kind == 2:
        return b"\x16\x03\x01\x02\x00\x01" + chance.randbytes(200)
    return b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.mark.real
def test_a_full_disk_on_the_node(
    small_disk: Path,
    program: Callable[..., list[str]],
    start_daemon: Callable[..., Any],
    free_base_port: int,
    tmp_path: Path,
) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(8 << 20))
    env = {"DISPY_PORT": str(free_base_port)}
    node = start_daemon(
        *(sys.executable, "-m", "dispy.node.cli", "--daemon", "--dest_path_prefix", str(small_disk / "node")), env=env
    )
    node.wait_for("ready")
    command = program(f"nodes='127.0.0.1', depends=[{str(large)!r}]")
    waiting = start_daemon(*command, env=env)
    assert "blobs is full; make room there" in waiting.wait_for("cannot run double", timeout=30)
    waiting.close()
    done = run(program("nodes='127.0.0.1'"), free_base_port)
    assert "all right" in done.stdout, done.stderr + node.output
    assert node.process.poll() is None
    assert "Traceback" not in node.output


def test_a_node_whose_python_differs(dispynode: Callable[..., Any], free_base_port: int, tmp_path: Path) -> None:
    """The client says that it needs a Python that no machine has."""
    dispynode()
    script = tmp_path / "other.py"
    script.write_text(
        "import sys, types\n"
        "import dispy\n"
        "from dispy import shipping\n"
        "other = types.SimpleNamespace(major=3, minor=99)\n"
        "shipping.sys = types.SimpleNamespace(**{**vars(sys), 'version_info': other})\n"
        "cluster = dispy.JobCluster(lambda: 1, nodes='127.0.0.1')\n"
        "job = cluster.submit()\n"
        "job.finish.wait(30)\n"
        "print(job.status.name, job.exception)\n"
    )
    done = run([sys.executable, str(script)], free_base_port)
    assert "Abandoned" in done.stdout, done.stdout + done.stderr
    assert "3.99" in done.stdout
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in done.stdout
