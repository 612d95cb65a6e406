"""What `requirements=` of a cluster means, by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dispy.errors import SettingsError
from dispy.requirements import read_requirements


def test_text_that_no_message_can_hold_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"requirements: 'na\\udcefve' is not Unicode"):
        read_requirements([b"na\xefve".decode(errors="surrogateescape")])


def test_a_list_is_taken_as_it_is() -> None:
    assert read_requirements(None) == ()
    assert read_requirements([" numpy>=2 ", "pkg @ https://example.org/pkg.whl"]) == (
        "numpy>=2",
        "pkg @ https://example.org/pkg.whl",
    )


def test_files_are_read_here(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("scipy  # of course\n")
    path = tmp_path / "requirements.txt"
    path.write_text(
        "# first\n--index-url https://example.org/simple\nnumpy==2.0 \\\n  --hash=sha256:00\n\n-r more.txt\n"
    )
    lines = read_requirements(path)
    assert [" ".join(line.split()) for line in lines] == [
        "--index-url https://example.org/simple",
        "numpy==2.0 --hash=sha256:00",
        "scipy",
    ]
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "x"\ndependencies = ["numpy", "rich>=13"]\n')
    assert read_requirements(str(project)) == ("numpy", "rich>=13")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("numpy", "a single requirement is given in a list"),
        (7, "a list of requirements"),
        ([""], "a list of requirements"),
        (["-e ."], "depends"),
        (["./mine"], "depends"),
        (["--constraint=other.txt"], "cannot be used on nodes"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(given: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        read_requirements(given)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None, "one traceback is enough"


def test_a_project_without_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\nname = "x"\ndynamic = ["dependencies"]\n')
    with pytest.raises(SettingsError, match="does not list its dependencies"):
        read_requirements(path)
    path.write_text("= nonsense")
    with pytest.raises(SettingsError, match="is not TOML"):
        read_requirements(path)
