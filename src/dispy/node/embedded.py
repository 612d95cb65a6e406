"""The node that a program starts for itself: it takes its settings from a socket and ends with the program.

If jobs still run then, or results were not fetched, it stays until they are, or until that has taken too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import tempfile
from pathlib import Path
from typing import Final

from dispy import settings
from dispy.errors import DispyError
from dispy.node import handles, vitals
from dispy.node.running import take_signals, until_ended
from dispy.node.service import NodeService
from dispy.node.settings import NodeSettings
from dispy.node.workdir import remove_abandoned
from dispy.secrets import credentials_from_key

logger = logging.getLogger("dispy.node")

_LINE_LIMIT: Final = 64 << 10
KEEP_SIZE: Final = 10 << 30
KEEP_SECONDS: Final = 30 * 86400.0
"""Bounds of what embedded nodes keep in common: the defaults of `dispynode`."""


def run_embedded(fd: int) -> int:
    """Run a node for the program at the other end of the inherited socket `fd`; returns the exit code."""
    # What this node has to say is for the program that it belongs to; only what goes wrong is for the terminal.
    if not logger.isEnabledFor(logging.DEBUG):
        logging.getLogger("dispy").setLevel(logging.WARNING)
    with socket.socket(fileno=fd) as tie:
        tie.set_inheritable(False)
        return asyncio.run(_serve_embedded(tie))


async def _serve_embedded(tie: socket.socket) -> int:
    tie.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        service = NodeService(_embedded_settings(await _read_line(tie)))
        await service.start()
    except (DispyError, OSError, ValueError, KeyError, TypeError) as error:
        # The program may be gone already, and then nobody wants to know.
        with contextlib.suppress(OSError):
            await loop.sock_sendall(tie, json.dumps({"error": str(error)}).encode() + b"\n")
        return 1
    take_signals(service, daemon=True)
    with contextlib.suppress(OSError):  # the program is gone: `tied` sees it
        await loop.sock_sendall(
            tie, json.dumps({"port": service.callers.port, "process": service.process}).encode() + b"\n"
        )

    def tied() -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                gone = not tie.recv(_LINE_LIMIT)
            except ConnectionResetError:
                gone = True
            if gone:
                loop.remove_reader(tie)
                service.ask_exit(at_once=False, when_fetched=True)

    loop.add_reader(tie, tied)
    try:
        return await until_ended(service)
    finally:
        loop.remove_reader(tie)


def _embedded_settings(line: bytes) -> NodeSettings:
    given = json.loads(line)
    # One directory per node: a program may have several, and they come and go.
    prefix = settings.default_prefix().with_name("embedded") / str(os.getpid())
    environments: Path | None = settings.default_prefix().with_name("environments")
    known_at: Path | None = handles.directory()
    try:
        prefix.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=prefix.parent) as probe:
            probe.write(bytes(4096))
    except OSError:  # no home, or one that cannot be written, or a full disk
        prefix = Path(tempfile.mkdtemp(prefix="dispy-"))
        environments = known_at = None
    else:
        remove_abandoned(prefix.parent)
        handles.remove_abandoned(handles.directory())
    return NodeSettings(
        name=str(given["name"]),
        cpus=vitals.offered_cpus(int(given["cpus"]), oversubscribe=False),
        prefix=prefix,
        environments=environments,
        keep_size=KEEP_SIZE,
        keep_seconds=KEEP_SECONDS,
        handles=known_at,
        credentials=credentials_from_key(bytes.fromhex(given["key"])),
        group=str(given["group"]),
        hosts=("127.0.0.1",),
        ephemeral=True,
        clean=True,
        remove_prefix=True,
    )


async def _read_line(tie: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        piece = await asyncio.get_running_loop().sock_recv(tie, 4096)
        if not piece or len(data) > _LINE_LIMIT:
            raise ValueError("no settings came over the inherited socket")
        data += piece
    return data
