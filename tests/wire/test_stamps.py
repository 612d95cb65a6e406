"""What the times of files tell of changes: which file systems are believed, and what this process has mapped."""

from __future__ import annotations

import mmap
import os
import sys
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
        assert stamps.is_mapped(os.fstat(file.fileno()), tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_mappings_of_this_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000))
    with open(tmp_path / "file", "r+b") as file:
        status = os.fstat(file.fileno())
        assert not stamps.is_mapped(status)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY):
            assert not stamps.is_mapped(status), "what is written there is not in the file"
        with mmap.mmap(file.fileno(), 0):
            assert stamps.is_mapped(status)
        assert not stamps.is_mapped(status)
