"""The documents say what the program is: programs in them run, lists are those of the code, links lead somewhere."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from dispy import JobCluster, SharedJobCluster, cli, errors, model, settings
from dispy.job import DispyJob
from dispy.node.cli import command as dispynode_command
from dispy.relay.cli import command as relay_command
from dispy.sharing.cli import command as scheduler_command
from dispy.wire import handshake, message, messages, pool

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
RUNNABLE = re.compile(r"<!-- runnable -->\n```python\n(.+?)```", re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*[a-z]")
ELSEWHERE = {
    *("--ip_addr", "--ext_ip_addr", "--node_port"),
    *("--scheduler_host", "--listen_port"),
    # of the programs in benchmarks
    *("--peers", "--scratch", "--only", "--quick"),
    # of other programs
    *("--system", "--create-home", "--home-dir", "--now", "--year", "--index-url", "--find-links"),
}
"""Options that documents name and dispy does not have: of the original, and of other programs."""


def blocks() -> Iterator[Any]:
    for name, text in PAGES.items():
        for number, block in enumerate(RUNNABLE.findall(text), 1):
            yield pytest.param(block, id=f"{name}-{number}")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("block", list(blocks()))
def test_programs_in_documents_run(
    block: str,
    dispynode: Callable[..., Any],
    free_base_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dispynode()
    monkeypatch.setenv("DISPY_PORT", str(free_base_port))
    monkeypatch.setenv("DISPY_LOCAL", "never")
    script = tmp_path / "program.py"
    script.write_text(block)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "it prints nothing"
    assert "Traceback" not in done.stderr


def test_there_are_programs_to_run() -> None:
    assert len(list(blocks())) >= 8


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with the words by which it is called."""

    def walk(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{words} {name}", inner)

    yield from walk("dispy", cli.main)
    yield "dispynode", dispynode_command
    yield "dispyscheduler", scheduler_command
    yield "dispynetrelay", relay_command


def options_of(command: click.Command) -> set[str]:
    shown = (parameter for parameter in command.params if not getattr(parameter, "hidden", False))
    return {name for parameter in shown for name in (*parameter.opts, *parameter.secondary_opts)}


def plain(option: str) -> str:
    """Dashes and underscores in options mean the same."""
    return "--" + option[2:].replace("-", "_")


def test_every_option_that_is_named_exists() -> None:
    known = {plain(option) for _, command in commands() for option in options_of(command) if option.startswith("--")}
    known |= {"--help", "--version"} | {plain(option) for option in ELSEWHERE}
    for name, text in PAGES.items():
        assert {option for option in OPTION.findall(text) if plain(option) not in known} == set(), name


def test_every_option_is_in_the_reference() -> None:
    reference = PAGES["reference/commands.md"]
    for words, command in commands():
        name = words.split()[0]
        daemons = reference.partition("\n## dispynode\n")
        part = daemons[0] if name == "dispy" else reference.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for option in options_of(command):
            if option.startswith("-"):
                names = {option, option.replace("_", "-"), "--" + option[2:].replace("-", "_")}
                assert any(re.search(rf"`{re.escape(name)}[ `]", part) for name in names), f"{words} {option}"


def test_every_command_is_in_the_reference() -> None:
    for words, command in commands():
        if not command.hidden:
            assert re.search(rf"\b{words}\b", PAGES["reference/commands.md"]), words


def test_commands_that_are_shown_exist() -> None:
    known = {words for words, _ in commands()}
    for name, text in PAGES.items():
        for words in re.findall(r"\bdispy (?:secret|cert) [a-z]+\b", text):
            if not words.endswith((" and", " for", " is", " or")):
                assert words in known, f"{name}: {words}"


def test_settings_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(DISPY_\w+)` \|", PAGES["reference/settings.md"], re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == set(settings.VARIABLES)


def test_variables_of_dispynode_are_in_its_table() -> None:
    part = PAGES["reference/commands.md"].partition("\n## dispynode")[2]
    for parameter in dispynode_command.params:
        names = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or []
        for variable in names:
            assert f"`{variable}`" in part, variable


def _in_first_column(section: str) -> set[str]:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_parameters_of_a_cluster_are_in_the_reference() -> None:
    section = PAGES["reference/api.md"].partition("\n## JobCluster")[2].partition("\n### ")[0]
    assert _in_first_column(section) == set(inspect.signature(JobCluster).parameters)


def test_parameters_of_a_shared_cluster_are_in_the_reference() -> None:
    section = PAGES["reference/api.md"].partition("\n## SharedJobCluster")[2].partition("\n## ")[0]
    named, parameters = _in_first_column(section), set(inspect.signature(SharedJobCluster).parameters)
    assert named <= parameters
    assert parameters - set(inspect.signature(JobCluster).parameters) <= named


def test_methods_of_a_cluster_are_in_the_reference() -> None:
    section = PAGES["reference/api.md"].partition("\n### Methods")[2].partition("\n### ")[0]
    internal = {"abandoned", "end_jobs", "expect_no_more_nodes", "finish", "forget", "never"}
    inherited = {name: getattr(JobCluster, name) for name in dir(JobCluster)}
    for name, value in inherited.items():
        if not name.startswith("_") and name not in internal and (callable(value) or isinstance(value, property)):
            assert re.search(rf"`{name}[`(]", section), name


def test_fields_and_states_of_a_job_are_in_the_reference() -> None:
    section = PAGES["reference/api.md"].partition("\n## DispyJob")[2].partition("\n## ")[0]
    public = {name for name in (*DispyJob.__slots__, *vars(DispyJob)) if not name.startswith("_")}
    for name in public:
        assert f"`{name}`" in section, name
    for state in model.JobState:
        assert f"| `{state.name}` | {state.value} |" in section, state.name


def test_errors_are_in_the_reference() -> None:
    section = PAGES["reference/api.md"].partition("\n## Exceptions")[2].partition("\n## ")[0]
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.DispyError):
            assert f"`{name}`" in section or name == "DispyError", name


def test_the_house_lists_every_module() -> None:
    rooms = PAGES["design/house.md"].partition("\n## The rooms")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", rooms, re.MULTILINE)
    package = ROOT / "src/dispy"
    there = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == there


def test_paths_that_are_named_exist() -> None:
    package = ROOT / "src/dispy"
    for name, text in PAGES.items():
        if name == "coming-from-the-original.md":
            continue
        for path in re.findall(r"`((?:src/dispy/|wire/|node/|scheduler/|cli/|examples/|tests/)[\w./]+)`", text):
            assert (ROOT / path).exists() or (package / path).exists(), f"{name}: {path}"


def test_links_lead_somewhere() -> None:
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)", text):
            assert ((DOCS / name).parent / target).exists(), f"{name}: {target}"


def fields_of(struct: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(struct)]


@pytest.mark.parametrize("message", message.Message.__subclasses__(), ids=lambda message: message.__name__)
def test_messages_are_described_with_their_fields(message: type[msgspec.Struct]) -> None:
    row = re.search(rf"^\| `{message.__name__}` \| ([^|]*)\|", PAGES["design/protocol.md"], re.MULTILINE)
    assert row is not None
    names = [part.split(":")[0].strip() for part in row.group(1).split(",") if part.strip()]
    assert names == fields_of(message)


STRUCTS = (
    *(model.BlobRef, model.FileSpec, model.ComputationSpec, model.JobSpec, model.JobOptions, model.JobDone),
    model.JobDepends,
    *(model.HeldAttempt, model.NodeHeard, model.Holder, model.NodeInfo, model.AvailInfo),
    *(pool.NodeSeen, pool.JobOver, pool.NodeStanding, pool.ClusterStatus, pool.UserStatus),
    *(pool.PoolNode, pool.PoolStatus, pool.JobStatus),
)


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_structs_are_described_with_their_fields(struct: type[msgspec.Struct]) -> None:
    row = re.search(rf"^\| {struct.__name__} \| (array|map) \| (.+) \|$", PAGES["design/protocol.md"], re.MULTILINE)
    assert row is not None
    described = re.sub(r"\([^)]*\)", "", row.group(2)).partition(":")[0]
    assert [part.strip() for part in described.split(",")] == fields_of(struct)
    assert row.group(1) == ("array" if struct.__struct_config__.array_like else "map")


def test_the_handshake_is_described_with_its_fields() -> None:
    protocol = PAGES["design/protocol.md"]
    assert f"| `Hello` | {', '.join(fields_of(handshake.Hello))} |" in protocol
    assert fields_of(handshake.Challenge) == fields_of(handshake.Hello)
    assert f"| `Refused` | {', '.join(fields_of(handshake.Refused))} |" in protocol
    for reason in handshake.Refusal:
        assert re.search(rf"[`\"]{reason.value}[`\"]", protocol), reason


def test_numbers_in_the_documents_are_those_of_the_code() -> None:
    protocol, limits = PAGES["design/protocol.md"], PAGES["reference/limits.md"]
    assert f"protocol number **{messages.PROTOCOL}**" in protocol
    for capability in messages.CAPABILITIES:
        assert f"`{capability}`" in protocol
    silence = (settings.HEARTBEAT_INTERVAL, settings.SUSPECT_TIMEOUT, settings.GRACE_TIMEOUT)
    for row in (
        f"| base port | {settings.BASE_PORT};",
        f"| heartbeat, suspect, link lost | {', '.join(f'{seconds:g}' for seconds in silence)} |",
        f"| from SIGINT to SIGTERM, from SIGTERM to SIGKILL | {settings.INTERRUPT_TIMEOUT:g}, ",
        f"| stdout and stderr kept of a job | {model.OUTPUT_LIMIT >> 20} MiB each",
        f"| arguments or result inside a batch | {settings.INLINE_SIZE >> 10} KiB;",
        f"| results of a program that is gone wait on the node for | {settings.ZOMBIE_INTERVAL:g} after",
        f"| CPUs that a cluster of a shared scheduler opens at once | all of a pool of up to {settings.SMALL_POOL}, ",
        f"| an embedded node is started when nothing was heard for | {settings.EMBEDDED_AFTER:g} |",
    ):
        assert row in limits, row
