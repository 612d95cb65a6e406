"""Files that jobs send: fetched from the node, offered to the client, and the client's answer given to the node."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from dispy.errors import TransferError
from dispy.model import ComputationId
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.links import Reached
from dispy.sharing.guests import Attached, Guest, number_of
from dispy.wire.blobstore import FileSink
from dispy.wire.messages import FileOffered, FileTaken

LOOK_INTERVAL: Final = 10.0
"""Seconds between looks whether the program that shall have a file will come back."""


class Key(NamedTuple):
    """By what an answer is recognized."""

    cluster: ComputationId
    job: int
    name: bytes
    path: str


class _Passing(NamedTuple):
    offer: FileOffered
    """As the client hears it."""
    file: Path
    answer: asyncio.Future[str]


class FilePassing:
    """Passes files on. In the loop's thread."""

    def __init__(
        self,
        directory: Path,
        guests: Callable[[ComputationId], Guest | None],
        jobs: Callable[[int], JobRecord | None],
        max_size: int,
    ) -> None:
        """Files lie in `directory` meanwhile; larger ones than `max_size` bytes (0: no limit) are refused."""
        self._directory = directory
        self._guests = guests
        self._jobs = jobs
        self._max_size = max_size
        self._under_way: dict[Key, _Passing] = {}

    async def deliver(self, reached: Reached, offer: FileOffered) -> str:
        """Give a file to the program of its job; returns why that failed, else nothing. The job waits meanwhile."""
        record = self._jobs(offer.job)
        guest = None if record is None else self._guests(record.cluster)
        if record is None or guest is None:
            return "the job is not wanted any more"
        blob = offer.file.blob
        if self._max_size and blob.size > self._max_size:
            return f"it has {blob.size:,} bytes; the scheduler's --max_file_size allows {self._max_size:,}"
        path = self._directory / secrets.token_hex(16)
        try:
            await reached.exchange.fetch_into(FileSink(blob, path), blob, str(self._directory))
            return await self._pass(guest, record, offer, path)
        except TransferError as error:
            return str(error)
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _pass(self, guest: Guest, record: JobRecord, offer: FileOffered, path: Path) -> str:
        number = number_of(record)
        ours = msgspec.structs.replace(offer, job=number)
        key = Key(guest.id, number, offer.file.blob.name, offer.file.path)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._under_way[key] = passing = _Passing(ours, path, answer)
        guest.files.setdefault(number, []).append(answer)
        if guest.client is not None:
            self._offer(guest.client, passing)
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=LOOK_INTERVAL)
                if guest.is_forsaken:
                    return "its program is gone"
            return answer.result()
        finally:
            if self._under_way.get(key) is passing:
                del self._under_way[key]
            if guest.client is not None:
                guest.client.sources.withdraw(offer.file.blob.name)

    def _offer(self, client: Attached, passing: _Passing) -> None:
        with contextlib.suppress(OSError):  # somebody has removed it: the client asks in vain and says so
            client.sources.offer_path(passing.file, passing.offer.file.blob)
        client.send(passing.offer)

    def attached(self, guest: Guest) -> None:
        """The client of a cluster is there (again): it is told of files that it has not answered."""
        if guest.client is not None:
            for key, passing in self._under_way.items():
                if key.cluster == guest.id:
                    self._offer(guest.client, passing)

    def taken(self, clusters: dict[ComputationId, Guest], message: FileTaken) -> None:
        """A client has answered."""
        for cluster in clusters:
            passing = self._under_way.get(Key(cluster, message.job, message.name, message.path))
            if passing is not None and not passing.answer.done():
                passing.answer.set_result(message.reason)
