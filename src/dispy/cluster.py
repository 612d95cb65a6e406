"""`JobCluster`: a computation, the nodes it may use, and the jobs submitted to it.

This is the blocking face of the scheduler service: the caller's thread pickles arguments and queues, the portal's loop
does the rest (`dispy.ledger` keeps the books there). Signatures and return values are those that users of the original
know. How jobs are submitted is in `dispy.submission`; how a cluster ends in `closing`; `steering`,
`talk` and `standing` have its other methods.
"""

from __future__ import annotations

import inspect
import os
import secrets
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from dispy import config, parameters
from dispy.closing import ClusterClosing
from dispy.durability import keep_computation
from dispy.errors import SettingsError, ShippingError, TransferError
from dispy.job import KEEPERS, DispyJob
from dispy.ledger import ClusterLedger
from dispy.lifetime import remember, service_for, stop_if_unused
from dispy.logs import logger
from dispy.model import ComputationId, ComputationSpec
from dispy.nodes import DispyNode, parse_nodes
from dispy.portal import portal
from dispy.recovery.journal import Journal
from dispy.requirements import read_requirements
from dispy.scheduler.identity import ServiceSettings
from dispy.scheduler.service import SchedulerService
from dispy.secrets import find_credentials
from dispy.settings import Multicast, base_port, flag, variable
from dispy.shipping import Shipment, pack
from dispy.standing import ClusterStanding
from dispy.steering import NodeSteering
from dispy.submission import JobSubmission
from dispy.talk import NodeTalk
from dispy.words import counted

SETUP_PLACES = ("node", "worker", "auto")


class JobCluster(JobSubmission, NodeSteering, NodeTalk, ClusterStanding, ClusterClosing):
    """Run a function or a program on all nodes that can be found.

    Args:
        computation: a function (any callable that can travel), or the path of a program.
        nodes: None for every node that answers (or, when none does, this machine), `'local'` for this machine, or a
            host, pattern, tuple, dict, `NodeAllocate`, or a list of these.
        depends: files (paths), functions, classes, modules, packages and instances that jobs need.
        job_status: called with a job when it has ended (or has a provisional result).
        cluster_status: called with (status, node, job) at every event.
        host: address or addresses of this machine to use; None for all.
        dispy_port: base port (default 9700); nodes listen on base+1.
        ext_host: name or address of this machine as others see it, behind NAT: nodes show it for who holds them.
        ip_addr, ext_ip_addr: old names of `host` and `ext_host`.
        ipv4_udp_multicast: IPv4 discovery speaks by multicast, not by broadcast.
        dest_path: name of the directory on nodes for this computation's files.
        loglevel: level of `dispy.logger`.
        callback: old name of `job_status`.
        setup: function that runs once on every node before its jobs.
        cleanup: True removes shipped files at the end, False leaves them; a function runs before they are removed.
        ping_interval: seconds (1 to 1000) between questions for nodes; default 10, while jobs wait.
        pulse_interval: seconds (0.1 to 1000) between heartbeats; a node is lost after five. Default 1.
        poll_interval: accepted for old programs; without effect.
        reentrant: run jobs again that were on a node that was lost.
        secret: the secret that nodes must share; None looks in DISPY_SECRET and in files.
        keyfile, certfile, cafile: TLS key, certificate and certificate authority (PEM files).
        recover_file: where to note what `recover_jobs` needs if this program is killed; None: in the user's state
            directory. False: nowhere.
        secret_file: file that holds the secret.
        group: use only nodes of this group.
        isolate: give every job a worker process of its own: what it does to globals is gone with it.
        durable: keep jobs that wait, and all that they need, beside the recovery file: `recover_jobs` runs them.
        requirements: packages that jobs need and nodes may not have: a list of requirements, or the path of a
            requirements.txt or pyproject.toml. Nodes make a virtual environment with them.
        setup_in: where `setup` runs: `'node'` (once, workers are forked from that process), `'worker'` (in each
            worker), or `'auto'`: as `'node'`, unless that process cannot be forked afterwards.
        insecure: allow the empty secret beyond loopback.

    Raises:
        SettingsError: a parameter is not usable; the message names it.
        ShippingError: the computation or something in `depends` cannot travel.

    Example:
        >>> cluster = dispy.JobCluster(lambda n: n * n)
        >>> jobs = [cluster.submit(n) for n in range(4)]
        >>> [job() for job in jobs]
        [0, 1, 4, 9]
    """

    def __init__(
        self,
        computation: Callable[..., Any] | str,
        nodes: Any = None,
        depends: Sequence[Any] | None = None,
        job_status: Callable[[DispyJob], Any] | None = None,
        cluster_status: Callable[[int, DispyNode | None, DispyJob | None], Any] | None = None,
        host: str | Sequence[str] | None = None,
        dispy_port: int | None = None,
        ext_host: str | Sequence[str] | None = None,
        ip_addr: str | Sequence[str] | None = None,
        ext_ip_addr: str | Sequence[str] | None = None,
        ipv4_udp_multicast: bool = False,
        dest_path: str | None = None,
        loglevel: int | None = None,
        callback: Callable[[DispyJob], Any] | None = None,
        setup: Callable[..., Any] | None = None,
        cleanup: bool | Callable[..., Any] = True,
        ping_interval: float | None = None,
        pulse_interval: float | None = None,
        poll_interval: float | None = None,
        reentrant: bool = False,
        secret: str | None = None,
        keyfile: str | None = None,
        certfile: str | None = None,
        recover_file: str | os.PathLike[str] | bool | None = None,
        *,
        secret_file: str | None = None,
        cafile: str | None = None,
        group: str | None = None,
        insecure: bool = False,
        isolate: bool = False,
        setup_in: str = "auto",
        requirements: str | os.PathLike[str] | Sequence[str] | None = None,
        durable: bool = False,
        **others: Any,
    ) -> None:
        old = {"callback": callback, "ip_addr": ip_addr, "ext_ip_addr": ext_ip_addr}
        now = parameters.renamed(
            {
                "job_status": job_status,
                "host": host,
                "ext_host": ext_host,
                "dest_path": dest_path,
                "reentrant": reentrant,
                "recover_file": recover_file,
                "dispy_port": dispy_port,
            },
            {name: value for name, value in old.items() if value is not None} | others,
            _PARAMETERS,
        )
        dest_path = now["dest_path"]
        if secret is not None and not isinstance(secret, str):
            raise SettingsError(f"secret must be a string, not {type(secret).__name__}")
        group = parameters.text("group", variable("DISPY_GROUP") if group is None else group)
        dest_path = parameters.text("dest_path", dest_path)
        if loglevel is not None or variable("DISPY_LOGLEVEL"):
            logger.setLevel(parameters.loglevel(loglevel))
        self.pid = os.getpid()
        self.ping_interval = parameters.interval("ping_interval", ping_interval, 1.0, 1000.0)
        self.pulse_interval = parameters.interval("pulse_interval", pulse_interval, 0.1, 1000.0)
        self.poll_interval = parameters.interval("poll_interval", poll_interval, 5.0, 1000.0)
        on_job = parameters.fitting("job_status", now["job_status"], "job")
        on_event = parameters.fitting("cluster_status", cluster_status, "status", "node", "job")
        items, local = parse_nodes(nodes)
        credentials = find_credentials(
            secret=secret,
            secret_file=secret_file,
            certfile=certfile,
            keyfile=keyfile,
            cafile=cafile,
            insecure=insecure,
            in_memory=True,
        )
        if credentials.not_kept:
            logger.warning("only a node on this machine can be used: %s", credentials.not_kept)
        settings = ServiceSettings(
            credentials=credentials,
            group=group or "",
            base_port=base_port(config.DispyPort if now["dispy_port"] is None else now["dispy_port"]),
            client_port=config.ClientPort if now["dispy_port"] is None else now["dispy_port"],
            interfaces=parameters.interfaces(now["host"]),
            pulse_interval=self.pulse_interval,
            multicast=Multicast(
                parameters.truth("ipv4_udp_multicast", ipv4_udp_multicast) or flag("DISPY_IPV4_UDP_MULTICAST"),
                config.IPv4MulticastGroup,
                config.IPv6MulticastGroup,
            ),
            ext_host=parameters.first_host(now["ext_host"]),
        )
        if not callable(cleanup) and not isinstance(cleanup, bool):
            raise SettingsError(f"cleanup must be True, False or a function, not {cleanup!r}")
        cleanup_function = cleanup if callable(cleanup) else None
        shipment = pack(computation, depends or (), setup=parameters.called("setup", setup), cleanup=cleanup_function)
        if setup_in not in SETUP_PLACES:
            raise SettingsError(f"setup_in must be 'node', 'worker' or 'auto', not {setup_in!r}")
        required = read_requirements(requirements)
        recover_file = parameters.recover_file(now["recover_file"])
        if parameters.truth("durable", durable) and recover_file is False:
            raise SettingsError(
                "durable=True keeps jobs beside the recovery file, and recover_file=False says: no file"
            )
        self._shipment = shipment
        self._portal = portal()
        self.service = service_for(settings, lambda: SchedulerService(self._portal, settings))
        spec = self._portal.call(self._make_spec(shipment))
        spec = msgspec.structs.replace(
            spec,
            dest_path=parameters.directory("dest_path", dest_path),
            keep_files=cleanup is False,
            isolate=parameters.truth("isolate", isolate),
            setup_in=setup_in,
            requirements=required,
            has_setup=setup is not None,
            interpreter=config.Java if shipment.program.endswith(".java") else "",
        )
        ledger = ClusterLedger(
            self._portal,
            spec,
            shipment,
            items,
            local=local,
            may_embed=local or ([item.host for item in items] == ["*"] and variable("DISPY_LOCAL") != "never"),
            reentrant=parameters.truth("reentrant", now["reentrant"]),
            interval=self.ping_interval,
        )
        ledger.cluster = self
        ledger.job_status = on_job
        ledger.cluster_status = on_event
        self._ledger = ledger
        self._id = spec.id
        self.start_time = time.time()
        self.end_time: float | None = None
        if recover_file is not False:
            self.service.recorder.use(recover_file)
        self._journal: Journal | None = None
        if durable and recover_file is not False:
            self._journal = keep_computation(self.service.recorder, recover_file, ledger, shipment, items)
            ledger.when_told = self.service.keep_marks(spec.id, self._journal)
        self._portal.call(self.service.open_cluster(ledger))
        self.is_closed = False
        self.is_hurried = False
        remember(self)
        KEEPERS[spec.id] = self
        ledger.constructed_at = time.monotonic()

    async def _make_spec(self, shipment: Shipment) -> ComputationSpec:
        try:
            code, files = await self.service.offer_computation(
                shipment.code, [(file.path, file.dest) for file in shipment.files]
            )
        except TransferError as error:
            raise ShippingError(f"depends: {error}") from error
        return ComputationSpec(
            id=ComputationId(secrets.token_hex(16)),
            name=shipment.name,
            kind=shipment.kind,
            python=shipment.python,
            code=code,
            program=shipment.program,
            files=files,
        )

    @property
    def job_status(self) -> Callable[[DispyJob], Any] | None:
        """Called with a job when it has ended; may be set at any time."""
        return self._ledger.job_status

    @job_status.setter
    def job_status(self, function: Callable[[DispyJob], Any] | None) -> None:
        self._ledger.job_status = parameters.fitting("job_status", function, "job")

    @property
    def cluster_status(self) -> Callable[[int, DispyNode | None, DispyJob | None], Any] | None:
        """Called with (status, node, job) at every event; may be set at any time."""
        return self._ledger.cluster_status

    @cluster_status.setter
    def cluster_status(self, function: Callable[[int, DispyNode | None, DispyJob | None], Any] | None) -> None:
        self._ledger.cluster_status = parameters.fitting("cluster_status", function, "status", "node", "job")

    def shutdown(self) -> None:
        """Close the cluster, and the scheduler of this process when no other cluster uses it."""
        self.close()
        stop_if_unused(self.service)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._close_interrupted()
            return
        if kind is not None and self.pending:
            pending = counted(self.pending, "job")
            logger.warning("%s left the with block; waiting for %s (Ctrl-C ends all)", kind.__name__, pending)
        try:
            self.close()
        except KeyboardInterrupt:
            self._close_interrupted()
            raise

    def _close_interrupted(self) -> None:
        try:
            self.close(terminate=True)
        except KeyboardInterrupt:
            self.is_hurried = True
            raise


_PARAMETERS = [name for name in inspect.signature(JobCluster).parameters if name != "others"]
