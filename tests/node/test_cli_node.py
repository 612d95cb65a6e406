"""The dispynode command as a sysadmin meets it: options, messages, exit codes, signals."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dispy.node.cli import command
from dispy.node.options import owner_settings, size


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, list(arguments))
    return result.exit_code, result.output


def test_version() -> None:
    assert invoke("--version") == (0, "dispynode, version 5.0.0\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cpus", "9999"], "to offer more add --oversubscribe"),
        (["--cpus", "-9999"], "leaves none for jobs"),
        (["--dispy_port", "0"], "0 is not in the range"),
        (["--join", "a:b:c:0"], "give HOST or HOST:PORT"),
        (["--join", "host:99999"], "give HOST or HOST:PORT"),
        (["--secret-file", "/nowhere"], "/nowhere"),
        (["--config", "/nowhere"], "/nowhere cannot be read"),
        (["--nonsense"], "No such option"),
        (["--node_port", "9877"], "which is one less than 9877: --dispy_port 9876"),
        (["--idle-only", "x"], "'x' is no number"),
        (["--cpus", "1.5"], "'1.5' is no whole number"),
        (["--service_start", "9"], "--service_start '9': give a time of day as HH:MM"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(arguments: list[str], words: str) -> None:
    code, output = invoke(*arguments)
    assert code == 2
    assert words in output
    assert "Traceback" not in output


def test_options_are_saved_and_read_again(tmp_path: Path) -> None:
    saved, again = tmp_path / "node.ini", tmp_path / "again.ini"
    options = ("--cpus", "1", "--host", "127.0.0.1", "--join", "a,b:5", "--dispy_port", "7000", "--secret", "x y")
    code, output = invoke(*options, "--save_config", str(saved))
    assert code == 0, output
    text = saved.read_text()
    assert "dispy_port = 7000" in text
    assert "x y" not in text, "a secret does not belong into a file of options"
    assert invoke("--config", str(saved), "--save_config", str(again))[0] == 0
    assert again.read_text() == text


def test_options_of_the_original_are_known(tmp_path: Path) -> None:
    old, saved = tmp_path / "old.ini", tmp_path / "saved.ini"
    old.write_text("[DEFAULT]\nip_addr = 10.0.0.1\nunsafe_setup = True\n")
    options = ("--scheduler_host", "a", "--ext-ip-addr", "b")
    code, output = invoke("--config", str(old), *options, "--save_config", str(saved))
    assert code == 0, output
    assert sorted(output.splitlines())[:3] == [
        "the option --ext_ip_addr is called --ext_host now",
        "the option --ip_addr is called --host now",
        "the option --scheduler_host is called --join now",
    ]
    assert {"join = a", "ext_host = b", "host = 10.0.0.1"} <= set(saved.read_text().splitlines())


def test_variables_go_before_the_file_and_options_before_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, saved = tmp_path / "node.ini", tmp_path / "saved.ini"
    config.write_text("[DEFAULT]\nname = file\ngroup = file\ncpus = 1\n")
    monkeypatch.setenv("DISPY_GROUP", "variable")
    monkeypatch.setenv("DISPY_NAME", "variable")
    assert invoke("--config", str(config), "--name", "option", "--save_config", str(saved))[0] == 0
    lines = saved.read_text().splitlines()
    assert {"name = option", "group = variable", "cpus = 1"} <= set(lines)


def test_unknown_option_in_a_file_is_named(tmp_path: Path) -> None:
    config = tmp_path / "node.ini"
    config.write_text("[DEFAULT]\ncolour = blue\n")
    code, output = invoke("--config", str(config))
    assert code == 2
    assert "'colour' is no option of dispynode" in output


def test_the_first_line_says_what_was_started(dispynode: Callable[..., Any], free_base_port: int) -> None:
    node = dispynode("--cpus", "1", "--group", "lab", name="alpha")
    line = node.wait_for("ready")
    for words in (f"alpha is ready at 127.0.0.1:{free_base_port + 1}", "1 CPU;", "secret: ", "interfaces: lo", "lab"):
        assert words in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_a_free_node(
    start_daemon: Callable[..., Any], tmp_path: Path, free_base_port: int, number: signal.Signals
) -> None:
    prefix = str(tmp_path / "p")
    node = start_daemon(
        sys.executable, "-m", "dispy.node.cli", "--dest_path_prefix", prefix, env={"DISPY_PORT": str(free_base_port)}
    )
    node.wait_for("ready")
    os.kill(node.pid, number)
    assert node.wait() == 0
    assert "ended: " in node.lines[-1]
    assert ("INFO    ending now" in node.output) == (number != signal.SIGINT)


def test_a_daemon_goes_on_when_the_terminal_is_closed(dispynode: Callable[..., Any]) -> None:
    node = dispynode()
    os.kill(node.pid, signal.SIGHUP)
    os.kill(node.pid, signal.SIGTERM)
    assert node.wait() == 0
    assert "ending now" in node.output


def test_a_taken_port_is_replaced_unless_it_was_asked_for(dispynode: Callable[..., Any], free_base_port: int) -> None:
    first = dispynode()
    second = dispynode()
    assert f"TCP port {free_base_port + 1} of 127.0.0.1 is in use by process {first.pid}" in second.output
    assert "instead" in second.output
    third = dispynode("-p", str(free_base_port), ready=False)
    assert third.wait() == 1
    assert f"process {first.pid}" in third.output
    assert "Traceback" not in third.output


def test_a_second_daemon_with_the_same_directory(dispynode: Callable[..., Any], tmp_path: Path) -> None:
    first = dispynode(name="one")
    prefix = str(tmp_path / "prefix-one")
    second = dispynode("--dest_path_prefix", prefix, name="two", ready=False)
    assert second.wait() == 1
    assert f"belongs to a dispynode that runs (process {first.pid})" in second.output
    third = dispynode("--dest_path_prefix", prefix, "--clean", name="three")
    assert first.wait() == 0
    assert "three is ready" in third.output


def test_a_secret_on_the_command_line_is_hidden(dispynode: Callable[..., Any]) -> None:
    node = dispynode("--secret", "very-secret-words")
    line = Path(f"/proc/{node.pid}/cmdline").read_bytes()
    assert b"very-secret-words" not in line


def test_systemd_is_told(dispynode: Callable[..., Any], tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(10)
        node = dispynode(env={"NOTIFY_SOCKET": path})
        assert sock.recv(100) == b"READY=1"
        os.kill(node.pid, signal.SIGTERM)
        assert sock.recv(100) == b"STOPPING=1"


def test_embedded_node_ends_with_its_program(environment: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command_line = [sys.executable, "-m", "dispy.node.cli", "--embedded", str(theirs.fileno())]
            process = subprocess.Popen(command_line, pass_fds=[theirs.fileno()], start_new_session=True)
        ours.settimeout(20)
        given = {"key": secrets.token_hex(32), "name": "me", "cpus": 0, "group": ""}
        ours.sendall(json.dumps(given).encode() + b"\n")
        answer = json.loads(ours.recv(4096))
        assert len(answer["process"]) == 32
        with socket.create_connection(("127.0.0.1", answer["port"])):
            pass
    assert process.wait(20) == 0
    assert list((environment / ".cache/dispy/embedded").iterdir()) == []


def test_embedded_node_that_cannot_start_says_why() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command_line = [sys.executable, "-m", "dispy.node.cli", "--embedded", str(theirs.fileno())]
            process = subprocess.Popen(command_line, pass_fds=[theirs.fileno()], start_new_session=True)
        ours.settimeout(20)
        ours.sendall(json.dumps({"key": "00", "name": "me", "cpus": 0, "group": ""}).encode() + b"\n")
        assert json.loads(ours.recv(4096)) == {"error": "a key has 32 bytes, not 1"}
    assert process.wait(20) == 1


@pytest.mark.parametrize(
    ("text", "bytes"), [("0", 0), ("1000", 1000), ("1k", 1024), ("1.5M", 3 << 19), ("2g", 2 << 30), ("1 TB", 1 << 40)]
)
def test_sizes(text: str, bytes: int) -> None:
    assert size("--memory", text) == bytes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "lots"], "give a number of bytes"),
        (["--memory", "900t"], "this machine has"),
        (["--gpus", "many"], "give a number, or auto"),
        (["--service_start", "17:00"], "needs --service_start and --service_stop"),
        (["--service_start", "25:00", "--service_stop", "7:00"], "HH:MM"),
        (["--init", "/nowhere.py"], "there is no such file"),
        (["--zombie_interval", "-1"], "not in the range"),
    ],
)
def test_wrong_values_of_owners_are_told(arguments: list[str], words: str) -> None:
    code, output = invoke(*arguments)
    assert code == 2
    assert words in output


def test_owners_options_are_saved_and_read_again(tmp_path: Path) -> None:
    saved, again = tmp_path / "node.ini", tmp_path / "again.ini"
    options = ("--tag", "a,b", "--tag", "c", "--service_start", "17:00", "--service_end", "7:00", "--idle-only")
    code, output = invoke(*options, "--admin_secret", "x y", "--serve", "2", "--save_config", str(saved))
    assert code == 0, output
    text = saved.read_text()
    assert "tag = a, b, c" in text
    assert "idle_only = 0.5" in text
    assert "x y" not in text
    assert invoke("--config", str(saved), "--save_config", str(again))[0] == 0
    assert again.read_text() == text


def test_what_the_owner_says_becomes_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPY_TAG", "fast, big")
    monkeypatch.setenv("DISPY_ZOMBIE_INTERVAL", "0")
    words = "--memory 100m --gpus 2 --cpus 1 --keep_days 0 --msg_timeout 3 --ping_interval 12 --max_file_size 2k"
    context = command.make_context("dispynode", words.split())
    said = owner_settings(context.params)
    assert said["tags"] == ("fast", "big")
    assert (said["memory"], said["gpus"], said["cpus"]) == (100 << 20, 2, 1)
    assert (said["msg_timeout"], said["ping_interval"], said["max_file_size"]) == (3.0, 12.0, 2048)
    assert said["zombie_interval"] == float("inf")
    assert (said["keep_seconds"], said["keep_size"], said["serve"]) == (None, 10 << 30, None)
