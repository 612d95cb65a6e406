"""The node that a program starts for itself when no other is there.

It is an ordinary `dispynode` in a session of its own, on loopback only, with a secret that exists in memory alone. A
socket pair ties it to this process: its end of file is how the node notices that the program is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from dispy.errors import NodeError
from dispy.secrets import SECRET_VARIABLES, Credentials, credentials_from_key

START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0
DAEMON_VARIABLES = tuple(
    f"DISPY_{name}" for name in ("CPUS", "NAME", "JOIN", "DEST_PATH_PREFIX", "CLEAN", "DAEMON", "CONFIG")
)
"""What they say is about the daemon of this machine, and may not even be readable for this user."""
# The user's directory must not shadow the standard library of the node (-P), and dispy's own folder comes last.
_PROGRAM = "import sys; sys.path.append({path!r}); from dispy.node.__main__ import main; main(sys.argv[1:])"


class NodeSilent(NodeError):
    """The node ended, or said nothing, before it was ready: another one may do better."""


class EmbeddedNode:
    """A node daemon that belongs to this process."""

    def __init__(
        self, process: subprocess.Popen[bytes], tie: socket.socket, port: int, credentials: Credentials
    ) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self.credentials = credentials
        self._process = process
        self._tie = tie

    async def ended(self) -> None:
        """Return when the node has ended without being asked to (it was killed, for example)."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # a reset is an end as well
            while await loop.sock_recv(self._tie, 4096):
                pass
        self._tie.close()
        await loop.run_in_executor(None, self._process.wait)

    def untie(self) -> None:
        """In a forked child: close the copy of the tie, which does not end the node."""
        self._tie.close()

    async def stop(self, *, hurried: bool = False) -> None:
        """Let go of the node and wait until it has ended; it ends at once when nothing of ours runs there.

        With `hurried` it is told to end now, whatever runs.
        """
        self._tie.close()
        if hurried:
            self._process.terminate()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, self._process.wait, STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            await loop.run_in_executor(None, self._process.wait)


async def start_embedded(cpus: int = 0) -> EmbeddedNode:
    """Start a node on this machine for this process alone.

    Raises:
        NodeSilent: it was killed, or said nothing, before it was ready.
        NodeError: it cannot start; the sentence has its own last words.
    """
    key = secrets.token_bytes(32)
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise NodeError(f"no node could be started on this machine: {error}") from error
    try:
        process = _spawn(theirs)
    except OSError as error:
        ours.close()
        raise NodeError(f"no node could be started on this machine: {error}") from error
    finally:
        theirs.close()
    settings = {"key": key.hex(), "name": socket.gethostname(), "cpus": cpus, "group": ""}
    loop = asyncio.get_running_loop()
    ours.setblocking(False)
    try:
        async with asyncio.timeout(START_TIMEOUT):
            await loop.sock_sendall(ours, msgspec.json.encode(settings) + b"\n")
            answer = await _read_line(ours)
    except BaseException as error:
        ours.close()
        process.kill()
        process.wait()
        if isinstance(error, (TimeoutError, OSError, ValueError, msgspec.DecodeError)):
            why = str(error) or "time is over"
            raise NodeSilent(f"the node started on this machine did not answer: {why}") from error
        raise
    if "error" in answer:
        ours.close()
        process.wait()
        raise NodeError(f"no node could be started on this machine: {answer['error']}")
    return EmbeddedNode(process, ours, int(str(answer["port"])), credentials_from_key(key))


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    package_parent = str(Path(__file__).resolve().parents[2])
    unwanted = {*SECRET_VARIABLES, *DAEMON_VARIABLES}
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    return subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            _PROGRAM.format(path=package_parent),
            "--embedded",
            str(theirs.fileno()),
        ],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )


async def _read_line(sock: socket.socket) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    data = b""
    while not data.endswith(b"\n"):
        piece = await loop.sock_recv(sock, 4096)
        if not piece:
            raise ValueError("it ended without a word (was it killed?); what it has printed is above")
        data += piece
    answer = msgspec.json.decode(data)
    if not isinstance(answer, dict):
        raise ValueError(f"it answered {data!r}")
    return answer
