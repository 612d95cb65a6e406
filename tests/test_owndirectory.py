"""Whose a directory is, and what is removed there."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispy.owndirectory import NODE, SCHEDULER, Kind, empty, mark, refusal, remove


def fill(path: Path, **contents: str) -> None:
    for name, content in contents.items():
        (path / name.replace("__", ".")).write_text(content)


@pytest.mark.parametrize("kind", [NODE, SCHEDULER], ids=lambda kind: kind.command)
def test_what_is_missing_empty_or_marked_may_be_used(tmp_path: Path, kind: Kind) -> None:
    assert refusal(tmp_path / "missing", kind) == ""
    assert refusal(tmp_path, kind) == ""
    mark(tmp_path, kind)
    fill(tmp_path, thesis__txt="put there later")
    assert refusal(tmp_path, kind) == ""


@pytest.mark.parametrize("contents", [{"lock": ""}, {"lock": "123\n"}, {"lock": "", "daemon": ""}])
def test_a_daemon_that_was_killed_before_its_mark_stood_finds_its_directory(
    tmp_path: Path, contents: dict[str, str]
) -> None:
    fill(tmp_path, **contents)
    (tmp_path / "blobs").mkdir()
    assert refusal(tmp_path, NODE) == refusal(tmp_path, SCHEDULER) == ""


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"thesis__txt": ""}, "it holds thesis.txt, which is not a dispynode's"),
        ({"lock": "", "daemon": "", "thesis__txt": ""}, "it holds thesis.txt"),
        ({"lock": "keys of the house"}, "it holds lock"),
        ({"blobs": ""}, "it holds blobs"),
        ({"daemon": "of Socrates"}, "it holds daemon"),
        ({"lock": "", "daemon": "of Socrates"}, "it holds daemon"),
        ({"lock": "", "jobs__sqlite": ""}, "it holds jobs.sqlite"),
        ({"daemon": "dispyscheduler\n"}, "it belongs to a dispyscheduler"),
    ],
)
def test_what_holds_anything_else_is_refused(tmp_path: Path, contents: dict[str, str], said: str) -> None:
    fill(tmp_path, **contents)
    sentence = refusal(tmp_path, NODE)
    assert said in sentence
    assert sentence.endswith(f"name one for the dispynode alone, as {tmp_path}/dispynode")


def test_an_empty_one_to_which_all_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    assert "others can write to it" in refusal(tmp_path, SCHEDULER)


def test_only_what_the_daemon_keeps_is_removed(tmp_path: Path) -> None:
    elsewhere, own = tmp_path / "elsewhere", tmp_path / "own"
    for folder in (elsewhere, own, own / "sub", own / "results"):
        folder.mkdir()
    fill(elsewhere, precious="")
    fill(own / "results", **{"1": ""})
    fill(own, lock="", thesis__txt="", jobs__sqlite="")
    mark(own, SCHEDULER)
    (own / "blobs").symlink_to(elsewhere)
    empty(own, SCHEDULER)
    assert {entry.name for entry in own.iterdir()} == {"daemon", "lock", "sub", "thesis.txt"}
    assert (elsewhere / "precious").exists()
    remove(own, SCHEDULER)
    assert {entry.name for entry in own.iterdir()} == {"sub", "thesis.txt"}
    mark(elsewhere, NODE)
    (elsewhere / "precious").unlink()
    remove(elsewhere, NODE)
    assert not elsewhere.exists()
