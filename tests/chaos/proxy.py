"""A TCP proxy between a program and one node, whose cable can be cut in every way that TCP can notice or not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Literal

Cut = Literal["reset", "silence", "deaf", "mute"]
"""Connections end at once and new ones too; nothing passes; nothing passes to the node; nothing passes from it."""


class Proxy:
    """Listens at a free port of 127.0.0.1 (`port`) and forwards to another. Its methods are for other threads."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=f"proxy-{target_port}")
        self._thread.start()
        assert self._ready.wait(10)

    def cut(self, how: Cut) -> None:
        """Cut it until `mend`."""
        self._post(self._cut, how)

    def mend(self) -> None:
        """Let everything pass again; what was held back by silence goes on its way."""
        self._post(self._mend)

    def close(self) -> None:
        """End all connections and the thread."""
        self._post(self._over.set)
        self._thread.join(10)

    def _post(self, call: object, *args: object) -> None:
        self._loop.call_soon_threadsafe(call, *args)  # type: ignore[arg-type]

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._to_node, self._from_node = asyncio.Event(), asyncio.Event()
        self._refuses = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._mend()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        self._reset()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def _cut(self, how: Cut) -> None:
        if how == "reset":
            self._refuses = True
            self._reset()
        if how in {"silence", "deaf"}:
            self._to_node.clear()
        if how in {"silence", "mute"}:
            self._from_node.clear()

    def _mend(self) -> None:
        self._refuses = False
        self._to_node.set()
        self._from_node.set()

    def _reset(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            if self._refuses:
                return
            with contextlib.suppress(OSError):  # the node is gone: so is the connection to it
                answers, other = await asyncio.open_connection("127.0.0.1", self._target)
                self._writers.add(other)
                await asyncio.gather(
                    self._pump(reader, other, self._to_node), self._pump(answers, writer, self._from_node)
                )
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self._pumps.discard(task)
            for each in (writer, other):
                if each is not None:
                    self._writers.discard(each)
                    each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event) -> None:
        """Either direction ends both, as nodes and programs never half-close."""
        while data := await reader.read(1 << 16):
            await passes.wait()
            writer.write(data)
            await writer.drain()
        await passes.wait()
        raise ConnectionResetError
