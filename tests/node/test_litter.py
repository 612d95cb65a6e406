"""What is removed of a node's files, by value and in a real directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dispy.node.litter import LEAST_AGE, Entry, is_due, stamp, surplus, tidy, tidy_environments

DAY = 86400.0
NOW = 1000 * DAY


def entry(name: str, size: int, days: float) -> Entry:
    return Entry(Path(name), size, NOW - days * DAY)


def test_what_is_too_old_goes() -> None:
    entries = [entry("old", 1, 31), entry("new", 1, 29)]
    assert surplus(entries, NOW, keep_size=None, keep_seconds=30 * DAY) == entries[:1]
    assert surplus(entries, NOW, keep_size=None, keep_seconds=None) == []


def test_what_was_not_used_for_longest_goes_until_the_rest_fits() -> None:
    entries = [entry("b", 40, 2), entry("c", 40, 1), entry("a", 40, 3)]
    gone = surplus(entries, NOW, keep_size=80, keep_seconds=None)
    assert [each.path.name for each in gone] == ["a"]
    assert len(surplus(entries, NOW, keep_size=0, keep_seconds=None)) == 3


def test_what_was_used_a_moment_ago_stays() -> None:
    entries = [Entry(Path("a"), 99, NOW - LEAST_AGE + 1)]
    assert surplus(entries, NOW, keep_size=1, keep_seconds=1.0) == []


def make(path: Path, days: float, size: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    for each in (path, path.parent):
        os.utime(each, (NOW - days * DAY, NOW - days * DAY))
    return path


def test_a_directory_of_a_node_is_tidied(tmp_path: Path) -> None:
    blob, fresh = make(tmp_path / "blobs/aa", 40), make(tmp_path / "blobs/bb", 1)
    kept, open_ = make(tmp_path / "jobs/kept-1/out", 40), make(tmp_path / "jobs/open-2/out", 40)
    shared = make(tmp_path / "named/project/x/out", 40)
    os.utime(tmp_path / "named/project", (NOW - 40 * DAY, NOW - 40 * DAY))
    foreign = make(tmp_path / "notes/of/somebody", 40)
    lock = make(tmp_path / "lock", 40)
    gone = tidy(tmp_path, [open_.parent], NOW, keep_size=None, keep_seconds=30 * DAY)
    assert {each.path for each in gone} == {blob, kept.parent, tmp_path / "named/project"}
    assert [each.exists() for each in (blob, kept, shared)] == [False] * 3
    assert [each.exists() for each in (fresh, open_, lock, foreign)] == [True] * 4


def test_a_file_that_stands_in_a_directory_as_well_stays(tmp_path: Path) -> None:
    blob = make(tmp_path / "blobs/aa.lent", 40)
    (tmp_path / "jobs" / "open-1").mkdir(parents=True)
    placed = tmp_path / "jobs" / "open-1" / "data"
    placed.hardlink_to(blob)
    later = time.time() + 40 * DAY
    assert tidy(tmp_path, [placed.parent], later, keep_size=1, keep_seconds=30 * DAY) == []
    placed.unlink()
    soon = time.time() + 20 * DAY  # its content is old, but it was needed until now
    assert tidy(tmp_path, [], soon, keep_size=None, keep_seconds=30 * DAY) == []
    gone = tidy(tmp_path, [], later, keep_size=None, keep_seconds=30 * DAY)
    assert {each.path for each in gone} == {placed.parent, blob}


def test_an_environment_is_one_entry_with_a_stamp(tmp_path: Path) -> None:
    environments = tmp_path / "environments"
    python = make(environments / "one/bin/python", 40)
    other = make(environments / "two/bin/python", 40)
    unused = make(environments / "three/bin/python", 40)
    log = make(environments / "three.log", 40)
    stamp(environments, str(python))
    stamp(environments, "/usr/bin/python")
    os.utime(environments / "one/.used", (NOW - DAY, NOW - DAY))
    for name in ("one", "two", "three"):
        os.utime(environments / name, (NOW - 40 * DAY, NOW - 40 * DAY))
    tidy(tmp_path, [other], NOW, keep_size=None, keep_seconds=30 * DAY)
    assert [each.exists() for each in (python, other, unused, log)] == [True, True, False, False]


def test_a_directory_without_anything_is_tidy(tmp_path: Path) -> None:
    assert tidy(tmp_path / "nowhere", [], NOW, keep_size=0, keep_seconds=0.1) == []


def test_environments_that_nodes_share_are_tidied_too(tmp_path: Path) -> None:
    root = tmp_path / "environments"
    used, stamped = make(root / "one/bin/python", 40), make(root / "two/bin/python", 40)
    unused, log = make(root / "three/bin/python", 40), make(root / "three.log", 40)
    stamp(root, str(stamped))
    os.utime(root / "two/.used", (NOW - DAY, NOW - DAY))
    for name in ("one", "two", "three"):
        os.utime(root / name, (NOW - 40 * DAY, NOW - 40 * DAY))
    gone = tidy_environments(root, [used], NOW, keep_size=None, keep_seconds=30 * DAY)
    assert [each.path.name for each in gone] == ["three"]
    assert [each.exists() for each in (used, stamped, unused, log)] == [True, True, False, False]


def test_what_nodes_share_is_looked_through_once_a_day(tmp_path: Path) -> None:
    now = time.time()
    assert not is_due(tmp_path / "nowhere", now)
    assert is_due(tmp_path, now)
    assert not is_due(tmp_path, now + 3600)
    assert is_due(tmp_path, now + 2 * DAY)
