"""Files that running jobs send: kept open, and offered, until the job has its answer or waits no longer.

The job's worker hands over the open file and a socket. One byte over that socket says that the file has arrived; when
its other end is closed, the job has given up, ended or died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from dispy.model import BlobRef, FileSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.replies import Reply
from dispy.wire.blobsources import BlobSources

logger = logging.getLogger("dispy.node")


class _Parcel(Struct):
    blob: bytes
    answer: socket.socket


class Parcels:
    """Every file that a job of this node is sending."""

    def __init__(self, sources: BlobSources, post: Callable[[ev.Event], None], max_size: int) -> None:
        self._sources = sources
        self._post = post
        self._max_size = max_size
        self._loop = asyncio.get_running_loop()
        self._last = 0
        self._parcels: dict[int, _Parcel] = {}
        self._offered: Counter[bytes] = Counter()
        """How many parcels have this content."""

    def take(self, worker: int, reply: Reply) -> None:
        """A job sends a file; FileSent is posted, unless it is too large or what the worker says makes no sense."""
        assert reply.fd is not None
        assert reply.answer is not None
        answer = socket.socket(fileno=reply.answer)
        try:
            file = self._described(reply)
        except (ValueError, KeyError, TypeError, OSError) as error:
            logger.warning("a job's file is not sent: %s", error)
            os.close(reply.fd)
            answer.close()
            return
        self._last += 1
        answer.setblocking(False)
        name = file.blob.name
        self._parcels[self._last] = _Parcel(name, answer)
        self._offered[name] += 1
        if self._offered[name] == 1:
            self._sources.offer_open(reply.fd, file.blob)
        else:
            os.close(reply.fd)
        self._loop.add_reader(answer, self._given_up, self._last)
        self._post(ev.FileSent(self._last, worker, reply.sequence, file))

    def _described(self, reply: Reply) -> FileSpec:
        assert reply.fd is not None
        said = json.loads(reply.body)
        size = os.fstat(reply.fd).st_size
        if self._max_size and size > self._max_size:
            raise ValueError(f"{said['path']} has {size:,} bytes, this node allows {self._max_size:,}")
        digest = bytes.fromhex(said["digest"])
        return FileSpec(str(said["path"]), BlobRef(digest, int(said["size"])), int(said["mode"]), float(said["mtime"]))

    def answer(self, action: do.AnswerParcel) -> None:
        """Tell the job how it went."""
        parcel = self._parcels.get(action.parcel)
        if parcel is not None:
            if action.taken:
                with contextlib.suppress(OSError):  # the job waits no longer
                    parcel.answer.send(b"1")
            self._remove(action.parcel)

    def _given_up(self, number: int) -> None:
        self._remove(number)
        self._post(ev.ParcelDropped(number))

    def _remove(self, number: int) -> None:
        parcel = self._parcels.pop(number)
        self._loop.remove_reader(parcel.answer)
        parcel.answer.close()
        self._offered[parcel.blob] -= 1
        if not self._offered[parcel.blob]:
            del self._offered[parcel.blob]
            self._sources.withdraw(parcel.blob)

    def close(self) -> None:
        """Nothing more is sent."""
        for number in list(self._parcels):
            self._remove(number)
