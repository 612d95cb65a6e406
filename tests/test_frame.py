"""The frame around the program: public names, versions, and that readme and documents speak of what is there."""

from __future__ import annotations

import importlib.metadata
import os
import pwd
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import dispy
from dispy import settings
from dispy.cli import main, program
from dispy.wire import messages

OF_TESTS = {"DISPY_REQUIRE_REAL", "DISPY_CHAOS_SEED", "DISPY_CHAOS_SECONDS", "DISPY_FAILPOINT"}
"""Variables that only tests read, or set."""
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


WALL_CLOCK = {
    "making.py": "start_time of a cluster, for people",
    "closing.py": "end_time of a cluster, for people",
    "standing.py": "since when a cluster works, for people",
    "job.py": "times of a job, for people",
    "ledger.py": "times of jobs and nodes, for people",
    "node/jobside.py": "when a job spoke, for people",
    "node/service.py": "ages of files; the offset by which the core tells people the time",
    "node/steering.py": "what the owner reads",
    "node/upkeep.py": "the hours of service, which are looked at every minute",
    "node/watch.py": "when a job that was killed had begun, for people",
    "node/worker.py": "when a job began, for people; how long it ran is measured by the other clock",
    "node/spool.py": "when a result was written, which a daemon after a restart can know from that clock only",
    "node/workers.py": "when a job that was killed had begun, for people",
    "node/memorybounds.py": "how long a job ran that the kernel has killed, for people",
    "recover.py": "how long ago a program was killed, which only that clock knows",
    "scheduler/durable.py": "when a job was submitted, for people",
    "recovery/file.py": "when a file was written, for people and to choose the newest",
    "scheduler/identity.py": "since when this program runs, for people",
    "secrets.py": "dates of certificates",
    "sharing/guests.py": "since when a node has a job, for people",
    "sharing/opening.py": "since when a cluster is open, for people",
    "sharing/daemon.py": "since when a node is gone, for people",
    "sharing/questions.py": "since when a shared scheduler runs, for people",
    "sharing/storefile.py": "when a shared scheduler was first started, for people",
}
"""Who reads a clock that may be set at any time, and for what. Nothing that is waited for may hang on it."""


def test_deadlines_do_not_hang_on_the_wall_clock() -> None:
    source = ROOT / "src" / "dispy"
    readers = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if re.search(r"\btime\.time\b", path.read_text())
    }
    assert not readers - WALL_CLOCK.keys(), "say what for, or use the clock that nobody sets"


def test_public_names_can_be_imported() -> None:
    for name in dispy.__all__:
        assert getattr(dispy, name) is not None
    assert set(dispy.__all__) <= set(dir(dispy))
    assert {"JobCluster", "DispyJob", "DispyNode", "NodeAllocate", "DispyNodeAvailInfo", "logger"} <= set(dispy.__all__)


def test_a_name_that_is_not_public_is_an_error_as_usual() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dispy.no_such_name


def test_versions_agree() -> None:
    assert settings.VERSION == dispy.__version__ == PROJECT["project"]["version"]
    assert importlib.metadata.version("dispy") == settings.VERSION


def test_commands_of_the_project_exist() -> None:
    for target in PROJECT["project"]["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_scripts_in_the_readme_exist() -> None:
    named = set(re.findall(r"scripts/\w[\w-]*", README))
    assert {"scripts/demo", "scripts/test"} <= named
    for script in (*named, "scripts/check", ".ci/run"):
        assert os.access(ROOT / script, os.X_OK), script


def test_dispy_commands_in_the_readme_exist() -> None:
    lines = re.findall(r"`(dispy .+?)`", README) + re.findall(r"^    (dispy .+?)(?:  #.*)?$", README, re.MULTILINE)
    known = {option for parameter in program.params for option in parameter.opts}
    assert len(lines) >= 5
    for words in (line.split() for line in lines):
        if words[1] in main.commands:
            inner = getattr(main.commands[words[1]], "commands", None)
            assert inner is None or words[2] in inner, words
        else:
            assert {word for word in words if re.fullmatch(r"-\w|--\w+", word)} <= known, words


def test_paths_in_the_readme_exist() -> None:
    table = [line for line in README.splitlines() if line.startswith("|") and ("src/" in line or "cli.py" in line)]
    for path in re.findall(r"`([\w/.]+\.py|src/[\w/.]+)`", "\n".join(table)):
        assert (ROOT / path).exists() or list((ROOT / "src/dispy").rglob(path)), path
    for link in re.findall(r"\]\(((?!https?:)[^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_pages_of_the_site_exist() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert pages
    for page in pages:
        assert (ROOT / "docs" / page).is_file(), page


def test_every_message_is_in_the_protocol_document() -> None:
    protocol = (ROOT / "docs/design/protocol.md").read_text()
    for message in messages.Message.__subclasses__():
        assert f"`{message.__name__}" in protocol, message.__name__


def test_every_variable_is_documented_and_known() -> None:
    documents = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    for name in settings.VARIABLES:
        assert name in documents, name
    for name in set(re.findall(r"\bDISPY_[A-Z]+(?:_[A-Z]+)*\b", documents + README)):
        assert name in {*settings.VARIABLES, *OF_TESTS}, name


def test_nothing_of_one_machine_is_in_the_files() -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir
    registries = "|".join((r"pypi\.", r"pythonhosted\.", r"npmjs\.", r"golang\."))
    of_one_machine = re.compile(rf"{re.escape(str(ROOT))}/|{re.escape(home)}/\.?\w|//[\w.-]*(?:{registries})[\w.]+")
    for path in tracked_files():
        if path != Path(__file__):
            found = of_one_machine.search(path.read_text(errors="replace"))
            assert found is None, f"{path}: {found.group()}"


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not in a git repository, so it is not known which files belong to the project")
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]
