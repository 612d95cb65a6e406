"""The `dispy` command: what it understands, what it prints, with what code it ends."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from dispy.cli import main, programs
from dispy.cli.admin import admin
from dispy.cli.nodes import NodeSeen, Refusal, Survey, _named, _once, _print_json, _print_table
from dispy.cli.output import JsonOutput, TextOutput, make_output
from dispy.errors import SettingsError
from dispy.job import DispyJob
from dispy.model import Holder, JobState, NodeInfo, ProcessId
from dispy.node.cli import command as node_command


def run(*words: str, given: str = "") -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, list(words), input=given, prog_name="dispy")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# ---- what it understands ----


def test_without_words_it_shows_help_and_ends_with_2() -> None:
    result = run()
    assert result.exit_code == 2
    assert "dispy [OPTIONS] PROGRAM" in result.output


def test_help_shows_the_options_for_programs_and_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for word in ("--args", "--file", "--nodes", "--secret-file", "--json", "--version", "nodes", "secret", "cert"):
        assert word in result.output


@pytest.mark.parametrize("command", [main, admin, node_command])
def test_help_names_no_bound_where_there_is_none(command: click.Command) -> None:
    shown = click.testing.CliRunner().invoke(command, ["--help"])
    assert shown.exit_code == 0
    assert "None" not in shown.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no-such-program",), "'no-such-program' is neither a file nor a program on the PATH"),
        (("-d", "nodes"), "the command of that name comes first: dispy nodes …, its options behind it"),
        (("-p", "9850", "explain", "true"), "the command of that name comes first: dispy explain …"),
        (("true", "x", "y z"), "behind -a, in one piece: dispy -a 'x '\"'\"'y z'\"'\"'' PROGRAM"),
        (("--scheduler_node", "x:0", "true"), "a port is a number from 1 to 65535, not '0'"),
        (("--scheduler", "x", "--local", "true"), "leave out one of --local and --scheduler"),
        (("--timeout", "0", "true"), "'--timeout': must be a number of seconds above 0"),
        (("--timeout", "soon", "true"), "'--timeout': must be a number of seconds"),
        (("--memory", "much", "true"), "'--memory': must be at least 1 MiB"),
        (("--job-cpus", "0", "true"), "'--job-cpus': must be a whole number from 1 to 65536, or 'all'"),
        (("--gpus", "x", "true"), "'--gpus': must be a whole number from 0"),
        (("--tags", ",", "true"), "'--tags': must be a tag"),
        (("--priority", "1.5", "true"), "'--priority': must be a whole number"),
        (("--retries", "-1", "true"), "'--retries': must be a whole number from 0 to 1000"),
        (("-a", "'open", "true"), "No closing quotation"),
        (("-f", "missing.txt", "true"), "missing.txt"),
        (("-p", "much", "true"), "is no whole number"),
        (("-p", "70000", "--local", "true"), "the base port must be a number"),
        (("true", "false"), "arguments of a job stand behind -a"),
    ],
)
def test_wrong_use_ends_with_2_and_a_sentence(words: tuple[str, ...], message: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "dispy program" not in result.stderr


def test_options_may_be_written_with_either_dash() -> None:
    assert "neither a file" in run("--dispy-port", "9000", "no-such").stderr
    assert "neither a file" in run("--secret_file", "x", "no-such").stderr


def test_options_of_jobs_are_those_of_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Any] = []
    monkeypatch.setattr(programs, "_run", lambda request: requests.append(request) or 0)
    words = "--timeout 2.5 --memory 2GiB --job_cpus all --gpus 1 --tags a,b --priority -3 --retries 2 --reentrant true"
    assert run(*words.split()).exit_code == 0
    old = run("-i", "eth0", "--ip_addr", "10.0.0.1", "true")
    assert (old.exit_code, old.stderr) == (0, "the option --ip_addr is called --host now\n")
    all_of_them, none = requests
    assert all_of_them.job_options == {
        "dispy_timeout": 2.5,
        "dispy_memory": "2GiB",
        "dispy_cpus": "all",
        "dispy_gpus": 1,
        "dispy_tags": ("a", "b"),
        "dispy_priority": -3,
        "dispy_retries": 2,
    }
    assert (all_of_them.reentrant, all_of_them.hosts) == (True, ())
    assert (none.job_options, none.reentrant, none.hosts) == ({}, False, ("eth0", "10.0.0.1"))


def test_options_become_parameters_of_the_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[dict[str, Any]] = []

    def refuse(program: str, **parameters: Any) -> None:
        made.append({"program": program, **parameters})
        raise SettingsError("far enough")

    monkeypatch.setattr("dispy.cluster.JobCluster", refuse)
    (tmp_path / "data").touch()
    words = f"-c -d -f {tmp_path}/data -n a,b:9801 --local -i eth0 --reentrant -s x --certfile c --keyfile k --cafile a"
    assert run(*words.split(), "--group", "lab", "--insecure", "-p", "9900", "true").exit_code == 2
    assert run("true").exit_code == 2
    assert made == [
        {
            "program": "true",
            "nodes": ["local", "a", "b:9801"],
            "depends": [f"{tmp_path}/data"],
            "host": ("eth0",),
            "reentrant": True,
            "cleanup": False,
            "loglevel": logging.DEBUG,
            "secret": "x",
            "secret_file": None,
            "certfile": "c",
            "keyfile": "k",
            "cafile": "a",
            "group": "lab",
            "dispy_port": 9900,
            "insecure": True,
        },
        {
            "program": "true",
            "depends": [],
            "cleanup": True,
            **dict.fromkeys(("nodes", "host", "loglevel", "secret", "secret_file", "certfile", "keyfile", "cafile")),
            "group": None,
            "dispy_port": None,
            "insecure": False,
            "reentrant": False,
        },
    ]


# ---- what it prints of jobs ----


def ended(state: JobState, result: int | None, stdout: bytes = b"", stderr: bytes = b"") -> DispyJob:
    job = DispyJob()
    job.status, job.result, job.stdout, job.stderr = state, result, stdout, stderr
    job.submit_time, job.start_time, job.end_time, job.ip_addr = 99.0, 100.0, 102.5, "10.0.0.7"
    return job


def test_the_output_of_a_single_job_is_passed_through(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    output = make_output(as_json=False, jobs=1)
    output.show(["a"], ended(JobState.Finished, 0, b"no newline\xff", b"hint"))
    assert capsysbinary.readouterr() == (b"no newline\xff", b"hint")
    assert output.failed == 0


def test_several_jobs_have_headings(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    output = TextOutput(headings=True)
    output.show(["a b", "c"], ended(JobState.Finished, 0, b"one"))
    output.show([], ended(JobState.Finished, 3, b"", b"it broke"))
    out, err = capsysbinary.readouterr()
    assert out.decode() == (
        "== job 1: 'a b' c  (exit code 0 on 10.0.0.7 after 2.50 s)\none\n"
        "== job 2:   (exit code 3 on 10.0.0.7 after 2.50 s)\n"
    )
    assert err.decode() == "it broke\ndispy: job 2 (): exit code 3 on 10.0.0.7 after 2.50 s\n"
    assert output.failed == 1


def test_json_has_one_object_per_job(capsys: pytest.CaptureFixture[str]) -> None:
    output = JsonOutput()
    dead = ended(JobState.Terminated, None)
    dead.exception = "killed by SIGKILL"
    output.show(["x"], ended(JobState.Finished, 0, b"h\xc3\xa9\xff"))
    output.show([], dead)
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == {
        "args": ["x"],
        "status": "Finished",
        "exit_code": 0,
        "stdout": "hé\N{REPLACEMENT CHARACTER}",
        "stderr": "",
        "exception": None,
        "node": "10.0.0.7",
        "submit_time": 99.0,
        "start_time": 100.0,
        "end_time": 102.5,
    }
    assert (second["status"], second["exit_code"], second["exception"]) == ("Terminated", None, "killed by SIGKILL")
    assert output.failed == 1


# ---- nodes ----


HELD = Holder("ann", "desk", 7, "fit.py")


def info(holder: Holder | None = None) -> NodeInfo:
    return NodeInfo(ProcessId("ab" * 16), "n1", 8, "linux", ("cpython-3.11",), 4 << 30, "5.0.0", holder=holder)


def test_a_node_that_offers_nothing_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    closed = msgspec.structs.replace(info(), cpus=0, closed="its service window begins at 17:00")
    _print_table(Survey([NodeSeen("n1", "10.0.0.1", 9701, closed)], []))
    assert "closed: its service window begins at 17:00" in capsys.readouterr().out


def test_nodes_are_shown_with_who_holds_them(capsys: pytest.CaptureFixture[str]) -> None:
    _print_table(Survey([NodeSeen("n1", "10.0.0.1", 9701, info(HELD))], []))
    out = capsys.readouterr().out
    for part in ("n1", "10.0.0.1:9701", "8", "4.0 GiB", "cpython-3.11", "busy (ann@desk: fit.py)"):
        assert part in out
    left = msgspec.structs.replace(HELD, gone=True, results=2)
    _print_table(Survey([NodeSeen("n1", "10.0.0.1", 9701, info(left))], []))
    assert "program is gone or cut off, 2 results wait for `dispy recover`" in capsys.readouterr().out


def test_a_node_is_shown_once_with_all_its_addresses_tags_and_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    described = msgspec.structs.replace(info(), tags=("big", "ssd"), gpus=2, addresses=(("gate", 9811),))
    seen = [
        NodeSeen("n1", "10.0.0.1", 9701, described, others=[("fd77::1", 9701)]),
        NodeSeen("n1", "10.9.0.1", 9701, described),
    ]
    (once,) = _once(seen)
    _print_table(Survey([once], []))
    out = capsys.readouterr().out
    for part in ("10.0.0.1:9701", "[fd77::1]:9701", "10.9.0.1:9701", "gate:9811", "8 + 2 GPUs", "big, ssd"):
        assert out.count(part) == 1, part
    _print_json(Survey([once], []))
    shown = json.loads(capsys.readouterr().out)
    assert shown["addresses"] == ["10.0.0.1:9701", "[fd77::1]:9701", "10.9.0.1:9701", "gate:9811"]
    assert (shown["tags"], shown["gpus"], shown["holder"]) == (["big", "ssd"], 2, None)


def test_refusals_are_shown_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    refusals = [
        Refusal("n1", "10.0.0.1", "secret"),
        Refusal("n2", "10.0.0.2", "secret"),
        Refusal("n3", "10.0.0.3", "group"),
    ]
    _print_table(Survey([], refusals, ["asked on eth0 (10.0.0.9), UDP port 9701"]))
    out = capsys.readouterr().out
    assert "No node answers." in out
    assert "asked on eth0 (10.0.0.9), UDP port 9701" in out
    assert "2 machines run dispynode with another secret: n1 (10.0.0.1), n2 (10.0.0.2)" in out
    assert "for host in 10.0.0.1 10.0.0.2; do dispy secret show | ssh $host dispy secret set; done" in out
    assert "1 machine runs dispynode in another group: n3 (10.0.0.3)" in out


def test_nodes_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    seen = [NodeSeen("n1", "10.0.0.1", 9701, info()), NodeSeen("n2", "10.0.0.2", 9701, None, "no answer")]
    _print_json(Survey(seen, [Refusal("n3", "10.0.0.3", "secret")]))
    free, silent, refused = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (free["state"], free["cpus"], free["pythons"]) == ("free", 8, ["cpython-3.11"])
    assert (silent["state"], silent["problem"]) == ("unusable", "no answer")
    assert (refused["state"], refused["problem"]) == ("refused", "secret")


def test_a_host_can_be_asked_at_its_own_port() -> None:
    assert _named("n1:99", 9701) == NodeSeen("n1", "n1", 99)
    assert _named("::1", 9701) == NodeSeen("::1", "::1", 9701)


# ---- secret and certificates ----


def test_secret_is_made_shown_and_set(environment: Path) -> None:
    made = run("secret", "make")
    path = environment / ".config/dispy/secret"
    assert made.exit_code == 0
    assert str(path) in made.stderr
    shown = run("secret", "show")
    assert shown.stdout == path.read_text()
    assert run("secret", "make").exit_code == 2
    assert run("secret", "set", given="sesame\n").exit_code == 0
    assert run("secret", "show").stdout == "sesame\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_variable_that_goes_before_the_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPY_SECRET", "other")
    assert "DISPY_SECRET" in run("secret", "set", given="sesame\n").stderr


def test_an_empty_secret_is_refused() -> None:
    result = run("secret", "set", given="\n")
    assert result.exit_code == 2
    assert "empty" in result.stderr


def test_certificates_are_made_and_described(tmp_path: Path) -> None:
    where = ("--directory", str(tmp_path))
    assert run("cert", "ca", *where).exit_code == 0
    made = run("cert", "node", "n1", *where)
    assert made.exit_code == 0
    certificate = Path(made.stdout.splitlines()[0])
    assert certificate.is_file()
    assert f"--certfile {certificate.name}" in made.stderr
    shown = run("cert", "show", str(certificate)).stdout
    assert "node" in shown
    assert "dispy authority" in shown
    assert run("cert", "node", "n1", *where).exit_code == 2
