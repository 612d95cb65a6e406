"""The relay on real sockets of the loopback interface: who is told of which nodes, and what it does not do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from dispy.errors import AuthenticationRejected, NodeError
from dispy.model import NodeHeard, ProcessId, Role
from dispy.relay import service
from dispy.relay.cli import command
from dispy.relay.service import Relay, RelaySettings, reachable
from dispy.secrets import find_credentials
from dispy.wire.discovery import Answerer
from dispy.wire.link import Link, LinkSettings, Listener, dial
from dispy.wire.messages import AnyMessage, NodesHeard, ReleaseLease

NODE, OTHER = ProcessId("a" * 32), ProcessId("b" * 32)


def heard(process: ProcessId, address: str, name: str = "n") -> NodeHeard:
    return NodeHeard(process, name, address, 9701)


class Scheduler:
    """The other end of the links."""

    def __init__(self) -> None:
        self.nodes: list[NodeHeard] = []
        self.links: list[Link] = []
        self.ended = ""
        self._news = asyncio.Event()

    def link_opened(self, link: Link) -> None:
        self.links.append(link)

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, Any]]) -> None:
        for message, _ in messages:
            assert isinstance(message, NodesHeard)
            self.nodes += message.nodes
        self._news.set()

    def link_suspected(self, link: Link) -> None: ...
    def link_recovered(self, link: Link) -> None: ...

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        self.ended = cause
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._news.wait()
            self._news.clear()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(main())


def relay_settings(base_port: int, **other: Any) -> RelaySettings:
    settings = RelaySettings(
        name="far",
        credentials=find_credentials(secret="ours"),
        group="",
        base_port=base_port,
        relay_port=base_port,
        hosts=("lo",),
        interfaces=("lo",),
    )
    return msgspec.structs.replace(settings, **other)


@contextlib.asynccontextmanager
async def relay(base_port: int, **other: Any) -> AsyncIterator[Relay]:
    started = Relay(relay_settings(base_port, **other))
    await started.start()
    try:
        yield started
    finally:
        await started.close()


@contextlib.asynccontextmanager
async def node(base_port: int, process: ProcessId = NODE, name: str = "alpha") -> AsyncIterator[Answerer]:
    answerer = await Answerer.start(
        credentials=find_credentials(secret="ours"),
        group="",
        base_port=base_port,
        name=name,
        process=process,
        tcp_port=4001,
        interfaces=("lo",),
        others=(("gate", 80),),
        on_refused=lambda _: None,
    )
    with contextlib.closing(answerer):
        yield answerer


def scheduler_settings(secret: str = "ours", role: Role = Role.SCHEDULER) -> LinkSettings:
    return LinkSettings(ProcessId("c" * 32), role, "desk", find_credentials(secret=secret))


async def call(port: int, scheduler: Scheduler, **other: Any) -> Link:
    return await dial("127.0.0.1", port, settings=scheduler_settings(**other), handler=scheduler)


def test_who_connects_hears_of_the_nodes_that_answer(free_base_port: int) -> None:
    async def test() -> None:
        scheduler = Scheduler()
        async with relay(free_base_port), node(free_base_port):
            link = await call(free_base_port, scheduler)
            assert link.peer.role is Role.PEER
            await scheduler.until(lambda: bool(scheduler.nodes))
            assert scheduler.nodes[0] == NodeHeard(NODE, "alpha", "127.0.0.1", 4001, (("gate", 80),))
        await scheduler.until(lambda: bool(scheduler.ended))

    run(test)


def test_a_node_that_comes_later_is_told_when_it_announces_itself(
    free_base_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "FIRST_QUESTIONS", ())

    async def test() -> None:
        one, two = Scheduler(), Scheduler()
        async with relay(free_base_port):
            await call(free_base_port, one)
            await call(free_base_port, two, role=Role.CLIENT)
            async with node(free_base_port) as answerer:
                answerer.announce()
                for each in (one, two):
                    await each.until(lambda each=each: bool(each.nodes))  # type: ignore[misc]
                    assert each.nodes == [NodeHeard(NODE, "alpha", "127.0.0.1", 4001, (("gate", 80),))]

    run(test)


def test_many_schedulers_cause_few_questions(free_base_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "QUESTION_INTERVAL", 1000.0)

    async def test() -> None:
        schedulers = [Scheduler() for _ in range(4)]
        async with relay(free_base_port), node(free_base_port) as answerer:
            for number, scheduler in enumerate(schedulers):
                settings = msgspec.structs.replace(scheduler_settings(), process=ProcessId(f"{number:032x}"))
                await dial("127.0.0.1", free_base_port, settings=settings, handler=scheduler)
            await schedulers[0].until(lambda: bool(schedulers[0].nodes))
            assert answerer.counters["questions"] == 1

    run(test)


def test_a_scheduler_with_another_secret_is_refused(free_base_port: int) -> None:
    async def test() -> None:
        async with relay(free_base_port):
            with pytest.raises(AuthenticationRejected, match="secret"):
                await call(free_base_port, Scheduler(), secret="theirs")

    run(test)


@pytest.mark.parametrize("role", [Role.NODE, Role.PEER])
def test_nodes_and_other_relays_have_no_business_with_it(free_base_port: int, role: Role) -> None:
    async def test() -> None:
        async with relay(free_base_port):
            with pytest.raises(AuthenticationRejected, match="does not talk to"):
                await call(free_base_port, Scheduler(), role=role)

    run(test)


def test_who_tells_it_something_is_sent_away(free_base_port: int) -> None:
    async def test() -> None:
        scheduler = Scheduler()
        async with relay(free_base_port):
            link = await call(free_base_port, scheduler)
            link.send(ReleaseLease())
            await scheduler.until(lambda: bool(scheduler.ended))
            assert "a relay takes no ReleaseLease" in scheduler.ended

    run(test)


def test_it_dials_the_schedulers_that_it_was_given_again_and_again(
    free_base_ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        port, base_port = free_base_ports[:2]
        async with relay(base_port, schedulers=(("127.0.0.1", port),)), node(base_port):
            for _ in range(2):
                scheduler = Scheduler()
                listener = await Listener.start(
                    ["127.0.0.1"],
                    port,
                    settings=scheduler_settings(),
                    handler=scheduler,
                    accept=frozenset({Role.NODE, Role.PEER}),
                    on_refused=lambda *_: None,
                )
                await scheduler.until(lambda scheduler=scheduler: bool(scheduler.nodes))  # type: ignore[misc]
                for link in scheduler.links:
                    link.close("for now")
                await listener.close()

    run(test)


def test_a_port_that_a_node_has_is_named_with_what_helps(free_base_port: int) -> None:
    async def test() -> None:
        async with relay(free_base_port):
            with pytest.raises(NodeError, match="--relay_port"):
                await Relay(relay_settings(free_base_port)).start()

    run(test)


def test_addresses_that_mean_nothing_elsewhere_are_kept_here() -> None:
    nodes = [heard(NODE, "127.0.0.1"), heard(NODE, "fe80::1%eth0"), heard(NODE, "10.0.0.7"), heard(OTHER, "fd77::1")]
    assert reachable(nodes, from_here=True) == nodes
    assert reachable(nodes, from_here=False) == nodes[2:]


def test_old_names_of_options_work_and_are_told(free_base_port: int) -> None:
    done = CliRunner().invoke(command, ["--ip_addr", "nowhere0", "--dispy-port", "0"])
    assert done.exit_code == 2
    assert "the option --ip_addr is called --host now" in done.output
    assert "--scheduler_node" in CliRunner().invoke(command, ["--scheduler_node", "a:b:c"]).output
