"""Discovery on real sockets of the loopback interface: who finds whom, who is refused, and what is said about it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from dispy.errors import NodeError, SettingsError
from dispy.model import ProcessId
from dispy.secrets import Credentials, find_credentials
from dispy.settings import Multicast
from dispy.wire import datagrams, discovery
from dispy.wire.discovery import Answerer, Asker, DiscoveryRefused, NodeFound
from dispy.wire.interfaces import InterfaceAddress, Scope, address_of, has_ipv6, shown

LOOPBACK = ("lo",)
ALPHA = ProcessId("a" * 32)
BETA = ProcessId("b" * 32)


@pytest.fixture
def base_port() -> int:
    """A port that is free, as is the next one."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second,
        ):
            first.bind(("", 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("", port + 1))
                return port


def ours() -> Credentials:
    return find_credentials(secret="ours")


class Heard:
    """What an asker or answerer reports, with a way to wait for it."""

    def __init__(self) -> None:
        self.found: list[NodeFound] = []
        self.refused: list[DiscoveryRefused] = []
        self._news = asyncio.Event()

    def on_found(self, node: NodeFound) -> None:
        self.found.append(node)
        self._news.set()

    def on_refused(self, refusal: DiscoveryRefused) -> None:
        self.refused.append(refusal)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self._news.clear()
                with contextlib.suppress(TimeoutError):  # counters change without news
                    await asyncio.wait_for(self._news.wait(), 0.02)


@contextlib.asynccontextmanager
async def asker(
    base_port: int, heard: Heard, *, secret: str = "ours", group: str = "", name: str = "client"
) -> AsyncIterator[Asker]:
    started = await Asker.start(
        credentials=find_credentials(secret=secret),
        group=group,
        base_port=base_port,
        name=name,
        interfaces=LOOPBACK,
        on_found=heard.on_found,
        on_refused=heard.on_refused,
    )
    with contextlib.closing(started):
        yield started


@contextlib.asynccontextmanager
async def answerer(
    base_port: int, heard: Heard, *, process: ProcessId = ALPHA, name: str = "alpha", tcp_port: int = 4001
) -> AsyncIterator[Answerer]:
    started = await Answerer.start(
        credentials=ours(),
        group="",
        base_port=base_port,
        name=name,
        process=process,
        tcp_port=tcp_port,
        interfaces=LOOPBACK,
        on_refused=heard.on_refused,
    )
    with contextlib.closing(started):
        yield started


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(main())


def test_one_question_finds_all_nodes_of_a_host(base_port: int) -> None:
    async def test() -> None:
        heard, nodes = Heard(), Heard()
        async with (
            answerer(base_port, nodes),
            answerer(base_port, nodes, process=BETA, name="beta", tcp_port=4002),
            asker(base_port, heard) as client,
        ):
            client.ask()
            await heard.until(lambda: len(heard.found) == 2)
            assert client.tried == [f"lo: asked 127.255.255.255, UDP port {base_port + 1}"]
        assert sorted(heard.found, key=lambda node: node.name) == [
            NodeFound(ALPHA, "alpha", "127.0.0.1", 4001),
            NodeFound(BETA, "beta", "127.0.0.1", 4002),
        ]
        assert nodes.refused == heard.refused == []

    run(test)


def test_a_silent_node_neither_announces_itself_nor_answers(base_port: int) -> None:
    async def test() -> None:
        heard, nodes = Heard(), Heard()
        async with answerer(base_port, nodes) as node, asker(base_port, heard) as client:
            node.silent = True
            node.announce()
            client.ask()
            await nodes.until(lambda: node.counters["silent"] == 1)
            assert not node.counters["announced"]
            node.silent = False
            node.announce()
            await heard.until(lambda: client.counters["announcements"] == 1)
            client.ask()
            await heard.until(lambda: client.counters["answers"] == 1)

    run(test)


def test_an_announcement_reaches_all_clients_of_a_host_and_is_limited(
    base_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "DIAL_INTERVAL", 1000.0)

    async def test() -> None:
        one, two, nodes = Heard(), Heard(), Heard()
        async with (
            asker(base_port, one) as first,
            asker(base_port, two),
            answerer(base_port, nodes) as node,
        ):
            for _ in range(3):
                node.announce()
            await two.until(lambda: len(two.found) == 1)
            await one.until(lambda: len(one.found) == 1)
            first.ask()
            await one.until(lambda: len(one.found) == 2)
            assert first.counters["announcements"] == 3
        assert first.counters["answers"] == 1
        assert two.found == [NodeFound(ALPHA, "alpha", "127.0.0.1", 4001)]

    run(test)


@pytest.mark.parametrize(("secret", "group", "reason"), [("theirs", "", "secret"), ("ours", "tests", "group")])
def test_strangers_are_refused_on_both_sides_by_name(base_port: int, secret: str, group: str, reason: str) -> None:
    async def test() -> None:
        heard, nodes = Heard(), Heard()
        async with (
            answerer(base_port, nodes) as node,
            asker(base_port, heard, secret=secret, group=group, name="laptop") as client,
        ):
            client.ask()
            client.ask()
            await heard.until(lambda: bool(heard.refused))
            await nodes.until(lambda: node.counters["strangers"] == 2)
            client.ask()
            node.announce()
            await heard.until(lambda: len(heard.refused) == 2)
            await nodes.until(lambda: node.counters["strangers"] == 3)
        assert set(heard.refused) == {DiscoveryRefused("127.0.0.1", "alpha", reason)}
        assert nodes.refused == [DiscoveryRefused("127.0.0.1", "laptop", reason)]
        assert heard.found == []
        assert node.counters["replies"] == 1

    run(test)


def test_garbage_is_counted_and_everything_goes_on(base_port: int) -> None:
    async def test() -> None:
        heard, nodes = Heard(), Heard()
        async with answerer(base_port, nodes) as node, asker(base_port, heard) as client:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for size in range(0, 3000, 10):
                    sock.sendto(bytes(size), ("127.0.0.1", base_port + 1))
                    sock.sendto(b"dispy\x01" + bytes(size), ("127.0.0.1", base_port))
                    await asyncio.sleep(0)  # lets the loop read, else the kernel drops what is too much
            client.ask()
            await heard.until(lambda: bool(heard.found))
            assert node.counters["garbage"] > 100
        assert client.counters["garbage"] > 100
        assert nodes.refused == heard.refused == []

    run(test)


def test_answers_to_questions_never_asked_are_ignored(base_port: int) -> None:
    async def test() -> None:
        heard, nodes = Heard(), Heard()
        async with answerer(base_port, nodes), asker(base_port, heard) as client:
            credentials = ours()
            identity = datagrams.DiscoveryIdentity.of(credentials.derive("discovery"), credentials.key_id, "")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                old = datagrams.encode_answer(identity, b"n" * 16, BETA, "old", 4003)
                sock.sendto(old, ("127.0.0.1", base_port))
                forged = datagrams.encode_refusal(b"n" * 16, datagrams.Reason.SECRET, "liar")
                sock.sendto(forged, ("127.0.0.1", base_port))
            client.ask()
            await heard.until(lambda: bool(heard.found))
            assert client.counters["stale"] == 2
        assert [node.name for node in heard.found] == ["alpha"]
        assert heard.refused == []

    run(test)


def test_a_failing_interface_does_not_stop_the_others(base_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    select = "dispy.wire.interfaces._select"

    async def test() -> None:
        heard, nodes = Heard(), Heard()
        async with answerer(base_port, nodes), asker(base_port, heard) as client:
            (loopback,) = discovery.interface_addresses(("127.0.0.1",))
            broken = discovery.InterfaceAddress("eth7", "203.0.113.1", "203.0.113.255", False, loopback.network)
            silent = discovery.InterfaceAddress("tun7", "203.0.113.2", "", False, loopback.network)
            monkeypatch.setattr(select, lambda _names: ([broken, silent, loopback], ["eth8"]))
            client.ask()
            await heard.until(lambda: bool(heard.found))
            assert client.tried == [
                "eth8: no such interface or address is up",
                "tun7: 203.0.113.2 has no broadcast",
                "eth7: multicasts are not heard at 203.0.113.1: No such device",
                "tun7: multicasts are not heard at 203.0.113.2: No such device",
                "eth7: 203.0.113.255 could not be asked: Cannot assign requested address",
                f"lo: asked 127.255.255.255, UDP port {base_port + 1}",
            ]

    run(test)


def test_ports_that_another_program_has_for_itself(base_port: int) -> None:
    async def test() -> None:
        heard = Heard()
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
        ):
            one.bind(("", base_port))
            two.bind(("", base_port + 1))
            with pytest.raises(NodeError, match=f"UDP port {base_port + 1} cannot be used"):
                async with answerer(base_port, heard):
                    pass
            async with asker(base_port, heard) as client:
                client.ask()
                assert "are not heard" in client.tried[0]

    run(test)


def test_ask_once(base_port: int) -> None:
    async def test() -> None:
        nodes = Heard()
        async with answerer(base_port, nodes):
            found, refused, tried = await discovery.discover_once(ours(), "", base_port, LOOPBACK, 0.3)
            assert [node.process for node in found] == [ALPHA]
            assert (refused, len(tried)) == ([], 1)
            other = find_credentials(secret="other")
            found, refused, tried = await discovery.discover_once(other, "", base_port, LOOPBACK, 0.3)
            assert (found, refused) == ([], [DiscoveryRefused("127.0.0.1", "alpha", "secret")])

    run(test)


def test_interfaces_by_name_and_address() -> None:
    loopback = discovery.interface_addresses(LOOPBACK)[0]
    assert (loopback.address, loopback.broadcast, loopback.is_loopback) == (
        "127.0.0.1",
        "127.255.255.255",
        True,
    )
    assert discovery.interface_addresses(("127.0.0.1",)) == [loopback]
    assert discovery.interface_addresses()[0] == loopback
    with pytest.raises(SettingsError, match=r"nowhere0.*there are: lo \(127\.0\.0\.1\)"):
        discovery.interface_addresses(("nowhere0",))


def test_scope_keeps_to_its_interfaces() -> None:
    everywhere, here = Scope((), False), Scope(LOOPBACK, False)
    here.refresh([])
    assert everywhere.contains("203.0.113.9")
    assert here.contains("127.0.0.1")
    assert not here.contains("203.0.113.9")
    with_empty_secret = Scope((), True)
    assert all(each.is_loopback for each in with_empty_secret.refresh([]))
    assert not with_empty_secret.contains("203.0.113.9")


def test_where_daemons_listen() -> None:
    everywhere = ["0.0.0.0", "::"] if has_ipv6() else ["0.0.0.0"]
    assert discovery.listen_hosts(ours()) == everywhere
    assert discovery.listen_hosts(ours(), hosts=("10.0.0.1",), interfaces=LOOPBACK) == ["10.0.0.1"]
    assert discovery.listen_hosts(ours(), interfaces=LOOPBACK)[0] == "127.0.0.1"
    empty = find_credentials(secret="")
    assert discovery.listen_hosts(empty) == ["127.0.0.1"]
    assert discovery.listen_hosts(empty, hosts=("localhost", "127.0.0.2")) == ["localhost", "127.0.0.2"]
    with pytest.raises(SettingsError, match="with an empty secret"):
        discovery.listen_hosts(empty, hosts=("10.0.0.1",))
    assert discovery.listen_hosts(find_credentials(secret="", insecure=True)) == everywhere


def ipv6(name: str, address: str, prefix: str) -> InterfaceAddress:
    return InterfaceAddress(name, address, "", False, ipaddress.IPv6Network(prefix), 7)


def test_ipv6_speaks_once_for_each_interface_and_not_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    local, one, two = (
        ipv6("eth0", "fe80::1%eth0", "fe80::/64"),
        ipv6("eth0", "fd77::1", "fd77::/64"),
        ipv6("eth0", "fd77::2", "fd77::/64"),
    )
    other = ipv6("eth1", "fe80::5%eth1", "fe80::/64")
    loopback = InterfaceAddress("lo", "::1", "", True, ipaddress.IPv6Network("::1/128"))
    monkeypatch.setattr("dispy.wire.interfaces._select", lambda _names: ([loopback, local, one, two, other], []))
    scope, tried = Scope(("lo", "eth0", "eth1"), False), list[str]()
    assert scope.refresh(tried) == [one, other]
    assert tried == []
    assert scope.contains("fd77::9")
    assert scope.contains("fe80::9%eth1")
    assert not scope.contains("fe80::9%eth2")
    assert not scope.contains("fd78::9")


def test_an_interface_without_broadcast_speaks_by_multicast_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = InterfaceAddress("tun7", "203.0.113.2", "", False, ipaddress.IPv4Network("203.0.113.0/24"))
    monkeypatch.setattr("dispy.wire.interfaces._select", lambda _names: ([silent], []))
    assert Scope((), False).refresh([]) == []
    assert Scope((), False, Multicast(instead=True)).refresh([]) == [silent]


def test_interfaces_that_cannot_be_looked_at_are_those_that_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    local = ipv6("eth0", "fd77::1", "fd77::/64")
    monkeypatch.setattr("dispy.wire.interfaces._select", lambda _names: ([local], []))
    scope, tried = Scope((), False), list[str]()
    scope.refresh([])

    def fail(_names: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("dispy.wire.interfaces._select", fail)
    assert scope.refresh(tried) == [local]
    assert tried == ["the interfaces of this machine cannot be looked at: Too many open files"]


def test_addresses_as_people_write_them() -> None:
    assert address_of(("10.0.0.1", 9701)) == "10.0.0.1"
    assert address_of(("fd77::1", 9701, 0, 0)) == "fd77::1"
    assert address_of(("fe80::1", 9701, 0, socket.if_nametoindex("lo"))) == "fe80::1%lo"
    assert shown("fd77::1", 9701) == "[fd77::1]:9701"
    assert shown("n1", 9701) == "n1:9701"


def test_other_places_of_a_node_travel_and_are_merged(base_port: int) -> None:
    async def test() -> None:
        nodes = Heard()
        started = await Answerer.start(
            credentials=ours(),
            group="",
            base_port=base_port,
            name="alpha",
            process=ALPHA,
            tcp_port=4001,
            interfaces=LOOPBACK,
            others=(("alpha.example.org", 4009), *((f"{'x' * 60}{number}.example.org", 4009) for number in range(9))),
            on_refused=nodes.on_refused,
        )
        with contextlib.closing(started):
            ((node,), _, _) = await discovery.discover_once(ours(), "", base_port, LOOPBACK, 0.3)
        assert node.address == "127.0.0.1"
        assert node.others[0] == ("alpha.example.org", 4009)
        assert 2 < len(node.others) < 8, "an answer is never longer than the question"

    run(test)
