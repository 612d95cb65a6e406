"""`JobCluster`: a computation, the nodes it may use, and the jobs submitted to it.

This is the blocking face of the scheduler service: the caller's thread pickles arguments and queues, the portal's loop
does the rest (`dispy.ledger` keeps the books there). Signatures and return values are those that users of the original
know. How a cluster is made is in `dispy.making`, how jobs are submitted in `submission`; how it ends in `closing`;
`steering`, `talk` and `standing` have its other methods.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

from dispy import config, parameters
from dispy.durability import keep_computation
from dispy.job import DispyJob
from dispy.lifetime import service_for
from dispy.making import AnyCluster, Given
from dispy.nodes import DispyNode, NodeAllocate
from dispy.recovery.journal import Journal
from dispy.scheduler.access import SchedulerAccess
from dispy.scheduler.identity import ServiceSettings
from dispy.scheduler.service import SchedulerService
from dispy.secrets import Credentials
from dispy.settings import Multicast, base_port, flag


class JobCluster(AnyCluster):
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

    service: SchedulerService

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
        self._multicast = parameters.truth("ipv4_udp_multicast", ipv4_udp_multicast)
        given = Given(
            computation=computation,
            nodes=nodes,
            depends=depends,
            cluster_status=cluster_status,
            loglevel=loglevel,
            setup=setup,
            cleanup=cleanup,
            ping_interval=ping_interval,
            pulse_interval=pulse_interval,
            poll_interval=poll_interval,
            secret=secret,
            keyfile=keyfile,
            certfile=certfile,
            secret_file=secret_file,
            cafile=cafile,
            group=group,
            insecure=insecure,
            isolate=isolate,
            setup_in=setup_in,
            requirements=requirements,
            durable=durable,
            **now,
        )
        self._make(given, in_memory=True)

    def _reach(
        self, given: Given, credentials: Credentials, group: str, *, local: bool
    ) -> Callable[[], SchedulerAccess]:
        settings = ServiceSettings(
            credentials=credentials,
            group=group,
            base_port=base_port(config.DispyPort if given.dispy_port is None else given.dispy_port),
            client_port=config.ClientPort if given.dispy_port is None else given.dispy_port,
            interfaces=parameters.interfaces(given.host),
            pulse_interval=self.pulse_interval,
            multicast=Multicast(
                self._multicast or flag("DISPY_IPV4_UDP_MULTICAST"),
                config.IPv4MulticastGroup,
                config.IPv6MulticastGroup,
            ),
            ext_host=parameters.first_host(given.ext_host),
        )

        def make() -> SchedulerService:
            service = SchedulerService(self._portal, settings)
            self._portal.expect(lambda: service.core.has_one_job)
            return service

        return lambda: service_for(settings, make)

    def _keep(self, items: Sequence[NodeAllocate], recover_file: str | os.PathLike[str] | None) -> Journal:
        journal = keep_computation(self.service.recorder, recover_file, self._ledger, self._shipment, items)
        self._ledger.when_told = self.service.keep_marks(self._id, journal)
        return journal


_PARAMETERS = [name for name in inspect.signature(JobCluster).parameters if name != "others"]
