"""Writing to a non-blocking socket of fork server or worker, descriptors included, without ever waiting."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Sequence


class Outbox:
    """What a non-blocking socket has not taken yet, with the descriptors that ride along."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._socket = sock
        self._loop = loop
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Write now what fits; the descriptors stay the caller's."""
        if self._waiting:
            self._waiting.append((memoryview(data), [os.dup(fd) for fd in fds]))
            return
        rest = memoryview(data)
        try:
            sent = _send(self._socket, rest, fds)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the other side is gone; that is told by the one who watches it
        if sent < len(data):
            self._waiting.append((rest[sent:], [os.dup(fd) for fd in fds] if not sent else []))
            self._loop.add_writer(self._socket, self._write)

    def _write(self) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            try:
                sent = _send(self._socket, data, fds)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                self._waiting[0] = (data[sent:], [])
            else:
                self._waiting.popleft()
        self._loop.remove_writer(self._socket)

    def close(self) -> None:
        """Forget what waits."""
        if self._waiting:
            self._loop.remove_writer(self._socket)
        for _, fds in self._waiting:
            for fd in fds:
                os.close(fd)
        self._waiting.clear()


def _send(sock: socket.socket, data: memoryview, fds: Sequence[int]) -> int:
    if not fds:
        return sock.send(data)
    return sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())])
