"""How a cluster is made from what a user gives: checked, packed, opened. The common base of both kinds of cluster."""

from __future__ import annotations

import os
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from types import FunctionType, TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from dispy import config, parameters
from dispy.closing import ClusterClosing
from dispy.errors import SettingsError, ShippingError, TransferError
from dispy.job import KEEPERS, DispyJob
from dispy.ledger import ClusterLedger
from dispy.lifetime import remember, stop_if_unused
from dispy.logs import logger
from dispy.mapping import CallMapping
from dispy.model import ComputationId, ComputationSpec
from dispy.nodes import DispyNode, NodeAllocate, parse_nodes
from dispy.portal import portal
from dispy.recovery.journal import Journal
from dispy.requirements import read_requirements
from dispy.scheduler.access import SchedulerAccess
from dispy.secrets import Credentials, find_credentials
from dispy.settings import variable
from dispy.shipping import Shipment, pack
from dispy.standing import ClusterStanding
from dispy.steering import NodeSteering
from dispy.talk import NodeTalk
from dispy.words import counted

SETUP_PLACES = ("node", "worker", "auto")


class Given(Struct, frozen=True, kw_only=True):
    """What both kinds of cluster are made with, as the user gave it, under the names of today."""

    computation: Callable[..., Any] | str
    nodes: Any
    depends: Sequence[Any] | None
    job_status: Callable[[DispyJob], Any] | None
    cluster_status: Callable[[int, DispyNode | None, DispyJob | None], Any] | None
    host: str | Sequence[str] | None
    dispy_port: int | None
    ext_host: str | Sequence[str] | None
    dest_path: str | None
    loglevel: int | None
    setup: Callable[..., Any] | None
    cleanup: bool | Callable[..., Any]
    poll_interval: float | None
    reentrant: bool
    secret: str | None
    keyfile: str | None
    certfile: str | None
    recover_file: str | os.PathLike[str] | bool | None
    secret_file: str | None
    cafile: str | None
    group: str | None
    insecure: bool
    isolate: bool
    setup_in: str
    requirements: str | os.PathLike[str] | Sequence[str] | None
    durable: bool
    ping_interval: float | None = None
    pulse_interval: float | None = None


class AnyCluster(CallMapping, NodeSteering, NodeTalk, ClusterStanding, ClusterClosing):
    """A computation, the nodes it may use, and the jobs submitted to it. What differs is where its scheduler runs."""

    def _make(self, given: Given, *, in_memory: bool) -> None:
        """Check, pack and open; `in_memory`: a secret that can be kept in no file will do.

        Raises:
            SettingsError: a parameter is not usable.
            ShippingError: the computation or something in `depends` cannot travel.
        """
        secret = given.secret
        if secret is not None and not isinstance(secret, str):
            raise SettingsError(f"secret must be a string, not {type(secret).__name__}")
        group = parameters.text("group", variable("DISPY_GROUP") if given.group is None else given.group)
        dest_path = parameters.text("dest_path", given.dest_path)
        if given.loglevel is not None or variable("DISPY_LOGLEVEL"):
            logger.setLevel(parameters.loglevel(given.loglevel))
        self.pid = os.getpid()
        self.ping_interval = parameters.interval("ping_interval", given.ping_interval, 1.0, 1000.0)
        self.pulse_interval = parameters.interval("pulse_interval", given.pulse_interval, 0.1, 1000.0)
        self.poll_interval = parameters.interval("poll_interval", given.poll_interval, 5.0, 1000.0)
        on_job = parameters.fitting("job_status", given.job_status, "job")
        on_event = parameters.fitting("cluster_status", given.cluster_status, "status", "node", "job")
        items, local = parse_nodes(given.nodes)
        credentials = find_credentials(
            secret=secret,
            secret_file=given.secret_file,
            certfile=given.certfile,
            keyfile=given.keyfile,
            cafile=given.cafile,
            insecure=given.insecure,
            in_memory=in_memory,
        )
        if credentials.not_kept:
            logger.warning("only a node on this machine can be used: %s", credentials.not_kept)
        reach = self._reach(given, credentials, group or "", local=local)
        shipment = _shipment(given)
        required = read_requirements(given.requirements)
        recover_file = parameters.recover_file(given.recover_file)
        durable = parameters.truth("durable", given.durable)
        if durable and recover_file is False:
            raise SettingsError(
                "durable=True keeps jobs beside the recovery file, and recover_file=False says: no file"
            )
        self._shipment = shipment
        self._portal = portal()
        self.service = reach()
        spec = msgspec.structs.replace(
            self._portal.call(self._make_spec(shipment)),
            dest_path=parameters.directory("dest_path", dest_path),
            keep_files=given.cleanup is False,
            isolate=parameters.truth("isolate", given.isolate),
            setup_in=given.setup_in,
            requirements=required,
            has_setup=given.setup is not None,
            interpreter=config.Java if shipment.program.endswith(".java") else "",
        )
        ledger = ClusterLedger(
            self._portal,
            spec,
            shipment,
            items,
            local=local,
            may_embed=local or ([item.host for item in items] == ["*"] and variable("DISPY_LOCAL") != "never"),
            reentrant=parameters.truth("reentrant", given.reentrant),
            interval=self.ping_interval,
        )
        ledger.cluster = self
        ledger.job_status = on_job
        ledger.cluster_status = on_event
        self._ledger = ledger
        self._id = spec.id
        self.start_time = time.time()
        self.end_time: float | None = None
        try:
            if recover_file is not False:
                self.service.recorder.use(recover_file)
            self._journal = self._keep(items, recover_file) if durable and recover_file is not False else None
            self._open()
        except BaseException:
            stop_if_unused(self.service)
            raise
        self.is_closed = False
        self.is_hurried = False
        remember(self)
        KEEPERS[spec.id] = self
        ledger.constructed_at = time.monotonic()

    @abstractmethod
    def _reach(
        self, given: Given, credentials: Credentials, group: str, *, local: bool
    ) -> Callable[[], SchedulerAccess]:
        """What makes or finds its scheduler, when everything else has been checked.

        Raises:
            SettingsError: a parameter is not usable.
        """

    @abstractmethod
    def _keep(self, items: Sequence[NodeAllocate], recover_file: str | os.PathLike[str] | None) -> Journal | None:
        """It is to be durable: let its jobs be kept."""

    def _open(self) -> None:
        self._portal.call(self.service.open_cluster(self._ledger))

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


def _name_methods() -> None:
    """Python's sentences about wrong arguments name a method with its class: users know none of those that share it."""
    for base in AnyCluster.__mro__:
        for name, function in vars(base).items():
            if isinstance(function, FunctionType) and not name.startswith("_"):
                function.__qualname__ = name


_name_methods()


def _shipment(given: Given) -> Shipment:
    cleanup = given.cleanup
    if not callable(cleanup) and not isinstance(cleanup, bool):
        raise SettingsError(f"cleanup must be True, False or a function, not {cleanup!r}")
    if given.setup_in not in SETUP_PLACES:
        raise SettingsError(f"setup_in must be 'node', 'worker' or 'auto', not {given.setup_in!r}")
    setup = parameters.called("setup", given.setup)
    return pack(given.computation, given.depends or (), setup=setup, cleanup=cleanup if callable(cleanup) else None)
