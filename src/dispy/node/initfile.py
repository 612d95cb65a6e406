"""The node owner's init file (`--init`): the daemon's side of the process that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dispy.errors import NodeError
from dispy.node.leftovers import MARK
from dispy.node.starting import dispy_folders

logger = logging.getLogger("dispy.node")

INIT_TIMEOUT: Final = 60.0
"""Seconds that the file and its init() may take."""
CLOSE_TIMEOUT: Final = 10.0
"""Seconds that its close() may take."""
_PROGRAM: Final = (
    "import sys; sys.path += sys.argv[4:]; from dispy.node.inithelper import main; "
    "main(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
)


class InitFile:
    """A running init file. `start`, then `close`."""

    def __init__(self, file: Path, made: Path, mark: str) -> None:
        """`made`: where what jobs may use is left; `mark`: in the environment of its process."""
        self.made = made
        self.environment: Mapping[str, str] = {}
        """Numbers and strings that it made, for programs."""
        self._file = file
        self.mark = mark
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, env: Mapping[str, str]) -> None:
        """Run the file and its init().

        Raises:
            NodeError: it failed, or did not end in time; nothing of it is left.
        """
        ours, theirs = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", _PROGRAM, str(self._file), str(self.made), str(theirs), *dispy_folders()),
                stdin=subprocess.PIPE,
                stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else None,
                env={**env, MARK: self.mark},
                pass_fds=(theirs,),
                start_new_session=True,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        try:
            async with asyncio.timeout(INIT_TIMEOUT):
                said = await _read_line(ours)
        except BaseException as error:
            await self._kill()
            if isinstance(error, TimeoutError):
                raise NodeError(f"init() of {self._file} did not end within {INIT_TIMEOUT:.0f} s") from None
            raise
        if said is None or "error" in said:
            code = await self._kill()
            reason = said["error"] if said is not None else f"its process ended with exit code {code}"
            trace = "" if said is None else f"\n{said['trace'].rstrip()}"
            raise NodeError(f"the init file {self._file} failed: {reason}{trace}")
        self.environment = said["environment"]
        if said["left_out"]:
            logger.warning("jobs cannot have these names of %s: %s", self._file, ", ".join(said["left_out"]))

    async def close(self) -> None:
        """Run its close() and end it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                code = await self._process.wait()
        except TimeoutError:
            logger.warning("close() of %s did not end within %g s and was killed", self._file, CLOSE_TIMEOUT)
        else:
            if code:
                logger.warning("close() of %s ended with exit code %d", self._file, code)
        await self._kill()

    async def _kill(self) -> int:
        """End its process and what that started; returns the exit code."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(self._process.pid, signal.SIGKILL)
        return await self._process.wait()


async def _read_line(fd: int) -> dict[str, Any] | None:
    """What comes through a pipe up to its end, as JSON; None when nothing does."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb"))
    try:
        line = await reader.readline()
    finally:
        transport.close()
    return json.loads(line) if line else None
