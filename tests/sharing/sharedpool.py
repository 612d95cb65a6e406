"""A shared scheduler in this process, and clients that speak to it over real links.

There are no nodes: jobs wait, or are cancelled.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dispy.model import (
    ComputationId,
    ComputationSpec,
    Holder,
    JobSpec,
    ProcessId,
    Role,
)
from dispy.secrets import Credentials
from dispy.sharing.daemon import SharedScheduler
from dispy.wire.blobs import BlobExchange, BlobSources
from dispy.wire.link import Link, LinkSettings, dial
from dispy.wire.messages import AnyMessage
from dispy.wire.sharing import ClusterAccepted, OpenCluster, SubmitJobs

M = TypeVar("M")
ME = f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"
"""Who runs the tests, as the system proves."""
HOLDER = Holder("anna", "lab", 1, "program.py")


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 (of what happens on the other side nobody tells)
            await asyncio.sleep(0.01)


class Client:
    """A client (a `LinkHandler`) that keeps what it hears."""

    def __init__(self, port: int, credentials: Credentials, role: Role = Role.CLIENT) -> None:
        self.settings = LinkSettings(ProcessId(secrets.token_hex(16)), role, "test", credentials)
        self.port = port
        self.heard: list[Any] = []
        self.lost: list[str] = []
        self.sources = BlobSources()
        self.exchange: BlobExchange | None = None
        self.news = asyncio.Event()

    async def dial(self) -> Client:
        self.link = await dial("127.0.0.1", self.port, settings=self.settings, handler=self)
        return self

    def link_opened(self, link: Link) -> None:
        self.exchange = BlobExchange(link, self.sources)

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        assert self.exchange is not None
        self.heard += [message for message, payload in messages if not self.exchange.message_arrived(message, payload)]
        self.news.set()

    def link_suspected(self, link: Link) -> None: ...

    def link_recovered(self, link: Link) -> None: ...

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        self.lost.append(cause)
        self.news.set()

    async def hears(self, kind: type[M], count: int = 1) -> M:
        """The last of so many messages of a kind."""
        async with asyncio.timeout(10):
            while len(found := [each for each in self.heard if isinstance(each, kind)]) < count:
                self.news.clear()
                await self.news.wait()
        return found[count - 1]

    async def loses(self) -> None:
        async with asyncio.timeout(10):
            while not self.lost:
                self.news.clear()
                await self.news.wait()

    def all_of(self, kind: type[M]) -> list[M]:
        return [each for each in self.heard if isinstance(each, kind)]


def opening(name: str = "f", **more: Any) -> OpenCluster:
    spec = ComputationSpec(ComputationId(secrets.token_hex(16)), name, "program", program="/bin/true")
    return OpenCluster(spec, secrets.token_bytes(32), HOLDER, **more)


def submission(opened: OpenCluster, sequence: int, jobs: Sequence[int]) -> tuple[AnyMessage, Sequence[bytes]]:
    specs = [JobSpec(job, 0, 3) for job in jobs]
    return SubmitJobs(opened.computation.id, sequence, specs), [b"arg"] * len(jobs)


class Pool:
    """A scheduler, and what dials it."""

    def __init__(self, scheduler: SharedScheduler, credentials: Credentials, admin: Credentials | None) -> None:
        self.scheduler = scheduler
        self.credentials = credentials
        self.admin = admin
        self.port = scheduler.settings.client_port

    async def client(self, role: Role = Role.CLIENT) -> Client:
        credentials = self.credentials
        if role is Role.ADMIN:
            assert self.admin is not None
            credentials = self.admin
        return await Client(self.port, credentials, role).dial()

    async def opened(self, **more: Any) -> tuple[Client, OpenCluster]:
        client, opened = await self.client(), opening(**more)
        client.link.send(opened)
        assert (await client.hears(ClusterAccepted)).fresh
        return client, opened
