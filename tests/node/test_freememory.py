"""What is free for something large."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispy.node import freememory

MIB = 1 << 20


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    at = tmp_path / "proc"
    (at / "self").mkdir(parents=True)
    (at / "meminfo").write_text(f"MemTotal: {900 << 10} kB\nMemFree: 1 kB\nMemAvailable:  {800 << 10} kB\n")
    return at


def give_group(proc: Path, lines: str, mount: str, groups: dict[str, dict[str, str]]) -> None:
    (proc / "self" / "cgroup").write_text(lines)
    (proc / "self" / "mountinfo").write_text(mount.format(at=proc / "groups"))
    for name, files in groups.items():
        path = proc / "groups" / name
        path.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (path / file).write_text(text)


def test_the_machine_has_what_is_available(proc: Path) -> None:
    assert freememory.free(proc) == 800 * MIB


def test_a_limit_of_any_group_around_it_counts(proc: Path) -> None:
    unlimited = {"memory.max": "max\n", "memory.current": "1", "memory.stat": "inactive_file 0\n"}
    limited = {
        "memory.max": str(100 * MIB),
        "memory.current": str(90 * MIB),
        "memory.stat": f"anon 5\ninactive_file {50 * MIB}\nactive_file 7\n",
    }
    give_group(
        proc,
        "0::/outer/inner\n",
        "41 31 0:38 / {at} rw - cgroup2 cgroup2 rw\n",
        {"outer/inner": unlimited, "outer": limited},
    )
    assert freememory.free(proc) == 60 * MIB


def test_groups_of_the_first_version(proc: Path) -> None:
    files = {
        "memory.limit_in_bytes": str(100 * MIB),
        "memory.usage_in_bytes": str(130 * MIB),
        "memory.stat": f"total_inactive_file {10 * MIB}\n",
    }
    mount = "35 31 0:32 / {at} rw - cgroup cgroup rw,memory\n"
    give_group(proc, "4:memory:/mine\n2:cpu:/\n", mount, {"mine": files})
    assert freememory.free(proc) == 0


def test_something_large_may_take_a_quarter_of_what_is_free(proc: Path) -> None:
    assert freememory.has_room(200 * MIB, proc=proc)
    assert not freememory.has_room(200 * MIB + 1, proc=proc)
    assert freememory.has_room(100 * MIB, taken=400 * MIB, proc=proc)
    assert not freememory.has_room(100 * MIB, taken=401 * MIB, proc=proc)
    assert freememory.has_room(MIB, taken=900 * MIB, proc=proc)


def test_this_machine_tells() -> None:
    assert 0 <= freememory.free() < 1 << 60
