"""A network of its own for a test: a client and three nodes in network namespaces on one bridge.

Nothing touches the machine's own interfaces. All names carry the process id of the test run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import dispy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "netns" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


@pytest.fixture
def clusters() -> Iterator[Callable[..., dispy.JobCluster]]:
    """`clusters(computation, …)`: a cluster that is ended after the test."""
    made: list[dispy.JobCluster] = []

    def make(computation: Any, **settings: Any) -> dispy.JobCluster:
        made.append(dispy.JobCluster(computation, **settings))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close(terminate=True)
    for cluster in made:
        cluster.shutdown()


@pytest.fixture
def local(clusters: Callable[..., dispy.JobCluster]) -> Callable[..., dispy.JobCluster]:
    """`local(computation, …)`: a cluster on a node that is started for the test."""
    return lambda computation, **settings: clusters(computation, **{"nodes": "local", **settings})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("a small file system needs root: run the tests as root, in a container for example")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"the kernel or the container forbids mounting: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@dataclass(frozen=True, slots=True)
class Network:
    """Namespaces `client`, `n1`, `n2`, `n3` with one interface `eth0` each, and the bridge between them."""

    prefix: str

    def inside(self, name: str) -> tuple[str, ...]:
        """Put this before a command to run it in that namespace (the command keeps its pid)."""
        return ("nsenter", f"--net=/run/netns/{self.prefix}-{name}")

    def address(self, name: str) -> str:
        """The IPv4 address of a namespace."""
        return f"10.77.0.{HOSTS[name]}"

    @property
    def switch(self) -> str:
        """The namespace of the bridge, whose ports are called `p-client`, `p-n1` and so on."""
        return f"{self.prefix}-sw"

    def plug_in(self, name: str) -> None:
        """Give a namespace its interface, and the bridge a port for it."""
        host, number = f"{self.prefix}-{name}", HOSTS[name]
        _ip(f"link add name eth0 netns {host} type veth peer p-{name} netns {self.switch}")
        _ip(f"-n {host} addr add 10.77.0.{number}/24 brd + dev eth0")
        _ip(f"-n {host} addr add fd77::{number}/64 dev eth0 nodad")
        _ip(f"-n {host} link set eth0 up")
        _ip(f"-n {self.switch} link set p-{name} master br0")
        _ip(f"-n {self.switch} link set p-{name} up")

    def cut(self, name: str) -> None:
        """Pull the cable of a namespace."""
        _ip(f"-n {self.switch} link set p-{name} down")

    def join(self, name: str) -> None:
        """Put the cable back."""
        _ip(f"-n {self.switch} link set p-{name} up")

    @property
    def env(self) -> dict[str, str]:
        """Environment for processes inside: they speak on the namespace's interface."""
        return {"DISPY_INTERFACES": "eth0"}


HOSTS = {"client": 10, "n1": 11, "n2": 12, "n3": 13}
NODES = ("n1", "n2", "n3")


@pytest.fixture
def netns() -> Iterator[Network]:
    """A `Network`; skips with the reason where namespaces cannot be made."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("network namespaces need root: run the tests as root, in a container for example")
    if missing := [tool for tool in ("ip", "nsenter") if shutil.which(tool) is None]:
        pytest.skip(f"network namespaces need {' and '.join(missing)}: run scripts/real-parts")
    network = Network(f"dispy{os.getpid()}")
    with contextlib.ExitStack() as cleanup:
        for name in ("sw", *HOSTS):
            try:
                _ip(f"netns add {network.prefix}-{name}")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"the kernel or the container forbids network namespaces: {error.stderr.strip()}")
            cleanup.callback(_ip, f"netns del {network.prefix}-{name}")
            _ip(f"-n {network.prefix}-{name} link set lo up")
        _ip(f"-n {network.switch} link add br0 type bridge forward_delay 0 mcast_snooping 0")
        _ip(f"-n {network.switch} link set br0 up")
        for name in HOSTS:
            network.plug_in(name)
        yield network


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)
