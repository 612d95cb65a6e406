"""The bytes between daemon and worker: jobs to it, replies from it.

This is on the path of every job: one write for a batch, one read for all that has come.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Final

from dispy.node import channel, linux
from dispy.node.channel import FLAG_RETIRE, PROVISIONAL, REPLY, UNSENDABLE
from dispy.node.outbox import Outbox
from dispy.node.replies import ForkServerHandler, Reply
from dispy.node.workerrecord import WorkerRecord

_BUFFER_SIZE: Final = 1 << 20


def send_jobs(
    outbox: Outbox,
    jobs: Sequence[tuple[int, bytes | memoryview | int]],
    extras: Mapping[int, Mapping[str, object]] | None,
) -> None:
    """Write jobs as `ForkServer.feed` takes them."""
    pack = channel.JOB.pack
    parts: list[bytes | memoryview] = []
    extra = b""
    for sequence, arguments in jobs:
        if extras:
            extra = json.dumps(extras[sequence]).encode() if sequence in extras else b""
        if isinstance(arguments, int):
            if parts:
                outbox.send(b"".join(parts))
                parts = []
            outbox.send(pack(sequence, len(extra), len(extra), 1) + extra, (arguments,))
        else:
            parts.append(pack(sequence, len(extra) + len(arguments), len(extra), 0))
            if extra:
                parts.append(extra)
            parts.append(arguments)
    if parts:
        outbox.send(b"".join(parts))


def send_object(outbox: Outbox, name: bytes, fd: int) -> None:
    """Give a worker the file of a scattered object; the descriptor stays the caller's."""
    _send_told(outbox, {"object": name.hex()}, (fd,))


def send_forgetting(outbox: Outbox, name: bytes) -> None:
    """Let a worker forget a scattered object."""
    _send_told(outbox, {"forget": [name.hex()]})


def _send_told(outbox: Outbox, info: Mapping[str, object], fds: Sequence[int] = ()) -> None:
    text = json.dumps(info).encode()
    outbox.send(channel.JOB.pack(0, len(text), len(text), len(fds)) + text, fds)


class ReplyReader:
    """Reads what workers of one fork server have sent."""

    def __init__(self, handler: ForkServerHandler) -> None:
        """`handler` is told when a job has removed its directory, before its reply is returned."""
        self._handler = handler
        self._buffer = bytearray(_BUFFER_SIZE)

    def read_all(self, worker: WorkerRecord) -> list[Reply]:
        """All that a dead worker had sent."""
        replies: list[Reply] = []
        before = -1
        while before != (before := len(replies)) or worker.rest:
            if not self.read(worker, replies):
                break
        return replies

    def read(self, worker: WorkerRecord, replies: list[Reply]) -> bool:
        """One read, appended to `replies`; False when nothing more can be there."""
        try:
            size, ancillary, flags, _ = worker.socket.recvmsg_into(
                [self._buffer], channel.ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, ConnectionResetError):
            return False
        if not size:
            return False
        data: bytes | memoryview = memoryview(self._buffer)[:size]
        if worker.rest:
            data = worker.rest + data
        if ancillary:
            worker.fds += channel.whole_descriptors(ancillary, flags)
        if _split(worker, data, replies):
            self._handler.directory_gone()
        return True


def _split(worker: WorkerRecord, data: bytes | memoryview, replies: list[Reply]) -> bool:
    """Cut what has come into replies and keep the rest; returns whether the directory is gone."""
    fds = worker.fds
    unpack, header = REPLY.unpack_from, REPLY.size
    at, total = 0, len(data)
    gone = False
    while total - at >= header:
        sequence, ending, count, marks, result, stdout, stderr, error, started, ended = unpack(data, at)
        if ending >= PROVISIONAL:
            worker.speaks = True
        if marks > FLAG_RETIRE:
            gone = True
        if count > len(fds):
            at += header if count == 1 else header + result + stdout + stderr + error
            if ending < PROVISIONAL:
                replies.append(_lost_reply(sequence, started, ended))
            continue
        if count == 1:
            at += header
            replies.append(Reply(sequence, ending, started, ended, result, stdout, stderr, error, b"", fds.pop(0)))
            continue
        end = at + header + result + stdout + stderr + error
        if end > total:
            break
        body = bytes(data[at + header : end])
        replies.append(Reply(sequence, ending, started, ended, result, stdout, stderr, error, body))
        if count:
            replies[-1].fd, replies[-1].answer = fds.pop(0), fds.pop(0)
        at = end
    worker.rest = bytes(data[at:])
    return gone


def _lost_reply(sequence: int, started: float, ended: float) -> Reply:
    """What is told of a job whose large result came when this process had no descriptor left for it."""
    text = f"its result cannot be taken over by the node: {linux.exhaustion(OSError(errno.EMFILE, ''))}".encode()
    return Reply(sequence, UNSENDABLE, started, ended, 0, 0, 0, len(text), text)
