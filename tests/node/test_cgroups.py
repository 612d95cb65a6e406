"""Control groups: which are used, what is written to them, and that the kernel's verdict reaches people."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispy.node import cgroups, limits
from dispy.node.leftovers import start_time

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import gone, result, serving

MIB = 1 << 20
FILES = {
    "cgroup.procs": "",
    "cgroup.subtree_control": "",
    "memory.oom.group": "0",
    "memory.max": "max",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
    "memory.limit_in_bytes": "9223372036854771712",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
}
OURS = f"dispy-{os.getpid()}-{start_time(os.getpid())}"


class Machine:
    """A tree that behaves as the kernel's: a new group has its files, and one with files only can be removed."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.mounts: list[str] = []
        self.groups: list[str] = []
        self.given: set[Path] = set()

    def add(self, kind: str, group: str, *, given: bool) -> Path:
        at = self.at / kind
        at.mkdir(exist_ok=True)
        path = at / group.lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        if kind == "v2":
            self.mounts.append(f"41 31 0:38 / {at} rw,relatime shared:9 - cgroup2 cgroup2 rw")
            self.groups.append(f"0::{group}")
            (path / "cgroup.subtree_control").write_text("cpu memory")
        else:
            self.mounts.append(f"35 31 0:32 / {at} rw,relatime - cgroup cgroup rw,memory")
            self.groups.append(f"4:memory:{group}")
        if given:
            self.given.add(path)
        return path

    def find(self) -> cgroups.Groups | None:
        (self.at / "mountinfo").write_text("\n".join(["23 1 0:1 / / rw - ext4 /dev/vda rw", *self.mounts]))
        (self.at / "cgroup").write_text("\n".join(["8:pids:/", *self.groups]))
        return cgroups.find(self.at)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    mkdir, rmdir = Path.mkdir, Path.rmdir

    def make(path: Path, *args: object, **kwargs: object) -> None:
        mkdir(path, *args, **kwargs)  # type: ignore[arg-type]
        for name, content in FILES.items():
            if not (path / name).exists():
                (path / name).write_text(content)

    def remove(path: Path) -> None:
        if any(each.is_dir() for each in path.iterdir()) or (path / "cgroup.procs").read_text():
            raise OSError(16, "busy")
        for each in path.iterdir():
            each.unlink()
        rmdir(path)

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Path, "rmdir", remove)
    monkeypatch.setattr(cgroups, "_is_given", lambda path: path in made.given)
    return made


def test_v2_goes_before_v1_and_is_limited(machine: Machine) -> None:
    machine.add("v1", "/", given=True)
    at = machine.add("v2", "/node.service", given=True)
    groups = machine.find()
    assert groups is not None
    assert (at / OURS / "cgroup.subtree_control").read_text() == "+memory"
    group = groups.make()
    assert group.path.parent == at / OURS
    group.take(77)
    group.limit(1000)
    assert (group.path / "cgroup.procs").read_text() == "77"
    assert (group.path / "memory.max").read_text() == "1000"
    assert (group.path / "memory.oom.group").read_text() == "1"
    assert not group.has_killed()
    (group.path / "memory.events").write_text("oom 3\noom_kill 2\noom_group_kill 1\n")
    assert group.has_killed()
    group.limit(2000)
    assert not group.has_killed(), "that was the job before"
    group.lift()
    assert (group.path / "memory.max").read_text().startswith("max")
    (group.path / "cgroup.kill").write_text("")
    groups.remove(group)
    assert group.path.exists(), "its worker is still dying"
    assert (group.path / "cgroup.kill").read_text() == "1"
    (group.path / "cgroup.kill").unlink()
    (group.path / "cgroup.procs").write_text("")
    groups.close()
    assert not (at / OURS).exists()


def test_v1_is_limited_too(machine: Machine) -> None:
    at = machine.add("v1", "/", given=True)
    groups = machine.find()
    assert groups is not None
    group = groups.make()
    assert group.path.parent == at / OURS
    group.limit(1000)
    assert (group.path / "memory.limit_in_bytes").read_text().startswith("1000")
    assert not group.has_killed()
    (group.path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert group.has_killed()
    groups.remove(group)
    groups.close()
    assert not (at / OURS).exists()


def test_the_group_around_the_own_one_is_used_if_it_was_given(machine: Machine) -> None:
    at = machine.add("v2", "/node.service/daemon", given=False).parent
    machine.given.add(at)
    (at / "cgroup.controllers").write_text("cpu memory")
    groups = machine.find()
    assert groups is not None
    assert (at / "cgroup.subtree_control").read_text() == "+memory", "systemd leaves that to whom it delegates"
    assert (at / OURS).exists()
    groups.close()


def test_what_was_not_given_is_not_touched(machine: Machine) -> None:
    first = machine.add("v1", "/somebody/else", given=False)
    second = machine.add("v2", "/", given=True)
    for name in ("cgroup.controllers", "cgroup.subtree_control"):
        (second / name).write_text("hugetlb")
    before = sorted(machine.at.rglob("*"))
    assert machine.find() is None
    assert sorted(set(machine.at.rglob("*")) - {machine.at / "mountinfo", machine.at / "cgroup"}) == before
    assert first.exists()


def test_what_killed_daemons_left_is_removed_and_nothing_else(machine: Machine) -> None:
    at = machine.add("v1", "/", given=True)
    left = at / "dispy-1-99999999999"
    lives = at / f"dispy-{os.getppid()}-{start_time(os.getppid())}"
    for path in (left, left / "worker-1", lives, at / "dispy-of-somebody", at / "other"):
        path.mkdir()
    groups = machine.find()
    assert groups is not None
    assert {each.name for each in at.iterdir() if each.is_dir()} == {lives.name, "dispy-of-somebody", "other", OURS}
    groups.close()


def test_no_groups_at_all(tmp_path: Path) -> None:
    assert cgroups.find(tmp_path) is None


def test_given_are_roots_and_what_is_marked_or_owned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0 if tmp_path.stat().st_uid == 0 else tmp_path.stat().st_uid + 1)
    assert cgroups._is_given(Path("/"))
    assert not cgroups._is_given(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getxattr", lambda path, name: b"1")
        assert cgroups._is_given(tmp_path)
    if tmp_path.stat().st_uid != 0:
        monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid)
        assert cgroups._is_given(tmp_path)


GIVEN = """
import os, sys
from dispy.node import cgroups
at = sys.argv[1]
print(cgroups.find() is None, flush=True)
os.setxattr(at, "trusted.delegate", b"1")
groups = cgroups.find()
group = groups.make()
print(group.path)
groups.remove(group)
groups.close()
"""


def test_root_gives_a_group_by_marking_it() -> None:
    """What may be written to is not taken for given: it may be somebody else's."""
    parent = _real_root() / f"test-dispy-{os.getpid()}"
    parent.mkdir()
    try:
        enter = f'echo 0 > {parent}/cgroup.procs && exec "$0" "$@"'
        done = subprocess.run(
            ["sh", "-c", enter, sys.executable, "-c", GIVEN, str(parent)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        before, group = done.stdout.splitlines()
        assert before == "True"
        assert Path(group).parent.parent == parent
    finally:
        parent.rmdir()  # fails if a group were left below


def _real_root() -> Path:
    root = Path("/sys/fs/cgroup/memory")
    if not os.access(root / "memory.limit_in_bytes", os.W_OK):
        pytest.skip(f"{root} is not a memory controller (v1) that this user may write to")
    return root


@pytest.fixture
def real_groups() -> Iterator[cgroups.Groups]:
    """Groups below a group that the test makes for itself at the root of the v1 memory controller."""
    parent = _real_root() / f"test-dispy-{os.getpid()}"
    try:
        parent.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made in {parent.parent}: {error.strerror}")
    try:
        groups = cgroups.Groups(parent, is_v2=False)
        yield groups
        groups.close()
        assert [each for each in parent.iterdir() if each.is_dir()] == [], "all of them are removed"
    finally:
        parent.rmdir()


def _groups_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


@pytest.mark.parametrize("where", ["worker", "children"])
def test_the_kernel_ends_what_grows_faster_than_sampling(
    tmp_path: Path, real_groups: cgroups.Groups, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def job(where: str, count: int, size: int) -> int:
        import os
        import resource
        import time

        if where == "sleep":
            time.sleep(size)
        elif where == "worker":
            resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))  # the other net would catch 1 GiB in one piece
            return len(bytearray(b"x") * (count * size))
        elif where == "children":
            for _ in range(count):
                if not os.fork():
                    kept = bytearray(b"x") * size
                    time.sleep(60)
                    os._exit(len(kept) & 1)
            time.sleep(60)
        return os.getpid()

    monkeypatch.setattr(limits, "memory_of", lambda worker, at_fork: 0)  # as if it never came in time

    async def main() -> None:
        async with serving(tmp_path, job, workers=2, groups=real_groups) as at:
            fine = at.submit_with({"memory": 100 * MIB}, "", 0, 0)
            victim = result(await at.reply(fine))
            at.worker = 2
            neighbour = at.submit("sleep", 0, 1)
            at.worker = 1
            at.submit_with({"memory": 100 * MIB}, where, 4, 256 * MIB)
            assert "/worker-" in _groups_of(at.seen.forked[1])
            assert "/worker-" not in _groups_of(at.seen.forked[2])
            death = await at.death()
            assert death.limited
            assert re.fullmatch(r"killed: memory 1\d\d MiB over the limit of 100 MiB after [\d.]+ s", death.cause), (
                death.cause
            )
            await gone(victim)
            at.seen.deaths.clear()
            assert result(await at.reply(neighbour)) == at.seen.forked[2]
            assert at.seen.deaths == []

    asyncio.run(main())


def test_the_job_after_one_with_a_limit_has_none(tmp_path: Path, real_groups: cgroups.Groups) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda size: len(bytearray(b"x") * size), groups=real_groups) as at:
            limited = at.submit_with({"memory": 10 * MIB}, 1)
            assert result(await at.reply(limited)) == 1
            assert result(await at.run(300 * MIB)) == 300 * MIB

    asyncio.run(main())
