"""Networks as they are: IPv6, multicast, several interfaces, addresses that change, lost datagrams, forwarded ports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

PLACES = """
import sys, time, dispy

def where(seconds):
    import time
    time.sleep(seconds)
    return dispy_node_name

if __name__ == "__main__":
    cluster = dispy.JobCluster(where, {arguments})
    names = set()
    for job in [cluster.submit(0.02) for _ in range({jobs})]:
        names.add(job())
        assert job.exception is None, job.exception
    print("addresses", sorted(node.ip_addr for node in cluster.status().nodes), flush=True)
    print("names", sorted(names), flush=True)
"""


def in_namespace(netns: Any, name: str, *command: str, check: bool = True) -> str:
    done = subprocess.run([*netns.inside(name), *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout


def without_ipv4(netns: Any, *names: str) -> None:
    for name in names:
        in_namespace(netns, name, "ip", "-4", "addr", "flush", "dev", "eth0")


@pytest.fixture
def client(netns: Any, start_daemon: Callable[..., Any]) -> Callable[..., Any]:
    """`client(program, **env)`: runs a program in the client's namespace until it ends; its output."""

    def run(program: str, **env: str) -> str:
        settings = {"DISPY_PORT": "9700", "DISPY_LOCAL": "never", **netns.env, **env}
        daemon = start_daemon(*netns.inside("client"), sys.executable, "-c", program, env=settings)
        assert daemon.wait(45) == 0, daemon.output
        return str(daemon.output)

    return run


@pytest.fixture
def node(netns: Any, dispynode: Callable[..., Any]) -> Callable[..., Any]:
    """`node(namespace, *options)`: a node in a namespace."""

    def start(name: str, *options: str, **env: str) -> Any:
        return dispynode(
            "--cpus", "1", *options, name=name, base_port=9700, inside=netns.inside(name), env={**netns.env, **env}
        )

    return start


def nodes_seen(netns: Any, *words: str) -> list[dict[str, Any]]:
    shown = in_namespace(
        netns,
        "client",
        "env",
        "DISPY_INTERFACES=eth0",
        sys.executable,
        "-m",
        "dispy.cli",
        "nodes",
        "--json",
        *words,
        check=False,
    )
    return [json.loads(line) for line in shown.splitlines()]


def test_nodes_without_ipv4_are_found_and_used(netns: Any, node: Any, client: Any) -> None:
    without_ipv4(netns, "client", "n1", "n2")
    group = {"DISPY_IPV6_MULTICAST_GROUP": "ff05::1:2:3"}
    node("n1", **group)
    node("n2", **group)
    said = client(PLACES.format(arguments="", jobs=40), **group)
    assert "addresses ['fd77::11', 'fd77::12']" in said
    assert "names ['n1', 'n2']" in said


def test_a_network_of_link_local_addresses_is_enough(netns: Any, node: Any, client: Any, wait_until: Any) -> None:
    without_ipv4(netns, "client", "n1")
    for name, number in (("client", 10), ("n1", 11)):
        in_namespace(netns, name, "ip", "addr", "del", f"fd77::{number}/64", "dev", "eth0")
    for name in ("client", "n1"):  # new addresses are checked for duplicates first
        wait_until(lambda name=name: "fe80" in in_namespace(netns, name, "ip", "-6", "addr", "show", "-tentative"))
    node("n1")
    said = client(PLACES.format(arguments="", jobs=3))
    assert "addresses ['fe80::" in said
    assert "%eth0']" in said


def test_a_node_with_both_families_is_one_node(netns: Any, node: Any, client: Any) -> None:
    node("n1")
    assert "addresses ['10.77.0.11']" in client(PLACES.format(arguments="", jobs=3))
    (seen,) = nodes_seen(netns)
    assert seen["addresses"] == ["10.77.0.11:9701", "[fd77::11]:9701"]


def test_multicast_finds_nodes_where_broadcast_is_forbidden(netns: Any, node: Any, client: Any) -> None:
    for name in ("client", "n1"):
        in_namespace(netns, name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    rules = "add table ip f; add chain ip f o { type filter hook output priority 0; }; "
    in_namespace(netns, "client", "nft", rules + "add rule ip f o ip daddr 10.77.0.255 drop")
    group = {"DISPY_IPV4_MULTICAST_GROUP": "239.1.2.3"}
    node("n1", **group)
    said = client(PLACES.format(arguments="ipv4_udp_multicast=True", jobs=3), **group)
    assert "names ['n1']" in said


def test_a_node_announces_itself_by_multicast(netns: Any, node: Any, start_daemon: Any) -> None:
    env = {"DISPY_PORT": "9700", "DISPY_LOCAL": "never", **netns.env}
    program = PLACES.format(arguments="ping_interval=900", jobs=3)
    waiting = start_daemon(*netns.inside("client"), sys.executable, "-c", program, env=env)
    waiting.wait_for("No node has answered", timeout=30)
    node("n1", "--ipv4_udp_multicast")
    assert waiting.wait(20) == 0, waiting.output
    assert "names ['n1']" in waiting.output


def test_a_third_of_all_datagrams_lost_costs_seconds_only(netns: Any, node: Any, client: Any) -> None:
    for name in ("n1", "n2", "n3"):
        rules = "add table inet f; add chain inet f i { type filter hook input priority 0; }; "
        in_namespace(netns, name, "nft", rules + "add rule inet f i meta l4proto udp numgen random mod 100 < 30 drop")
        node(name)
    said = client(PLACES.format(arguments="ping_interval=1", jobs=400))
    assert "names ['n1', 'n2', 'n3']" in said


def test_interfaces_without_a_way_out_do_not_stop_the_others(netns: Any, node: Any, client: Any) -> None:
    for number, name in ((1, "eth1"), (2, "eth2")):
        in_namespace(netns, "client", "ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-end")
        in_namespace(netns, "client", "ip", "link", "set", f"{name}-end", "up")
        in_namespace(netns, "client", "ip", "addr", "add", f"10.78.{number}.1/24", "brd", "+", "dev", name)
        in_namespace(netns, "client", "ip", "link", "set", name, "up")
    in_namespace(netns, "client", "ip", "route", "flush", "dev", "eth2")
    node("n1")
    said = client(PLACES.format(arguments="", jobs=3), DISPY_INTERFACES="")
    assert "addresses ['10.77.0.11']" in said


FORWARDER = """
import socket, sys, threading

def pump(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)

def serve(connection):
    other = socket.create_connection((sys.argv[2], int(sys.argv[3])))
    threading.Thread(target=pump, args=(connection, other), daemon=True).start()
    pump(other, connection)

listening = socket.create_server(("", int(sys.argv[1])))
print("forwarding", flush=True)
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
"""


def test_a_node_behind_a_forwarded_port_is_named_by_it(
    netns: Any, node: Any, client: Any, start_daemon: Callable[..., Any]
) -> None:
    node("n1", "--ext_host", "10.77.0.12:9811")
    drop = "add table ip f; add chain ip f i { type filter hook input priority 0; }; "
    in_namespace(netns, "n1", "nft", drop + "add rule ip f i ip saddr 10.77.0.10 drop")
    in_namespace(netns, "client", "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    gate = start_daemon(*netns.inside("n2"), sys.executable, "-c", FORWARDER, "9811", "10.77.0.11", "9701")
    gate.wait_for("forwarding")
    said = client(PLACES.format(arguments="nodes=[('10.77.0.12', 9811)]", jobs=3))
    assert "addresses ['10.77.0.12']" in said
    (seen,) = nodes_seen(netns, "10.77.0.12:9811")
    assert (seen["name"], seen["addresses"]) == ("n1", ["10.77.0.12:9811"])


def test_a_node_that_is_found_but_not_reached_is_tried_where_it_says(
    netns: Any, node: Any, client: Any, start_daemon: Callable[..., Any]
) -> None:
    node("n1", "--ext_host", "10.77.0.12:9811")
    drop = "add table inet f; add chain inet f i { type filter hook input priority 0; }; "
    for source in ("ip saddr 10.77.0.10", "ip6 saddr fd77::10"):
        in_namespace(netns, "n1", "nft", drop + f"add rule inet f i {source} tcp dport 9701 drop")
    gate = start_daemon(*netns.inside("n2"), sys.executable, "-c", FORWARDER, "9811", "10.77.0.11", "9701")
    gate.wait_for("forwarding")
    assert "addresses ['10.77.0.12']" in client(PLACES.format(arguments="", jobs=3))


def test_a_node_named_in_another_way_than_it_was_found_is_used(netns: Any, node: Any, client: Any) -> None:
    node("n1")
    program = PLACES.format(arguments="", jobs=3) + (
        "    other = dispy.JobCluster(where, nodes=['fd77::11'])\n    print('other', other.submit(0)(), flush=True)\n"
    )
    assert "other n1" in client(program)


def test_several_nodes_on_one_host_are_all_used(netns: Any, node: Any, client: Any, dispynode: Any) -> None:
    for number in (1, 2, 3):
        dispynode("--cpus", "1", name=f"node{number}", base_port=9700, inside=netns.inside("n1"), env=netns.env)
    said = client(PLACES.format(arguments="", jobs=100))
    assert "names ['node1', 'node2', 'node3']" in said


WATCHED = """
import time, dispy

def where(number):
    import time
    time.sleep(0.05)
    return number

if __name__ == "__main__":
    cluster = dispy.JobCluster(where, reentrant=True)
    print("first", cluster.submit(0)(), flush=True)
    jobs = [cluster.submit(number) for number in range(300)]
    results = [job() for job in jobs]
    assert results == list(range(300)), [job.exception for job in jobs if job.exception]
    print("addresses", sorted(node.ip_addr for node in cluster.status().nodes), flush=True)
"""


def test_a_node_whose_address_changes_is_found_again(netns: Any, node: Any, start_daemon: Callable[..., Any]) -> None:
    for name in ("client", "n1"):
        in_namespace(netns, name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    node("n1")
    env = {"DISPY_PORT": "9700", "DISPY_LOCAL": "never", **netns.env}
    program = start_daemon(*netns.inside("client"), sys.executable, "-c", WATCHED, env=env)
    program.wait_for("first", timeout=30)
    in_namespace(netns, "n1", "ip", "addr", "add", "10.77.0.99/24", "brd", "+", "dev", "eth0")
    in_namespace(netns, "n1", "ip", "addr", "del", "10.77.0.11/24", "dev", "eth0")
    # Deleting the first address of a network deletes the others too, unless told otherwise.
    in_namespace(netns, "n1", "ip", "addr", "replace", "10.77.0.99/24", "brd", "+", "dev", "eth0")
    assert program.wait(60) == 0, program.output


def test_an_interface_that_comes_later_is_used(netns: Any, node: Any, start_daemon: Callable[..., Any]) -> None:
    in_namespace(netns, "n1", "ip", "link", "set", "eth0", "down")
    node("n1", DISPY_INTERFACES="lo,eth0")
    env = {"DISPY_PORT": "9700", "DISPY_LOCAL": "never", **netns.env}
    program = PLACES.format(arguments="ping_interval=900", jobs=3)
    waiting = start_daemon(*netns.inside("client"), sys.executable, "-c", program, env=env)
    waiting.wait_for("No node has answered", timeout=30)
    in_namespace(netns, "n1", "ip", "link", "set", "eth0", "up")
    assert waiting.wait(30) == 0, waiting.output
    assert "names ['n1']" in waiting.output


def test_a_node_joins_several_programs_at_once(
    dispynode: Callable[..., Any], start_daemon: Callable[..., Any], free_base_port: int
) -> None:
    ports = (free_base_port, free_base_port + 20)
    dispynode(*("--join", f"127.0.0.1:{ports[0]}", "--join", f"[127.0.0.1]:{ports[1]}"), base_port=free_base_port + 10)
    for port in ports:
        program = start_daemon(
            sys.executable, "-c", WATCHED.replace("300", "3"), env={"DISPY_PORT": str(port), "DISPY_LOCAL": "never"}
        )
        assert program.wait(30) == 0, program.output


@pytest.mark.parametrize("command", ["dispy.node.cli", "dispy.cli nodes"])
def test_interfaces_that_are_rubbish_are_named(command: str, free_base_port: int, tmp_path: Any) -> None:
    words = [sys.executable, "-m", *command.split()]
    if "node.cli" in command:
        words += ["--dest_path_prefix", str(tmp_path / "prefix")]
    env = {**os.environ, "DISPY_INTERFACES": "nowhere0, 300.1.2.3, fe80::zz", "DISPY_PORT": str(free_base_port)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (1, 2)
    said = done.stdout + done.stderr
    for name in ("nowhere0", "300.1.2.3", "fe80::zz"):
        assert name in said
    assert "Traceback" not in said


HOLDING = """
import dispy
if __name__ == "__main__":
    cluster = dispy.JobCluster(len, ext_host="desk.example.org")
    cluster.submit("x")()
    print("holding", flush=True)
    input()
"""


def test_who_holds_a_node_is_shown_by_the_name_that_others_know(
    dispynode: Callable[..., Any], free_base_port: int
) -> None:
    dispynode()
    env = {**os.environ, "DISPY_PORT": str(free_base_port), "DISPY_LOCAL": "never"}
    program = subprocess.Popen(
        [sys.executable, "-c", HOLDING], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "holding\n"
        words = [sys.executable, "-m", "dispy.cli", "nodes", "--json"]
        shown = subprocess.run(words, env=env, capture_output=True, text=True, timeout=30, check=True)
        program.stdin.write("\n")
    (seen,) = (json.loads(line) for line in shown.stdout.splitlines())
    assert (seen["state"], seen["holder"]["host"]) == ("busy", "desk.example.org")
