"""Networks as they are: IPv6, multicast, several interfaces, addresses that change, lost datagrams, forwarded ports."""

from __future__ import annotations

import json
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
    node("n1")
    node("n2")
    said = client(PLACES.format(arguments="", jobs=40))
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
    node("n1")
    said = client(PLACES.format(arguments="ipv4_udp_multicast=True", jobs=3))
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
