"""Ports, intervals, limits, paths, and every `DISPY_…` variable in one table with one meaning in all commands.

Nothing here is read at import: functions look at the environment when they are called.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from dispy.errors import SettingsError

VERSION: Final = "5.0.0"

BASE_PORT: Final = 9700
"""Clients listen on base (UDP announcements, TCP for nodes that join), nodes on base+1 (UDP and TCP)."""
NODE_PORT_OFFSET: Final = 1
SCHEDULER_PORT_OFFSET: Final = 2

HEARTBEAT_INTERVAL: Final = 0.5
SUSPECT_TIMEOUT: Final = 2.5
"""Seconds without a byte after which a peer gets no new work."""
GRACE_TIMEOUT: Final = 5.0
"""Seconds without a byte (or without a link) after which a peer is lost."""
RESTART_GRACE: Final = 30.0
"""Seconds in which nodes must come back to a shared scheduler that was started again."""
HANDSHAKE_TIMEOUT: Final = 5.0
REDIAL_FIRST: Final = 0.1
REDIAL_MOST: Final = 2.0
REDIAL_HURRY: Final = 0.25
"""Seconds between two attempts to dial as long as the peer is not lost; none waits for the one before it."""

AHEAD_SECONDS: Final = 0.010
"""Work sent ahead to a worker, in seconds of measured job duration."""
SHARED_AHEAD_SECONDS: Final = 0.030
"""The same of a shared scheduler, whose disk stands between a result and the job after it."""
SMALL_POOL: Final = 16
"""CPUs that each cluster of a shared scheduler opens at once; in larger pools it opens others when it needs them."""
INLINE_SIZE: Final = 64 << 10
"""Arguments and result bodies above this many bytes travel as blobs."""

EMBEDDED_AFTER: Final = 1.0
"""Seconds without any node heard of after which a node is started on the client's machine."""
EXPLAIN_AFTER: Final = 3.0
"""Seconds of waiting after which the program says why."""
DISCOVERY_INTERVAL: Final = 10.0
ZOMBIE_INTERVAL: Final = 3600.0

INTERRUPT_TIMEOUT: Final = 6.0
"""Seconds between SIGINT and SIGTERM for a job that is cancelled."""
TERMINATE_TIMEOUT: Final = 2.0
"""Seconds between SIGTERM and SIGKILL."""

VARIABLES: Final[Mapping[str, str]] = {
    "DISPY_PORT": f"base port of clients and nodes (default {BASE_PORT}); --dispy_port",
    "DISPY_HOST": "addresses or names to listen on and to tell others, comma-separated; --host",
    "DISPY_EXT_HOST": "HOST[:PORT] where others reach this machine, behind NAT for example; --ext_host",
    "DISPY_IPV4_UDP_MULTICAST": "1: IPv4 discovery speaks by multicast, not by broadcast; --ipv4_udp_multicast",
    "DISPY_IPV4_MULTICAST_GROUP": "IPv4 address at which multicast discovery speaks and hears",
    "DISPY_IPV6_MULTICAST_GROUP": "IPv6 address at which discovery speaks and hears",
    "DISPY_INTERFACES": "interfaces or addresses, comma-separated: where discovery speaks and where daemons listen",
    "DISPY_SECRET": "the secret itself; --secret",
    "DISPY_SECRET_FILE": "file that holds the secret; --secret-file",
    "DISPY_CERTFILE": "certificate (PEM); --certfile",
    "DISPY_KEYFILE": "private key of the certificate (PEM); --keyfile",
    "DISPY_CAFILE": "certificate authority that the other side's certificate must come from (PEM); --cafile",
    "DISPY_GROUP": "name that separates environments on one network; --group",
    "DISPY_INSECURE": "1: allow an empty secret beyond loopback; --insecure",
    "DISPY_LOCAL": "`never`: no embedded node is started on the client's machine",
    "DISPY_LOGLEVEL": "debug, info, warning, error or critical",
    "DISPY_CPUS": "CPUs that a node offers; --cpus",
    "DISPY_NAME": "name that a node shows; --name",
    "DISPY_JOIN": "HOST[:PORT] that a node dials; --join",
    "DISPY_DEST_PATH_PREFIX": "directory below which a node keeps its files; --dest_path_prefix",
    "DISPY_CLEAN": "1: end what an earlier node left and remove what it kept; --clean",
    "DISPY_DAEMON": "1: the node runs without a terminal: no console, and a hang-up does not end it; --daemon",
    "DISPY_OVERSUBSCRIBE": "1: a node may offer more CPUs than its machine has; --oversubscribe",
    "DISPY_TAG": "words that jobs can ask for, comma-separated; --tag",
    "DISPY_MEMORY": "memory that jobs on a node may reserve; --memory",
    "DISPY_GPUS": "GPUs that a node offers, or auto; --gpus",
    "DISPY_NICE": "niceness of jobs; --nice",
    "DISPY_IDLE_ONLY": "load of others below which a node works; --idle-only",
    "DISPY_SERVICE_START": "HH:MM from which a node accepts jobs; --service_start",
    "DISPY_SERVICE_STOP": "HH:MM from which no job starts; --service_stop",
    "DISPY_SERVICE_END": "HH:MM at which jobs are ended; --service_end",
    "DISPY_SERVE": "programs after which a node ends; --serve",
    "DISPY_CLIENT_SHUTDOWN": "1: cleanup functions may end the node; --client_shutdown",
    "DISPY_ZOMBIE_INTERVAL": "minutes after which a program that vanished is given up; --zombie_interval",
    "DISPY_PING_INTERVAL": "seconds between announcements of a free node; --ping_interval",
    "DISPY_MSG_TIMEOUT": "seconds of silence after which a node's link is lost; --msg_timeout",
    "DISPY_MAX_FILE_SIZE": "larger files are refused by a node; --max_file_size",
    "DISPY_FORCE_CLEANUP": "1: a node keeps no files of jobs; --force_cleanup",
    "DISPY_KEEP_SIZE": "most that a node keeps of fetched files and the like; --keep_size",
    "DISPY_KEEP_DAYS": "days after which a node removes what was not used; --keep_days",
    "DISPY_SPOOL_SIZE": "most that results on a node's disk may take; --spool_size",
    "DISPY_USER": "user as whom jobs run on a node that root started; --user",
    "DISPY_INIT": "Python file whose init() and close() frame the life of a node; --init",
    "DISPY_ADMIN_SECRET": "secret that opens admin links to a node, for `dispy admin`; --admin_secret",
    "DISPY_ADMIN_SECRET_FILE": "file that holds the admin secret; --admin-secret-file",
    "DISPY_NODE_SECRET": "secret between a shared scheduler and nodes; --node_secret",
    "DISPY_NODE_SECRET_FILE": "file that holds it; --node-secret-file",
    "DISPY_NODE_CERTFILE": "certificate of a shared scheduler towards nodes (PEM); --node_certfile",
    "DISPY_NODE_KEYFILE": "private key of that certificate (PEM); --node_keyfile",
    "DISPY_NODE_CAFILE": "certificate authority of nodes for a shared scheduler (PEM); --node_cafile",
    "DISPY_CLUSTER_SECRET": "secret between a shared scheduler and its clients; --cluster_secret",
    "DISPY_CLUSTER_SECRET_FILE": "file that holds it; --cluster-secret-file",
    "DISPY_CLUSTER_CERTFILE": "certificate of a shared scheduler towards clients (PEM); --cluster_certfile",
    "DISPY_CLUSTER_KEYFILE": "private key of that certificate (PEM); --cluster_keyfile",
    "DISPY_CLUSTER_CAFILE": "certificate authority of clients for a shared scheduler (PEM); --cluster_cafile",
    "DISPY_SCHEDULER_DIR": "directory in which a shared scheduler keeps what it has; --dest_path_prefix",
    "DISPY_SCHEDULER_CONFIG": "file with options of dispyscheduler; --config",
    "DISPY_PULSE_INTERVAL": "seconds between heartbeats of a shared scheduler; --pulse_interval",
    "DISPY_FAIR_CLUSTER_SCHEDULER": "1: a shared scheduler is fair between clusters; --fair_cluster_scheduler",
    "DISPY_EARLY_CLUSTER_SCHEDULER": "1: it serves the oldest cluster first; --early_cluster_scheduler",
    "DISPY_FIFO_CLUSTER_SCHEDULER": "1: it serves jobs in their order; --fifo_cluster_scheduler",
    "DISPY_MAX_CPUS_PER_USER": "CPUs that one user may have of a shared scheduler; --max-cpus-per-user",
    "DISPY_MAX_JOBS_PER_USER": "jobs that one user may have pending there; --max-jobs-per-user",
    "DISPY_COOPERATIVE": "1: programs may steer each other's clusters; --cooperative",
    "DISPY_CLEANUP_NODES": "1: nodes of a shared scheduler keep no files of programs; --cleanup_nodes",
    "DISPY_CONFIG": "file with options of dispynode; --config",
    "DISPY_DEBUG": "1: log at debug level; --debug",
    "DISPY_NODES": "nodes that the dispy command or a shared scheduler uses, comma-separated; --nodes, --node",
    "DISPY_SCHEDULER": "HOST[:PORT] of the scheduler that programs share; --scheduler",
    "DISPY_CHECK": "1: cores check their tables after every event (slow; for hunting bugs)",
}


def variable(name: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The value of a `DISPY_…` variable, or None when it is unset or blank."""
    if name not in VARIABLES:
        raise SettingsError(f"{name} is not a variable of dispy")
    value = (os.environ if environ is None else environ).get(name, "").strip()
    return value or None


def flag(name: str) -> bool:
    """Whether a yes/no variable is set to yes.

    Raises:
        SettingsError: it has a value that is neither yes nor no.
    """
    value = (variable(name) or "0").lower()
    if value in {"1", "yes", "true", "on"}:
        return True
    if value in {"0", "no", "false", "off"}:
        return False
    raise SettingsError(f"{name}={value!r}: use 1 or 0")


def base_port(explicit: int | None = None) -> int:
    """The base port: the argument, else DISPY_PORT, else 9700.

    Raises:
        SettingsError: not a port number.
    """
    text: object = variable("DISPY_PORT") if explicit is None else explicit
    if text is None:
        return BASE_PORT
    try:
        port = int(str(text))
    except ValueError:
        port = -1
    if not 0 < port < 65534:
        raise SettingsError(f"the base port must be a number from 1 to 65533, not {text!r}")
    return port


class Multicast(NamedTuple):
    """How discovery speaks to many at once."""

    instead: bool = False
    """IPv4 speaks to its group, not to the broadcast address."""
    ipv4_group: str = "239.255.61.59"
    ipv6_group: str = "ff05::b409:3171:9705:5134:6159"


USUAL_MULTICAST: Final = Multicast()


def multicast(instead: bool = False) -> Multicast:
    """What the variables say, and `instead` of broadcast if the caller does.

    Raises:
        SettingsError: a group is no multicast address.
    """
    return Multicast(
        instead or flag("DISPY_IPV4_UDP_MULTICAST"),
        multicast_group("DISPY_IPV4_MULTICAST_GROUP", variable("DISPY_IPV4_MULTICAST_GROUP"), 4),
        multicast_group("DISPY_IPV6_MULTICAST_GROUP", variable("DISPY_IPV6_MULTICAST_GROUP"), 6),
    )


def multicast_group(name: str, value: object, version: int) -> str:
    """The value, or for None the usual group, if it is a multicast address of that version of IP.

    Raises:
        SettingsError: it is not; the message has the name.
    """
    usual = USUAL_MULTICAST.ipv4_group if version == 4 else USUAL_MULTICAST.ipv6_group
    if value is None:
        return usual
    try:
        address = ipaddress.ip_address(str(value))
    except ValueError:
        address = None
    if address is None or address.version != version or not address.is_multicast:
        raise SettingsError(f"{name} must be an IPv{version} multicast address, as {usual}, not {value!r}")
    return str(address)


def is_sendable(text: str) -> bool:
    """Whether a message can hold this text: names of files that are not UTF-8 come to Python as something else."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def names(value: str | None) -> tuple[str, ...]:
    """The parts of a comma-separated value."""
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


def config_dir() -> Path:
    """Where the user's secret file is (not created here)."""
    return _user_dir("XDG_CONFIG_HOME", ".config", "Application Support")


def state_dir() -> Path:
    """Where recovery files and the like are (not created here)."""
    return _user_dir("XDG_STATE_HOME", ".local/state", "Application Support")


def default_prefix() -> Path:
    """Where a node keeps its files unless told otherwise: per user, on a disk that lasts."""
    return _user_dir("XDG_CACHE_HOME", ".cache", "Caches") / "node"


def _user_dir(variable: str, usual: str, library: str) -> Path:
    """Where files of the user belong: what the variable says, else the usual place, which macOS has elsewhere."""
    if given := os.environ.get(variable, "").strip():
        return Path(given) / "dispy"
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library"), library, "dispy")
    return Path(os.path.expanduser("~"), usual, "dispy")


def scheduler_dir() -> Path:
    """Where a shared scheduler keeps what it has unless told otherwise."""
    return state_dir() / "scheduler"


def handles_dir() -> Path:
    """Where nodes that programs start for themselves say how to reach them."""
    return default_prefix().with_name("handles")


def embedded_handle(token: bytes) -> Path:
    """Where such a node says it for whoever has the token of its lease."""
    return handles_dir() / f"{hashlib.sha256(token).hexdigest()}.json"
