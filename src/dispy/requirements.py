"""What a cluster's `requirements` mean: a list of requirements, or the path of a file that has them.

Read on the client; nodes get the lines and make environments of them (`dispy.node.venvs`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from dispy.errors import SettingsError
from dispy.settings import is_sendable

_OPTIONS: Final = (
    *("-i", "--index-url", "--extra-index-url", "--no-index", "-f", "--find-links"),
    *("--pre", "--no-binary", "--only-binary", "--prefer-binary", "--require-hashes"),
)
"""Options in a requirements file that nodes can obey; others concern files of this machine."""


def read_requirements(given: str | os.PathLike[str] | Sequence[str] | None) -> tuple[str, ...]:
    """The lines of a requirements file for nodes.

    Args:
        given: a list of requirements, or the path of a requirements.txt or pyproject.toml.

    Raises:
        SettingsError: it is neither, the file cannot be read, or a line means a file of this machine.
    """
    if given is None:
        return ()
    if isinstance(given, str | os.PathLike):
        return tuple(_read_file(Path(given)))
    if not isinstance(given, list | tuple) or not all(isinstance(line, str) and line.strip() for line in given):
        raise SettingsError(
            "requirements: a list of requirements (['numpy>=2']), or the path of a requirements.txt or "
            f"pyproject.toml, not {given!r}"
        )
    return tuple(_checked(line.strip(), "requirements") for line in given)


def _read_file(path: Path) -> Iterator[str]:
    try:
        if path.suffix == ".toml":
            yield from _of_project(path)
        else:
            yield from _of_lines(path)
    except OSError as error:
        hint = "" if path.suffix else "; a single requirement is given in a list"
        raise SettingsError(f"requirements: {path} cannot be read: {error.strerror}{hint}") from None


def _of_project(path: Path) -> Iterator[str]:
    import tomllib  # few have a project

    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"requirements: {path} is not TOML: {error}") from None
    if not isinstance(project, dict) or "dependencies" in project.get("dynamic", ()):
        raise SettingsError(f"requirements: {path} does not list its dependencies under [project]")
    for line in project.get("dependencies", ()):
        yield _checked(str(line).strip(), str(path))


def _of_lines(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for raw in text.splitlines():
        line = raw.partition(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        for option in ("-r ", "--requirement ", "--requirement="):
            if line.startswith(option):
                yield from _read_file(path.parent / line.removeprefix(option).strip())
                break
        else:
            yield _checked(line, str(path))


def _checked(line: str, where: str) -> str:
    option = line.replace("=", " ").split()[0] if line.startswith("-") else ""
    if not is_sendable(line):
        raise SettingsError(f"{where}: {line!r} is not Unicode text (bytes that are not UTF-8?)")
    if "\n" in line or (option and option not in _OPTIONS) or line.startswith((".", "/")):
        raise SettingsError(
            f"{where}: {line!r} cannot be used on nodes; what lies on this machine goes into depends, other things "
            "are named as `name`, `name>=1.2` or `name @ https://…`"
        )
    return line
