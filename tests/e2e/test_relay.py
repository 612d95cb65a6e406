"""Nodes on another network, found by a relay there and worked with directly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAR = {"n2": "10.78.0.12", "n3": "10.78.0.13"}
ROUTER = "10.78.0.1"

PROGRAM = """
import os, sys, time, dispy

def where(word):
    return word + " on " + dispy_node_name

if __name__ == "__main__":
    cluster = dispy.JobCluster(where, {arguments})
    print(cluster.submit("first")(), flush=True)
    print("addresses", sorted(node.ip_addr for node in cluster.status().nodes), flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    print(cluster.submit("second")(), flush=True)
"""


def run_in(netns: Any, name: str, *command: str, check: bool = True) -> str:
    done = subprocess.run([*netns.inside(name), *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def two_networks(netns: Any) -> Any:
    """The client on one network, `n2` and `n3` on another one, and `n1` the router between them."""
    switch = netns.switch

    def ip(words: str) -> None:
        subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)

    ip(f"-n {switch} link add br1 type bridge forward_delay 0 mcast_snooping 0")
    ip(f"-n {switch} link set br1 up")
    for name, address in FAR.items():
        ip(f"-n {switch} link set p-{name} master br1")
        host = f"{netns.prefix}-{name}"
        ip(f"-n {host} addr flush dev eth0")
        ip(f"-n {host} addr add {address}/24 brd + dev eth0")
        ip(f"-n {host} route add default via {ROUTER}")
    router = f"{netns.prefix}-n1"
    ip(f"link add name eth1 netns {router} type veth peer p-far netns {switch}")
    ip(f"-n {router} addr add {ROUTER}/24 brd + dev eth1")
    ip(f"-n {router} link set eth1 up")
    ip(f"-n {switch} link set p-far master br1")
    ip(f"-n {switch} link set p-far up")
    ip(f"-n {netns.prefix}-client route add default via {netns.address('n1')}")
    run_in(netns, "n1", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    return netns


@pytest.fixture
def relay(netns: Any, start_daemon: Callable[..., Any]) -> Callable[..., Any]:
    """`relay(namespace, *options)`: a relay in a namespace, ready."""

    def start(name: str, *options: str, interfaces: str = "eth0") -> Any:
        command = (*netns.inside(name), sys.executable, "-m", "dispy.relay.cli", *options)
        daemon = start_daemon(*command, env={"DISPY_INTERFACES": interfaces, "DISPY_PORT": "9700"})
        daemon.wait_for("is ready")
        return daemon

    return start


def start_node(netns: Any, dispynode: Callable[..., Any], name: str, *options: str) -> Any:
    return dispynode("--cpus", "1", *options, name=name, base_port=9700, inside=netns.inside(name), env=netns.env)


@pytest.fixture
def program(netns: Any, start_daemon: Callable[..., Any]) -> Callable[..., Any]:
    """`program(arguments of JobCluster, file)`: in the client's namespace; its second job waits for the file."""

    def start(arguments: str, go: Path) -> Any:
        source = PROGRAM.replace("{arguments}", arguments)
        env = {"DISPY_PORT": "9700", "DISPY_LOCAL": "never", **netns.env}
        return start_daemon(*netns.inside("client"), sys.executable, "-c", source, str(go), env=env)

    return start


@pytest.mark.timeout(60)
def test_a_program_that_names_the_relay_works_with_the_nodes_behind_it(
    two_networks: Any, relay: Any, dispynode: Any, program: Any, tmp_path: Path
) -> None:
    """Also when the relay is gone: no job passes through it."""
    start_node(two_networks, dispynode, "n3")
    helper = relay("n2")
    started = program(f"nodes=[{FAR['n2']!r}]", tmp_path / "go")
    assert started.wait_for("addresses", timeout=30) == f"addresses ['{FAR['n3']}']"
    assert "10.77.0.10 is connected" in helper.wait_for("is connected")
    helper.close()
    (tmp_path / "go").touch()
    assert started.wait(30) == 0
    assert "first on n3" in started.output
    assert "second on n3" in started.output


@pytest.mark.timeout(60)
def test_a_node_that_comes_later_is_used_and_its_host_may_be_that_of_the_relay(
    two_networks: Any, relay: Any, dispynode: Any, program: Any, tmp_path: Path
) -> None:
    (tmp_path / "go").touch()
    relay("n3", "--relay_port", "9711")
    started = program(f"nodes=[({FAR['n3']!r}, 9711), '10.78.*']", tmp_path / "go")
    started.wait_for("a relay, which tells of the nodes that it hears", timeout=30)
    start_node(two_networks, dispynode, "n3")
    started.wait_for("first on n3", timeout=30)
    assert started.wait(30) == 0


@pytest.mark.timeout(60)
def test_a_relay_between_two_networks_goes_to_the_program_by_itself(
    two_networks: Any, relay: Any, dispynode: Any, program: Any, tmp_path: Path
) -> None:
    """It stands on the router, asks on the far side only, and dials the program."""
    start_node(two_networks, dispynode, "n2")
    start_node(two_networks, dispynode, "n3")
    relay("n1", "--host", "eth1", "--scheduler_node", "10.77.0.10", interfaces="eth0,eth1")
    (tmp_path / "go").touch()
    started = program("", tmp_path / "go")
    assert "10.77." not in started.wait_for("addresses", timeout=30)
    assert started.wait(30) == 0
    assert "first on n" in started.output


SHARED = """
import dispy

def where(number):
    return dispy_node_name

if __name__ == "__main__":
    with dispy.SharedJobCluster(where) as cluster:
        print("ran on", cluster.submit(1)(), flush=True)
"""


@pytest.mark.timeout(60)
def test_a_shared_scheduler_that_names_the_relay_has_the_nodes_behind_it(
    two_networks: Any, relay: Any, dispynode: Any, start_daemon: Callable[..., Any], tmp_path: Path
) -> None:
    start_node(two_networks, dispynode, "n3")
    relay("n2")
    env = {"DISPY_PORT": "9700", "DISPY_INTERFACES": "lo,eth0"}
    inside = two_networks.inside("client")
    scheduler = start_daemon(
        *(*inside, sys.executable, "-m", "dispy.sharing.cli", "--daemon", "--node", FAR["n2"]),
        *("--dest_path_prefix", str(tmp_path / "scheduler")),
        env=env,
    )
    scheduler.wait_for("is ready")
    started = start_daemon(*inside, sys.executable, "-c", SHARED, env=env)
    assert started.wait(30) == 0, started.output
    assert "ran on n3" in started.output


@pytest.mark.timeout(60)
def test_the_command_shows_the_nodes_behind_a_relay(two_networks: Any, relay: Any, dispynode: Any) -> None:
    start_node(two_networks, dispynode, "n3")
    relay("n2")
    words = ("env", "DISPY_INTERFACES=eth0", sys.executable, "-m", "dispy.cli", "nodes", FAR["n2"], "-w", "0.1")
    shown = [json.loads(line) for line in run_in(two_networks, "client", *words, "--json").splitlines()]
    assert [(each["name"], each["state"], each["address"]) for each in shown] == [
        ("n3", "free", FAR["n3"]),
        (shown[1]["name"], "relay", FAR["n2"]),
    ]
    assert shown[0]["relay"] == [FAR["n2"], 9701]
    assert "a relay, which hears 1 node on its network" in run_in(two_networks, "client", *words)
