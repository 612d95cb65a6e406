"""`SharedJobCluster`: a `JobCluster` whose scheduler is a daemon that programs share (`dispyscheduler`)."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from dispy import config, parameters
from dispy.errors import SettingsError
from dispy.hostport import place_named
from dispy.job import DispyJob
from dispy.lifetime import service_for
from dispy.making import AnyCluster, Given
from dispy.nodes import DispyNode, NodeAllocate
from dispy.scheduler.access import SchedulerAccess
from dispy.secrets import Credentials
from dispy.settings import SCHEDULER_PORT_OFFSET, base_port, variable
from dispy.sharing.remote import RemoteScheduler
from dispy.sharing.uplink import SharedSettings

OWN_HOST: Final = "127.0.0.1"


class SharedJobCluster(AnyCluster):
    """Run a function or a program on the nodes of a scheduler that several programs and users share.

    All that can be done with a `JobCluster` can be done with this. Jobs are on the disk of the scheduler soon after
    they were submitted, and wait there whatever becomes of this program.

    Args:
        computation, nodes, depends, job_status, cluster_status, loglevel, callback, setup, cleanup, dest_path,
        reentrant, keyfile, certfile, cafile, secret_file, group, isolate, requirements, setup_in, insecure: as of
            `JobCluster`. What `nodes` names is dialled by the scheduler, and decided about here.
        host: accepted for old programs; without effect, as this program only dials.
        dispy_port: base port (default 9700); the scheduler listens on base+2.
        client_port: accepted for old programs; without effect, as this program does not listen.
        scheduler_host: where `dispyscheduler` runs, as `HOST` or `HOST:PORT`; None: what DISPY_SCHEDULER says, else
            this machine.
        ext_host: name of this machine as others shall see it.
        ip_addr, ext_ip_addr: old names of `host` and `ext_host`.
        poll_interval: accepted for old programs; without effect.
        exclusive: wait until no other cluster uses the scheduler, and let none beside this one until it is closed.
        secret: the secret of the scheduler (its `--cluster_secret`); None looks in DISPY_SECRET and in files.
        recover_file: where to note what `recover_jobs` needs if this program is killed; None: in the user's state
            directory. False: nowhere.
        durable: a result stays with the scheduler until callbacks about it have returned. (Jobs are always kept.)

    Raises:
        SettingsError: a parameter is not usable, or the scheduler refuses this program.
        ShippingError: the computation or something in `depends` cannot travel.
    """

    service: RemoteScheduler

    def __init__(
        self,
        computation: Callable[..., Any] | str,
        nodes: Any = None,
        depends: Sequence[Any] | None = None,
        job_status: Callable[[DispyJob], Any] | None = None,
        cluster_status: Callable[[int, DispyNode | None, DispyJob | None], Any] | None = None,
        host: str | Sequence[str] | None = None,
        dispy_port: int | None = None,
        client_port: int | None = None,
        scheduler_host: str | None = None,
        ext_host: str | Sequence[str] | None = None,
        ip_addr: str | Sequence[str] | None = None,
        ext_ip_addr: str | Sequence[str] | None = None,
        loglevel: int | None = None,
        callback: Callable[[DispyJob], Any] | None = None,
        setup: Callable[..., Any] | None = None,
        cleanup: bool | Callable[..., Any] = True,
        dest_path: str | None = None,
        poll_interval: float | None = None,
        reentrant: bool = False,
        exclusive: bool = False,
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
            of="SharedJobCluster",
        )
        self._scheduler_host = parameters.text("scheduler_host", scheduler_host)
        self._exclusive = parameters.truth("exclusive", exclusive)
        given = Given(
            computation=computation,
            nodes=nodes,
            depends=depends,
            cluster_status=cluster_status,
            loglevel=loglevel,
            setup=setup,
            cleanup=cleanup,
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
        self._make(given, in_memory=False)

    def _reach(
        self, given: Given, credentials: Credentials, group: str, *, local: bool
    ) -> Callable[[], SchedulerAccess]:
        if local:
            raise SettingsError(
                "nodes='local' starts a node for one program: that is for JobCluster; a shared scheduler uses the "
                "nodes that it finds"
            )
        parameters.interfaces(given.host)
        base = base_port(config.DispyPort if given.dispy_port is None else given.dispy_port)
        host, port = scheduler_place(self._scheduler_host, base)
        settings = SharedSettings(credentials, group, host, port, parameters.first_host(given.ext_host))
        return lambda: service_for(settings, lambda: RemoteScheduler(self._portal, settings))

    def _keep(self, items: Sequence[NodeAllocate], recover_file: str | os.PathLike[str] | None) -> None:
        self._ledger.when_told = functools.partial(self.service.told, self._id)

    def _open(self) -> None:
        try:
            self._portal.call(self.service.open_cluster(self._ledger, exclusive=self._exclusive))
        except SettingsError as error:  # it is for the user, who need not see through how many hands it went
            raise SettingsError(str(error)) from None


def scheduler_place(given: str | None, base: int) -> tuple[str, int]:
    """Host and port of a shared scheduler that was given as `HOST`, `HOST:PORT`, `[IPv6]:PORT`, or not at all.

    Raises:
        SettingsError: it is none of these.
    """
    text = (given or variable("DISPY_SCHEDULER") or "").strip() or OWN_HOST
    return place_named(text, base + SCHEDULER_PORT_OFFSET, "scheduler_host")


_PARAMETERS = [name for name in inspect.signature(SharedJobCluster).parameters if name != "others"]
