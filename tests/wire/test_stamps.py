"""What the times of files tell of changes: which file systems are believed, and what this process has mapped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dispy.wire import stamps

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
43 27 0:39 / /tmp/with\\040space rw,relatime shared:1 master:2 - tmpfs tmpfs rw,size=3145728k
44 27 0:40 /sub /btrfs rw,relatime shared:7 - btrfs /dev/vdb rw,subvol=/sub
45 27 0:41 / /home rw,relatime - nfs4 server:/home rw
46 27 0:42 / /merged rw,relatime - overlay overlay rw,upperdir=/ext4
"""


@pytest.mark.parametrize(
    ("mount", "believed"), [(27, True), (43, False), (44, True), (45, False), (46, False), (4, False)]
)
def test_file_systems_that_are_believed(tmp_path: Path, mount: int, believed: bool) -> None:
    (tmp_path / "fdinfo").mkdir()
    (tmp_path / "fdinfo" / "7").write_text(f"pos:\t0\nflags:\t02100000\nmnt_id:\t{mount}\nino:\t27\n")
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert stamps.are_true(7, tmp_path) is believed
    assert stamps.are_true(8, tmp_path) is False, "nothing is known of it"


def test_where_the_kernel_describes_no_process_nothing_is_believed(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        assert not stamps.are_true(file.fileno(), tmp_path)


def test_what_was_changed_just_now_or_is_changed_meanwhile_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "are_true", lambda _: True)
    with open(tmp_path / "file", "w+b") as file:
        fd = file.fileno()
        status = os.fstat(fd)
        later = status.st_ctime_ns + int(stamps.LEFT_ALONE * 1e9) + 1
        assert not stamps.will_tell(fd, status, later - 10**9)
        assert stamps.will_tell(fd, status, later)
        os.utime(fd, (1000, 1000))
        assert not stamps.will_tell(fd, status, later)
