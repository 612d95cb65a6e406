"""Questions to nodes about running jobs, asked over a link that a test holds."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from dispy import config
from dispy.model import ComputationId, ProcessId
from dispy.scheduler.conversation import Conversation
from dispy.wire.messages import JobTail, TailJob

ONE = ProcessId("1" * 32)


def reached(sent: list[Any]) -> Any:
    return SimpleNamespace(process=ONE, link=SimpleNamespace(send=sent.append))


def test_an_answer_is_waited_for_as_long_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    node = reached(sent)
    asked = Conversation(lambda _node: node, lambda *_attempt: True, lambda _task: None)

    async def ask() -> None:
        task = asyncio.create_task(asked.tail(ONE, 7))
        await asyncio.sleep(0)
        asked.heard(node, JobTail(7, 3, 2), b"outer")
        assert await task == (b"out", b"er")
        monkeypatch.setitem(vars(config)["_chosen"], "MsgTimeout", 0.01)
        async with asyncio.timeout(10):
            assert await asked.tail(ONE, 7) == (b"", b"")
            assert await asked.running(ONE, ComputationId("c")) == []

    asyncio.run(ask())
    assert sent[:2] == [TailJob(7)] * 2
