"""Virtual environments with the packages that computations require: built once, kept for the next ones.

Each is a directory named by what is in it. A lock lets one computation (of any node of this user) build it while
others wait; one that was not finished, or whose interpreter has gone, is built afresh. dispy itself is never installed
there: see `own_folder`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
import sysconfig
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from dispy import failpoints
from dispy.node import litter
from dispy.node.account import Account
from dispy.node.replies import SetupFailed
from dispy.node.starting import packages
from dispy.owndirectory import remove_tree

_LOCK_INTERVAL: Final = 0.1
_LAST_LINES: Final = 30
_DONE: Final = "dispy-complete"
_NAMED: Final = 3
"""How many requirements an error names."""


class VirtualEnvironments:
    """Those below one directory; `own` is where `own_folder` may be made.

    With an `account` they are built by it and belong to it: building runs code of the packages.
    """

    def __init__(self, root: Path, own: Path, env: dict[str, str], account: Account | None = None) -> None:
        self.root = root
        self._account = account
        if account is not None:
            env = account.environment(env)
        self._own = own
        self._own_made = False
        self._env = {**env, "UV_PYTHON_DOWNLOADS": "never", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        if account is not None and not account.has_home():  # pip does without a cache by itself
            self._env.setdefault("UV_NO_CACHE", "1")

    async def provide(self, python: str, requirements: Sequence[str]) -> str:
        """The interpreter of an environment with these packages, built now if there is none.

        Args:
            python: path of the interpreter that it is for.
            requirements: lines of a requirements file.

        Raises:
            SetupFailed: it cannot be built; the trace has the last lines of what pip or uv said.
        """
        key = _key(python, requirements)
        place = self.root / key
        executable = place / "bin/python"
        async with self._locked(key):
            if not ((place / _DONE).exists() and os.access(executable, os.X_OK)):
                await asyncio.to_thread(remove_tree, place)
                if self._account is not None:
                    place.mkdir(mode=0o700)
                    os.chown(place, self._account.uid, self._account.gid)
                try:
                    await self._build(python, requirements, place)
                except SetupFailed:
                    await asyncio.to_thread(remove_tree, place)
                    raise
                failpoints.hit("environment.before-done")
                litter.touch(place / _DONE)
        return str(executable)

    @property
    def _mode(self) -> int:
        return 0o700 if self._account is None else 0o711

    def own_folder(self) -> Path:
        """A folder with dispy and cloudpickle and nothing else, for interpreters that do not have them."""
        if not self._own_made:
            remove_tree(self._own)
            self._own.mkdir(mode=self._mode, parents=True)
            for package in packages():
                (self._own / package.name).symlink_to(package.resolve(), target_is_directory=True)
            self._own_made = True
        return self._own

    @contextlib.asynccontextmanager
    async def _locked(self, key: str) -> AsyncIterator[None]:
        self.root.mkdir(mode=self._mode, parents=True, exist_ok=True)
        lock = os.open(self.root / f"{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_LOCK_INTERVAL)
            yield
        finally:
            os.close(lock)

    async def _build(self, python: str, requirements: Sequence[str], place: Path) -> None:
        listed = self.root / f"{place.name}.txt"
        listed.write_text("".join(f"{line}\n" for line in requirements))
        if self._account is not None:
            os.chown(listed, self._account.uid, self._account.gid)
        uv = await self._find_uv()
        executable = str(place / "bin/python")
        if uv is not None:
            commands = [
                [uv, "venv", "--python", python, str(place)],
                [uv, "pip", "install", "--python", executable, *_for_uv(requirements), "--requirement", str(listed)],
            ]
        else:
            commands = [
                [python, "-m", "venv", str(place)],
                [executable, "-m", "pip", "install", "--requirement", str(listed)],
            ]
        with await asyncio.to_thread(open, self.root / f"{place.name}.log", "w+b") as log:
            for command in commands:
                code = await self._run(command, log.fileno())
                if code:
                    log.seek(0)
                    lines = log.read().decode("utf-8", "replace").splitlines()
                    raise SetupFailed(
                        f"the environment with {_named(requirements)} cannot be built: "
                        f"{' '.join(command[:4])} … ended with exit code {code} (its output: {log.name})",
                        "\n".join(lines[-_LAST_LINES:]),
                    )

    async def _find_uv(self) -> str | None:
        """uv on the `PATH`, or installed with this daemon's Python; only one that the builder may run."""
        for folders in (self._env.get("PATH"), sysconfig.get_path("scripts")):
            import shutil

            uv = shutil.which("uv", path=folders)
            if uv is not None:
                # That of root, say, is in a home directory that the account cannot enter.
                with contextlib.suppress(SetupFailed):
                    if not await self._run([uv, "--version"], asyncio.subprocess.DEVNULL):
                        return uv
        return None

    async def _run(self, command: list[str], output: int) -> int:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._env,
                # Where no settings of uv and no modules of somebody else lie, and the account may look.
                cwd=self.root,
                start_new_session=True,
                **(self._account.start() if self._account is not None else {}),
            )
        except OSError as error:
            raise SetupFailed(f"{command[0]} cannot be started: {error.strerror}") from error
        try:
            return await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and all that it started
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _key(python: str, requirements: Sequence[str]) -> str:
    return hashlib.sha256("\n".join((os.path.realpath(python), *requirements)).encode()).hexdigest()[:32]


def _for_uv(requirements: Sequence[str]) -> list[str]:
    """What pip takes from a requirements file and uv from the command line only."""
    return ["--prerelease=allow"] if "--pre" in requirements else []


def _named(requirements: Sequence[str]) -> str:
    more = len(requirements) - _NAMED
    return ", ".join(requirements[:_NAMED]) + (f" and {more} more" if more > 0 else "")
