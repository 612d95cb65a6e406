"""Contents handed over as descriptors between two processes of one machine, instead of piece by piece.

Whoever needs a content names a datagram socket of its own, which has a name in no file system, and a token; the other
side sends there the token with a descriptor of a file in memory. Only a process on the same machine (and in the same
network namespace) can reach the socket, only the other side of the link knows the token, and only what nobody can
change any more is taken. Whatever fails, the content comes in pieces as from anywhere.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import Callable
from typing import Final, Protocol

from dispy import pages
from dispy.model import BlobRef
from dispy.wire.blobsources import MemorySource, Offered, SourceError
from dispy.wire.interfaces import is_loopback
from dispy.wire.messages import HANDS_OVER, AnyMessage, DescriptorRefused, NeedDescriptor

SMALLEST: Final = 1 << 20
"""Bytes below which pieces are as quick."""
ANSWER_TIMEOUT: Final = 5.0
"""Seconds that an answer may take, beside those for the size."""
_SLOWEST: Final = 100 << 20
"""Bytes per second at which a file in memory is written at least."""
_PREFIX: Final = "dispy-"
_NAME_LIMIT: Final = 64
_TOKEN_SIZE: Final = 16
_MESSAGE_SIZE: Final = 64
_ANCILLARY: Final = socket.CMSG_SPACE(8 * array.array("i").itemsize)


class Near(Protocol):
    """What must be known of the other side."""

    @property
    def address(self) -> str:
        """Where it is."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do."""


def is_near(peer: Near) -> bool:
    """Whether it may be on this machine, and can hand descriptors over."""
    return HANDS_OVER in peer.capabilities and is_loopback(peer.address) and hasattr(os, "memfd_create")


class Handing:
    """Asks one peer for descriptors, and gives it those that it asks for. In the loop's thread."""

    def __init__(self, sources: Offered) -> None:
        self._sources = sources
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._name = ""
        self._waiting: dict[bytes, asyncio.Future[int | None]] = {}

    async def ask(self, send: Callable[[AnyMessage], None], ref: BlobRef) -> int | None:
        """A descriptor with the content, which is the caller's; None: it has to come in pieces."""
        if ref.size < SMALLEST or not self._listens():
            return None
        token = os.urandom(_TOKEN_SIZE)
        answer = self._waiting[token] = self._loop.create_future()
        fd: int | None = None
        try:
            send(NeedDescriptor(ref.name, self._name, token))
            await asyncio.wait([answer], timeout=ANSWER_TIMEOUT + ref.size / _SLOWEST)
            fd = answer.result() if answer.done() else None
            if fd is not None and not await self._is_right(fd, ref):
                os.close(fd)
                fd = None
        except BaseException:
            taken = answer.result() if answer.done() else None
            if taken is not None:
                os.close(taken)
            raise
        finally:
            del self._waiting[token]
            if not self._waiting:
                self._listen_no_more()
        return fd

    async def _is_right(self, fd: int, ref: BlobRef) -> bool:
        if not pages.is_sealed(fd) or os.fstat(fd).st_size != ref.size:
            return False
        if not ref.hashed:
            return True
        # A mapping, as nobody has to close it when this is given up.
        content = pages.mapped(fd)
        return (await asyncio.to_thread(hashlib.sha256, content)).digest() == ref.name

    def refused(self, message: DescriptorRefused) -> None:
        """The other side has none for us."""
        self._answer(message.token, None)

    def give(self, send: Callable[[AnyMessage], None], need: NeedDescriptor, *, hashed_only: bool = False) -> None:
        """Send a descriptor of what is offered here (see `BlobSources.find`), or say that there will be none."""
        try:
            source = self._sources.find(need.name, hashed_only=hashed_only)
            if not isinstance(source, MemorySource) or not need.at.startswith(_PREFIX) or len(need.at) > _NAME_LIMIT:
                raise SourceError("it is not in memory, or the socket is none of ours")
            # Withdrawn meanwhile or not, the thread has its own.
            fd = os.dup(source.fd) if source.fd >= 0 else -1
        except (SourceError, OSError):
            send(DescriptorRefused(need.token))
            return
        handing = self._loop.run_in_executor(None, _hand_over, source.parts, fd, need)

        def handed(done: asyncio.Future[None]) -> None:
            if done.cancelled() or done.exception() is not None:
                send(DescriptorRefused(need.token))

        handing.add_done_callback(handed)

    def reset(self) -> None:
        """The link has ended: nothing that was asked for comes any more."""
        for token in list(self._waiting):
            self._answer(token, None)

    def _listen_no_more(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _listens(self) -> bool:
        """Have a socket, for as long as something is waited for; False if that cannot be."""
        if self._socket is None:
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            name = _PREFIX + os.urandom(16).hex()
            try:
                listening.bind(f"\0{name}")
            except OSError:  # a machine that grants none
                listening.close()
                return False
            self._socket, self._name = listening, name
            self._loop.add_reader(listening, self._arrived)
        return True

    def _arrived(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                token, ancillary, _, _ = self._socket.recvmsg(_MESSAGE_SIZE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
                found = array.array("i")
                for level, kind, data in ancillary:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        found.frombytes(data[: len(data) - len(data) % found.itemsize])
                if len(found) == 1 and self._answer(token, found[0]):
                    continue
                for fd in found:  # of somebody else, or too late
                    os.close(fd)

    def _answer(self, token: bytes, fd: int | None) -> bool:
        answer = self._waiting.get(token)
        if answer is None or answer.done():
            return False
        answer.set_result(fd)
        return True


def _hand_over(parts: tuple[memoryview, ...], fd: int, need: NeedDescriptor) -> None:
    """In a thread: send the token with the descriptor. Raises OSError."""
    if fd < 0:
        fd = pages.memory_file("dispy-blob", parts)
    try:
        if not pages.is_sealed(fd):
            raise OSError("somebody could change it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)
            rights = array.array("i", [fd]).tobytes()
            sending.sendmsg([need.token], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, f"\0{need.at}")
    finally:
        os.close(fd)
