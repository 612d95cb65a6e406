"""The user as whom a node runs jobs that is not the daemon's own, and what must belong to it."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from dispy.errors import NodeError, SettingsError

_TIMEOUT: Final = 20.0


class Account(Struct, frozen=True):
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """The daemon's environment as this user's: without what speaks of the daemon's user."""
        kept = {name: value for name, value in env.items() if not name.startswith(("XDG_", "SUDO_"))}
        return {**kept, "HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}

    def has_home(self) -> bool:
        """Whether there is a home directory that belongs to this user."""
        try:
            return os.stat(self.home).st_uid == self.uid
        except OSError:
            return False

    def check(self, python: str, folders: Sequence[str], place: Path) -> None:
        """Try whether the user can run what it has to, where it has to. Blocks for a moment.

        Raises:
            NodeError: it cannot.
        """
        code = "import os, sys; os.chdir(sys.argv[1]); sys.path += sys.argv[2:]; import dispy, cloudpickle"
        try:
            done = subprocess.run(
                [python, "-I", "-c", code, str(place), *folders],
                **self.start(),
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                cwd="/",
                env=self.environment({}),
                check=False,
            )
        except OSError as error:
            words = f"cannot run {python}: {error.strerror}"
        except subprocess.TimeoutExpired:
            words = f"cannot run {python}: nothing happened for {_TIMEOUT:.0f} s"
        else:
            if not done.returncode:
                return
            lines = done.stderr.strip().splitlines()
            words = f"cannot work in {place} with {python}: {lines[-1] if lines else f'exit code {done.returncode}'}"
        raise NodeError(
            f"the user {self.name} {words}; the interpreter, dispy and the node's directory must be where this user "
            "may go (not below a home directory of another user), see --dest_path_prefix"
        )

    def start(self) -> dict[str, Any]:
        """Arguments for `subprocess` that start a process as this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": self.groups}


def find_account(name: str) -> Account:
    """The user of this name, as whom only root can start processes.

    Raises:
        SettingsError: there is none, it is root, or this process is not root.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise SettingsError(f"--user {name}: this machine has no such user") from None
    if not entry.pw_uid:
        raise SettingsError(f"--user {name}: leave it out to run jobs as root")
    if os.geteuid():
        raise SettingsError(f"--user {name}: only a node that root starts can run jobs as another user")
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    return Account(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_shell or "/bin/sh")
